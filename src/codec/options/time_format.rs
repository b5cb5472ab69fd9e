//! Formats of times other than RFC 3339.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{DateTime, date};
use jiff::fmt::strtime::BrokenDownTime;
use jiff::tz::Offset;

use super::super::field::FieldValue;
use crate::model::refusal::quoted_excerpt;
use crate::model::time::DAY_MS;
use crate::model::{Reason, Refusal};

/// The format of a source's times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TimeFormat {
    /// RFC 3339, or the same without an offset.
    #[default]
    Rfc3339,
    /// Seconds since 1970-01-01T00:00:00Z.
    Seconds,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    Milliseconds,
    /// A pattern of strptime.
    Pattern(StrptimePattern),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrptimePattern {
    pattern: String,
    /// The pattern up to the seconds, by which a leap second is found: it would otherwise be read
    /// as the second before.
    before_second: Option<String>,
    has_offset: bool,
    /// The pattern ends with AM or PM, and a record may have only its first letter.
    ends_with_half: bool,
}

/// The directives of strptime that depend neither on a language nor on a list of zones.
const SUPPORTED_DIRECTIVES: &str = "aAbBCdDeFfhHIjklmMnNpPRStTuUVwWyYzGg%";

impl StrptimePattern {
    fn new(written: &str) -> Result<StrptimePattern, String> {
        let pattern = expand_short_forms(written)?;
        let mut before_second = None;
        let mut has_offset = false;
        for (at, directive) in directives(&pattern) {
            match directive {
                'S' => before_second = before_second.or(Some(pattern[..at].to_owned())),
                'z' => has_offset = true,
                _ => {}
            }
        }
        let ends_with_half = pattern.ends_with("%p") || pattern.ends_with("%P");
        let pattern = StrptimePattern { pattern, before_second, has_offset, ends_with_half };
        pattern.check_round_trip(written)?;
        Ok(pattern)
    }

    /// Checks that a time which is written by the pattern is read back the same.
    fn check_round_trip(&self, written: &str) -> Result<(), String> {
        let sample = date(2013, 7, 18).at(15, 4, 5, 0);
        let no_time = |why: &dyn fmt::Display| {
            format!(
                "{written:?} gives no time ({why}): it must have a year, a month and a day, as in \"%d.%m.%Y %H:%M\""
            )
        };
        let mut time = BrokenDownTime::from(sample);
        time.set_offset(Some(Offset::UTC));
        let text = time.to_string(&self.pattern).map_err(|error| no_time(&error))?;
        let read = BrokenDownTime::parse(&self.pattern, &text).map_err(|error| no_time(&error))?;
        let read = read.to_datetime().map_err(|error| no_time(&error))?;
        if read.date() != sample.date() {
            return Err(no_time(&"its day is lost"));
        }
        let has_hour = directives(&self.pattern).any(|(_, directive)| "HIklRN".contains(directive));
        if has_hour && read.hour() != sample.hour() {
            return Err(format!("{written:?} has hours of half a day without %p, which says which half"));
        }
        Ok(())
    }

    fn parse(&self, text: &str) -> Result<(DateTime, Option<Offset>), String> {
        let long;
        let text = match text.as_bytes() {
            [.., before, b'a' | b'A' | b'p' | b'P']
                if self.ends_with_half && (before.is_ascii_digit() || *before == b' ') =>
            {
                long = format!("{text}m");
                &long
            }
            _ => text,
        };
        let read = BrokenDownTime::parse(&self.pattern, text).map_err(|error| error.to_string())?;
        if let (Some(59), Some(before)) = (read.second(), &self.before_second) {
            let (_, at) = BrokenDownTime::parse_prefix(before, text).map_err(|error| error.to_string())?;
            if text[at..].trim_start().starts_with("60") {
                return Err("second 60 is a leap second, which is not read".into());
            }
        }
        let time = read.to_datetime().map_err(|error| error.to_string())?;
        Ok((time, read.offset()))
    }
}

/// The pattern with its short forms expanded.
fn expand_short_forms(written: &str) -> Result<String, String> {
    for (_, directive) in directives(written) {
        if !SUPPORTED_DIRECTIVES.contains(directive) {
            return Err(format!(
                "%{directive} in {written:?} is not read: write the parts of a time, as in %Y-%m-%d %H:%M:%S"
            ));
        }
    }
    Ok(written.replace("%T", "%H:%M:%S"))
}

/// The directives of a pattern: the index of each, and its letter.
fn directives(pattern: &str) -> impl Iterator<Item = (usize, char)> {
    let mut characters = pattern.char_indices();
    std::iter::from_fn(move || {
        let (at, _) = characters.find(|(_, character)| *character == '%')?;
        let is_modifier = |character: char| character.is_ascii_digit() || "-_0^#.:".contains(character);
        let letter = characters.find(|(_, character)| !is_modifier(*character));
        Some((at, letter.map_or('\0', |(_, letter)| letter)))
    })
}

