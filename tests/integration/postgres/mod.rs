//! Tests with a real PostgreSQL: its schema, and the sink.

mod filled_log;
mod queries;
mod schema;
pub mod server;
mod test_schema;
