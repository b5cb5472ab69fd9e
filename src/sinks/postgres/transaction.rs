//! Writes one transaction of a shard: the net changes of whole epochs, and the shard's row.
//!
//! The shard's row is locked first, by the generation and nonce of the claim. Without such a row
//! that statement fails, and so does all that is sent behind it: a fenced writer changes nothing.
//! The row is updated last.
//!
//! What needs no answer of the server is sent without waiting. A transaction takes two round trips,
//! and up to two more for each table that gets many new rows.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use futures_util::future::{join, join_all, join3, join4};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row, Statement};

use super::column_array::ColumnArray;
use super::copy_data::CopyData;
use super::net_changes::{NetChanges, NewRow, RecordError};
use super::partitions::Partitions;
use super::plan::PostgresTable;
use super::row_name::RowName;
use super::schema::SchemaName;
use super::statement_failure::StatementFailure;
use super::statements::TableStatements;
use super::table_writes::{ArrayWrite, CopyWrite, Operation, TransactionWrites, WrittenRows};
use crate::sinks::progress::ShardProgress;
use crate::sinks::shard::ShardBatch;
use crate::test_hooks;

/// Where a shard is written.
#[derive(Clone, Debug)]
pub struct WriteTarget {
    pub schema: SchemaName,
    /// Whether missing partitions are made.
    pub create_tables: bool,
}

/// The shard's row as a transaction must find it, and how long a statement may take.
#[derive(Clone, Debug)]
pub struct ShardLock {
    pub shard: u16,
    pub generation: u64,
    pub nonce: String,
    /// The last epoch that was committed.
    pub epoch: Option<u64>,
    /// The first UTC day that is kept, in days since 1970-01-01. It never falls.
    pub kept_from: Option<i32>,
    pub timeout: Duration,
}

/// The changes of a transaction, and what is known of the tables from earlier ones.
#[derive(Debug)]
pub struct PendingTransaction {
    target: WriteTarget,
    /// By the code of the table.
    statements: Vec<TableStatements>,
    changes: NetChanges,
    partitions: Partitions,
    newest_epoch: u64,
    /// The last attempt found a row that should not exist.
    has_met_duplicate: bool,
}

impl PendingTransaction {
    pub fn new(target: WriteTarget) -> PendingTransaction {
        let statements = PostgresTable::ALL.map(|table| TableStatements::new(&target.schema, table));
        PendingTransaction {
            partitions: Partitions::new(&target.schema, target.create_tables),
            target,
            statements: statements.into(),
            changes: NetChanges::default(),
            newest_epoch: 0,
            has_met_duplicate: false,
        }
    }

    /// Forgets all changes. Rows of days before `kept_from`, in days since 1970-01-01, are not
    /// written from now on.
    pub fn clear(&mut self, kept_from: Option<i32>) {
        self.changes.clear(kept_from);
    }

    /// Adds the changes of a batch.
    pub fn add(&mut self, batch: &ShardBatch) -> Result<(), StatementFailure> {
        self.newest_epoch = batch.epoch;
        for encoded in &batch.batches {
            self.changes.add(encoded)?;
        }
        Ok(())
    }

    /// Makes the partitions that the changes need, in transactions of their own.
    pub async fn prepare(&mut self, client: &Client) -> Result<(), StatementFailure> {
        self.partitions.ensure(client, self.changes.partitions(), self.newest_epoch).await
    }

    /// Writes the changes and the progress in one transaction.
    ///
    /// # Errors
    ///
    /// The outcome is unknown, unless the error says that nothing helps. The client must not be
    /// used again.
    pub async fn commit(
        &mut self,
        client: &Client,
        lock: &ShardLock,
        progress: &ShardProgress,
    ) -> Result<WrittenRows, StatementFailure> {
        if self.has_met_duplicate {
            self.name_duplicate(client).await?;
        }
        let written = self.write(client, lock, progress).await;
        let is_duplicate = |error: &Error| error.code() == Some(&SqlState::UNIQUE_VIOLATION);
        match written {
            Err(StatementFailure::Database(error)) if is_duplicate(&error) && !self.has_met_duplicate => {
                self.has_met_duplicate = true;
                Err(StatementFailure::Retry(format!("a new row exists already ({})", message_of(&error))))
            }
            Err(StatementFailure::Database(error)) if is_missing_partition(&error) => {
                self.partitions.forget();
                Err(StatementFailure::Retry(format!("a partition was dropped ({})", message_of(&error))))
            }
            written => {
                self.has_met_duplicate &= written.is_err();
                written
            }
        }
    }

