//! A file of dead letters that is being written, and the full files before it.
//!
//! A full file is renamed, and a new one starts with the last positions of all files before it. The
//! new file is complete and synced before it gets its name. If the process is killed between the
//! two renames, no file has the name: then the last full file gives the last positions.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::error::DlqFileError;
use super::file_header::{FileHeader, FileScan, WRITE_BUFFER_BYTES, scan_file};
use super::folder;
use crate::fault;
use crate::model::rules_version::{RULES_VERSION_KEY, RulesVersionMismatch, VersionedArtifact};
use crate::model::{DeadLetterLine, EventTime, PartitionName, RawRecord, RecordLocation, Refusal};

/// The dead letters of a partition are in the order of their positions.
#[derive(Debug)]
pub(super) struct DeadLetterFile {
    pub path: PathBuf,
    file: File,
    number: u64,
    buffer: Vec<u8>,
    pub is_unsynced: bool,
    /// The position of the last dead letter of each partition.
    pub last_positions: BTreeMap<PartitionName, u64>,
    /// The file's length up to the end of its last complete write.
    valid_bytes: u64,
    /// A write has failed, and may have left a partial line after `valid_bytes`.
    is_torn: bool,
}

impl DeadLetterFile {
    pub(super) fn open(path: &Path, rules: &str) -> Result<DeadLetterFile, DlqFileError> {
        let at_path = |source| DlqFileError::Io { path: path.into(), source };
        check_rules_version(path, rules)?;
        archive_other_rules(path, rules).map_err(at_path)?;
        let parts = folder::list_parts(path).map_err(at_path)?;
        let options = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(at_path)?;
        fault::check_regular_file(&file).map_err(at_path)?;
        let FileScan { file_number: number, last_positions: mut last, valid_bytes: whole } =
            scan_file(&file, path)?;
        // The process was killed while it started this file, or the user has moved the file away.
        if let (None, Some((_, part))) = (number, parts.last()) {
            let part_file = fault::open_regular_file(part)
                .map_err(|source| DlqFileError::Io { path: part.clone(), source })?;
            for (name, position) in scan_file(&part_file, part)?.last_positions {
                let last = last.entry(name).or_insert(position);
                *last = position.max(*last);
            }
        }
        file.set_len(whole).map_err(at_path)?;
        file.seek(SeekFrom::End(0)).map_err(at_path)?;
        let number = number.unwrap_or_else(|| parts.last().map_or(1, |(number, _)| number + 1));
        let path = path.to_path_buf();
        let (buffer, unsynced, is_torn) = (Vec::new(), true, false);
        let mut dead_letter_file = DeadLetterFile {
            path,
            file,
            number,
            buffer,
            is_unsynced: unsynced,
            last_positions: last,
            valid_bytes: whole,
            is_torn,
        };
        if dead_letter_file.valid_bytes == 0 && dead_letter_file.number > 1 {
            dead_letter_file
                .begin_file(dead_letter_file.number)
                .map_err(|error| dead_letter_file.io_error(error))?;
        }
        Ok(dead_letter_file)
    }

    /// Appends a dead letter. Returns its size in bytes; `None` if the file has it already.
    pub(super) fn write_dead_letter(
        &mut self,
        partition: &PartitionName,
        position: u64,
        arrived_at: Option<EventTime>,
        refusal: &Refusal,
        raw: &RawRecord<'_>,
    ) -> Result<u64, DlqFileError> {
        match self.last_positions.get_mut(partition) {
            Some(last) if position <= *last => return Ok(0),
            Some(last) => *last = position,
            None => drop(self.last_positions.insert(partition.clone(), position)),
        }
        let at = RecordLocation::Position { partition: partition.partition, position, arrived_at };
        let line = DeadLetterLine {
            source: &partition.source,
            at,
            refusal,
            retry: raw.retry,
            raw: raw.value.unwrap_or_default(),
        };
        let before = self.buffer.len();
        serde_json::to_writer(&mut self.buffer, &line).map_err(|error| self.io_error(error.into()))?;
        self.buffer.push(b'\n');
        self.is_unsynced = true;
        let bytes = (self.buffer.len() - before) as u64;
        if self.buffer.len() >= WRITE_BUFFER_BYTES {
            self.flush_buffer()?;
        }
        Ok(bytes)
    }

    pub(super) fn flush_for_sync(&mut self) -> Result<Option<File>, DlqFileError> {
        if !self.is_unsynced {
            return Ok(None);
        }
        self.flush_buffer()?;
        let file = self.file.try_clone().map_err(|error| self.io_error(error))?;
        self.is_unsynced = false;
        Ok(Some(file))
    }

