//! The store of the journal's blocks: an embedded key-value database on disk.

use std::any::Any;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::config::{BlockSizePolicy, CompressionPolicy, FilterPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::Mutex;

use xxhash_rust::xxh3::xxh3_128;

use super::block::{self, BlockDecoder, BlockKey, JournalBlock};
use super::error::JournalError;
use super::store_contents::find_impossible_contents;
use super::store_error::StoreError;
use super::store_log;
use crate::fault;

const CACHE_BYTES: u64 = 4 << 20;
const MEMTABLE_BYTES: u64 = 8 << 20;
/// The minimum that the store accepts.
const MAX_WRITE_AHEAD_BYTES: u64 = 64 << 20;
/// One thread flushes and compacts. That is little work, because keys only grow.
const WORKER_THREADS: usize = 1;
/// The maximum number of open tables.
pub(super) const MAX_OPEN_TABLES: usize = 64;
/// The unit of reading and compression in a table: replay is sequential, and small blocks compress
/// well only together.
const TABLE_BLOCK_BYTES: u32 = 32 << 10;
/// Bytes of records that a replaying reader fetches from disk at once.
const READ_AHEAD_BYTES: usize = 1 << 20;

/// The maximum number of blocks that one commit removes.
const REMOVE_BATCH_BLOCKS: usize = 1_000;
/// Removed blocks use disk space until the store is rewritten, which is not worth it for less than
/// this.
const MIN_COMPACT_BYTES: u64 = 16 << 20;

/// The key of a block and its stored bytes.
pub type StoredBlock = (Vec<u8>, Vec<u8>);

pub(super) struct BlockStore {
    database: Database,
    blocks: Keyspace,
    trim_state: Mutex<TrimState>,
}

/// Removals since the start.
#[derive(Default)]
struct TrimState {
    /// By partition, the position before which no block is left.
    trimmed_until: BTreeMap<u32, u64>,
    /// Bytes of removed blocks that still use disk space.
    unreclaimed_bytes: u64,
}

impl BlockStore {
    /// Opens the store of a journal. `new` means that nothing was ever acknowledged.
    pub(super) fn open(dir: &Path, new: bool) -> Result<BlockStore, JournalError> {
        let path = dir.join("blocks");
        let at_path = |source| JournalError::Io { path: path.clone(), source };
        if path.join("version").try_exists().map_err(at_path)? {
            if !new {
                check_table_lists(dir, &path)?;
            }
        } else if !new {
            return Err(JournalError::damaged_error(dir, "its file \"blocks/version\" is missing"));
        } else if path.try_exists().map_err(at_path)? {
            // The remains of a first start that was killed before it acknowledged anything.
            fs::remove_dir_all(&path).map_err(at_path)?;
        }
        if path.is_dir()
            && let Some(file) = find_impossible_contents(&path).map_err(at_path)?
        {
            let file = file.strip_prefix(dir).unwrap_or(&file).display().to_string();
            return Err(JournalError::damaged_error(
                dir,
                &format!("its file {file:?} declares more contents than it has"),
            ));
        }
        catch_store_panics(|| open_store(&path)).map_err(|failure| match failure {
            StoreError::Store(fjall::Error::Locked) => JournalError::InUse { dir: dir.into() },
            StoreError::Io(source) if is_thread_limit(&source) => {
                JournalError::Threads { dir: dir.into(), source }
            }
            StoreError::Io(source) if source.raw_os_error().is_some() => JournalError::Io { path, source },
            failure @ StoreError::Stopped(_) => JournalError::from_store_error(dir, failure),
            failure => JournalError::damaged_error(dir, &format!("its storage cannot be opened ({failure})")),
        })
    }

    /// Writes blocks atomically, and waits until they are durable.
    pub(super) fn commit_blocks(&self, blocks: Vec<(BlockKey, Vec<u8>)>) -> Result<(), StoreError> {
        catch_store_panics(|| {
            let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
            for (key, value) in blocks {
                batch.insert(&self.blocks, key, value);
            }
            batch.commit()
        })
    }

    /// The last block of a partition.
    pub(super) fn last_block(
        &self,
        partition: u32,
        decoder: &mut BlockDecoder,
    ) -> Result<Option<JournalBlock>, StoreError> {
        catch_store_panics(|| {
            let mut range =
                self.blocks.range(block::block_key(partition, 0)..=block::block_key(partition, u64::MAX));
            range.next_back().map(|guard| decode_entry(guard, decoder)).transpose()
        })
    }

    /// The position of the first block of a partition.
    pub(super) fn first_block_position(&self, partition: u32) -> Result<Option<u64>, StoreError> {
        catch_store_panics(|| {
            let mut range =
                self.blocks.range(block::block_key(partition, 0)..=block::block_key(partition, u64::MAX));
            range.next().map(|guard| position_of_key(&guard.key()?)).transpose()
        })
    }

    /// The position of the last block that begins at or before a position.
    pub(super) fn block_start_before(
        &self,
        partition: u32,
        position: u64,
    ) -> Result<Option<u64>, StoreError> {
        catch_store_panics(|| {
            let mut range =
                self.blocks.range(block::block_key(partition, 0)..=block::block_key(partition, position));
            range.next_back().map(|guard| position_of_key(&guard.key()?)).transpose()
        })
    }

    /// Removes the blocks of each partition that begin before its position, and reclaims their disk
    /// space once it is a large share of the store.
    pub(super) fn remove_blocks_before(&self, log_starts: &[u64]) -> Result<(), StoreError> {
        let mut removed = self.trim_state.lock();
        catch_store_panics(|| {
            for (partition, begin) in (0..).zip(log_starts) {
                let from =
                    block::block_key(partition, removed.trimmed_until.get(&partition).copied().unwrap_or(0));
                let mut blocks = self.blocks.range(from..block::block_key(partition, *begin));
                loop {
                    let mut batch = self.database.batch();
                    for guard in blocks.by_ref().take(REMOVE_BATCH_BLOCKS) {
                        let (key, value) = guard.into_inner()?;
                        removed.unreclaimed_bytes += (key.len() + value.len()) as u64;
                        batch.remove(&self.blocks, key);
                    }
                    if batch.is_empty() {
                        break;
                    }
                    batch.commit()?;
                }
                removed.trimmed_until.insert(partition, *begin);
            }
            if removed.unreclaimed_bytes >= MIN_COMPACT_BYTES.max(self.blocks.disk_space() / 2) {
                removed.unreclaimed_bytes = 0;
                // Removals are still tombstones in the memtable.
                self.blocks.rotate_memtable_and_wait()?;
                self.blocks.major_compact()?;
            }
            Ok::<(), StoreError>(())
        })
    }

    /// Reads the block that contains the position.
    pub(super) fn read_block(
        &self,
        partition: u32,
        position: u64,
        decoder: &mut BlockDecoder,
    ) -> Result<JournalBlock, StoreError> {
        catch_store_panics(|| {
            let mut before =
                self.blocks.range(block::block_key(partition, 0)..=block::block_key(partition, position));
            let block = before.next_back().map(|guard| decode_entry(guard, decoder)).transpose()?;
            let block = block.filter(|block| (block.first..block.end()).contains(&position));
            block.ok_or_else(|| StoreError::damaged_block(partition, position))
        })
    }

    /// Reads about [`READ_AHEAD_BYTES`] of blocks, from the one that contains the position on.
    pub(super) fn read_blocks(
        &self,
        partition: u32,
        position: u64,
        decoder: &mut BlockDecoder,
    ) -> Result<VecDeque<Arc<JournalBlock>>, StoreError> {
        catch_store_panics(|| {
            let mut before =
                self.blocks.range(block::block_key(partition, 0)..=block::block_key(partition, position));
            let Some(first) = before.next_back() else {
                return Err(StoreError::damaged_block(partition, position));
            };
            let first = first.key()?;
            let mut blocks = VecDeque::new();
            let (mut bytes, mut end) = (0, None);
            for guard in self.blocks.range(&first[..]..=&block::block_key(partition, u64::MAX)[..]) {
                let block = decode_entry(guard, decoder)?;
                let follows = match end {
                    Some(end) => block.first == end,
                    None => (block.first..block.end()).contains(&position),
                };
                if !follows {
                    return Err(StoreError::damaged_block(partition, end.unwrap_or(position)));
                }
                end = Some(block.end());
                bytes += block.len();
                blocks.push_back(Arc::new(block));
                if bytes >= READ_AHEAD_BYTES {
                    break;
                }
            }
            Ok(blocks)
        })
    }

    /// Reads about the given number of bytes of stored blocks, from the one that begins at the
    /// start of the range on; none that begins at or after its end.
    pub(super) fn stored_blocks(
        &self,
        partition: u32,
        range: std::ops::Range<u64>,
        bytes: usize,
    ) -> Result<Vec<StoredBlock>, StoreError> {
        catch_store_panics(|| {
            let mut blocks = Vec::new();
            let mut remaining = bytes;
            let keys = block::block_key(partition, range.start)..block::block_key(partition, range.end);
            for guard in self.blocks.range(keys) {
                let (key, value) = guard.into_inner()?;
                blocks.push((key.to_vec(), value.to_vec()));
                remaining = remaining.saturating_sub(value.len());
                if remaining == 0 {
                    break;
                }
            }
            Ok::<_, StoreError>(blocks)
        })
    }

    /// Bytes on disk, without the write-ahead log, which is reused.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.blocks.disk_space()
    }

    /// Flushes the memtable to a table on disk.
    #[cfg(test)]
    pub(super) fn flush(&self) {
        self.blocks.rotate_memtable_and_wait().unwrap();
    }
}

