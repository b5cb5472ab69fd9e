//! Instants of event time, and how they are written.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::calendar::civil_from_days;

/// Milliseconds in a UTC day (event time has no leap seconds).
pub const DAY_MS: i64 = 86_400_000;

/// An instant of event time: milliseconds since 1970-01-01T00:00:00Z, within the years 0000 to
/// 9999, which RFC 3339 can write. It is written in UTC with `Z`, and with a fraction only if it
/// has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventTime(i64);

impl EventTime {
    /// 0000-01-01T00:00:00Z.
    pub const MIN: EventTime = EventTime(-62_167_219_200_000);
    /// 9999-12-30T22:00:00Z: the last hours of the year are left out, so that every instant has a
    /// local time at every offset.
    pub const MAX: EventTime = EventTime(253_402_207_200_000);

    /// The instant `ms` milliseconds after the epoch; `None` if RFC 3339 cannot write it.
    pub fn from_millis(ms: i64) -> Option<EventTime> {
        (Self::MIN.0..=Self::MAX.0).contains(&ms).then_some(EventTime(ms))
    }

    /// Milliseconds since the epoch.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// The UTC day that holds the instant, counted from 1970-01-01.
    pub fn utc_day(self) -> i32 {
        self.0.div_euclid(DAY_MS) as i32
    }

    /// Appends the time as [`Display`](fmt::Display) writes it.
    pub fn write_to(self, out: &mut Vec<u8>) {
        let (text, len) = self.to_ascii();
        out.extend_from_slice(&text[..len]);
    }

    /// The text of the time, in ASCII, and its length.
    fn to_ascii(self) -> ([u8; 24], usize) {
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut write_digits = |at: usize, number: u32| {
            text[at] = b'0' + (number / 10 % 10) as u8;
            text[at + 1] = b'0' + (number % 10) as u8;
        };
        let (days, ms) = (self.0.div_euclid(DAY_MS), self.0.rem_euclid(DAY_MS) as u32);
        let (year, month, day) = civil_from_days(days);
        write_digits(0, year as u32 / 100);
        write_digits(2, year as u32);
        write_digits(5, month as u32);
        write_digits(8, day as u32);
        write_digits(11, ms / 3_600_000);
        write_digits(14, ms / 60_000 % 60);
        write_digits(17, ms / 1_000 % 60);
        write_digits(20, ms / 10);
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

impl fmt::Display for EventTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, len) = self.to_ascii();
        f.pad(std::str::from_utf8(&text[..len]).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
