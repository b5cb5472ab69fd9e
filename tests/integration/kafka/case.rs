//! A log in a topic, and the topics of its results.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::broker::BrokerAccess;
use super::config::KafkaConfig;
use super::random_log::{ExpectedDeadLetter, RandomLog};
use super::topic_reader::{ConsumedRecord, compact_records, read_committed, read_uncommitted};
use super::topics::TestProducer;
use crate::support::{ServiceProcess, ValueHistory, WAIT_TIMEOUT, final_values, normalize_numbers};

/// Partitions of the input.
pub const PARTITIONS: u32 = 3;
/// In so many epochs some key has changed more than once.
const MIN_EPOCHS_WITH_REPEATED_KEYS: usize = 20;

pub struct KafkaCase {
    pub setup: KafkaConfig,
    pub log: RandomLog,
    pub data: TempDir,
    producer: TestProducer,
}

impl KafkaCase {
    /// With all topics made, and a log of at most so many records to come.
    pub fn new(access: &BrokerAccess, seed: u64, records: usize) -> KafkaCase {
        let case = KafkaCase::without_topics(access, seed, records);
        case.setup.create_topics(PARTITIONS as i32);
        case
    }

    pub fn without_topics(access: &BrokerAccess, seed: u64, records: usize) -> KafkaCase {
        KafkaCase {
            setup: KafkaConfig::new(access),
            log: RandomLog::new(seed, PARTITIONS, records),
            data: tempfile::tempdir().unwrap(),
            producer: TestProducer::to(access),
        }
    }

    /// A case whose service has written some results and stopped.
    pub fn after_run(access: &BrokerAccess, seed: u64) -> KafkaCase {
        let mut case = KafkaCase::new(access, seed, 500);
        case.produce_records(200);
        let swelter = case.start_swelter(1).wait_until_ready();
        case.wait_for_results();
        swelter.terminate();
        case
    }

    pub fn start_swelter(&self, workers: u64) -> ServiceProcess {
        self.setup.service(self.data.path(), workers).spawn()
    }

    /// Appends random records to the log; some may still be on their way.
    pub fn send_records(&mut self, records: usize) {
        for _ in 0..records {
            let record = self.log.next_record();
            self.producer.send_record(&self.setup.input, &record);
        }
    }

    /// Appends random records to the log.
    pub fn produce_records(&mut self, records: usize) {
        self.send_records(records);
        self.producer.flush();
    }

    /// Waits until the topics hold the expected results, and checks that every change was written
    /// once.
    pub fn check_exactly_once(&self) {
        self.wait_for_results();
        self.check_rows();
        self.check_current();
        self.check_dead_letters();
    }

    /// Nothing but values that the keys have had, and all dead letters, each once or more often.
    pub fn check_at_least_once(&self) {
        self.wait_for_results();
        let KafkaConfig { access, results, current, .. } = &self.setup;
        for (topic, values) in [(results, &self.log.rows.values), (current, &self.log.current)] {
            let records = read_committed(access, topic);
            for record in &records {
                let value = record.json().map(|value| normalize_numbers(&value));
                assert!(values[record.key()].contains(&value), "{record:?} of {:?}", values[record.key()]);
            }
        }
        let letters = read_committed(access, &self.setup.dead_letter_topic());
        let expected: BTreeSet<_> = self.log.letters.iter().flatten().map(|letter| &letter.value).collect();
        let found: BTreeSet<_> = letters.iter().map(|letter| &letter.value).collect();
        assert_eq!(found, expected);
    }

    /// Checks that each change of a row is there once, in order; returns the number of records.
    pub fn check_rows(&self) -> usize {
        let rows = read_committed(&self.setup.access, &self.setup.results);
        check_changes(&rows, &self.log.rows.values);
        check_order(&rows);
        check_partitions(&rows, |row| row["city"].as_str().unwrap().to_string());
        rows.len()
    }

    /// Checks that each change of a current row is there once, in order; returns the number of
    /// records.
    pub fn check_current(&self) -> usize {
        let now = read_committed(&self.setup.access, &self.setup.current);
        check_changes(&now, &self.log.current);
        check_order(&now);
        now.len()
    }

    /// Checks that each dead letter is there once, in order; returns their number.
    pub fn check_dead_letters(&self) -> usize {
        let letters = read_committed(&self.setup.access, &self.setup.dead_letter_topic());
        check_dead_letter_records(&letters, &self.setup.input, &self.log.letters);
        letters.len()
    }

