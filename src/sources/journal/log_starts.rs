//! The first position of each partition, which moves on as checkpoints cover older records.
//!
//! A journal from which nothing was removed has no such file. The file is replaced atomically
//! before blocks are removed, so the blocks on disk reach back to these positions or further.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};
use xxhash_rust::xxh3::xxh3_64;

use super::error::JournalError;
use crate::fault;

const FILE_NAME: &str = "begins";
const FORMAT: u32 = 1;

pub(super) struct LogStarts {
    dir: PathBuf,
    /// By partition.
    positions: Mutex<Vec<u64>>,
}

impl LogStarts {
    pub(super) fn open(dir: &Path, partitions: u32) -> Result<LogStarts, JournalError> {
        let path = dir.join(FILE_NAME);
        let positions = match fault::read_small_file(&path) {
            Ok(bytes) => parse_file(dir, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => vec![0; partitions as usize],
            Err(source) => return Err(JournalError::Io { path, source }),
        };
        if positions.len() != partitions as usize {
            return Err(JournalError::damaged_error(dir, "its file \"begins\" lists other partitions"));
        }
        Ok(LogStarts { dir: dir.into(), positions: Mutex::new(positions) })
    }

    pub(super) fn log_start(&self, partition: u32) -> u64 {
        self.lock().get(partition as usize).copied().unwrap_or(0)
    }

    pub(super) fn positions(&self) -> Vec<u64> {
        self.lock().clone()
    }

    /// Advances the first positions of partitions. They are durable when this returns.
    pub(super) fn advance(&self, positions: &[(u32, u64)]) -> io::Result<()> {
        let mut starts = self.lock();
        let mut raised = starts.clone();
        for (partition, begin) in positions {
            if let Some(position) = raised.get_mut(*partition as usize) {
                *position = (*begin).max(*position);
            }
        }
        if raised != *starts {
            write_file(&self.dir, &raised)?;
            *starts = raised;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u64>> {
        self.positions.lock()
    }
}

/// Writes format, positions and checksum.
fn write_file(dir: &Path, positions: &[u64]) -> io::Result<()> {
    let mut bytes = FORMAT.to_le_bytes().to_vec();
    positions.iter().for_each(|position| bytes.extend_from_slice(&position.to_le_bytes()));
    let sum = xxh3_64(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    let temporary = dir.join("begins.new");
    let mut file = File::create(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(FILE_NAME))?;
    File::open(dir)?.sync_all()
}

fn parse_file(dir: &Path, bytes: &[u8]) -> Result<Vec<u64>, JournalError> {
    let damaged = || JournalError::damaged_error(dir, "its file \"begins\" cannot be read");
    let (content, sum) = bytes.split_last_chunk::<8>().ok_or_else(damaged)?;
    if xxh3_64(content) != u64::from_le_bytes(*sum) {
        return Err(damaged());
    }
    let (format, positions) = content.split_first_chunk::<4>().ok_or_else(damaged)?;
    let format_number = u32::from_le_bytes(*format);
    if format_number != FORMAT {
        return Err(JournalError::Format { dir: dir.into(), found: format_number, known: FORMAT });
    }
    let (positions, rest) = positions.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(damaged());
    }
    Ok(positions.iter().map(|position| u64::from_le_bytes(*position)).collect())
}
