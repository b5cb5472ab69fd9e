//! Errors of creating and restoring backups.

use std::io;
use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::run::data_dir::DataDirError;
use crate::sources::journal::JournalError;

/// Handles the key of a block, and the block as it is stored.
pub(super) type BlockHandler<'a, E> = dyn FnMut(&[u8], &[u8]) -> Result<(), E> + 'a;

/// Why a backup was not created or not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{}: {source}: free space, or make it readable and writable", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] CheckpointError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("the running service stopped copying the journal: {0}")]
    Service(String),
    #[error("the backup {place} is damaged: {what}; restore another backup")]
    Damaged { place: String, what: String },
    #[error(
        "the backup {place} has format {found}, and this swelter reads format {known}: use the version that wrote it"
    )]
    Format { place: String, found: u32, known: u32 },
    #[error("{0}")]
    Refused(String),
}

impl BackupError {
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> BackupError {
        let path = path.into();
        move |source| BackupError::Io { path, source }
    }
}
