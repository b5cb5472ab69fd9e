//! Handles refused records: counts them, and writes those of the journal and of files to
//! dead-letter files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::model::{AppendHold, ClientId, HoldCause, PartitionName, RawRecord, Reason, Refusal};
use crate::sinks::dead_letters::{ClientQuotas, DeadLetterFiles, DlqFileError};
use crate::sources::RecordPosition;

/// Retry-After for a client that was refused since there is no space for dead letters, in seconds.
const DLQ_FULL_RETRY_AFTER_S: u32 = 30;

/// Counts of refused records, and the dead-letter files.
pub struct Refusals {
    /// In the order of [`Reason::ALL`].
    counts: [AtomicU64; Reason::ALL.len()],
    /// The counts of the other processes.
    others: [AtomicU64; Reason::ALL.len()],
    letters: Option<Mutex<DeadLetterFiles>>,
    /// Dead letters could not be written: partitions are not read until they are.
    is_waiting: AtomicBool,
    /// There is no space for more dead letters.
    is_full: AtomicBool,
    /// The remedy for full files, and the quotas of clients; readable without the lock of the
    /// files.
    full: Arc<str>,
    shares: Option<ClientQuotas>,
}

impl Refusals {
    /// Without files for dead letters, refused records are only counted.
    pub fn new(dead_letter_files: Option<DeadLetterFiles>) -> Refusals {
        let [counts, others] = [(), ()].map(|()| std::array::from_fn(|_| AtomicU64::new(0)));
        let full = dead_letter_files.as_ref().map(DeadLetterFiles::full_remedy).unwrap_or_default().into();
        Refusals {
            counts,
            others,
            shares: dead_letter_files.as_ref().map(DeadLetterFiles::client_quotas),
            letters: dead_letter_files.map(Mutex::new),
            is_full: AtomicBool::new(false),
            full,
            is_waiting: AtomicBool::new(false),
        }
    }

    /// Records refused since the start, at all processes.
    pub fn counts(&self) -> Vec<(Reason, u64)> {
        let all = self.counts.iter().zip(&self.others);
        let counts =
            all.map(|(local, remote)| local.load(Ordering::Relaxed) + remote.load(Ordering::Relaxed));
        Reason::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// Records refused at this process, by index of the reason.
    pub fn local_counts(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Sets the counts of the other processes.
    pub fn set_remote_counts(&self, counts: &[u64]) {
        self.others.iter().zip(counts).for_each(|(others, count)| others.store(*count, Ordering::Relaxed));
    }

    /// Whether dead letters in memory could not be written, so no partition may be read.
    pub fn must_wait(&self) -> bool {
        self.is_waiting.load(Ordering::Relaxed)
    }

    /// Makes the dead letters durable, including those that could not be written before. If it
    /// fails, no partition is read until it succeeds.
    pub fn sync(&self) -> Result<(), DlqFileError> {
        let synced = self.sync_all();
        self.is_waiting.store(synced.is_err(), Ordering::Relaxed);
        synced
    }

    fn sync_all(&self) -> Result<(), DlqFileError> {
        let Some(letters) = &self.letters else { return Ok(()) };
        let mut locked = letters.lock();
        let flushed = locked.flush_and_rotate()?;
        self.is_full.store(locked.is_full(), Ordering::Relaxed);
        drop(locked);
        // Sync without holding the lock: workers must not wait for the disk.
        for (path, file) in flushed {
            file.sync_data().map_err(|source| DlqFileError::Sync { path, source })?;
        }
        Ok(())
    }

    /// Whether there is no space for more dead letters in files.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Why this client, or any client, may not send now.
    pub fn hold(&self, client: Option<ClientId>) -> Option<AppendHold> {
        if self.is_full() {
            let (cause, detail) = (HoldCause::DeadLettersFull, self.full.clone());
            return Some(AppendHold { cause, detail, retry_after_s: DLQ_FULL_RETRY_AFTER_S });
        }
        let wait = self.shares.as_ref()?.retry_after(client?)?;
        let detail = "too many of the readings that you sent within a day were refused later and became dead letters: send current readings with the right time";
        let retry_after_s = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX);
        Some(AppendHold { cause: HoldCause::DeadLetterShare, detail: detail.into(), retry_after_s })
    }

    pub(super) fn count(&self, refusal: &Refusal) {
        if let Some(reason_index) = Reason::ALL.iter().position(|reason| *reason == refusal.reason) {
            self.counts[reason_index].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn write(
        &self,
        name: &PartitionName,
        record_position: RecordPosition,
        refusal: &Refusal,
        raw: &RawRecord<'_>,
    ) {
        if let Some(letters) = &self.letters {
            let RecordPosition { position, arrived } = record_position;
            let mut letters = letters.lock();
            let written = letters.write_dead_letter(name, position, arrived, refusal, raw);
            self.is_full.store(letters.is_full(), Ordering::Relaxed);
            if written.is_err() {
                // The dead letter is in memory; the next sync tries again, and reports the error.
                self.is_waiting.store(true, Ordering::Relaxed);
            }
        }
    }
}
