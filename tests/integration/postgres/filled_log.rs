//! A random log, applied by the oracle, whose outcomes and readings are written into the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use swelter::internals::model::{Category, EventTime, HeatIndex, Measurement, OutcomeKind, ReadingEvent, Row};

use super::test_schema::TestSchema;
use crate::support::{LogEntry, MINUTE_MS, Oracle, Random, RunSettings, random_entry};

/// Names that a statement or a COPY could misread.
pub const CITY_NAMES: [&str; 6] = [
    "Oslo",
    "St. John's \"NL\"",
    "100 % \\N \\. \\\\",
    "{\"a\",NULL}",
    "$1; drop table city; --",
    "🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡🌡",
];
/// 2026-01-05T00:00:00Z.
const FIRST_MS: i64 = 1_767_571_200_000;
/// Arrivals between two epochs, on average.
const ARRIVALS_PER_EPOCH: u64 = 4;
const SNAPSHOTS: usize = 12;

type ReadingKey = (u32, i64);

/// The expected rows as of an epoch.
pub struct Snapshot {
    pub as_of: i64,
    pub rows: BTreeMap<ReadingKey, Row>,
}

/// An arrival, and what its key had before it.
pub struct AppliedArrival {
    pub entry: LogEntry,
    pub as_of: i64,
    pub seq: i32,
    pub outcome: OutcomeKind,
    pub before: Option<(HeatIndex, Category)>,
    pub after: Option<(HeatIndex, Category)>,
    pub measurement_before: Option<Measurement>,
}

pub struct FilledLog {
    pub settings: RunSettings,
    pub oracle: Oracle,
    pub arrivals: Vec<AppliedArrival>,
    pub snapshots: Vec<Snapshot>,
    pub last_epoch: i64,
    /// The measurement and revision of each reading that counts.
    measured: BTreeMap<ReadingKey, (Measurement, Option<i64>)>,
}

impl FilledLog {
    /// A log of so many arrivals over about a week.
    pub fn new(settings: RunSettings, seed: u64, arrivals: usize) -> FilledLog {
        let mut log = FilledLog {
            settings,
            oracle: Oracle::new(settings),
            arrivals: Vec::new(),
            snapshots: Vec::new(),
            last_epoch: FIRST_MS,
            measured: BTreeMap::new(),
        };
        let (mut random, mut now) = (Random::new(seed), FIRST_MS);
        let mut seqs: BTreeMap<u32, i32> = BTreeMap::new();
        for number in 0..arrivals {
            if random.below(ARRIVALS_PER_EPOCH) == 0 {
                if log.snapshots.len() < number * SNAPSHOTS / arrivals {
                    log.snapshots.push(Snapshot { as_of: log.last_epoch, rows: log.oracle.rows() });
                }
                now += random.below(40) as i64 * MINUTE_MS;
                log.last_epoch += 1 + random.below(900) as i64;
                seqs.clear();
            }
            let mut entry = random_entry(&mut random, now);
            entry.city = random.below(CITY_NAMES.len() as u64) as u32;
            // The highest heat index that a formula may give needs more than 32 bits.
            if let (ReadingEvent::Reading(_), 0) = (entry.event, random.below(20)) {
                entry.event = ReadingEvent::Reading(Measurement::new(140.0, 100.0, Some(3.5)).unwrap());
            }
            let seq = seqs.entry(entry.city).or_default();
            if log.apply(entry, *seq) {
                *seq += 1;
            }
        }
        log
    }

    /// False if admission refuses the arrival.
    fn apply(&mut self, entry: LogEntry, seq: i32) -> bool {
        let key = (entry.city, entry.millis);
        let heat = |oracle: &Oracle| oracle.row(key.0, key.1).map(|row| (row.heat_index(), row.category()));
        let before = heat(&self.oracle);
        let Some(outcome) = self.oracle.apply_arrival(&entry) else { return false };
        let measurement_before = self.measured.get(&key).map(|(measurement, _)| *measurement);
        match (outcome, entry.event.measurement()) {
            (OutcomeKind::Inserted | OutcomeKind::Corrected, Some(measurement)) => {
                self.measured.insert(key, (*measurement, entry.revision));
            }
            (OutcomeKind::Withdrawn, _) => drop(self.measured.remove(&key)),
            _ => {}
        }
        self.arrivals.push(AppliedArrival {
            entry,
            as_of: self.last_epoch,
            seq,
            outcome,
            before,
            after: heat(&self.oracle),
            measurement_before,
        });
        true
    }

