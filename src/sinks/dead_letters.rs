//! Refused records of live sources, one JSON object a line, each once: a replay refuses them again, and what the file has of
//! a partition up to its last position is not written a second time. What was sent again and is refused again has a file of
//! its own.

mod lines;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use self::lines::{Lines, read};
use crate::codec::MAX_RECORD_BYTES;
use crate::model::{DeadLetter, EventTime, PartitionName, Raw, RecordAt, Refusal};

/// In a data directory: of records that are refused for the first time, and of those that were sent again.
pub const FILES: [&str; 2] = ["dead-letters.jsonl", "dead-letters.2.jsonl"];

const BUFFER_BYTES: usize = 64 * 1024;
/// Longer than any line: each byte of a record takes at most 6, and a detail is short.
const MAX_LINE_BYTES: usize = 8 * MAX_RECORD_BYTES;

#[derive(Debug, thiserror::Error)]
pub enum DeadLettersError {
    #[error("{}: {source}: make room, or make it readable and writable", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: line {line} is not a dead letter: repair the file, or move it away (those that the log still has are then written \
         again)",
        path.display()
    )]
    Damaged { path: PathBuf, line: u64 },
}

/// The two files of dead letters.
#[derive(Debug)]
pub struct DeadLetters([LetterFile; 2]);

impl DeadLetters {
    /// Opens the files of a folder, or begins them, and reads once how far they go. A last line that is not whole is cut off.
    /// `rules` are what decides which records are refused, in words: a file of other rules is kept under another name, and a
    /// new one begun, as a replay may then refuse what it did not before.
    pub fn open(folder: &Path, rules: &str) -> Result<DeadLetters, DeadLettersError> {
        let [first, again] = FILES.map(|name| LetterFile::open(&folder.join(name), rules));
        Ok(DeadLetters([first?, again?]))
    }

    /// The file with a letter of the partition at `end` or behind it, where there is one.
    pub fn beyond(&self, partition: &PartitionName, end: u64) -> Option<&Path> {
        let mut beyond =
            self.0.iter().filter(|file| file.last.get(partition).is_some_and(|last| *last >= end));
        beyond.next().map(|file| &*file.path)
    }

    /// Writes a letter; false where its file has it already. It may stay in memory until the next [`DeadLetters::flushed`].
    pub fn write(
        &mut self,
        partition: &PartitionName,
        position: u64,
        arrived_at: Option<EventTime>,
        refusal: &Refusal,
        raw: &Raw<'_>,
    ) -> Result<bool, DeadLettersError> {
        self.0[usize::from(raw.retried.is_some())].write(partition, position, arrived_at, refusal, raw)
    }

    /// Writes out what is in memory; whoever wants it durable syncs the files that this gives, without holding anybody up. To
    /// be called about once a second, and at the end.
    pub fn flushed(&mut self) -> Result<Vec<(PathBuf, File)>, DeadLettersError> {
        let mut flushed = Vec::new();
        for file in &mut self.0 {
            flushed.extend(file.flushed()?.map(|unsynced| (file.path.clone(), unsynced)));
        }
        Ok(flushed)
    }
}

/// A file of dead letters. A partition's letters come in the order of their positions.
#[derive(Debug)]
struct LetterFile {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    unsynced: bool,
    /// Of the last letter of each partition.
    last: BTreeMap<PartitionName, u64>,
    /// The file's length up to its last whole write.
    whole: u64,
}

impl LetterFile {
    fn open(path: &Path, rules: &str) -> Result<LetterFile, DeadLettersError> {
        let at_path = |source| DeadLettersError::Io { path: path.into(), source };
        set_aside(path, rules).map_err(at_path)?;
        let options = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(at_path)?;
        let (last, whole) = scan(&file, path)?;
        file.set_len(whole).map_err(at_path)?;
        file.seek(SeekFrom::End(0)).map_err(at_path)?;
        Ok(LetterFile { path: path.into(), file, buffer: Vec::new(), unsynced: true, last, whole })
    }

