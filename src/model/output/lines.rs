//! Rows and records as files hold them, with names and times written out.

use serde::Serialize;

use crate::model::{Category, EventTime, HeatIndex, Measurement, PeriodSummary, Refusal, RetryInfo, Row};

/// One row of `batch`'s result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResultRow {
    pub reading_at: EventTime,
    /// The measurement of the arrival that won.
    pub measurement: Measurement,
    pub heat_index: HeatIndex,
    /// The sum of the window's heat indexes, 1e-6 °F.
    pub sum: i64,
    /// The number of readings in the window.
    pub count: u32,
    /// The category of the heat index.
    pub category: Category,
}

impl ResultRow {
    /// The mean of the window's heat indexes, °F.
    #[cfg(test)]
    pub fn rolling_heat_index(&self) -> f64 {
        crate::model::heat::mean_fahrenheit(self.sum, self.count)
    }
}

/// The result rows of one city, by time. A writer gets the cities in the order of their code
/// points.
#[derive(Clone, Copy, Debug)]
pub struct CityRows<'a> {
    pub city: &'a str,
    pub rows: &'a [ResultRow],
}

/// A change of a row, with the city's key.
#[derive(Clone, Copy, Debug)]
pub struct ChangeLine<'a> {
    /// The number of records read when the change became visible.
    pub as_of: u64,
    pub city: &'a str,
    pub reading_at: EventTime,
    pub before: Option<Row>,
    pub after: Option<Row>,
}

/// The summary of one city and day, with the city's key.
#[derive(Clone, Copy, Debug)]
pub struct DayLine<'a> {
    pub city: &'a str,
    /// Days from 1970-01-01 to the date, in UTC or in the zone whose days are counted.
    pub day: i32,
    pub summary: PeriodSummary,
}

/// A refused record, with all that is needed to find, show and retry it.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetterLine<'a> {
    /// The file as it was named, or the live source.
    pub source: &'a str,
    #[serde(flatten)]
    pub at: RecordLocation,
    #[serde(flatten, serialize_with = "refusal")]
    pub refusal: &'a Refusal,
    /// Set if the record is a retried one.
    #[serde(flatten, serialize_with = "retried")]
    pub retry: Option<&'a RetryInfo>,
    #[serde(flatten, serialize_with = "raw")]
    pub raw: &'a [u8],
}

/// The location of a record in its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum RecordLocation {
    /// The line at which the record begins, from 1; in Parquet the row, from 1.
    Line { line: u64 },
    /// The record's number in its partition.
    Position {
        partition: u32,
        position: u64,
        /// When the log appended the record, if known.
        #[serde(serialize_with = "written")]
        arrived_at: Option<EventTime>,
    },
}

fn written<S: serde::Serializer>(time: &Option<EventTime>, s: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => s.collect_str(time),
        None => s.serialize_none(),
    }
}

fn refusal<S: serde::Serializer>(refusal: &&Refusal, s: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap;
    let mut map = s.serialize_map(Some(2))?;
    map.serialize_entry("reason", &refusal.reason)?;
    map.serialize_entry("detail", &refusal.detail)?;
    map.end()
}

fn retried<S: serde::Serializer>(retried: &Option<&RetryInfo>, s: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap;
    let mut map = s.serialize_map(None)?;
    if let Some(RetryInfo { origin, attempt, first_seen }) = retried {
        map.serialize_entry("origin", origin)?;
        map.serialize_entry("attempt", attempt)?;
        map.serialize_entry("first_seen_at", &first_seen.map(|time| time.to_string()))?;
    }
    map.end()
}

/// `raw` if the bytes are UTF-8, else `raw_base64`.
fn raw<S: serde::Serializer>(raw: &&[u8], s: S) -> Result<S::Ok, S::Error> {
    use base64::Engine;
    use serde::ser::SerializeMap;
    let mut map = s.serialize_map(Some(1))?;
    match std::str::from_utf8(raw) {
        Ok(text) => map.serialize_entry("raw", text)?,
        Err(_) => {
            map.serialize_entry("raw_base64", &base64::engine::general_purpose::STANDARD.encode(raw))?
        }
    }
    map.end()
}
