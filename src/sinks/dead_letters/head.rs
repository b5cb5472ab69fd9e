//! The first line of a file that is not the first: its number, and how far the letters before it go in each partition.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{BUFFER_BYTES, DeadLettersError, MAX_LINE_BYTES};
use crate::model::PartitionName;

/// What a head begins with, and no letter.
pub(super) const BEGINNING: &[u8] = b"{\"dead_letters_file\":";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    #[serde(rename = "dead_letters_file")]
    pub number: u64,
    #[serde(rename = "last")]
    last: Vec<Position>,
}

/// What a line says of its record's place.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Position {
    #[serde(flatten)]
    pub name: PartitionName,
    pub position: u64,
}

impl Head {
    pub(super) fn line(number: u64, last: &BTreeMap<PartitionName, u64>) -> serde_json::Result<Vec<u8>> {
        let last = last.iter().map(|(name, position)| Position { name: name.clone(), position: *position });
        let mut line = serde_json::to_vec(&Head { number, last: last.collect() })?;
        line.push(b'\n');
        Ok(line)
    }

    /// The head that a line is, where it is one.
    pub(super) fn parse(line: &[u8]) -> Option<Head> {
        if !line.starts_with(BEGINNING) {
            return None;
        }
        serde_json::from_slice(line).ok()
    }
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// Of the file, where it says so.
    pub number: Option<u64>,
    /// The last position of each partition, also in the files before.
    pub last: BTreeMap<PartitionName, u64>,
    /// Bytes of whole lines.
    pub whole: u64,
}

/// Reads a file from its beginning.
pub(super) fn scan(file: &File, path: &Path) -> Result<Scanned, DeadLettersError> {
    let mut scanned = Scanned::default();
    let mut number = 0;
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line);
        read.map_err(|source| DeadLettersError::Io { path: path.into(), source })?;
        if line.is_empty() {
            return Ok(scanned);
        }
        number += 1;
        let is_cut_off = !line.ends_with(b"\n") && line.len() < MAX_LINE_BYTES;
        if is_cut_off {
            return Ok(scanned);
        }
        let damaged = || DeadLettersError::Damaged { path: path.into(), line: number };
        let head = if number == 1 { Head::parse(&line) } else { None };
        match head {
            Some(head) => {
                scanned.number = Some(head.number);
                scanned.last = head.last.into_iter().map(|at| (at.name, at.position)).collect();
            }
            None => {
                let at = serde_json::from_slice::<Position>(&line).map_err(|_| damaged())?;
                let last = scanned.last.entry(at.name).or_insert(at.position);
                *last = at.position.max(*last);
            }
        }
        scanned.whole += line.len() as u64;
    }
}
