//! The service against the oracle: random logs by HTTP, subscribers that come and go, and a server that is killed at any time.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use swelter::model::{CurrentRow, Event, EventTime, Measurement, Row};
use tokio_tungstenite::tungstenite::stream::MaybeTlsStream;
use tokio_tungstenite::tungstenite::{Message, WebSocket, connect};

use crate::harness::{Settings, city_name, city_number};
use crate::oracle::{Entry, FORMULA, Oracle};
use crate::process::{DEADLINE, Service, post, wait_for};

const CITIES: u32 = 5;
pub const MINUTE: i64 = 60_000;
pub const SETTINGS: Settings =
    Settings { formula: FORMULA, window: 30 * MINUTE, lateness: 90 * MINUTE, history: 60 * MINUTE };

fn config(workers: u64) -> String {
    format!(
        "workers = {workers}\n[results]\nwindow = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\"\n[ingest]\npartitions = 5\n"
    )
}

/// SplitMix64, so that a seed names a case.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }

    pub fn entry(&mut self, now: i64) -> Entry {
        // Mostly new, often of what was before, sometimes too old.
        let back = match self.next(10) {
            0..5 => 0,
            5..9 => self.next(80) as i64,
            _ => self.next(200) as i64,
        };
        let event = match self.next(8) {
            0 => Event::Withdrawal,
            _ => {
                let (t, h) = (60.0 + self.next(500) as f64 / 10.0, self.next(1000) as f64 / 10.0);
                Event::Reading(Measurement::new(t, h, None).unwrap())
            }
        };
        let revision = (self.next(4) == 0).then(|| self.next(3) as i64);
        Entry { city: self.next(CITIES.into()) as u32, millis: now - back * MINUTE, event, revision }
    }
}

