//! The text form of generated records.

use super::{BadReading, BadReadingKind, GeneratedRecord};
use crate::codec::{self, Format, RecordFields};

impl BadReading<'_> {
    pub fn fields(&self) -> RecordFields<'_> {
        RecordFields {
            city: self.city,
            reading_at: self.at,
            temperature: self.temperature,
            humidity: self.humidity,
            wind_speed: self.wind_speed,
            revision: None,
            withdrawal: false,
        }
    }

    /// The line of a bad reading whose fault is in its text; `None` if its fields express the
    /// fault, or the format is not text.
    pub fn text(&self, format: Format, ops: bool) -> Option<String> {
        if !self.kind.needs_text() || format == Format::Parquet {
            return None;
        }
        let city = self.city.unwrap_or_default();
        let mut at = self.at.map(|at| at.to_string()).unwrap_or_default();
        if self.kind == BadReadingKind::NoOffset {
            at.pop();
        }
        let number = |number: Option<f64>| number.map(|number| number.to_string()).unwrap_or_default();
        let (humidity, wind_speed) = (number(self.humidity), number(self.wind_speed));
        let temperature = match self.kind {
            BadReadingKind::BadNumber => "n/a".into(),
            _ => number(self.temperature),
        };
        // Keys and times of generated readings need no quotes.
        let mut line = if format == Format::Json {
            let quote = if self.kind == BadReadingKind::BadNumber { "\"" } else { "" };
            format!(
                "{{\"city\":\"{city}\",\"reading_at\":\"{at}\",\"temperature\":{quote}{temperature}{quote},\"humidity\":{humidity},\"wind_speed\":{wind_speed}}}"
            )
        } else {
            let op = if ops { ",upsert" } else { "" };
            format!("{city},{at},{temperature},{humidity},{wind_speed}{op}")
        };
        if self.kind == BadReadingKind::CutLine {
            line.truncate(line.len() / 2);
        }
        Some(line)
    }
}

impl GeneratedRecord<'_> {
    /// Appends the record as a JSON object, which may be broken on purpose.
    pub fn push_json(&self, out: &mut Vec<u8>) {
        match self {
            GeneratedRecord::Upsert { city, at, event } => {
                codec::push_json_record(&RecordFields::from_event(city, *at, event), out)
            }
            GeneratedRecord::Invalid(bad) => match bad.text(Format::Json, false) {
                Some(text) => out.extend_from_slice(text.as_bytes()),
                None => codec::push_json_record(&bad.fields(), out),
            },
        }
    }
}