    fn write(
        &mut self,
        partition: &PartitionName,
        position: u64,
        arrived_at: Option<EventTime>,
        refusal: &Refusal,
        raw: &Raw<'_>,
    ) -> Result<bool, DeadLettersError> {
        match self.last.get_mut(partition) {
            Some(last) if position <= *last => return Ok(false),
            Some(last) => *last = position,
            None => drop(self.last.insert(partition.clone(), position)),
        }
        let at = RecordAt::Position { partition: partition.partition, position, arrived_at };
        let letter = DeadLetter {
            source: &partition.source,
            at,
            refusal,
            retried: raw.retried,
            raw: raw.value.unwrap_or_default(),
        };
        serde_json::to_writer(&mut self.buffer, &letter).map_err(|error| self.failed(error.into()))?;
        self.buffer.push(b'\n');
        self.unsynced = true;
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(true)
    }

    fn flushed(&mut self) -> Result<Option<File>, DeadLettersError> {
        if !self.unsynced {
            return Ok(None);
        }
        self.flush()?;
        self.unsynced = false;
        self.file.try_clone().map(Some).map_err(|error| self.failed(error))
    }

    fn flush(&mut self) -> Result<(), DeadLettersError> {
        if let Err(error) = self.file.write_all(&self.buffer) {
            // No part of a line may stay: what comes later would stand behind it.
            let _ = self.file.set_len(self.whole).and_then(|()| self.file.seek(SeekFrom::End(0)));
            return Err(self.failed(error));
        }
        self.whole += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn failed(&self, source: io::Error) -> DeadLettersError {
        DeadLettersError::Io { path: self.path.clone(), source }
    }
}

/// Keeps a file that was written by other rules under another name, and notes the rules.
fn set_aside(path: &Path, rules: &str) -> io::Result<()> {
    let noted = path.with_extension("rules");
    let before = match fs::read_to_string(&noted) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if before.as_deref() == Some(rules) {
        return Ok(());
    }
    // A file without rules is none of ours under this name.
    if path.try_exists()? {
        let name = |number: &u32| path.with_extension(format!("old-{number}.jsonl"));
        let number = (1..).find(|number| !name(number).exists()).unwrap_or_default();
        let aside = name(&number);
        fs::rename(path, &aside)?;
        tracing::info!(kept = %aside.display(), "dead letters begin anew: what decides about them has changed");
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(rules.as_bytes())?;
    file.as_file().sync_data()?;
    file.persist(&noted).map(drop).map_err(|error| error.error)
}

/// What a line says of its record's place.
#[derive(Deserialize)]
struct Place {
    #[serde(flatten)]
    name: PartitionName,
    position: u64,
}

/// The last position of each partition, and how many bytes are whole lines.
fn scan(file: &File, path: &Path) -> Result<(BTreeMap<PartitionName, u64>, u64), DeadLettersError> {
    let mut last = BTreeMap::new();
    let (mut whole, mut number) = (0, 0);
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line);
        read.map_err(|source| DeadLettersError::Io { path: path.into(), source })?;
        if line.is_empty() {
            return Ok((last, whole));
        }
        number += 1;
        match serde_json::from_slice::<Place>(&line) {
            Ok(Place { name, position }) if line.ends_with(b"\n") => {
                let last = last.entry(name).or_insert(position);
                *last = position.max(*last);
                whole += line.len() as u64;
            }
            _ if !line.ends_with(b"\n") && reader.fill_buf().is_ok_and(<[u8]>::is_empty) => {
                return Ok((last, whole));
            }
            _ => return Err(DeadLettersError::Damaged { path: path.into(), line: number }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Reason, Retried};
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    fn write(letters: &mut LetterFile, partition: u32, position: u64) -> bool {
        let name = PartitionName { source: "journal".into(), partition };
        let refusal = Refusal::new(Reason::NotDecodable, "no JSON");
        let raw = if position.is_multiple_of(2) { &b"{\n\"x\""[..] } else { b"\xFF" };
        letters.write(&name, position, EventTime::from_millis(7), &refusal, &Raw::value(raw)).unwrap()
    }

    #[test]
    fn letters_say_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead-letters.jsonl");
        let mut letters = LetterFile::open(&path, "rules").unwrap();
        assert!(write(&mut letters, 3, 10) && write(&mut letters, 3, 11));
        letters.flushed().unwrap();
        let expected = concat!(
            r#"{"source":"journal","partition":3,"position":10,"arrived_at":"1970-01-01T00:00:00.007Z","#,
            r#""reason":"not_decodable","detail":"no JSON","raw":"{\n\"x\""}"#,
            "\n",
            r#"{"source":"journal","partition":3,"position":11,"arrived_at":"1970-01-01T00:00:00.007Z","#,
            r#""reason":"not_decodable","detail":"no JSON","raw_base64":"/w=="}"#,
            "\n"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn what_comes_again_has_its_own_file_and_says_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let name = PartitionName { source: "journal".into(), partition: 3 };
        let refusal = Refusal::new(Reason::BadTime, "no time");
        let first_seen = EventTime::from_millis(5);
        let retried = Retried { origin: "journal/3/10".into(), attempt: 1, first_seen };
        let again = Raw { retried: Some(&retried), ..Raw::value(b"x") };
        for new in [true, false] {
            let mut letters = DeadLetters::open(dir.path(), "rules").unwrap();
            assert_eq!(letters.write(&name, 12, None, &refusal, &again).unwrap(), new);
            assert_eq!(letters.write(&name, 10, None, &refusal, &Raw::value(b"x")).unwrap(), new);
            letters.flushed().unwrap();
            let beyond = |end| letters.beyond(&name, end).map(|path| path.file_name().unwrap().to_owned());
            assert_eq!(beyond(13), None);
            assert_eq!(beyond(12).unwrap(), FILES[1]);
        }
        let line = std::fs::read_to_string(dir.path().join(FILES[1])).unwrap();
        assert!(
            line.contains(
                r#""origin":"journal/3/10","attempt":1,"first_seen_at":"1970-01-01T00:00:00.005Z""#
            )
        );
        let all: Vec<_> = FILES.map(|name| read(&dir.path().join(name)).unwrap()).concat();
        let places: Vec<_> =
            all.iter().map(|letter| (letter.place.position, letter.retried.clone())).collect();
        assert_eq!(places, [(10, None), (12, Some(retried))]);
    }

    #[test]
    fn damage_in_the_middle_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("letters");
        drop(LetterFile::open(&path, "rules").unwrap());
        std::fs::write(&path, "{\"source\":\"a\",\"partition\":0,\"position\":1}\nx\n{}\n").unwrap();
        let refused = LetterFile::open(&path, "rules").unwrap_err();
        assert!(matches!(refused, DeadLettersError::Damaged { line: 2, .. }), "{refused}");
    }

    #[test]
    fn replays_write_nothing_twice() {
        let runs = proptest::collection::vec((0..60u64, any::<proptest::sample::Index>()), 1..6);
        // A disk is synced at each step: few cases, however many others run.
        let config = ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() };
        let ran = TestRunner::new(config).run(&runs, |runs| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("letters");
            let mut furthest = 0;
            for (upto, torn) in runs {
                let mut letters = LetterFile::open(&path, "rules").unwrap();
                for position in 0..upto {
                    write(&mut letters, (position % 3) as u32, position);
                }
                letters.flushed().unwrap();
                furthest = furthest.max(upto);
                let bytes = std::fs::read(&path).unwrap();
                let places: Vec<Place> = bytes
                    .split_inclusive(|byte| *byte == b'\n')
                    .map(|line| serde_json::from_slice(line).unwrap())
                    .collect();
                let mut positions: Vec<u64> = places.iter().map(|place| place.position).collect();
                positions.sort();
                prop_assert!(positions.iter().copied().eq(0..furthest));
                let kept = torn.index(bytes.len() + 1);
                std::fs::write(&path, &bytes[..kept]).unwrap();
                let whole = bytes[..kept].iter().filter(|byte| **byte == b'\n').count();
                let mut letters = LetterFile::open(&path, "rules").unwrap();
                let again =
                    (0..furthest).filter(|position| write(&mut letters, (position % 3) as u32, *position));
                prop_assert_eq!(again.count(), furthest as usize - whole);
                letters.flushed().unwrap();
            }
            Ok(())
        });
        ran.unwrap();
    }
}
