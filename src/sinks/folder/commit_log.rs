//! The commit log of a shard: a line for each durable transaction, written after its rows.
//!
//! A line is the record as JSON, a tab, and the checksum of the JSON in 16 hex digits. An
//! incomplete line was torn when its process ended: its transaction is not durable, and its rows
//! are cut off from the segment. The files of rows hold rows only, so any tool can read them. A
//! transaction without rows touches none of them.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::error::FolderError;
use super::layout::sync_folder;
use crate::fault::open_regular_file;
use crate::sinks::progress::ShardProgress;

/// A log that exceeds this size is replaced by one with only its last record.
const MAX_LOG_BYTES: u64 = 1024 * 1024;

/// A durable transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CommitRecord {
    /// The generation that wrote it, as `17-9f2c41d06b3e8a55`.
    pub generation: String,
    pub progress: ShardProgress,
    /// The open segment after this transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<OpenSegment>,
}

/// A segment that is not finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OpenSegment {
    pub name: String,
    /// Its durable length; the bytes after it belong to no transaction.
    pub bytes: u64,
    pub rows: u64,
}

/// The content of a commit log.
#[derive(Debug, Default, PartialEq)]
pub(super) struct CommitLogContents {
    /// The last transaction; `None` if the shard has written nothing yet.
    pub last: Option<CommitRecord>,
    /// The length of its complete lines.
    pub whole: u64,
}

/// Reads a commit log, while its writer may be appending.
pub(super) fn read_commit_log(path: &Path) -> Result<CommitLogContents, FolderError> {
    let mut bytes = Vec::new();
    let mut file = open_regular_file(path).map_err(FolderError::at(path))?;
    io::Read::read_to_end(&mut file, &mut bytes).map_err(FolderError::at(path))?;
    let damaged = |problem: String| FolderError::Damaged { path: path.to_path_buf(), problem };
    let mut contents = CommitLogContents::default();
    let mut torn: Option<usize> = None;
    for (number, line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
        match (whole_line(line), torn) {
            (Some(json), None) => {
                let record = serde_json::from_str(json);
                contents.last = record.map_err(|error| damaged(format!("line {number}: {error}")))?;
                contents.whole += line.len() as u64;
            }
            (Some(_), Some(torn)) => {
                return Err(damaged(format!("line {torn} is damaged, and more lines follow it")));
            }
            (None, _) => torn = torn.or(Some(number)),
        }
    }
    Ok(contents)
}

/// The JSON of a line, if the line is complete and its checksum matches.
fn whole_line(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (json, sum) = line.rsplit_once('\t')?;
    (sum == checksum(json)).then_some(json)
}

fn encode(record: &CommitRecord) -> io::Result<Vec<u8>> {
    let json = serde_json::to_string(record)?;
    let sum = checksum(&json);
    Ok(format!("{json}\t{sum}\n").into_bytes())
}

fn checksum(json: &str) -> String {
    format!("{:016x}", xxh3_64(json.as_bytes()))
}

/// The commit log of a shard that this process writes.
#[derive(Debug)]
pub(super) struct CommitLog {
    path: PathBuf,
    file: File,
    /// The durable length.
    durable: u64,
    max_bytes: u64,
}

impl CommitLog {
    /// Creates a log with one record or none, and syncs the file, but not its folder.
    pub fn create(path: &Path, first: Option<&CommitRecord>) -> Result<CommitLog, FolderError> {
        let at_path = FolderError::at(path);
        let line = first.map(encode).transpose().map_err(&at_path)?.unwrap_or_default();
        let mut file =
            File::options().write(true).create(true).truncate(true).open(path).map_err(&at_path)?;
        file.write_all(&line).map_err(&at_path)?;
        file.sync_all().map_err(&at_path)?;
        Ok(CommitLog { path: path.to_path_buf(), file, durable: line.len() as u64, max_bytes: MAX_LOG_BYTES })
    }

