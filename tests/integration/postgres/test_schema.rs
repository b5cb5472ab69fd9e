//! A client of a database, and a schema of one test.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, NoTls, Row};

use crate::support::swelter_command;

/// A session whose calls block.
pub struct TestClient {
    runtime: Runtime,
    client: Client,
}

impl TestClient {
    pub fn connect(url: &str) -> TestClient {
        TestClient::try_connect(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    pub fn try_connect(url: &str) -> Result<TestClient, Error> {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            tokio::spawn(connection);
            Ok(client)
        })?;
        Ok(TestClient { runtime, client })
    }

    /// Runs statements without parameters.
    pub fn execute(&self, statements: &str) {
        self.try_execute(statements).unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    pub fn try_execute(&self, statements: &str) -> Result<(), Error> {
        self.runtime.block_on(self.client.batch_execute(statements))
    }

    pub fn query(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        self.try_query(query, parameters).unwrap_or_else(|error| panic!("{query}: {error:?}"))
    }

    pub fn try_query(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        self.runtime.block_on(self.client.query(query, parameters))
    }

    /// Copies lines in PostgreSQL's text format into a table.
    pub fn copy(&self, table: &str, lines: &str) {
        let copied = self.runtime.block_on(async {
            let sink = self.client.copy_in(&format!("copy {table} from stdin")).await?;
            let mut sink = Box::pin(sink);
            sink.send(Bytes::copy_from_slice(lines.as_bytes())).await?;
            sink.as_mut().finish().await
        });
        copied.unwrap_or_else(|error| panic!("{table}: {error:?}"));
    }
}

/// A migrated schema with a name of its own, which is dropped with this. The session's search path
/// is the schema.
pub struct TestSchema {
    pub url: String,
    pub name: String,
    /// No other schema has it.
    pub number: u32,
    pub client: TestClient,
}

impl TestSchema {
    /// A schema that is not made yet.
    pub fn unmade(url: &str) -> TestSchema {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // Every statement about it must quote the name.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test \"{}\".{number}", std::process::id());
        let client = TestClient::connect(url);
        client.execute(&format!("set search_path to {}", quoted(&name)));
        TestSchema { url: url.to_owned(), name, number, client }
    }

    pub fn migrated(url: &str) -> TestSchema {
        let schema = TestSchema::unmade(url);
        let output = schema.command("migrate").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        schema
    }

    pub fn quoted(&self) -> String {
        quoted(&self.name)
    }

    /// `swelter postgres` with this schema.
    pub fn command(&self, command: &str) -> Command {
        let mut swelter = swelter_command();
        swelter.args(["postgres", command, "--schema", &self.name]);
        if command != "schema" {
            swelter.args(["--url", &self.url]);
        }
        swelter
    }
}

impl Drop for TestSchema {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // A server that the test has killed is gone with its schema.
            let _ = self.client.try_execute(&format!("drop schema if exists {} cascade", self.quoted()));
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
