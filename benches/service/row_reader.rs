//! The rows in messages of the service, as far as they are measured.

use memchr::memmem::Finder;
use swelter::internals::model::EventTime;

/// Finds the rows of `changes` messages.
pub struct RowReader {
    as_of: Finder<'static>,
    city: Finder<'static>,
    /// The second of the last time, which is often that of the next, and its ms.
    second: ([u8; 19], i64),
}

/// A row by its key, `reading_at` in ms.
pub struct Row<'a> {
    pub city: &'a [u8],
    pub reading_at: i64,
}

const CITY_FIELD: &[u8] = b"{\"city\":\"";
const READING_AT_FIELD: &[u8] = b"\",\"reading_at\":\"";
const AS_OF_FIELD: &[u8] = b"\"as_of\":";

impl RowReader {
    pub fn new() -> RowReader {
        RowReader { as_of: Finder::new(AS_OF_FIELD), city: Finder::new(CITY_FIELD), second: ([0; 19], 0) }
    }

    pub fn is_changes(message: &[u8]) -> bool {
        message.starts_with(b"{\"type\":\"changes\"")
    }

    pub fn is_complete_snapshot(message: &[u8]) -> bool {
        let end = &message[message.len().saturating_sub(256)..];
        message.starts_with(b"{\"type\":\"snapshot\"")
            && memchr::memmem::find(end, b"\"complete\":true").is_some()
    }

    pub fn as_of(&self, message: &[u8]) -> i64 {
        let digits = self.as_of.find(message).map_or(&[][..], |at| &message[at + AS_OF_FIELD.len()..]);
        let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0, |number, digit| number * 10 + i64::from(digit - b'0'))
    }

    /// Calls `each` for every row; returns how many there are.
    pub fn for_each_row(&mut self, message: &[u8], mut each: impl FnMut(Row<'_>)) -> u64 {
        let (mut rest, mut rows) = (message, 0);
        while let Some(at) = self.city.find(rest) {
            rest = &rest[at + CITY_FIELD.len()..];
            // Cities here are numbers: nothing is escaped.
            let Some(end) = memchr::memchr(b'"', rest) else { break };
            let (city, after) = rest.split_at(end);
            let Some(time) = after.strip_prefix(READING_AT_FIELD) else { break };
            let Some(end) = memchr::memchr(b'"', time) else { break };
            each(Row { city, reading_at: self.parse_time(&time[..end]) });
            rest = &time[end..];
            rows += 1;
        }
        rows
    }

    fn parse_time(&mut self, text: &[u8]) -> i64 {
        let (second, fraction) = text.split_at(19);
        if second != self.second.0 {
            let whole = format!("{}Z", std::str::from_utf8(second).unwrap());
            self.second = (second.try_into().unwrap(), whole.parse::<EventTime>().unwrap().millis());
        }
        let digits =
            fraction.strip_prefix(b".").unwrap_or_default().iter().take_while(|b| b.is_ascii_digit());
        self.second.1
            + digits.zip([100, 10, 1]).map(|(digit, unit)| i64::from(digit - b'0') * unit).sum::<i64>()
    }
}
