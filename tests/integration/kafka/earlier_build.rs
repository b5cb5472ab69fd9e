//! Topics of an earlier build in another cluster: this build continues with them.
//! `tests/fixtures/868f70f/README.md` says what they hold, and how they were made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::{Value, json};

use super::broker::{BrokerAccess, PrivateBroker};
use super::topic_reader::{ConsumedRecord, compact_records, read_committed};
use super::topics::{COMPACT, LOG_APPEND_TIME, NewRecord, TestProducer, TopicAdmin};
use crate::earlier_build::{
    check_metrics, check_written, checkpoints, fixture, json_fixture, records_since_start, unpack,
};
use crate::support::{ServiceBuilder, WAIT_TIMEOUT, get_json, wait_for};

const READINGS: &str = "fixture-readings";
const STATIONS: &str = "fixture-stations";
const RESULTS: &str = "fixture-results";
const CURRENT: &str = "fixture-current";
const PROGRESS: &str = "fixture-progress";
const LETTERS: [&str; 2] = ["fixture-readings.failed.1", "fixture-readings.failed.2"];

/// A record as the fixture has it.
fn record_of(line: &Value) -> ConsumedRecord {
    let bytes = |name: &str| match line.get(name) {
        Some(text) => Some(text.as_str().unwrap().as_bytes().to_vec()),
        None => {
            let encoded = line.get(format!("{name}_base64"))?;
            Some(BASE64_STANDARD.decode(encoded.as_str().unwrap()).unwrap())
        }
    };
    ConsumedRecord {
        partition: line["partition"].as_i64().unwrap() as i32,
        offset: line["offset"].as_i64().unwrap(),
        timestamp: line["timestamp"].as_i64().unwrap(),
        key: bytes("key"),
        value: bytes("value"),
        headers: serde_json::from_value(line["headers"].clone()).unwrap(),
    }
}

/// The records of the fixture by topic.
fn records() -> BTreeMap<String, Vec<ConsumedRecord>> {
    let mut all = BTreeMap::<String, Vec<ConsumedRecord>>::new();
    for line in fs::read_to_string(fixture("topics.jsonl")).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        all.entry(line["topic"].as_str().unwrap().to_owned()).or_default().push(record_of(&line));
    }
    all
}

/// Compares records that a cluster has with those of another one, where they had other timestamps.
fn check_same(topic: &str, found: &[ConsumedRecord], expected: &[ConsumedRecord]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(*found, ConsumedRecord { timestamp: found.timestamp, ..expected.clone() }, "{topic}");
    }
    assert_eq!(found.len(), expected.len(), "{topic}");
}

/// Writes the records of a partition at the offsets that they had. Offsets without a record are
/// marks of transactions, so as many records before them are written in one each.
fn restore(
    (access, producers): (&BrokerAccess, &[TestProducer]),
    topic: &str,
    (partition, end): (i32, i64),
    records: &[&ConsumedRecord],
) {
    let consumer: BaseConsumer = access.client_config().create().unwrap();
    let new = |record: &ConsumedRecord| NewRecord {
        partition: record.partition,
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.clone().into_iter().collect(),
    };
    let next = |at: usize| records.get(at + 1).map_or(end, |record| record.offset);
    let mut plain = 0;
    for (at, record) in records.iter().enumerate() {
        let marks = (next(at) - record.offset - 1) as usize;
        if marks == 0 {
            continue;
        }
        let first = at + 1 - marks;
        records[plain..first].iter().for_each(|record| producers[0].send_record(topic, &new(record)));
        producers[0].flush();
        let transactions = &producers[1..=marks];
        for (producer, record) in transactions.iter().zip(&records[first..=at]) {
            producer.begin();
            producer.send_record(topic, &new(record));
            producer.flush();
        }
        transactions.iter().for_each(TestProducer::commit);
        // A broker writes the marks once it has answered.
        wait_for("the marks of transactions", || {
            let (_, end) = consumer.fetch_watermarks(topic, partition, WAIT_TIMEOUT).unwrap();
            (end == next(at)).then_some(())
        });
        plain = at + 1;
    }
    records[plain..].iter().for_each(|record| producers[0].send_record(topic, &new(record)));
    producers[0].flush();
}

