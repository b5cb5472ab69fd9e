//! Instants from text, or from milliseconds that may be out of range.

use std::str::FromStr;

use super::event_time::EventTime;
use super::{LocalTimePolicy, ParsedTime, TimeError, TimeProblem, grammar, local};

impl EventTime {
    /// Like [`EventTime::from_millis`]; the error says which end of the range is passed.
    pub fn try_from_millis(ms: i64) -> Result<EventTime, TimeProblem> {
        local::instant_at_offset(ms, 0)
    }

    /// Parses a time by the grammar of docs/times.md; `local` says how a time without an offset is
    /// read.
    ///
    /// ```
    /// use swelter::{EventTime, LocalTimePolicy};
    /// let text = "2013-07-18T15:04:05.6789-04:00";
    /// let read = EventTime::parse(text, LocalTimePolicy::Refuse).unwrap();
    /// assert_eq!(read.instant.to_string(), "2013-07-18T19:04:05.678Z");
    /// ```
    #[inline]
    pub fn parse(text: &str, local: LocalTimePolicy) -> Result<ParsedTime, TimeError> {
        grammar::parse_time(text.as_bytes(), local).map_err(|problem| TimeError::new(text, problem))
    }
}

/// Parses a time with an offset; one without an offset is an error.
impl FromStr for EventTime {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<EventTime, TimeError> {
        EventTime::parse(text, LocalTimePolicy::Refuse).map(|read| read.instant)
    }
}
