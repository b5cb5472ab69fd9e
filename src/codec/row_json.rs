//! Rows as JSON objects: `docs/protocol.md` shows them.

use super::text_output::{push_heat_index, push_integer, push_json_text, push_number};
use crate::model::{CurrentRow, EventTime, HeatIndex, Measurement, OutputUnits, Row, TemperatureUnit};

/// Appends the key of a row, whatever its value: `{"city":..,"reading_at":..}`, in this order,
/// without spaces.
pub fn push_key_json(out: &mut Vec<u8>, city: &str, reading_at: EventTime) {
    push_object_start(out, city, reading_at);
    out.push(b'}');
}

/// Appends `"units":"celsius","wind_units":"km/h"`.
pub fn push_units(out: &mut Vec<u8>, units: OutputUnits) {
    out.extend_from_slice(b"\"units\":\"");
    out.extend_from_slice(units.temperature.name().as_bytes());
    out.extend_from_slice(b"\",\"wind_units\":\"");
    out.extend_from_slice(units.wind.name().as_bytes());
    out.push(b'"');
}

pub fn push_row_json(out: &mut Vec<u8>, city: &str, reading_at: EventTime, row: &Row, units: OutputUnits) {
    push_object_start(out, city, reading_at);
    push_row_values(out, row, units);
    out.push(b'}');
}

/// Appends the current row of a city.
pub fn push_current_json(out: &mut Vec<u8>, city: &str, current: &CurrentRow, units: OutputUnits) {
    push_object_start(out, city, current.reading_at);
    push_current_values(out, current, units);
    out.push(b'}');
}

/// Appends the current row of a city with its age in ms, for an answer that is read at once.
pub fn push_aged_current_json(
    out: &mut Vec<u8>,
    city: &str,
    current: &CurrentRow,
    units: OutputUnits,
    stale: bool,
    age_ms: i64,
) {
    push_object_start(out, city, current.reading_at);
    push_current_values(out, current, units);
    out.extend_from_slice(if stale { b",\"stale\":true,\"age_s\":" } else { b",\"stale\":false,\"age_s\":" });
    push_number(age_ms as f64 / 1e3, out);
    out.push(b'}');
}

/// Appends the members of a current row behind its key.
pub fn push_current_values(out: &mut Vec<u8>, current: &CurrentRow, units: OutputUnits) {
    push_row_values(out, &current.row, units);
    push_optional_number(out, b",\"trend\":", units.temperature.trend(current));
    push_measurement_values(out, current.measurement.as_ref(), units);
}

/// Appends the members of a measurement behind others, all null if there is none.
pub fn push_measurement_values(out: &mut Vec<u8>, measurement: Option<&Measurement>, units: OutputUnits) {
    let OutputUnits { temperature, wind } = units;
    for (name, value) in [
        (&b",\"temperature\":"[..], measurement.map(|m| temperature.temperature(m.temperature()))),
        (b",\"humidity\":", measurement.map(|m| m.humidity())),
        (b",\"wind_speed\":", measurement.and_then(|m| m.wind_speed()).map(|mph| wind.speed(mph))),
    ] {
        push_optional_number(out, name, value);
    }
}

fn push_optional_number(out: &mut Vec<u8>, name: &[u8], value: Option<f64>) {
    out.extend_from_slice(name);
    match value {
        Some(value) => push_number(value, out),
        None => out.extend_from_slice(b"null"),
    }
}

/// Appends the members of a heat index: in a unit, as the integer that is summed, and its category.
pub fn push_heat_index_values(out: &mut Vec<u8>, row: &Row, units: OutputUnits) {
    out.extend_from_slice(b"\"heat_index\":");
    push_degrees(row.heat_index(), units.temperature, out);
    out.extend_from_slice(b",\"heat_index_e6\":");
    push_integer(row.heat_index().micros(), out);
    out.extend_from_slice(b",\"category\":\"");
    out.extend_from_slice(row.category().name().as_bytes());
    out.push(b'"');
}

/// Appends an object up to its key.
fn push_object_start(out: &mut Vec<u8>, city: &str, reading_at: EventTime) {
    out.extend_from_slice(b"{\"city\":");
    push_json_text(city, out);
    out.extend_from_slice(b",\"reading_at\":\"");
    reading_at.write_to(out);
    out.push(b'"');
}

