//! How a folder is written.

use std::path::PathBuf;
use std::time::Duration;

/// A folder that results are written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderSinkPlan {
    pub path: PathBuf,
    pub format: FolderFormat,
    /// Fixed at the first start.
    pub shards: u16,
    pub commit_interval: Duration,
    pub segments: SegmentLimits,
}

/// When a file is finished: after the transaction that reaches a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLimits {
    pub bytes: u64,
    pub age: Duration,
}

/// The format of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderFormat {
    Json,
    Csv,
}

impl FolderFormat {
    /// The name in the configuration and in the identity of results.
    pub fn name(self) -> &'static str {
        match self {
            FolderFormat::Json => "json",
            FolderFormat::Csv => "csv",
        }
    }

    pub(super) fn extension(self) -> &'static str {
        match self {
            FolderFormat::Json => "jsonl",
            FolderFormat::Csv => "csv",
        }
    }

    /// The first line of a file.
    pub(super) fn header(self) -> &'static str {
        match self {
            FolderFormat::Json => "",
            FolderFormat::Csv => {
                "as_of,city,reading_at,heat_index,rolling_heat_index,count,category,deleted\n"
            }
        }
    }
}
