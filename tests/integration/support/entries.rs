//! Logs of readings as the tests write them: cities are numbers, to make short logs easy to read.

use serde_json::{Value, json};
use swelter::internals::dataflow::heat_index::Formula;
use swelter::internals::dataflow::rolling::Retention;
use swelter::internals::model::{EventTime, Millis, ReadingEvent, Revision, Upsert};

pub const MINUTE_MS: i64 = 60_000;

/// The formula of property tests: cheap, and reaching both ends of the accepted range.
pub const PROPERTY_TEST_FORMULA: Formula = Formula::Rothfusz;

/// The formula that the built program uses by default.
pub const DEFAULT_FORMULA: Formula = Formula::Nws;

/// How results are computed; times in ms.
#[derive(Clone, Copy, Debug)]
pub struct RunSettings {
    pub formula: Formula,
    pub window: i64,
    pub lateness: i64,
    pub history: i64,
}

/// The settings of tests that start the built program with a log of random entries.
pub const RUN_SETTINGS: RunSettings = RunSettings {
    formula: DEFAULT_FORMULA,
    window: 30 * MINUTE_MS,
    lateness: 90 * MINUTE_MS,
    history: 60 * MINUTE_MS,
};

impl RunSettings {
    pub fn retention(&self) -> Retention {
        let duration = |millis| Millis::from_millis(millis).unwrap();
        Retention {
            window: duration(self.window),
            lateness: duration(self.lateness),
            history: duration(self.history),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct LogEntry {
    pub city: u32,
    pub millis: i64,
    pub event: ReadingEvent,
    pub revision: Option<i64>,
}

impl LogEntry {
    pub fn upsert<'a>(&self, name: &'a str) -> Upsert<'a> {
        let reading_at = EventTime::from_millis(self.millis).unwrap();
        Upsert { city: name, reading_at, event: self.event, revision: self.revision.and_then(Revision::new) }
    }
}

pub fn city_name(city: u32) -> String {
    format!("city {city}")
}

pub fn city_number(name: &str) -> u32 {
    name["city ".len()..].parse().unwrap()
}

/// An entry as a record that is posted or produced.
pub fn record_json(entry: &LogEntry) -> String {
    named_record_json(entry, &city_name(entry.city)).to_string()
}

/// The same with another name for the city.
pub fn named_record_json(entry: &LogEntry, city: &str) -> Value {
    let mut record =
        json!({"city": city, "reading_at": EventTime::from_millis(entry.millis).unwrap().to_string()});
    match entry.event {
        ReadingEvent::Reading(measurement) | ReadingEvent::RetriedReading(measurement) => {
            record["temperature"] = measurement.temperature().into();
            record["humidity"] = measurement.humidity().into();
            if let Some(wind_speed) = measurement.wind_speed() {
                record["wind_speed"] = wind_speed.into();
            }
        }
        ReadingEvent::Withdrawal => record["deleted"] = true.into(),
    }
    if let Some(revision) = entry.revision {
        record["revision"] = revision.into();
    }
    record
}
