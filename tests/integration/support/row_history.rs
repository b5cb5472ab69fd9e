//! The values that each row takes, one after the other, if each record is applied by itself.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use swelter::internals::model::EventTime;

use super::entries::{LogEntry, RUN_SETTINGS, city_name};
use super::oracle::Oracle;
use super::rows::row_json;

/// The values of each key in their order, with `None` for a withdrawal.
pub type ValueHistory = BTreeMap<String, Vec<Option<Value>>>;

/// The history of all rows of a log.
#[derive(Default)]
pub struct RowHistory {
    /// By the keys of the topics.
    pub values: ValueHistory,
    /// Times that the log has had, of each city.
    times: BTreeMap<u32, Vec<i64>>,
}

impl RowHistory {
    /// Notes the values of all rows that a record reaches, which the oracle has just applied.
    pub fn note_arrival(&mut self, oracle: &Oracle, entry: &LogEntry) {
        let city = city_name(entry.city);
        let times = self.times.entry(entry.city).or_default();
        if let Err(place) = times.binary_search(&entry.millis) {
            times.insert(place, entry.millis);
        }
        let reached = entry.millis..=entry.millis + RUN_SETTINGS.window;
        for millis in times.iter().filter(|at| reached.contains(at)) {
            let row = oracle.row(entry.city, *millis).map(|row| row_json(&city, *millis, &row));
            push_value(&mut self.values, &row_key(&city, *millis), row);
        }
    }
}

/// Notes the value of a key, unless it has not changed.
pub fn push_value(values: &mut ValueHistory, key: &str, value: Option<Value>) {
    let values = values.entry(key.into()).or_default();
    if values.last().unwrap_or(&None) != &value {
        values.push(value);
    }
}

/// The key of a row, byte for byte.
pub fn row_key(city: &str, millis: i64) -> String {
    format!("{{\"city\":{},\"reading_at\":\"{}\"}}", json!(city), EventTime::from_millis(millis).unwrap())
}

/// The value of each key in the end.
pub fn final_values(values: &ValueHistory) -> BTreeMap<&str, Value> {
    values.iter().filter_map(|(key, values)| Some((key.as_str(), values.last()?.clone()?))).collect()
}
