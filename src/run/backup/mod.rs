//! Backups: the journal, its checkpoints, dead letters and other state of a data directory, copied
//! to a folder or an object store.
//!
//! ```text
//! <name by time>/journal/000000.blocks   stored blocks of the journal, compressed with zstd:
//!                                         key (12 bytes), length (u32, little endian), block
//! <name by time>/checkpoints/...         unchanged
//! <name by time>/files/000000            pieces of the other files
//! <name by time>/backup.json             the manifest, with digests: written once, last
//! ```
//!
//! A running service copies its journal itself (`service`). For a stopped one, the journal is
//! opened here ([`create`]).

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
