//! Partitions of the tables by UTC day: their names, and how missing ones are made.
//!
//! A partition is made and then attached, because that does not wait for open transactions of
//! other writers, as `create table .. partition of` would. Writers that need partitions of a table at
//! the same time take turns by a lock that blocks neither readers nor writers of rows.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use super::columns::PARTITIONED;
use super::plan::PostgresTable;
use super::schema::SchemaName;
use super::statement_failure::StatementFailure;
use super::statements::quoted;
use crate::model::time::{DAY_MS, civil_from_days};

/// The most partitions that one transaction makes: each takes locks.
const MAX_NEW_PARTITIONS: usize = 50;
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_ATTEMPTS: u32 = 5;
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Room for rows that are updated in place.
const READING_FILL_FACTOR: &str = " with (fillfactor = 90)";

/// A table and a UTC day, as the number of days since 1970-01-01.
pub(super) type Partition = (PostgresTable, i32);

/// The name of the partition of a table and UTC day.
pub(super) fn partition_name((table, day): Partition) -> String {
    let (year, month, day) = civil_from_days(day.into());
    format!("{}_{year:04}{month:02}{day:02}", table.name())
}

/// The first instant of a UTC day, as a literal. PostgreSQL has no year 0.
fn day_literal(day: i32) -> String {
    let (year, month, day) = civil_from_days(day.into());
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    format!("timestamptz '{year:04}-{month:02}-{day:02} 00:00:00+00{era}'")
}

/// The partitions that are known to exist.
#[derive(Debug)]
pub(super) struct Partitions {
    schema: SchemaName,
    create_tables: bool,
    known: BTreeSet<Partition>,
}

impl Partitions {
    pub fn new(schema: &SchemaName, create_tables: bool) -> Partitions {
        Partitions { schema: schema.clone(), create_tables, known: BTreeSet::new() }
    }

    /// Looks for all partitions anew.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Makes the missing ones of these partitions, and those of the day after an epoch if its own
    /// are among them.
    pub async fn ensure(
        &mut self,
        client: &Client,
        needed: &BTreeSet<Partition>,
        epoch: u64,
    ) -> Result<(), StatementFailure> {
        let today = (epoch / DAY_MS as u64) as i32;
        let tomorrow = needed.iter().filter(|(_, day)| *day == today).map(|(table, day)| (*table, day + 1));
        let wanted = needed.iter().copied().chain(tomorrow).filter(|wanted| !self.known.contains(wanted));
        let missing: BTreeSet<Partition> = wanted.collect();
        for table in PARTITIONED {
            let days: Vec<Partition> = missing.iter().copied().filter(|(of, _)| *of == table).collect();
            for days in days.chunks(MAX_NEW_PARTITIONS) {
                self.ensure_days(client, table, days).await?;
                self.known.extend(days);
            }
        }
        Ok(())
    }

