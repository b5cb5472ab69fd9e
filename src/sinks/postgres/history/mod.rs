//! Reads rows and arrivals back from replicas, for requests that reach further back than the
//! dataflow.
//!
//! A statement is one snapshot, and reads how far the replica is together with the rows. So rows are
//! never taken for final that the replica does not know to be final. `pool` has the sessions with a
//! database, and gives a database up for a while that does not answer; `statements` has the SQL,
//! and `decode` makes values of the rows.

mod breaker;
mod decode;
mod export;
mod pool;
mod statements;

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row as SqlRow;
use tokio_postgres::types::Type;

use self::decode::{Instant, decode_arrival, decode_heat_row, decode_reading};
pub use self::export::{DayExport, ExportError};
use self::pool::ReplicaPool;
use self::statements::Statements;
use super::city_key::shard_of_city;
use super::plan::PostgresDatabase;
use super::schema::SchemaName;
use crate::model::EventTime;
use crate::model::history_store::{
    FinalExplanation, FinalRows, HistoryError, HistoryRange, HistoryStore, PastRows, StoreFuture,
    StoredArrivals,
};

/// The replicas that are read, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryPlan {
    /// One for each database of the sink, in their order.
    pub databases: Vec<PostgresDatabase>,
    pub schema: SchemaName,
    /// The shards of the sink.
    pub shards: u16,
    /// Sessions with each database.
    pub connections: usize,
    /// How long a request may wait for a database.
    pub timeout: Duration,
}

/// The most arrivals of one key that an answer has: the newest.
pub const MAX_ARRIVALS_OF_KEY: i64 = 20;

/// The results in PostgreSQL.
pub struct PostgresHistory {
    pools: Vec<ReplicaPool>,
    shards: u16,
    statements: Statements,
}

impl PostgresHistory {
    /// No session is opened yet.
    pub fn new(plan: &HistoryPlan) -> PostgresHistory {
        let pool = |database: &PostgresDatabase| ReplicaPool::new(database, plan.connections, plan.timeout);
        PostgresHistory {
            pools: plan.databases.iter().map(pool).collect(),
            shards: plan.shards.max(1),
            statements: Statements::new(&plan.schema),
        }
    }

    /// The pool of the database that has a city.
    fn pool_of(&self, city: &str) -> Result<&ReplicaPool, HistoryError> {
        let database = usize::from(shard_of_city(city, self.shards)) % self.pools.len().max(1);
        self.pools.get(database).ok_or_else(|| HistoryError::Unavailable {
            detail: "no database is configured".into(),
            retry_after: Duration::from_secs(60),
        })
    }

    async fn read_final_rows(&self, range: HistoryRange) -> Result<FinalRows, HistoryError> {
        let HistoryRange { city, from, to, limit } = range;
        let pool = self.pool_of(&city)?;
        let (from, to, fetched) = (Instant(from), Instant(to), i64::from(limit) + 1);
        let parameters: [pool::Parameter<'_>; 4] = [
            (&&*city, Type::TEXT),
            (&from, Type::TIMESTAMPTZ),
            (&to, Type::TIMESTAMPTZ),
            (&fetched, Type::INT8),
        ];
        let answer = pool.query(&self.statements.final_rows, &parameters).await?;
        let decoded = || -> Result<FinalRows, tokio_postgres::Error> {
            let Some(first) = answer.first() else { return Ok(FinalRows::default()) };
            let final_until: Option<Instant> = first.try_get(0)?;
            let mut rows = decode_rows(&answer)?;
            let has_more = rows.len() > limit as usize;
            rows.truncate(limit as usize);
            Ok(FinalRows { rows, has_more, final_until: final_until.map(|Instant(at)| at) })
        };
        decoded().map_err(|error| pool.unreadable(&error))
    }

    async fn read_rows_as_of(&self, range: HistoryRange, epoch: u64) -> Result<PastRows, HistoryError> {
        let HistoryRange { city, from, to, limit } = range;
        let pool = self.pool_of(&city)?;
        let (from, to, fetched) = (Instant(from), Instant(to), i64::from(limit) + 1);
        let at = i64::try_from(epoch).unwrap_or(i64::MAX);
        let parameters: [pool::Parameter<'_>; 5] = [
            (&&*city, Type::TEXT),
            (&from, Type::TIMESTAMPTZ),
            (&to, Type::TIMESTAMPTZ),
            (&fetched, Type::INT8),
            (&at, Type::INT8),
        ];
        let answer = pool.query(&self.statements.rows_as_of, &parameters).await?;
        let decoded = || -> Result<PastRows, tokio_postgres::Error> {
            let Some(first) = answer.first() else { return Ok(PastRows::default()) };
            let mut rows = decode_rows(&answer)?;
            let has_more = rows.len() > limit as usize;
            rows.truncate(limit as usize);
            let complete_until = decode::epoch(first, 0)?;
            Ok(PastRows { rows, has_more, is_city_known: true, complete_until })
        };
        decoded().map_err(|error| pool.unreadable(&error))
    }

