//! A durable sink that is a folder: every change of a row is a line of a file, exactly once.
//!
//! Files are finished at a size or an age and never written again, so they can be copied or moved
//! away while the service runs. Any tool for JSON lines or CSV can read them. `layout` has the
//! names of all files, `commit_log` makes a transaction durable, and `claims` and `fence` keep
//! earlier generations from writing.

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
