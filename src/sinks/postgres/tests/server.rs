//! A schema of one test in a real server.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls};

use crate::sinks::postgres::columns::columns_of;
use crate::sinks::postgres::copy_data::split_tuples;
use crate::sinks::postgres::plan::PostgresTable;
use crate::sinks::postgres::schema::{SchemaName, SchemaState, run_migration};
use crate::sinks::postgres::statement_failure::StatementFailure;
use crate::sinks::postgres::table_writes::WrittenRows;
use crate::sinks::postgres::transaction::{PendingTransaction, ShardLock, WriteTarget};
use crate::sinks::postgres::tuple::{COPY_HEADER, COPY_TRAILER};
use crate::sinks::progress::ShardProgress;
use crate::sinks::shard::ShardBatch;

/// Dropped with this.
pub struct ServerSchema {
    runtime: Runtime,
    url: String,
    pub client: Client,
    pub schema: SchemaName,
}

impl ServerSchema {
    /// A migrated schema with the row of shard 0, which generation 7 has.
    pub fn new() -> ServerSchema {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let url = std::env::var("SWELTER_POSTGRES").expect("scripts/test starts a server");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let schema = SchemaName::new(&format!("unit \"{}\".{number}", std::process::id())).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let client = connect(&runtime, &url);
        runtime.block_on(async {
            let script = SchemaState::Missing.migration(&schema).unwrap().unwrap();
            run_migration(&client, &script).await.unwrap();
        });
        let server = ServerSchema { runtime, url, client, schema };
        server.execute("insert into shard (shard, generation, nonce) values (0, 7, 'n')");
        server
    }

    /// Another session.
    pub fn connect(&self) -> Client {
        connect(&self.runtime, &self.url)
    }

    pub fn run<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    /// Runs statements that name the schema's tables.
    pub fn execute(&self, statements: &str) {
        self.execute_on(&self.client, statements);
    }

    pub fn execute_on(&self, client: &Client, statements: &str) {
        let statements = format!("set search_path to {}; {statements}", self.schema.quoted());
        self.run(client.batch_execute(&statements)).unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    /// The only value that a query gives.
    pub fn value<T: for<'a> tokio_postgres::types::FromSql<'a>>(&self, query: &str) -> T {
        self.execute("select");
        self.run(self.client.query_one(query, &[]))
            .unwrap_or_else(|error| panic!("{query}: {error:?}"))
            .get(0)
    }

    pub fn target(&self) -> WriteTarget {
        WriteTarget { schema: self.schema.clone(), create_tables: true }
    }

    pub fn lock(&self, epoch: Option<u64>) -> ShardLock {
        let timeout = Duration::from_secs(20);
        ShardLock { shard: 0, generation: 7, nonce: "n".into(), epoch, kept_from: None, timeout }
    }

    /// Writes a transaction of one batch on a connection of its own, as after a failure.
    pub fn write(
        &self,
        pending: &mut PendingTransaction,
        lock: &ShardLock,
        batch: &ShardBatch,
    ) -> Result<WrittenRows, StatementFailure> {
        let client = self.connect();
        let progress = progress_of(batch);
        self.run(async {
            pending.clear(lock.kept_from);
            pending.add(batch)?;
            pending.prepare(&client).await?;
            pending.commit(&client, lock, &progress).await
        })
    }

    /// All rows of a table as sorted tuples.
    pub fn tuples(&self, table: PostgresTable) -> Vec<Vec<u8>> {
        let columns: Vec<String> =
            columns_of(table).all.iter().map(|column| format!("\"{}\"", column.name)).collect();
        let (schema, name) = (self.schema.quoted(), table.name());
        let query = format!(
            "copy (select {} from {schema}.\"{name}\") to stdout (format binary)",
            columns.join(", ")
        );
        let copied: Vec<Bytes> = self.run(async {
            let stream = self.client.copy_out(&query).await.unwrap();
            stream.try_collect().await.unwrap()
        });
        let copied = copied.concat();
        let tuples = copied.strip_prefix(&COPY_HEADER[..]).unwrap().strip_suffix(&COPY_TRAILER[..]).unwrap();
        let mut tuples: Vec<Vec<u8>> = split_tuples(tuples).map(<[u8]>::to_vec).collect();
        tuples.sort();
        tuples
    }
}

pub fn progress_of(batch: &ShardBatch) -> ShardProgress {
    ShardProgress { epoch: batch.epoch, ..ShardProgress::default() }
}

fn connect(runtime: &Runtime, url: &str) -> Client {
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    })
}

impl Drop for ServerSchema {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.execute(&format!("drop schema {} cascade", self.schema.quoted()));
        }
    }
}