    pub(super) fn flush_buffer(&mut self) -> Result<(), DlqFileError> {
        // Remove a partial line, because the next dead letter would be appended to it.
        let cut = |file: &mut File, whole| file.set_len(whole).and_then(|()| file.seek(SeekFrom::End(0)));
        if self.is_torn {
            cut(&mut self.file, self.valid_bytes).map_err(|error| self.io_error(error))?;
            self.is_torn = false;
        }
        if let Err(error) = self.file.write_all(&self.buffer) {
            self.is_torn = cut(&mut self.file, self.valid_bytes).is_err();
            return Err(self.io_error(error));
        }
        self.valid_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Starts another file if this one has at least `file_bytes`. Returns true if it did. Each step
    /// may fail and can be retried.
    pub(super) fn rotate_if_full(&mut self, file_bytes: u64) -> Result<bool, DlqFileError> {
        if self.valid_bytes < file_bytes {
            return Ok(false);
        }
        self.flush_buffer()?;
        let path = &self.path;
        let synced = self.file.sync_data();
        synced.map_err(|source| DlqFileError::Sync { path: path.clone(), source })?;
        // Skip the rename if it succeeded before and the next step failed.
        let renamed = self.path.try_exists().and_then(|is_there| match is_there {
            true => fs::rename(&self.path, folder::part_path(&self.path, self.number)),
            false => Ok(()),
        });
        renamed.and_then(|()| self.begin_file(self.number + 1)).map_err(|error| self.io_error(error))?;
        Ok(true)
    }

    /// Creates the file under its name, with only its header.
    fn begin_file(&mut self, number: u64) -> io::Result<()> {
        let head = FileHeader::encode_line(number, &self.last_positions)?;
        let temporary = self.path.with_extension("jsonl.new");
        let options = File::options().read(true).write(true).create(true).truncate(true).open(&temporary);
        let mut file = options?;
        file.write_all(&head)?;
        file.sync_all()?;
        let folder = File::open(self.path.parent().unwrap_or(Path::new(".")))?;
        folder.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        folder.sync_all()?;
        (self.file, self.number, self.valid_bytes) = (file, number, head.len() as u64);
        Ok(())
    }

    /// Replaces the file handle and returns the old one, for tests.
    #[cfg(test)]
    pub(super) fn replace_file(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file, file)
    }

    pub(super) fn io_error(&self, source: io::Error) -> DlqFileError {
        DlqFileError::Io { path: self.path.clone(), source }
    }
}

/// Refuses files that were written under another version of the rules: a record that it refused may
/// be accepted now.
fn check_rules_version(path: &Path, rules: &str) -> Result<(), DlqFileError> {
    let noted = path.with_extension("rules");
    let before = match fault::read_small_text(&noted) {
        Ok(before) => before,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(DlqFileError::Io { path: noted, source }),
    };
    let path = || VersionedArtifact::DeadLetters { path: path.display().to_string() };
    Ok(RulesVersionMismatch::check_version(
        rules_version(&before).as_ref(),
        rules_version(rules).as_ref(),
        path,
    )?)
}

/// The version at the beginning of `rules`. Version 1 wrote none.
fn rules_version(rules: &str) -> Option<String> {
    let first = rules.lines().next().unwrap_or_default();
    let written = first.strip_prefix(RULES_VERSION_KEY).and_then(|rest| rest.strip_prefix(" = "));
    Some(written.unwrap_or("1").to_owned())
}

/// Renames files that were written under other rules, and records the rules.
fn archive_other_rules(path: &Path, rules: &str) -> io::Result<()> {
    let noted = path.with_extension("rules");
    let before = match fault::read_small_text(&noted) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if before.as_deref() == Some(rules) {
        return Ok(());
    }
    // Without recorded rules, a file of this name was not written by swelter.
    let (parts, is_there) = (folder::list_parts(path)?, path.try_exists()?);
    if is_there || !parts.is_empty() {
        let aside = (1..).map(|number: u32| path.with_extension(format!("old-{number}.jsonl")));
        let mut free = aside
            .filter(|aside| !aside.exists() && folder::list_parts(aside).is_ok_and(|parts| parts.is_empty()));
        let aside = free.next().unwrap_or_default();
        for (number, part) in parts {
            fs::rename(part, folder::part_path(&aside, number))?;
        }
        if is_there {
            fs::rename(path, &aside)?;
        }
        tracing::info!(kept = %aside.display(), "a new file of dead letters begins, and the earlier files are set aside: settings that decide which readings are refused have changed");
    }
    write_rules_file(&noted, rules)
}

fn write_rules_file(noted: &Path, rules: &str) -> io::Result<()> {
    let temporary = noted.with_extension("rules.new");
    let mut file = File::create(&temporary)?;
    file.write_all(rules.as_bytes())?;
    file.sync_data()?;
    fs::rename(&temporary, noted)
}
