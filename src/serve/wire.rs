//! Rows and messages as JSON: `docs/protocol.md` shows each of them.

use serde::Serialize;
use serde_json::Number;

use super::{Facts, Limits};
use crate::codec::{push_heat_index, push_integer, push_json_text, push_number};
use crate::model::{CurrentRow, EventTime, Row};

/// A row of `window` subscriptions and histories.
pub fn push_window_row(out: &mut Vec<u8>, city: &str, reading_at: EventTime, row: &Row) {
    push_key(out, city, reading_at);
    push_values(out, row);
    out.push(b'}');
}

/// The current row of a city.
pub fn push_latest_row(out: &mut Vec<u8>, city: &str, current: &CurrentRow) {
    push_key(out, city, current.reading_at);
    push_values(out, &current.row);
    let measurement = current.measurement.as_ref();
    for (name, value) in [
        (&b",\"trend\":"[..], current.trend()),
        (b",\"temperature\":", measurement.map(|m| m.temperature())),
        (b",\"humidity\":", measurement.map(|m| m.humidity())),
        (b",\"wind_speed\":", measurement.and_then(|m| m.wind_speed())),
    ] {
        out.extend_from_slice(name);
        match value {
            Some(value) => push_number(value, out),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
}

/// An object's beginning.
fn push_key(out: &mut Vec<u8>, city: &str, reading_at: EventTime) {
    out.extend_from_slice(b"{\"city\":");
    push_json_text(city, out);
    out.extend_from_slice(b",\"reading_at\":\"");
    reading_at.write_to(out);
    out.push(b'"');
}

fn push_values(out: &mut Vec<u8>, row: &Row) {
    out.extend_from_slice(b",\"heat_index\":");
    push_heat_index(row.heat_index(), out);
    out.extend_from_slice(b",\"rolling_heat_index\":");
    push_number(row.rolling_heat_index(), out);
    out.extend_from_slice(b",\"count\":");
    push_integer(row.count().into(), out);
    out.extend_from_slice(b",\"category\":\"");
    out.extend_from_slice(row.category().name().as_bytes());
    out.push(b'"');
}

/// The key of a row that is there no more.
pub(super) fn push_removal(out: &mut Vec<u8>, city: &str, reading_at: EventTime) {
    push_key(out, city, reading_at);
    out.push(b'}');
}

/// A `changes` message up to its token.
pub(super) fn begin_changes(out: &mut Vec<u8>, id: &str, as_of: u64) {
    out.extend_from_slice(b"{\"type\":\"changes\",\"id\":");
    push_json_text(id, out);
    push_as_of(out, as_of);
    out.extend_from_slice(b",\"token\":\"");
}

/// A part of a snapshot up to its rows.
pub(super) fn begin_snapshot(out: &mut Vec<u8>, id: &str, as_of: u64) {
    out.extend_from_slice(b"{\"type\":\"snapshot\",\"id\":");
    push_json_text(id, out);
    push_as_of(out, as_of);
    out.extend_from_slice(b",\"rows\":[");
}

fn push_as_of(out: &mut Vec<u8>, as_of: u64) {
    out.extend_from_slice(b",\"as_of\":");
    push_integer(i64::try_from(as_of).unwrap_or(i64::MAX), out);
}

/// The messages without rows.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Said<'a> {
    Hello {
        protocol: u32,
        generation: &'a str,
        formula: &'a str,
        window_s: Number,
        heartbeat_s: Number,
        limits: SaidLimits,
    },
    Reset {
        id: &'a str,
        reason: &'a str,
    },
    Unsubscribed {
        id: &'a str,
    },
    Heartbeat {
        as_of: u64,
    },
    Pong {
        as_of: u64,
    },
    Error {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        code: &'a str,
        detail: &'a str,
    },
}

/// What a client of subscriptions must know of the limits.
#[derive(Serialize)]
pub(super) struct SaidLimits {
    message_bytes: usize,
    messages_per_s: u32,
    subscriptions: usize,
    cities: usize,
    window_cities: usize,
}

impl<'a> Said<'a> {
    pub(super) fn hello(facts: &'a Facts, limits: &Limits) -> Said<'a> {
        Said::Hello {
            protocol: 1,
            generation: &facts.generation,
            formula: facts.formula,
            window_s: seconds(facts.window.millis()),
            heartbeat_s: seconds(i64::try_from(limits.heartbeat.as_millis()).unwrap_or(i64::MAX)),
            limits: SaidLimits {
                message_bytes: limits.message_bytes,
                messages_per_s: limits.messages_per_second,
                subscriptions: limits.subscriptions,
                cities: limits.cities,
                window_cities: limits.window_cities,
            },
        }
    }

    pub(super) fn to_json(&self) -> String {
        // Strings and numbers always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Whole seconds without a fraction.
fn seconds(ms: i64) -> Number {
    let fraction = Number::from_f64(ms as f64 / 1e3).filter(|_| ms % 1000 != 0);
    fraction.unwrap_or_else(|| (ms / 1000).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Category, HeatIndex, Measurement};

    fn row() -> Row {
        Row::new(HeatIndex::from_micros(91_283_411), Category::ExtremeCaution, 252_038_190_000, 3001)
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn rows_are_written_as_the_protocol_shows_them() {
        let reading_at = EventTime::parse("2025-11-24T16:00:00Z", None).unwrap();
        let measurement = Measurement::new(86.4, 63.1, None).unwrap();
        let current = CurrentRow { reading_at, row: row(), hour_ago: None, measurement: Some(measurement) };
        let start = "{\"city\":\"a \\\"b\\\"\",\"reading_at\":\"2025-11-24T16:00:00Z\",\"heat_index\":91.283411,\"rolling_heat_index\":";
        let text = written(|out| push_latest_row(out, "a \"b\"", &current));
        assert!(text.starts_with(start), "{text}");
        let end = ",\"count\":3001,\"category\":\"extreme_caution\",\"trend\":null,\"temperature\":86.4,\"humidity\":63.1,\"wind_speed\":null}";
        assert!(text.ends_with(end), "{text}");
        let text = written(|out| push_window_row(out, "a", reading_at, &row()));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["rolling_heat_index"].as_f64(), Some(row().rolling_heat_index()));
        assert!(text.ends_with(",\"category\":\"extreme_caution\"}"), "{text}");
    }
}
