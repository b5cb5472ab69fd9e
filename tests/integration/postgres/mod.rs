//! Tests with a real PostgreSQL: its schema, and the sink.

mod applied_log;
mod beside_kafka;
mod export;
mod fault_case;
mod filled_log;
mod history;
mod kills;
mod proxy;
mod queries;
mod replica_case;
mod schema;
pub mod server;
mod sink;
mod sink_access;
mod sink_case;
mod sink_claims;
mod sink_faults;
mod tables;
pub mod test_schema;
