//! Rows and messages as JSON: `docs/protocol.md` shows each of them.

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
