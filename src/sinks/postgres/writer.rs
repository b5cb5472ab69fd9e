//! The writer of one shard: a transaction with the changes of whole epochs and the shard's row.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{CallLimit, Connection, Session};
use super::error::PostgresError;
use super::metrics::ShardMetrics;
use super::plan::{PostgresDatabase, PostgresSinkPlan};
use super::retention::drop_old_partitions;
use super::shard_rows::{ShardRow, ShardTable};
use super::statement_failure::StatementFailure;
use super::takeover::{begin_locking, end_blockers};
use super::transaction::{PendingTransaction, ShardLock, WriteTarget};
use crate::model::Millis;
use crate::sinks::error::{SinkError, WriteFailure};
use crate::sinks::progress::{Claim, ShardProgress};
use crate::sinks::shard::{ShardBatch, ShardWriter};
use crate::sinks::stop::StopDeadline;

const DAY_MS: i64 = 86_400_000;
/// Between two attempts to drop partitions that are in use.
const DROP_INTERVAL: Duration = Duration::from_secs(10);

/// What a writer writes, and for whom.
pub struct WriterPlan {
    pub sink: Arc<PostgresSinkPlan>,
    pub shard: u16,
    pub claim: Claim,
    pub stop: Arc<StopDeadline>,
}

impl WriterPlan {
    fn database(&self) -> &PostgresDatabase {
        &self.sink.databases[self.sink.database_of(self.shard)]
    }

    fn target(&self) -> WriteTarget {
        WriteTarget { schema: self.sink.schema.clone(), create_tables: self.sink.create_tables }
    }

    /// Database and schema, for messages.
    fn names(&self) -> (String, String) {
        (self.database().label.clone(), self.sink.schema.as_str().to_owned())
    }

    /// Connects, and reads the shard's row once no transaction holds it: what an earlier session
    /// has committed is in it, and nothing more will be.
    fn connect(&self) -> Result<(Connection, ShardRow), PostgresError> {
        let limit = CallLimit { timeout: self.sink.transaction_timeout, stop: Arc::clone(&self.stop) };
        let connection = Connection::open(self.database(), limit)?;
        let row = connection.call(async |session| self.read_row(session).await)?;
        Ok((connection, row))
    }

    async fn read_row(&self, session: &Session) -> Result<ShardRow, PostgresError> {
        let table = ShardTable { session, schema: &self.sink.schema };
        let process = begin_locking(session).await?;
        let rows = end_blockers(self.database(), process, table.lock(&[self.shard])).await?;
        session.batch("rollback").await?;
        let (database, schema) = self.names();
        rows.into_iter().next().ok_or(PostgresError::AnotherDatabase { database, schema })
    }

    /// The oldest day that is kept once an epoch is committed, in days since 1970.
    fn kept_from(&self, epoch: u64, before: Option<i32>) -> Option<i32> {
        oldest_kept_day(epoch, self.sink.retention).max(before)
    }
}

/// The UTC day before which readings are dropped, in days since 1970.
fn oldest_kept_day(epoch: u64, retention: Option<Millis>) -> Option<i32> {
    let oldest = (epoch as i64).saturating_sub(retention?.millis());
    Some(oldest.div_euclid(DAY_MS) as i32)
}

/// What a row says after a transaction whose outcome is not known.
#[derive(Debug)]
enum RowOutcome {
    /// Nothing of it was committed.
    Unchanged,
    Committed,
    /// The run cannot go on.
    Broken(PostgresError),
}

/// Writes the changes of a shard.
pub struct PostgresShardWriter {
    plan: WriterPlan,
    connection: Option<Connection>,
    pending: PendingTransaction,
    /// What this run knows to be committed.
    committed: Option<ShardProgress>,
    kept_from: Option<i32>,
    /// When partitions are to be dropped.
    drop_at: Option<Instant>,
    /// Why the run cannot go on, once that is known.
    broken: Option<PostgresError>,
    metrics: ShardMetrics,
}

