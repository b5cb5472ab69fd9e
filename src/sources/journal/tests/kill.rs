//! A process that is killed while it appends loses no acknowledged record.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use super::*;
use crate::child_tests::child_test;

/// The variable with the folder of the journal of a child process.
pub(super) const DIR: &str = "SWELTER_TEST_JOURNAL";

/// The process that is killed: appends for ever and prints the acknowledged records.
#[test]
#[ignore = "child process of `kill_loses_no_acknowledged_record`"]
fn child_process_appends_until_killed() {
    let dir = std::env::var_os(DIR).unwrap();
    let journal = Journal::open(Path::new(&dir), plan(2)).unwrap();
    let start = read_all(&journal).unwrap().iter().map(Vec::len).sum::<usize>() as i64;
    let (sender, acknowledgements) = mpsc::sync_channel(200);
    thread::scope(|scope| {
        scope.spawn(move || {
            for receiver in acknowledgements {
                let (number, receiver): (i64, mpsc::Receiver<Result<AppendReport, AppendError>>) = receiver;
                let appended = receiver.recv().unwrap().unwrap().ranges;
                let (partition, end) = (appended[0].partition.partition, appended[0].end);
                writeln!(std::io::stdout().lock(), "acknowledged {number} {partition} {end}").unwrap();
            }
        });
        for number in start.. {
            let receiver =
                append(&*journal.appender(), vec![reading(&format!("city {}", number % 7), number)]);
            sender.send((number, receiver)).unwrap();
            if number % 300 == 299 {
                journal.shared.store.flush();
            }
        }
    });
}

/// Runs a test of this module as a child process on a journal, and kills it after so many lines
/// that `read_line` takes.
pub(super) fn kill_after_lines(
    test: &str,
    journal: &Path,
    lines: usize,
    mut read_line: impl FnMut(&str) -> bool,
) {
    let mut child = child_test(&format!("sources::journal::tests::{test}"))
        .env(DIR, journal)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut count = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        count += usize::from(read_line(&line));
        if count == lines {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(count >= lines, "the process ended by itself");
}

#[test]
fn kill_loses_no_acknowledged_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<(u32, u64), i64> = BTreeMap::new();
    for round in 0..12usize {
        let stop = 1 + round * 117 % 900;
        kill_after_lines("kill::child_process_appends_until_killed", dir.path(), stop, |line| {
            // The test harness prints on the same line before the first one.
            let Some((_, rest)) = line.split_once("acknowledged ") else { return false };
            let numbers: Vec<i64> = rest.split(' ').filter_map(|number| number.parse().ok()).collect();
            if let [number, partition, end] = numbers[..] {
                acknowledged.insert((partition as u32, end as u64 - 1), number);
            }
            true
        });
        let journal = Journal::open(dir.path(), plan(2)).unwrap();
        let seen = read_all(&journal).unwrap();
        for ((partition, position), number) in &acknowledged {
            let seen = &seen[*partition as usize][*position as usize];
            assert_eq!(
                (seen.position, seen.reading_at.unwrap().millis()),
                (*position, *number),
                "round {round}"
            );
        }
    }
}