    async fn read_explanation(
        &self,
        city: Arc<str>,
        reading_at: EventTime,
        from: EventTime,
        limit: u32,
    ) -> Result<FinalExplanation, HistoryError> {
        let pool = self.pool_of(&city)?;
        let (reading_at, from, fetched) = (Instant(reading_at), Instant(from), i64::from(limit) + 1);
        let parameters: [pool::Parameter<'_>; 4] = [
            (&&*city, Type::TEXT),
            (&reading_at, Type::TIMESTAMPTZ),
            (&from, Type::TIMESTAMPTZ),
            (&fetched, Type::INT8),
        ];
        let answer = pool.query(&self.statements.explain_final_row, &parameters).await?;
        let decoded = || -> Result<FinalExplanation, tokio_postgres::Error> {
            let Some(first) = answer.first() else { return Ok(FinalExplanation::default()) };
            let final_until: Option<Instant> = first.try_get(0)?;
            let row = decode_heat_row(first, 1)?;
            let readings: Result<Vec<_>, _> =
                answer.iter().filter_map(|row| decode_reading(row, 5).transpose()).collect();
            let mut readings = readings?;
            let has_more = readings.len() > limit as usize;
            readings.truncate(limit as usize);
            let final_until = final_until.map(|Instant(at)| at);
            Ok(FinalExplanation { row, readings, has_more, final_until })
        };
        decoded().map_err(|error| pool.unreadable(&error))
    }

    async fn read_arrivals(
        &self,
        city: Arc<str>,
        from: EventTime,
        to: EventTime,
        epoch: u64,
    ) -> Result<StoredArrivals, HistoryError> {
        let pool = self.pool_of(&city)?;
        let (from, to, most) = (Instant(from), Instant(to), MAX_ARRIVALS_OF_KEY);
        let at = i64::try_from(epoch).unwrap_or(i64::MAX);
        let parameters: [pool::Parameter<'_>; 5] = [
            (&&*city, Type::TEXT),
            (&from, Type::TIMESTAMPTZ),
            (&to, Type::TIMESTAMPTZ),
            (&at, Type::INT8),
            (&most, Type::INT8),
        ];
        let answer = pool.query(&self.statements.arrivals, &parameters).await?;
        let decoded = || -> Result<StoredArrivals, tokio_postgres::Error> {
            let Some(first) = answer.first() else { return Ok(StoredArrivals::default()) };
            let complete_until = decode::epoch(first, 0)?;
            let arrivals: Result<Vec<_>, _> =
                answer.iter().filter_map(|row| decode_arrival(row, 1).transpose()).collect();
            Ok(StoredArrivals { arrivals: arrivals?, complete_until })
        };
        decoded().map_err(|error| pool.unreadable(&error))
    }
}

/// The rows of an answer, whose first column says how far it reaches. An answer without rows has
/// one line of nulls.
fn decode_rows(answer: &[SqlRow]) -> Result<Vec<(EventTime, crate::model::Row)>, tokio_postgres::Error> {
    let mut rows = Vec::with_capacity(answer.len());
    for line in answer {
        let reading_at: Option<Instant> = line.try_get(1)?;
        if let Some((Instant(at), row)) = reading_at.zip(decode_heat_row(line, 2)?) {
            rows.push((at, row));
        }
    }
    Ok(rows)
}

impl HistoryStore for PostgresHistory {
    fn final_rows(&self, range: HistoryRange) -> StoreFuture<'_, FinalRows> {
        Box::pin(self.read_final_rows(range))
    }

    fn rows_as_of(&self, range: HistoryRange, epoch: u64) -> StoreFuture<'_, PastRows> {
        Box::pin(self.read_rows_as_of(range, epoch))
    }

    fn explain_final_row(
        &self,
        city: Arc<str>,
        reading_at: EventTime,
        from: EventTime,
        limit: u32,
    ) -> StoreFuture<'_, FinalExplanation> {
        Box::pin(self.read_explanation(city, reading_at, from, limit))
    }

    fn arrivals(
        &self,
        city: Arc<str>,
        from: EventTime,
        to: EventTime,
        epoch: u64,
    ) -> StoreFuture<'_, StoredArrivals> {
        Box::pin(self.read_arrivals(city, from, to, epoch))
    }
}
