//! The data directory: a lock for one process at a time, and the durable record of generations and
//! epochs.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::fault::{is_transient, read_small_file, remedy_for};
use crate::model::random_u64;

/// How long a dying process may still hold the lock of the directory.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(50);
/// Written alternately, so that a failed write leaves the previous record intact.
const RECORD_FILES: [&str; 2] = ["generation-0", "generation-1"];

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("{}: {source}: {}, or choose another data directory", path.display(), remedy_for(source, path))]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "the data directory {} is in use by another process: stop that process, or choose another data directory",
        .0.display()
    )]
    InUse(PathBuf),
    #[error(
        "the generation of the data directory {} is unknown, since neither {} nor {} can be read: restore one from a backup, or remove both to count from 1 again",
        .0.display(), RECORD_FILES[0], RECORD_FILES[1]
    )]
    Damaged(PathBuf),
}

impl DataDirError {
    /// Whether a later attempt may succeed, since each write uses a new file.
    pub fn is_passing(&self) -> bool {
        matches!(self, DataDirError::Io { source, .. } if is_transient(source))
    }
}

/// The durable record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct GenerationRecord {
    /// Number of writes.
    sequence: u64,
    generation: u64,
    /// Epochs below this one are or were in use.
    epochs: u64,
}

/// An open data directory. Dropping it releases the lock.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    generation: Arc<str>,
    epoch_floor: u64,
    record: Mutex<GenerationRecord>,
    _lock: File,
}

impl DataDir {
    /// Opens the directory, creates it if it is missing, and starts the next generation.
    pub fn open(path: &Path) -> Result<DataDir, DataDirError> {
        let at_path = |source| DataDirError::Io { path: path.into(), source };
        fs::create_dir_all(path).map_err(at_path)?;
        let lock = lock(path, LOCK_TIMEOUT)?;
        let before = read_record(path)?;
        let record =
            GenerationRecord { sequence: before.sequence + 1, generation: before.generation + 1, ..before };
        write_record(path, &record).map_err(at_path)?;
        let nonce = random_u64();
        Ok(DataDir {
            path: path.into(),
            generation: format!("{}-{nonce:016x}", record.generation).into(),
            epoch_floor: record.epochs,
            record: Mutex::new(record),
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of this start and a random number, as `17-9f2c41d06b3e8a55`.
    pub fn generation(&self) -> Arc<str> {
        self.generation.clone()
    }

    /// The lowest epoch that may be used. Earlier starts may have used lower ones.
    pub fn epoch_floor(&self) -> u64 {
        self.epoch_floor
    }

    /// Makes durable that epochs below `upto` may be in use. Call it before their use.
    pub fn reserve_epochs(&self, upto: u64) -> Result<(), DataDirError> {
        let mut record = self.record.lock();
        if upto <= record.epochs {
            return Ok(());
        }
        let next = GenerationRecord { sequence: record.sequence + 1, epochs: upto, ..*record };
        write_record(&self.path, &next)
            .map_err(|source| DataDirError::Io { path: self.path.clone(), source })?;
        *record = next;
        Ok(())
    }
}

/// Locks an existing data directory without starting a generation. No other process can use it
/// until the file is dropped.
pub fn lock_data_dir(path: &Path) -> Result<File, DataDirError> {
    lock(path, Duration::ZERO)
}

fn lock(path: &Path, wait: Duration) -> Result<File, DataDirError> {
    let lock_path = path.join("LOCK");
    let at_lock = |source| DataDirError::Io { path: lock_path.clone(), source };
    let options = File::options().read(true).write(true).create(true).truncate(false).open(&lock_path);
    let file = options.map_err(at_lock)?;
    let deadline = Instant::now() + wait;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(at_lock(source)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(DataDirError::InUse(path.into()));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_RETRY),
        }
    }
}

/// Reads the newest intact record. If the only file is damaged, the first write was interrupted,
/// and no epoch was used yet.
fn read_record(path: &Path) -> Result<GenerationRecord, DataDirError> {
    let mut newest: Option<GenerationRecord> = None;
    let mut unreadable = 0;
    for name in RECORD_FILES {
        match read_small_file(&path.join(name)) {
            Ok(bytes) => match parse_record(&bytes) {
                Some(record) if newest.is_none_or(|newest| newest.sequence < record.sequence) => {
                    newest = Some(record);
                }
                Some(_) => {}
                None => unreadable += 1,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(DataDirError::Io { path: path.join(name), source }),
        }
    }
    match newest {
        Some(record) => Ok(record),
        None if unreadable == RECORD_FILES.len() => Err(DataDirError::Damaged(path.into())),
        None => Ok(GenerationRecord::default()),
    }
}

/// Parses a line of JSON and its checksum.
fn parse_record(bytes: &[u8]) -> Option<GenerationRecord> {
    let (json, sum) = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.split_once('\n')?;
    if sum != format!("{:016x}", xxh3_64(json.as_bytes())) {
        return None;
    }
    serde_json::from_str(json).ok()
}

fn write_record(path: &Path, record: &GenerationRecord) -> io::Result<()> {
    let json = serde_json::to_string(record)?;
    let name = RECORD_FILES[(record.sequence % 2) as usize];
    let temporary = path.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    write!(file, "{json}\n{:016x}\n", xxh3_64(json.as_bytes()))?;
    file.sync_all()?;
    fs::rename(&temporary, path.join(name))?;
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_and_epoch_bounds_only_grow() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("data");
        let mut generations = Vec::new();
        for start in 1..=5u64 {
            let dir = DataDir::open(&path).unwrap();
            assert_eq!(dir.epoch_floor(), (start - 1) * 100);
            dir.reserve_epochs(start * 100).unwrap();
            dir.reserve_epochs(start * 100 - 50).unwrap();
            let generation = dir.generation();
            let (number, nonce) = generation.split_once('-').unwrap();
            assert_eq!((number.parse(), nonce.len()), (Ok(start), 16));
            generations.push(nonce.to_string());
        }
        generations.sort();
        generations.dedup();
        assert_eq!(generations.len(), 5);
    }

    #[test]
    fn generation_file_must_be_small_regular_file() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("data");
        drop(DataDir::open(&path).unwrap());
        let file = path.join(RECORD_FILES[0]);
        let refused = |what: &str| {
            let error = DataDir::open(&path).unwrap_err().to_string();
            assert!(error.contains(RECORD_FILES[0]) && error.contains(what), "{error}");
        };
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        refused("is longer than");
        // Opening it would block until there is a writer.
        fs::remove_file(&file).unwrap();
        mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        refused("it is a pipe, a device or a socket");
    }

