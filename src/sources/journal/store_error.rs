//! Errors of the store that holds the blocks.

use std::io;
use std::path::Path;

use super::store_log;
use crate::fault::{self, FaultClass};

/// An error of the store, panics included: it panics on some unexpected damage.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Store(fjall::Error),
    /// The store has stopped after a failure of its own threads, which they have logged.
    #[error("its storage has stopped after {}", .0.as_deref().unwrap_or("a failed write of its own"))]
    Stopped(Option<String>),
    #[error("{0}")]
    Damaged(String),
}

impl From<fjall::Error> for StoreError {
    fn from(error: fjall::Error) -> StoreError {
        match error {
            fjall::Error::Io(error) => StoreError::Io(error),
            fjall::Error::Poisoned => StoreError::Stopped(store_log::last_store_error()),
            error => match fault::find_errno(&error) {
                // An errno other than a transient one means a missing or truncated file, which is
                // damage here.
                Some(errno) if fault::classify_fault(&error) == FaultClass::Transient => {
                    StoreError::Io(errno.into())
                }
                _ => StoreError::Store(error),
            },
        }
    }
}

impl StoreError {
    /// What the operator can do about the error; `dir` is the directory of the journal.
    pub(super) fn remedy(&self, dir: &Path) -> String {
        let cause = match self {
            StoreError::Io(error) => return fault::remedy_for(error, dir),
            StoreError::Stopped(cause) => cause.as_deref().and_then(store_log::parse_os_error),
            StoreError::Store(_) | StoreError::Damaged(_) => None,
        };
        cause.map_or_else(
            || format!("check that the disk of {} has free space and works", dir.display()),
            |error| fault::remedy_for(&error, dir),
        )
    }

    pub(super) fn damaged_block(partition: u32, position: u64) -> StoreError {
        StoreError::Damaged(format!("partition {partition} cannot be read at position {position}"))
    }
}
