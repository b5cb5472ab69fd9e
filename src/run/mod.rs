//! The one place that wires everything.

pub mod backup;
pub mod batch;
mod batch_reader;
mod checkpoints;
pub mod data_dir;
pub mod dead_letter_retry;
pub mod dead_letters;
mod durable_sinks;
mod epochs;
mod ingest_hold;
pub mod live;
mod log_identity;
mod logs;
pub mod permissions;
mod primary_follower;
pub mod process_limits;
mod processes;
pub mod run_error;
mod shutdown;
mod workers;
