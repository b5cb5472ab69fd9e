//! The journal: an embedded, durable log of records, for a service that runs alone.
//!
//! A record goes to the partition of its city, for good, and has a number there, its position. One thread writes: all
//! appends that wait become one atomic, synced commit, then each is acknowledged. A commit's records of a partition are one
//! block, or a few: the unit of compression, of the memory that readers share with the writer, and of reading from disk.
//!
//! The blocks lie in a key-value store (`blocks/`), which brings its write-ahead log, compaction and checksums; `marks` says
//! beside it how far was acknowledged, and `id` which journal it is. Nothing is ever changed; what checkpoints cover is removed when it is told to, block by block
//! from the beginning (`begins`).
//!
//! Memory: what waits in the queue and, as much again, what is being written; the tails; 4 MB of cache, up to 5 tables in
//! memory of 8 MB each, and the index of the newest tables; 1 MB and a block for each partition that is replayed. Threads:
//! the writer, and one of the store's.

mod acked_ends;
mod append_queue;
mod arrival_clock;
mod block;
mod block_store;
mod copy;
mod id;
mod log_starts;
mod reader;
mod store_contents;
mod store_log;
mod tail;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::thread::{self, JoinHandle, Thread};

use self::acked_ends::AckedEnds;
use self::append_queue::AppendQueue;
use self::arrival_clock::{ArrivalClock, Clock, HostClock, SharedAppendHold};
use self::block::{BlockDecoder, BlockEncoder};
pub use self::block_store::is_catching_store_panics;
use self::block_store::{BlockStore, StoreError};
pub use self::copy::{BlockSequence, JournalCopy, StoredBlock};
pub use self::id::{JournalId, ParentJournal};
use self::log_starts::LogStarts;
use self::reader::JournalReader;
use self::tail::Tail;
pub use self::writer::partition_of_city;
use self::writer::{JournalWriter, SizeWarning};
use super::{Partition, Source, SourceError};
use crate::codec::DecodeSettings;
use crate::fault::{is_transient, remedy_for, start_failure_text};
use crate::model::{
    AppendError, AppendHold, Appender, EventTime, Fingerprint, HoldCheck, LogPosition, Millis,
};

/// The name of the source.
pub const SOURCE_NAME: &str = "journal";

/// The most partitions that a journal may have.
pub const MAX_PARTITIONS: u32 = 1024;

/// Files that a journal may have open at once: tables that are read, its write-ahead log, what is flushed and merged, and files of its
/// own that are replaced.
pub const MAX_OPEN_FILES: u64 = block_store::MAX_OPEN_TABLES as u64 + 36;

#[derive(Clone, Debug)]
pub struct JournalPlan {
    /// 1 to [`MAX_PARTITIONS`]; must stay what it was when the journal was begun.
    pub partitions: u32,
    /// What may wait to be written, before appends are refused as [`AppendError::Busy`].
    pub queue_records: usize,
    pub queue_bytes: usize,
    /// The newest records that are kept in memory for readers, in bytes over all partitions.
    pub tail_bytes: usize,
    /// Warns when the journal has become so large, and each time it has doubled; 0 never does.
    pub warn_bytes: u64,
    /// A clock that is further ahead than this of what it should say holds appends back, until it is right or has said so for a minute.
    pub max_ahead: Millis,
    pub decode: DecodeSettings,
}

