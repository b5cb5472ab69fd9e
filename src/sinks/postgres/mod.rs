//! A durable sink that is a PostgreSQL schema: every reading, its result and what became of every
//! arrival, exactly once.
//!
//! A transaction holds whole epochs of one shard together with the shard's progress. It locks the
//! shard's row first, by the generation that has claimed it: a writer of an earlier generation finds
//! no such row, and can add nothing. `takeover` ends the sessions that hold rows, `shard_rows` reads
//! and claims them, `connection` reaches a database, and `writer` writes a shard.
//!
//! Each shard lives in one database, with its progress row: shard `s` of `n` databases is in
//! database `s mod n`. So every transaction is local to one database.
//!
//! There is no session state: no prepared statement with a name, temporary table, advisory lock or
//! `SET` that outlives a transaction. So PgBouncer may pool transactions.

mod city_key;
mod column_array;
mod columns;
mod connection;
mod copy_data;
pub mod dead_letter_row;
mod error;
pub mod history;
mod metrics;
mod migrate;
mod net_changes;
mod partitions;
mod passfile;
mod plan;
mod record_kind;
pub mod render;
mod retention;
mod rights;
mod row_builder;
mod row_name;
pub mod schema;
mod shard_rows;
mod sink;
mod sqlstate;
mod statement_failure;
mod statements;
mod table_writes;
mod takeover;
#[cfg(test)]
mod tests;
pub mod transaction;
mod tuple;
mod url;
mod writer;

pub use self::migrate::migrate_database;
pub use self::plan::{
    DatabaseAccess, Password, PostgresDatabase, PostgresSinkPlan, PostgresTable, PostgresTls, TableSet,
    TlsMode,
};
pub use self::sink::PostgresSink;
pub use self::url::HostKinds;
