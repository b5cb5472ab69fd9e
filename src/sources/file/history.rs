//! The history of a log's files, saved in the data directory, so that a start finds the files by
//! their content.
//!
//! The format is lines of JSON with a checksum: one for each file, written before its first record
//! is delivered, and one for each file that has ended, written together with the line of the next
//! file:
//!
//! ```text
//! {"begin":0,"head":"<digest up to its first record>"} <xxh3>
//! {"begin":0,"records":1440,"digest":"<digest up to its last record>"} <xxh3>
//! ```

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::fault;
use crate::sources::SourceError;

/// A file that the log has been read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KnownFile {
    /// The position of its first record.
    pub begin: u64,
    /// The digest up to the end of its first record.
    pub head: u64,
    /// Its end, once another file follows.
    pub end: Option<FileEnd>,
    /// Whether it is in the saved history.
    pub is_persisted: bool,
}

/// The end of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileEnd {
    pub records: u64,
    /// The digest up to the end of its last record.
    pub digest: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum HistoryLine {
    Begin { begin: u64, head: String },
    End { begin: u64, records: u64, digest: String },
}

/// The known files of a log, in order.
#[derive(Debug, Default)]
pub(super) struct FileHistory {
    /// If `None`, nothing is saved.
    path: Option<PathBuf>,
    /// The length of the valid lines in bytes.
    valid_bytes: u64,
    files: Vec<KnownFile>,
}

impl FileHistory {
    /// Reads the saved history.
    pub(super) fn open(path: Option<PathBuf>) -> Result<FileHistory, SourceError> {
        let mut history = FileHistory { path, ..FileHistory::default() };
        let Some(path) = &history.path else { return Ok(history) };
        let bytes = match fault::read_small_file(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(history),
            Err(error) => return Err(SourceError::Fatal(io_error_text(path, &error))),
        };
        for (number, line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
            // A last line without a line end is a torn write, and nothing depended on it yet.
            let Some(line) = line.strip_suffix(b"\n") else { break };
            if parse_line(line).and_then(|line| apply_line(&mut history.files, line)).is_none() {
                return Err(SourceError::Fatal(format!(
                    "{} is damaged in line {number}: restore it from a backup, or begin anew with another data directory",
                    path.display()
                )));
            }
            history.valid_bytes += line.len() as u64 + 1;
        }
        Ok(history)
    }

    /// The file that contains the record before a position.
    pub(super) fn file_holding_record_before(&self, position: u64) -> Option<KnownFile> {
        self.files.iter().rev().find(|file| file.begin < position).copied()
    }

    /// Whether the file whose first record is at a position is in the saved history.
    pub(super) fn is_persisted_at(&self, position: u64) -> bool {
        self.file_beginning_at(position).is_some_and(|file| file.is_persisted)
    }

    /// The file whose first record is at a position.
    pub(super) fn file_beginning_at(&self, position: u64) -> Option<KnownFile> {
        self.files.iter().find(|file| file.begin == position).copied()
    }

    /// The first known file.
    pub(super) fn first_file(&self) -> Option<KnownFile> {
        self.files.first().copied()
    }

    /// Adds a file before its first record is delivered, and the end of the previous file. Both are
    /// durable when this returns.
    pub(super) fn begin_file(
        &mut self,
        ended: Option<(u64, FileEnd)>,
        begin: u64,
        head: u64,
    ) -> Result<(), SourceError> {
        let hex = |digest: u64| format!("{digest:016x}");
        let end = ended.map(|(begin, FileEnd { records, digest })| HistoryLine::End {
            begin,
            records,
            digest: hex(digest),
        });
        let lines: Vec<HistoryLine> =
            end.into_iter().chain([HistoryLine::Begin { begin, head: hex(head) }]).collect();
        if let Some(path) = &self.path {
            let written = append_lines(path, self.valid_bytes, &lines);
            // Transient: the operator may free disk space.
            self.valid_bytes =
                written.map_err(|error| SourceError::Transient(io_error_text(path, &error)))?;
        }
        for line in lines {
            apply_line(&mut self.files, line);
        }
        Ok(())
    }

