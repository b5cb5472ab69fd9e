//! Files and standard input as partitions of a log, and followed files as a live source.
//!
//! A followed log is a file that may be rotated: reading continues in the file that is created
//! under its name, and a position is the number of a record since the first file. Files are
//! identified by their content. A position is saved with the digest of its file up to there, which
//! a start compares, and the data directory has the list of known files (`history`). So the name
//! and path of a file do not matter, and a rewritten file is detected.

mod file_log;
mod growing_file;
mod history;
mod input;
mod log_files;
mod partition;
mod reader;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::thread::Thread;

use parking_lot::Mutex;

use self::file_log::FileLog;
use self::history::FileHistory;
pub use self::input::InputFile;
use self::partition::FilePartition;
use self::reader::ReadPlan;
use super::{Partition, Source, SourceError};
use crate::codec::{Compression, Format, ReadOptions};
use crate::model::LogPosition;

/// A source of files, one partition each.
pub struct FileSource {
    name: Arc<str>,
    logs: Vec<Arc<Mutex<FileLog>>>,
}

impl FileSource {
    /// Reads each file once, or follows it as it grows. A followed file must not be compressed, and
    /// its records are whole lines. The list of known files is saved in `folder`, if it is set.
    ///
    /// # Errors
    ///
    /// If an input cannot be read in this way; the text says what to do.
    pub fn new(
        name: &str,
        inputs: Vec<InputFile>,
        follow: bool,
        options: impl Into<ReadOptions>,
        folder: Option<&Path>,
    ) -> Result<FileSource, SourceError> {
        let options: ReadOptions = options.into();
        let mut logs = Vec::new();
        for (number, input) in inputs.into_iter().enumerate() {
            let (called, InputFile { path, format, compression }) = (input.name(), input);
            let path = path.ok_or_else(|| {
                let line =
                    "standard input cannot be read again after a restart: write it to a file, or post its readings";
                SourceError::Fatal(line.into())
            })?;
            if format == Format::Parquet {
                let line = format!(
                    "{called} is Parquet, which only `swelter batch` reads: convert it to CSV or JSON lines"
                );
                return Err(SourceError::Fatal(line));
            }
            if follow && compression != Compression::None {
                let line = format!(
                    "{called} cannot be followed, because only uncompressed CSV and JSON lines can: set follow = false"
                );
                return Err(SourceError::Fatal(line));
            }
            let history_path = folder.map(|folder| match number {
                0 => folder.join(format!("{name}.jsonl")),
                number => folder.join(format!("{name}.{number}.jsonl")),
            });
            let options = options.for_file(Some(&path));
            let plan = ReadPlan { format, options, follow };
            logs.push(Arc::new(Mutex::new(FileLog::new(
                path,
                compression,
                plan,
                FileHistory::open(history_path)?,
            ))));
        }
        Ok(FileSource { name: name.into(), logs })
    }

    fn file_log(&self, partition: u32) -> Result<&Arc<Mutex<FileLog>>, SourceError> {
        let log = self.logs.get(partition as usize);
        log.ok_or_else(|| SourceError::Fatal(format!("{} has no partition {partition}", self.name)))
    }
}

impl Source for FileSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn partitions(&self) -> u32 {
        self.logs.len() as u32
    }

    /// Reads the file up to the position, and compares all of it.
    fn check_position(&self, partition: u32, at: LogPosition) -> Result<(), SourceError> {
        self.file_log(partition)?.lock().check_position(at)
    }

    fn open_partition(
        &self,
        partition: u32,
        position: u64,
        _: Thread,
    ) -> Result<Box<dyn Partition>, SourceError> {
        Ok(Box::new(FilePartition::new(Arc::clone(self.file_log(partition)?), position)))
    }
}
