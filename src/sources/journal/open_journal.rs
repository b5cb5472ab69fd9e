//! An open journal: appends, reading, trimming.

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::acked_ends::{self, AckedEnds};
use super::append_queue::AppendQueue;
use super::arrival_clock::{ArrivalClock, Clock, HostClock, SharedAppendHold};
use super::block::{BlockDecoder, BlockEncoder};
use super::block_store::BlockStore;
use super::error::JournalError;
use super::id::JournalId;
use super::log_starts::LogStarts;
use super::plan::{JournalPlan, MAX_PARTITIONS, SOURCE_NAME};
use super::reader::JournalReader;
use super::shared::JournalShared;
use super::tail::Tail;
use super::writer::{JournalWriter, SizeWarning};
use crate::codec::DecodeSettings;
use crate::model::{AppendError, AppendHold, Appender, EventTime, HoldCheck, LogPosition};
use crate::sources::{Partition, Source, SourceError};

/// An open journal. A drop writes the appends that wait, and refuses new ones as
/// [`AppendError::Stopping`].
pub struct Journal {
    pub(super) shared: Arc<JournalShared>,
    queue: Arc<AppendQueue>,
    clock_hold: SharedAppendHold,
    writer: Option<JoinHandle<()>>,
}

impl Journal {
    /// Opens the journal in a directory, or creates it if the directory has none.
    pub fn open(dir: &Path, plan: JournalPlan) -> Result<Journal, JournalError> {
        Journal::open_with_clock(dir, plan, Box::new(HostClock))
    }

    pub(super) fn open_with_clock(
        dir: &Path,
        plan: JournalPlan,
        clock: Box<dyn Clock>,
    ) -> Result<Journal, JournalError> {
        let JournalPlan { partitions, .. } = plan;
        if !(1..=MAX_PARTITIONS).contains(&partitions) {
            return Err(JournalError::PartitionCount(partitions));
        }
        let at_dir = |source| JournalError::Io { path: dir.into(), source };
        fs::create_dir_all(dir).map_err(at_dir)?;
        let (mut acked_ends, id) = if dir.join(acked_ends::FILE_NAME).try_exists().map_err(at_dir)? {
            let acked_ends = AckedEnds::open_file(dir)?;
            let id = JournalId::read_file(dir, acked_ends.id)?;
            (acked_ends, id)
        } else if dir.join("blocks").try_exists().map_err(at_dir)? {
            return Err(JournalError::damaged_error(dir, "its file \"marks\" is missing"));
        } else {
            let id = JournalId::random(None);
            // Write the id first, so that no journal exists without one.
            id.write_file(dir).map_err(at_dir)?;
            (AckedEnds::create_file(dir, partitions, id.id).map_err(at_dir)?, Some(id))
        };
        if acked_ends.partition_count() != partitions {
            let (dir, found) = (dir.into(), acked_ends.partition_count());
            return Err(JournalError::PartitionsDiffer { dir, found, asked: partitions });
        }
        let store = BlockStore::open(dir, acked_ends.is_new())?;
        let log_starts = LogStarts::open(dir, partitions)?;
        check_log_starts(dir, &store, &log_starts)?;
        let last_arrival = recover_log_ends(dir, &store, &mut acked_ends)?;
        let is_id_new = Mutex::new(id.is_none());
        acked_ends.id = id.as_ref().map(|id| id.id);
        let id = id.unwrap_or_else(|| JournalId::random(None));
        let mut size = SizeWarning { next_warn_bytes: plan.warn_bytes };
        size.warn_if_large(store.disk_bytes(), dir);
        let tail_bytes = plan.tail_bytes / partitions as usize;
        let shared = Arc::new(JournalShared {
            dir: dir.into(),
            id,
            is_id_unsaved: is_id_new,
            decode: plan.decode,
            store,
            log_starts,
            tails: acked_ends.ends.iter().map(|end| Tail::new(*end, tail_bytes)).collect(),
            failure: OnceLock::new(),
            trim_lock: RwLock::default(),
            publish_lock: Mutex::default(),
        });
        let arrival_clock = ArrivalClock::open(dir, plan.max_ahead, last_arrival, clock);
        let clock = arrival_clock.shared_hold();
        let queue = Arc::new(AppendQueue::new(plan.queue_records, plan.queue_bytes));
        let writer = JournalWriter {
            shared: shared.clone(),
            queue: queue.clone(),
            acked_ends,
            encoder: BlockEncoder::new().map_err(at_dir)?,
            arrival_clock,
            max_ahead: plan.max_ahead,
            size_warning: size,
        };
        let writer = thread::Builder::new().name("journal".into()).spawn(|| writer.run());
        let writer = writer.map_err(|source| JournalError::Threads { dir: dir.into(), source })?;
        Ok(Journal { shared, queue, clock_hold: clock, writer: Some(writer) })
    }

    /// The id of the journal.
    pub fn id(&self) -> String {
        self.shared.id.to_hex()
    }

    /// The appender of new records.
    pub fn appender(&self) -> Arc<dyn Appender> {
        self.queue.clone()
    }

    /// The decode settings for what the records themselves do not say.
    pub fn decode_settings(&self) -> DecodeSettings {
        self.shared.decode
    }

    /// Saves the id of a journal that was created by a version without ids. Call it once the state
    /// made from the journal is verified. Other journals have their id on disk since they were
    /// created.
    pub fn save_id(&self) -> Result<(), JournalError> {
        let mut is_new = self.shared.is_id_unsaved.lock();
        if *is_new {
            let dir = &self.shared.dir;
            self.shared
                .id
                .write_file(dir)
                .map_err(|source| JournalError::Io { path: dir.clone(), source })?;
            *is_new = false;
            tracing::info!(id = self.shared.id.to_hex(), "the journal has got an id");
        }
        Ok(())
    }

