//! The keys of reading results back from PostgreSQL.

use super::config_reader::ConfigReader;
use super::plan::{SinkKind, SinkPlan};
use super::postgres::read_database;
use crate::sinks::postgres::history::HistoryPlan;
use crate::sinks::postgres::{PostgresSinkPlan, PostgresTable};

const URLS: &str = "serve.history_urls";
/// The tables that are read.
const TABLES: [PostgresTable; 3] = [PostgresTable::Reading, PostgresTable::Arrival, PostgresTable::Now];

/// Reads which replicas the API reads older rows from. They are of the databases of a sink, so
/// schema, shards, password and TLS are those of the sink.
pub fn read_history(keys: &mut ConfigReader, sinks: &[SinkPlan]) -> Option<HistoryPlan> {
    let urls = keys.read_list(URLS);
    let connections = keys.read_integer("serve.history_connections", 1..=1_000);
    let timeout = keys.read_wall_duration("serve.history_timeout", "100ms", "1m");
    if urls.is_empty() {
        return None;
    }
    let mut postgres = sinks.iter().filter_map(|sink| match &sink.kind {
        SinkKind::Postgres(postgres) => Some(postgres),
        SinkKind::Kafka(_) | SinkKind::Folder(_) => None,
    });
    // What is wrong with a sink is said of it alone.
    let has_invalid_sinks = keys.list_items("sinks").len() > sinks.len();
    let Some(sink) = postgres.next() else {
        if has_invalid_sinks {
            return None;
        }
        keys.add_error(
            URLS,
            "names replicas, and there is no sink with type = \"postgres\" that writes what they have",
        );
        return None;
    };
    if postgres.next().is_some() {
        keys.add_error(URLS, "is for one sink, and there are several with type = \"postgres\": keep one");
        return None;
    }
    check_tables(keys, sink);
    if urls.len() != sink.databases.len() {
        let problem = format!(
            "has {} URLs, and the sink writes to {} databases: name one for each, in their order",
            urls.len(),
            sink.databases.len()
        );
        keys.add_error(URLS, problem);
    }
    let databases: Vec<_> = urls.iter().map(|url| read_database(keys, URLS, url, &sink.access)).collect();
    Some(HistoryPlan {
        databases: databases.into_iter().collect::<Option<_>>()?,
        schema: sink.schema.clone(),
        shards: sink.shards,
        connections,
        timeout,
    })
}

fn check_tables(keys: &mut ConfigReader, sink: &PostgresSinkPlan) {
    let missing = TABLES.into_iter().filter(|table| !sink.tables.contains(*table));
    let missing: Vec<&str> = missing.map(PostgresTable::name).collect();
    if !missing.is_empty() {
        let problem = format!(
            "needs tables that the sink does not write: add {} to its tables, or leave history_urls out",
            missing.join(", ")
        );
        keys.add_error(URLS, problem);
    }
}
