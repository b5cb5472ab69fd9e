//! Blocks on disk, in an embedded key-value store.

use std::any::Any;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fjall::config::{BlockSizePolicy, CompressionPolicy, FilterPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use xxhash_rust::xxh3::xxh3_128;

use super::StoredBlock;
use super::block::{self, Block, Decoder, Key};
use super::tables::find_impossible_contents;
use super::{JournalError, store_log};
use crate::fault::{self, Fault};

const CACHE_BYTES: u64 = 4 << 20;
const MEMTABLE_BYTES: u64 = 8 << 20;
/// The least that the store takes.
const WRITE_AHEAD_BYTES: u64 = 64 << 20;
/// It flushes and compacts, which is little work: keys only ever grow.
const THREADS: usize = 1;
/// Tables that are kept open.
pub(super) const OPEN_FILES: usize = 64;
/// Read and compressed in one piece: replay is sequential, and small blocks compress well only together.
const TABLE_BLOCK_BYTES: u32 = 32 << 10;
/// What a replaying reader takes from the disk at once, in bytes of records.
const READ_AHEAD_BYTES: usize = 1 << 20;

/// Blocks of one commit that removes.
const REMOVED_AT_ONCE: usize = 1_000;
/// Removed blocks keep their room until all is rewritten, which is not to be done for little.
const COMPACT_BYTES: u64 = 16 << 20;

pub(super) struct Store {
    database: Database,
    blocks: Keyspace,
    removed: Mutex<Removed>,
}

/// What was removed since the start.
#[derive(Default)]
struct Removed {
    /// By partition: there is nothing before.
    upto: BTreeMap<u32, u64>,
    /// Whose room was not given back yet.
    bytes: u64,
}

impl Store {
    /// Opens the store of a journal; `new` says that nothing was ever acknowledged.
    pub(super) fn open(dir: &Path, new: bool) -> Result<Store, JournalError> {
        let path = dir.join("blocks");
        let at_path = |source| JournalError::Io { path: path.clone(), source };
        if path.join("version").try_exists().map_err(at_path)? {
            if !new {
                check_lists(dir, &path)?;
            }
        } else if !new {
            return Err(JournalError::damaged(dir, "its file \"blocks/version\" is missing"));
        } else if path.try_exists().map_err(at_path)? {
            // What a start that was killed in its first moment has left.
            fs::remove_dir_all(&path).map_err(at_path)?;
        }
        if path.is_dir()
            && let Some(file) = find_impossible_contents(&path).map_err(at_path)?
        {
            let file = file.strip_prefix(dir).unwrap_or(&file).display().to_string();
            return Err(JournalError::damaged(
                dir,
                &format!("its file {file:?} says more contents than it has"),
            ));
        }
        caught(|| open_store(&path)).map_err(|failure| match failure {
            Failure::Store(fjall::Error::Locked) => JournalError::InUse { dir: dir.into() },
            Failure::Io(source) if is_of_threads(&source) => {
                JournalError::Threads { dir: dir.into(), source }
            }
            Failure::Io(source) if source.raw_os_error().is_some() => JournalError::Io { path, source },
            failure @ Failure::Stopped(_) => JournalError::of(dir, failure),
            failure => JournalError::damaged(dir, &format!("its storage cannot be opened ({failure})")),
        })
    }

    /// Writes blocks, all or none, and waits until they are durable.
    pub(super) fn commit(&self, blocks: Vec<(Key, Vec<u8>)>) -> Result<(), Failure> {
        caught(|| {
            let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
            for (key, value) in blocks {
                batch.insert(&self.blocks, key, value);
            }
            batch.commit()
        })
    }

    /// The last block of a partition.
    pub(super) fn last(&self, partition: u32, decoder: &mut Decoder) -> Result<Option<Block>, Failure> {
        caught(|| {
            let mut range = self.blocks.range(block::key(partition, 0)..=block::key(partition, u64::MAX));
            range.next_back().map(|guard| read(guard, decoder)).transpose()
        })
    }

    /// Where the first block of a partition begins.
    pub(super) fn first(&self, partition: u32) -> Result<Option<u64>, Failure> {
        caught(|| {
            let mut range = self.blocks.range(block::key(partition, 0)..=block::key(partition, u64::MAX));
            range.next().map(|guard| first_position(&guard.key()?)).transpose()
        })
    }

    /// Where the last block begins that does so at a position or before.
    pub(super) fn begin_of_block(&self, partition: u32, position: u64) -> Result<Option<u64>, Failure> {
        caught(|| {
            let mut range = self.blocks.range(block::key(partition, 0)..=block::key(partition, position));
            range.next_back().map(|guard| first_position(&guard.key()?)).transpose()
        })
    }

    /// Removes the blocks of each partition that begin before its position, and gives back their room once they are much of all.
    pub(super) fn remove_before(&self, begins: &[u64]) -> Result<(), Failure> {
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        caught(|| {
            for (partition, begin) in (0..).zip(begins) {
                let from = block::key(partition, removed.upto.get(&partition).copied().unwrap_or(0));
                let mut blocks = self.blocks.range(from..block::key(partition, *begin));
                loop {
                    let mut batch = self.database.batch();
                    for guard in blocks.by_ref().take(REMOVED_AT_ONCE) {
                        let (key, value) = guard.into_inner()?;
                        removed.bytes += (key.len() + value.len()) as u64;
                        batch.remove(&self.blocks, key);
                    }
                    if batch.is_empty() {
                        break;
                    }
                    batch.commit()?;
                }
                removed.upto.insert(partition, *begin);
            }
            if removed.bytes >= COMPACT_BYTES.max(self.blocks.disk_space() / 2) {
                removed.bytes = 0;
                // What is removed is in memory yet, as a mark.
                self.blocks.rotate_memtable_and_wait()?;
                self.blocks.major_compact()?;
            }
            Ok::<(), Failure>(())
        })
    }

    /// The block that holds the position.
    pub(super) fn read_block(
        &self,
        partition: u32,
        position: u64,
        decoder: &mut Decoder,
    ) -> Result<Block, Failure> {
        caught(|| {
            let mut before = self.blocks.range(block::key(partition, 0)..=block::key(partition, position));
            let block = before.next_back().map(|guard| read(guard, decoder)).transpose()?;
            let block = block.filter(|block| (block.first..block.end()).contains(&position));
            block.ok_or_else(|| Failure::damaged(partition, position))
        })
    }

    /// The blocks from the one that holds the position on, about [`READ_AHEAD_BYTES`] of them.
    pub(super) fn read(
        &self,
        partition: u32,
        position: u64,
        decoder: &mut Decoder,
    ) -> Result<VecDeque<Arc<Block>>, Failure> {
        caught(|| {
            let mut before = self.blocks.range(block::key(partition, 0)..=block::key(partition, position));
            let Some(first) = before.next_back() else {
                return Err(Failure::damaged(partition, position));
            };
            let first = first.key()?;
            let mut found = VecDeque::new();
            let (mut bytes, mut end) = (0, None);
            for guard in self.blocks.range(&first[..]..=&block::key(partition, u64::MAX)[..]) {
                let block = read(guard, decoder)?;
                let follows = match end {
                    Some(end) => block.first == end,
                    None => (block.first..block.end()).contains(&position),
                };
                if !follows {
                    return Err(Failure::damaged(partition, end.unwrap_or(position)));
                }
                end = Some(block.end());
                bytes += block.len();
                found.push_back(Arc::new(block));
                if bytes >= READ_AHEAD_BYTES {
                    break;
                }
            }
            Ok(found)
        })
    }

    /// Blocks as they are stored, from the one that begins at the start of the range on, about so many bytes of them; none that begins
    /// behind it.
    pub(super) fn stored(
        &self,
        partition: u32,
        range: std::ops::Range<u64>,
        bytes: usize,
    ) -> Result<Vec<StoredBlock>, Failure> {
        caught(|| {
            let mut found = Vec::new();
            let mut left = bytes;
            let keys = block::key(partition, range.start)..block::key(partition, range.end);
            for guard in self.blocks.range(keys) {
                let (key, value) = guard.into_inner()?;
                found.push((key.to_vec(), value.to_vec()));
                left = left.saturating_sub(value.len());
                if left == 0 {
                    break;
                }
            }
            Ok::<_, Failure>(found)
        })
    }

    /// Bytes on disk, the write-ahead log left out, which is reused.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.blocks.disk_space()
    }

    /// Moves what is in memory to a table on disk.
    #[cfg(test)]
    pub(super) fn flush(&self) {
        self.blocks.rotate_memtable_and_wait().unwrap();
    }
}

