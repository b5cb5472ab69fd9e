//! The sequential recomputation: short, obviously right, and slow. It applies a log one arrival at
//! a time, keeps everything, and computes every result from all readings.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use swelter::internals::dataflow::rolling::MAX_TOMBSTONES_WITHOUT_READING;
use swelter::internals::model::time::{Day, DayZone};
use swelter::internals::model::{
    Category, CurrentRow, EventTime, HeatIndex, HeldHeat, Measurement, OutcomeKind, PeriodSummary,
    ReadingEvent, Row,
};

use super::entries::{LogEntry, RunSettings};

type ReadingKey = (u32, i64);

pub struct Oracle {
    settings: RunSettings,
    readings: BTreeMap<ReadingKey, (Measurement, HeatIndex, Category)>,
    /// The revision of the last accepted arrival of each key.
    revisions: BTreeMap<ReadingKey, Option<i64>>,
    high: BTreeMap<u32, i64>,
    /// The newest four measurements of each city.
    measured: BTreeMap<u32, BTreeMap<i64, Measurement>>,
}

impl Oracle {
    pub fn new(settings: RunSettings) -> Oracle {
        let (readings, revisions) = (BTreeMap::new(), BTreeMap::new());
        Oracle { settings, readings, revisions, high: BTreeMap::new(), measured: BTreeMap::new() }
    }

    /// Whether admission would refuse it now.
    pub fn is_too_late(&self, entry: &LogEntry) -> bool {
        self.high.get(&entry.city).is_some_and(|high| entry.millis < high - self.settings.lateness)
    }

    /// The outcome of the next arrival; `None` if admission refuses it as too late.
    pub fn apply_arrival(&mut self, entry: &LogEntry) -> Option<OutcomeKind> {
        let key = (entry.city, entry.millis);
        if self.is_too_late(entry) {
            return None;
        }
        if entry.event != ReadingEvent::Withdrawal {
            let high = self.high.entry(entry.city).or_insert(entry.millis);
            *high = (*high).max(entry.millis);
        }
        // Every key that was ever accepted has a reading or a withdrawal.
        if matches!(entry.event, ReadingEvent::RetriedReading(_)) && self.revisions.contains_key(&key) {
            return Some(OutcomeKind::Superseded);
        }
        if let (Some(new), Some(Some(old))) = (entry.revision, self.revisions.get(&key))
            && new < *old
        {
            return Some(OutcomeKind::OldRevision);
        }
        self.revisions.insert(key, entry.revision);
        self.forget_tombstones(entry.city);
        let measured = self.measured.entry(entry.city).or_default();
        Some(match entry.event {
            ReadingEvent::Reading(measurement) | ReadingEvent::RetriedReading(measurement) => {
                measured.insert(entry.millis, measurement);
                if measured.len() > 4 {
                    measured.pop_first();
                }
                let (heat_index, category) = self.settings.formula.evaluate(&measurement);
                match self.readings.insert(key, (measurement, heat_index, category)) {
                    Some(_) => OutcomeKind::Corrected,
                    None => OutcomeKind::Inserted,
                }
            }
            ReadingEvent::Withdrawal => {
                measured.remove(&entry.millis);
                match self.readings.remove(&key) {
                    Some(_) => OutcomeKind::Withdrawn,
                    None => OutcomeKind::NothingToWithdraw,
                }
            }
        })
    }

    /// The effect of the next arrival; `None` if admission refuses it as too late.
    pub fn apply_with_effect(&mut self, entry: &LogEntry) -> Option<ExpectedEffect> {
        let (key, is_first_of_city) = ((entry.city, entry.millis), !self.knows_city(entry.city));
        let before = self.held_heat(key);
        let kind = self.apply_arrival(entry)?;
        let (after, high) = (self.held_heat(key), self.high(entry.city));
        Some(ExpectedEffect { kind, before, after, is_first_of_city, high })
    }

    fn held_heat(&self, key: ReadingKey) -> Option<HeldHeat> {
        self.readings.get(&key).map(|(_, heat_index, category)| HeldHeat::new(*heat_index, *category))
    }

    /// The newest time of an admitted reading of the city.
    pub fn high(&self, city: u32) -> Option<EventTime> {
        self.high.get(&city).and_then(|high| EventTime::from_millis(*high))
    }