/// `WouldBlock` comes from a failed start of a thread, never from opening a file.
fn is_thread_limit(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

fn open_store(path: &PathBuf) -> Result<BlockStore, fjall::Error> {
    store_log::install_store_logger();
    let database = Database::builder(path)
        .cache_size(CACHE_BYTES)
        .max_journaling_size(MAX_WRITE_AHEAD_BYTES)
        // No compression of the store's write-ahead log: large blocks are already compressed, and a
        // damaged block then fails its checksum. If its decompression failed instead, it would be
        // taken for a torn end.
        .journal_compression(CompressionType::None)
        .worker_threads(WORKER_THREADS)
        .max_cached_files(Some(MAX_OPEN_TABLES))
        .open()?;
    let blocks = database.keyspace("blocks", || {
        KeyspaceCreateOptions::default()
            .max_memtable_size(MEMTABLE_BYTES)
            .data_block_size_policy(BlockSizePolicy::all(TABLE_BLOCK_BYTES))
            .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
            .filter_policy(FilterPolicy::disabled())
    })?;
    Ok(BlockStore { database, blocks, trim_state: Mutex::default() })
}

/// Checks what the store does not check. If a keyspace has lost its file `current`, the store takes
/// it for one whose creation was interrupted, and deletes it. The store also trusts the list of
/// tables, whose checksum is in `current`.
fn check_table_lists(dir: &Path, path: &Path) -> Result<(), JournalError> {
    for id in ["0", "1"] {
        let folder = path.join("keyspaces").join(id);
        let damaged =
            |what: &str| JournalError::damaged_error(dir, &format!("in \"blocks/keyspaces/{id}\", {what}"));
        let read = |name: &str| match fault::read_small_file(&folder.join(name)) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(damaged(&format!("the file {name:?} is missing")))
            }
            Err(source) => Err(JournalError::Io { path: folder.join(name), source }),
        };
        let current = read("current")?;
        let Some((version, rest)) = current.split_first_chunk::<8>() else {
            return Err(damaged("the file \"current\" is truncated"));
        };
        let list = read(&format!("v{}", u64::from_le_bytes(*version)))?;
        if rest.first_chunk::<16>() != Some(&xxh3_128(&list).to_le_bytes()) {
            return Err(damaged("the list of tables does not match its checksum"));
        }
    }
    Ok(())
}

