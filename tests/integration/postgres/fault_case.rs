//! A service with a PostgreSQL sink beside its journal, in a schema of one test.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::test_schema::TestSchema;
use crate::support::{ServiceBuilder, ServiceProcess, wait_for};

/// The data of the service, and the schema that it writes.
pub struct FaultCase {
    root: TempDir,
    pub schema: TestSchema,
    /// How the service reaches the database.
    pub url: String,
}

impl FaultCase {
    pub fn new(url: &str) -> FaultCase {
        FaultCase { root: tempfile::tempdir().unwrap(), schema: TestSchema::unmade(url), url: url.to_owned() }
    }

    /// The same with another way to the database.
    pub fn by(self, url: &str) -> FaultCase {
        FaultCase { url: url.to_owned(), ..self }
    }

    /// The same with another schema.
    pub fn in_schema(self, schema: TestSchema) -> FaultCase {
        FaultCase { schema, ..self }
    }

    /// A service with more keys of the sink.
    pub fn builder(&self, keys: &str) -> ServiceBuilder {
        self.builder_with("", keys)
    }

    /// A service with more top-level settings and more keys of the sink.
    pub fn builder_with(&self, settings: &str, keys: &str) -> ServiceBuilder {
        let url = if keys.contains("urls =") { String::new() } else { format!("url = {:?}\n", self.url) };
        let config = format!(
            "{settings}\n[ingest]\npartitions = 2\n[[sinks]]\ntype = \"postgres\"\n{url}schema = {:?}\ncommit_interval = \"20ms\"\n{keys}\n",
            self.schema.name
        );
        ServiceBuilder::new(config).data(&self.root.path().join("data"))
    }

    pub fn start(&self) -> ServiceProcess {
        self.builder("").start().wait_until_ready()
    }

    /// The error line of a start that must fail.
    pub fn start_failure(&self, keys: &str) -> String {
        self.builder(keys).spawn().wait_for_failure()
    }

    /// Posts readings of cities `from..to`, and waits until each is an arrival.
    pub fn fill(&self, service: &ServiceProcess, from: u32, to: u32) {
        service.post(&readings(from, to));
        self.wait_for_arrivals(i64::from(to));
    }

    pub fn wait_for_arrivals(&self, count: i64) {
        wait_for("that the arrivals are in the table", || (self.count("arrival") == count).then_some(()));
    }

    /// Rows of a table, in a session of its own: a test may end the sessions of the server.
    pub fn count(&self, table: &str) -> i64 {
        let query = format!("select count(*) from {}.{table}", self.schema.quoted());
        let client = super::test_schema::TestClient::try_connect(&self.schema.url);
        let rows = client.and_then(|client| client.try_query(&query, &[]));
        rows.map_or(-1, |rows| rows[0].get(0))
    }
}

/// A reading of each city.
pub fn readings(from: u32, to: u32) -> Value {
    let reading = |city: u32| json!({"city": format!("city {city}"), "reading_at": "2013-07-18T15:00:00Z", "temperature": 80 + city % 20, "humidity": 50});
    Value::Array((from..to).map(reading).collect())
}
