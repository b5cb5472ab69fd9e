//! Dead letters read back from their files, also while a service writes it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::head::Head;
use super::{DeadLettersError, MAX_LINE_BYTES, folder};
use crate::fault;
use crate::model::letter::bytes_of;
use crate::model::{EventTime, Letter, RecordPlace, Retried};

/// Reads the letters of a file and of the full ones before it in their order, up to the last whole line; goes on from there when it is
/// asked again. Files that were removed meanwhile are passed over.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    /// The file that is being read; 0 before the first.
    file: u64,
    /// Behind the last line that was taken.
    offset: u64,
    line: u64,
}

/// All letters of a file; none where there is no file.
pub fn read(path: &Path) -> Result<Vec<Letter>, DeadLettersError> {
    let mut letters = Vec::new();
    Lines::new(path).take_while(|letter| {
        letters.push(letter);
        None
    })?;
    Ok(letters)
}

/// A file to read on.
struct Opened {
    path: PathBuf,
    number: u64,
    file: File,
    /// Nothing is added to it any more.
    is_full: bool,
}

impl Lines {
    pub fn new(path: &Path) -> Lines {
        Lines { path: path.into(), file: 0, offset: 0, line: 0 }
    }

    /// Gives the letters behind those that were taken to `take`. One that it gives back was not taken: it ends the reading, and
    /// comes again the next time.
    pub fn take_while(
        &mut self,
        mut take: impl FnMut(Letter) -> Option<Letter>,
    ) -> Result<(), DeadLettersError> {
        let mut from = self.file;
        loop {
            let opened = open(&self.path, from);
            let opened = opened.map_err(|source| DeadLettersError::Io { path: self.path.clone(), source })?;
            let Some(opened) = opened else { return Ok(()) };
            if opened.number != self.file {
                (self.file, self.offset, self.line) = (opened.number, 0, 0);
            }
            let is_at_end = self.read_on(&opened, &mut take)?;
            if !is_at_end || !opened.is_full {
                return Ok(());
            }
            from = self.file + 1;
        }
    }

    /// Reads one file; false where a letter was given back.
    fn read_on(
        &mut self,
        opened: &Opened,
        take: &mut dyn FnMut(Letter) -> Option<Letter>,
    ) -> Result<bool, DeadLettersError> {
        let failed = |source| DeadLettersError::Io { path: opened.path.clone(), source };
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
            let is_head = self.offset == 0 && Head::parse(&line).is_some();
            if !is_head {
                let letter = serde_json::from_slice::<Line>(&line).ok().and_then(Line::letter);
                let letter = letter.ok_or_else(|| DeadLettersError::Damaged {
                    path: opened.path.clone(),
                    line: self.line + 1,
                })?;
                if take(letter).is_some() {
                    return Ok(false);
                }
            }
            self.offset += line.len() as u64;
            self.line += 1;
        }
    }
}

/// Opens the file of a number, or the first after it that is there.
fn open(path: &Path, number: u64) -> io::Result<Option<Opened>> {
    loop {
        let parts = folder::parts(path)?;
        let newest = parts.last().map_or(0, |(number, _)| *number);
        if let Some((number, part)) = parts.into_iter().find(|(part, _)| *part >= number) {
            match fault::open_regular_file(&part) {
                // It was removed since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => return Ok(Some(Opened { path: part, number, file: opened?, is_full: true })),
            }
        }
        let file = match fault::open_regular_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut head = Vec::new();
        BufReader::new(&file).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut head)?;
        let found = Head::parse(&head).map_or(newest + 1, |head| head.number);
        // It has become full, and another one was begun, since the others were looked for.
        if folder::part(path, found).try_exists()?
            || found > newest + 1 && folder::part(path, found - 1).try_exists()?
        {
            continue;
        }
        return Ok(Some(Opened { path: path.into(), number: found, file, is_full: false }));
    }
}

#[derive(Deserialize)]
struct Line {
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

impl Line {
    fn letter(self) -> Option<Letter> {
        let time = |text: Option<String>| text.and_then(|text| text.parse::<EventTime>().ok());
        let at = time(self.arrived_at);
        let retried = self.origin.map(|origin| Retried {
            origin,
            attempt: self.attempt.unwrap_or(1),
            first_seen: time(self.first_seen_at),
        });
        Some(Letter {
            place: RecordPlace { source: self.source, partition: self.partition, position: self.position },
            at,
            reason: self.reason,
            detail: self.detail,
            first_seen: retried.as_ref().map_or(at, |retried| retried.first_seen),
            retried,
            key: None,
            value: Some(bytes_of(self.raw, self.raw_base64.as_deref())?),
        })
    }
}
