//! Errors of files of dead letters.

use std::io;
use std::path::PathBuf;

use crate::fault::{is_transient, remedy_for};
use crate::model::rules_version::RulesVersionMismatch;

#[derive(Debug, thiserror::Error)]
pub enum DlqFileError {
    #[error("{}: {source}: {}", path.display(), remedy_for(source, path))]
    Io { path: PathBuf, source: io::Error },
    /// It is unknown which of the last dead letters are on the disk.
    #[error("{}: {source}: {}, then start again", path.display(), remedy_for(source, path))]
    Sync { path: PathBuf, source: io::Error },
    #[error(
        "{}: line {line} is not a dead letter: repair the file, or move it away (dead letters of records that the log still has are then written again)",
        path.display()
    )]
    Damaged { path: PathBuf, line: u64 },
    #[error(transparent)]
    Rules(#[from] RulesVersionMismatch),
}

impl DlqFileError {
    /// Whether the dead letters are still in memory and may be written later.
    pub fn is_transient(&self) -> bool {
        matches!(self, DlqFileError::Io { source, .. } if is_transient(source))
    }
}
