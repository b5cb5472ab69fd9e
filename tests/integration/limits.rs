//! The built program within limits of its host: open files, threads, and the size of files, which
//! stands for a full disk. Nothing that a client or a neighbour does within them ends it, loses
//! anything or gives a wrong remedy.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, getuid, setrlimit};
use serde_json::Value;
use swelter::internals::model::{Measurement, ReadingEvent};

use crate::support::http::KeepAliveClient;
use crate::support::{
    LogEntry, MINUTE_MS, Oracle, RUN_SETTINGS, Random, ServiceBuilder, ServiceProcess, check_current,
    check_history, get, keep_accepted_entries, random_entry, record_json, swelter_command_behind, wait_for,
};

const CONFIG: &str = "[results]\nwindow = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\"\n[ingest]\npartitions = 5\n\
     [checkpoints]\nevery = \"1s\"\n";
const OPEN_FILE_LIMIT: u64 = 256;
const IDLE_CONNECTIONS: usize = 400;
/// Epochs are reserved for 3 s.
const SEVERAL_RESERVATION_TIMES: Duration = Duration::from_secs(7);
/// Between two posts, to leave CPU time for other tests.
const POST_INTERVAL: Duration = Duration::from_millis(50);

/// Posted readings, and their expected results.
struct PostedLoad {
    random: Random,
    oracle: Oracle,
    now: i64,
    records: u64,
    too_late: Vec<String>,
}

impl PostedLoad {
    fn new(seed: u64) -> PostedLoad {
        let now = jiff::Timestamp::now().as_millisecond() - 24 * 3_600_000;
        let now = now - now.rem_euclid(MINUTE_MS);
        let (random, oracle) = (Random::new(seed), Oracle::new(RUN_SETTINGS));
        PostedLoad { random, oracle, now, records: 0, too_late: Vec::new() }
    }

    fn next_entries(&mut self) -> Vec<LogEntry> {
        self.now += MINUTE_MS;
        let entries = (0..20).map(|_| random_entry(&mut self.random, self.now)).collect();
        keep_accepted_entries(&self.oracle, entries, &mut self.random, self.now)
    }

    /// Posts some, which must be acknowledged.
    fn post(&mut self, client: &mut KeepAliveClient) {
        let entries = self.next_entries();
        let lines: Vec<String> = entries.iter().map(record_json).collect();
        self.post_lines(client, &entries, lines);
    }

    fn post_lines(&mut self, client: &mut KeepAliveClient, entries: &[LogEntry], lines: Vec<String>) {
        let response = client.post(&lines.join("\n"));
        assert_eq!(response.status, 200, "{}", response.body);
        self.records += entries.len() as u64;
        for (entry, line) in entries.iter().zip(lines) {
            if self.oracle.apply_arrival(entry).is_none() {
                self.too_late.push(line);
            }
        }
    }

    /// Posts a reading that is too late, with so many bytes of padding: its dead letter is long, in
    /// the journal it is short.
    fn post_too_late(&mut self, client: &mut KeepAliveClient, padding: usize) {
        self.now += MINUTE_MS;
        let event = ReadingEvent::Reading(Measurement::new(80.0, 50.0, None).unwrap());
        // The first makes the second too late, which only the log shows.
        let newest = LogEntry { city: 0, millis: self.now, event, revision: None };
        let late = LogEntry { millis: self.now - RUN_SETTINGS.lateness - MINUTE_MS / 2, ..newest };
        let line = record_json(&late).replacen('{', &format!("{{\"note\":\"{}\",", "x".repeat(padding)), 1);
        let before = self.too_late.len();
        let lines = vec![record_json(&newest), line];
        self.post_lines(client, &[newest, late], lines);
        assert_eq!(self.too_late.len(), before + 1);
    }

    fn wait_until_applied(&self, client: &mut KeepAliveClient) {
        wait_for("that all is applied", || {
            (applied_records(&service_status(client)) == self.records).then_some(())
        });
    }

    /// The results, by new connections.
    fn check_results(&self, address: &str) {
        check_current(address, &self.oracle);
        for city in 0..5 {
            check_history(address, &self.oracle, city);
        }
    }

    /// After the end: each dead letter once, with its bytes.
    fn check_dead_letters(&mut self, data: &Path) {
        let text = fs::read_to_string(data.join("dead-letters.jsonl")).unwrap();
        let letters = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut raw: Vec<String> = letters.map(|letter| letter["raw"].as_str().unwrap().into()).collect();
        raw.sort();
        self.too_late.sort();
        assert_eq!(raw, self.too_late);
    }
}

