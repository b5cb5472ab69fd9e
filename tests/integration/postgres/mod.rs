//! Tests with a real PostgreSQL: its schema, and the sink.

mod applied_log;
mod beside_kafka;
mod filled_log;
mod kills;
mod proxy;
mod queries;
mod schema;
pub mod server;
mod sink;
mod sink_case;
mod tables;
mod test_schema;