/// Opening files never says so, starting threads does.
fn is_of_threads(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

fn open_store(path: &PathBuf) -> Result<Store, fjall::Error> {
    store_log::install();
    let database = Database::builder(path)
        .cache_size(CACHE_BYTES)
        .max_journaling_size(WRITE_AHEAD_BYTES)
        // Blocks worth it are compressed; and so a damaged one fails its checksum, not its decompression, which would be
        // taken for a torn end.
        .journal_compression(CompressionType::None)
        .worker_threads(THREADS)
        .max_cached_files(Some(OPEN_FILES))
        .open()?;
    let blocks = database.keyspace("blocks", || {
        KeyspaceCreateOptions::default()
            .max_memtable_size(MEMTABLE_BYTES)
            .data_block_size_policy(BlockSizePolicy::all(TABLE_BLOCK_BYTES))
            .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
            .filter_policy(FilterPolicy::disabled())
    })?;
    Ok(Store { database, blocks, removed: Mutex::default() })
}

/// Checks what the store does not: it deletes a keyspace that has lost its file `current`, as one whose creation was cut
/// off, and trusts the list of tables, of which `current` has the checksum.
fn check_lists(dir: &Path, path: &Path) -> Result<(), JournalError> {
    for id in ["0", "1"] {
        let folder = path.join("keyspaces").join(id);
        let damaged =
            |what: &str| JournalError::damaged(dir, &format!("in \"blocks/keyspaces/{id}\", {what}"));
        let read = |name: &str| match fault::read_small_file(&folder.join(name)) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(damaged(&format!("the file {name:?} is missing")))
            }
            Err(source) => Err(JournalError::Io { path: folder.join(name), source }),
        };
        let current = read("current")?;
        let Some((version, rest)) = current.split_first_chunk::<8>() else {
            return Err(damaged("the file \"current\" is cut off"));
        };
        let list = read(&format!("v{}", u64::from_le_bytes(*version)))?;
        if rest.first_chunk::<16>() != Some(&xxh3_128(&list).to_le_bytes()) {
            return Err(damaged("the list of tables does not have its checksum"));
        }
    }
    Ok(())
}

