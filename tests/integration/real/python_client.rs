//! A subscriber in Python, on a WebSocket library that nobody here wrote, against the oracle: through corrections, withdrawals,
//! cut sockets and kills of the service.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use serde_json::{Value, json};
use swelter::internals::model::{CurrentRow, EventTime, Measurement, ReadingEvent, Row};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use super::http;
use super::prepared_variable;
use super::service::ServiceProcess;
use crate::dataflow_runner::RunSettings;
use crate::oracle::{DEFAULT_FORMULA, LogEntry, Oracle};
use crate::service_process::WAIT_TIMEOUT;

const MINUTE_MS: i64 = 60_000;
const SETTINGS: RunSettings = RunSettings {
    formula: DEFAULT_FORMULA,
    window: 30 * MINUTE_MS,
    lateness: 60 * MINUTE_MS,
    history: 45 * MINUTE_MS,
};
const CONFIG: &str = "workers = 2\n[results]\nwindow = \"30m\"\nlateness = \"60m\"\nhistory = \"45m\"\n\
     [serve.limits]\nheartbeat = \"1s\"\n";
/// Two of them lie in the box; the last one never has a reading.
const CITIES: [&str; 7] =
    ["5128581", "1796236", "5368361", "x", "京都", "a \"quoted\" \\ city", "nothing yet"];
const ROUND_COUNT: u64 = 300;
/// What happens now and then: every so many rounds.
const CUT_EVERY_ROUNDS: u64 = 7;
const SETTLE_EVERY_ROUNDS: u64 = 10;
const KILL_EVERY_ROUNDS: u64 = 45;

struct Subscription {
    id: &'static str,
    ask: Value,
    cities: &'static [u32],
}

fn subscriptions() -> [Subscription; 4] {
    let names = |cities: &[u32]| -> Vec<_> { cities.iter().map(|&city| CITIES[city as usize]).collect() };
    let listed = |id, cities: &'static [u32], rows: &str| Subscription {
        id,
        ask: json!({"cities": names(cities), "rows": rows}),
        cities,
    };
    [
        Subscription { id: "all", ask: json!({"cities": "all"}), cities: &[0, 1, 2, 3, 4, 5, 6] },
        Subscription {
            id: "box",
            ask: json!({"box": [-130, 20, -60, 55], "rows": "latest"}),
            cities: &[0, 2],
        },
        listed("list", &[1, 3, 4, 6], "latest"),
        listed("window", &[0, 4, 5, 6], "window"),
    ]
}

/// The script, as a child process.
struct PythonClient {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<String>,
}

impl PythonClient {
    fn start(python: &OsStr, address: SocketAddr) -> PythonClient {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/recorder.py");
        let url = format!("ws://{address}/v1/subscribe");
        let mut child = Command::new(python)
            .args([script, &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, answers) = mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || out.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        PythonClient { commands: child.stdin.take().unwrap(), child, answers }
    }

    fn send_command(&mut self, command: &Value) {
        writeln!(self.commands, "{command}").expect("the recorder listens");
    }

    /// Its maps, once they are right as of then.
    fn maps_as_of(&mut self, as_of: u64) -> Value {
        self.send_command(&json!({"do": "settle", "as_of": as_of}));
        let answer = self.answers.recv_timeout(WAIT_TIMEOUT);
        serde_json::from_str(&answer.expect("the recorder answers; else standard error says why")).unwrap()
    }
}

impl Drop for PythonClient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }

    /// New ones, many of the last hour, some too late.
    fn entry(&mut self, now: i64) -> LogEntry {
        let back = match self.below(10) {
            0..4 => 0,
            4..9 => self.below(55) as i64,
            _ => self.below(120) as i64,
        };
        let event = match self.below(6) {
            0 => ReadingEvent::Withdrawal,
            _ => {
                let wind = (self.below(3) > 0).then(|| self.below(300) as f64 / 10.0);
                let (t, h) = (60.0 + self.below(500) as f64 / 10.0, self.below(1000) as f64 / 10.0);
                ReadingEvent::Reading(Measurement::new(t, h, wind).unwrap())
            }
        };
        let revision = (self.below(4) == 0).then(|| self.below(4) as i64);
        let city = self.below(CITIES.len() as u64 - 1) as u32;
        LogEntry { city, millis: now - back * MINUTE_MS, event, revision }
    }
}

fn time_text(millis: i64) -> String {
    EventTime::from_millis(millis).unwrap().to_string()
}

fn record_json(entry: &LogEntry) -> Value {
    let mut record = json!({"city": CITIES[entry.city as usize], "reading_at": time_text(entry.millis)});
    match entry.event {
        ReadingEvent::Reading(measurement) | ReadingEvent::RetriedReading(measurement) => {
            record["temperature"] = measurement.temperature().into();
            record["humidity"] = measurement.humidity().into();
            record["wind_speed"] = measurement.wind_speed().into();
        }
        ReadingEvent::Withdrawal => record["deleted"] = true.into(),
    }
    if let Some(revision) = entry.revision {
        record["revision"] = revision.into();
    }
    record
}

fn window_row(city: u32, millis: i64, row: &Row) -> Value {
    json!({
        "city": CITIES[city as usize], "reading_at": time_text(millis), "heat_index": row.heat_index().fahrenheit(),
        "rolling_heat_index": row.rolling_heat_index(), "count": row.count(), "category": row.category().name(),
    })
}