/// Creates all topics of the fixture in a private cluster.
fn restore_all(access: &BrokerAccess, expected: &Value, all: &BTreeMap<String, Vec<ConsumedRecord>>) {
    let topics = TopicAdmin::of(access);
    let mut producers = vec![TestProducer::to(access)];
    producers.extend((0..4).map(|number| TestProducer::transactional(access, &format!("restore-{number}"))));
    for (name, topic) in expected["topics"].as_object().unwrap() {
        let is_output = name == RESULTS || name == CURRENT || name.ends_with("progress");
        let config = if is_output { COMPACT } else { LOG_APPEND_TIME };
        let partitions = topic["partitions"].as_i64().unwrap() as i32;
        topics.create(name, partitions, &[config]);
        let records = all.get(name).map_or(&[][..], Vec::as_slice);
        for partition in 0..partitions {
            let of_partition: Vec<&ConsumedRecord> =
                records.iter().filter(|record| record.partition == partition).collect();
            let end = topic["ends"][partition as usize].as_i64().unwrap();
            restore((access, &producers), name, (partition, end), &of_partition);
        }
        check_same(name, &read_committed(access, name), records);
    }
}

/// The newest value of each key, of the fixture's records and some that follow.
fn state(first: &[ConsumedRecord], more: &[ConsumedRecord]) -> BTreeMap<String, Value> {
    let all: Vec<ConsumedRecord> = first.iter().chain(more).cloned().collect();
    compact_records(&all).into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The newest value under each key of a progress topic.
fn newest_values(records: &[ConsumedRecord]) -> BTreeMap<String, Value> {
    records.iter().map(|record| (record.key().to_owned(), record.json().unwrap())).collect()
}

/// What was written behind the fixture's records, which are as they were.
fn added(access: &BrokerAccess, topic: &str, before: &[ConsumedRecord]) -> Vec<ConsumedRecord> {
    let mut now = read_committed(access, topic);
    let known: BTreeSet<(i32, i64)> = before.iter().map(|record| (record.partition, record.offset)).collect();
    let (old, new): (Vec<ConsumedRecord>, Vec<ConsumedRecord>) =
        now.drain(..).partition(|record| known.contains(&(record.partition, record.offset)));
    check_same(topic, &old, before);
    new
}

/// Each record changes what its key had, and no epoch is before one that was written.
fn check_changes(topic: &str, before: &[ConsumedRecord], new: &[ConsumedRecord]) {
    let mut values: BTreeMap<&str, Option<Value>> = BTreeMap::new();
    let newest = before.iter().map(|record| record.headers["as_of"].parse::<u64>().unwrap()).max().unwrap();
    before.iter().for_each(|record| drop(values.insert(record.key(), record.json())));
    for record in new {
        let value = record.json();
        let before = values.insert(record.key(), value.clone()).flatten();
        assert_ne!(before, value, "{topic}: {} was written again", record.key());
        assert!(record.headers["as_of"].parse::<u64>().unwrap() > newest, "{topic}: {record:?}");
    }
}

fn config(access: &BrokerAccess, place: &str) -> String {
    let template = fs::read_to_string(fixture("topics.toml")).unwrap();
    // No registry listens there: its responses are in the progress topic.
    let registry = "http://127.0.0.1:9";
    template
        .replace("@BROKERS@", &access.address)
        .replace("@CHECKPOINTS@", place)
        .replace("@REGISTRY@", registry)
}

/// The records of the inputs behind the newest checkpoint.
fn behind(checkpoint: &Value, all: &BTreeMap<String, Vec<ConsumedRecord>>) -> u64 {
    let count = |(source, topic): (&str, &str)| {
        let position = |record: &ConsumedRecord| {
            checkpoint["positions"][source][record.partition.to_string()].as_i64().unwrap()
        };
        all[topic].iter().filter(|record| record.offset >= position(record)).count() as u64
    };
    [("readings", READINGS), ("stations", STATIONS)].into_iter().map(count).sum()
}

fn records_of(values: &Value) -> Vec<ConsumedRecord> {
    values.as_array().unwrap().iter().map(record_of).collect()
}

fn check_served_cities(address: &str, cities: &Value) {
    for (city, expected) in cities.as_object().unwrap() {
        let encoded: String = city.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let served = get_json(address, &format!("/v1/cities/{encoded}/history?limit=10000"));
        assert_eq!(served["rows"], expected["rows"], "{city}");
    }
}

/// Results continue as they did in the build that made `before`: nothing twice, and nothing left
/// out.
fn check_new_results(
    access: &BrokerAccess,
    topic: &str,
    before: &[ConsumedRecord],
    after: &[ConsumedRecord],
) {
    let wanted = state(before, after);
    wait_for("the results", || (state(before, &added(access, topic, before)) == wanted).then_some(()));
    let new = added(access, topic, before);
    check_changes(topic, before, &new);
    let keys = |records: &[ConsumedRecord]| -> BTreeSet<String> {
        records.iter().map(|record| record.key().to_owned()).collect()
    };
    assert_eq!(keys(&new), keys(after), "{topic}");
}

fn check_new_dead_letters(
    access: &BrokerAccess,
    topic: &str,
    before: &[ConsumedRecord],
    after: &[ConsumedRecord],
) {
    let known = |record: &ConsumedRecord| {
        (record.key.clone(), record.value.clone(), record.headers["swelter-position"].clone())
    };
    wait_for("the dead letters", || (added(access, topic, before).len() >= after.len()).then_some(()));
    let new = added(access, topic, before);
    assert_eq!(new.iter().map(known).collect::<Vec<_>>(), after.iter().map(known).collect::<Vec<_>>());
    for (new, after) in new.iter().zip(after) {
        assert!(new.headers.keys().eq(after.headers.keys()), "{:?}", new.headers);
    }
}

/// An earlier build can read what this one writes of its progress.
fn check_written_progress(access: &BrokerAccess, before: &[ConsumedRecord]) {
    let written = read_committed(access, PROGRESS);
    let (before, now) = (newest_values(before), newest_values(&written));
    assert_eq!(before.keys().collect::<Vec<_>>(), now.keys().collect::<Vec<_>>());
    for (key, value) in &before {
        check_written(key, value, &now[key]);
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn topics_of_an_earlier_build_are_gone_on_with() {
    let broker = PrivateBroker::start();
    let (access, all) = (&broker.access, records());
    let expected = json_fixture("topics.json");
    restore_all(access, &expected, &all);
    let folder = tempfile::tempdir().unwrap();
    unpack("checkpoints.tar.gz", folder.path());
    let place = folder.path().join("checkpoints");
    let newest = expected["checkpoint"].as_str().unwrap();
    let behind = behind(&checkpoints(&place)[newest], &all);
    let toml = config(access, place.to_str().unwrap());
    let data = folder.path().join("data");
    // In this cluster all topics have other ids.
    let start = |arguments: &[&str]| {
        ServiceBuilder::new(toml.clone())
            .data(&data)
            .args(&["--workers", "1"])
            .args(arguments)
            .spawn()
            .wait_until_ready()
    };
    let mut swelter = start(&["--adopt-logs"]);
    let address = swelter.wait_for_address();
    let status = get_json(&address, "/v1/status");
    assert!(swelter.log().contains(newest), "{}", swelter.log());
    let generation = |text: &Value| text.as_str().unwrap().split_once('-').unwrap().0.to_owned();
    assert_eq!(generation(&status["generation"]), generation(&expected["generation"]));
    assert_eq!(records_since_start(&status), behind, "{status}");
    check_served_cities(&address, &expected["cities"]);
    for topic in [RESULTS, CURRENT] {
        check_new_results(access, topic, &all[topic], &records_of(&expected["new"][topic]));
    }
    for topic in LETTERS {
        check_new_dead_letters(access, topic, &all[topic], &records_of(&expected["new"][topic]));
    }
    check_metrics("kafka", &address);
    check_written_progress(access, &all[PROGRESS]);

    // It continues with new records.
    let reading =
        json!({"city": "d", "reading_at": "2025-08-01T10:02:00Z", "temperature": 99, "humidity": 40});
    let producer = TestProducer::to(access);
    producer.send_record(READINGS, &NewRecord::new(1, "d", &reading.to_string()));
    producer.flush();
    let results = wait_for("its row", || {
        let records = read_committed(access, RESULTS);
        let key = r#"{"city":"d","reading_at":"2025-08-01T10:02:00Z"}"#;
        records.iter().any(|record| record.key() == key).then_some(records)
    });
    swelter.terminate();
    // The next start has nothing left to adopt, and nothing to write.
    let mut swelter = start(&[]);
    let served = get_json(&swelter.wait_for_address(), "/v1/cities/d/history");
    swelter.terminate();
    assert_eq!(read_committed(access, RESULTS), results);
    let last = compact_records(&results);
    for row in served["rows"].as_array().unwrap() {
        let key = json!({"city": row["city"], "reading_at": row["reading_at"]}).to_string();
        assert_eq!(&last[&*key], row);
    }
    assert_eq!(served["rows"].as_array().unwrap().len(), 2, "{served}");
}
