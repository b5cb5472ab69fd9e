//! Trimmed records are gone and reported as removed; the others stay, even if the process is killed
//! in between.

use std::fs;
use std::io::Write;

use super::kill::{DIR, kill_after_lines};
use super::*;

/// Reads all records that are left in all partitions.
fn read_left(journal: &Journal) -> Vec<Vec<Seen>> {
    (0..journal.partitions())
        .map(|partition| read_from(journal, partition, journal.log_start(partition), 1000).unwrap())
        .collect()
}

fn fill(journal: &Journal, from: i64, count: i64) {
    for number in from..from + count {
        let records = ["a", "b", "d"].map(|city| reading(city, number)).to_vec();
        acknowledged(&*journal.appender(), records);
    }
}

#[test]
fn trim_removes_records_before_position() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), plan(2)).unwrap();
    fill(&journal, 0, 50);
    journal.shared.store.flush();
    fill(&journal, 50, 50);
    let before = read_all(&journal).unwrap();
    // A position in the middle, the end, and a partition that does not exist.
    journal.trim_before(&[(0, 31), (1, journal.log_end(1)), (7, 5)]).unwrap();
    let check = |journal: &Journal| {
        for partition in 0..2u32 {
            let (begin, end) = (journal.log_start(partition), journal.log_end(partition));
            assert!(
                begin < end && begin <= if partition == 0 { 31 } else { end - 1 },
                "{partition}: {begin} of {end}"
            );
            assert!(begin > if partition == 0 { 20 } else { end - 10 }, "{begin} of {end}");
            let left = read_from(journal, partition, begin, 7).unwrap();
            assert_eq!(left, before[partition as usize][begin as usize..]);
            for refused in [
                journal.check_position(partition, (begin - 1).into()).unwrap_err(),
                Source::open_partition(journal, partition, begin - 1, thread::current()).err().unwrap(),
            ] {
                let line = refused.to_string();
                assert!(matches!(refused, SourceError::Fatal(_)) && line.contains("restore one"), "{line}");
            }
            assert!(journal.check_position(partition, begin.into()).is_ok());
        }
    };
    check(&journal);
    // A log start never decreases.
    journal.trim_before(&[(0, 3), (1, 0)]).unwrap();
    check(&journal);
    drop(journal);
    let journal = Journal::open(dir.path(), plan(2)).unwrap();
    check(&journal);
    fill(&journal, 100, 3);
    let ends = [journal.log_end(0), journal.log_end(1)];
    drop(journal);
    let journal = Journal::open(dir.path(), plan(2)).unwrap();
    assert_eq!([journal.log_end(0), journal.log_end(1)], ends);
}

#[test]
fn trim_refuses_position_of_another_journal() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), plan(2)).unwrap();
    fill(&journal, 0, 50);
    let before = read_all(&journal).unwrap();
    let refused = journal.trim_before(&[(0, 20), (1, journal.log_end(1) + 1)]).unwrap_err();
    assert!(refused.to_string().contains("another journal"), "{refused}");
    assert_eq!(read_all(&journal).unwrap(), before);
}

#[test]
fn overtaken_reader_fails_with_reason() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), JournalPlan { tail_bytes: 0, ..plan(1) }).unwrap();
    fill(&journal, 0, 20);
    let mut reader = Source::open_partition(&journal, 0, 0, thread::current()).unwrap();
    journal.trim_before(&[(0, 50)]).unwrap();
    let error = reader.poll(1, u64::MAX, &mut Seer::default()).unwrap_err();
    assert!(error.to_string().contains("begins at position 48"), "{error}");
}

