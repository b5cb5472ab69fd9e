//! The one place that wires everything.

pub mod batch;
mod intake;
pub mod live;
