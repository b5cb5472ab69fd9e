//! The first line of every file but the first: its number, and the last position of each partition
//! in the files before.

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

/// The beginning of a header; no dead letter begins like this.
pub(super) const HEADER_PREFIX: &[u8] = b"{\"dead_letters_file\":";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FileHeader {
    #[serde(rename = "dead_letters_file")]
    pub number: u64,
    #[serde(rename = "last")]
    last: Vec<LastPosition>,
}

/// The partition and the position of a record, as a line has them.
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

    /// Parses the line; `None` if it is no header.
    pub(super) fn parse_line(line: &[u8]) -> Option<FileHeader> {
        if !line.starts_with(HEADER_PREFIX) {
            return None;
        }
        serde_json::from_slice(line).ok()
    }
}

/// What a scan of a file found.
#[derive(Debug, Default)]
pub(super) struct FileScan {
    /// The number of the file, if it has a header.
    pub file_number: Option<u64>,
    /// The last position of each partition, the files before included.
    pub last_positions: BTreeMap<PartitionName, u64>,
    /// The length of all complete lines.
    pub valid_bytes: u64,
}

/// Scans a file from its beginning.
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