#[test]
fn trim_frees_disk_space() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), plan(2)).unwrap();
    let records = |seed: u64| -> Vec<NewRecord> {
        let word = |n: u64| crate::sources::mix64(n).to_le_bytes();
        let bytes = |n: u64| (0..100).flat_map(|i| word(n * 1_000_003 + i)).collect::<Vec<u8>>();
        (0..250).map(|n| NewRecord::new(Some(&n.to_string()), bytes(seed * 1_000 + n))).collect()
    };
    for round in 0..200 {
        acknowledged(&*journal.appender(), records(round));
        if round % 40 == 39 {
            journal.shared.store.flush();
        }
    }
    let full = journal.shared.store.disk_bytes();
    assert!(full > 35_000_000, "{full}");
    let ends = [journal.log_end(0), journal.log_end(1)];
    journal.trim_before(&[(0, ends[0] * 9 / 10), (1, ends[1] * 9 / 10)]).unwrap();
    let left = journal.shared.store.disk_bytes();
    assert!(left < full / 5, "{left} of {full}");
    let counts: Vec<u64> = read_left(&journal).iter().map(|seen| seen.len() as u64).collect();
    assert_eq!(counts, [ends[0] - journal.log_start(0), ends[1] - journal.log_start(1)]);
}

#[test]
fn damaged_begins_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), plan(2)).unwrap();
    fill(&journal, 0, 20);
    journal.trim_before(&[(0, 10), (1, 10)]).unwrap();
    drop(journal);
    let path = dir.path().join("begins");
    let whole = fs::read(&path).unwrap();
    let refused = || {
        let error = Journal::open(dir.path(), plan(2)).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains("restore it from a backup")), "{error:?}");
    };
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, &flipped).unwrap();
        refused();
        fs::write(&path, &whole[..at]).unwrap();
        refused();
    }
    fs::remove_file(&path).unwrap();
    refused();
    fs::write(&path, &whole).unwrap();
    assert!(Journal::open(dir.path(), plan(2)).is_ok());
}

/// The process that is killed: appends and trims for ever, and prints the acknowledged records and
/// the trimmed positions.
#[test]
#[ignore = "child process of `kill_during_trim_keeps_records_behind_position`"]
fn child_process_appends_and_trims_until_killed() {
    let dir = std::env::var_os(DIR).unwrap();
    let journal = Journal::open(Path::new(&dir), plan(2)).unwrap();
    for number in journal.log_end(0) as i64.. {
        fill(&journal, number, 1);
        writeln!(std::io::stdout().lock(), "acknowledged {} {}", journal.log_end(0), journal.log_end(1))
            .unwrap();
        if number % 40 == 39 {
            journal.shared.store.flush();
        }
        if number % 3 == 0 {
            let upto = [0, 1].map(|partition| (partition, journal.log_end(partition).saturating_sub(20)));
            writeln!(std::io::stdout().lock(), "trimming {} {}", upto[0].1, upto[1].1).unwrap();
            journal.trim_before(&upto).unwrap();
        }
    }
}

#[test]
fn kill_during_trim_keeps_records_behind_position() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..10usize {
        let (mut ends, mut trimmed) = ([0; 2], [0; 2]);
        let stop = 3 + round * 71 % 400;
        kill_after_lines("trim::child_process_appends_and_trims_until_killed", dir.path(), stop, |line| {
            for (word, numbers) in [("acknowledged ", &mut ends), ("trimming ", &mut trimmed)] {
                let Some((_, rest)) = line.split_once(word) else { continue };
                let read: Vec<u64> = rest.split(' ').filter_map(|number| number.parse().ok()).collect();
                if let [a, b] = read[..] {
                    *numbers = [a, b];
                }
            }
            true
        });
        let journal = Journal::open(dir.path(), plan(2)).unwrap();
        for partition in 0..2usize {
            let (begin, end) = (journal.log_start(partition as u32), journal.log_end(partition as u32));
            assert!(begin <= trimmed[partition] && end >= ends[partition], "round {round}: {begin} to {end}");
            let left = read_from(&journal, partition as u32, begin, 100).unwrap();
            let positions: Vec<u64> = left.iter().map(|seen| seen.position).collect();
            assert_eq!(positions, (begin..end).collect::<Vec<_>>(), "round {round}");
            assert!(left.iter().all(|seen| seen.city.is_some()), "round {round}");
        }
    }
}
