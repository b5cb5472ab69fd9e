//! Backups of the built program: taken while readings come, restored elsewhere, and damaged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::checkpoint_files::published_manifests;
use crate::support::prepared::prepared_variable;
use crate::support::s3_server::S3Server;
use crate::support::{
    LogEntry, MINUTE_MS, Oracle, RUN_SETTINGS, Random, ServiceProcess, ServiceStatus, Subscriber,
    WAIT_TIMEOUT, check_current, check_history, keep_accepted_entries, post, random_entry, record_json,
    swelter_command, wait_for,
};

const CITIES: u32 = 5;

fn config() -> String {
    "[results]\nwindow = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\"\n[ingest]\npartitions = 5\n\
     [checkpoints]\nevery = \"1s\"\n"
        .into()
}

fn swelter(arguments: &[&str], variables: &[(&str, String)]) -> Output {
    let mut command = swelter_command();
    command.args(arguments).envs(variables.iter().map(|(name, value)| (name, value))).output().unwrap()
}

/// The standard output of a command as JSON.
fn run_json(arguments: &[&str], variables: &[(&str, String)]) -> Value {
    let output = swelter(&[arguments, &["--json"]].concat(), variables);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The error message of a command that must fail.
fn run_refused(arguments: &[&str]) -> String {
    let output = swelter(arguments, &[]);
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {line}");
    line
}

fn path_str(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Posts batches until it is stopped, one after the other, and keeps those that were acknowledged.
struct LoadPoster {
    random: Random,
    now: i64,
    oracle: Oracle,
    acked: Arc<Mutex<Vec<Vec<LogEntry>>>>,
}

impl LoadPoster {
    fn new(seed: u64) -> LoadPoster {
        let now = jiff::Timestamp::now().as_millisecond() - 6 * 3_600_000;
        let (now, oracle) = (now - now.rem_euclid(MINUTE_MS), Oracle::new(RUN_SETTINGS));
        LoadPoster { random: Random::new(seed), now, oracle, acked: Arc::default() }
    }

    fn post(&mut self, address: &str) {
        self.now += self.random.below(3) as i64 * MINUTE_MS / 8;
        let entries =
            (0..1 + self.random.below(40)).map(|_| random_entry(&mut self.random, self.now)).collect();
        let entries = keep_accepted_entries(&self.oracle, entries, &mut self.random, self.now);
        let records: Vec<String> = entries.iter().map(record_json).collect();
        let answer = post(address, "application/x-ndjson", &records.join("\n")).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        for entry in &entries {
            self.oracle.apply_arrival(entry);
        }
        self.acked.lock().push(entries);
    }
}

/// The oracle of these batches, and the records that it refuses.
fn oracle_of_batches(batches: &[Vec<LogEntry>]) -> (Oracle, Vec<String>) {
    let mut oracle = Oracle::new(RUN_SETTINGS);
    let entries = batches.iter().flatten();
    let late = entries.filter(|entry| oracle.apply_arrival(entry).is_none()).map(record_json).collect();
    (oracle, late)
}

fn record_count(batches: &[Vec<LogEntry>]) -> u64 {
    batches.iter().map(|batch| batch.len() as u64).sum()
}

/// Waits until results include the whole log; returns the number of records and the epoch.
fn wait_until_applied(address: &str) -> (u64, u64) {
    wait_for("that all is applied", || {
        let status = ServiceStatus::fetch_status(address, WAIT_TIMEOUT)?;
        (status.ready && status.applied == status.end).then_some((status.applied, status.as_of))
    })
}

/// REST, a new subscriber and the dead letters equal the oracle of these batches.
fn check_service(service: &ServiceProcess, data: &Path, batches: &[Vec<LogEntry>]) {
    let (records_, as_of) = wait_until_applied(&service.address);
    assert_eq!(records_, record_count(batches), "nothing is lost, and nothing there twice");
    let (oracle, mut late) = oracle_of_batches(batches);
    check_current(&service.address, &oracle);
    let rows: usize = (0..CITIES).map(|city| check_history(&service.address, &oracle, city)).sum();
    assert!(rows > 0);
    let mut subscriber = Subscriber::new(&[0, 1]);
    subscriber.connect(&service.address, WAIT_TIMEOUT).unwrap();
    wait_for("what a subscriber gets", || {
        subscriber.is_caught_up(as_of, WAIT_TIMEOUT).unwrap().then_some(())
    });
    subscriber.kept.check_current(&oracle);
    subscriber.kept.check_windows(&oracle);
    late.sort();
    wait_for("the dead letters, each once", || {
        let mut letters = dead_letters(data);
        letters.sort();
        (letters == late).then_some(())
    });
}

fn dead_letters(data: &Path) -> Vec<String> {
    let text = fs::read_to_string(data.join("dead-letters.jsonl")).unwrap_or_default();
    let raw = |line: &str| Some(serde_json::from_str::<Value>(line).ok()?["raw"].as_str()?.to_owned());
    text.lines().filter_map(raw).collect()
}

fn wait_for_checkpoints(data: &Path, at_least: usize) -> Option<()> {
    (published_manifests(&data.join("checkpoints")).len() >= at_least).then_some(())
}

/// The batches that a restored journal has: all that were acknowledged before, whole ones, in their
/// order.
fn restored_batches(acked: &[Vec<LogEntry>], before: usize, found: u64) -> Vec<Vec<LogEntry>> {
    let whole = (before..=acked.len()).find(|count| record_count(&acked[..*count]) == found);
    acked[..whole.unwrap_or_else(|| panic!("{found} records are not whole batches from {before} on"))]
        .to_vec()
}

/// Takes a backup while readings are posted, restores it elsewhere, and runs both services.
fn backup_and_restore_under_load(place: &str, variables: &[(&str, String)]) {
    let folder = tempfile::tempdir().unwrap();
    let (data, other) = (folder.path().join("data"), folder.path().join("other"));
    let service = ServiceProcess::start(&data, &config()).wait_until_ready();
    let mut poster = LoadPoster::new(7);
    let acked = Arc::clone(&poster.acked);
    (0..20).for_each(|_| poster.post(&service.address));
    for at_least in 1..=2 {
        wait_for("a checkpoint", || wait_for_checkpoints(&data, at_least));
        poster.post(&service.address);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, address) = (Arc::clone(&stop), service.address.clone());
    let posting = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            poster.post(&address);
        }
        poster
    });
    wait_for("posts on their way", || (acked.lock().len() > 40).then_some(()));
    let before = acked.lock().len();
    let taken = run_json(&["backup", "--to", place, "--data-dir", path_str(&data)], variables);
    assert_eq!(taken["online"], true, "{taken}");
    assert!(taken["checkpoints"].as_u64().unwrap() >= 1 && taken["left_out"] == json!([]), "{taken}");
    let ended = acked.lock().len() + 1;
    wait_for("posts behind it", || (acked.lock().len() > ended + 5).then_some(()));
    stop.store(true, Ordering::Relaxed);
    let mut poster = posting.join().unwrap();

    let restored = run_json(&["restore", "--from", place, "--data-dir", path_str(&other)], variables);
    assert_eq!(restored["records"], taken["records"]);
    let mut copied = ServiceProcess::start(&other, &config()).wait_until_ready();
    assert!(copied.log().contains("a checkpoint was restored"), "{}", copied.log());
    let mine = acked.lock().clone();
    let mut theirs = restored_batches(&mine, before, wait_until_applied(&copied.address).0);
    assert!(theirs.len() <= ended, "a backup has nothing from behind its end");
    check_service(&copied, &other, &theirs);
    check_service(&service, &data, &mine);

    // Both services continue independently, each from checkpoints of its own.
    poster.post(&service.address);
    let (known, _) = oracle_of_batches(&theirs);
    let mut another = LoadPoster { oracle: known, acked: Arc::new(Mutex::new(theirs)), ..LoadPoster::new(8) };
    (0..3).for_each(|_| another.post(&copied.address));
    let manifests = || published_manifests(&other.join("checkpoints"));
    let known = manifests();
    wait_for("a checkpoint of the restored one", || {
        manifests().iter().any(|manifest| !known.contains(manifest)).then_some(())
    });
    copied.kill();
    copied = ServiceProcess::start(&other, &config()).wait_until_ready();
    theirs = another.acked.lock().clone();
    check_service(&copied, &other, &theirs);
    check_service(&service, &data, &acked.lock().clone());
    copied.terminate();
    service.terminate();
}

