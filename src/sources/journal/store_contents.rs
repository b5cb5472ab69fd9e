//! A check of the tables of contents of the store's files, before the store opens them. The store
//! allocates as many entries as a table declares, and verifies its checksum only later, so one
//! flipped bit would end the process.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// The end of a file of the format "sfa": magic, version, type of checksum, checksum, position and
/// length of the table of contents.
const TRAILER_MAGIC: &[u8] = b"SFA!";
const TRAILER_BYTES: u64 = 4 + 1 + 1 + 16 + 8 + 8;
const POSITION_OFFSET: usize = 4 + 1 + 1 + 16;
/// Before the entries: magic, number of entries.
const CONTENTS_MAGIC: &[u8] = b"TOC!";
const CONTENTS_HEAD_BYTES: usize = 4 + 4;
/// An entry has at least a position, a length and the length of its name.
const MIN_ENTRY_BYTES: u64 = 8 + 8 + 2;

/// Finds the first file in a directory, or below it, whose table of contents declares more entries
/// than the file can hold. The store detects other damage itself.
pub(super) fn find_impossible_contents(folder: &Path) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let impossible_file = match () {
            () if kind.is_dir() => find_impossible_contents(&path)?,
            () if kind.is_file() && has_impossible_contents(&path)? => Some(path),
            () => None,
        };
        if impossible_file.is_some() {
            return Ok(impossible_file);
        }
    }
    Ok(None)
}

fn has_impossible_contents(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let Some(trailer_at) = file.metadata()?.len().checked_sub(TRAILER_BYTES) else { return Ok(false) };
    let mut trailer = [0; TRAILER_BYTES as usize];
    file.seek(SeekFrom::Start(trailer_at))?;
    file.read_exact(&mut trailer)?;
    let position = trailer[POSITION_OFFSET..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let content_bytes = trailer_at
        .checked_sub(position)
        .and_then(|content_bytes| content_bytes.checked_sub(CONTENTS_HEAD_BYTES as u64));
    let Some(content_bytes) = content_bytes.filter(|_| trailer.starts_with(TRAILER_MAGIC)) else {
        return Ok(false);
    };
    let mut head = [0; CONTENTS_HEAD_BYTES];
    file.seek(SeekFrom::Start(position))?;
    file.read_exact(&mut head)?;
    let entries = head.last_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    Ok(head.starts_with(CONTENTS_MAGIC) && u64::from(entries) * MIN_ENTRY_BYTES > content_bytes)
}
