//! Copies of a journal, block by block in the stored form: out of a journal that may be in use,
//! into a new one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::acked_ends::AckedEnds;
use super::block::{self, BlockDecoder, BlockKey};
use super::block_store::{BlockStore, StoredBlock};
use super::error::JournalError;
use super::id::{JournalId, ParentJournal};
use super::log_starts::LogStarts;
use super::open_journal::Journal;
use super::plan::MAX_PARTITIONS;
use super::store_error::StoreError;

/// Bytes of blocks that are read or written at a time.
const COPY_BATCH_BYTES: usize = 4 << 20;

impl Journal {
    /// The number of partitions of the journal in a directory.
    pub fn partition_count_in(dir: &Path) -> Result<u32, JournalError> {
        AckedEnds::open_file(dir).map(|acked_ends| acked_ends.partition_count())
    }

    /// By partition, the first position that was not removed.
    pub fn log_starts(&self) -> Vec<u64> {
        self.shared.log_starts.positions()
    }

    /// By partition, the position behind the last record. All records before these positions are
    /// durable, and each append is included as a whole or not at all.
    pub fn log_ends(&self) -> Vec<u64> {
        let _whole = self.shared.publish_lock.lock();
        self.shared.tails.iter().map(|tail| tail.log_end()).collect()
    }

    /// Reads some stored blocks of a partition in order, from a position on; none at or after
    /// `end`.
    pub fn stored_blocks(
        &self,
        partition: u32,
        from: u64,
        end: u64,
    ) -> Result<Vec<StoredBlock>, JournalError> {
        let dir = &self.shared.dir;
        self.shared.store.stored_blocks(partition, from..end, COPY_BATCH_BYTES).map_err(|failure| {
            match failure {
                StoreError::Io(source) => JournalError::Io { path: dir.clone(), source },
                failure => JournalError::damaged_error(dir, &failure.to_string()),
            }
        })
    }
}

/// Checks that blocks are undamaged and contiguous in each partition.
pub struct BlockSequence {
    decoder: BlockDecoder,
    /// By partition, the position at which the next block must begin.
    next_positions: Vec<u64>,
}

impl BlockSequence {
    pub fn new(log_starts: &[u64]) -> io::Result<BlockSequence> {
        Ok(BlockSequence { decoder: BlockDecoder::new()?, next_positions: log_starts.to_vec() })
    }

    /// Checks the next block, and returns the position of its end.
    pub fn push_block(&mut self, key: &[u8], stored: &[u8]) -> Result<u64, String> {
        let (partition, first) = block::parse_block_key(key).ok_or("a block has an invalid key")?;
        let damaged = || format!("partition {partition} of the journal is damaged at position {first}");
        let next = self.next_positions.get_mut(partition as usize).ok_or_else(damaged)?;
        let block = self.decoder.decode(key, stored).filter(|_| first == *next).ok_or_else(damaged)?;
        *next = block.end();
        Ok(block.end())
    }

    /// Checks that each partition ends at its position in `ends`.
    pub fn check_ends(&self, ends: &[u64]) -> Result<(), String> {
        match self.next_positions == ends {
            true => Ok(()),
            false => Err(format!("the journal ends at {:?}, not at {ends:?}", self.next_positions)),
        }
    }
}

/// A new journal that receives the blocks of another one.
pub struct JournalCopy {
    dir: PathBuf,
    store: BlockStore,
    sequence: BlockSequence,
    log_starts: Vec<u64>,
    pending_blocks: Vec<(BlockKey, Vec<u8>)>,
    pending_bytes: usize,
}

impl JournalCopy {
    /// Creates a journal in a directory that does not exist yet.
    pub fn create(dir: &Path, log_starts: &[u64]) -> Result<JournalCopy, JournalError> {
        let at_dir = |source| JournalError::Io { path: dir.into(), source };
        let partitions = u32::try_from(log_starts.len()).unwrap_or(u32::MAX);
        if !(1..=MAX_PARTITIONS).contains(&partitions) {
            return Err(JournalError::PartitionCount(partitions));
        }
        fs::create_dir(dir).map_err(at_dir)?;
        let store = BlockStore::open(dir, true)?;
        let sequence = BlockSequence::new(log_starts).map_err(at_dir)?;
        let (pending_blocks, log_starts) = (Vec::new(), log_starts.to_vec());
        Ok(JournalCopy { dir: dir.into(), store, sequence, log_starts, pending_blocks, pending_bytes: 0 })
    }

    pub fn push_block(&mut self, key: &[u8], stored: &[u8]) -> Result<(), JournalError> {
        self.sequence
            .push_block(key, stored)
            .map_err(|what| JournalError::damaged_error(&self.dir, &what))?;
        // The key is valid: the sequence has parsed it.
        let key = BlockKey::try_from(key)
            .map_err(|_| JournalError::damaged_error(&self.dir, "a key is invalid"))?;
        self.pending_blocks.push((key, stored.to_vec()));
        self.pending_bytes += stored.len();
        if self.pending_bytes >= COPY_BATCH_BYTES { self.commit_pending() } else { Ok(()) }
    }

    fn commit_pending(&mut self) -> Result<(), JournalError> {
        self.pending_bytes = 0;
        self.store
            .commit_blocks(std::mem::take(&mut self.pending_blocks))
            .map_err(|failure| JournalError::damaged_error(&self.dir, &failure.to_string()))
    }

    /// Makes the copy durable under a new id, and returns the id.
    pub fn finish(mut self, ends: &[u64], parent: Option<ParentJournal>) -> Result<String, JournalError> {
        self.commit_pending()?;
        let dir = self.dir;
        self.sequence.check_ends(ends).map_err(|what| JournalError::damaged_error(&dir, &what))?;
        drop(self.store);
        let at_dir = |source| JournalError::Io { path: dir.clone(), source };
        let log_starts: Vec<(u32, u64)> = (0..).zip(self.log_starts).collect();
        LogStarts::open(&dir, ends.len() as u32)?.advance(&log_starts).map_err(at_dir)?;
        let id = JournalId::random(parent);
        id.write_file(&dir).map_err(at_dir)?;
        let mut acked_ends = AckedEnds::create_file(&dir, ends.len() as u32, id.id).map_err(at_dir)?;
        acked_ends.ends = ends.to_vec();
        acked_ends.write_ends().and_then(|()| acked_ends.sync_file()).map_err(at_dir)?;
        Ok(id.to_hex())
    }
}
