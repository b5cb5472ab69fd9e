//! The files of a folder sink, as any tool reads them, and what they must hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::kafka::random_log::ValueHistory;
use crate::support::normalize_numbers;

/// A change of a row.
#[derive(Clone, Debug)]
pub struct FolderLine {
    pub shard: String,
    pub as_of: u64,
    /// As records of topics have it.
    pub key: String,
    /// None: withdrawn.
    pub row: Option<Value>,
}

/// The finished files, in the order of their shards and epochs.
pub fn finished_files(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = all.filter(|path| path.extension().is_some_and(|name| name == "jsonl")).collect();
    files.sort();
    files
}

/// The files that are being written: rows, and what is committed of them.
pub fn open_files(folder: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(folder.join("writing")).into_iter().flatten().flatten();
    let files = shards.flat_map(|shard| fs::read_dir(shard.path()).into_iter().flatten().flatten());
    files.map(|file| file.path()).collect()
}

/// All changes in the finished files.
pub fn read_folder(folder: &Path) -> Vec<FolderLine> {
    let mut lines = Vec::new();
    for file in finished_files(folder) {
        let shard = file.file_name().unwrap().to_str().unwrap()["rows-".len()..][..2].to_string();
        for line in fs::read_to_string(&file).unwrap().lines() {
            let mut row: Value = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{}: {error}: {line}", file.display()));
            let fields = row.as_object_mut().unwrap();
            let as_of = fields.remove("as_of").unwrap().as_u64().unwrap();
            let key = format!("{{\"city\":{},\"reading_at\":{}}}", fields["city"], fields["reading_at"]);
            let row = (!fields.contains_key("deleted")).then_some(row);
            lines.push(FolderLine { shard: shard.clone(), as_of, key, row });
        }
    }
    lines
}

/// Checks that a folder holds each change of a row once, in order, up to the last values. Says how many there are.
pub fn check_folder(folder: &Path, expected: &ValueHistory) -> usize {
    let lines = read_folder(folder);
    let mut found: BTreeMap<&str, Vec<Option<Value>>> = BTreeMap::new();
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut shards: BTreeMap<String, &str> = BTreeMap::new();
    for line in &lines {
        let row = line.row.as_ref().map(normalize_numbers);
        let values = found.entry(&line.key).or_default();
        assert_ne!(values.last().unwrap_or(&None), &row, "no change: {line:?}");
        values.push(row);
        let before = newest.insert(&line.shard, line.as_of);
        assert!(before.is_none_or(|before| before <= line.as_of), "{line:?} comes after {before:?}");
        let key: Value = serde_json::from_str(&line.key).unwrap();
        let shard = *shards.entry(key["city"].to_string()).or_insert(&line.shard);
        assert_eq!(shard, line.shard, "{line:?}");
    }
    for (key, values) in expected {
        let none = Vec::new();
        let found = found.get(key.as_str()).unwrap_or(&none);
        let mut left = values.iter();
        for value in found {
            assert!(left.any(|expected| expected == value), "{key}: {value:?} of {found:?} in {values:?}");
        }
        assert_eq!(found.last().unwrap_or(&None), values.last().unwrap_or(&None), "{key}");
    }
    assert!(found.keys().all(|key| expected.contains_key(*key)), "a key was never in the log");
    lines.len()
}
