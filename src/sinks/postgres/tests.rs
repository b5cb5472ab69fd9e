//! Tests of what is written, without a run.

mod net_changes;
mod rendering;
mod sample;
mod server;
mod transaction;