impl Default for JournalPlan {
    fn default() -> JournalPlan {
        JournalPlan {
            partitions: 16,
            queue_records: 100_000,
            queue_bytes: 32 << 20,
            tail_bytes: 16 << 20,
            warn_bytes: 10_000_000_000,
            max_ahead: Millis::from_millis(10 * 60_000).unwrap_or_default(),
            decode: DecodeSettings::default(),
        }
    }
}

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{}: {source}: {}, or choose another data directory", path.display(), remedy_for(source, path))]
    Io { path: PathBuf, source: io::Error },
    #[error("the journal in {}: {}", dir.display(), start_failure_text(source))]
    Threads { dir: PathBuf, source: io::Error },
    #[error("the journal in {} cannot be used: {what}: {remedy}, then start again", dir.display())]
    Stopped { dir: PathBuf, what: String, remedy: String },
    #[error("a journal has 1 to {MAX_PARTITIONS} partitions, not {0}: change the configuration")]
    PartitionCount(u32),
    #[error(
        "the journal in {} has {found} partitions, not {asked}: configure {found}, or move it away to begin anew",
        dir.display()
    )]
    PartitionsDiffer { dir: PathBuf, found: u32, asked: u32 },
    #[error(
        "the journal in {} is of format {found}, this program knows {known}: use the version that wrote it",
        dir.display()
    )]
    Format { dir: PathBuf, found: u32, known: u32 },
    #[error("the journal in {} is in use by another process: stop that first", dir.display())]
    InUse { dir: PathBuf },
    #[error("the journal in {} is damaged: {what}; {REMEDY}", dir.display())]
    Damaged { dir: PathBuf, what: String },
    #[error("the journal in {}: its file \"id\" {what}: {}", dir.display(), id_remedy(*known))]
    Id { dir: PathBuf, what: &'static str, known: Option<u128> },
    #[error(
        "partition {partition} of the journal in {} ends at {end}, so nothing is removed before {upto}: what covers that is of another journal",
        dir.display()
    )]
    TrimBeyondEnd { dir: PathBuf, partition: u32, end: u64, upto: u64 },
}

const REMEDY: &str = "restore it from a backup, or move it away to begin anew";

fn id_remedy(known: Option<u128>) -> String {
    match known {
        Some(id) => {
            format!("restore it, as the line {{\"id\":\"{}\"}}, or restore the journal from a backup", id::id_to_hex(id))
        }
        None => "restore it, as a line {\"id\":\"..\"} with the id that the manifests of its checkpoints name (logs.journal.id); if none \
                 names one, remove it"
            .into(),
    }
}

impl JournalError {
    fn damaged_error(dir: &Path, what: &str) -> JournalError {
        JournalError::Damaged { dir: dir.into(), what: what.into() }
    }

    /// What the store has said, of the journal in `dir`.
    fn from_store_error(dir: &Path, failure: StoreError) -> JournalError {
        match failure {
            StoreError::Io(source) => JournalError::Io { path: dir.into(), source },
            StoreError::Stopped(_) => {
                let (what, remedy) = (failure.to_string(), failure.remedy(dir));
                JournalError::Stopped { dir: dir.into(), what, remedy }
            }
            StoreError::Store(_) | StoreError::Damaged(_) => {
                JournalError::damaged_error(dir, &failure.to_string())
            }
        }
    }
}

/// An open journal. When it is dropped, what waits is still written, and appends are then refused as
/// [`AppendError::Stopping`].
pub struct Journal {
    shared: Arc<JournalShared>,
    queue: Arc<AppendQueue>,
    clock_hold: SharedAppendHold,
    writer: Option<JoinHandle<()>>,
}

/// What the writer and the readers share.
struct JournalShared {
    dir: PathBuf,
    id: JournalId,
    /// It was begun before there were ids: this one is not in the folder yet.
    is_id_unsaved: Mutex<bool>,
    decode: DecodeSettings,
    store: BlockStore,
    log_starts: LogStarts,
    /// By partition.
    tails: Vec<Tail>,
    /// Why nothing more is written.
    failure: OnceLock<Arc<str>>,
    /// Held by whoever needs that nothing is removed.
    trim_lock: RwLock<()>,
    /// Held while a commit is shown to the readers of all its partitions.
    publish_lock: Mutex<()>,
}

impl Journal {
    /// Opens the journal in a directory, and begins one where there is none.
    pub fn open(dir: &Path, plan: JournalPlan) -> Result<Journal, JournalError> {
        Journal::open_with_clock(dir, plan, Box::new(HostClock))
    }