impl FromStr for TimeFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<TimeFormat, String> {
        match text {
            "" | "rfc3339" => Ok(TimeFormat::Rfc3339),
            "seconds" => Ok(TimeFormat::Seconds),
            "milliseconds" => Ok(TimeFormat::Milliseconds),
            pattern if pattern.contains('%') => StrptimePattern::new(pattern).map(TimeFormat::Pattern),
            other => Err(format!(
                "{other:?} is neither seconds nor milliseconds nor a pattern of strptime, such as \"%d.%m.%Y %H:%M\""
            )),
        }
    }
}

impl fmt::Display for TimeFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TimeFormat::Rfc3339 => "",
            TimeFormat::Seconds => "seconds",
            TimeFormat::Milliseconds => "milliseconds",
            TimeFormat::Pattern(pattern) => &pattern.pattern,
        })
    }
}

impl TimeFormat {
    /// Whether every time is an instant: a number, or with an offset.
    pub(super) fn has_offset(&self) -> bool {
        match self {
            TimeFormat::Rfc3339 => false,
            TimeFormat::Seconds | TimeFormat::Milliseconds => true,
            TimeFormat::Pattern(pattern) => pattern.has_offset,
        }
    }

    pub(in super::super) fn is_default(&self) -> bool {
        *self == TimeFormat::Rfc3339
    }

    /// Whether times are numbers.
    pub(in super::super) fn is_number(&self) -> bool {
        matches!(self, TimeFormat::Seconds | TimeFormat::Milliseconds)
    }

    /// Parses a time and returns it as a value that needs no format. A value that is not in this
    /// format stays as it is.
    pub(super) fn parse_value<'a>(&self, value: FieldValue<'a>) -> Result<FieldValue<'a>, Refusal> {
        let bad = |why: &str| {
            let detail = format!("reading_at {value} is not a time as {self}: {why}");
            Refusal::new(Reason::BadTime, detail)
        };
        let per_second = match self {
            TimeFormat::Rfc3339 => return Ok(value),
            TimeFormat::Seconds => 1_000,
            TimeFormat::Milliseconds => 1,
            TimeFormat::Pattern(pattern) => {
                let text = match value {
                    FieldValue::Untyped(text) | FieldValue::Text(text) => text.trim_matches(' '),
                    FieldValue::Missing => return Ok(value),
                    _ => return Err(bad("it is not text")),
                };
                if text.is_empty() {
                    return Ok(value);
                }
                let (time, offset) = pattern.parse(text).map_err(|why| bad(&shorten_message(&why)))?;
                let local = civil_millis(time);
                return Ok(match offset {
                    Some(offset) => FieldValue::Instant(local - i64::from(offset.seconds()) * 1_000),
                    None => FieldValue::Local(local),
                });
            }
        };
        let ms = match value {
            FieldValue::Missing => return Ok(value),
            FieldValue::Integer(number) => number.checked_mul(per_second),
            FieldValue::Number(number) => whole_millis(number * per_second as f64),
            FieldValue::Untyped(text) | FieldValue::Text(text) => match text.trim_matches(' ') {
                "" => return Ok(value),
                text => decimal_millis(text, per_second),
            },
            _ => None,
        };
        ms.map(FieldValue::Instant).ok_or_else(|| bad("it is not a number since 1970"))
    }
}

fn whole_millis(ms: f64) -> Option<i64> {
    (ms.abs() < 9e15).then(|| ms.floor() as i64)
}

/// Parses `[-]digits[.digits]` as milliseconds; finer digits are cut off, towards the earlier one.
fn decimal_millis(text: &str, per_second: i64) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let are_digits = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !are_digits(whole.strip_prefix('-').unwrap_or(whole)) || !are_digits(fraction) {
        return None;
    }
    let whole = whole.parse::<i64>().ok()?.checked_mul(per_second)?;
    let finer: f64 = format!("0.{fraction}").parse().ok()?;
    let ms = match per_second {
        1 => finer.ceil() as i64 * i64::from(text.starts_with('-')),
        _ => {
            let digits: i64 =
                fraction.bytes().chain(*b"000").take(3).fold(0, |n, b| n * 10 + i64::from(b - b'0'));
            let is_finer = fraction.bytes().skip(3).any(|digit| digit != b'0');
            digits + i64::from(is_finer && text.starts_with('-'))
        }
    };
    if text.starts_with('-') {
        whole.checked_sub(ms)
    } else {
        whole.checked_add(if per_second == 1 { 0 } else { ms })
    }
}

/// A clock's date and time as milliseconds since the same clock showed 1970-01-01T00:00:00.
fn civil_millis(time: DateTime) -> i64 {
    let days = i64::from(time.date().duration_since(date(1970, 1, 1)).as_hours() as i32 / 24);
    let time = time.time();
    let seconds = (i64::from(time.hour()) * 60 + i64::from(time.minute())) * 60 + i64::from(time.second());
    days * DAY_MS + seconds * 1_000 + i64::from(time.millisecond())
}

fn shorten_message(why: &str) -> String {
    match why.len() > 200 {
        true => quoted_excerpt(why),
        false => why.to_owned(),
    }
}