#[test]
fn backup_under_load_restores_all_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    backup_and_restore_under_load(path_str(&folder.path().join("backups")), &[]);
}

#[test]
#[ignore = "needs Python: scripts/test"]
fn backup_to_s3_restores_all_that_was_acknowledged() {
    let python = prepared_variable("TEST_PYTHON");
    let store = S3Server::start(&python, 0);
    let variables = store.variables();
    backup_and_restore_under_load("s3://heat/backups", &variables);
}

/// All files below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect();
    files.sort();
    files
}

/// A stopped data directory with checkpoints and dead letters, and the batches that were posted to
/// it.
fn stopped_data_directory(data: &Path) -> Vec<Vec<LogEntry>> {
    let service = ServiceProcess::start(data, &config()).wait_until_ready();
    let mut poster = LoadPoster::new(3);
    (0..20).for_each(|_| poster.post(&service.address));
    wait_for("checkpoints", || wait_for_checkpoints(data, 1));
    (0..5).for_each(|_| poster.post(&service.address));
    service.terminate();
    poster.acked.lock().clone()
}

#[test]
fn damaged_backup_is_refused_and_restores_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (data, place) = (folder.path().join("data"), folder.path().join("backups"));
    let batches = stopped_data_directory(&data);
    let taken = run_json(&["backup", "--to", path_str(&place), "--data-dir", path_str(&data)], &[]);
    assert_eq!((&taken["online"], &taken["records"]), (&false.into(), &record_count(&batches).into()));
    let backup = PathBuf::from(taken["backup"].as_str().unwrap());
    assert_eq!(run_json(&["backup", "--verify", path_str(&place)], &[])["backup"], taken["backup"]);

    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o700);
    let all = files_below(&backup);
    // Checkpoints have many files; some are enough.
    let is_chosen =
        |(at, path): &(usize, &PathBuf)| !path.starts_with(backup.join("checkpoints")) || at % 9 == 0;
    let out = folder.path().join("out");
    for (at, path) in all.iter().enumerate().filter(is_chosen) {
        let right = fs::read(path).unwrap();
        let mut changed = right.clone();
        match changed.len() {
            0 => changed.push(b'x'),
            length => changed[(at * 7_919) % length] ^= 1 << (at % 8),
        }
        let cut = Some(right[..right.len() / 2].to_vec()).filter(|cut| *cut != right);
        for wrong in [Some(changed), cut.or(Some(b"xx".to_vec())), None] {
            match wrong {
                Some(wrong) => fs::write(path, wrong).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
            let line = run_refused(&["restore", "--from", path_str(&place), "--data-dir", path_str(&out)]);
            assert!(
                line.contains(path_str(&backup)) || line.contains("there is no backup"),
                "{path:?}: {line}"
            );
            assert!(!out.exists());
        }
        run_refused(&["backup", "--verify", path_str(&place)]);
        fs::write(path, right).unwrap();
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("restoring")), "{left:?}");

    // Nothing is restored into a folder that is not empty.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "").unwrap();
    let line = run_refused(&["restore", "--from", path_str(&place), "--data-dir", path_str(&out)]);
    assert!(line.contains("is not empty"), "{line}");
    fs::remove_file(out.join("mine")).unwrap();

    // A second backup has another name, and the newest one is restored.
    let second = run_json(&["backup", "--to", path_str(&place), "--data-dir", path_str(&data)], &[]);
    assert_ne!(second["backup"], taken["backup"]);
    assert_eq!(files_below(&backup), all);
    let restored = run_json(&["restore", "--from", path_str(&backup), "--data-dir", path_str(&out)], &[]);
    let id: Value = serde_json::from_slice(&fs::read(out.join("journal/id")).unwrap()).unwrap();
    assert_eq!(id["id"], restored["journal_id"]);
    let service = ServiceProcess::start(&out, &config()).wait_until_ready();
    check_service(&service, &out, &batches);
    service.terminate();
}

#[test]
fn backup_of_missing_or_locked_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (data, place) = (folder.path().join("data"), folder.path().join("backups"));
    let line = run_refused(&["backup", "--to", path_str(&place), "--data-dir", path_str(&data)]);
    assert!(line.contains("has no journal"), "{line}");
    assert!(!data.exists() && !place.exists());
    let line = run_refused(&["restore", "--from", path_str(&place), "--data-dir", path_str(&data)]);
    assert!(line.contains("is not a folder"), "{line}");
    let service = ServiceProcess::start(&data, &config()).wait_until_ready();
    use std::os::unix::fs::PermissionsExt as _;
    let mode =
        wait_for("the socket", || Some(fs::metadata(data.join("backup.sock")).ok()?.permissions().mode()));
    assert_eq!(mode & 0o777, 0o600);
    fs::remove_file(data.join("backup.sock")).unwrap();
    let line = run_refused(&["backup", "--to", path_str(&place), "--data-dir", path_str(&data)]);
    assert!(line.contains("in use by a process that does not answer backups"), "{line}");
    service.terminate();
}
