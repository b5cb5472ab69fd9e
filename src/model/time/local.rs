//! What a time without an offset is taken to be.

use std::fmt;

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset};

use super::{DAY_MS, EventTime, IanaZone, TimeProblem, civil_from_days};

/// What the times of a source that have no offset are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalTimePolicy {
    /// No times: each is refused.
    #[default]
    Refuse,
    /// By clocks of one offset.
    Offset(Offset),
    /// By the clocks of a zone. Of a time that its clocks showed twice it is the earlier instant; one that they never
    /// showed is refused.
    Zone(IanaZone),
}

/// An instant that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedTime {
    pub instant: EventTime,
    /// The zone's clocks showed the time twice; this is the earlier of the two instants.
    pub is_ambiguous: bool,
}

impl LocalTimePolicy {
    /// The instant at which clocks show what clocks in UTC show `local_ms` milliseconds after the epoch.
    ///
    /// # Errors
    ///
    /// [`TimeProblem::NoOffset`] where times without an offset are refused, [`TimeProblem::SkippedLocalTime`], and
    /// what is outside the range of times.
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

/// As the configuration and the identity of results write it: nothing, an offset, or a zone with the version of the
/// database that says what its clocks showed.
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

/// What clocks show at `local_ms`, where jiff has such a date.
fn civil_datetime(local_ms: i64) -> Option<DateTime> {
    let (year, month, day) = civil_from_days(local_ms.div_euclid(DAY_MS));
    let ms = local_ms.rem_euclid(DAY_MS) as i32;
    let [hour, minute, second] = [ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60].map(|part| part as i8);
    let nanosecond = ms % 1_000 * 1_000_000;
    DateTime::new(i16::try_from(year).ok()?, month as i8, day as i8, hour, minute, second, nanosecond).ok()
}
