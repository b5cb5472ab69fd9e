//! A record as its source writes it, made one that the rules of all readings can be put to.

use super::super::DecodeSettings;
use super::super::fields::{Field, Record, Value};
use super::{ReadOptions, RecordOptions};
use crate::model::time::TimeProblem;
use crate::model::{EventTime, LocalTime, Refusal};

/// Applies a source's [`RecordOptions`] to one record after the other.
#[derive(Clone, Debug)]
pub(in super::super) struct Preparation {
    options: RecordOptions,
    settings: DecodeSettings,
    null_numbers: Vec<f64>,
    divisors: Vec<(Field, f64)>,
    time_parts: &'static [Field],
    /// A time that is joined of several columns.
    time: String,
    local_times: LocalTimeCounts,
}

/// The metric of what [`LocalTimeCounts`] has.
pub const LOCAL_TIMES: &str = "swelter_local_times_total";

/// Times that a zone's clocks do not show just once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalTimeCounts {
    /// Shown twice: the earlier instant was taken.
    pub ambiguous: u64,
    /// Never shown: refused.
    pub skipped: u64,
}

impl std::ops::AddAssign for LocalTimeCounts {
    fn add_assign(&mut self, other: LocalTimeCounts) {
        self.ambiguous += other.ambiguous;
        self.skipped += other.skipped;
    }
}

impl Preparation {
    /// Nothing where records are written as they are everywhere.
    pub fn new(options: &ReadOptions) -> Option<Box<Preparation>> {
        let has_zone = matches!(options.settings.local_time, LocalTime::Zone(_));
        (!options.record.is_default() || has_zone).then(|| Preparation::always(options))
    }

    pub fn always(options: &ReadOptions) -> Box<Preparation> {
        let record = options.record.clone();
        let numbers = record.null.iter().filter_map(|text| text.parse().ok());
        Box::new(Preparation {
            settings: options.settings,
            null_numbers: numbers.filter(|number: &f64| number.is_finite()).collect(),
            divisors: record.columns.divisors().collect(),
            time_parts: record.columns.time_parts(),
            time: String::new(),
            local_times: LocalTimeCounts::default(),
            options: record,
        })
    }

    /// The field that a column, or a field of JSON, of that name is.
    pub fn field(&self, name: &str) -> Option<Field> {
        self.options.columns.field(name, &self.settings)
    }

    /// # Errors
    ///
    /// Where the time is not one of the source's format.
    #[inline(never)]
    pub fn apply<'a>(&'a mut self, record: &mut Record<'a>) -> Result<(), Refusal> {
        for field in Field::ALL.into_iter().filter(|field| *field != Field::City) {
            if self.is_null(record.get(field)) {
                record.set(field, Value::Missing);
            }
        }
        let Preparation { options, settings, divisors, time_parts, time, local_times, .. } = self;
        let options: &'a RecordOptions = options;
        for field in [Field::Temperature, Field::Moisture, Field::WindSpeed] {
            let divisor = divisors.iter().find(|(of, _)| *of == field).map(|(_, divisor)| *divisor);
            record.set(field, number(*record.get(field), divisor, options));
        }
        if let Some(city) = options.columns.city() {
            record.set(Field::City, Value::Text(city));
        }
        let mut value = *record.get(Field::ReadingAt);
        if time_parts.len() > 1 {
            let parts = time_parts.iter().map(|part| *record.get(*part));
            if !join(parts, time) {
                record.set(Field::ReadingAt, Value::Missing);
                return Ok(());
            }
            value = Value::Untyped(time);
        }
        let value = options.time_format.read(value)?;
        record.set(Field::ReadingAt, local_times.resolved(value, settings.local_time));
        Ok(())
    }

    pub fn local_times(&self) -> LocalTimeCounts {
        self.local_times
    }

    /// Whether a text is blank or stands for nothing.
    pub fn is_nothing(&self, text: &str) -> bool {
        text.trim_matches(' ').is_empty() || self.is_null(&Value::Untyped(text))
    }

    fn is_null(&self, value: &Value<'_>) -> bool {
        match *value {
            Value::Untyped(text) | Value::Text(text) => {
                let text = text.trim_matches(' ');
                self.options.null.iter().any(|null| null == text)
            }
            Value::Number(number) => self.null_numbers.contains(&number),
            Value::Integer(number) => self.null_numbers.contains(&(number as f64)),
            _ => false,
        }
    }
}

impl LocalTimeCounts {
    /// A time by the clocks of a zone as the instant that it is, counted. What is none stays as it is, for the rules to refuse.
    fn resolved<'a>(&mut self, value: Value<'a>, local_time: LocalTime) -> Value<'a> {
        if !matches!(local_time, LocalTime::Zone(_)) {
            return value;
        }
        let read = match value {
            Value::Untyped(text) | Value::Text(text) => {
                EventTime::parse(text.trim_matches(' '), local_time).map_err(|error| error.problem)
            }
            Value::Local(ms) => local_time.resolve(ms),
            _ => return value,
        };
        match read {
            Ok(read) => {
                if read.ambiguous {
                    self.ambiguous += 1;
                    metrics::counter!(LOCAL_TIMES, "clocks" => "showed_twice").increment(1);
                }
                Value::Instant(read.at.millis())
            }
            Err(problem) => {
                if matches!(problem, TimeProblem::SkippedLocalTime(_)) {
                    self.skipped += 1;
                    metrics::counter!(LOCAL_TIMES, "clocks" => "skipped").increment(1);
                }
                value
            }
        }
    }
}

/// Joins the parts of a time by blanks: false where one is missing.
fn join<'a>(parts: impl Iterator<Item = Value<'a>>, time: &mut String) -> bool {
    time.clear();
    for part in parts {
        if !time.is_empty() {
            time.push(' ');
        }
        let before = time.len();
        match part {
            Value::Untyped(text) | Value::Text(text) => time.push_str(text.trim_matches(' ')),
            Value::Integer(number) => time.push_str(&number.to_string()),
            _ => {}
        }
        if time.len() == before {
            return false;
        }
    }
    true
}

/// A number as it is written everywhere. What is none stays text, which the rules refuse.
fn number<'a>(value: Value<'a>, divisor: Option<f64>, options: &RecordOptions) -> Value<'a> {
    let number = match value {
        Value::Number(number) => number,
        Value::Integer(number) => number as f64,
        Value::Untyped(text) if divisor.is_some() || options.decimal_comma || !options.flags.is_empty() => {
            match text.trim_matches(' ') {
                "" => return value,
                trimmed => match written_number(trimmed, options) {
                    Some(number) => number,
                    None => return Value::Text(text),
                },
            }
        }
        _ => return value,
    };
    Value::Number(divisor.map_or(number, |divisor| number / divisor))
}

fn written_number(text: &str, options: &RecordOptions) -> Option<f64> {
    let read = |text: &str| {
        let number = match options.decimal_comma {
            true if text.contains('.') => return None,
            true => text.replace(',', ".").parse(),
            false => text.parse(),
        };
        number.ok().filter(|number: &f64| number.is_finite())
    };
    read(text).or_else(|| {
        let mut flagged = options.flags.iter().filter_map(|flag| text.strip_suffix(flag.as_str()));
        flagged.find_map(|text| read(text.trim_end_matches(' ')))
    })
}