impl PostgresShardWriter {
    /// Opens a shard that the claim has, within a time.
    pub fn open(plan: WriterPlan, within: Duration) -> Result<PostgresShardWriter, PostgresError> {
        let begun = Instant::now();
        let (connection, row) = loop {
            match plan.connect() {
                Err(error) if error.is_worth_waiting() && begun.elapsed() < within => {
                    tracing::warn!(shard = plan.shard, %error, "the database is tried again for {within:?}");
                    std::thread::sleep(Duration::from_millis(500));
                }
                opened => break opened?,
            }
        };
        let (database, schema) = plan.names();
        row.check_claim(&plan.claim, database, schema)?;
        let metrics = ShardMetrics::new(&("postgres", plan.sink.label()), plan.shard);
        metrics.set_connected(true);
        let is_kept = plan.sink.retention.is_some();
        Ok(PostgresShardWriter {
            connection: Some(connection),
            pending: PendingTransaction::new(plan.target()),
            committed: row.progress,
            kept_from: row.kept_from,
            drop_at: is_kept.then(Instant::now),
            broken: None,
            metrics,
            plan,
        })
    }

    fn commit_transaction(&mut self, progress: &ShardProgress) -> Result<(), PostgresError> {
        let begun = Instant::now();
        let (database, schema) = self.plan.names();
        let lost = || PostgresError::Unreachable {
            database: database.clone(),
            problem: "the session was lost".to_owned(),
        };
        let connection = self.connection.as_ref().ok_or_else(lost)?;
        let lock = ShardLock {
            shard: self.plan.shard,
            generation: self.plan.claim.generation,
            nonce: self.plan.claim.nonce.clone(),
            epoch: self.committed.as_ref().map(|committed| committed.epoch),
            kept_from: self.kept_from,
            timeout: self.plan.sink.transaction_timeout,
        };
        let pending = &mut self.pending;
        let failed = |failure: StatementFailure| match failure {
            StatementFailure::Database(error) => PostgresError::of(&database, &error),
            StatementFailure::Unexpected(problem) => {
                PostgresError::Unexpected { database: database.clone(), schema: schema.clone(), problem }
            }
            // Reading the row again tells why.
            StatementFailure::Fenced | StatementFailure::Moved { .. } => PostgresError::Unreachable {
                database: database.clone(),
                problem: format!(
                    "the row of shard {} is not as this run has left it: it is read again",
                    lock.shard
                ),
            },
            StatementFailure::Retry(problem) => {
                PostgresError::Unreachable { database: database.clone(), problem }
            }
        };
        let rows = connection.call(async |session| {
            pending.prepare(&session.client).await.map_err(failed)?;
            pending.commit(&session.client, &lock, progress).await.map_err(failed)
        })?;
        self.metrics.count_commit(&rows, begun.elapsed(), progress.epoch);
        self.committed = Some(progress.clone());
        Ok(())
    }

