//! A log in a topic, and the topics that come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::broker::Access;
use super::log::{Letter, Log, Values, last};
use super::reading::{Record, committed, compacted, uncommitted};
use super::swelter::{Setup, Swelter};
use super::topics::Producer;
use crate::process::DEADLINE;
use crate::recovery::numbers;

/// Partitions of the input.
pub const PARTITIONS: u32 = 3;
/// In so many epochs some key has changed more than once.
const MANY_EPOCHS: usize = 20;

pub struct Case {
    pub setup: Setup,
    pub log: Log,
    pub data: TempDir,
    producer: Producer,
}

impl Case {
    /// With all topics made, and a log of at most so many records to come.
    pub fn new(access: &Access, seed: u64, records: usize) -> Case {
        let case = Case::without_topics(access, seed, records);
        case.setup.make_topics(PARTITIONS as i32);
        case
    }

    pub fn without_topics(access: &Access, seed: u64, records: usize) -> Case {
        Case {
            setup: Setup::new(access),
            log: Log::new(seed, PARTITIONS, records),
            data: tempfile::tempdir().unwrap(),
            producer: Producer::to(access),
        }
    }

    pub fn start(&self, workers: u64) -> Swelter {
        Swelter::start(&self.setup, self.data.path(), workers)
    }

    /// Appends random records to the log; some may still be on their way.
    pub fn send(&mut self, records: usize) {
        for _ in 0..records {
            let record = self.log.record();
            self.producer.send(&self.setup.input, &record);
        }
    }

    /// Appends random records to the log.
    pub fn produce(&mut self, records: usize) {
        self.send(records);
        self.producer.flush();
    }

    /// Waits until the topics hold what they should in the end, and checks how it came about: every change once.
    pub fn check_exactly_once(&self) {
        self.wait_for_results();
        self.check_rows();
        self.check_current();
        self.check_letters();
    }

    /// Nothing but values that the keys have had, and all dead letters, each once or more often.
    pub fn check_at_least_once(&self) {
        self.wait_for_results();
        let Setup { access, results, current, .. } = &self.setup;
        for (topic, values) in [(results, &self.log.rows), (current, &self.log.current)] {
            let records = committed(access, topic);
            for record in &records {
                let value = record.json().map(|value| numbers(&value));
                assert!(values[record.key()].contains(&value), "{record:?} of {:?}", values[record.key()]);
            }
        }
        let letters = committed(access, &self.setup.letters());
        let expected: BTreeSet<_> = self.log.letters.iter().flatten().map(|letter| &letter.value).collect();
        let found: BTreeSet<_> = letters.iter().map(|letter| &letter.value).collect();
        assert_eq!(found, expected);
    }

    /// Each change of a row once, in order. Says how many there are.
    pub fn check_rows(&self) -> usize {
        let rows = committed(&self.setup.access, &self.setup.results);
        check_changes(&rows, &self.log.rows);
        check_order(&rows);
        check_partitions(&rows, |row| row["city"].as_str().unwrap().to_string());
        rows.len()
    }

    /// Each change of a current row once, in order. Says how many there are.
    pub fn check_current(&self) -> usize {
        let now = committed(&self.setup.access, &self.setup.current);
        check_changes(&now, &self.log.current);
        check_order(&now);
        now.len()
    }

    /// Each dead letter once, in order. Says how many there are.
    pub fn check_letters(&self) -> usize {
        let letters = committed(&self.setup.access, &self.setup.letters());
        check_letters(&letters, &self.setup.input, &self.log.letters);
        letters.len()
    }

    /// Waits until the topics hold what they should in the end, however it came about.
    pub fn wait_for_results(&self) {
        self.producer.flush();
        let deadline = Instant::now() + DEADLINE;
        while let Some(difference) = self.difference() {
            assert!(Instant::now() < deadline, "{difference}");
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Records of results in transactions that were not committed.
    pub fn aborted(&self) -> usize {
        let Setup { access, results, .. } = &self.setup;
        let all = uncommitted(access, results);
        let place = |record: &Record| (record.partition, record.offset);
        let committed: BTreeSet<_> = committed(access, results).iter().map(place).collect();
        // Behind the last of its partition, one may be of a transaction that goes on.
        let is_over = |record: &Record| {
            committed
                .range(place(record)..)
                .next()
                .is_some_and(|(partition, _)| *partition == record.partition)
        };
        all.iter().filter(|record| !committed.contains(&place(record)) && is_over(record)).count()
    }

    /// What the topics hold otherwise than they should.
    pub fn difference(&self) -> Option<String> {
        let Setup { access, results, current, .. } = &self.setup;
        for (topic, values) in [(results, &self.log.rows), (current, &self.log.current)] {
            let records = committed(access, topic);
            let (state, expected) = (compacted(&records), last(values));
            let state: BTreeMap<&str, Value> =
                state.into_iter().map(|(key, value)| (key, numbers(&value))).collect();
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
        let letters = committed(access, &self.setup.letters()).len();
        let expected = self.log.letters.iter().map(Vec::len).sum();
        (letters < expected).then(|| format!("{letters} of {expected} dead letters"))
    }
}

/// Each value of a key is other than the one before, and they are, in their order, among those that the key had after each record of
/// the log, up to the last one.
fn check_changes(records: &[Record], values: &Values) {
    let mut found: BTreeMap<&str, Vec<Option<Value>>> = BTreeMap::new();
    let same = |record: &Record| {
        let all = records.iter().filter(|other| other.key() == record.key());
        all.map(|record| format!("{record:?}\n")).collect::<String>()
    };
    for record in records {
        let value = record.json().map(|value| numbers(&value));
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
    // Changes within an epoch come as one, but hardly all of a log that was taken in so many.
    let epochs: BTreeSet<_> = records.iter().map(|record| &record.headers["as_of"]).collect();
    let changes: usize = values.values().map(Vec::len).sum();
    let must_show = epochs.len() > MANY_EPOCHS && changes > 3 * values.len();
    assert!(!must_show || records.len() > found.len(), "nothing but final values: {}", found.len());
}

/// Epochs never go back within a partition.
fn check_order(records: &[Record]) {
    let mut newest = BTreeMap::new();
    for record in records {
        let as_of: u64 = record.headers["as_of"].parse().unwrap();
        let before = newest.insert(record.partition, as_of);
        assert!(before.is_none_or(|before| before <= as_of), "{record:?} comes after {before:?}");
    }
}

/// A city is in one partition.
fn check_partitions(records: &[Record], city: impl Fn(&Value) -> String) {
    let mut partitions = BTreeMap::new();
    for record in records {
        let key: Value = serde_json::from_str(record.key()).unwrap();
        let first = *partitions.entry(city(&key)).or_insert(record.partition);
        assert_eq!(first, record.partition, "{}", record.key());
    }
}

/// The bad records, each once and byte for byte, in the order of their partition.
fn check_letters(records: &[Record], input: &str, expected: &[Vec<Letter>]) {
    let mut found = vec![Vec::new(); expected.len()];
    for record in records {
        let position = &record.headers["swelter-position"];
        let place: Vec<_> = position.rsplitn(3, '/').collect();
        let [offset, partition, topic] = place[..] else { panic!("{position}") };
        assert_eq!(topic, input);
        assert!(!record.headers["swelter-detail"].is_empty(), "{record:?}");
        let partition: usize = partition.parse().unwrap();
        found[partition].push(Letter {
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
