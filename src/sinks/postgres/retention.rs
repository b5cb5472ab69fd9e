//! Drops partitions of days that no shard keeps any more.
//!
//! A shard's row says from which day on it is kept, and a transaction moves that. So the days below
//! it may go at any later time, and a start need not know what was dropped.

use std::time::Duration;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use super::columns::PARTITIONED;
use super::partitions::{is_lock_conflict, partition_name};
use super::plan::PostgresTable;
use super::schema::SchemaName;
use super::statement_failure::StatementFailure;
use super::statements::quoted;
use super::transaction::WriteTarget;

/// Readers and writers wait behind the drop for at most this long.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);
const MAX_ATTEMPTS: u32 = 3;
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Drops the partitions of days that no shard of the database keeps, and returns how many.
///
/// # Errors
///
/// [`StatementFailure::Retry`] if a partition is in use.
pub async fn drop_old_partitions(client: &Client, target: &WriteTarget) -> Result<u64, StatementFailure> {
    let Some(kept_from) = oldest_kept_day(client, &target.schema).await? else { return Ok(0) };
    let mut dropped = 0;
    for table in PARTITIONED {
        for name in old_partitions(client, &target.schema, table, kept_from).await? {
            if !drop_partition(client, &target.schema, &name).await? {
                return Err(StatementFailure::Retry(format!("the partition {name} is in use")));
            }
            dropped += 1;
        }
    }
    Ok(dropped)
}

/// The first day that a shard keeps; `None` if one keeps all.
async fn oldest_kept_day(client: &Client, schema: &SchemaName) -> Result<Option<i32>, Error> {
    let query = format!(
        "select case when bool_and(kept_from is not null) then min(kept_from) - date '1970-01-01' end from {}.shard",
        schema.quoted()
    );
    client.query_typed_one(&query, &[]).await?.try_get(0)
}

/// The names of the partitions of days before `kept_from`, the oldest first.
async fn old_partitions(
    client: &Client,
    schema: &SchemaName,
    table: PostgresTable,
    kept_from: i32,
) -> Result<Vec<String>, Error> {
    let query = "select child.relname::text from pg_catalog.pg_inherits i \
                 join pg_catalog.pg_class parent on parent.oid = i.inhparent \
                 join pg_catalog.pg_namespace n on n.oid = parent.relnamespace \
                 join pg_catalog.pg_class child on child.oid = i.inhrelid \
                 where n.nspname = $1 and parent.relname = $2 and child.relname ~ $3 and child.relname < $4 \
                 order by child.relname";
    let of_this_form = format!("^{}_[0-9]{{8}}$", table.name());
    let first_kept = partition_name((table, kept_from));
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] = [
        (&schema.as_str(), Type::TEXT),
        (&table.name(), Type::TEXT),
        (&of_this_form, Type::TEXT),
        (&first_kept, Type::TEXT),
    ];
    client.query_typed(query, &parameters).await?.iter().map(|row| row.try_get(0)).collect()
}

/// Drops a partition. Returns false if it is in use.
async fn drop_partition(client: &Client, schema: &SchemaName, name: &str) -> Result<bool, Error> {
    let statements = format!(
        "begin; set local lock_timeout = {}; drop table if exists {}.{}; commit",
        LOCK_TIMEOUT.as_millis(),
        schema.quoted(),
        quoted(name)
    );
    for attempt in 1..=MAX_ATTEMPTS {
        let Err(error) = client.batch_execute(&statements).await else {
            tracing::info!(partition = name, "a partition of a day that is not kept any more was dropped");
            return Ok(true);
        };
        client.batch_execute("rollback").await?;
        if !is_lock_conflict(&error) {
            return Err(error);
        }
        tokio::time::sleep(RETRY_INTERVAL * attempt).await;
    }
    Ok(false)
}