    async fn write(
        &mut self,
        client: &Client,
        lock: &ShardLock,
        progress: &ShardProgress,
    ) -> Result<WrittenRows, StatementFailure> {
        let PendingTransaction { target, statements, changes, .. } = self;
        let mut rows = WrittenRows { not_kept: changes.not_kept(), ..WrittenRows::default() };
        let TransactionWrites { arrays, copies } = TransactionWrites::of_changes(changes, statements)?;
        // A current row is one of few; the rows of other tables are few of very many.
        let (few, many): (Vec<ArrayWrite<'_>>, Vec<ArrayWrite<'_>>) =
            arrays.into_iter().partition(|write| write.table == PostgresTable::Now);
        let begin = begin_statements(lock.timeout);
        // Each of these is sent when it is polled first, which is in this order.
        let ((begun, locked), few_changed, (planned, many_changed), prepared) = join4(
            join(client.batch_execute(&begin), lock_row(client, &target.schema, lock)),
            execute_all(client, &few),
            join(client.batch_execute(USE_INDEXES), execute_all(client, &many)),
            join_all(copies.iter().map(|copy| client.prepare(copy.statement))),
        )
        .await;
        begun?;
        check_row(locked, lock)?;
        let few_changed = few_changed?;
        planned?;
        let changed = few_changed.into_iter().chain(many_changed?);
        for (write, changed) in few.iter().chain(&many).zip(changed) {
            write.count(changed, &mut rows);
            if write.expected.is_some_and(|expected| expected != changed) {
                return Err(name_missing(client, changes, statements, write, changed).await);
            }
        }
        let prepared = prepared.into_iter().collect::<Result<Vec<Statement>, Error>>()?;
        rows.inserted += copy_all(client, copies, prepared).await?;
        test_hooks::crash_before_commit();
        commit_progress(client, &target.schema, lock, progress).await?;
        Ok(rows)
    }

    /// Names a new row that the table has already, if there is one.
    async fn name_duplicate(&mut self, client: &Client) -> Result<(), StatementFailure> {
        for table in PostgresTable::ALL {
            let statement = &self.statements[usize::from(table.code())].find_existing;
            let inserts: Vec<NewRow<'_>> = self.changes.table(table)?.inserts;
            let keys: Vec<&[u8]> = inserts.iter().map(|row| row.key).collect();
            if keys.is_empty() {
                continue;
            }
            let Some(found) = find_row(client, table, statement, &keys).await? else { continue };
            let new_city = inserts.get(found.index).and_then(|row| RowName::city_of_tuple(row.tuple));
            if let (PostgresTable::City, Some(old), Some(new)) = (table, &found.name.city, new_city)
                && old != new
            {
                return Err(RecordError::SameCityId(old.clone(), new.to_owned()).into());
            }
            return Err(StatementFailure::Unexpected(format!(
                "table {} has a row of {} already, which this sink has not written: another program has written it, or the database was restored \
                 without its table shard",
                table.name(),
                found.name
            )));
        }
        Ok(())
    }
}

/// Names a row that a statement should have changed, and that does not exist.
async fn name_missing(
    client: &Client,
    changes: &mut NetChanges,
    statements: &[TableStatements],
    write: &ArrayWrite<'_>,
    changed: u64,
) -> StatementFailure {
    let table = write.table;
    let net = match changes.table(table) {
        Ok(net) => net,
        Err(error) => return error.into(),
    };
    let keys: Vec<&[u8]> = match write.operation {
        Operation::Delete => net.deletes,
        Operation::Update => net.updates.iter().map(|row| row.key).collect(),
        Operation::Insert => Vec::new(),
    };
    let statement = &statements[usize::from(table.code())].find_missing;
    match find_row(client, table, statement, &keys).await {
        Ok(Some(row)) => StatementFailure::Unexpected(format!(
            "table {} has no row of {}, which this sink has written: another program has changed the table, or the database was restored",
            table.name(),
            row.name
        )),
        Ok(None) => unexpected_count(table, write.expected.unwrap_or_default(), changed),
        Err(error) => error.into(),
    }
}

fn message_of(error: &Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |answer| answer.message().to_owned())
}

/// Whether a row has no partition. The code is that of any failed check; no table has others that
/// swelter's rows could fail.
fn is_missing_partition(error: &Error) -> bool {
    error
        .as_db_error()
        .is_some_and(|answer| *answer.code() == SqlState::CHECK_VIOLATION && answer.constraint().is_none())
}

fn unexpected_count(table: PostgresTable, expected: u64, changed: u64) -> StatementFailure {
    let table = table.name();
    StatementFailure::Unexpected(format!(
        "a statement should have changed {expected} rows of table {table}, and has changed {changed}: a trigger or a rule changes what is written, \
         or another program has written"
    ))
}

/// Of a partition without statistics, PostgreSQL may read and sort all rows to change 15,000: 2.7 s
/// instead of 0.6 s for 1.4 million (measured).
const USE_INDEXES: &str =
    "set local enable_hashjoin = off; set local enable_mergejoin = off; set local jit = off";

/// Settings of this transaction only. A role with `synchronous_commit = off` could lose what is
/// believed to be durable.
fn begin_statements(timeout: Duration) -> String {
    let ms = timeout.as_millis();
    format!(
        "begin isolation level read committed; set local statement_timeout = {ms}; \
         set local idle_in_transaction_session_timeout = {ms}; \
         select set_config('synchronous_commit', case current_setting('synchronous_commit') when 'off' then 'on' \
         else current_setting('synchronous_commit') end, true)"
    )
}

