//! The one place that wires everything.

pub mod batch;
pub mod data_dir;
mod intake;
pub mod live;
mod logs;
mod outlets;
