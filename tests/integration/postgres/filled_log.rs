//! A random log, applied by the oracle, whose outcomes and readings are written into the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use swelter::internals::model::{Category, EventTime, HeatIndex, Measurement, ReadingEvent, Row};

use super::applied_log::{AppliedLog, outcome_code};
use super::test_schema::TestSchema;
use crate::support::{LogEntry, MINUTE_MS, Random, RunSettings, random_entry};

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

/// The expected rows as of an epoch.
pub struct Snapshot {
    pub as_of: i64,
    pub rows: BTreeMap<(u32, i64), Row>,
}

pub struct FilledLog {
    pub settings: RunSettings,
    pub log: AppliedLog,
    /// The epoch and the place in it of each arrival.
    pub places: Vec<(i64, i32)>,
    pub snapshots: Vec<Snapshot>,
    pub last_epoch: i64,
}

impl FilledLog {
    /// A log of so many arrivals over about a week.
    pub fn new(settings: RunSettings, seed: u64, arrivals: usize) -> FilledLog {
        let mut filled = FilledLog {
            settings,
            log: AppliedLog::new(settings),
            places: Vec::new(),
            snapshots: Vec::new(),
            last_epoch: FIRST_MS,
        };
        let (mut random, mut now) = (Random::new(seed), FIRST_MS);
        let mut seqs: BTreeMap<u32, i32> = BTreeMap::new();
        for number in 0..arrivals {
            if random.below(ARRIVALS_PER_EPOCH) == 0 {
                if filled.snapshots.len() < number * SNAPSHOTS / arrivals {
                    filled
                        .snapshots
                        .push(Snapshot { as_of: filled.last_epoch, rows: filled.log.oracle.rows() });
                }
                now += random.below(40) as i64 * MINUTE_MS;
                filled.last_epoch += 1 + random.below(900) as i64;
                seqs.clear();
            }
            let mut entry = random_entry(&mut random, now);
            entry.city = random.below(CITY_NAMES.len() as u64) as u32;
            // The highest heat index that a formula may give needs more than 32 bits.
            if let (ReadingEvent::Reading(_), 0) = (entry.event, random.below(20)) {
                entry.event = ReadingEvent::Reading(Measurement::new(140.0, 100.0, Some(3.5)).unwrap());
            }
            let seq = seqs.entry(entry.city).or_default();
            if filled.log.apply(entry) {
                filled.places.push((filled.last_epoch, *seq));
                *seq += 1;
            }
        }
        filled
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
            self.log.arrivals.iter().map(|arrival| time(arrival.entry.millis).utc_day()).collect();
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
        for (&(city, millis), (measurement, revision)) in &self.log.measured {
            let row = self.log.oracle.row(city, millis).unwrap();
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
        for (position, (arrival, (as_of, seq))) in self.log.arrivals.iter().zip(&self.places).enumerate() {
            let LogEntry { city, millis, event, revision } = arrival.entry;
            let heat = |heat: Option<(HeatIndex, Category)>| match heat {
                Some((heat_index, category)) => format!("{}\t{}", heat_index.micros(), category as u8),
                None => "\\N\t\\N".to_owned(),
            };
            writeln!(
                lines,
                "{as_of}\t{}\t{seq}\t{}\treadings\t0\t{position}\t\\N\t{}\t{}\t{}\t{}\t{}",
                city_id(city),
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
