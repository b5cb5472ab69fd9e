//! Backups: the journal, its checkpoints, dead letters and what else a data directory remembers, copied to a folder or an object store.
//!
//! ```text
//! <name by time>/journal/000000.blocks    stored blocks of the journal: key (12 bytes), length (u32, little endian), block; zstd around them
//! <name by time>/checkpoints/...          as they are
//! <name by time>/files/000000             pieces of the other files
//! <name by time>/backup.json              what all of that is, with digests: put last, and once
//! ```
//!
//! A service that runs makes the copy of its journal itself (`service`); of one that is stopped the journal is opened ([`take`]).

mod archive;
mod backup_source;
mod create;
mod files;
mod restore;
mod service;

use std::io;
use std::path::PathBuf;

pub use self::archive::{BackupSummary, verify_backup};
pub use self::create::{BackupReport, create_backup};
pub use self::restore::{RestoreSummary, restore_backup};
pub use self::service::BackupService;
use super::data_dir::DataDirError;
use crate::checkpoint::CheckpointError;
use crate::sources::journal::JournalError;

/// Takes the key of a block, and the block as it is stored.
type BlockHandler<'a, E> = dyn FnMut(&[u8], &[u8]) -> Result<(), E> + 'a;

/// Why there is no backup, or none was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{}: {source}: make room, or make it readable and writable", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] CheckpointError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("the running service has ended the copy: {0}")]
    Service(String),
    #[error("the backup {place} is damaged: {what}; use another one")]
    Damaged { place: String, what: String },
    #[error(
        "the backup {place} is of format {found}, this program knows {known}: use the version that wrote it"
    )]
    Format { place: String, found: u32, known: u32 },
    #[error("{0}")]
    Refused(String),
}

impl BackupError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> BackupError {
        let path = path.into();
        move |source| BackupError::Io { path, source }
    }
}
