//! The rolling heat index of every city, exact and incremental.

pub mod admission;
pub mod checkpoint;
#[cfg(test)]
mod child_tests;
pub mod cli;
pub mod cluster;
pub mod codec;
pub mod config;
pub mod dataflow;
pub mod directory;
pub mod fault;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod kafka;
pub mod model;
pub mod panics;
pub mod registry;
pub mod run;
pub mod serve;
pub mod sinks;
pub mod sources;
pub mod worker;