    /// Adds a file before all others, as it was found.
    pub(super) fn prepend_file(&mut self, file: KnownFile) {
        self.files.insert(0, file);
    }
}

fn io_error_text(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}: free space, or make it readable and writable", path.display())
}

fn append_lines(path: &Path, whole: u64, lines: &[HistoryLine]) -> io::Result<u64> {
    let mut bytes = Vec::new();
    for line in lines {
        let json = serde_json::to_string(line)?;
        writeln!(bytes, "{json} {:016x}", xxh3_64(json.as_bytes()))?;
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = File::options().write(true).create(true).truncate(false).open(path)?;
    // Remove the remains of a failed write.
    file.set_len(whole)?;
    file.seek(SeekFrom::Start(whole))?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    if whole == 0 {
        File::open(folder)?.sync_all()?;
        folder.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())?;
    }
    Ok(whole + bytes.len() as u64)
}

fn parse_line(line: &[u8]) -> Option<HistoryLine> {
    let (json, sum) = std::str::from_utf8(line).ok()?.rsplit_once(' ')?;
    (sum == format!("{:016x}", xxh3_64(json.as_bytes()))).then(|| serde_json::from_str(json).ok())?
}

/// Applies a line; `None` if it is invalid.
fn apply_line(files: &mut Vec<KnownFile>, line: HistoryLine) -> Option<()> {
    let digest = |text: &str| u64::from_str_radix(text, 16).ok();
    match line {
        HistoryLine::Begin { begin, head } => {
            let file = KnownFile { begin, head: digest(&head)?, end: None, is_persisted: true };
            // Usually the last one, unless earlier files were not known and are read again.
            let at = files.partition_point(|file| file.begin < begin);
            match files.get_mut(at).filter(|existing| existing.begin == begin) {
                Some(existing) => *existing = KnownFile { end: existing.end, ..file },
                None => files.insert(at, file),
            }
        }
        HistoryLine::End { begin, records, digest: text } => {
            let file = files.iter_mut().find(|file| file.begin == begin && records > 0)?;
            file.end = Some(FileEnd { records, digest: digest(&text)? });
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_history_survives_restart_and_torn_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("files").join("a.jsonl");
        let open = || FileHistory::open(Some(path.clone()));
        let mut history = open().unwrap();
        history.begin_file(None, 0, 7).unwrap();
        history.begin_file(Some((0, FileEnd { records: 10, digest: u64::MAX })), 10, 8).unwrap();
        let end = Some(FileEnd { records: 10, digest: u64::MAX });
        let first = KnownFile { begin: 0, head: 7, end, is_persisted: true };
        let second = KnownFile { begin: 10, head: 8, end: None, is_persisted: true };
        for history in [history, open().unwrap()] {
            assert_eq!(
                (history.file_holding_record_before(10), history.file_holding_record_before(11)),
                (Some(first), Some(second))
            );
            assert_eq!((history.file_holding_record_before(0), history.first_file()), (None, Some(first)));
            assert_eq!((history.file_beginning_at(10), history.file_beginning_at(9)), (Some(second), None));
        }
        // A torn write loses only its own line.
        let whole = fs::read(&path).unwrap();
        let lines: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').map(|at| at + 1).collect();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut history = open().unwrap();
            assert_eq!(
                history.valid_bytes as usize,
                lines.iter().copied().filter(|end| *end <= cut).max().unwrap_or(0)
            );
            history.begin_file(None, 50, 9).unwrap();
            assert_eq!(open().unwrap().files, history.files);
        }
        for at in 0..lines[0] - 1 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            let line = open().unwrap_err().to_string();
            assert!(line.contains("damaged in line 1") && line.contains("restore it"), "{line}");
        }
    }
}
