//! State that the writer and the readers of a journal share.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::block::BlockDecoder;
use super::block_store::BlockStore;
use super::error::DAMAGE_REMEDY;
use super::id::JournalId;
use super::log_starts::LogStarts;
use super::store_error::StoreError;
use super::tail::Tail;
use crate::codec::DecodeSettings;
use crate::fault::{is_transient, remedy_for};
use crate::model::Fingerprint;
use crate::sources::SourceError;

/// State that the writer and the readers share.
pub(super) struct JournalShared {
    pub(super) dir: PathBuf,
    pub(super) id: JournalId,
    /// The journal was created by a version without ids, and the id is not on disk yet.
    pub(super) is_id_unsaved: Mutex<bool>,
    pub(super) decode: DecodeSettings,
    pub(super) store: BlockStore,
    pub(super) log_starts: LogStarts,
    /// By partition.
    pub(super) tails: Vec<Tail>,
    /// Why nothing more is written.
    pub(super) failure: OnceLock<Arc<str>>,
    /// The read side blocks trimming.
    pub(super) trim_lock: RwLock<()>,
    /// Held while a commit is published to the readers of all its partitions.
    pub(super) publish_lock: Mutex<()>,
}

impl JournalShared {
    pub(super) fn tail_of(&self, partition: u32) -> Result<&Tail, SourceError> {
        self.tails.get(partition as usize).ok_or_else(|| {
            SourceError::Fatal(format!("the journal in {} has no partition {partition}", self.dir.display()))
        })
    }

    /// Returns an error if the record at the position was removed.
    pub(super) fn check_not_trimmed(&self, partition: u32, position: u64) -> Result<(), SourceError> {
        let begin = self.log_starts.log_start(partition);
        match position < begin {
            true => Err(SourceError::Fatal(format!(
                "partition {partition} of the journal in {} begins at position {begin}, because it was trimmed below a checkpoint; reading it from position {position} needs a checkpoint that includes position {begin}: restore one from a backup, or begin anew with empty outputs",
                self.dir.display()
            ))),
            false => Ok(()),
        }
    }

    /// Returns an error if the record before a position differs. If it was removed, the id of the
    /// journal must be enough.
    pub(super) fn check_record_before(&self, partition: u32, before: Fingerprint) -> Result<(), SourceError> {
        let position = before.position;
        if position < self.log_starts.log_start(partition) {
            return Ok(());
        }
        let read = || {
            let mut decoder = BlockDecoder::new()?;
            let block = self.store.read_block(partition, position, &mut decoder)?;
            block
                .record_digest(partition, position)
                .ok_or_else(|| StoreError::damaged_block(partition, position))
        };
        match read() {
            Ok(digest) if digest == before.digest => Ok(()),
            Ok(_) => Err(SourceError::RecordDiffers(format!(
                "the record of the journal in {} at position {position} of partition {partition} differs from the one that was read, so this is another journal: restore the right one",
                self.dir.display()
            ))),
            // It was removed in the meantime.
            Err(_) if position < self.log_starts.log_start(partition) => Ok(()),
            Err(failure) => Err(self.unreadable_error(&failure)),
        }
    }

    #[cold]
    pub(super) fn unreadable_error(&self, failure: &StoreError) -> SourceError {
        let dir = self.dir.display();
        match failure {
            StoreError::Io(error) => {
                let text =
                    format!("the journal in {dir} cannot be read: {error}: {}", remedy_for(error, &self.dir));
                if is_transient(error) { SourceError::Transient(text) } else { SourceError::Fatal(text) }
            }
            StoreError::Stopped(_) => SourceError::Fatal(format!(
                "the journal in {dir} cannot be read: {failure}: {}, then start again",
                failure.remedy(&self.dir)
            )),
            StoreError::Store(_) | StoreError::Damaged(_) => {
                SourceError::Fatal(format!("the journal in {dir} is damaged: {failure}; {DAMAGE_REMEDY}"))
            }
        }
    }
}