    #[test]
    fn data_directory_lock_is_exclusive() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path()).unwrap();
        let refused = lock(root.path(), Duration::from_millis(60)).unwrap_err();
        assert!(refused.to_string().contains(&root.path().display().to_string()));
        let waiting = thread::spawn({
            let path = root.path().to_path_buf();
            move || DataDir::open(&path).map(drop)
        });
        drop(dir);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn torn_write_loses_only_that_write() {
        let root = tempfile::tempdir().unwrap();
        // The very first write was torn.
        fs::write(root.path().join(RECORD_FILES[1]), "{\"sequ").unwrap();
        assert_eq!(DataDir::open(root.path()).unwrap().epoch_floor(), 0);
        let dir = DataDir::open(root.path()).unwrap();
        dir.reserve_epochs(100).unwrap();
        dir.reserve_epochs(200).unwrap();
        drop(dir);
        let newest = GenerationRecord { sequence: 4, generation: 2, epochs: 200 };
        assert_eq!(read_record(root.path()).unwrap(), newest);
        let whole = fs::read(root.path().join(RECORD_FILES[0])).unwrap();
        for cut in 0..whole.len() {
            fs::write(root.path().join(RECORD_FILES[0]), &whole[..cut]).unwrap();
            assert_eq!(
                read_record(root.path()).unwrap(),
                GenerationRecord { sequence: 3, generation: 2, epochs: 100 }
            );
        }
        fs::write(root.path().join(RECORD_FILES[1]), "\0\0").unwrap();
        assert!(matches!(DataDir::open(root.path()), Err(DataDirError::Damaged(_))));
    }
}
