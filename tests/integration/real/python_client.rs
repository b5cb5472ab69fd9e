//! A subscriber in Python with an independent WebSocket library, against the oracle: through
//! corrections, withdrawals, cut sockets and kills of the service.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use serde_json::{Value, json};
use swelter::internals::model::{EventTime, Measurement, ReadingEvent};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use crate::support::prepared::prepared_variable;
use crate::support::{
    DEFAULT_FORMULA, LogEntry, MINUTE_MS, Oracle, Random, RunSettings, ServiceBuilder, WAIT_TIMEOUT,
    current_json, http, named_record_json, normalize_numbers, row_json,
};

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
/// Rounds between two events.
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
    fn start(python: &OsStr, address: &str) -> PythonClient {
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

    /// Its maps, once they include the results of this epoch.
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

/// An entry: new, often of the last hour, sometimes too late.
fn random_reading(random: &mut Random, now: i64) -> LogEntry {
    let back = match random.below(10) {
        0..4 => 0,
        4..9 => random.below(55) as i64,
        _ => random.below(120) as i64,
    };
    let event = match random.below(6) {
        0 => ReadingEvent::Withdrawal,
        _ => {
            let wind = (random.below(3) > 0).then(|| random.below(300) as f64 / 10.0);
            let (t, h) = (60.0 + random.below(500) as f64 / 10.0, random.below(1000) as f64 / 10.0);
            ReadingEvent::Reading(Measurement::new(t, h, wind).unwrap())
        }
    };
    let revision = (random.below(4) == 0).then(|| random.below(4) as i64);
    let city = random.below(CITIES.len() as u64 - 1) as u32;
    LogEntry { city, millis: now - back * MINUTE_MS, event, revision }
}

type RowMap = BTreeMap<(String, String), Value>;

fn rows_by_key(rows: impl IntoIterator<Item = Value>) -> RowMap {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rows.into_iter()
        .map(|row| ((text(&row["city"]), text(&row["reading_at"])), normalize_numbers(&row)))
        .collect()
}

fn compare_maps(oracle: &Oracle, maps: &Value) {
    let current = oracle.current();
    for Subscription { id, ask, cities } in subscriptions() {
        let mut kept = rows_by_key(maps[id].as_array().unwrap().iter().cloned());
        let expected = if ask["rows"] == "window" {
            let servable = |&city: &u32| {
                oracle
                    .servable_rows(city)
                    .into_iter()
                    .map(move |(at, row)| row_json(CITIES[city as usize], at, &row))
            };
            let expected = rows_by_key(cities.iter().flat_map(servable));
            // The client may keep rows that are final by now; they do not change any more.
            kept.retain(|key, row| expected.contains_key(key) || !is_final(oracle, row));
            expected
        } else {
            rows_by_key(
                cities
                    .iter()
                    .filter_map(|city| Some(current_json(CITIES[*city as usize], current.get(city)?))),
            )
        };
        assert_eq!(kept, expected, "the map of {id}");
    }
}

fn is_final(oracle: &Oracle, row: &Value) -> bool {
    let city = CITIES.iter().position(|city| row["city"] == *city).unwrap() as u32;
    let at = row["reading_at"].as_str().unwrap().parse::<EventTime>().unwrap().millis();
    oracle
        .row(city, at)
        .is_some_and(|expected| normalize_numbers(&row_json(CITIES[city as usize], at, &expected)) == *row)
}

/// The WebSocket ingest, which opens a session if there is none.
#[derive(Default)]
struct IngestFeed(Option<WebSocket<TcpStream>>);

impl IngestFeed {
    /// Sends readings and waits until they are durable; returns their positions in the log.
    fn send(&mut self, address: &str, readings: &Value) -> Vec<Value> {
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
#[ignore = "needs Python: scripts/test"]
fn python_client_state_equals_recomputation() {
    let python = prepared_variable("TEST_PYTHON");
    let mut service = ServiceBuilder::new(CONFIG).start().wait_until_ready();
    let mut recorder = PythonClient::start(&python, &service.address);
    for Subscription { id, ask, .. } in subscriptions() {
        recorder.send_command(&json!({"do": "subscribe", "id": id, "ask": ask}));
    }
    let (mut random, mut oracle, mut feed) =
        (Random::new(20_251_124), Oracle::new(SETTINGS), IngestFeed::default());
    let millis = jiff::Timestamp::now().as_millisecond();
    let begin = millis - millis.rem_euclid(MINUTE_MS) - ROUND_COUNT as i64 * MINUTE_MS;
    let mut last = json!(null);
    for round in 1..=ROUND_COUNT {
        let count = 1 + random.below(20);
        let now = begin + round as i64 * MINUTE_MS;
        // Readings that are too late already are refused in the response; readings that become too
        // late within a post are not.
        let drawn = (0..count).map(|_| random_reading(&mut random, now)).collect::<Vec<_>>();
        let mut entries: Vec<_> = drawn.into_iter().filter(|entry| !oracle.is_too_late(entry)).collect();
        if entries.is_empty() {
            entries.push(LogEntry { city: 0, millis: now, event: ReadingEvent::Withdrawal, revision: None });
        }
        for entry in &entries {
            oracle.apply_arrival(entry);
        }
        let readings =
            entries.iter().map(|entry| named_record_json(entry, CITIES[entry.city as usize])).collect();
        let positions = match random.below(2) {
            0 => service.post(&readings),
            _ => feed.send(&service.address, &readings),
        };
        if round % KILL_EVERY_ROUNDS == 0 {
            service.kill_in_place();
            service.restart();
            service.wait_for_ready();
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
