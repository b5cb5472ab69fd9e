//! Errors of the store that holds the blocks.

use std::io;
use std::path::Path;

use super::store_log;
use crate::fault::{self, FaultClass};

/// What the store says, panics included: it has some for damage that it does not expect.
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
                // What the host says of a file that is missing or cut off is damage here.
                Some(errno) if fault::classify_fault(&error) == FaultClass::Transient => {
                    StoreError::Io(errno.into())
                }
                _ => StoreError::Store(error),
            },
        }
    }
}

impl StoreError {
    /// What a person does about it, who finds the journal in `dir`.
    pub(super) fn remedy(&self, dir: &Path) -> String {
        let cause = match self {
            StoreError::Io(error) => return fault::remedy_for(error, dir),
            StoreError::Stopped(cause) => cause.as_deref().and_then(store_log::parse_os_error),
            StoreError::Store(_) | StoreError::Damaged(_) => None,
        };
        cause.map_or_else(
            || format!("see that the disk of {} has room and works", dir.display()),
            |error| fault::remedy_for(&error, dir),
        )
    }

    pub(super) fn damaged_block(partition: u32, position: u64) -> StoreError {
        StoreError::Damaged(format!("partition {partition} cannot be read at position {position}"))
    }
}
