//! The one place that wires everything.

pub mod batch;
pub mod data_dir;
mod intake;
pub mod letters;
pub mod live;
mod logs;
mod outlets;
mod processes;
pub mod retry;
