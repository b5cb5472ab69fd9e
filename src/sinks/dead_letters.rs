//! Dead letters: the refused records of live sources, one JSON object a line, each once.
//!
//! A replay refuses the same records again, so a record at or before the last position that the
//! file has of its partition is not written a second time. Records that were retried and refused
//! again go to a file of their own.
//!
//! A full file is renamed to a numbered part, and all files together have a limit. At the limit,
//! the sources whose dead letters are written here wait, or the oldest file is removed.

mod client_quotas;
mod error;
mod file;
mod file_header;
mod folder;
mod reader;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use self::client_quotas::ClientQuotas;
pub use self::error::DlqFileError;
use self::file::DeadLetterFile;
pub use self::reader::DeadLetterReader;
#[cfg(test)]
use self::reader::read_dead_letters;
use crate::model::{EventTime, PartitionName, RawRecord, Refusal};

/// File names in a data directory: for records that are refused for the first time, and for retried
/// records.
pub const FILE_NAMES: [&str; 2] = ["dead-letters.jsonl", "dead-letters.2.jsonl"];

/// While the folder is full, its usage is checked this often.
const USAGE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Limits of the disk space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetterLimits {
    /// A file of this size is full.
    pub file_bytes: u64,
    /// The limit of all files together; at least 4 times `file_bytes`.
    pub limit_bytes: u64,
    pub when_full: DeadLetterFullPolicy,
    /// The most that one client may cause a day.
    pub client_bytes: u64,
}

impl Default for DeadLetterLimits {
    fn default() -> DeadLetterLimits {
        DeadLetterLimits {
            file_bytes: 64 << 20,
            limit_bytes: 1 << 30,
            when_full: DeadLetterFullPolicy::Wait,
            client_bytes: 128 << 20,
        }
    }
}

/// What happens at the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadLetterFullPolicy {
    /// The sources wait.
    Wait,
    /// The oldest file is removed.
    DropOldest,
}

/// The two files of dead letters.
#[derive(Debug)]
pub struct DeadLetterFiles {
    folder: PathBuf,
    limits: DeadLetterLimits,
    files: [DeadLetterFile; 2],
    /// The size of all files.
    used_bytes: u64,
    /// The last dead letter has reached the limit.
    is_full: bool,
    next_usage_check: Instant,
    client_quotas: ClientQuotas,
}

impl DeadLetterFiles {
    /// Opens or creates the files of a folder, and reads the last positions once. An incomplete
    /// last line is removed. `rules` describes what decides which records are refused: files of
    /// other rules are renamed and new ones are created, because a replay may now refuse other
    /// records.
    pub fn open(
        folder: &Path,
        rules: &str,
        limits: DeadLetterLimits,
    ) -> Result<DeadLetterFiles, DlqFileError> {
        let [first, again] = FILE_NAMES.map(|name| DeadLetterFile::open(&folder.join(name), rules));
        let at_folder = |source| DlqFileError::Io { path: folder.into(), source };
        Ok(DeadLetterFiles {
            folder: folder.into(),
            limits,
            files: [first?, again?],
            used_bytes: self::folder::used_bytes(folder).map_err(at_folder)?,
            is_full: false,
            next_usage_check: Instant::now(),
            client_quotas: ClientQuotas::new(limits.client_bytes),
        })
    }

    /// The file with a dead letter of the partition at or after position `end`, if there is one.
    pub fn file_beyond(&self, partition: &PartitionName, end: u64) -> Option<&Path> {
        let mut beyond = self
            .files
            .iter()
            .filter(|file| file.last_positions.get(partition).is_some_and(|last| *last >= end));
        beyond.next().map(|file| &*file.path)
    }