    async fn ensure_days(
        &self,
        client: &Client,
        table: PostgresTable,
        days: &[Partition],
    ) -> Result<(), StatementFailure> {
        let missing = self.missing_days(client, table, days).await?;
        let Some(first) = missing.first() else { return Ok(()) };
        if !self.create_tables {
            return Err(StatementFailure::Unexpected(format!(
                "the partition {} is missing, and create_tables = false: {}; or set create_tables = true",
                partition_name(*first),
                self.create_statements(*first)
            )));
        }
        let mut attempt = 1;
        loop {
            match self.create_missing(client, table, days).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    client.batch_execute("rollback").await?;
                    if !is_lock_conflict(&error) || attempt == MAX_ATTEMPTS {
                        return Err(error.into());
                    }
                }
            }
            tokio::time::sleep(RETRY_INTERVAL * attempt).await;
            attempt += 1;
        }
    }

    /// The partitions that are not attached to the table.
    async fn missing_days(
        &self,
        client: &Client,
        table: PostgresTable,
        days: &[Partition],
    ) -> Result<Vec<Partition>, Error> {
        let names: Vec<String> = days.iter().copied().map(partition_name).collect();
        let query = "select child.relname::text from pg_catalog.pg_inherits i \
                     join pg_catalog.pg_class parent on parent.oid = i.inhparent \
                     join pg_catalog.pg_namespace n on n.oid = parent.relnamespace \
                     join pg_catalog.pg_class child on child.oid = i.inhrelid \
                     where n.nspname = $1 and parent.relname = $2 and child.relname = any($3)";
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
            [(&self.schema.as_str(), Type::TEXT), (&table.name(), Type::TEXT), (&names, Type::TEXT_ARRAY)];
        let rows = client.query_typed(query, &parameters).await?;
        let found = rows.iter().map(|row| row.try_get(0)).collect::<Result<BTreeSet<String>, Error>>()?;
        Ok(days.iter().copied().filter(|day| !found.contains(&partition_name(*day))).collect())
    }

    /// Makes what is still missing once this writer has its turn.
    async fn create_missing(
        &self,
        client: &Client,
        table: PostgresTable,
        days: &[Partition],
    ) -> Result<(), Error> {
        let parent = self.table_name(table.name());
        let lock = format!(
            "begin; set local lock_timeout = {}; lock table only {parent} in share update exclusive mode",
            LOCK_TIMEOUT.as_millis()
        );
        client.batch_execute(&lock).await?;
        let missing = self.missing_days(client, table, days).await?;
        let statements: Vec<String> = missing.iter().map(|day| self.create_statements(*day)).collect();
        if !statements.is_empty() {
            client.batch_execute(&statements.join("; ")).await?;
        }
        client.batch_execute("commit").await?;
        for day in missing {
            tracing::info!(partition = partition_name(day), "a partition was made");
        }
        Ok(())
    }

    /// The statements that make a partition.
    fn create_statements(&self, partition: Partition) -> String {
        let (table, day) = partition;
        let (parent, child) = (self.table_name(table.name()), self.table_name(&partition_name(partition)));
        let fill = if table == PostgresTable::Reading { READING_FILL_FACTOR } else { "" };
        let (from, to) = (day_literal(day), day_literal(day + 1));
        format!(
            "create table {child} (like {parent} including all){fill}; \
             alter table {parent} attach partition {child} for values from ({from}) to ({to})"
        )
    }

    fn table_name(&self, table: &str) -> String {
        format!("{}.{}", self.schema.quoted(), quoted(table))
    }
}

/// Whether another transaction was in the way.
pub(super) fn is_lock_conflict(error: &Error) -> bool {
    let codes = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::UNIQUE_VIOLATION];
    error.code().is_some_and(|code| codes.contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::EventTime;

    #[test]
    fn partitions_are_named_by_their_day() {
        let of = |time: &str| {
            let day = time.parse::<EventTime>().unwrap().utc_day();
            (partition_name((PostgresTable::Reading, day)), day_literal(day))
        };
        let expected = ("reading_20130718".to_owned(), "timestamptz '2013-07-18 00:00:00+00'".to_owned());
        assert_eq!(of("2013-07-18T23:59:59.999Z"), expected);
        let (name, literal) = of("0000-03-01T00:00:00Z");
        assert_eq!((&*name, &*literal), ("reading_00000301", "timestamptz '0001-03-01 00:00:00+00 BC'"));
        let schema = SchemaName::new("a b").unwrap();
        let partitions = Partitions::new(&schema, true);
        assert_eq!(
            partitions.create_statements((PostgresTable::Arrival, 0)),
            "create table \"a b\".\"arrival_19700101\" (like \"a b\".\"arrival\" including all); alter table \"a b\".\"arrival\" \
             attach partition \"a b\".\"arrival_19700101\" for values from (timestamptz '1970-01-01 00:00:00+00') to \
             (timestamptz '1970-01-02 00:00:00+00')"
        );
    }
}
