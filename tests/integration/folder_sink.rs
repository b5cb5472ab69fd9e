//! A folder sink beside the journal: the service killed at any moment, as one process and as two.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::process::getuid;

use crate::checkpoints::{config as checkpoint_config, make_trimmed_journal};
use crate::folder_reader::{check_folder, check_positions, finished_files, is_rows_file, open_files};
use crate::support::{
    LogEntry, MINUTE_MS, Oracle, RUN_SETTINGS, Random, RowHistory, ServiceBuilder, ServiceProcess,
    ServiceStatus, WAIT_TIMEOUT, keep_accepted_entries, post, random_entry, record_json, wait_for,
};

const ROUNDS: usize = 8;
const POSTS_PER_ROUND: usize = 4;
/// In so many posts a file is full.
const MAX_POSTS_UNTIL_FULL: usize = 1_000;

/// What the log has, and the rows that it makes.
struct ExpectedRows {
    oracle: Oracle,
    rows: RowHistory,
    records: u64,
}

impl ExpectedRows {
    fn new() -> ExpectedRows {
        ExpectedRows { oracle: Oracle::new(RUN_SETTINGS), rows: RowHistory::default(), records: 0 }
    }

    fn apply(&mut self, entries: &[LogEntry]) {
        self.records += entries.len() as u64;
        for entry in entries {
            if self.oracle.apply_arrival(entry).is_some() {
                self.rows.note_arrival(&self.oracle, entry);
            }
        }
    }
}

struct FolderCase {
    random: Random,
    data: PathBuf,
    archive: PathBuf,
    processes: u32,
    /// A command of the shell that each start is behind.
    behind: &'static str,
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
            behind: "true",
            expected: ExpectedRows::new(),
            now: now - now.rem_euclid(MINUTE_MS),
        }
    }

    fn builder(&mut self) -> ServiceBuilder {
        let workers = 1 + self.random.below(2);
        let config = format!(
            "workers = {workers}\n[results]\nwindow = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\"\n[ingest]\npartitions = 5\n\
             [cluster]\nprocesses = {}\n[checkpoints]\nevery = \"300ms\"\n\
             [[sinks]]\ntype = \"folder\"\npath = \"{}\"\nshards = 3\ncommit_interval = \"40ms\"\nsegment_bytes = \"64 KiB\"\n",
            self.processes,
            self.archive.display()
        );
        ServiceBuilder::new(config).data(&self.data).behind(self.behind)
    }

    fn start(&mut self) -> ServiceProcess {
        self.builder().start().wait_until_ready()
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

    /// Applies a post that got no answer if it is in the log: as a whole or not at all.
    fn resolve_unanswered(&mut self, service: &ServiceProcess, unanswered: Option<Vec<LogEntry>>) {
        let applied = self.wait_until_applied(service);
        if let Some(entries) = unanswered
            && applied != self.expected.records
        {
            self.expected.apply(&entries);
        }
    }

    /// Checks the folder of a service that has stopped. Says how many changes it holds.
    fn check_finished(&self) -> usize {
        assert_eq!(open_files(&self.archive).iter().filter(|file| is_rows_file(file)).count(), 0);
        check_positions(&self.archive, self.expected.records);
        check_folder(&self.archive, &self.expected.rows.values)
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
            self.resolve_unanswered(&service, unanswered);
            if self.random.below(2) == 0 { service.terminate() } else { service.kill() }
        }
        let service = self.start();
        self.wait_until_applied(&service);
        service.terminate();
        let changes = self.check_finished();
        assert!(changes > 100 && torn > 0, "{changes} changes, {torn} torn files");
        let files = finished_files(&self.archive).len();
        eprintln!("{changes} changes in {files} files, {torn} torn tails");
    }
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

/// Gives up the right of root to write everywhere, so that permissions count for root as well.
const WITHOUT_OVERRIDE: &str = "exec setpriv --bounding-set=-dac_override,-dac_read_search \"$0\" \"$@\"";

/// Sets the permissions of a folder and of all folders in it.
fn set_folder_mode(folder: &Path, mode: u32) {
    fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
    let inside = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    inside.filter(|path| path.is_dir()).for_each(|path| set_folder_mode(&path, mode));
}

/// Checks that a start is refused, and says what to do about the folder.
fn check_is_refused(case: &mut FolderCase) {
    let (code, log) = case.builder().run_to_end();
    assert_eq!(code, Some(1), "{log}");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("archive") && last.contains("readable and writable by this user"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

/// A folder whose permissions are taken away and given back. A file system that is mounted read-only
/// gives another error, which waits instead.
#[test]
fn read_only_folder_refuses_start_and_ends_run() {
    let root = tempfile::tempdir().unwrap();
    let mut case = FolderCase::new(root.path(), 11, 1);
    if getuid().is_root() {
        case.behind = WITHOUT_OVERRIDE;
    }
    fs::create_dir(&case.archive).unwrap();
    set_folder_mode(&case.archive, 0o555);
    check_is_refused(&mut case);
    assert_eq!(fs::read_dir(&case.archive).unwrap().count(), 0);

    set_folder_mode(&case.archive, 0o755);
    let mut service = case.start();
    let entries = case.next_entries();
    assert!(case.post(&service, &entries));
    case.wait_until_applied(&service);
    set_folder_mode(&case.archive, 0o555);
    // It writes on until a file is full.
    let (mut unanswered, mut posts) = (None, 0);
    while unanswered.is_none() && service.has_ended().is_none() {
        assert!(posts < MAX_POSTS_UNTIL_FULL, "no file is full after {posts} posts");
        let entries = case.next_entries();
        unanswered = (!case.post(&service, &entries)).then_some(entries);
        posts += 1;
    }
    assert_eq!(service.wait_for_exit().code(), Some(1), "{}", service.log());
    assert!(service.log().contains("readable and writable by this user"), "{}", service.log());
    assert_eq!(finished_files(&case.archive), Vec::<PathBuf>::new());
    check_is_refused(&mut case);

    set_folder_mode(&case.archive, 0o755);
    let service = case.start();
    case.resolve_unanswered(&service, unanswered);
    service.terminate();
    let changes = case.check_finished();
    assert!(changes > 100, "{changes} changes");
}