/// A long record that does not compress.
fn incompressible_record(entry: &LogEntry, random: &mut Random) -> String {
    let noise: String = (0..30_000).map(|_| (b'a' + random.below(26) as u8) as char).collect();
    record_json(entry).replacen('{', &format!("{{\"note\":\"{noise}\","), 1)
}

fn service_status(client: &mut KeepAliveClient) -> Value {
    let response = client.get("/v1/status");
    assert_eq!(response.status, 200, "{}", response.body);
    response.json()
}

/// Records of the journal that are in the results.
fn applied_records(status: &Value) -> u64 {
    let partitions = status["sources"].as_array().into_iter().flatten();
    let partitions = partitions.flat_map(|source| source["partitions"].as_array().into_iter().flatten());
    partitions.map(|partition| partition["applied"].as_u64().unwrap()).sum()
}

/// Sets a soft limit of a service that runs, as in `--nofile=8:`.
fn set_soft_limit(service: &ServiceProcess, limit: &str) {
    let pid = service.pid().as_raw_nonzero().to_string();
    let set = command_as_user_of(service, "prlimit").args(["--pid", &pid, limit]).status().unwrap();
    assert!(set.success(), "{limit}");
}

/// A program that runs as the user of a service, who alone may limit it.
fn command_as_user_of(service: &ServiceProcess, program: &str) -> Command {
    let owner = fs::metadata(format!("/proc/{}", service.pid().as_raw_nonzero())).unwrap();
    if owner.uid() == getuid().as_raw() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    let (user, group) = (format!("--reuid={}", owner.uid()), format!("--regid={}", owner.gid()));
    command.args([&user, &group, "--clear-groups", program]);
    command
}

/// Raises the limit of open files above the usual thousand.
fn allow_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(8192, |most| most.min(8192));
    limit.current = limit.current.map(|current| current.max(wanted));
    setrlimit(Resource::Nofile, limit).unwrap();
}

fn metric_value(client: &mut KeepAliveClient, name: &str) -> f64 {
    let text = client.get("/metrics").body;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
}

/// Epochs below this one are durably taken.
fn reserved_epoch_bound(data: &Path) -> u64 {
    let bound = |name: &&str| {
        let text = fs::read_to_string(data.join(name)).ok()?;
        serde_json::from_str::<Value>(text.lines().next()?).ok()?["epochs"].as_u64()
    };
    ["generation-0", "generation-1"].iter().filter_map(bound).max().unwrap()
}

fn assert_no_panic(log: &str) {
    assert!(!log.contains("panic"), "{log}");
}

#[test]
fn idle_connections_beyond_open_file_limit_do_not_affect_others() {
    allow_open_files();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let service = ServiceBuilder::new(CONFIG)
        .data(&data)
        .behind(&format!("ulimit -n {OPEN_FILE_LIMIT}"))
        .start()
        .wait_until_ready();
    let (mut load, mut client) = (PostedLoad::new(1), KeepAliveClient::open(&service.address));
    load.post(&mut client);
    let served = metric_value(&mut client, "swelter_connections_limit") as usize;
    assert!((64..OPEN_FILE_LIMIT as usize).contains(&served), "{served}");

    let idle: Vec<TcpStream> =
        (0..IDLE_CONNECTIONS).map(|_| TcpStream::connect(&service.address).unwrap()).collect();
    let began = Instant::now();
    while began.elapsed() < SEVERAL_RESERVATION_TIMES {
        load.post(&mut client);
        load.wait_until_applied(&mut client);
        thread::sleep(POST_INTERVAL);
    }
    assert!(
        metric_value(&mut client, "swelter_connections_refused_total") >= (IDLE_CONNECTIONS - served) as f64
    );
    let open = idle.iter().filter(|stream| is_open(stream)).count();
    assert!(open < served, "{open} of {served} are open");

    drop(idle);
    wait_for("connections", || (get(&service.address, "/readyz").ok()?.status == 200).then_some(()));
    load.check_results(&service.address);
    assert!(!load.too_late.is_empty(), "there are dead letters");
    let log = service.log();
    service.terminate();
    load.check_dead_letters(&data);
    assert_no_panic(&log);
    assert!(log.contains(&format!("\"connections\":{served}")), "{log}");
    assert!(!log.contains("os error 24"), "the reserve is enough: {log}");
}

