//! Rows as REST and WebSocket give them.

use serde_json::{Value, json};
use swelter::internals::model::{CurrentRow, EventTime, Row};

pub fn row_json(city: &str, millis: i64, row: &Row) -> Value {
    json!({
        "city": city,
        "reading_at": EventTime::from_millis(millis).unwrap().to_string(),
        "heat_index": row.heat_index().fahrenheit(),
        "rolling_heat_index": row.rolling_heat_index(),
        "count": f64::from(row.count()),
        "category": row.category().name(),
    })
}

pub fn current_json(city: &str, current: &CurrentRow) -> Value {
    let mut row = row_json(city, current.reading_at.millis(), &current.row);
    row["trend"] = current.trend().into();
    row["temperature"] = current.measurement.map(|m| m.temperature()).into();
    row["humidity"] = current.measurement.map(|m| m.humidity()).into();
    row["wind_speed"] = current.measurement.and_then(|m| m.wind_speed()).into();
    row
}

/// A row in which numbers that are equal but written in two ways, as 82 and 82.0, are the same.
pub fn normalize_numbers(row: &Value) -> Value {
    let value = |value: &Value| value.as_f64().map_or_else(|| value.clone(), Value::from);
    row.as_object().unwrap().iter().map(|(name, field)| (name.clone(), value(field))).collect()
}
