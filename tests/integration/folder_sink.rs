//! A folder sink beside the journal: the service killed at any moment, as one process and as two.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::checkpoints::{config as checkpoint_config, make_trimmed_journal};
use crate::folder_reader::{check_folder, finished_files, open_files};
use crate::kafka::random_log::{ValueHistory, push_value, row_key};
use crate::support::{
    LogEntry, MINUTE_MS, Oracle, RUN_SETTINGS, Random, ServiceBuilder, ServiceProcess, ServiceStatus,
    WAIT_TIMEOUT, city_name, keep_accepted_entries, post, random_entry, record_json, row_json, wait_for,
};

const ROUNDS: usize = 8;
const POSTS_PER_ROUND: usize = 4;

/// The rows that each key has had, if each arrival were applied by itself.
struct ExpectedRows {
    oracle: Oracle,
    values: ValueHistory,
    /// Times that the log has had, of each city.
    times: BTreeMap<u32, Vec<i64>>,
    records: u64,
}

impl ExpectedRows {
    fn new() -> ExpectedRows {
        let (values, times) = (ValueHistory::new(), BTreeMap::new());
        ExpectedRows { oracle: Oracle::new(RUN_SETTINGS), values, times, records: 0 }
    }

    fn apply(&mut self, entries: &[LogEntry]) {
        self.records += entries.len() as u64;
        for entry in entries {
            if self.oracle.apply_arrival(entry).is_none() {
                continue;
            }
            let times = self.times.entry(entry.city).or_default();
            if let Err(place) = times.binary_search(&entry.millis) {
                times.insert(place, entry.millis);
            }
            let reached = entry.millis..=entry.millis + RUN_SETTINGS.window;
            for millis in times.iter().filter(|at| reached.contains(at)) {
                let city = city_name(entry.city);
                let row = self.oracle.row(entry.city, *millis).map(|row| row_json(&city, *millis, &row));
                push_value(&mut self.values, &row_key(&city, *millis), row);
            }
        }
    }
}

struct FolderCase {
    random: Random,
    data: PathBuf,
    archive: PathBuf,
    processes: u32,
    expected: ExpectedRows,
    now: i64,
}

impl FolderCase {
    fn new(root: &Path, seed: u64, processes: u32) -> FolderCase {
        let now = jiff::Timestamp::now().as_millisecond() - 6 * 3_600_000;
        FolderCase {
            random: Random::new(seed),
            data: root.join("data"),
            archive: root.join("archive"),
            processes,
            expected: ExpectedRows::new(),
            now: now - now.rem_euclid(MINUTE_MS),
        }
    }

    fn start(&mut self) -> ServiceProcess {
        let workers = 1 + self.random.below(2);
        let config = format!(
            "workers = {workers}\n[results]\nwindow = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\"\n[ingest]\npartitions = 5\n\
             [cluster]\nprocesses = {}\n[checkpoints]\nevery = \"300ms\"\n\
             [[sinks]]\ntype = \"folder\"\npath = \"{}\"\nshards = 3\ncommit_interval = \"40ms\"\nsegment_bytes = \"64 KiB\"\n",
            self.processes,
            self.archive.display()
        );
        ServiceProcess::start(&self.data, &config).wait_until_ready()
    }

    fn next_entries(&mut self) -> Vec<LogEntry> {
        self.now += self.random.below(3) as i64 * MINUTE_MS;
        let entries =
            (0..1 + self.random.below(40)).map(|_| random_entry(&mut self.random, self.now)).collect();
        keep_accepted_entries(&self.expected.oracle, entries, &mut self.random, self.now)
    }

    /// Posts a batch; false if the server did not live to answer.
    fn post(&mut self, service: &ServiceProcess, entries: &[LogEntry]) -> bool {
        let records: Vec<String> = entries.iter().map(record_json).collect();
        let Ok(answer) = post(&service.address, "application/x-ndjson", &records.join("\n")) else {
            return false;
        };
        assert_eq!(answer.status, 200, "{}", answer.body);
        self.expected.apply(entries);
        true
    }

