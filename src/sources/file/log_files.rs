//! The files of a rotated log: `PATH`, and beside it `PATH.1`, `PATH-20261130`, `PATH.2026-11-30`,
//! each possibly compressed.

use std::cmp::Reverse;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::codec::Compression;

/// Greater numbers at the end of a name are dates or times.
const MAX_COUNTER_SUFFIX: u64 = 999;

/// A file that may belong to a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogFile {
    pub path: PathBuf,
    pub compression: Compression,
    pub rank: Rank,
}

/// The order of a file in the log, by its name; later files are greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// The name has no order, such as `PATH.bak`. The file may be found by its content, but follows
    /// no other file.
    Unknown(String),
    /// Ordered by the numbers in its suffix.
    Dated(Vec<u64>),
    /// `PATH.1` is the newest rotated file: it was `PATH` before.
    Counted(Reverse<u64>),
    Current,
}

impl LogFile {
    pub(super) fn current(path: &Path, compression: Compression) -> LogFile {
        LogFile { path: path.into(), compression, rank: Rank::Current }
    }

    pub(super) fn is_current(&self) -> bool {
        self.rank == Rank::Current
    }

    /// Whether the name has an order in the log.
    pub(super) fn is_ranked(&self) -> bool {
        !matches!(self.rank, Rank::Unknown(_))
    }
}

/// Lists the files that exist now, the oldest first; of two with the same name, the uncompressed
/// one first.
pub(super) fn log_files(path: &Path, compression: Compression) -> io::Result<Vec<LogFile>> {
    let Some(name) = path.file_name() else { return Ok(Vec::new()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let other = entry.file_name();
        if other == name {
            files.push(LogFile::current(path, compression));
            continue;
        }
        let (Some(name), Some(other)) = (name.to_str(), other.to_str()) else { continue };
        let Some(suffix) = other.strip_prefix(name).filter(|suffix| suffix.starts_with(['.', '-'])) else {
            continue;
        };
        let path = path.with_file_name(other);
        // This follows symbolic links.
        if path.is_file() {
            let (suffix, compression) = split_compression(&suffix[1..], compression);
            files.push(LogFile { path, compression, rank: rank_of_suffix(suffix) });
        }
    }
    files.sort_by(|a, b| a.rank.cmp(&b.rank).then_with(|| a.path.cmp(&b.path)));
    Ok(files)
}

fn split_compression(suffix: &str, otherwise: Compression) -> (&str, Compression) {
    match suffix.rsplit_once('.') {
        Some((stem, "gz")) => (stem, Compression::Gzip),
        Some((stem, "zst")) => (stem, Compression::Zstd),
        _ => match suffix {
            "gz" => ("", Compression::Gzip),
            "zst" => ("", Compression::Zstd),
            _ => (suffix, otherwise),
        },
    }
}

fn rank_of_suffix(suffix: &str) -> Rank {
    let is_time = suffix.starts_with(|first: char| first.is_ascii_digit())
        && suffix.chars().all(|c| c.is_ascii_digit() || "-_.:TZ".contains(c));
    let numbers = || suffix.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
    let parsed: Option<Vec<u64>> = numbers().map(|run| run.parse().ok()).collect();
    match parsed.filter(|_| is_time).as_deref() {
        None => Rank::Unknown(suffix.to_owned()),
        Some([number]) if *number <= MAX_COUNTER_SUFFIX => Rank::Counted(Reverse(*number)),
        Some(numbers) => Rank::Dated(numbers.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_files_are_sorted_in_log_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.csv");
        let ordered = [
            "r.csv.bak",
            "r.csv.gz",
            "r.csv-20251231.gz",
            "r.csv-20261129-2",
            "r.csv-20261129-10",
            "r.csv.20261130",
            "r.csv.10.gz",
            "r.csv.2",
            "r.csv.2.gz",
            "r.csv.1.zst",
            "r.csv",
        ];
        for name in ordered.iter().rev().chain(&["r.csv2", "other.csv", "xr.csv.1"]) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("r.csv.3")).unwrap();
        let files = log_files(&path, Compression::None).unwrap();
        let names: Vec<_> =
            files.iter().map(|file| file.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(&names[2..], &ordered[2..]);
        assert!(files.iter().take(2).all(|file| !file.is_ranked()));
        assert_eq!(files[6].compression, Compression::Gzip);
        assert_eq!(files[9].compression, Compression::Zstd);
        assert!(files[10].is_current() && files[10].compression == Compression::None);
        assert!(log_files(Path::new("r.csv"), Compression::None).is_ok());
    }
}