    /// Writes all of it into the tables of a schema.
    pub fn fill(&self, schema: &TestSchema) {
        let client = &schema.client;
        let RunSettings { window, lateness, history, .. } = self.settings;
        client.execute(&format!(
            "insert into setting values ('window_ms', '{window}'), ('lateness_ms', '{lateness}'), ('history_ms', '{history}');
             insert into shard (shard, generation, nonce, epoch) values (0, 1, 'n', {0}), (1, 1, 'n', {0});",
            self.last_epoch
        ));
        let mut cities = String::new();
        for (number, name) in CITY_NAMES.iter().enumerate() {
            writeln!(cities, "{}\t{}\t{}", city_id(number as u32), copy_text(name), number % 2).unwrap();
        }
        client.copy("city (city_id, name, shard)", &cities);
        let days: BTreeSet<i32> =
            self.arrivals.iter().map(|arrival| time(arrival.entry.millis).utc_day()).collect();
        for day in days {
            let (from, to) = (day_start(day), day_start(day + 1));
            let name = from.to_string()[..10].replace('-', "");
            for table in ["reading", "arrival"] {
                client.execute(&format!(
                    "create table {table}_{name} (like {table} including all);
                     alter table {table} attach partition {table}_{name} for values from ('{from}') to ('{to}')"
                ));
            }
        }
        client.copy("reading", &self.reading_lines());
        client.copy("arrival", &self.arrival_lines());
    }

    fn reading_lines(&self) -> String {
        let mut lines = String::new();
        for (&(city, millis), (measurement, revision)) in &self.measured {
            let row = self.oracle.row(city, millis).unwrap();
            writeln!(
                lines,
                "{}\t{}\t{}\t{}\t{}\t{}",
                city_id(city),
                time(millis),
                measurement_text(Some(measurement)),
                row.heat_index().micros(),
                row.category() as u8,
                null_or(*revision)
            )
            .unwrap();
        }
        lines
    }

    fn arrival_lines(&self) -> String {
        let mut lines = String::new();
        for (position, arrival) in self.arrivals.iter().enumerate() {
            let LogEntry { city, millis, event, revision } = arrival.entry;
            let heat = |heat: Option<(HeatIndex, Category)>| match heat {
                Some((heat_index, category)) => format!("{}\t{}", heat_index.micros(), category as u8),
                None => "\\N\t\\N".to_owned(),
            };
            writeln!(
                lines,
                "{}\t{}\t{}\t{}\treadings\t0\t{position}\t\\N\t{}\t{}\t{}\t{}\t{}",
                arrival.as_of,
                city_id(city),
                arrival.seq,
                time(millis),
                measurement_text(event.measurement()),
                null_or(revision),
                outcome_code(arrival.outcome),
                heat(arrival.after),
                heat(arrival.before)
            )
            .unwrap();
        }
        lines
    }
}

pub fn city_id(city: u32) -> i64 {
    // In another order than the names.
    i64::from(1_000 - city) << 32
}

pub fn outcome_code(outcome: OutcomeKind) -> i16 {
    match outcome {
        OutcomeKind::Inserted => 1,
        OutcomeKind::Corrected => 2,
        OutcomeKind::Withdrawn => 3,
        OutcomeKind::NothingToWithdraw => 4,
        OutcomeKind::OldRevision => 5,
        OutcomeKind::Superseded => 6,
        OutcomeKind::TooLate => 7,
    }
}

fn time(millis: i64) -> EventTime {
    EventTime::from_millis(millis).unwrap()
}

fn day_start(day: i32) -> EventTime {
    time(i64::from(day) * 24 * 60 * MINUTE_MS)
}

fn null_or(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "\\N".to_owned(), |value| value.to_string())
}

fn measurement_text(measurement: Option<&Measurement>) -> String {
    let Some(measurement) = measurement else { return "\\N\t\\N\t\\N".to_owned() };
    let wind_speed = null_or(measurement.wind_speed());
    format!("{}\t{}\t{wind_speed}", measurement.temperature(), measurement.humidity())
}

fn copy_text(text: &str) -> String {
    text.replace('\\', "\\\\")
}