    /// The log after its folder was renamed.
    pub fn moved_to(self, path: PathBuf) -> CommitLog {
        CommitLog { path, ..self }
    }

    /// Makes a transaction durable. After an error, [`cut_back`](CommitLog::cut_back) removes it.
    pub fn append(&mut self, record: &CommitRecord) -> Result<(), FolderError> {
        let line = encode(record).map_err(FolderError::at(&self.path))?;
        if self.durable > self.max_bytes {
            return self.begin_anew(record);
        }
        self.file.write_all(&line).map_err(FolderError::at(&self.path))?;
        self.file.sync_data().map_err(FolderError::sync_at(&self.path))?;
        self.durable += line.len() as u64;
        Ok(())
    }

    /// Replaces the log by one that begins with this record.
    fn begin_anew(&mut self, record: &CommitRecord) -> Result<(), FolderError> {
        let mut path = self.path.clone().into_os_string();
        path.push(".new");
        let path = PathBuf::from(path);
        let log = CommitLog::create(&path, Some(record))?;
        fs::rename(&path, &self.path).map_err(FolderError::at(&path))?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        sync_folder(folder).map_err(FolderError::sync_at(folder))?;
        (self.file, self.durable) = (log.file, log.durable);
        Ok(())
    }

    /// Truncates the log to its durable length after a failed transaction.
    pub fn cut_back(&mut self) -> Result<(), FolderError> {
        let at_path = FolderError::at(&self.path);
        self.file.set_len(self.durable).map_err(&at_path)?;
        self.file.seek(SeekFrom::Start(self.durable)).map(drop).map_err(&at_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: u64) -> CommitRecord {
        let positions = [("log".into(), [(0, epoch * 10)].into())].into();
        let progress = ShardProgress { epoch, positions, ..ShardProgress::default() };
        let segment = Some(OpenSegment { name: "rows-00-1.jsonl".into(), bytes: epoch, rows: 1 });
        CommitRecord { generation: "7-a".into(), progress, segment }
    }

    #[test]
    fn commit_record_bytes_do_not_change() {
        let line = String::from_utf8(encode(&record(3)).unwrap()).unwrap();
        assert_eq!(
            line,
            "{\"generation\":\"7-a\",\"progress\":{\"epoch\":3,\"positions\":{\"log\":{\"0\":30}}},\
             \"segment\":{\"name\":\"rows-00-1.jsonl\",\"bytes\":3,\"rows\":1}}\te63b3e2f226c5e4f\n"
        );
    }

    #[test]
    fn torn_line_loses_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("commits.log");
        let mut log = CommitLog::create(&path, None).unwrap();
        assert_eq!(read_commit_log(&path).unwrap(), CommitLogContents::default());
        log.append(&record(1)).unwrap();
        let first = fs::metadata(&path).unwrap().len();
        log.append(&record(2)).unwrap();
        let bytes = fs::read(&path).unwrap();
        for cut in first as usize..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let contents = read_commit_log(&path).unwrap();
            assert_eq!(contents, CommitLogContents { last: Some(record(1)), whole: first }, "{cut}");
        }
    }

    #[test]
    fn damage_before_whole_lines_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("commits.log");
        let mut log = CommitLog::create(&path, Some(&record(1))).unwrap();
        log.append(&record(2)).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[5] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let refused = read_commit_log(&path).unwrap_err().to_string();
        assert!(refused.contains("line 1 is damaged"), "{refused}");
    }

    #[test]
    fn long_log_begins_anew_with_its_last_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("commits.log");
        let mut log = CommitLog::create(&path, None).unwrap();
        log.max_bytes = 1_000;
        for epoch in 1..100 {
            log.append(&record(epoch)).unwrap();
            assert!(fs::metadata(&path).unwrap().len() < 1_400);
            assert_eq!(read_commit_log(&path).unwrap().last, Some(record(epoch)));
        }
    }
}
