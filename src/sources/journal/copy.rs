//! A journal copied block by block, as blocks are stored: out of one that may be in use, and into a new one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::begins::Begins;
use super::block::{self, Decoder, Key};
use super::id::{JournalId, ParentJournal};
use super::marks::Marks;
use super::store::{Failure, Store};
use super::{Journal, JournalError, MAX_PARTITIONS};

/// Blocks that are read, or written, at a time.
const BATCH_BYTES: usize = 4 << 20;

/// A block as it is stored, with its key.
pub type StoredBlock = (Vec<u8>, Vec<u8>);

impl Journal {
    /// How many partitions the journal in a folder has.
    pub fn partitions_in(dir: &Path) -> Result<u32, JournalError> {
        Marks::open(dir).map(|marks| marks.partitions())
    }

    /// By partition, the first position that is still there.
    pub fn begins(&self) -> Vec<u64> {
        self.shared.begins.all()
    }

    /// By partition, the position behind the last record: all before it are durable, and each append is before them as a whole or not
    /// at all.
    pub fn ends(&self) -> Vec<u64> {
        let _whole = self.shared.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.tails.iter().map(|tail| tail.end()).collect()
    }

    /// The stored blocks of a partition from a position on, in their order, a few at a time; none behind `end`.
    pub fn stored_blocks(
        &self,
        partition: u32,
        from: u64,
        end: u64,
    ) -> Result<Vec<StoredBlock>, JournalError> {
        let dir = &self.shared.dir;
        self.shared.store.stored(partition, from..end, BATCH_BYTES).map_err(|failure| match failure {
            Failure::Io(source) => JournalError::Io { path: dir.clone(), source },
            failure => JournalError::damaged(dir, &failure.to_string()),
        })
    }
}

/// Checks that blocks are whole, and follow each other in each partition.
pub struct BlockSequence {
    decoder: Decoder,
    /// By partition, where the next block has to begin.
    next: Vec<u64>,
}

impl BlockSequence {
    pub fn new(begins: &[u64]) -> io::Result<BlockSequence> {
        Ok(BlockSequence { decoder: Decoder::new()?, next: begins.to_vec() })
    }

    /// Takes the next block; gives where it ends.
    pub fn push(&mut self, key: &[u8], stored: &[u8]) -> Result<u64, String> {
        let (partition, first) = block::parse_key(key).ok_or("a block has a key that is none")?;
        let damaged = || format!("partition {partition} of the journal is damaged at position {first}");
        let next = self.next.get_mut(partition as usize).ok_or_else(damaged)?;
        let block = self.decoder.decode(key, stored).filter(|_| first == *next).ok_or_else(damaged)?;
        *next = block.end();
        Ok(block.end())
    }

    /// Whether all partitions end there.
    pub fn check_ends(&self, ends: &[u64]) -> Result<(), String> {
        match self.next == ends {
            true => Ok(()),
            false => Err(format!("the journal ends at {:?}, not at {ends:?}", self.next)),
        }
    }
}

/// A new journal that is filled with the blocks of another one.
pub struct JournalCopy {
    dir: PathBuf,
    store: Store,
    sequence: BlockSequence,
    begins: Vec<u64>,
    waiting: Vec<(Key, Vec<u8>)>,
    waiting_bytes: usize,
}

impl JournalCopy {
    /// Begins one in a folder that is not there yet.
    pub fn create(dir: &Path, begins: &[u64]) -> Result<JournalCopy, JournalError> {
        let at_dir = |source| JournalError::Io { path: dir.into(), source };
        let partitions = u32::try_from(begins.len()).unwrap_or(u32::MAX);
        if !(1..=MAX_PARTITIONS).contains(&partitions) {
            return Err(JournalError::Plan(partitions));
        }
        fs::create_dir(dir).map_err(at_dir)?;
        let store = Store::open(dir, true)?;
        let sequence = BlockSequence::new(begins).map_err(at_dir)?;
        let (waiting, begins) = (Vec::new(), begins.to_vec());
        Ok(JournalCopy { dir: dir.into(), store, sequence, begins, waiting, waiting_bytes: 0 })
    }

    pub fn push(&mut self, key: &[u8], stored: &[u8]) -> Result<(), JournalError> {
        self.sequence.push(key, stored).map_err(|what| JournalError::damaged(&self.dir, &what))?;
        // The sequence has read the key.
        let key = Key::try_from(key).map_err(|_| JournalError::damaged(&self.dir, "a key is none"))?;
        self.waiting.push((key, stored.to_vec()));
        self.waiting_bytes += stored.len();
        if self.waiting_bytes >= BATCH_BYTES { self.commit() } else { Ok(()) }
    }

    fn commit(&mut self) -> Result<(), JournalError> {
        self.waiting_bytes = 0;
        self.store
            .commit(std::mem::take(&mut self.waiting))
            .map_err(|failure| JournalError::damaged(&self.dir, &failure.to_string()))
    }

    /// Makes all of it durable, under a new id, which this gives.
    pub fn finish(mut self, ends: &[u64], parent: Option<ParentJournal>) -> Result<String, JournalError> {
        self.commit()?;
        let dir = self.dir;
        self.sequence.check_ends(ends).map_err(|what| JournalError::damaged(&dir, &what))?;
        drop(self.store);
        let at_dir = |source| JournalError::Io { path: dir.clone(), source };
        let begins: Vec<(u32, u64)> = (0..).zip(self.begins).collect();
        Begins::open(&dir, ends.len() as u32)?.raise(&begins).map_err(at_dir)?;
        let id = JournalId::random(parent);
        id.write(&dir).map_err(at_dir)?;
        let mut marks = Marks::create(&dir, ends.len() as u32, id.id).map_err(at_dir)?;
        marks.ends = ends.to_vec();
        marks.write().and_then(|()| marks.sync()).map_err(at_dir)?;
        Ok(id.text())
    }
}