/// Whether the service has neither closed the connection nor answered that there are too many.
fn is_open(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    matches!(stream.read(&mut [0; 16]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn too_low_open_file_limit_refuses_start_with_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (code, text) = ServiceBuilder::new(CONFIG).data(&data).behind("ulimit -n 80").run_to_end();
    assert_eq!(code, Some(1), "{text}");
    let line = text.lines().last().unwrap();
    for part in ["may open 80 files", "of which the run itself needs", "`ulimit -n ", "LimitNOFILE="] {
        assert!(line.contains(part), "{part}: {text}");
    }
    assert!(!data.exists(), "nothing was begun");
    let demo =
        swelter_command_behind("ulimit -n 80").args(["demo", "--listen", "127.0.0.1:0"]).output().unwrap();
    let text = String::from_utf8(demo.stderr).unwrap();
    assert!(demo.status.code() == Some(1) && text.contains("may open 80 files"), "{text}");
    // The limit that the message names is enough.
    let (_, needed) = line.split_once("LimitNOFILE=").unwrap();
    let needed: u64 = needed.trim_end_matches(')').parse().unwrap();
    ServiceBuilder::new(CONFIG)
        .data(&data)
        .behind(&format!("ulimit -n {needed}"))
        .start()
        .wait_until_ready()
        .terminate();
}

#[test]
fn results_wait_while_no_file_can_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let service = ServiceProcess::start(&data, CONFIG).wait_until_ready();
    let (mut load, mut client) = (PostedLoad::new(2), KeepAliveClient::open(&service.address));
    load.post(&mut client);
    load.wait_until_applied(&mut client);

    set_soft_limit(&service, "--nofile=8:");
    let began = Instant::now();
    while began.elapsed() < SEVERAL_RESERVATION_TIMES {
        load.post(&mut client);
        let as_of = service_status(&mut client)["as_of"].as_u64().unwrap();
        assert!(as_of < reserved_epoch_bound(&data), "epochs beyond the durable bound are in use");
        thread::sleep(POST_INTERVAL);
    }
    assert!(applied_records(&service_status(&mut client)) < load.records, "results wait");
    assert_eq!(metric_value(&mut client, "swelter_task_failing{task=\"epochs\"}"), 1.0);
    let log = service.log();
    for part in ["cannot reserve epochs", "os error 24", "raise `ulimit -n`", "results are held back"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(!log.contains("readable and writable"), "{log}");
    assert_eq!(log.matches("cannot reserve epochs").count(), 1, "one line a minute: {log}");

    set_soft_limit(&service, "--nofile=1024:");
    load.wait_until_applied(&mut client);
    load.check_results(&service.address);
    assert_eq!(metric_value(&mut client, "swelter_task_failing{task=\"epochs\"}"), 0.0);
    assert_no_panic(&service.log());
    service.terminate();
    load.check_dead_letters(&data);
}

#[test]
fn results_wait_while_dead_letters_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let service = ServiceProcess::start(&data, CONFIG).wait_until_ready();
    let (mut load, mut client) = (PostedLoad::new(3), KeepAliveClient::open(&service.address));
    load.post(&mut client);
    for _ in 0..30 {
        load.post_too_late(&mut client, 5_000);
    }
    load.wait_until_applied(&mut client);
    let letters = data.join("dead-letters.jsonl");
    let wanted: usize = load.too_late.iter().map(String::len).sum();
    let full = wait_for("the dead letters", || {
        Some(fs::metadata(&letters).unwrap().len()).filter(|len| *len > wanted as u64)
    });

    set_soft_limit(&service, &format!("--fsize={full}:"));
    load.post_too_late(&mut client, 5_000);
    wait_for("the log", || service.log().contains("cannot write dead letters").then_some(()));
    let before = applied_records(&service_status(&mut client));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        load.post(&mut client);
        thread::sleep(POST_INTERVAL);
    }
    let status = service_status(&mut client);
    assert!(applied_records(&status) == before && before < load.records, "sources do not wait: {status}");
    let log = service.log();
    for part in ["dead-letters.jsonl: File too large", "raise `ulimit -f`", "sources wait"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert_eq!(fs::metadata(&letters).unwrap().len(), full, "no part of a line is left");

    set_soft_limit(&service, "--fsize=unlimited:");
    load.wait_until_applied(&mut client);
    load.check_results(&service.address);
    assert_no_panic(&service.log());
    service.terminate();
    load.check_dead_letters(&data);
}

#[test]
fn full_disk_of_journal_ends_service_with_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut service = ServiceProcess::start(&data, CONFIG).wait_until_ready();
    let (mut load, mut client) = (PostedLoad::new(4), KeepAliveClient::open(&service.address));
    load.post(&mut client);
    load.wait_until_applied(&mut client);
    // The log is a file, too: it stays below.
    set_soft_limit(&service, "--fsize=65536:");
    let long: Vec<String> =
        load.next_entries().iter().map(|entry| incompressible_record(entry, &mut load.random)).collect();
    let response = client.post(&long.join("\n"));
    assert!(
        response.status == 500 && response.body.contains("File too large"),
        "{} {}",
        response.status,
        response.body
    );
    assert_eq!(service.wait_for_exit().code(), Some(1), "{}", service.log());
    let log = service.log();
    let line = log.lines().last().unwrap();
    for part in ["journal cannot be written (File too large", "raise `ulimit -f`", "then start again"] {
        assert!(line.contains(part), "{part}: {log}");
    }
    for part in ["Poisoned", "readable and writable"] {
        assert!(!log.contains(part), "{part}: {log}");
    }
    assert_no_panic(&log);
    drop(service);
    let service = ServiceProcess::start(&data, CONFIG).wait_until_ready();
    let mut client = KeepAliveClient::open(&service.address);
    load.wait_until_applied(&mut client);
    load.check_results(&service.address);
    service.terminate();
    load.check_dead_letters(&data);
}

