//! Event times and durations, in milliseconds: as they are read, held and written.

use std::fmt;
use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::fmt::temporal::Pieces;
use jiff::tz::Offset;
use serde::{Deserialize, Serialize};

use super::refusal::quoted;
use super::{Reason, Refusal};

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

    /// Milliseconds since the epoch.
    pub fn millis(self) -> i64 {
        self.0
    }

    /// The UTC day that holds the instant, counted from 1970-01-01.
    pub fn day(self) -> i32 {
        self.0.div_euclid(DAY_MS) as i32
    }

    /// Reads RFC 3339. Digits finer than a millisecond are cut off; `assume_offset` is what a time without an
    /// offset is taken to have, and without it such a time is refused.
    ///
    /// ```
    /// use swelter::model::EventTime;
    /// let t = EventTime::parse("2013-07-18T15:04:05.6789-04:00", None).unwrap();
    /// assert_eq!(t.to_string(), "2013-07-18T19:04:05.678Z");
    /// ```
    #[inline]
    pub fn parse(text: &str, assume_offset: Option<Offset>) -> Result<EventTime, Refusal> {
        if let Some(time) = parse_canonical(text.as_bytes()) {
            return Ok(time);
        }
        let bad = |why: &dyn fmt::Display| {
            let why = why.to_string();
            let why = if why.len() > 200 { "it is much too long" } else { &why };
            let detail = format!("reading_at {} is not an RFC 3339 time: {why}", quoted(text));
            Refusal::new(Reason::BadTime, detail)
        };
        let timestamp = match text.parse::<jiff::Timestamp>() {
            Ok(timestamp) => timestamp,
            Err(error) => {
                let pieces = Pieces::parse(text).map_err(|_| bad(&error))?;
                if pieces.offset().is_some() || pieces.time().is_none() {
                    return Err(bad(&error));
                }
                let offset = assume_offset.ok_or_else(|| no_offset(text))?;
                let civil = DateTime::from_parts(pieces.date(), pieces.time().unwrap_or_default());
                offset.to_timestamp(civil).map_err(|error| bad(&error))?
            }
        };
        i64::try_from(timestamp.as_nanosecond().div_euclid(1_000_000))
            .ok()
            .and_then(EventTime::from_millis)
            .ok_or_else(|| bad(&"the year must be 0000 to 9999"))
    }

    /// Appends the time as [`Display`](fmt::Display) writes it.
    pub fn write_to(self, out: &mut Vec<u8>) {
        let (text, len) = self.written();
        out.extend_from_slice(&text[..len]);
    }

    /// The text of the time, in ASCII, and its length.
    fn written(self) -> ([u8; 24], usize) {
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

/// The refusal of a time that could be any of 24.
pub fn no_offset(text: &str) -> Refusal {
    let text = quoted(text);
    let detail = format!("reading_at {text} has no offset: write Z or +hh:mm, or say which one to assume");
    Refusal::new(Reason::NoOffset, detail)
}

/// `YYYY-MM-DDTHH:MM:SS[.fraction]Z`, as machines write it. Anything else, also anything out of range, is left to
/// the library, which then gives the error: this path is here because it is 10 times as fast.
fn parse_canonical(text: &[u8]) -> Option<EventTime> {
    let number = |from: usize, to: usize| {
        text[from..to].iter().try_fold(0i64, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
    };
    let (&[.., b'Z'], 20..=30) = (text, text.len()) else { return None };
    if (text[4], text[7], text[10], text[13], text[16]) != (b'-', b'-', b'T', b':', b':') {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let millis = match text.len() {
        20 => 0,
        len if text[19] == b'.' && len > 21 => {
            number(20, len - 1)?;
            number(20, (len - 1).min(23))? * [100, 10, 1][(len - 22).min(2)]
        }
        _ => return None,
    };
    if !(1..=12).contains(&month)
        || day < 1
        || day > days_in_month(year, month)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    let seconds = ((days_from_civil(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    EventTime::from_millis(seconds * 1000 + millis)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar: years are counted from March, so that the leap
/// day is the last of a year, and 400 years are 146,097 days.
#[inline]
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The date that is `days` days after 1970-01-01: `days_from_civil` the other way round.
pub fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

impl fmt::Display for EventTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, len) = self.written();
        f.pad(std::str::from_utf8(&text[..len]).map_err(|_| fmt::Error)?)
    }
}

/// A span of event time, as a person writes it: `90s`, `15m`, `6h`, `1d`, `250ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(i64);

impl Duration {
    /// The longest duration: longer than from the first to the last event time, so it never takes anything away.
    pub const MAX: Duration = Duration(EventTime::MAX.0 - EventTime::MIN.0);
    pub const DAY: Duration = Duration(DAY_MS);

    /// A duration of `ms` milliseconds, 0 or more and no longer than [`Duration::MAX`].
    pub fn from_millis(ms: i64) -> Option<Duration> {
        (0..=Self::MAX.0).contains(&ms).then_some(Duration(ms))
    }

    pub fn millis(self) -> i64 {
        self.0
    }
}

const UNITS: [(&str, i64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", DAY_MS)];

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Duration, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let unit = UNITS.iter().find(|(name, _)| *name == &text[digits..]);
        let millis = text[..digits].parse::<i64>().ok().zip(unit).and_then(|(n, (_, ms))| n.checked_mul(*ms));
        millis.and_then(Duration::from_millis).ok_or_else(|| {
            format!(
                "{text:?} is not a duration: write a whole number and one of ms, s, m, h, d, as in 90s or 1d"
            )
        })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, ms) =
            UNITS.iter().rev().find(|(_, ms)| self.0 % ms == 0 && self.0 > 0).unwrap_or(&UNITS[1]);
        write!(f, "{}{name}", self.0 / ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reason(text: &str) -> Reason {
        EventTime::parse(text, None).unwrap_err().reason
    }

    #[test]
    fn reads_and_writes_rfc_3339() {
        for (text, written) in [
            ("2013-01-01T06:00:00Z", "2013-01-01T06:00:00Z"),
            ("2013-01-01T01:00:00-05:00", "2013-01-01T06:00:00Z"),
            ("2013-01-01t06:00:00.5z", "2013-01-01T06:00:00.5Z"),
            ("2013-01-01 06:00:00.000999Z", "2013-01-01T06:00:00Z"),
            ("1969-12-31T23:59:59.9999Z", "1969-12-31T23:59:59.999Z"),
            ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
            ("9999-12-30T22:00:00.000999Z", "9999-12-30T22:00:00Z"),
        ] {
            assert_eq!(EventTime::parse(text, None).unwrap().to_string(), written, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_a_time() {
        for text in [
            "",
            "yesterday",
            "2013-02-29T00:00:00Z",
            "2013-01-01T24:00:00Z",
            "2013-01-01T06:00:00.Z",
            "2013-01-01",
        ] {
            assert_eq!(reason(text), Reason::BadTime, "{text}");
        }
        assert_eq!(reason("-000001-12-31T23:00:00Z"), Reason::BadTime);
        assert_eq!(reason("9999-12-31T23:59:59-01:00"), Reason::BadTime);
        assert_eq!(reason("2013-01-01T06:00:00"), Reason::NoOffset);
        assert_eq!(reason("2013-01-01 06:00:00"), Reason::NoOffset);
    }

    #[test]
    fn assumes_an_offset_where_it_is_told_to() {
        let parsed = EventTime::parse("2013-01-01 06:00:00", Some(jiff::tz::offset(-5))).unwrap();
        assert_eq!(parsed.to_string(), "2013-01-01T11:00:00Z");
        let own = EventTime::parse("2013-01-01T06:00:00Z", Some(jiff::tz::offset(-5))).unwrap();
        assert_eq!(own.to_string(), "2013-01-01T06:00:00Z");
    }

    #[test]
    fn durations_read_back() {
        for text in ["0s", "250ms", "90s", "15m", "6h", "1d", "366d"] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
        for text in ["", "1", "d", "-1d", "1.5h", "1 d", "99999999999999d", "1w"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn times_are_written_as_the_library_writes_them(ms in EventTime::MIN.0..=EventTime::MAX.0, cut in 0u32..5) {
            let ms = ms - ms.rem_euclid(10i64.pow(cut));
            let library = jiff::Timestamp::from_millisecond(ms).unwrap().to_string();
            let mut written = Vec::new();
            EventTime(ms).write_to(&mut written);
            prop_assert_eq!(std::str::from_utf8(&written).unwrap(), &library);
            prop_assert_eq!(EventTime(ms).to_string(), library);
        }

        #[test]
        fn the_fast_path_agrees_with_the_library(ms in EventTime::MIN.0..=EventTime::MAX.0) {
            let time = EventTime(ms);
            prop_assert_eq!(EventTime::parse(&time.to_string(), None).unwrap(), time);
        }

        #[test]
        fn the_fast_path_takes_nothing_that_the_library_refuses(text in "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,10})?Z") {
            if let Some(time) = parse_canonical(text.as_bytes()) {
                let nanos = text.parse::<jiff::Timestamp>().unwrap().as_nanosecond();
                prop_assert_eq!(i128::from(time.0), nanos.div_euclid(1_000_000));
            }
        }
    }
}