pub fn written(entry: &Entry) -> String {
    let mut record = json!({
        "city": city_name(entry.city),
        "reading_at": EventTime::from_millis(entry.millis).unwrap().to_string(),
    });
    match entry.event {
        Event::Reading(measurement) | Event::Retried(measurement) => {
            record["temperature"] = measurement.temperature().into();
            record["humidity"] = measurement.humidity().into();
        }
        Event::Withdrawal => record["deleted"] = true.into(),
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
pub fn numbers(row: &Value) -> Value {
    let value = |value: &Value| value.as_f64().map_or_else(|| value.clone(), Value::from);
    row.as_object().unwrap().iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// Rows by city, and by time where the subscription is of windows; all by their text.
type Rows = BTreeMap<(String, String), Value>;

/// A client that keeps what docs/protocol.md says a client keeps.
struct Recorder {
    socket: Option<WebSocket<MaybeTlsStream<TcpStream>>>,
    /// By subscription: `all` is of current rows, `some` of the windows of two cities.
    kept: BTreeMap<&'static str, (Rows, Option<String>)>,
    resets: usize,
}

impl Recorder {
    const SUBSCRIPTIONS: [&'static str; 2] = ["all", "some"];

    fn new() -> Recorder {
        let kept = Self::SUBSCRIPTIONS.map(|id| (id, Default::default())).into();
        Recorder { socket: None, kept, resets: 0 }
    }

    fn connect(&mut self, address: &str) {
        let (mut socket, _) = connect(format!("ws://{address}/v1/subscribe")).unwrap();
        if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
        }
        for (id, (_, token)) in &self.kept {
            let mut subscribe = match *id {
                "all" => json!({"type": "subscribe", "id": id, "cities": "all"}),
                _ => {
                    json!({"type": "subscribe", "id": id, "cities": [city_name(0), city_name(1)], "rows": "window"})
                }
            };
            if let Some(token) = token {
                subscribe["resume"] = token.as_str().into();
            }
            socket.send(Message::text(subscribe.to_string())).unwrap();
        }
        self.socket = Some(socket);
    }

    /// Reads until everything up to `as_of` is there.
    fn catch_up(&mut self, as_of: u64) {
        let mut socket = self.socket.take().unwrap();
        wait_for("the newest changes", || {
            socket.send(Message::text(r#"{"type":"ping"}"#)).unwrap();
            loop {
                let Message::Text(text) = socket.read().unwrap() else { continue };
                let message: Value = serde_json::from_str(&text).unwrap();
                if message["type"] == "pong" {
                    return self.is_complete(&message, as_of).then_some(());
                }
                self.take(&message);
            }
        });
        self.socket = Some(socket);
    }

    /// A snapshot may still be on its way: without it there is no token.
    fn is_complete(&self, pong: &Value, as_of: u64) -> bool {
        pong["as_of"].as_u64().unwrap() >= as_of && self.kept.values().all(|(_, token)| token.is_some())
    }

    fn take(&mut self, message: &Value) {
        let id = message["id"].as_str().unwrap_or_default();
        let kind = message["type"].as_str().unwrap();
        if kind == "hello" || kind == "heartbeat" {
            return;
        }
        let Some((rows, token)) = self.kept.get_mut(id) else { panic!("{message}") };
        let key = |row: &Value| {
            let of_window = if id == "some" { row["reading_at"].as_str().unwrap() } else { "" };
            (row["city"].as_str().unwrap().to_string(), of_window.to_string())
        };
        match kind {
            "reset" => {
                rows.clear();
                *token = None;
                self.resets += 1;
            }
            "snapshot" | "changes" => {
                let set = if kind == "snapshot" { &message["rows"] } else { &message["upserts"] };
                let mut keys = std::collections::BTreeSet::new();
                for row in set.as_array().unwrap() {
                    assert!(keys.insert(key(row)), "a key twice: {message}");
                    rows.insert(key(row), numbers(row));
                }
                for removed in message["removals"].as_array().into_iter().flatten() {
                    assert!(keys.insert(key(removed)), "a key twice: {message}");
                    rows.remove(&key(removed));
                }
                *token = message["token"].as_str().map(str::to_string).or(token.take());
            }
            _ => panic!("{message}"),
        }
    }
}

/// A log, the service that has it, and what it must say.
struct Case {
    random: Random,
    data: PathBuf,
    service: Option<Service>,
    workers: u64,
    oracle: Oracle,
    recorder: Recorder,
    /// The time of the newest reading.
    now: i64,
    records: u64,
    /// What the log has of them.
    too_late: Vec<String>,
}

impl Case {
    fn service(&self) -> &Service {
        self.service.as_ref().unwrap()
    }

    fn apply(&mut self, entries: &[Entry]) {
        self.records += entries.len() as u64;
        for entry in entries {
            if self.oracle.apply(entry).is_none() {
                self.too_late.push(written(entry));
            }
        }
    }

    fn entries(&mut self) -> Vec<Entry> {
        self.now += self.random.next(3) as i64 * MINUTE;
        (0..1 + self.random.next(40)).map(|_| self.random.entry(self.now)).collect()
    }

    /// Posts a batch; false where the server did not live to answer.
    fn post(&mut self, entries: &[Entry]) -> bool {
        let records: Vec<String> = entries.iter().map(written).collect();
        let answer = match self.random.next(2) {
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
    fn applied(&self) -> (u64, u64) {
        wait_for("that all is applied", || {
            let status = self.service().get("/v1/status");
            let partitions: Vec<&Value> = status["sources"]
                .as_array()?
                .iter()
                .flat_map(|source| source["partitions"].as_array().into_iter().flatten())
                .collect();
            let sum = |name: &str| partitions.iter().map(|p| p[name].as_u64().unwrap()).sum::<u64>();
            let (applied, end) = (sum("applied"), sum("end"));
            (applied == end && applied >= self.records).then(|| (applied, status["as_of"].as_u64().unwrap()))
        })
    }

    /// Kills the server while batches are posted, and starts it anew; or stops it.
    fn restart(&mut self) {
        let mut unanswered = None;
        let service = self.service.as_ref().unwrap();
        if self.random.next(3) == 0 {
            self.service.take().unwrap().terminate();
        } else {
            let (kill, delay) = (service.killer(), Duration::from_micros(self.random.next(30_000)));
            let killer = thread::spawn(move || {
                thread::sleep(delay);
                kill();
            });
            while unanswered.is_none() {
                let entries = self.entries();
                unanswered = (!self.post(&entries)).then_some(entries);
            }
            killer.join().unwrap();
            self.service.take().unwrap().kill();
        }
        self.workers = 1 + self.random.next(3);
        self.service = Some(Service::start(&self.data, &config(self.workers)).ready());
        // A batch is in the log as a whole or not at all.
        if let (Some(entries), (applied, _)) = (unanswered, self.applied())
            && applied != self.records
        {
            self.apply(&entries);
        }
        self.recorder.connect(&self.service.as_ref().unwrap().address);
    }

    fn check(&mut self) {
        let (applied, as_of) = self.applied();
        assert_eq!(applied, self.records, "nothing is lost, and nothing there twice");
        let expected: Vec<Value> =
            self.oracle.current().iter().map(|(city, row)| current_json(&city_name(*city), row)).collect();
        let cities = self.service().get("/v1/cities?order=city");
        let served = cities["cities"].as_array().unwrap().iter().map(|city| &city["current"]);
        assert_eq!(served.filter(|row| !row.is_null()).map(numbers).collect::<Vec<_>>(), expected);
        for city in 0..CITIES {
            self.check_history(city);
        }
        self.recorder.catch_up(as_of);
        let current: Vec<&Value> = self.recorder.kept["all"].0.values().collect();
        assert_eq!(current, expected.iter().collect::<Vec<_>>(), "what a subscriber has");
        let windows = &self.recorder.kept["some"].0;
        for city in 0..2 {
            for (at, row) in self.oracle.servable(city) {
                let expected = row_json(&city_name(city), at, &row);
                let key = (city_name(city), expected["reading_at"].as_str().unwrap().to_string());
                assert_eq!(windows.get(&key), Some(&expected), "what a subscriber of windows has");
            }
        }
        // Final rows may stay, but never one that was withdrawn.
        for ((city, at), row) in windows {
            let at = EventTime::parse(at, None).unwrap().millis();
            let expected = self.oracle.row(city_number(city), at);
            assert_eq!(
                Some(row),
                expected.map(|row| row_json(city, at, &row)).as_ref(),
                "a row that is gone"
            );
        }
        let status = self.service().get("/v1/status");
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

    /// All pages of a city's history.
    fn check_history(&self, city: u32) {
        let name = city_name(city);
        let path = format!("/v1/cities/{}/history?limit=25", name.replace(' ', "%20"));
        let expected: Vec<Value> =
            self.oracle.servable(city).iter().map(|(at, row)| row_json(&name, *at, row)).collect();
        if !self.oracle.knows(city) {
            return;
        }
        let (mut rows, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.service().get(&match &cursor {
                None => path.clone(),
                Some(cursor) => format!("{path}&cursor={cursor}"),
            });
            rows.extend(page["rows"].as_array().unwrap().iter().map(numbers));
            match page["next"].as_str() {
                Some(next) => cursor = Some(next.to_string()),
                None => break,
            }
        }
        assert_eq!(rows, expected, "history");
    }
}

fn run(seed: u64, steps: usize) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut random = Random(seed);
    let workers = 1 + random.next(3);
    let service = Service::start(&data, &config(workers)).ready();
    let mut recorder = Recorder::new();
    recorder.connect(&service.address);
    let (oracle, now) = (Oracle::new(SETTINGS), jiff::Timestamp::now().as_millisecond() - 6 * 3_600_000);
    let now = now - now.rem_euclid(MINUTE);
    let service = Some(service);
    let mut case =
        Case { random, data, service, workers, oracle, recorder, now, records: 0, too_late: Vec::new() };
    for step in 0..steps {
        match case.random.next(10) {
            0..5 => {
                let entries = case.entries();
                assert!(case.post(&entries), "seed {seed}, step {step}");
            }
            5 => case.restart(),
            6 | 7 => {
                // A break: what comes meanwhile is made up for.
                case.recorder.socket = None;
                let entries = case.entries();
                assert!(case.post(&entries), "seed {seed}, step {step}");
                let address = case.service().address.clone();
                case.recorder.connect(&address);
            }
            _ => case.check(),
        }
    }
    case.restart();
    case.check();
    let resets = case.recorder.resets;
    let service = case.service.take().unwrap();
    let log = service.log();
    service.terminate();
    case.check_dead_letters();
    assert!(!log.contains("panic"), "seed {seed}: {log}");
    assert!(resets > 0, "a restart is a new generation");
}

/// `SWELTER_RECOVERY_CASES` runs more, from the seed `SWELTER_RECOVERY_SEED` on.
#[test]
fn what_is_served_equals_the_recomputation_whatever_is_killed() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let (cases, first) = (number("SWELTER_RECOVERY_CASES", 4), number("SWELTER_RECOVERY_SEED", 1));
    for seed in first..first + cases {
        eprintln!("seed {seed}");
        run(seed, 40);
    }
}