/// Locks the shard's row. If no row has the generation and nonce, the division fails, so nothing
/// that was sent behind this statement has an effect.
async fn lock_row(client: &Client, schema: &SchemaName, lock: &ShardLock) -> Result<Row, Error> {
    let statement = format!(
        "with locked as materialized (select epoch from {}.shard where shard = $1 and generation = $2 and nonce = $3 for update) \
         select (select epoch from locked), 1 / (select count(*) from locked)",
        schema.quoted()
    );
    let (shard, generation) = (i32::from(lock.shard), lock.generation as i64);
    client
        .query_typed_one(
            &statement,
            &[(&shard, Type::INT4), (&generation, Type::INT8), (&lock.nonce, Type::TEXT)],
        )
        .await
}

fn check_row(locked: Result<Row, Error>, lock: &ShardLock) -> Result<(), StatementFailure> {
    let row = match locked {
        Err(error) if error.code() == Some(&SqlState::DIVISION_BY_ZERO) => {
            return Err(StatementFailure::Fenced);
        }
        locked => locked?,
    };
    let found: Option<i64> = row.try_get(0)?;
    let (believed, found) = (lock.epoch, found.map(|epoch| epoch as u64));
    if believed != found {
        return Err(StatementFailure::Moved { believed, found });
    }
    Ok(())
}

/// Executes statements, and returns how many rows each has changed.
async fn execute_all(client: &Client, writes: &[ArrayWrite<'_>]) -> Result<Vec<u64>, Error> {
    join_all(writes.iter().map(|write| write.execute(client))).await.into_iter().collect()
}

/// Copies the rows of all tables, and returns how many.
async fn copy_all(
    client: &Client,
    copies: Vec<CopyWrite<'_>>,
    prepared: Vec<Statement>,
) -> Result<u64, StatementFailure> {
    let expected: Vec<(PostgresTable, u64)> =
        copies.iter().map(|copy| (copy.table, copy.data.rows())).collect();
    let copies = copies.into_iter().zip(prepared);
    let copied = join_all(copies.map(|(copy, statement)| copy_rows(client, statement, copy.data))).await;
    let mut rows = 0;
    for ((table, expected), copied) in expected.into_iter().zip(copied) {
        let copied = copied?;
        if copied != expected {
            return Err(unexpected_count(table, expected, copied));
        }
        rows += copied;
    }
    Ok(rows)
}

/// Copies rows. The statement is closed when this ends, on the same connection of the server,
/// whatever is between.
async fn copy_rows(client: &Client, statement: Statement, data: CopyData) -> Result<u64, Error> {
    let mut sink = Box::pin(client.copy_in::<_, Bytes>(&statement).await?);
    for message in data.into_messages() {
        sink.feed(message).await?;
    }
    sink.as_mut().finish().await
}

async fn commit_progress(
    client: &Client,
    schema: &SchemaName,
    lock: &ShardLock,
    progress: &ShardProgress,
) -> Result<(), StatementFailure> {
    let statement = format!(
        "update {}.shard set epoch = $1, progress = $2::text::jsonb, \
         kept_from = greatest(kept_from, date '1970-01-01' + $3) where shard = $4 and generation = $5 and nonce = $6",
        schema.quoted()
    );
    let json =
        serde_json::to_string(progress).map_err(|error| StatementFailure::Unexpected(error.to_string()))?;
    let (epoch, shard, generation) = (progress.epoch as i64, i32::from(lock.shard), lock.generation as i64);
    let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
        (&epoch, Type::INT8),
        (&json, Type::TEXT),
        (&lock.kept_from, Type::INT4),
        (&shard, Type::INT4),
        (&generation, Type::INT8),
        (&lock.nonce, Type::TEXT),
    ];
    // A timeout while COMMIT waits for a synchronous standby would end the wait with success.
    let (updated, untimed, committed) = join3(
        client.execute_typed(&statement, &parameters),
        client.batch_execute("set local statement_timeout = 0"),
        client.batch_execute("commit"),
    )
    .await;
    // If the update fails, COMMIT rolls back.
    let updated = updated?;
    untimed?;
    committed?;
    match updated {
        1 => Ok(()),
        _ => {
            Err(StatementFailure::Unexpected("the row of the shard, locked, is gone from table shard".into()))
        }
    }
}

/// A row that was looked for.
struct FoundRow {
    /// Its index among the keys.
    index: usize,
    name: RowName,
}

async fn find_row(
    client: &Client,
    table: PostgresTable,
    statement: &str,
    keys: &[&[u8]],
) -> Result<Option<FoundRow>, Error> {
    let arrays = ColumnArray::of_keys(table, keys.iter().copied());
    let parameters: Vec<_> = arrays.iter().map(ArrayWrite::parameter).collect();
    let Some(row) = client.query_typed_opt(statement, &parameters).await? else { return Ok(None) };
    let index = row.try_get::<_, i64>(0)? as usize - 1;
    let mut name = RowName::of_key(table, keys.get(index).copied().unwrap_or_default());
    name.city = row.try_get(1)?;
    Ok(Some(FoundRow { index, name }))
}