    /// The position behind the last record of a partition.
    pub fn log_end(&self, partition: u32) -> u64 {
        self.shared.tails.get(partition as usize).map_or(0, |tail| tail.log_end())
    }

    /// The position of the first record of a partition that was not removed.
    pub fn log_start(&self, partition: u32) -> u64 {
        self.shared.log_starts.log_start(partition)
    }

    /// Removes the records before a position of each partition, in whole blocks. The block of the
    /// record before the position stays, so that this record can be compared; so the last block of
    /// each partition stays, too. The new log starts are durable before blocks are removed: a crash
    /// leaves at most some blocks that the next call removes. Only one thread may call this. It may
    /// block until the store has reclaimed the space.
    ///
    /// # Errors
    ///
    /// Also if a position is behind the end: it belongs to another journal. Then nothing is
    /// removed.
    pub fn trim_before(&self, until: &[(u32, u64)]) -> Result<(), JournalError> {
        let dir = &self.shared.dir;
        let failed = |failure| JournalError::from_store_error(dir, failure);
        let beyond = |(partition, upto): &&(u32, u64)| {
            *partition < self.partitions() && *upto > self.log_end(*partition)
        };
        if let Some((partition, upto)) = until.iter().find(beyond) {
            let (dir, end) = (dir.clone(), self.log_end(*partition));
            return Err(JournalError::TrimBeyondEnd { dir, partition: *partition, end, upto: *upto });
        }
        let mut new_starts = Vec::new();
        for (partition, upto) in until.iter().filter(|(partition, _)| *partition < self.partitions()) {
            let begin =
                self.shared.store.block_start_before(*partition, upto.saturating_sub(1)).map_err(failed)?;
            new_starts.extend(begin.map(|begin| (*partition, begin)));
        }
        let at_dir = |source| JournalError::Io { path: dir.clone(), source };
        self.shared.log_starts.advance(&new_starts).map_err(at_dir)?;
        self.shared.store.remove_blocks_before(&self.shared.log_starts.positions()).map_err(failed)
    }

    /// Blocks trimming while the guard is held.
    pub fn block_trimming(&self) -> RwLockReadGuard<'_, ()> {
        self.shared.trim_lock.read()
    }

    /// Calls a function that trims, unless trimming is blocked.
    pub fn trim_unless_blocked<T>(&self, trim: impl FnOnce() -> T) -> Option<T> {
        let _free = self.shared.trim_lock.try_write()?;
        Some(trim())
    }

    /// Why the journal no longer accepts records, if it has failed: the program is to end with this
    /// line. Readers get the same error after all durable records.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.shared.failure.get().cloned()
    }
}

/// Checks that each partition begins at its log start or before it: a crash may have left blocks
/// that were to be removed.
fn check_log_starts(dir: &Path, store: &BlockStore, log_starts: &LogStarts) -> Result<(), JournalError> {
    for (partition, begin) in (0..).zip(log_starts.positions()) {
        let first = store
            .first_block_position(partition)
            .map_err(|failure| JournalError::from_store_error(dir, failure))?;
        if first.unwrap_or(begin) > begin {
            let what = format!("partition {partition} cannot be read at position {begin}, where it begins");
            return Err(JournalError::damaged_error(dir, &what));
        }
    }
    Ok(())
}

/// Advances the acknowledged ends to the ends in the store, and returns the arrival time of the
/// last record.
fn recover_log_ends(
    dir: &Path,
    store: &BlockStore,
    acked_ends: &mut AckedEnds,
) -> Result<Option<EventTime>, JournalError> {
    let mut decoder = BlockDecoder::new().map_err(|source| JournalError::Io { path: dir.into(), source })?;
    let mut arrived = None;
    for (partition, acked_end) in acked_ends.ends.iter_mut().enumerate() {
        let last = store.last_block(partition as u32, &mut decoder);
        let last = last.map_err(|failure| JournalError::from_store_error(dir, failure))?;
        let end = last.as_ref().map_or(0, |block| block.end());
        if end < *acked_end {
            let what = format!(
                "partition {partition} ends at position {end}, but records were acknowledged up to {acked_end}"
            );
            return Err(JournalError::damaged_error(dir, &what));
        }
        *acked_end = end;
        arrived = arrived.max(last.map(|block| block.arrived));
    }
    Ok(arrived)
}

impl HoldCheck for Journal {
    fn current_hold(&self) -> Option<AppendHold> {
        self.clock_hold.lock().clone()
    }
}

impl Source for Journal {
    fn name(&self) -> &str {
        SOURCE_NAME
    }

    fn partitions(&self) -> u32 {
        self.shared.tails.len() as u32
    }

    fn log_id(&self) -> Result<Option<String>, SourceError> {
        Ok(Some(self.id()))
    }

    fn check_position(&self, partition: u32, at: LogPosition) -> Result<(), SourceError> {
        let (position, end) = (at.position, self.log_end(partition));
        if position > end {
            return Err(SourceError::EndsBefore(format!(
                "results include partition {partition} of the journal up to position {position}, but it ends at {end}: restore it, or begin anew with empty outputs"
            )));
        }
        self.shared.check_not_trimmed(partition, position)?;
        at.before.map_or(Ok(()), |before| self.shared.check_record_before(partition, before))
    }

    fn open_partition(
        &self,
        partition: u32,
        position: u64,
        worker: Thread,
    ) -> Result<Box<dyn Partition>, SourceError> {
        Ok(Box::new(JournalReader::open(self.shared.clone(), partition, position, worker)?))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.queue.close(AppendError::Stopping);
        if let Some(Err(_)) = self.writer.take().map(JoinHandle::join) {
            tracing::error!("the journal's writer has panicked");
        }
    }
}