    /// Writes a dead letter. Returns false if its file has it already. It may stay in memory until
    /// the next [`DeadLetterFiles::flush_and_rotate`], and does so after an error.
    pub fn write_dead_letter(
        &mut self,
        partition: &PartitionName,
        position: u64,
        arrived_at: Option<EventTime>,
        refusal: &Refusal,
        raw: &RawRecord<'_>,
    ) -> Result<bool, DlqFileError> {
        let file = &mut self.files[usize::from(raw.retry.is_some())];
        let bytes = file.write_dead_letter(partition, position, arrived_at, refusal, raw)?;
        if bytes == 0 {
            return Ok(false);
        }
        self.used_bytes += bytes;
        // The dead letter that reaches the limit is still written, because a start does not know
        // about it before. It is the last one.
        if self.used_bytes >= self.limits.limit_bytes
            && self.limits.when_full == DeadLetterFullPolicy::Wait
            && !self.is_full
        {
            self.is_full = true;
            tracing::warn!(bytes = self.used_bytes, folder = %self.folder.display(), "{}", self.full_remedy());
        }
        if let Some(client) = raw.client {
            self.client_quotas.charge_client(client, bytes);
        }
        Ok(true)
    }

    /// Whether the limit is reached, so that no dead letter may be added and sources must wait.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// What to do if the files are full.
    pub fn full_remedy(&self) -> String {
        format!(
            "the dead letters in {} have reached dead_letters.limit_bytes, so their sources wait: move files dead-letters*.jsonl away that you no longer need, except dead-letters.jsonl and dead-letters.2.jsonl, or raise the limit, or set dead_letters.full = \"drop_oldest\"",
            self.folder.display()
        )
    }

    /// The quotas of the clients.
    pub fn client_quotas(&self) -> ClientQuotas {
        self.client_quotas.clone()
    }

    /// Flushes what is in memory, rotates full files, and enforces the limit. A caller that needs
    /// durability syncs the returned files, which blocks no other writer. Call this about once a
    /// second, and at the end.
    pub fn flush_and_rotate(&mut self) -> Result<Vec<(PathBuf, File)>, DlqFileError> {
        let flushed = self.flush_files();
        if flushed.is_err() {
            // The caller gets no files to sync after an error.
            self.files.iter_mut().for_each(|file| file.is_unsynced = true);
        }
        flushed
    }

    fn flush_files(&mut self) -> Result<Vec<(PathBuf, File)>, DlqFileError> {
        let mut flushed = Vec::new();
        let mut has_rotated = false;
        for file in &mut self.files {
            has_rotated |= file.rotate_if_full(self.limits.file_bytes)?;
            flushed.extend(file.flush_for_sync()?.map(|unsynced| (file.path.clone(), unsynced)));
        }
        let is_over = self.used_bytes >= self.limits.limit_bytes && Instant::now() >= self.next_usage_check;
        if has_rotated || is_over {
            let folder = self.folder.clone();
            self.enforce_limit().map_err(|source| DlqFileError::Io { path: folder, source })?;
            if self.used_bytes >= self.limits.limit_bytes {
                self.next_usage_check = Instant::now() + USAGE_CHECK_INTERVAL;
            }
        }
        Ok(flushed)
    }

    fn enforce_limit(&mut self) -> io::Result<()> {
        self.used_bytes = folder::used_bytes(&self.folder)?;
        while self.limits.when_full == DeadLetterFullPolicy::DropOldest
            && self.used_bytes >= self.limits.limit_bytes
        {
            let written: Vec<&Path> = self.files.iter().map(|file| &*file.path).collect();
            let Some(removed) = folder::remove_oldest_file(&self.folder, &written)? else { break };
            metrics::counter!("swelter_dead_letters_dropped_total").increment(removed.dead_letters);
            let (path, letters) = (removed.path.display(), removed.dead_letters);
            tracing::warn!(%path, letters, "the dead letters have reached dead_letters.limit_bytes: the oldest file was removed");
            self.used_bytes = folder::used_bytes(&self.folder)?;
        }
        if self.is_full && self.used_bytes < self.limits.limit_bytes {
            self.is_full = false;
            tracing::info!(
                "the dead letters are below dead_letters.limit_bytes again: their sources continue"
            );
        }
        Ok(())
    }
}
