//! Local times: how a time without an offset becomes an instant.

use std::fmt;

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset};

use super::{DAY_MS, EventTime, IanaZone, TimeProblem, civil_from_days};

/// How the times of a source that have no offset are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalTimePolicy {
    /// Each is refused.
    #[default]
    Refuse,
    /// By clocks with one offset.
    Offset(Offset),
    /// By the clocks of a zone. A time that they showed twice is the earlier instant; one that they
    /// never showed is refused.
    Zone(IanaZone),
}

/// An instant that was read from text or from a local time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedTime {
    pub instant: EventTime,
    /// The zone's clocks showed the time twice; `instant` is the earlier of the two.
    pub is_ambiguous: bool,
}

impl LocalTimePolicy {
    /// The instant at which clocks show what clocks in UTC show `local_ms` milliseconds after the
    /// epoch.
    ///
    /// # Errors
    ///
    /// `TimeProblem::NoOffset` if times without an offset are refused,
    /// `TimeProblem::SkippedLocalTime`, and times outside the range.
    pub fn resolve_local(self, local_ms: i64) -> Result<ParsedTime, TimeProblem> {
        let (offset, ambiguous) = match self {
            LocalTimePolicy::Refuse => return Err(TimeProblem::NoOffset),
            LocalTimePolicy::Offset(offset) => (offset, false),
            LocalTimePolicy::Zone(zone) => zone.offset_at(local_ms)?,
        };
        Ok(ParsedTime { instant: instant_at_offset(local_ms, offset.seconds())?, is_ambiguous: ambiguous })
    }
}

/// The instant at which clocks of an offset, in seconds, show `local_ms`.
#[inline]
pub(super) fn instant_at_offset(local_ms: i64, offset: i32) -> Result<EventTime, TimeProblem> {
    let ms = local_ms.saturating_sub(i64::from(offset) * 1_000);
    EventTime::from_millis(ms).ok_or(if ms < EventTime::MIN.millis() {
        TimeProblem::TooEarly
    } else {
        TimeProblem::TooLate
    })
}

/// As in the configuration and in the identity of results: nothing, an offset, or a zone with the
/// edition of the database that says what its clocks showed.
impl fmt::Display for LocalTimePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LocalTimePolicy::Refuse => Ok(()),
            LocalTimePolicy::Offset(offset) if offset.is_zero() => f.write_str("Z"),
            LocalTimePolicy::Offset(offset) => {
                let (sign, minutes) =
                    (if offset.is_negative() { '-' } else { '+' }, offset.seconds().abs() / 60);
                write!(f, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)
            }
            LocalTimePolicy::Zone(zone) => write!(f, "{zone} (tzdb {})", IanaZone::DATABASE_VERSION),
        }
    }
}

impl IanaZone {
    /// The zone's offset when its clocks show `local_ms`, and whether they show it twice.
    fn offset_at(self, local_ms: i64) -> Result<(Offset, bool), TimeProblem> {
        let clock = civil_datetime(local_ms).ok_or(if local_ms < 0 {
            TimeProblem::TooEarly
        } else {
            TimeProblem::TooLate
        })?;
        match self.time_zone().to_ambiguous_timestamp(clock).offset() {
            AmbiguousOffset::Unambiguous { offset } => Ok((offset, false)),
            AmbiguousOffset::Fold { before, .. } => Ok((before, true)),
            AmbiguousOffset::Gap { .. } => Err(TimeProblem::SkippedLocalTime(self)),
        }
    }
}

/// The date and time of day that clocks show at `local_ms`, if jiff has such a date.
fn civil_datetime(local_ms: i64) -> Option<DateTime> {
    let (year, month, day) = civil_from_days(local_ms.div_euclid(DAY_MS));
    let ms = local_ms.rem_euclid(DAY_MS) as i32;
    let [hour, minute, second] = [ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60].map(|part| part as i8);
    let nanosecond = ms % 1_000 * 1_000_000;
    DateTime::new(i16::try_from(year).ok()?, month as i8, day as i8, hour, minute, second, nanosecond).ok()
}