    /// How many records the log has, once they all are in the results.
    fn wait_until_applied(&self, service: &ServiceProcess) -> u64 {
        wait_for("that all is applied", || {
            let status = ServiceStatus::fetch_status(&service.address, WAIT_TIMEOUT)?;
            (status.applied == status.end && status.applied >= self.expected.records)
                .then_some(status.applied)
        })
    }

    /// Kills the service at some moment of the posts that it gets.
    fn kill(&mut self, service: ServiceProcess) -> Option<Vec<LogEntry>> {
        let (kill, delay) = (service.kill_handle(), Duration::from_micros(self.random.below(60_000)));
        let killer = thread::spawn(move || {
            thread::sleep(delay);
            kill();
        });
        let mut unanswered = None;
        while unanswered.is_none() {
            let entries = self.next_entries();
            unanswered = (!self.post(&service, &entries)).then_some(entries);
        }
        killer.join().unwrap();
        service.kill();
        unanswered
    }

    /// Leaves what a host that lost its power may leave: parts of writes that were not synced.
    fn tear_tails(&mut self) -> usize {
        let files = open_files(&self.archive);
        for file in &files {
            let torn =
                &b"{\"as_of\":1764000000123,\"city\":\"city 1\",\"rea"[..1 + self.random.below(30) as usize];
            File::options().append(true).open(file).unwrap().write_all(torn).unwrap();
        }
        files.len()
    }

    fn run(&mut self) {
        let mut torn = 0;
        for _ in 0..ROUNDS {
            let service = self.start();
            for _ in 0..POSTS_PER_ROUND {
                let entries = self.next_entries();
                assert!(self.post(&service, &entries));
            }
            let unanswered = self.kill(service);
            torn += self.tear_tails();
            let service = self.start();
            // A batch is in the log as a whole or not at all.
            if let (Some(entries), applied) = (unanswered, self.wait_until_applied(&service))
                && applied != self.expected.records
            {
                self.expected.apply(&entries);
            }
            if self.random.below(2) == 0 { service.terminate() } else { service.kill() }
        }
        let service = self.start();
        self.wait_until_applied(&service);
        service.terminate();
        assert_eq!(open_files(&self.archive).iter().filter(|file| is_rows(file)).count(), 0);
        let changes = check_folder(&self.archive, &self.expected.values);
        assert!(changes > 100 && torn > 0, "{changes} changes, {torn} torn files");
        let files = finished_files(&self.archive).len();
        eprintln!("{changes} changes in {files} files, {torn} torn tails");
    }
}

fn is_rows(file: &Path) -> bool {
    file.extension().is_some_and(|name| name == "jsonl")
}

/// `SWELTER_FOLDER_CASES` runs more, from the seed `SWELTER_FOLDER_SEED` on.
#[test]
fn folder_equals_recomputation_over_kills() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let (cases, first) = (number("SWELTER_FOLDER_CASES", 1), number("SWELTER_FOLDER_SEED", 1));
    for seed in first..first + cases {
        eprintln!("seed {seed}");
        let root = tempfile::tempdir().unwrap();
        FolderCase::new(root.path(), seed, 1).run();
    }
}

#[test]
fn folder_of_two_processes_equals_recomputation_over_kills() {
    let root = tempfile::tempdir().unwrap();
    FolderCase::new(root.path(), 7, 2).run();
}

/// With checkpoints, the journal no longer has what a new folder would need.
#[test]
fn new_folder_beside_trimmed_journal_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (data, archive) = (root.path().join("data"), root.path().join("archive"));
    let checkpoints = root.path().join("checkpoints");
    let config = checkpoint_config(checkpoints.to_str().unwrap());
    make_trimmed_journal(&data, &config);
    let with_folder = format!("{config}\n[[sinks]]\ntype = \"folder\"\npath = \"{}\"\n", archive.display());
    let (code, log) = ServiceBuilder::new(with_folder).data(&data).run_to_end();
    assert_eq!(code, Some(1), "{log}");
    for says in [archive.to_str().unwrap(), "remove it from the configuration", "another data directory"] {
        assert!(log.contains(says), "{says}: {log}");
    }
}
