//! The first line of a file that is not the first: its number, and how far the letters before it go in each partition.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::DlqFileError;
use crate::codec::MAX_RECORD_BYTES;
use crate::model::PartitionName;

pub(super) const WRITE_BUFFER_BYTES: usize = 64 * 1024;
/// More than any line has: each byte of a record takes at most 6, and a detail is short.
pub(super) const MAX_LINE_BYTES: usize = 8 * MAX_RECORD_BYTES;

/// What a head begins with, and no letter.
pub(super) const HEADER_PREFIX: &[u8] = b"{\"dead_letters_file\":";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FileHeader {
    #[serde(rename = "dead_letters_file")]
    pub number: u64,
    #[serde(rename = "last")]
    last: Vec<LastPosition>,
}

/// What a line says of its record's place.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LastPosition {
    #[serde(flatten)]
    pub name: PartitionName,
    pub position: u64,
}

impl FileHeader {
    pub(super) fn encode_line(
        number: u64,
        last: &BTreeMap<PartitionName, u64>,
    ) -> serde_json::Result<Vec<u8>> {
        let last =
            last.iter().map(|(name, position)| LastPosition { name: name.clone(), position: *position });
        let mut line = serde_json::to_vec(&FileHeader { number, last: last.collect() })?;
        line.push(b'\n');
        Ok(line)
    }

    /// The head that a line is, where it is one.
    pub(super) fn parse_line(line: &[u8]) -> Option<FileHeader> {
        if !line.starts_with(HEADER_PREFIX) {
            return None;
        }
        serde_json::from_slice(line).ok()
    }
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct FileScan {
    /// Of the file, where it says so.
    pub file_number: Option<u64>,
    /// The last position of each partition, also in the files before.
    pub last_positions: BTreeMap<PartitionName, u64>,
    /// Bytes of whole lines.
    pub valid_bytes: u64,
}

/// Reads a file from its beginning.
pub(super) fn scan_file(file: &File, path: &Path) -> Result<FileScan, DlqFileError> {
    let mut scanned = FileScan::default();
    let mut number = 0;
    let mut reader = BufReader::with_capacity(WRITE_BUFFER_BYTES, file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line);
        read.map_err(|source| DlqFileError::Io { path: path.into(), source })?;
        if line.is_empty() {
            return Ok(scanned);
        }
        number += 1;
        let is_cut_off = !line.ends_with(b"\n") && line.len() < MAX_LINE_BYTES;
        if is_cut_off {
            return Ok(scanned);
        }
        let damaged = || DlqFileError::Damaged { path: path.into(), line: number };
        let head = if number == 1 { FileHeader::parse_line(&line) } else { None };
        match head {
            Some(head) => {
                scanned.file_number = Some(head.number);
                scanned.last_positions = head.last.into_iter().map(|at| (at.name, at.position)).collect();
            }
            None => {
                let at = serde_json::from_slice::<LastPosition>(&line).map_err(|_| damaged())?;
                let last = scanned.last_positions.entry(at.name).or_insert(at.position);
                *last = at.position.max(*last);
            }
        }
        scanned.valid_bytes += line.len() as u64;
    }
}