fn position_of_key(key: &[u8]) -> Result<u64, StoreError> {
    let parsed =
        block::parse_block_key(key).ok_or_else(|| StoreError::Damaged("a block has an invalid key".into()));
    parsed.map(|(_, first)| first)
}

fn decode_entry(guard: fjall::Guard, decoder: &mut BlockDecoder) -> Result<JournalBlock, StoreError> {
    let (key, value) = guard.into_inner()?;
    decoder.decode(&key, &value).ok_or_else(|| match block::parse_block_key(&key) {
        Some((partition, first)) => StoreError::damaged_block(partition, first),
        None => StoreError::Damaged("a block has an invalid key".into()),
    })
}

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Whether the current thread is in a section that turns panics of the store into errors. A panic
/// hook must not end the process for them.
pub fn is_catching_store_panics() -> bool {
    CATCHING.get()
}

pub(super) fn catch_store_panics<T, E: Into<StoreError>>(
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, StoreError> {
    // After a panic the journal fails, and the store is not used again.
    let before = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(before);
    match result {
        Ok(result) => result.map_err(Into::into),
        Err(panic) => Err(StoreError::Damaged(panic_message(panic.as_ref()))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    match panic.downcast_ref::<&str>() {
        Some(message) => (*message).to_owned(),
        None => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
    }
}