    /// Drops partitions that are older than what is kept. One that is in use is dropped later.
    fn drop_old_partitions(&mut self) {
        let Some(connection) = self.connection.as_ref().filter(|_| self.is_drop_due()) else { return };
        let target = self.plan.target();
        let dropped =
            connection.call(async |session| Ok(drop_old_partitions(&session.client, &target).await));
        self.drop_at = Some(Instant::now() + DROP_INTERVAL);
        match dropped {
            Ok(Ok(dropped)) => {
                self.drop_at = None;
                if dropped > 0 {
                    tracing::info!(
                        shard = self.plan.shard,
                        dropped,
                        "partitions older than the retention were dropped"
                    );
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(shard = self.plan.shard, ?error, "old partitions are dropped later")
            }
            Err(error) => {
                tracing::debug!(shard = self.plan.shard, %error, "old partitions are dropped later")
            }
        }
    }

    fn is_drop_due(&self) -> bool {
        self.drop_at.is_some_and(|at| Instant::now() >= at)
    }

    /// Compares the shard's row with what this run has committed.
    fn compare_row(&self, row: &ShardRow, last_epoch: u64) -> RowOutcome {
        let (database, schema) = self.plan.names();
        let shard = self.plan.shard;
        let own = &self.plan.claim;
        let committed = self.committed.as_ref().map(|progress| progress.epoch);
        let found = row.progress.as_ref().map(|progress| progress.epoch);
        let lost = |found: String| PostgresError::CommitsLost {
            database: database.clone(),
            schema: schema.clone(),
            shard,
            committed: committed.unwrap_or(0),
            found,
        };
        if row.claim.generation < own.generation {
            // The claim itself is one of the lost commits.
            return RowOutcome::Broken(lost(format!("generation {}", row.claim.generation)));
        }
        if let Err(error) = row.check_claim(own, database.clone(), schema.clone()) {
            return RowOutcome::Broken(error);
        }
        match found {
            found if found == committed => RowOutcome::Unchanged,
            Some(found) if found == last_epoch => RowOutcome::Committed,
            Some(found) if Some(found) > committed => {
                RowOutcome::Broken(PostgresError::OthersWrote { database, schema, shard, found })
            }
            Some(found) => RowOutcome::Broken(lost(format!("epoch {found}"))),
            None => RowOutcome::Broken(lost("no epoch".to_owned())),
        }
    }
}

impl ShardWriter for PostgresShardWriter {
    fn begin(&mut self) -> Result<(), WriteFailure> {
        if let Some(broken) = self.broken.take() {
            return Err(WriteFailure::Final(broken.into()));
        }
        // What was committed decides what is kept, so a transaction that is written again keeps the
        // same.
        let committed = self.committed.as_ref().map(|progress| progress.epoch);
        let kept_from =
            committed.and_then(|epoch| self.plan.kept_from(epoch, self.kept_from)).or(self.kept_from);
        if kept_from > self.kept_from {
            self.kept_from = kept_from;
            self.drop_at = Some(Instant::now());
        }
        self.pending.clear(self.kept_from);
        Ok(())
    }

    fn add(&mut self, batch: &ShardBatch) -> Result<(), WriteFailure> {
        self.pending.add(batch).map_err(|failure| {
            let (database, schema) = self.plan.names();
            let problem = failure.to_string();
            WriteFailure::Final(PostgresError::Unexpected { database, schema, problem }.into())
        })
    }

    fn commit(&mut self, progress: &ShardProgress) -> Result<(), WriteFailure> {
        if let Err(error) = self.commit_transaction(progress) {
            self.metrics.count_retry(&error);
            return Err(error.into_write_failure());
        }
        self.drop_old_partitions();
        Ok(())
    }

    fn roll_back(&mut self) -> bool {
        // Ending the session rolls back too, and never waits.
        false
    }

    fn reopen(&mut self, last_epoch: u64) -> Result<bool, SinkError> {
        self.connection = None;
        self.metrics.set_connected(false);
        let (connection, row) = self.plan.connect().inspect_err(|error| self.metrics.count_retry(error))?;
        self.connection = Some(connection);
        self.metrics.set_connected(true);
        let (database, shard) = (&self.plan.database().label, self.plan.shard);
        tracing::info!(database, shard, "a shard is connected to PostgreSQL again");
        match self.compare_row(&row, last_epoch) {
            RowOutcome::Unchanged => Ok(false),
            RowOutcome::Committed => {
                tracing::info!(
                    database,
                    shard,
                    epoch = last_epoch,
                    "the transaction without an answer was committed"
                );
                self.committed = row.progress;
                Ok(true)
            }
            RowOutcome::Broken(error @ PostgresError::Fenced { .. }) => Err(error.into()),
            RowOutcome::Broken(error) => {
                self.broken = Some(error);
                Ok(false)
            }
        }
    }

    fn unfinished(&self) -> SinkError {
        let (database, schema) = self.plan.names();
        SinkError::Fatal(format!(
            "{database}, schema {schema} cannot be written: not all that was read is written; the next start goes on where it ends"
        ))
    }
}
