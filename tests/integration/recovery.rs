//! The service against the oracle: random logs by HTTP, subscribers that come and go, and a server that is killed at any time.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use swelter::internals::model::{CurrentRow, EventTime, Measurement, ReadingEvent, Row};

use crate::dataflow_runner::{RunSettings, city_name};
use crate::oracle::{DEFAULT_FORMULA, LogEntry, Oracle};
use crate::rest_checks::{ServiceStatus, check_current, check_history};
use crate::service_process::{ServiceProcess, WAIT_TIMEOUT, post, wait_for};
use crate::subscriber::Subscriber;

const CITIES: u32 = 5;
pub const MINUTE_MS: i64 = 60_000;
pub const RUN_SETTINGS: RunSettings = RunSettings {
    formula: DEFAULT_FORMULA,
    window: 30 * MINUTE_MS,
    lateness: 90 * MINUTE_MS,
    history: 60 * MINUTE_MS,
};

fn config(workers: u64) -> String {
    format!(
        "workers = {workers}\n[results]\nwindow = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\"\n[ingest]\npartitions = 5\n"
    )
}

/// SplitMix64, so that a seed names a case.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }

    pub fn random_entry(&mut self, now: i64) -> LogEntry {
        // Mostly new, often of what was before, sometimes too old.
        let back = match self.below(10) {
            0..5 => 0,
            5..9 => self.below(80) as i64,
            _ => self.below(200) as i64,
        };
        let event = match self.below(8) {
            0 => ReadingEvent::Withdrawal,
            _ => {
                let (t, h) = (60.0 + self.below(500) as f64 / 10.0, self.below(1000) as f64 / 10.0);
                ReadingEvent::Reading(Measurement::new(t, h, None).unwrap())
            }
        };
        let revision = (self.below(4) == 0).then(|| self.below(3) as i64);
        LogEntry { city: self.below(CITIES.into()) as u32, millis: now - back * MINUTE_MS, event, revision }
    }
}

/// Of entries those that a server takes, whatever it has heard of: what is too late then is refused in its answer. What one post itself
/// makes too late is a dead letter, and some of that is added.
pub fn keep_accepted_entries(
    oracle: &Oracle,
    mut entries: Vec<LogEntry>,
    random: &mut Random,
    now: i64,
) -> Vec<LogEntry> {
    entries.retain(|entry| !oracle.is_too_late(entry));
    let event = ReadingEvent::Reading(Measurement::new(75.0, 50.0, None).unwrap());
    let city = random.below(CITIES.into()) as u32;
    let newest = LogEntry { city, millis: now, event, revision: None };
    let late = LogEntry { millis: now - RUN_SETTINGS.lateness - MINUTE_MS / 20, ..newest };
    if entries.is_empty() || random.below(3) == 0 {
        entries.push(newest);
        entries.extend(Some(late).filter(|late| !oracle.is_too_late(late)));
    }
    entries
}

pub fn record_json(entry: &LogEntry) -> String {
    let mut record = json!({
        "city": city_name(entry.city),
        "reading_at": EventTime::from_millis(entry.millis).unwrap().to_string(),
    });
    match entry.event {
        ReadingEvent::Reading(measurement) | ReadingEvent::RetriedReading(measurement) => {
            record["temperature"] = measurement.temperature().into();
            record["humidity"] = measurement.humidity().into();
        }
        ReadingEvent::Withdrawal => record["deleted"] = true.into(),
    }
    if let Some(revision) = entry.revision {
        record["revision"] = revision.into();
    }
    record.to_string()
}

pub fn row_json(city: &str, millis: i64, row: &Row) -> Value {
    json!({
        "city": city,
        "reading_at": EventTime::from_millis(millis).unwrap().to_string(),
        "heat_index": row.heat_index().fahrenheit(),
        "rolling_heat_index": row.rolling_heat_index(),
        "count": f64::from(row.count()),
        "category": row.category().name(),
    })
}

pub fn current_json(city: &str, current: &CurrentRow) -> Value {
    let mut row = row_json(city, current.reading_at.millis(), &current.row);
    row["trend"] = current.trend().into();
    row["temperature"] = current.measurement.map(|m| m.temperature()).into();
    row["humidity"] = current.measurement.map(|m| m.humidity()).into();
    row["wind_speed"] = current.measurement.and_then(|m| m.wind_speed()).into();
    row
}

/// Numbers are compared as what they are, not as they are written.
pub fn normalize_numbers(row: &Value) -> Value {
    let value = |value: &Value| value.as_f64().map_or_else(|| value.clone(), Value::from);
    row.as_object().unwrap().iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// A log, the service that has it, and what it must say.
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
        let entries = (0..1 + self.random.below(40)).map(|_| self.random.random_entry(self.now)).collect();
        keep_accepted_entries(&self.oracle, entries, &mut self.random, self.now)
    }

    /// Posts a batch; false where the server did not live to answer.
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

    /// How many records the log has, once they all are in the results, and as of when.
    fn wait_until_applied(&self) -> (u64, u64) {
        wait_for("that all is applied", || {
            let status = ServiceStatus::fetch_status(&self.service().address, WAIT_TIMEOUT)?;
            let all = status.applied == status.end && status.applied >= self.records;
            all.then_some((status.applied, status.as_of))
        })
    }

    /// Kills the server while batches are posted, and starts it anew; or stops it.
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
        for city in 0..CITIES {
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
    let mut random = Random(seed);
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
                // A break: what comes meanwhile is made up for.
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
