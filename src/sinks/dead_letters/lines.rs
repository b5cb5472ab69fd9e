//! Dead letters read back from their file, also while a service writes it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{DeadLettersError, MAX_LINE_BYTES};
use crate::model::letter::bytes_of;
use crate::model::{EventTime, Letter, RecordPlace, Retried};

/// Reads a file's letters in their order, up to the last whole line; goes on from there when it is asked again.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    /// Behind the last line that was taken.
    offset: u64,
    number: u64,
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

impl Lines {
    pub fn new(path: &Path) -> Lines {
        Lines { path: path.into(), offset: 0, number: 0 }
    }

    /// Gives the letters behind those that were taken to `take`. One that it gives back was not taken: it ends the reading, and
    /// comes again the next time.
    pub fn take_while(
        &mut self,
        mut take: impl FnMut(Letter) -> Option<Letter>,
    ) -> Result<(), DeadLettersError> {
        let failed = |source| DeadLettersError::Io { path: self.path.clone(), source };
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(failed)?,
        };
        file.seek(SeekFrom::Start(self.offset)).map_err(failed)?;
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line);
            read.map_err(failed)?;
            if !line.ends_with(b"\n") && line.len() < MAX_LINE_BYTES {
                return Ok(());
            }
            let letter = serde_json::from_slice::<Line>(&line).ok().and_then(Line::letter);
            let letter = letter.ok_or_else(|| DeadLettersError::Damaged {
                path: self.path.clone(),
                line: self.number + 1,
            })?;
            if take(letter).is_some() {
                return Ok(());
            }
            self.offset += line.len() as u64;
            self.number += 1;
        }
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
        let time = |text: Option<String>| text.and_then(|text| EventTime::parse(&text, None).ok());
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
