//! The files of dead letters in a folder: those being written, the full ones, and their total size.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Between a file's name and the number of a full file: `dead-letters.part-00000007.jsonl`.
const PART_INFIX: &str = ".part-";

/// The path of a full file. Numbers start at 1.
pub(super) fn part_path(path: &Path, number: u64) -> PathBuf {
    path.with_extension(format!("part-{number:08}.jsonl"))
}

/// The full files of a file, by number.
pub(super) fn list_parts(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned() + PART_INFIX;
    let mut parts = Vec::new();
    for file in list_files(path.parent().unwrap_or(Path::new(".")))? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = name.strip_prefix(&stem).and_then(|rest| rest.strip_suffix(".jsonl"));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            parts.push((number, file));
        }
    }
    parts.sort();
    Ok(parts)
}

/// All files of dead letters; empty if the folder does not exist.
fn list_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("dead-letters") && name.ends_with(".jsonl") {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// The size of all files of dead letters in a folder, archived ones included.
pub(super) fn used_bytes(folder: &Path) -> io::Result<u64> {
    let mut used = 0;
    for file in list_files(folder)? {
        match fs::metadata(&file) {
            Ok(metadata) => used += metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(used)
}

/// A removed file.
pub(super) struct RemovedFile {
    pub path: PathBuf,
    pub dead_letters: u64,
}

/// Removes the oldest file that is not in `written`; `None` if there is no such file.
pub(super) fn remove_oldest_file(folder: &Path, written: &[&Path]) -> io::Result<Option<RemovedFile>> {
    let mut oldest: Option<(SystemTime, PathBuf)> = None;
    for path in list_files(folder)?.into_iter().filter(|path| !written.contains(&&**path)) {
        let age = match fs::metadata(&path) {
            Ok(metadata) => (metadata.modified()?, path),
            // Another process or the user has moved it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if oldest.as_ref().is_none_or(|oldest| age < *oldest) {
            oldest = Some(age);
        }
    }
    let Some((_, path)) = oldest else { return Ok(None) };
    let dead_letters = count_dead_letters(&path)?;
    fs::remove_file(&path)?;
    Ok(Some(RemovedFile { path, dead_letters }))
}

fn count_dead_letters(path: &Path) -> io::Result<u64> {
    let mut reader = BufReader::new(fs::File::open(path)?);
    let mut lines = 0;
    let has_head = reader.fill_buf()?.starts_with(super::file_header::HEADER_PREFIX);
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(u64::saturating_sub(lines, u64::from(has_head)));
        }
        lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        let length = bytes.len();
        reader.consume(length);
    }
}
