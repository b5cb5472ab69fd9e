//! Instants and durations of event time, in milliseconds: their types, and how they are read and
//! written.

mod calendar;
mod days;
mod duration;
mod error;
mod event_time;
mod grammar;
mod local;
mod parse;
#[cfg(test)]
mod spellings;
mod zone;

pub use self::calendar::civil_from_days;
pub use self::days::{Day, DayZone};
pub use self::duration::Millis;
pub use self::error::{TimeError, TimeProblem};
pub use self::event_time::{DAY_MS, EventTime};
pub use self::grammar::parse_offset;
pub use self::local::{LocalTimePolicy, ParsedTime};
pub use self::zone::IanaZone;
