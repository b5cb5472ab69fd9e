//! The fields of a reading, and the value of a field in a record of any format.

use std::fmt;

use super::{DecodeSettings, InputTemperatureUnit, Moisture};
use crate::model::EventTime;
use crate::model::refusal::quoted_excerpt;

/// A field of a reading. `Moisture` is the humidity or the dew point, whichever the source has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    City,
    ReadingAt,
    Temperature,
    Moisture,
    WindSpeed,
    Revision,
    Op,
    Deleted,
    /// The further parts of a time that is in several columns.
    TimePart2,
    TimePart3,
    TimePart4,
}

/// The number of fields.
pub(super) const FIELD_COUNT: usize = 11;

impl Field {
    /// The fields of a reading.
    pub(super) const ALL: [Field; 8] = [
        Field::City,
        Field::ReadingAt,
        Field::Temperature,
        Field::Moisture,
        Field::WindSpeed,
        Field::Revision,
        Field::Op,
        Field::Deleted,
    ];

    /// The field of a name. A name with a unit is known only if the source has that unit.
    pub(super) fn from_name(name: &str, settings: &DecodeSettings) -> Option<Field> {
        Some(match name {
            "city" => Field::City,
            "reading_at" => Field::ReadingAt,
            "temperature" => Field::Temperature,
            "temperature_f" if settings.temperature_unit == InputTemperatureUnit::Fahrenheit => {
                Field::Temperature
            }
            "humidity" | "humidity_pct" if settings.moisture == Moisture::Humidity => Field::Moisture,
            "dew_point" if settings.moisture == Moisture::DewPoint => Field::Moisture,
            "wind_speed" | "wind_speed_mph" => Field::WindSpeed,
            "revision" => Field::Revision,
            "op" => Field::Op,
            "deleted" => Field::Deleted,
            _ => return None,
        })
    }

    pub(super) fn name(self, settings: &DecodeSettings) -> &'static str {
        match (self, settings.moisture) {
            (Field::City, _) => "city",
            (Field::ReadingAt, _) => "reading_at",
            (Field::Temperature, _) => "temperature",
            (Field::Moisture, Moisture::Humidity) => "humidity",
            (Field::Moisture, Moisture::DewPoint) => "dew_point",
            (Field::WindSpeed, _) => "wind_speed",
            (Field::Revision, _) => "revision",
            (Field::Op, _) => "op",
            (Field::Deleted, _) => "deleted",
            (Field::TimePart2 | Field::TimePart3 | Field::TimePart4, _) => "a part of reading_at",
        }
    }

    pub(super) fn is_required(self) -> bool {
        matches!(self, Field::City | Field::ReadingAt | Field::Temperature | Field::Moisture)
    }
}

/// The value of one field of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum FieldValue<'a> {
    /// Absent or null.
    Missing,
    /// Of a format without types: blank, or text that stands for a value of the field's type.
    Untyped(&'a str),
    Text(&'a str),
    Number(f64),
    Integer(i64),
    Boolean(bool),
    /// Milliseconds since the epoch.
    Instant(i64),
    /// Milliseconds since 1970-01-01T00:00:00 by a clock of unknown offset.
    Local(i64),
    /// A value that no field can have; its kind.
    Other(&'static str),
}

/// As refusals show it.
impl fmt::Display for FieldValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            FieldValue::Missing => f.write_str("null"),
            FieldValue::Untyped(text) | FieldValue::Text(text) => f.write_str(&quoted_excerpt(text)),
            FieldValue::Number(number) => write!(f, "{number:?}"),
            FieldValue::Integer(number) => write!(f, "{number}"),
            FieldValue::Boolean(boolean) => write!(f, "{boolean}"),
            FieldValue::Instant(ms) => match EventTime::from_millis(ms) {
                Some(time) => write!(f, "{time}"),
                None => write!(f, "{ms} ms since 1970"),
            },
            FieldValue::Local(ms) => match EventTime::from_millis(ms) {
                Some(time) => f.write_str(time.to_string().trim_end_matches('Z')),
                None => write!(f, "{ms} ms since 1970"),
            },
            FieldValue::Other(kind) => f.write_str(kind),
        }
    }
}
