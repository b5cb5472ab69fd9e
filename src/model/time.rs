//! Event times and durations, in milliseconds: as they are read, held and written.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

mod calendar;
mod days;
mod error;
mod grammar;
mod local;
#[cfg(test)]
mod spellings;

pub use calendar::civil_from_days;
pub use days::{Day, DayZone};
pub use error::{TimeError, TimeProblem};
pub use grammar::parse_offset;
pub use local::{IanaZone, LocalTimePolicy, ParsedTime};

/// Milliseconds in a UTC day (event time has no leap seconds).
pub const DAY_MS: i64 = 86_400_000;

/// An instant of event time: milliseconds since 1970-01-01T00:00:00Z, within the years 0000 to 9999, which
/// RFC 3339 can write. Written in UTC with `Z`, and with a fraction only where there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventTime(i64);

impl EventTime {
    /// 0000-01-01T00:00:00Z.
    pub const MIN: EventTime = EventTime(-62_167_219_200_000);
    /// 9999-12-30T22:00:00Z: the last hours of the year are left out so that every instant has a local time at every
    /// offset.
    pub const MAX: EventTime = EventTime(253_402_207_200_000);

    /// The instant `ms` milliseconds after the epoch, or nothing where RFC 3339 has no name for it.
    pub fn from_millis(ms: i64) -> Option<EventTime> {
        (Self::MIN.0..=Self::MAX.0).contains(&ms).then_some(EventTime(ms))
    }

    /// As [`EventTime::from_millis`], with which end of the range is passed.
    pub fn try_from_millis(ms: i64) -> Result<EventTime, TimeProblem> {
        local::instant_at_offset(ms, 0)
    }

    /// Milliseconds since the epoch.
    pub fn millis(self) -> i64 {
        self.0
    }

    /// The UTC day that holds the instant, counted from 1970-01-01.
    pub fn utc_day(self) -> i32 {
        self.0.div_euclid(DAY_MS) as i32
    }

    /// Reads a time as the grammar of docs/times.md says; `local` says what a time without an offset is.
    ///
    /// ```
    /// use swelter::{EventTime, LocalTimePolicy};
    /// let read = EventTime::parse("2013-07-18T15:04:05.6789-04:00", LocalTimePolicy::Refuse).unwrap();
    /// assert_eq!(read.instant.to_string(), "2013-07-18T19:04:05.678Z");
    /// ```
    #[inline]
    pub fn parse(text: &str, local: LocalTimePolicy) -> Result<ParsedTime, TimeError> {
        grammar::parse_time(text.as_bytes(), local).map_err(|problem| TimeError::new(text, problem))
    }

    /// Appends the time as [`Display`](fmt::Display) writes it.
    pub fn write_to(self, out: &mut Vec<u8>) {
        let (text, len) = self.to_ascii();
        out.extend_from_slice(&text[..len]);
    }

    /// The text of the time, in ASCII, and its length.
    fn to_ascii(self) -> ([u8; 24], usize) {
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut put = |at: usize, number: u32| {
            text[at] = b'0' + (number / 10 % 10) as u8;
            text[at + 1] = b'0' + (number % 10) as u8;
        };
        let (days, ms) = (self.0.div_euclid(DAY_MS), self.0.rem_euclid(DAY_MS) as u32);
        let (year, month, day) = civil_from_days(days);
        put(0, year as u32 / 100);
        put(2, year as u32);
        put(5, month as u32);
        put(8, day as u32);
        put(11, ms / 3_600_000);
        put(14, ms / 60_000 % 60);
        put(17, ms / 1_000 % 60);
        put(20, ms / 10);
        text[22] = b'0' + (ms % 10) as u8;
        let len = match ms % 1_000 {
            0 => 20,
            fraction if fraction % 100 == 0 => 22,
            fraction if fraction % 10 == 0 => 23,
            _ => 24,
        };
        text[len - 1] = b'Z';
        (text, len)
    }
}

/// A time with its offset; one without an offset is an error.
impl FromStr for EventTime {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<EventTime, TimeError> {
        EventTime::parse(text, LocalTimePolicy::Refuse).map(|read| read.instant)
    }
}

impl fmt::Display for EventTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, len) = self.to_ascii();
        f.pad(std::str::from_utf8(&text[..len]).map_err(|_| fmt::Error)?)
    }
}

/// A span of event time, as a person writes it: `90s`, `15m`, `6h`, `1d`, `250ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(i64);

impl Millis {
    /// The longest duration: longer than from the first to the last event time, so it never takes anything away.
    pub const MAX: Millis = Millis(EventTime::MAX.0 - EventTime::MIN.0);
    /// 24 hours.
    pub const DAY: Millis = Millis(DAY_MS);

    /// A duration of `ms` milliseconds, 0 or more and no longer than [`Duration::MAX`].
    pub fn from_millis(ms: i64) -> Option<Millis> {
        (0..=Self::MAX.0).contains(&ms).then_some(Millis(ms))
    }

    /// The milliseconds.
    pub fn millis(self) -> i64 {
        self.0
    }
}

const DURATION_UNITS: [(&str, i64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", DAY_MS)];

impl FromStr for Millis {
    type Err = String;

    fn from_str(text: &str) -> Result<Millis, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let unit = DURATION_UNITS.iter().find(|(name, _)| *name == &text[digits..]);
        let millis = text[..digits].parse::<i64>().ok().zip(unit).and_then(|(n, (_, ms))| n.checked_mul(*ms));
        millis.and_then(Millis::from_millis).ok_or_else(|| {
            format!(
                "{text:?} is not a duration: write a whole number and one of ms, s, m, h, d, as in 90s or 1d"
            )
        })
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, ms) = DURATION_UNITS
            .iter()
            .rev()
            .find(|(_, ms)| self.0 % ms == 0 && self.0 > 0)
            .unwrap_or(&DURATION_UNITS[1]);
        write!(f, "{}{name}", self.0 / ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_round_trip() {
        for text in ["0s", "250ms", "90s", "15m", "6h", "1d", "366d"] {
            assert_eq!(text.parse::<Millis>().unwrap().to_string(), text);
        }
        for text in ["", "1", "d", "-1d", "1.5h", "1 d", "99999999999999d", "1w"] {
            assert!(text.parse::<Millis>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn times_are_written_like_library(ms in EventTime::MIN.0..=EventTime::MAX.0, cut in 0u32..5) {
            let ms = ms - ms.rem_euclid(10i64.pow(cut));
            let library = jiff::Timestamp::from_millisecond(ms).unwrap().to_string();
            let mut written = Vec::new();
            EventTime(ms).write_to(&mut written);
            prop_assert_eq!(std::str::from_utf8(&written).unwrap(), &library);
            prop_assert_eq!(EventTime(ms).to_string(), library);
        }
    }
}
