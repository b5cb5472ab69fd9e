//! Random logs for a topic, and their expected results.

use serde_json::{Value, json};
use swelter::internals::model::{EventTime, ReadingEvent};

use super::topics::NewRecord;
use crate::support::{
    LogEntry, MINUTE_MS, Oracle, RUN_SETTINGS, Random, RowHistory, ValueHistory, city_name, current_json,
    push_value, random_entry, record_json, row_key,
};

pub const CITIES: u32 = 12;
/// Records between two steps of the log's clock.
const RECORDS_PER_CLOCK_STEP: usize = 40;

/// A record that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedDeadLetter {
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub reason: String,
}

/// A log in the making. A city's records are in one partition.
pub struct RandomLog {
    pub random: Random,
    partitions: u32,
    /// The time of the newest reading.
    now: i64,
    /// The next offset of each partition.
    offsets: Vec<i64>,
    oracle: Oracle,
    pub rows: RowHistory,
    /// By city.
    pub current: ValueHistory,
    /// The entries that admission accepts, in their order.
    pub accepted: Vec<LogEntry>,
    /// By partition of the input.
    pub letters: Vec<Vec<ExpectedDeadLetter>>,
}

impl RandomLog {
    /// How many records it has.
    pub fn len(&self) -> i64 {
        self.offsets.iter().sum()
    }

    /// Of at most so many records: more would come to be dated in the future.
    pub fn new(seed: u64, partitions: u32, records: usize) -> RandomLog {
        let steps = (records / RECORDS_PER_CLOCK_STEP) as i64 + 1;
        let now = jiff::Timestamp::now().as_millisecond() - (2 * steps + 60) * MINUTE_MS;
        RandomLog {
            random: Random::new(seed),
            partitions,
            now: now - now.rem_euclid(MINUTE_MS),
            offsets: vec![0; partitions as usize],
            oracle: Oracle::new(RUN_SETTINGS),
            rows: RowHistory::default(),
            current: ValueHistory::new(),
            accepted: Vec::new(),
            letters: vec![Vec::new(); partitions as usize],
        }
    }

    pub fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    /// How many there are so far.
    pub fn record_count(&self) -> u64 {
        self.offsets.iter().sum::<i64>() as u64
    }

    /// The next record.
    pub fn next_record(&mut self) -> NewRecord {
        if self.random.below(RECORDS_PER_CLOCK_STEP as u64) == 0 {
            self.now += self.random.below(3) as i64 * MINUTE_MS;
        }
        let city = self.random.below(CITIES.into()) as u32;
        let entry = LogEntry { city, ..random_entry(&mut self.random, self.now) };
        if self.random.below(12) == 0 { self.invalid_record(city) } else { self.valid_record(&entry) }
    }

    /// The record of a reading or withdrawal that can be decoded.
    pub fn valid_record(&mut self, entry: &LogEntry) -> NewRecord {
        let city = city_name(entry.city);
        let tombstone =
            entry.event == ReadingEvent::Withdrawal && entry.revision.is_none() && self.random.below(2) == 0;
        let mut record = NewRecord::new(self.partition_of(entry.city), &city, &record_json(entry));
        if tombstone {
            (record.key, record.value) = (Some(row_key(&city, entry.millis).into_bytes()), None);
        }
        if self.oracle.apply_arrival(entry).is_some() {
            self.expect_values(entry);
            self.accepted.push(*entry);
        } else {
            self.expect_dead_letter(&record, "too_late");
        }
        self.offsets[record.partition as usize] += 1;
        record
    }

    fn invalid_record(&mut self, city: u32) -> NewRecord {
        let name = city_name(city);
        let whole = json!({
            "city": name, "reading_at": EventTime::from_millis(self.now).unwrap().to_string(),
            "temperature": 80, "humidity": 50,
        });
        let with = |field: &str, value: Value| {
            let mut record = whole.clone();
            record[field] = value;
            Some(record.to_string().into_bytes())
        };
        let mut without = whole.clone();
        without.as_object_mut().unwrap().remove("temperature");
        let tomorrow = jiff::Timestamp::now().as_millisecond() + 24 * 60 * MINUTE_MS;
        let tomorrow = EventTime::from_millis(tomorrow).unwrap().to_string();
        let kinds = [
            (Some(b"not JSON".to_vec()), "not_decodable"),
            (Some(b"{\"city\":\"\xFF\n\0\"}".to_vec()), "not_decodable"),
            (Some(Vec::new()), "not_decodable"),
            // A tombstone whose key does not say of which reading.
            (None, "not_decodable"),
            (Some(without.to_string().into_bytes()), "missing_field"),
            (with("city", "".into()), "bad_city"),
            (with("reading_at", "yesterday".into()), "bad_time"),
            (with("reading_at", "2026-01-01T00:00:00".into()), "no_offset"),
            (with("temperature", "hot".into()), "bad_number"),
            (with("temperature", 999.into()), "out_of_range"),
            (with("reading_at", tomorrow.into()), "in_the_future"),
        ];
        let (value, reason) = &kinds[self.random.below(kinds.len() as u64) as usize];
        let record = NewRecord { value: value.clone(), ..NewRecord::new(self.partition_of(city), &name, "") };
        self.expect_dead_letter(&record, reason);
        self.offsets[record.partition as usize] += 1;
        record
    }

    fn partition_of(&self, city: u32) -> i32 {
        (city % self.partitions) as i32
    }

    fn expect_dead_letter(&mut self, record: &NewRecord, reason: &str) {
        let partition = record.partition as usize;
        let NewRecord { key, value, .. } = record.clone();
        self.letters[partition].push(ExpectedDeadLetter {
            offset: self.offsets[partition],
            key,
            value,
            reason: reason.into(),
        });
    }

    /// Notes the values of all keys that an applied record reaches.
    fn expect_values(&mut self, entry: &LogEntry) {
        self.rows.note_arrival(&self.oracle, entry);
        let city = city_name(entry.city);
        let current = self.oracle.current().get(&entry.city).map(|row| current_json(&city, row));
        push_value(&mut self.current, &city, current);
    }
}
