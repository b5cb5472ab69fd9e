//! Topics read by kcat, an independent consumer in another process.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::broker::BrokerAccess;
use crate::support::WAIT_TIMEOUT;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedRecord {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: BTreeMap<String, String>,
}

impl ConsumedRecord {
    pub fn key(&self) -> &str {
        std::str::from_utf8(self.key.as_deref().unwrap()).unwrap()
    }

    /// None: a tombstone.
    pub fn json(&self) -> Option<Value> {
        Some(serde_json::from_slice(self.value.as_deref()?).unwrap())
    }
}

/// The committed records of a topic, in order of partition and offset.
pub fn read_committed(access: &BrokerAccess, topic: &str) -> Vec<ConsumedRecord> {
    read_topic(access, topic, "read_committed")
}

/// The same with records of open and aborted transactions.
pub fn read_uncommitted(access: &BrokerAccess, topic: &str) -> Vec<ConsumedRecord> {
    read_topic(access, topic, "read_uncommitted")
}

/// The newest record of each key, tombstones left out.
pub fn compact_records(records: &[ConsumedRecord]) -> BTreeMap<&str, Value> {
    let mut state = BTreeMap::new();
    for record in records {
        match record.json() {
            Some(value) => drop(state.insert(record.key(), value)),
            None => drop(state.remove(record.key())),
        }
    }
    state
}

/// The exact bytes by a format of lengths, the headers as JSON, which alone tells where a header
/// ends.
fn read_topic(access: &BrokerAccess, topic: &str, isolation: &str) -> Vec<ConsumedRecord> {
    loop {
        let mut records =
            parse_records(&run_kcat(access, topic, isolation, &["-f", "%p %o %T %K %S\n%k%s\n"]));
        records.sort_by_key(|record| (record.partition, record.offset));
        let text = run_kcat(access, topic, isolation, &["-J"]);
        let mut headers: BTreeMap<_, _> = String::from_utf8_lossy(&text).lines().map(parse_headers).collect();
        // More may have come between the two readings, but never less.
        let complete = records.iter_mut().all(|record| {
            let found = headers.remove(&(record.partition as i64, record.offset));
            record.headers = found.clone().unwrap_or_default();
            found.is_some()
        });
        if complete {
            return records;
        }
    }
}

fn run_kcat(access: &BrokerAccess, topic: &str, isolation: &str, format: &[&str]) -> Vec<u8> {
    let mut command = Command::new("kcat");
    for (name, value) in access.properties() {
        command.arg("-X").arg(format!("{name}={value}"));
    }
    let isolation = format!("isolation.level={isolation}");
    command.args(["-X", &isolation, "-C", "-q", "-e", "-o", "beginning", "-t", topic]).args(format);
    // kcat fails as soon as a broker does not answer, as after a pause or a start.
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        let output = command.stdin(Stdio::null()).output().expect("kcat is missing");
        if output.status.success() {
            return output.stdout;
        }
        assert!(Instant::now() < deadline, "kcat: {}", String::from_utf8_lossy(&output.stderr));
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn parse_headers(line: &str) -> ((i64, i64), BTreeMap<String, String>) {
    let record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let list = record["headers"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let headers = list.chunks(2).map(|pair| (text(&pair[0]), text(&pair[1]))).collect();
    ((record["partition"].as_i64().unwrap(), record["offset"].as_i64().unwrap()), headers)
}

/// Records as a line of five numbers and the bytes of key and value; a length of -1 is none.
fn parse_records(mut bytes: &[u8]) -> Vec<ConsumedRecord> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let numbers = std::str::from_utf8(&bytes[..end]).unwrap();
        let numbers: Vec<i64> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
        bytes = &bytes[end + 1..];
        let mut take = |length: i64| {
            let length = usize::try_from(length).ok()?;
            let (taken, rest) = bytes.split_at(length);
            bytes = rest;
            Some(taken.to_vec())
        };
        let (key, value) = (take(numbers[3]), take(numbers[4]));
        bytes = bytes.strip_prefix(b"\n").unwrap();
        records.push(ConsumedRecord {
            partition: numbers[0] as i32,
            offset: numbers[1],
            timestamp: numbers[2],
            key,
            value,
            headers: BTreeMap::new(),
        });
    }
    records
}
