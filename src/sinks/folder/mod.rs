//! A durable sink that is a folder: every change of a row as a line of a file, each exactly once.
//!
//! Files are finished at a size or an age and never touched again, so they can be copied or moved away while the service runs; any tool
//! that reads JSON lines or CSV reads them. `layout` has the names of all files, `commit_log` what makes a
//! transaction durable, `claims` and `fence` how a start keeps earlier ones from writing.

mod claims;
mod commit_log;
mod error;
mod fence;
mod layout;
mod manifest;
mod plan;
pub mod render;
mod sink;
#[cfg(test)]
mod tests;
mod writer;

pub use self::plan::{FolderFormat, FolderSinkPlan, SegmentLimits};
pub use self::sink::FolderSink;
