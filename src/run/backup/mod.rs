//! Backups: the journal, its checkpoints, dead letters and what else a data directory remembers, copied to a folder or an object store.
//!
//! ```text
//! <name by time>/journal/000000.blocks    stored blocks of the journal: key (12 bytes), length (u32, little endian), block; zstd around them
//! <name by time>/checkpoints/...          as they are
//! <name by time>/files/000000             pieces of the other files
//! <name by time>/backup.json              what all of that is, with digests: put last, and once
//! ```
//!
//! A service that runs makes the copy of its journal itself (`service`); of one that is stopped the journal is opened ([`create`]).

mod archive;
mod backup_source;
mod create;
mod error;
mod files;
mod journal_protocol;
mod restore;
mod service;

pub use self::archive::{BackupSummary, verify_backup};
pub use self::create::create_backup;
pub use self::error::BackupError;
pub use self::restore::restore_backup;
pub use self::service::BackupService;