    /// Waits until the topics hold the expected results.
    pub fn wait_for_results(&self) {
        self.producer.flush();
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while let Some(difference) = self.find_difference() {
            assert!(Instant::now() < deadline, "{difference}");
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Records of results in transactions that were not committed.
    pub fn aborted_records(&self) -> usize {
        let KafkaConfig { access, results, .. } = &self.setup;
        let all = read_uncommitted(access, results);
        let place = |record: &ConsumedRecord| (record.partition, record.offset);
        let committed: BTreeSet<_> = read_committed(access, results).iter().map(place).collect();
        // A record behind the last committed one of its partition may belong to an open
        // transaction.
        let is_over = |record: &ConsumedRecord| {
            committed
                .range(place(record)..)
                .next()
                .is_some_and(|(partition, _)| *partition == record.partition)
        };
        all.iter().filter(|record| !committed.contains(&place(record)) && is_over(record)).count()
    }

    /// The first difference between the topics and the expected results.
    pub fn find_difference(&self) -> Option<String> {
        let KafkaConfig { access, results, current, has_sink, .. } = &self.setup;
        let topics = [(results, &self.log.rows.values), (current, &self.log.current)];
        for (topic, values) in topics.into_iter().filter(|_| *has_sink) {
            let records = read_committed(access, topic);
            let (state, expected) = (compact_records(&records), final_values(values));
            let state: BTreeMap<&str, Value> =
                state.into_iter().map(|(key, value)| (key, normalize_numbers(&value))).collect();
            let keys =
                state.keys().chain(expected.keys()).filter(|key| state.get(*key) != expected.get(*key));
            let different: Vec<_> = keys.map(|key| (key, state.get(key), expected.get(key))).collect();
            if let Some(first) = different.first() {
                return Some(format!(
                    "{topic} has {} of {} keys; {} differ, such as {first:?}",
                    state.len(),
                    expected.len(),
                    different.len()
                ));
            }
        }
        let letters = read_committed(access, &self.setup.dead_letter_topic()).len();
        let expected = self.log.letters.iter().map(Vec::len).sum();
        (letters < expected).then(|| format!("{letters} of {expected} dead letters"))
    }
}

/// Each value of a key is other than the one before, and they are, in their order, among those that
/// the key had after each record of the log, up to the last one.
fn check_changes(records: &[ConsumedRecord], values: &ValueHistory) {
    let mut found: BTreeMap<&str, Vec<Option<Value>>> = BTreeMap::new();
    let same = |record: &ConsumedRecord| {
        let all = records.iter().filter(|other| other.key() == record.key());
        all.map(|record| format!("{record:?}\n")).collect::<String>()
    };
    for record in records {
        let value = record.json().map(|value| normalize_numbers(&value));
        let before = found.entry(record.key()).or_default();
        assert_ne!(before.last().unwrap_or(&None), &value, "no change:\n{}", same(record));
        before.push(value);
    }
    for (key, found) in &found {
        let Some(expected) = values.get(*key) else { panic!("{key} was never in the log") };
        let mut left = expected.iter();
        for value in found {
            assert!(left.any(|expected| expected == value), "{key}: {value:?} of {found:?} in {expected:?}");
        }
        assert_eq!(found.last(), expected.last(), "{key}");
    }
    // Changes within an epoch are merged, but hardly all of a log with so many epochs.
    let epochs: BTreeSet<_> = records.iter().map(|record| &record.headers["as_of"]).collect();
    let changes: usize = values.values().map(Vec::len).sum();
    let must_show = epochs.len() > MIN_EPOCHS_WITH_REPEATED_KEYS && changes > 3 * values.len();
    assert!(!must_show || records.len() > found.len(), "nothing but final values: {}", found.len());
}

/// Epochs never go back within a partition.
fn check_order(records: &[ConsumedRecord]) {
    let mut newest = BTreeMap::new();
    for record in records {
        let as_of: u64 = record.headers["as_of"].parse().unwrap();
        let before = newest.insert(record.partition, as_of);
        assert!(before.is_none_or(|before| before <= as_of), "{record:?} comes after {before:?}");
    }
}

/// A city is in one partition.
fn check_partitions(records: &[ConsumedRecord], city: impl Fn(&Value) -> String) {
    let mut partitions = BTreeMap::new();
    for record in records {
        let key: Value = serde_json::from_str(record.key()).unwrap();
        let first = *partitions.entry(city(&key)).or_insert(record.partition);
        assert_eq!(first, record.partition, "{}", record.key());
    }
}

/// The bad records, each once and byte for byte, in the order of their partition.
fn check_dead_letter_records(records: &[ConsumedRecord], input: &str, expected: &[Vec<ExpectedDeadLetter>]) {
    let mut found = vec![Vec::new(); expected.len()];
    for record in records {
        let position = &record.headers["swelter-position"];
        let place: Vec<_> = position.rsplitn(3, '/').collect();
        let [offset, partition, topic] = place[..] else { panic!("{position}") };
        assert_eq!(topic, input);
        assert!(!record.headers["swelter-detail"].is_empty(), "{record:?}");
        let partition: usize = partition.parse().unwrap();
        found[partition].push(ExpectedDeadLetter {
            offset: offset.parse().unwrap(),
            key: record.key.clone(),
            value: record.value.clone(),
            reason: record.headers["swelter-reason"].clone(),
        });
    }
    for (partition, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found, expected, "partition {partition}");
        }
        assert_eq!(found.len(), expected.len(), "dead letters of partition {partition}");
    }
}