#[test]
fn full_disk_of_batch_output_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.csv");
    let mut text = String::from("city,reading_at,temperature,humidity\n");
    for minute in 0..60 {
        text += &format!("x,2025-11-24T16:{minute:02}:00Z,90,50\n");
    }
    fs::write(&input, text).unwrap();
    // In blocks of 512 bytes.
    let ran = swelter_command_behind("ulimit -f 1")
        .args(["batch", "in.csv", "-o", "rows.csv"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{text}");
    assert!(
        text.contains("rows.csv cannot be written: File too large") && text.contains("`ulimit -f`"),
        "{text}"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left");
}

/// What this user may start is counted of all its processes: so it is one that has none.
#[test]
fn too_low_thread_limit_refuses_start_with_remedy() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(
        folder.path().join("in.csv"),
        "city,reading_at,temperature,humidity\nx,2025-11-24T16:00:00Z,90,50\n",
    )
    .unwrap();
    let run = |threads: u32, arguments: &[&str]| {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nproc={threads}"));
        if getuid().is_root() {
            command.args(["setpriv", "--reuid=64321", "--regid=64321", "--clear-groups"]);
        }
        command.arg(env!("CARGO_BIN_EXE_swelter")).args(arguments);
        let ran = command.current_dir(folder.path()).stdin(Stdio::null()).output().unwrap();
        (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
    };
    let counts: &[u32] = if getuid().is_root() { &[1, 2, 4, 8, 16] } else { &[1] };
    for threads in counts {
        for arguments in [
            &["run", "--listen", "127.0.0.1:0", "--data-dir", "data"][..],
            &["run", "--listen", "127.0.0.1:0", "--data-dir", "data", "--workers", "8"],
            &["batch", "in.csv", "-o", "rows.csv", "--workers", "16"],
        ] {
            let (code, text) = run(*threads, arguments);
            assert_eq!(code, Some(1), "{threads} threads, {arguments:?}: {text}");
            let line = text.lines().last().unwrap();
            for part in ["threads cannot be started", "`ulimit -u`", "pids.max"] {
                assert!(line.contains(part), "{threads} threads, {arguments:?}: {text}");
            }
            assert_no_panic(&text);
        }
    }
}

/// Threads that decode long bodies and compress long responses are started beforehand.
#[test]
fn requests_are_answered_while_no_thread_can_be_started() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let data = folder.path().join("data");
    // The limit does not apply to root, so the test needs another user.
    let other = "exec setpriv --reuid=64322 --regid=64322 --clear-groups \"$0\" \"$@\"";
    let before = if getuid().is_root() { other } else { "true" };
    let service = ServiceBuilder::new(CONFIG).data(&data).behind(before).start().wait_until_ready();
    set_soft_limit(&service, "--nproc=1:");
    let (mut load, mut client) = (PostedLoad::new(5), KeepAliveClient::open(&service.address));
    for _ in 0..3 {
        let entries = load.next_entries();
        let long: Vec<String> =
            entries.iter().map(|entry| incompressible_record(entry, &mut load.random)).collect();
        load.post_lines(&mut client, &entries, long);
        let address = client.address.clone();
        let page = "GET /v1/openapi.json HTTP/1.1\r\nAccept-Encoding: gzip\r\nHost: ";
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(format!("{page}{address}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        load.wait_until_applied(&mut client);
    }
    load.check_results(&service.address);
    assert_no_panic(&service.log());
    service.terminate();
}