    /// A city without a reading keeps only so many withdrawals, and those within the lateness of
    /// the newest.
    fn forget_tombstones(&mut self, city: u32) {
        if self.high.contains_key(&city) {
            return;
        }
        let keys: Vec<ReadingKey> =
            self.revisions.keys().copied().filter(|(known, _)| *known == city).collect();
        let beyond = keys.len().saturating_sub(MAX_TOMBSTONES_WITHOUT_READING);
        for key in &keys[..beyond] {
            if key.1 < keys[keys.len() - 1].1 - self.settings.lateness {
                self.revisions.remove(key);
            }
        }
    }

    pub fn row(&self, city: u32, millis: i64) -> Option<Row> {
        let (_, heat_index, category) = *self.readings.get(&(city, millis))?;
        let window = self.readings.range((city, millis - self.settings.window)..=(city, millis));
        let (mut sum, mut count) = (0, 0);
        for (_, (_, heat_index, _)) in window {
            sum += heat_index.micros();
            count += 1;
        }
        Some(Row::new(heat_index, category, sum, count))
    }

    pub fn rows(&self) -> BTreeMap<ReadingKey, Row> {
        self.readings
            .keys()
            .map(|&(city, millis)| ((city, millis), self.row(city, millis).unwrap()))
            .collect()
    }

    /// The summaries of the days of UTC, by city and number.
    pub fn days(&self) -> BTreeMap<(u32, i32), PeriodSummary> {
        let periods = self.periods(|_, millis| Some(DayZone::Utc.day_of(millis)));
        periods.into_iter().map(|(key, period)| ((key.0, period.number), period.summary)).collect()
    }

    /// The summaries of the periods that `period_of` finds for a city and a time, by their first
    /// instants.
    pub fn periods(&self, period_of: impl Fn(u32, i64) -> Option<Day>) -> BTreeMap<ReadingKey, PeriodRow> {
        let mut periods: BTreeMap<ReadingKey, PeriodRow> = BTreeMap::new();
        for (&(city, millis), &(_, heat_index, category)) in &self.readings {
            let Some(Day { number, instants }) = period_of(city, millis) else { continue };
            let at = EventTime::from_millis(millis).unwrap();
            let new = PeriodSummary {
                readings: 0,
                sum: 0,
                max_heat_index: heat_index,
                max_at: at,
                categories: [0; 5],
            };
            let is_final = instants.end <= self.high[&city].saturating_sub(self.settings.lateness);
            let row = PeriodRow { number, ends: instants.end, summary: new, is_final };
            let summary = &mut periods.entry((city, instants.start)).or_insert(row).summary;
            summary.readings += 1;
            summary.sum += heat_index.micros();
            summary.categories[category as usize] += 1;
            if heat_index > summary.max_heat_index {
                (summary.max_heat_index, summary.max_at) = (heat_index, at);
            }
        }
        periods
    }

    pub fn current(&self) -> BTreeMap<u32, CurrentRow> {
        let mut current = BTreeMap::new();
        for (&city, &high) in &self.high {
            let servable = high - self.settings.lateness.max(self.settings.history);
            let newest_within = |from: i64, to: i64| {
                let from = from.max(servable);
                let mut range = (from <= to).then(|| self.readings.range((city, from)..=(city, to)))?;
                range.next_back().map(|(key, _)| key.1)
            };
            let Some(millis) = newest_within(servable, high) else { continue };
            let hour_ago = newest_within(millis - 7_200_000, millis - 3_600_000);
            let hour_ago = hour_ago.and_then(|at| self.row(city, at));
            let row = CurrentRow {
                reading_at: EventTime::from_millis(millis).unwrap(),
                row: self.row(city, millis).unwrap(),
                hour_ago: hour_ago.map(|row| (row.sum(), row.count())),
                measurement: self.measured[&city].get(&millis).copied(),
            };
            current.insert(city, row);
        }
        current
    }

    /// Whether anything of the city was ever accepted.
    pub fn knows_city(&self, city: u32) -> bool {
        self.revisions.keys().any(|(known, _)| *known == city)
    }

    pub fn settings(&self) -> RunSettings {
        self.settings
    }

