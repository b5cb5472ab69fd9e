//! Normalizes a record as its source writes it, so that the rules of all readings apply to it.

use super::super::DecodeSettings;
use super::super::field::{Field, FieldValue};
use super::super::field_values::FieldValues;
use super::{ReadOptions, RecordOptions};
use crate::model::time::TimeProblem;
use crate::model::{EventTime, LocalTimePolicy, Refusal};

/// Applies a source's [`RecordOptions`] to record after record.
#[derive(Clone, Debug)]
pub(in super::super) struct RecordNormalizer {
    options: RecordOptions,
    settings: DecodeSettings,
    null_numbers: Vec<f64>,
    divisors: Vec<(Field, f64)>,
    time_parts: &'static [Field],
    /// The buffer of a time that is joined from several columns.
    time: String,
    local_times: LocalTimeCounts,
}

/// The metric of [`LocalTimeCounts`].
pub const LOCAL_TIMES_METRIC: &str = "swelter_local_times_total";

/// Local times that a zone's clocks showed twice or never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalTimeCounts {
    /// Shown twice: read as the earlier instant.
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

impl RecordNormalizer {
    /// `None` if the source's records need no change.
    pub fn if_needed(options: &ReadOptions) -> Option<Box<RecordNormalizer>> {
        let has_zone = matches!(options.settings.local_time, LocalTimePolicy::Zone(_));
        (!options.record.is_default() || has_zone).then(|| RecordNormalizer::always(options))
    }

    pub fn always(options: &ReadOptions) -> Box<RecordNormalizer> {
        let record = options.record.clone();
        let numbers = record.null_values.iter().filter_map(|text| text.parse().ok());
        Box::new(RecordNormalizer {
            settings: options.settings,
            null_numbers: numbers.filter(|number: &f64| number.is_finite()).collect(),
            divisors: record.columns.divisors().collect(),
            time_parts: record.columns.time_parts(),
            time: String::new(),
            local_times: LocalTimeCounts::default(),
            options: record,
        })
    }

    /// The field of a column, or of a field of JSON, by its name.
    pub fn field(&self, name: &str) -> Option<Field> {
        self.options.columns.field(name, &self.settings)
    }

    /// # Errors
    ///
    /// If the time does not match the source's format.
    #[inline(never)]
    pub fn normalize<'a>(&'a mut self, record: &mut FieldValues<'a>) -> Result<(), Refusal> {
        for field in Field::ALL.into_iter().filter(|field| *field != Field::City) {
            if self.is_null(record.get(field)) {
                record.set(field, FieldValue::Missing);
            }
        }
        let RecordNormalizer { options, settings, divisors, time_parts, time, local_times, .. } = self;
        let options: &'a RecordOptions = options;
        for field in [Field::Temperature, Field::Moisture, Field::WindSpeed] {
            let divisor = divisors.iter().find(|(of, _)| *of == field).map(|(_, divisor)| *divisor);
            record.set(field, normalized_number(*record.get(field), divisor, options));
        }
        if let Some(city) = options.columns.city() {
            record.set(Field::City, FieldValue::Text(city));
        }
        let mut value = *record.get(Field::ReadingAt);
        if time_parts.len() > 1 {
            let parts = time_parts.iter().map(|part| *record.get(*part));
            if !join_time_parts(parts, time) {
                record.set(Field::ReadingAt, FieldValue::Missing);
                return Ok(());
            }
            value = FieldValue::Untyped(time);
        }
        let value = options.time_format.parse_value(value)?;
        record.set(Field::ReadingAt, local_times.resolve_and_count(value, settings.local_time));
        Ok(())
    }

    pub fn local_times(&self) -> LocalTimeCounts {
        self.local_times
    }

    /// Whether a text is blank or one of the null values.
    pub fn is_null_text(&self, text: &str) -> bool {
        text.trim_matches(' ').is_empty() || self.is_null(&FieldValue::Untyped(text))
    }

    fn is_null(&self, value: &FieldValue<'_>) -> bool {
        match *value {
            FieldValue::Untyped(text) | FieldValue::Text(text) => {
                let text = text.trim_matches(' ');
                self.options.null_values.iter().any(|null| null == text)
            }
            FieldValue::Number(number) => self.null_numbers.contains(&number),
            FieldValue::Integer(number) => self.null_numbers.contains(&(number as f64)),
            _ => false,
        }
    }
}

impl LocalTimeCounts {
    /// Resolves a zone's local time to its instant, and counts it. A value that is no time stays as
    /// it is, and the rules refuse it.
    fn resolve_and_count<'a>(
        &mut self,
        value: FieldValue<'a>,
        local_time: LocalTimePolicy,
    ) -> FieldValue<'a> {
        if !matches!(local_time, LocalTimePolicy::Zone(_)) {
            return value;
        }
        let read = match value {
            FieldValue::Untyped(text) | FieldValue::Text(text) => {
                EventTime::parse(text.trim_matches(' '), local_time).map_err(|error| error.problem)
            }
            FieldValue::Local(ms) => local_time.resolve_local(ms),
            _ => return value,
        };
        match read {
            Ok(read) => {
                if read.is_ambiguous {
                    self.ambiguous += 1;
                    metrics::counter!(LOCAL_TIMES_METRIC, "clocks" => "showed_twice").increment(1);
                }
                FieldValue::Instant(read.instant.millis())
            }
            Err(problem) => {
                if matches!(problem, TimeProblem::SkippedLocalTime(_)) {
                    self.skipped += 1;
                    metrics::counter!(LOCAL_TIMES_METRIC, "clocks" => "skipped").increment(1);
                }
                value
            }
        }
    }
}

/// Joins the parts of a time with blanks; false if one is missing.
fn join_time_parts<'a>(parts: impl Iterator<Item = FieldValue<'a>>, time: &mut String) -> bool {
    time.clear();
    for part in parts {
        if !time.is_empty() {
            time.push(' ');
        }
        let before = time.len();
        match part {
            FieldValue::Untyped(text) | FieldValue::Text(text) => time.push_str(text.trim_matches(' ')),
            FieldValue::Integer(number) => time.push_str(&number.to_string()),
            _ => {}
        }
        if time.len() == before {
            return false;
        }
    }
    true
}

/// A number without flags, decimal comma or divisor. A value that is no number stays text, which
/// the rules refuse.
fn normalized_number<'a>(
    value: FieldValue<'a>,
    divisor: Option<f64>,
    options: &RecordOptions,
) -> FieldValue<'a> {
    let number = match value {
        FieldValue::Number(number) => number,
        FieldValue::Integer(number) => number as f64,
        FieldValue::Untyped(text)
            if divisor.is_some() || options.decimal_comma || !options.number_flags.is_empty() =>
        {
            match text.trim_matches(' ') {
                "" => return value,
                trimmed => match parse_written_number(trimmed, options) {
                    Some(number) => number,
                    None => return FieldValue::Text(text),
                },
            }
        }
        _ => return value,
    };
    FieldValue::Number(divisor.map_or(number, |divisor| number / divisor))
}

fn parse_written_number(text: &str, options: &RecordOptions) -> Option<f64> {
    let read = |text: &str| {
        let number = match options.decimal_comma {
            true if text.contains('.') => return None,
            true => text.replace(',', ".").parse(),
            false => text.parse(),
        };
        number.ok().filter(|number: &f64| number.is_finite())
    };
    read(text).or_else(|| {
        let mut flagged = options.number_flags.iter().filter_map(|flag| text.strip_suffix(flag.as_str()));
        flagged.find_map(|text| read(text.trim_end_matches(' ')))
    })
}
