//! Encodes readings and results as data of swelter's own schemas, which are in `schemas/`. The
//! fields are in the order of the schema.

use super::super::RecordFields;
use crate::model::{CurrentRow, EventTime, Row};

/// Appends a record of [`READING_SCHEMA`](super::READING_SCHEMA). A required field that the record
/// lacks is written as empty text, which no rule accepts.
pub fn reading_to_avro(fields: &RecordFields<'_>, out: &mut Vec<u8>) {
    push_text(fields.city.unwrap_or_default(), out);
    match fields.reading_at {
        Some(reading_at) => {
            push_branch(0, out);
            push_long(reading_at.millis(), out);
        }
        None => {
            push_branch(1, out);
            push_text("", out);
        }
    }
    push_optional(fields.temperature, out);
    push_optional(fields.humidity, out);
    push_optional(None, out); // dew_point
    push_optional(fields.wind_speed, out);
    match fields.revision {
        Some(revision) => {
            push_branch(1, out);
            push_long(revision.number(), out);
        }
        None => push_branch(0, out),
    }
    out.push(fields.withdrawal.into());
}

/// Appends a row of [`ROW_SCHEMA`](super::ROW_SCHEMA).
pub fn row_to_avro(city: &str, reading_at: EventTime, row: &Row, out: &mut Vec<u8>) {
    push_text(city, out);
    push_long(reading_at.millis(), out);
    push_double(row.heat_index().fahrenheit(), out);
    push_double(row.rolling_heat_index(), out);
    push_long(row.count().into(), out);
    push_long(row.category() as i64, out);
}

/// Appends a row of [`CURRENT_SCHEMA`](super::CURRENT_SCHEMA).
pub fn current_to_avro(city: &str, current: &CurrentRow, out: &mut Vec<u8>) {
    row_to_avro(city, current.reading_at, &current.row, out);
    push_optional(current.trend(), out);
    let measurement = current.measurement.as_ref();
    push_optional(measurement.map(|m| m.temperature()), out);
    push_optional(measurement.map(|m| m.humidity()), out);
    push_optional(measurement.and_then(|m| m.wind_speed()), out);
}

/// Zigzag, 7 bits a byte, the least significant first.
#[inline]
fn push_long(number: i64, out: &mut Vec<u8>) {
    let mut bits = (number << 1 ^ number >> 63) as u64;
    while bits >= 0x80 {
        out.push(bits as u8 | 0x80);
        bits >>= 7;
    }
    out.push(bits as u8);
}

fn push_branch(branch: i64, out: &mut Vec<u8>) {
    push_long(branch, out);
}

fn push_double(number: f64, out: &mut Vec<u8>) {
    out.extend_from_slice(&number.to_le_bytes());
}

#[inline]
fn push_text(text: &str, out: &mut Vec<u8>) {
    push_long(text.len() as i64, out);
    out.extend_from_slice(text.as_bytes());
}

/// A value of the type `["null", "double"]`.
#[inline]
fn push_optional(number: Option<f64>, out: &mut Vec<u8>) {
    match number {
        Some(number) => {
            push_branch(1, out);
            push_double(number, out);
        }
        None => push_branch(0, out),
    }
}
