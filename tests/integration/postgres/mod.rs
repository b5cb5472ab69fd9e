//! Tests with a real PostgreSQL: its schema, and the sink.

mod applied_log;
mod beside_kafka;
mod filled_log;
mod kills;
mod proxy;
mod queries;
mod schema;
pub mod server;
mod sink_access;
mod sink_case;
mod sink_claims;
mod sink_faults;
mod tables;
mod test_schema;
