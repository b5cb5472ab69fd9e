//! The service against the oracle: random logs by HTTP, subscribers that reconnect, and kills at
//! random moments of a seed.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    LogEntry, MINUTE_MS, Oracle, RANDOM_CITIES, RUN_SETTINGS, Random, ServiceProcess, ServiceStatus,
    Subscriber, WAIT_TIMEOUT, check_current, check_history, keep_accepted_entries, post, random_entry,
    record_json, wait_for,
};

fn config(workers: u64) -> String {
    format!(
        "workers = {workers}\n[results]\nwindow = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\"\n[ingest]\npartitions = 5\n"
    )
}

/// A log, the service that has it, and the expected results.
struct RecoveryCase {
    random: Random,
    data: PathBuf,
    service: Option<ServiceProcess>,
    workers: u64,
    oracle: Oracle,
    recorder: Subscriber,
    /// The time of the newest reading.
    now: i64,
    records: u64,
    /// What the log has of them.
    too_late: Vec<String>,
}

impl RecoveryCase {
    fn service(&self) -> &ServiceProcess {
        self.service.as_ref().unwrap()
    }

    fn apply(&mut self, entries: &[LogEntry]) {
        self.records += entries.len() as u64;
        for entry in entries {
            if self.oracle.apply_arrival(entry).is_none() {
                self.too_late.push(record_json(entry));
            }
        }
    }

    fn next_entries(&mut self) -> Vec<LogEntry> {
        self.now += self.random.below(3) as i64 * MINUTE_MS;
        let entries =
            (0..1 + self.random.below(40)).map(|_| random_entry(&mut self.random, self.now)).collect();
        keep_accepted_entries(&self.oracle, entries, &mut self.random, self.now)
    }

    /// Posts a batch; false if the service was killed before it answered.
    fn post(&mut self, entries: &[LogEntry]) -> bool {
        let records: Vec<String> = entries.iter().map(record_json).collect();
        let answer = match self.random.below(2) {
            0 => post(&self.service().address, "application/x-ndjson", &records.join("\n")),
            _ => post(&self.service().address, "application/json", &format!("[{}]", records.join(","))),
        };
        let Ok(answer) = answer else { return false };
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!((&answer["accepted"], &answer["refused"]), (&entries.len().into(), &json!([])));
        self.apply(entries);
        true
    }

    /// Waits until results include all records; returns their number and the epoch.
    fn wait_until_applied(&self) -> (u64, u64) {
        wait_for("that all is applied", || {
            let status = ServiceStatus::fetch_status(&self.service().address, WAIT_TIMEOUT)?;
            let all = status.applied == status.end && status.applied >= self.records;
            all.then_some((status.applied, status.as_of))
        })
    }

    /// Kills the service while batches are posted, or stops it, and starts it again.
    fn restart(&mut self) {
        let mut unanswered = None;
        let service = self.service.as_ref().unwrap();
        if self.random.below(3) == 0 {
            self.service.take().unwrap().terminate();
        } else {
            let (kill, delay) = (service.kill_handle(), Duration::from_micros(self.random.below(30_000)));
            let killer = thread::spawn(move || {
                thread::sleep(delay);
                kill();
            });
            while unanswered.is_none() {
                let entries = self.next_entries();
                unanswered = (!self.post(&entries)).then_some(entries);
            }
            killer.join().unwrap();
            self.service.take().unwrap().kill();
        }
        self.workers = 1 + self.random.below(3);
        self.service = Some(ServiceProcess::start(&self.data, &config(self.workers)).wait_until_ready());
        // A batch is in the log as a whole or not at all.
        if let (Some(entries), (applied, _)) = (unanswered, self.wait_until_applied())
            && applied != self.records
        {
            self.apply(&entries);
        }
        self.recorder.connect(&self.service.as_ref().unwrap().address, WAIT_TIMEOUT).unwrap();
    }

    fn check_served(&mut self) {
        let (applied, as_of) = self.wait_until_applied();
        assert_eq!(applied, self.records, "nothing is lost, and nothing there twice");
        let address = self.service().address.clone();
        check_current(&address, &self.oracle);
        for city in 0..RANDOM_CITIES {
            check_history(&address, &self.oracle, city);
        }
        wait_for("the newest changes", || {
            self.recorder.is_caught_up(as_of, WAIT_TIMEOUT).unwrap().then_some(())
        });
        self.recorder.kept.check_current(&self.oracle);
        self.recorder.kept.check_windows(&self.oracle);
        let status = self.service().get_json("/v1/status");
        assert_eq!(status["refused"]["too_late"].as_u64().unwrap_or(0), self.too_late.len() as u64);
    }

    /// After the end: each dead letter once, with its bytes.
    fn check_dead_letters(&mut self) {
        let text = std::fs::read_to_string(self.data.join("dead-letters.jsonl")).unwrap();
        let letters: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut raw: Vec<_> =
            letters.iter().map(|letter| letter["raw"].as_str().unwrap().to_string()).collect();
        raw.sort();
        self.too_late.sort();
        assert_eq!(raw, self.too_late);
        assert!(letters.iter().all(|letter| letter["reason"] == "too_late"));
    }
}

fn run_case(seed: u64, steps: usize) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut random = Random::new(seed);
    let workers = 1 + random.below(3);
    let service = ServiceProcess::start(&data, &config(workers)).wait_until_ready();
    let mut recorder = Subscriber::new(&[0, 1]);
    recorder.connect(&service.address, WAIT_TIMEOUT).unwrap();
    let (oracle, now) = (Oracle::new(RUN_SETTINGS), jiff::Timestamp::now().as_millisecond() - 6 * 3_600_000);
    let now = now - now.rem_euclid(MINUTE_MS);
    let service = Some(service);
    let mut case = RecoveryCase {
        random,
        data,
        service,
        workers,
        oracle,
        recorder,
        now,
        records: 0,
        too_late: Vec::new(),
    };
    for step in 0..steps {
        match case.random.below(10) {
            0..5 => {
                let entries = case.next_entries();
                assert!(case.post(&entries), "seed {seed}, step {step}");
            }
            5 => case.restart(),
            6 | 7 => {
                // The subscriber disconnects and catches up.
                case.recorder.disconnect();
                let entries = case.next_entries();
                assert!(case.post(&entries), "seed {seed}, step {step}");
                let address = case.service().address.clone();
                case.recorder.connect(&address, WAIT_TIMEOUT).unwrap();
            }
            _ => case.check_served(),
        }
    }
    case.restart();
    case.check_served();
    let resets = case.recorder.kept.resets;
    let service = case.service.take().unwrap();
    let log = service.log();
    service.terminate();
    case.check_dead_letters();
    assert!(!log.contains("panic"), "seed {seed}: {log}");
    assert!(resets > 0, "a restart is a new generation");
}

/// `SWELTER_RECOVERY_CASES` runs more, from the seed `SWELTER_RECOVERY_SEED` on.
#[test]
fn served_state_equals_recomputation_over_kills() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let (cases, first) = (number("SWELTER_RECOVERY_CASES", 4), number("SWELTER_RECOVERY_SEED", 1));
    for seed in first..first + cases {
        eprintln!("seed {seed}");
        run_case(seed, 40);
    }
}