fn latest_row(city: u32, current: &CurrentRow) -> Value {
    let mut row = window_row(city, current.reading_at.millis(), &current.row);
    row["trend"] = current.trend().into();
    row["temperature"] = current.measurement.map(|m| m.temperature()).into();
    row["humidity"] = current.measurement.map(|m| m.humidity()).into();
    row["wind_speed"] = current.measurement.and_then(|m| m.wind_speed()).into();
    row
}

type RowMap = BTreeMap<(String, String), Value>;

fn rows_by_key(rows: impl IntoIterator<Item = Value>) -> RowMap {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rows.into_iter()
        .map(|row| ((text(&row["city"]), text(&row["reading_at"])), normalize_numbers(row)))
        .collect()
}

/// With numbers that are equal where they are written differently, as 82 and 82.0 are.
fn normalize_numbers(mut row: Value) -> Value {
    for value in row.as_object_mut().unwrap().values_mut() {
        if let Some(number) = value.as_f64() {
            *value = number.into();
        }
    }
    row
}

fn compare_maps(oracle: &Oracle, maps: &Value) {
    let current = oracle.current();
    for Subscription { id, ask, cities } in subscriptions() {
        let mut kept = rows_by_key(maps[id].as_array().unwrap().iter().cloned());
        let expected = if ask["rows"] == "window" {
            let servable = |&city: &u32| {
                oracle.servable_rows(city).into_iter().map(move |(at, row)| window_row(city, at, &row))
            };
            let expected = rows_by_key(cities.iter().flat_map(servable));
            // What was sent and is final now may be kept: it is as it was.
            kept.retain(|key, row| expected.contains_key(key) || !is_final(oracle, row));
            expected
        } else {
            rows_by_key(cities.iter().filter_map(|city| Some(latest_row(*city, current.get(city)?))))
        };
        assert_eq!(kept, expected, "the map of {id}");
    }
}

fn is_final(oracle: &Oracle, row: &Value) -> bool {
    let city = CITIES.iter().position(|city| row["city"] == *city).unwrap() as u32;
    let at = row["reading_at"].as_str().unwrap().parse::<EventTime>().unwrap().millis();
    oracle.row(city, at).is_some_and(|expected| normalize_numbers(window_row(city, at, &expected)) == *row)
}

/// The WebSocket ingest; a session begins where there is none.
#[derive(Default)]
struct IngestFeed(Option<WebSocket<TcpStream>>);

impl IngestFeed {
    /// Sends readings and waits until they are durable; their places in the log.
    fn send(&mut self, address: SocketAddr, readings: &Value) -> Vec<Value> {
        let socket = self.0.get_or_insert_with(|| {
            let url = format!("ws://{address}/v1/ingest");
            client(url, http::connect(address).unwrap()).unwrap().0
        });
        socket.send(Message::text(readings.to_string())).unwrap();
        loop {
            let Message::Text(text) = socket.read().unwrap() else { continue };
            let answer: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&answer["type"], &answer["refused"]), (&json!("accepted"), &json!([])), "{answer}");
            return answer["positions"].as_array().unwrap().clone();
        }
    }
}

#[test]
fn python_client_state_equals_recomputation() {
    let Some(python) = prepared_variable("TEST_PYTHON") else { return };
    let mut service = ServiceProcess::start_run(CONFIG);
    service.wait_until_ready();
    let mut recorder = PythonClient::start(&python, service.address);
    for Subscription { id, ask, .. } in subscriptions() {
        recorder.send_command(&json!({"do": "subscribe", "id": id, "ask": ask}));
    }
    let (mut random, mut oracle, mut feed) =
        (Random(20_251_124), Oracle::new(SETTINGS), IngestFeed::default());
    let millis = jiff::Timestamp::now().as_millisecond();
    let begin = millis - millis.rem_euclid(MINUTE_MS) - ROUND_COUNT as i64 * MINUTE_MS;
    let mut last = json!(null);
    for round in 1..=ROUND_COUNT {
        let count = 1 + random.below(20);
        let now = begin + round as i64 * MINUTE_MS;
        // What is too late for a reading that was heard of before is refused in the answer; what a post itself makes too late is not.
        let drawn = (0..count).map(|_| random.entry(now)).collect::<Vec<_>>();
        let mut entries: Vec<_> = drawn.into_iter().filter(|entry| !oracle.is_too_late(entry)).collect();
        if entries.is_empty() {
            entries.push(LogEntry { city: 0, millis: now, event: ReadingEvent::Withdrawal, revision: None });
        }
        for entry in &entries {
            oracle.apply_arrival(entry);
        }
        let readings = entries.iter().map(record_json).collect();
        let positions = match random.below(2) {
            0 => service.post(&readings),
            _ => feed.send(service.address, &readings),
        };
        if round % KILL_EVERY_ROUNDS == 0 {
            service.kill();
            service.restart();
            service.wait_until_ready();
            feed = IngestFeed::default();
        } else if round % CUT_EVERY_ROUNDS == 0 {
            recorder.send_command(&json!({"do": "cut"}));
        }
        if round % SETTLE_EVERY_ROUNDS == 0 {
            last = recorder.maps_as_of(service.wait_until_applied(&positions));
            compare_maps(&oracle, &last["maps"]);
        }
    }
    let restarts = ROUND_COUNT / KILL_EVERY_ROUNDS;
    let (continued, resets) = (last["continued"].as_u64().unwrap(), last["resets"].as_array().unwrap());
    assert!(continued > 0, "no subscription was resumed");
    assert!(resets.iter().all(|reason| reason == "generation"), "{resets:?}");
    assert!(resets.len() as u64 >= restarts, "{resets:?}");
}
