//! The files of a folder sink, as any tool reads them, and what they must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{ValueHistory, WAIT_TIMEOUT, final_values, normalize_numbers};

/// Between two looks at a folder that is being written.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

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
    let all = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = all.filter(|path| is_rows_file(path)).collect();
    files.sort();
    files
}

/// The files that are being written: rows, and what is committed of them.
pub fn open_files(folder: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(folder.join("writing")).into_iter().flatten().flatten();
    let files = shards.flat_map(|shard| fs::read_dir(shard.path()).into_iter().flatten().flatten());
    files.map(|file| file.path()).collect()
}

pub fn is_rows_file(file: &Path) -> bool {
    file.extension().is_some_and(|name| name == "jsonl")
}

/// The changes in a file of rows.
fn parse_lines(file: &Path, text: &str) -> Vec<FolderLine> {
    let shard = &file.file_name().unwrap().to_str().unwrap()["rows-".len()..][..2];
    let parse_line = |line: &str| {
        let mut row: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}: {line}", file.display()));
        let fields = row.as_object_mut().unwrap();
        let as_of = fields.remove("as_of").unwrap().as_u64().unwrap();
        let key = format!("{{\"city\":{},\"reading_at\":{}}}", fields["city"], fields["reading_at"]);
        let row = (!fields.contains_key("deleted")).then_some(row);
        FolderLine { shard: shard.to_owned(), as_of, key, row }
    };
    text.lines().map(parse_line).collect()
}

/// All changes in the finished files.
pub fn read_folder(folder: &Path) -> Vec<FolderLine> {
    let read = |file: &PathBuf| parse_lines(file, &fs::read_to_string(file).unwrap());
    finished_files(folder).iter().flat_map(read).collect()
}

/// The last transaction of each shard, by the path of its commit log.
fn last_commits(folder: &Path) -> Option<BTreeMap<PathBuf, Value>> {
    let mut newest: BTreeMap<String, (u64, PathBuf)> = BTreeMap::new();
    for entry in fs::read_dir(folder.join("writing")).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let Some((shard, claim)) = name.strip_prefix("shard-").and_then(|name| name.split_once('.')) else {
            continue;
        };
        let claim = (claim.parse().unwrap(), entry.path().join("commits.log"));
        let kept = newest.entry(shard.into()).or_insert_with(|| claim.clone());
        *kept = claim.max(kept.clone());
    }
    let mut commits = BTreeMap::new();
    for (_, log) in newest.into_values() {
        // A line is JSON, a tab and a checksum. The last one may be in the making.
        let text = fs::read_to_string(&log).ok()?;
        let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).next_back();
        if let Some((json, _)) = whole.and_then(|line| line.rsplit_once('\t')) {
            commits.insert(log, serde_json::from_str(json).unwrap());
        }
    }
    Some(commits)
}

/// All changes that are durable while a service writes the folder; `None` if its files have changed
/// meanwhile.
fn read_durable_lines(folder: &Path) -> Option<Vec<FolderLine>> {
    let commits = last_commits(folder)?;
    let finished = finished_files(folder);
    let mut texts: BTreeMap<PathBuf, String> = BTreeMap::new();
    for file in &finished {
        texts.insert(file.clone(), fs::read_to_string(file).ok()?);
    }
    for (log, commit) in commits {
        let Some(name) = commit["segment"]["name"].as_str() else { continue };
        if texts.contains_key(&folder.join(name)) {
            continue;
        }
        let mut text = fs::read_to_string(log.with_file_name(name)).ok()?;
        text.truncate(commit["segment"]["bytes"].as_u64().unwrap() as usize);
        texts.insert(folder.join(name), text);
    }
    Some(texts.iter().flat_map(|(file, text)| parse_lines(file, text)).collect())
}

/// Waits until the folder of a running service holds the last value of each row, and checks the
/// changes that are durable. Says how many there are.
pub fn wait_for_folder(folder: &Path, expected: &ValueHistory) -> usize {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        let lines = read_durable_lines(folder);
        let difference = match &lines {
            Some(lines) => find_difference(lines, expected),
            None => Some("its files change while they are read".into()),
        };
        let Some(difference) = difference else {
            return check_lines(&lines.unwrap_or_default(), expected);
        };
        assert!(Instant::now() < deadline, "{}: {difference}", folder.display());
        thread::sleep(POLL_INTERVAL);
    }
}

/// The first difference between the last values in a folder and the expected ones.
fn find_difference(lines: &[FolderLine], expected: &ValueHistory) -> Option<String> {
    let mut last: BTreeMap<&str, Option<Value>> = BTreeMap::new();
    for line in lines {
        last.insert(&line.key, line.row.as_ref().map(normalize_numbers));
    }
    let last: BTreeMap<&str, Value> = last.into_iter().filter_map(|(key, row)| Some((key, row?))).collect();
    let expected = final_values(expected);
    let keys: BTreeSet<&str> = last.keys().chain(expected.keys()).copied().collect();
    let key = keys.into_iter().find(|key| last.get(key) != expected.get(key))?;
    Some(format!("{key} is {:?}, not {:?}", last.get(key), expected.get(key)))
}

/// Checks that every shard of a folder, whose service has stopped, has come to the end of a log of
/// so many records. Says how many shards there are.
pub fn check_positions(folder: &Path, records: u64) -> usize {
    let commits = last_commits(folder).unwrap();
    for (log, commit) in &commits {
        let sources = commit["progress"]["positions"].as_object().unwrap().values();
        let positions = sources.flat_map(|source| source.as_object().unwrap().values());
        let covered: u64 = positions.map(|position| position.as_u64().unwrap()).sum();
        assert_eq!(covered, records, "records that {} covers", log.display());
    }
    assert!(!commits.is_empty(), "no shard of {} has a transaction", folder.display());
    commits.len()
}

/// Checks that the finished files of a folder hold each change of a row once, in order, up to the
/// last values. Says how many there are.
pub fn check_folder(folder: &Path, expected: &ValueHistory) -> usize {
    check_lines(&read_folder(folder), expected)
}

fn check_lines(lines: &[FolderLine], expected: &ValueHistory) -> usize {
    let mut found: BTreeMap<&str, Vec<Option<Value>>> = BTreeMap::new();
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut shards: BTreeMap<String, &str> = BTreeMap::new();
    for line in lines {
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
