//! Refused records of live sources, one JSON object a line, each once: a replay refuses them again, and what the file has of
//! a partition up to its last position is not written a second time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::codec::MAX_RECORD_BYTES;
use crate::model::{DeadLetter, EventTime, PartitionName, RecordAt, Refusal};

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

/// The file of dead letters. A partition's letters come in the order of their positions.
#[derive(Debug)]
pub struct DeadLetters {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    unsynced: bool,
    /// Of the last letter of each partition.
    last: BTreeMap<PartitionName, u64>,
}

impl DeadLetters {
    /// Opens the file, or begins it, and reads once how far it goes. A last line that is not whole is cut off.
    pub fn open(path: &Path) -> Result<DeadLetters, DeadLettersError> {
        let at_path = |source| DeadLettersError::Io { path: path.into(), source };
        let options = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(at_path)?;
        let (last, whole) = scan(&file, path)?;
        file.set_len(whole).map_err(at_path)?;
        file.seek(SeekFrom::End(0)).map_err(at_path)?;
        Ok(DeadLetters { path: path.into(), file, buffer: Vec::new(), unsynced: true, last })
    }

    /// The position of a partition's last letter.
    pub fn last(&self, partition: &PartitionName) -> Option<u64> {
        self.last.get(partition).copied()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a letter; false where the file has it already. It may stay in memory until [`DeadLetters::sync`].
    pub fn write(
        &mut self,
        partition: &PartitionName,
        position: u64,
        arrived_at: Option<EventTime>,
        refusal: &Refusal,
        raw: &[u8],
    ) -> Result<bool, DeadLettersError> {
        match self.last.get_mut(partition) {
            Some(last) if position <= *last => return Ok(false),
            Some(last) => *last = position,
            None => drop(self.last.insert(partition.clone(), position)),
        }
        let at = RecordAt::Position { partition: partition.partition, position, arrived_at };
        let letter = DeadLetter { source: &partition.source, at, refusal, raw };
        serde_json::to_writer(&mut self.buffer, &letter).map_err(|error| self.failed(error.into()))?;
        self.buffer.push(b'\n');
        self.unsynced = true;
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(true)
    }

    /// Makes durable what was written. To be called about once a second, and at the end.
    pub fn sync(&mut self) -> Result<(), DeadLettersError> {
        if !self.unsynced {
            return Ok(());
        }
        self.flush()?;
        self.file.sync_data().map_err(|error| self.failed(error))?;
        self.unsynced = false;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DeadLettersError> {
        self.file.write_all(&self.buffer).map_err(|error| self.failed(error))?;
        self.buffer.clear();
        Ok(())
    }

    fn failed(&self, source: io::Error) -> DeadLettersError {
        DeadLettersError::Io { path: self.path.clone(), source }
    }
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
    use crate::model::Reason;
    use proptest::prelude::*;

    fn write(letters: &mut DeadLetters, partition: u32, position: u64) -> bool {
        let name = PartitionName { source: "journal".into(), partition };
        let refusal = Refusal::new(Reason::NotDecodable, "no JSON");
        let raw = if position.is_multiple_of(2) { &b"{\n\"x\""[..] } else { b"\xFF" };
        letters.write(&name, position, EventTime::from_millis(7), &refusal, raw).unwrap()
    }

    #[test]
    fn letters_say_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead-letters.jsonl");
        let mut letters = DeadLetters::open(&path).unwrap();
        assert!(write(&mut letters, 3, 10) && write(&mut letters, 3, 11));
        letters.sync().unwrap();
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
    fn damage_in_the_middle_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("letters");
        std::fs::write(&path, "{\"source\":\"a\",\"partition\":0,\"position\":1}\nx\n{}\n").unwrap();
        let refused = DeadLetters::open(&path).unwrap_err();
        assert!(matches!(refused, DeadLettersError::Damaged { line: 2, .. }), "{refused}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn replays_write_nothing_twice(runs in proptest::collection::vec((0..60u64, any::<proptest::sample::Index>()), 1..6)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("letters");
            let mut furthest = 0;
            for (upto, torn) in runs {
                let mut letters = DeadLetters::open(&path).unwrap();
                for position in 0..upto {
                    write(&mut letters, (position % 3) as u32, position);
                }
                letters.sync().unwrap();
                furthest = furthest.max(upto);
                let bytes = std::fs::read(&path).unwrap();
                let places: Vec<Place> =
                    bytes.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect();
                let mut positions: Vec<u64> = places.iter().map(|place| place.position).collect();
                positions.sort();
                prop_assert!(positions.iter().copied().eq(0..furthest));
                let kept = torn.index(bytes.len() + 1);
                std::fs::write(&path, &bytes[..kept]).unwrap();
                let whole = bytes[..kept].iter().filter(|byte| **byte == b'\n').count();
                let mut letters = DeadLetters::open(&path).unwrap();
                let again = (0..furthest).filter(|position| write(&mut letters, (position % 3) as u32, *position));
                prop_assert_eq!(again.count(), furthest as usize - whole);
                letters.sync().unwrap();
            }
        }
    }
}