    fn open_with_clock(
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
            // What it is known by is there before it is.
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

    /// What it is known by beside its folder.
    pub fn id(&self) -> String {
        self.shared.id.to_hex()
    }

    /// The end that takes new records.
    pub fn appender(&self) -> Arc<dyn Appender> {
        self.queue.clone()
    }

    /// What its records leave unsaid.
    pub fn decode_settings(&self) -> DecodeSettings {
        self.shared.decode
    }

    /// Keeps the id of a journal that was begun before there were ids, once it is known that what was made of the journal fits; of
    /// others it is in the folder since their beginning.
    pub fn save_id(&self) -> Result<(), JournalError> {
        let mut is_new = self.shared.is_id_unsaved.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_new {
            let dir = &self.shared.dir;
            self.shared
                .id
                .write_file(dir)
                .map_err(|source| JournalError::Io { path: dir.clone(), source })?;
            *is_new = false;
            tracing::info!(id = self.shared.id.to_hex(), "the journal has an id from now on");
        }
        Ok(())
    }

    /// The position behind the last record of a partition.
    pub fn log_end(&self, partition: u32) -> u64 {
        self.shared.tails.get(partition as usize).map_or(0, |tail| tail.log_end())
    }

    /// The position of the first record of a partition that is still there.
    pub fn log_start(&self, partition: u32) -> u64 {
        self.shared.log_starts.log_start(partition)
    }

    /// Removes the records of partitions that lie before a position, as far as whole blocks of them do. The block of the record before the
    /// position stays, so that the record can be compared, and with it the last block of each partition.
    /// That they are gone is durable before they go, so a crash leaves at most some that the next call removes. It is to be called
    /// by one thread, which may have to wait until the storage has given the room back.
    ///
    /// # Errors
    ///
    /// Also where a position lies behind the end, before anything is removed: it is not of this journal.
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

    /// Nothing is trimmed while this is held.
    pub fn block_trimming(&self) -> RwLockReadGuard<'_, ()> {
        self.shared.trim_lock.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something that trims; nothing while somebody holds that.
    pub fn trim_unless_blocked<T>(&self, trim: impl FnOnce() -> T) -> Option<T> {
        let _free = match self.shared.trim_lock.try_write() {
            Ok(free) => free,
            Err(TryLockError::Poisoned(free)) => free.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(trim())
    }

    /// Why the journal has stopped to take records, where it has: the program is to end with this line. Readers that have
    /// read all that is durable get it, too.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.shared.failure.get().cloned()
    }
}

fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What is there begins where it should, or before: a crash has kept some from being removed.
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

/// Brings the marks up to the ends of the partitions, and returns when the last record of all arrived.
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
                "partition {partition} ends at position {end}, but had acknowledged up to {acked_end}"
            );
            return Err(JournalError::damaged_error(dir, &what));
        }
        *acked_end = end;
        arrived = arrived.max(last.map(|block| block.arrived));
    }
    Ok(arrived)
}

impl JournalShared {
    fn tail_of(&self, partition: u32) -> Result<&Tail, SourceError> {
        self.tails.get(partition as usize).ok_or_else(|| {
            SourceError::Fatal(format!("the journal in {} has no partition {partition}", self.dir.display()))
        })
    }

    /// Refuses a position whose record was removed.
    fn check_not_trimmed(&self, partition: u32, position: u64) -> Result<(), SourceError> {
        let begin = self.log_starts.log_start(partition);
        match position < begin {
            true => Err(SourceError::Fatal(format!(
                "partition {partition} of the journal in {} begins at position {begin}, since checkpoints cover what lies before; to be read from \
                 position {position} it needs a checkpoint that is no older: restore one from a backup, or begin anew with empty outputs",
                self.dir.display()
            ))),
            false => Ok(()),
        }
    }

    /// Refuses if the record before a position is another one. If it was removed, the id has to do.
    fn check_record_before(&self, partition: u32, before: Fingerprint) -> Result<(), SourceError> {
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
                "the record of the journal in {} at position {position} of partition {partition} is not the one that was read: this is \
                 another journal",
                self.dir.display()
            ))),
            // It was removed just now.
            Err(_) if position < self.log_starts.log_start(partition) => Ok(()),
            Err(failure) => Err(self.unreadable_error(&failure)),
        }
    }

    #[cold]
    fn unreadable_error(&self, failure: &StoreError) -> SourceError {
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
                SourceError::Fatal(format!("the journal in {dir} is damaged: {failure}; {REMEDY}"))
            }
        }
    }
}

impl HoldCheck for Journal {
    fn current_hold(&self) -> Option<AppendHold> {
        self.clock_hold.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
                "results were made of partition {partition} of the journal up to position {position}, but it ends at {end}: restore it, \
                 or begin anew with empty outputs"
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
