//! Why a text is not a time, and what to write instead.

use super::super::refusal::quoted_excerpt;
use super::super::{Reason, Refusal};
use super::{EventTime, IanaZone};

/// What is wrong with a text. The message says what to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeProblem {
    #[error("it is empty: write one as in 2013-07-18T15:04:05Z")]
    Empty,
    #[error("there are blanks around it: remove them")]
    BlanksAround,
    #[error("it does not begin with a date as YYYY-MM-DD, as in 2013-07-18T15:04:05Z")]
    NoDate,
    #[error("it is a number: write a date and a time of day, as in 2013-07-18T15:04:05Z")]
    Number,
    #[error("it is in basic format: write it with - and :, as in 2013-07-18T15:04:05Z")]
    BasicFormat,
    #[error("its year has a sign or more than 4 digits: years are 0000 to 9999")]
    LongYear,
    #[error("there is no month {0:02}: months are 01 to 12")]
    NoSuchMonth(u8),
    #[error("there is no day {day:02} in {year:04}-{month:02}: its days are 01 to {last}")]
    NoSuchDay { year: u16, month: u8, day: u8, last: u8 },
    #[error("it has no time of day: write one behind the date, as in 2013-07-18T00:00:00Z")]
    NoTimeOfDay,
    #[error("between its date and its time of day is neither T nor one blank, as in 2013-07-18T15:04:05Z")]
    NoSeparator,
    #[error("its time of day is not hh:mm, hh:mm:ss or hh:mm:ss.s, with two digits each")]
    BadTimeOfDay,
    #[error("hour 24 is not read: write hour 00 of the next day")]
    Hour24,
    #[error("there is no hour {0}: hours are 00 to 23")]
    NoSuchHour(u8),
    #[error("there is no minute {0}: minutes are 00 to 59")]
    NoSuchMinute(u8),
    #[error(
        "second 60 is a leap second, which times here do not have: write second 59, or second 00 of the next minute"
    )]
    LeapSecond,
    #[error("there is no second {0}: seconds are 00 to 59")]
    NoSuchSecond(u8),
    #[error("its fraction begins with a comma: write a point, as in 15:04:05.678")]
    CommaFraction,
    #[error("its fraction is not one of seconds: write hh:mm:ss and the fraction behind")]
    FractionOfMinutes,
    #[error("no digit follows the point of its fraction")]
    NoFraction,
    #[error(
        "what follows its time of day is not an offset: write Z or \u{b1}hh:mm, as in -04:00, right behind"
    )]
    BadOffset,
    #[error("its offset is out of range: offsets are -23:59 to +23:59")]
    OffsetOutOfRange,
    #[error(
        "it names a zone in brackets, which is not read: write the offset alone, as in 2013-07-18T15:04:05-04:00"
    )]
    ZoneInBrackets,
    #[error(
        "it has no offset: write Z or \u{b1}hh:mm behind it, or say which one to assume (--assume-offset, or assume_offset in the configuration)"
    )]
    NoOffset,
    #[error("there was no such time in {0}, whose clocks were set forward over it")]
    SkippedLocalTime(IanaZone),
    #[error("it is too early: times begin at {}", EventTime::MIN)]
    TooEarly,
    #[error("it is too late: times end at {}", EventTime::MAX)]
    TooLate,
}

/// A text that is not a time, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} is not a time: {problem}")]
pub struct TimeError {
    /// The excerpt that refusals show.
    text: String,
    /// Why the text is not a time.
    pub problem: TimeProblem,
}

impl TimeError {
    #[cold]
    pub(super) fn new(text: &str, problem: TimeProblem) -> TimeError {
        TimeError { text: quoted_excerpt(text), problem }
    }

    /// The refusal of a reading whose field `name` is not a time.
    pub fn refusal(&self, name: &str) -> Refusal {
        Refusal::new(self.problem.reason(), format!("{name} {self}"))
    }
}

impl TimeProblem {
    pub fn reason(self) -> Reason {
        match self {
            TimeProblem::NoOffset => Reason::NoOffset,
            _ => Reason::BadTime,
        }
    }
}