    /// The servable row at a time, the readings of its window, each as the row of a window that
    /// holds nothing else, and which of their measurements are held.
    pub fn explanation(&self, city: u32, millis: i64) -> ExpectedExplanation {
        let (from, to) = (millis - self.settings.window, millis);
        let measured = self.measured.get(&city).into_iter().flat_map(|measured| measured.range(from..=to));
        let measured = measured.map(|(at, measurement)| (*at, *measurement)).collect();
        let is_servable = |row: &(i64, Row)| row.0 == millis;
        let Some((_, row)) = self.servable_rows(city).into_iter().find(is_servable) else {
            return (None, Vec::new(), measured);
        };
        let window = self.readings.range((city, from)..=(city, to));
        let alone = window.map(|((_, at), (_, heat_index, category))| {
            (*at, Row::new(*heat_index, *category, heat_index.micros(), 1))
        });
        (Some(row), alone.collect(), measured)
    }

    /// The servable rows.
    pub fn servable_rows(&self, city: u32) -> Vec<(i64, Row)> {
        let Some(high) = self.high.get(&city) else { return Vec::new() };
        let oldest = high - self.settings.lateness.max(self.settings.history);
        self.rows()
            .into_iter()
            .filter(|((c, at), _)| *c == city && *at >= oldest)
            .map(|((_, at), row)| (at, row))
            .collect()
    }
}

/// A row, the readings of its window, and their measurements that are held.
pub type ExpectedExplanation = (Option<Row>, Vec<(i64, Row)>, Vec<(i64, Measurement)>);

/// The summary of an hour or a day of a city.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PeriodRow {
    pub number: i32,
    pub ends: i64,
    pub summary: PeriodSummary,
    pub is_final: bool,
}

/// What an arrival does to its key and its city.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectedEffect {
    pub kind: OutcomeKind,
    /// The heat index of the key before and after.
    pub before: Option<HeldHeat>,
    pub after: Option<HeldHeat>,
    pub is_first_of_city: bool,
    /// The newest time of the city afterwards.
    pub high: Option<EventTime>,
}

/// The state of a city in a checkpoint, as `swelter checkpoints show --json` prints it: everything
/// by time, and how much of that results may still need.
pub struct ExpectedCityState {
    pub high: Value,
    pub measured: Vec<Value>,
    pub readings: Vec<Value>,
    pub needed_readings: usize,
    pub withdrawn: Vec<Value>,
    pub needed_withdrawn: usize,
}

impl Oracle {
    pub fn city_state(&self, city: u32) -> ExpectedCityState {
        let time = |millis: i64| EventTime::from_millis(millis).unwrap().to_string();
        let high = self.high.get(&city).copied();
        let from_high = |reach: i64| high.map_or(i64::MIN, |high| high - reach);
        let RunSettings { window, lateness, history, .. } = self.settings;
        let of_city = (city, i64::MIN)..=(city, i64::MAX);
        let readings = self.readings.range(of_city.clone()).map(|(key, (_, heat_index, category))| {
            json!({
                "reading_at": time(key.1), "heat_index": heat_index.fahrenheit(), "category": category,
                "revision": self.revisions[key],
            })
        });
        let held = (city, from_high(lateness.max(history) + window))..=(city, i64::MAX);
        let withdrawn: Vec<_> =
            self.revisions.range(of_city).filter(|(key, _)| !self.readings.contains_key(key)).collect();
        let measured = self.measured.get(&city).into_iter().flatten().map(|(millis, measurement)| {
            json!({
                "reading_at": time(*millis), "temperature": measurement.temperature(),
                "humidity": measurement.humidity(), "wind_speed": measurement.wind_speed(),
            })
        });
        ExpectedCityState {
            high: high.map_or(Value::Null, |high| json!(time(high))),
            measured: measured.collect(),
            readings: readings.collect(),
            needed_readings: self.readings.range(held).count(),
            needed_withdrawn: withdrawn.iter().filter(|(key, _)| key.1 >= from_high(lateness)).count(),
            withdrawn: withdrawn
                .iter()
                .map(|(key, revision)| json!({"reading_at": time(key.1), "revision": revision}))
                .collect(),
        }
    }
}
