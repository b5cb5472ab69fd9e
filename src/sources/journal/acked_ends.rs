//! The file of the journal's format, number of partitions and acknowledged ends.
//!
//! The store cannot tell damage from a torn write: it takes any unreadable rest of its write-ahead
//! log for the torn end of a crash, even if a damaged byte in the middle hides everything behind
//! it. So the acknowledged ends are written after a commit is durable and before it is
//! acknowledged: a journal that ends before them has lost records. They are not synced for each
//! commit. They survive a killed process; after a power loss they may be lower than the true ends,
//! never higher.
//!
//! ```text
//! magic 8 | format u32 | partitions u32 | sequence u64 | end of each partition u64 | checksum u64
//! then, unless the journal was begun before there were ids: id u128 | checksum of all before it u64
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::error::JournalError;
use super::plan::MAX_PARTITIONS;
use crate::fault;

const MAGIC: &[u8; 8] = b"swelterj";
const FORMAT: u32 = 1;
/// The size of one copy. Writes alternate between two copies, so a torn write leaves the previous
/// one intact.
const COPY_BYTES: usize = 16 * 1024;
const HEADER_BYTES: usize = 24;
pub(super) const FILE_NAME: &str = "marks";

#[derive(Debug)]
pub(super) struct AckedEnds {
    pub(super) file: File,
    /// The number of writes.
    sequence: u64,
    /// The acknowledged end of each partition.
    pub ends: Vec<u64>,
    /// The id of the journal; `None` if the journal is older than ids.
    pub id: Option<u128>,
    encoded: Vec<u8>,
}

impl AckedEnds {
    /// Creates the file of an empty journal.
    pub(super) fn create_file(dir: &Path, partitions: u32, id: u128) -> io::Result<AckedEnds> {
        let temporary = dir.join("marks.new");
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&temporary)?;
        let mut encoded = Vec::new();
        let ends = vec![0; partitions as usize];
        encode_copy(&mut encoded, 0, &ends, Some(id));
        // Write both copies in full, so that no later write needs more disk space.
        encoded.resize(2 * COPY_BYTES, 0);
        file.write_all(&encoded)?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(FILE_NAME))?;
        File::open(dir)?.sync_all()?;
        Ok(AckedEnds { file, sequence: 0, ends, id: Some(id), encoded })
    }

    pub(super) fn open_file(dir: &Path) -> Result<AckedEnds, JournalError> {
        let path = dir.join(FILE_NAME);
        let read = || -> io::Result<(File, Vec<u8>)> {
            let file = File::options().read(true).write(true).open(&path)?;
            fault::check_regular_file(&file)?;
            let mut bytes = vec![0; 2 * COPY_BYTES];
            let length = file.metadata()?.len().min(2 * COPY_BYTES as u64) as usize;
            file.read_exact_at(&mut bytes[..length], 0)?;
            Ok((file, bytes))
        };
        let (file, bytes) = read().map_err(|source| JournalError::Io { path: path.clone(), source })?;
        let copies = bytes.chunks(COPY_BYTES).filter_map(parse_copy);
        match copies.max_by_key(|copy| copy.sequence) {
            Some(StoredCopy { format, .. }) if format != FORMAT => {
                Err(JournalError::Format { dir: dir.into(), found: format, known: FORMAT })
            }
            Some(StoredCopy { sequence, ends, id, .. }) => {
                Ok(AckedEnds { file, sequence, ends, id, encoded: Vec::new() })
            }
            None => Err(JournalError::damaged_error(dir, "its file \"marks\" cannot be read")),
        }
    }

    pub(super) fn partition_count(&self) -> u32 {
        self.ends.len() as u32
    }

    /// Whether nothing was ever acknowledged.
    pub(super) fn is_new(&self) -> bool {
        self.ends.iter().all(|end| *end == 0)
    }

    /// Writes the current ends.
    pub(super) fn write_ends(&mut self) -> io::Result<()> {
        // A failed write is repeated in the same copy: the other copy is intact.
        let next = self.sequence + 1;
        encode_copy(&mut self.encoded, next, &self.ends, self.id);
        self.file.write_all_at(&self.encoded, next % 2 * COPY_BYTES as u64)?;
        if next == 1 {
            // Sync the first write: from now on the journal must not count as new, even after a
            // power loss.
            self.sync_file()?;
        }
        self.sequence = next;
        Ok(())
    }

    pub(super) fn sync_file(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn encode_copy(encoded: &mut Vec<u8>, sequence: u64, ends: &[u64], id: Option<u128>) {
    encoded.clear();
    encoded.extend_from_slice(MAGIC);
    encoded.extend_from_slice(&FORMAT.to_le_bytes());
    encoded.extend_from_slice(&(ends.len() as u32).to_le_bytes());
    encoded.extend_from_slice(&sequence.to_le_bytes());
    ends.iter().for_each(|end| encoded.extend_from_slice(&end.to_le_bytes()));
    push_checksum(encoded);
    if let Some(id) = id {
        encoded.extend_from_slice(&id.to_le_bytes());
        push_checksum(encoded);
    }
}

fn push_checksum(encoded: &mut Vec<u8>) {
    let sum = xxh3_64(encoded);
    encoded.extend_from_slice(&sum.to_le_bytes());
}

struct StoredCopy {
    format: u32,
    sequence: u64,
    ends: Vec<u64>,
    id: Option<u128>,
}

fn parse_copy(encoded: &[u8]) -> Option<StoredCopy> {
    let word = |at: usize| encoded.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let half = |at: usize| encoded.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let partitions = half(12).filter(|partitions| (1..=MAX_PARTITIONS).contains(partitions))?;
    let length = HEADER_BYTES + 8 * partitions as usize;
    if !encoded.starts_with(MAGIC) || word(length)? != xxh3_64(encoded.get(..length)?) {
        return None;
    }
    let ends = (HEADER_BYTES..length).step_by(8).map(word).collect::<Option<_>>()?;
    let after = length + 8;
    let id = encoded.get(after..after + 16).and_then(|id| id.try_into().ok()).map(u128::from_le_bytes);
    let is_whole = word(after + 16) == encoded.get(..after + 16).map(xxh3_64);
    Some(StoredCopy { format: half(8)?, sequence: word(16)?, ends, id: id.filter(|_| is_whole) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_write_keeps_previous_acked_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut marks = AckedEnds::create_file(dir.path(), 2, 7).unwrap();
        for end in 1..=4 {
            marks.ends = vec![end, 2 * end];
            let full = File::options().write(true).open("/dev/full").unwrap();
            let whole = std::mem::replace(&mut marks.file, full);
            for _ in 0..3 {
                let error = marks.write_ends().unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
            }
            marks.file = whole;
            let ends = AckedEnds::open_file(dir.path()).unwrap().ends;
            assert_eq!(ends, [end - 1, 2 * (end - 1)]);
            marks.write_ends().unwrap();
            assert_eq!(AckedEnds::open_file(dir.path()).unwrap().ends, marks.ends);
        }
    }
}