fn first_position(key: &[u8]) -> Result<u64, Failure> {
    let parsed =
        block::parse_key(key).ok_or_else(|| Failure::Damaged("a block has a key that is none".into()));
    parsed.map(|(_, first)| first)
}

fn read(guard: fjall::Guard, decoder: &mut Decoder) -> Result<Block, Failure> {
    let (key, value) = guard.into_inner()?;
    decoder.decode(&key, &value).ok_or_else(|| match block::parse_key(&key) {
        Some((partition, first)) => Failure::damaged(partition, first),
        None => Failure::Damaged("a block has a key that is none".into()),
    })
}

/// What the store says, panics included: it has some for damage that it does not expect.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
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

impl From<fjall::Error> for Failure {
    fn from(error: fjall::Error) -> Failure {
        match error {
            fjall::Error::Io(error) => Failure::Io(error),
            fjall::Error::Poisoned => Failure::Stopped(store_log::last_error()),
            error => match fault::errno(&error) {
                // What the host says of a file that is missing or cut off is damage here.
                Some(errno) if fault::fault_of(&error) == Fault::Passing => Failure::Io(errno.into()),
                _ => Failure::Store(error),
            },
        }
    }
}

impl Failure {
    /// What a person does about it, who finds the journal in `dir`.
    pub(super) fn remedy(&self, dir: &Path) -> String {
        let cause = match self {
            Failure::Io(error) => return fault::remedy(error, dir),
            Failure::Stopped(cause) => cause.as_deref().and_then(store_log::os_error),
            Failure::Store(_) | Failure::Damaged(_) => None,
        };
        cause.map_or_else(
            || format!("see that the disk of {} has room and works", dir.display()),
            |error| fault::remedy(&error, dir),
        )
    }

    pub(super) fn damaged(partition: u32, position: u64) -> Failure {
        Failure::Damaged(format!("partition {partition} cannot be read at position {position}"))
    }
}

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread is one of the store's, which becomes an error: a panic hook must not end the process.
pub fn catches_panics() -> bool {
    CATCHING.get()
}

pub(super) fn caught<T, E: Into<Failure>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, Failure> {
    // After a panic the journal fails and nothing is asked again.
    let before = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(before);
    match result {
        Ok(result) => result.map_err(Into::into),
        Err(panic) => Err(Failure::Damaged(message(panic.as_ref()))),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    match panic.downcast_ref::<&str>() {
        Some(message) => (*message).to_owned(),
        None => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
    }
}
