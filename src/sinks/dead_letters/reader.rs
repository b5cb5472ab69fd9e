//! Reads dead letters from their files, also while a service writes them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::DlqFileError;
use super::file_header::{FileHeader, MAX_LINE_BYTES};
use super::folder;
use crate::fault;
use crate::model::dead_letter::decode_text_or_base64;
use crate::model::{DeadLetter, EventTime, RecordAddress, RetryInfo};

/// Reads the dead letters of a file, after those of the full files before it, up to the last
/// complete line. A further call continues from there. Files that were removed meanwhile are
/// skipped.
#[derive(Debug)]
pub struct DeadLetterReader {
    path: PathBuf,
    /// The number of the file that is being read; 0 before the first.
    file: u64,
    /// The offset after the last line that was read.
    offset: u64,
    line: u64,
}

/// All dead letters of a file; empty if the file does not exist.
#[cfg(test)]
pub fn read_dead_letters(path: &Path) -> Result<Vec<DeadLetter>, DlqFileError> {
    let mut dead_letters = Vec::new();
    DeadLetterReader::new(path).read_while(|letter| {
        dead_letters.push(letter);
        None
    })?;
    Ok(dead_letters)
}

/// A file to continue reading.
struct OpenedFile {
    path: PathBuf,
    number: u64,
    file: File,
    /// The file is full, so nothing more is appended to it.
    is_full: bool,
}

impl DeadLetterReader {
    pub fn new(path: &Path) -> DeadLetterReader {
        DeadLetterReader { path: path.into(), file: 0, offset: 0, line: 0 }
    }

    /// Passes the next dead letters to `take`. If `take` returns one, it was not consumed: reading
    /// ends, and the next call starts with it.
    pub fn read_while(
        &mut self,
        mut handle: impl FnMut(DeadLetter) -> Option<DeadLetter>,
    ) -> Result<(), DlqFileError> {
        let mut from = self.file;
        loop {
            let opened = open_file(&self.path, from);
            let opened = opened.map_err(|source| DlqFileError::Io { path: self.path.clone(), source })?;
            let Some(opened) = opened else { return Ok(()) };
            if opened.number != self.file {
                (self.file, self.offset, self.line) = (opened.number, 0, 0);
            }
            let is_at_end = self.read_opened_file(&opened, &mut handle)?;
            if !is_at_end || !opened.is_full {
                return Ok(());
            }
            from = self.file + 1;
        }
    }

    /// Reads one file. Returns false if `take` did not consume a dead letter.
    fn read_opened_file(
        &mut self,
        opened: &OpenedFile,
        handle: &mut dyn FnMut(DeadLetter) -> Option<DeadLetter>,
    ) -> Result<bool, DlqFileError> {
        let failed = |source| DlqFileError::Io { path: opened.path.clone(), source };
        let mut file = &opened.file;
        file.seek(SeekFrom::Start(self.offset)).map_err(failed)?;
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line);
            read.map_err(failed)?;
            if !line.ends_with(b"\n") && line.len() < MAX_LINE_BYTES {
                return Ok(true);
            }
            let is_head = self.offset == 0 && FileHeader::parse_line(&line).is_some();
            if !is_head {
                let dead_letter = serde_json::from_slice::<DeadLetterFileLine>(&line)
                    .ok()
                    .and_then(DeadLetterFileLine::into_dead_letter);
                let dead_letter = dead_letter.ok_or_else(|| DlqFileError::Damaged {
                    path: opened.path.clone(),
                    line: self.line + 1,
                })?;
                if handle(dead_letter).is_some() {
                    return Ok(false);
                }
            }
            self.offset += line.len() as u64;
            self.line += 1;
        }
    }
}

/// Opens the file of this number, or the next one that exists.
fn open_file(path: &Path, number: u64) -> io::Result<Option<OpenedFile>> {
    loop {
        let parts = folder::list_parts(path)?;
        let newest = parts.last().map_or(0, |(number, _)| *number);
        if let Some((number, part)) = parts.into_iter().find(|(part, _)| *part >= number) {
            match fault::open_regular_file(&part) {
                // It was removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => return Ok(Some(OpenedFile { path: part, number, file: opened?, is_full: true })),
            }
        }
        let file = match fault::open_regular_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut head = Vec::new();
        BufReader::new(&file).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut head)?;
        let file_number = FileHeader::parse_line(&head).map_or(newest + 1, |head| head.number);
        // The file became full, and another one was started, after the full files were listed.
        if folder::part_path(path, file_number).try_exists()?
            || file_number > newest + 1 && folder::part_path(path, file_number - 1).try_exists()?
        {
            continue;
        }
        return Ok(Some(OpenedFile { path: path.into(), number: file_number, file, is_full: false }));
    }
}

#[derive(Deserialize)]
struct DeadLetterFileLine {
    source: Box<str>,
    partition: u32,
    position: u64,
    arrived_at: Option<String>,
    reason: String,
    detail: String,
    origin: Option<Box<str>>,
    attempt: Option<u32>,
    first_seen_at: Option<String>,
    raw: Option<String>,
    raw_base64: Option<String>,
}

impl DeadLetterFileLine {
    fn into_dead_letter(self) -> Option<DeadLetter> {
        let time = |text: Option<String>| text.and_then(|text| text.parse::<EventTime>().ok());
        let at = time(self.arrived_at);
        let retried = self.origin.map(|origin| RetryInfo {
            origin,
            attempt: self.attempt.unwrap_or(1),
            first_seen: time(self.first_seen_at),
        });
        Some(DeadLetter {
            address: RecordAddress {
                source: self.source,
                partition: self.partition,
                position: self.position,
            },
            arrived_at: at,
            reason: self.reason,
            detail: self.detail,
            first_seen: retried.as_ref().map_or(at, |retried| retried.first_seen),
            retry: retried,
            key: None,
            value: Some(decode_text_or_base64(self.raw, self.raw_base64.as_deref())?),
        })
    }
}
