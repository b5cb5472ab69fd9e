//! The one place that wires everything.

pub mod backup;
pub mod batch;
mod checkpoints;
pub mod data_dir;
mod epochs;
mod held;
mod intake;
pub mod letters;
pub mod live;
mod log_identity;
mod logs;
mod outlets;
pub mod permissions;
pub mod process_limits;
mod processes;
pub mod retry;
pub mod run_error;
mod standby;
mod stops;
mod workers;