/// Appends the members of a row behind its key.
pub fn push_row_values(out: &mut Vec<u8>, row: &Row, units: OutputUnits) {
    out.extend_from_slice(b",\"heat_index\":");
    push_degrees(row.heat_index(), units.temperature, out);
    out.extend_from_slice(b",\"rolling_heat_index\":");
    push_number(units.temperature.mean(row.sum(), row.count()), out);
    out.extend_from_slice(b",\"count\":");
    push_integer(row.count().into(), out);
    out.extend_from_slice(b",\"category\":\"");
    out.extend_from_slice(row.category().name().as_bytes());
    out.push(b'"');
}

/// Appends the same values as fields of CSV, each behind a comma.
pub fn push_row_csv(out: &mut Vec<u8>, row: &Row, units: OutputUnits) {
    out.push(b',');
    push_degrees(row.heat_index(), units.temperature, out);
    out.push(b',');
    push_number(units.temperature.mean(row.sum(), row.count()), out);
    out.push(b',');
    push_integer(row.count().into(), out);
    out.push(b',');
    out.extend_from_slice(row.category().name().as_bytes());
}

/// Appends a heat index in a unit.
#[inline]
pub(super) fn push_degrees(heat_index: HeatIndex, unit: TemperatureUnit, out: &mut Vec<u8>) {
    match unit {
        TemperatureUnit::Fahrenheit => push_heat_index(heat_index, out),
        TemperatureUnit::Celsius => push_number(unit.heat_index(heat_index), out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Category, Measurement, WindUnit};

    const STORED: OutputUnits = OutputUnits::STORED;

    fn row() -> Row {
        Row::new(HeatIndex::from_micros(91_283_411), Category::ExtremeCaution, 252_038_190_000, 3001)
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn row_json_matches_protocol_document() {
        let reading_at = "2025-11-24T16:00:00Z".parse::<EventTime>().unwrap();
        let measurement = Measurement::new(86.4, 63.1, None).unwrap();
        let current = CurrentRow { reading_at, row: row(), hour_ago: None, measurement: Some(measurement) };
        let start = "{\"city\":\"a \\\"b\\\"\",\"reading_at\":\"2025-11-24T16:00:00Z\",\"heat_index\":91.283411,\"rolling_heat_index\":";
        let text = written(|out| push_current_json(out, "a \"b\"", &current, STORED));
        assert!(text.starts_with(start), "{text}");
        let end = ",\"count\":3001,\"category\":\"extreme_caution\",\"trend\":null,\"temperature\":86.4,\"humidity\":63.1,\"wind_speed\":null}";
        assert!(text.ends_with(end), "{text}");
        for (stale, age_ms, said) in
            [(false, 63_250, "false,\"age_s\":63.25}"), (true, 7_000, "true,\"age_s\":7}")]
        {
            let aged = written(|out| push_aged_current_json(out, "a \"b\"", &current, STORED, stale, age_ms));
            assert_eq!(aged, format!("{},\"stale\":{said}", &text[..text.len() - 1]));
        }
        let text = written(|out| push_row_json(out, "a", reading_at, &row(), STORED));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["rolling_heat_index"].as_f64(), Some(row().rolling_heat_index()));
        assert!(text.ends_with(",\"category\":\"extreme_caution\"}"), "{text}");
        let key = written(|out| push_key_json(out, "a", reading_at));
        assert_eq!(key, "{\"city\":\"a\",\"reading_at\":\"2025-11-24T16:00:00Z\"}");
    }

    #[test]
    fn celsius_row_is_converted_from_micro_degrees() {
        let reading_at = "2025-11-24T16:00:00Z".parse().unwrap();
        let measurement = Measurement::new(-57.82, 63.1, Some(10.0)).unwrap();
        let hour_ago = Some((81_800_000 * 7, 7));
        let current = CurrentRow { reading_at, row: row(), hour_ago, measurement: Some(measurement) };
        let units = OutputUnits { temperature: TemperatureUnit::Celsius, wind: WindUnit::KilometresPerHour };
        let text = written(|out| push_current_json(out, "a", &current, units));
        let expected = "{\"city\":\"a\",\"reading_at\":\"2025-11-24T16:00:00Z\",\"heat_index\":32.935228333333335,\
                        \"rolling_heat_index\":28.880408382391053,\"count\":3001,\"category\":\"extreme_caution\",\
                        \"trend\":1.2137417157243882,\"temperature\":-49.9,\"humidity\":63.1,\"wind_speed\":16.09344}";
        assert_eq!(text, expected);
        let units = written(|out| push_units(out, units));
        assert_eq!(units, "\"units\":\"celsius\",\"wind_units\":\"km/h\"");
    }
}
