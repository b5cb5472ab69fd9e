//! What the files hold: rows with their names and times written out.

use serde::Serialize;

use super::{Category, DaySummary, EventTime, HeatIndex, Measurement, Refusal, RetryInfo, Row};

/// One line of `batch`'s result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResultRow {
    pub reading_at: EventTime,
    /// That of the arrival that won.
    pub measurement: Measurement,
    pub heat_index: HeatIndex,
    /// The sum of the heat indexes of the window, 1e-6 °F.
    pub sum: i64,
    /// How many they are.
    pub count: u32,
    /// Of the heat index.
    pub category: Category,
}

#[cfg(test)]
impl ResultRow {
    /// The mean heat index of the window, °F.
    pub fn rolling_heat_index(&self) -> f64 {
        super::heat::mean_fahrenheit(self.sum, self.count)
    }
}

/// Result rows of one city, by time. A writer gets cities in the order of their code points.
#[derive(Clone, Copy, Debug)]
pub struct CityRows<'a> {
    pub city: &'a str,
    pub rows: &'a [ResultRow],
}

/// One change of a row, to be written by name.
#[derive(Clone, Copy, Debug)]
pub struct ChangeLine<'a> {
    /// The number of records read when the change became visible.
    pub as_of: u64,
    pub city: &'a str,
    pub reading_at: EventTime,
    pub before: Option<Row>,
    pub after: Option<Row>,
}

/// The summary of one day of one city, to be written by name.
#[derive(Clone, Copy, Debug)]
pub struct DayLine<'a> {
    pub city: &'a str,
    /// Days from 1970-01-01 to that date, in UTC or the zone whose days they are.
    pub day: i32,
    pub summary: DaySummary,
}

/// A record that was not taken, with all that is needed to find, show and send it again.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetterLine<'a> {
    /// The file that it is in, as it was named, or the live source.
    pub source: &'a str,
    #[serde(flatten)]
    pub at: RecordLocation,
    #[serde(flatten, serialize_with = "refusal")]
    pub refusal: &'a Refusal,
    /// Where it was sent again.
    #[serde(flatten, serialize_with = "retried")]
    pub retry: Option<&'a RetryInfo>,
    #[serde(flatten, serialize_with = "raw")]
    pub raw: &'a [u8],
}

/// Where a record stands in its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum RecordLocation {
    /// The line it begins at, from 1; in Parquet the row, from 1.
    Line { line: u64 },
    /// The record's number in its partition.
    Position {
        partition: u32,
        position: u64,
        /// When the log took it, where the log knows.
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

/// `raw` where the bytes are UTF-8, `raw_base64` where they are not.
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
