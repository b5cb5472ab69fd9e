//! Summaries of a city's hours and days in a checkpoint, while an arrival can still change them.

use crate::model::time::IanaZone;
use crate::model::{EventTime, HeatIndex};

/// The open periods of a city: those that an accepted arrival can still change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CityPeriods {
    /// The zone whose days are summarised beside those of UTC.
    pub zone: Option<IanaZone>,
    /// Of UTC; by time, like the others.
    pub hours: Vec<StoredPeriod>,
    pub utc_days: Vec<StoredPeriod>,
    pub local_days: Vec<StoredPeriod>,
}

/// The summary of an hour or a day. Its bounds are stored, so that they stay if another edition of
/// the time zone database has others.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredPeriod {
    /// Days or hours from 1970-01-01.
    pub number: i32,
    /// The first instant, in ms.
    pub starts: i64,
    /// The first instant of the next period, in ms.
    pub ends: i64,
    /// At least 1.
    pub readings: u32,
    /// 1e-6 °F.
    pub sum: i64,
    /// Readings in each category.
    pub categories: [u32; 5],
    /// The greatest heat index and its first time.
    pub max: (HeatIndex, EventTime),
    /// The same of the readings that are not held any more.
    pub retired_max: Option<(HeatIndex, EventTime)>,
}

/// The kinds of [`CityPeriods`], in the order in which they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeriodKind {
    UtcHour,
    UtcDay,
    LocalDay,
}

impl PeriodKind {
    pub const ALL: [PeriodKind; 3] = [PeriodKind::UtcHour, PeriodKind::UtcDay, PeriodKind::LocalDay];

    /// The name in checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            PeriodKind::UtcHour => "hour",
            PeriodKind::UtcDay => "day",
            PeriodKind::LocalDay => "local_day",
        }
    }
}

impl CityPeriods {
    pub fn of_kind(&self, kind: PeriodKind) -> &[StoredPeriod] {
        match kind {
            PeriodKind::UtcHour => &self.hours,
            PeriodKind::UtcDay => &self.utc_days,
            PeriodKind::LocalDay => &self.local_days,
        }
    }

    pub fn of_kind_mut(&mut self, kind: PeriodKind) -> &mut Vec<StoredPeriod> {
        match kind {
            PeriodKind::UtcHour => &mut self.hours,
            PeriodKind::UtcDay => &mut self.utc_days,
            PeriodKind::LocalDay => &mut self.local_days,
        }
    }

    /// Approximate bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        let periods: usize = PeriodKind::ALL.iter().map(|kind| self.of_kind(*kind).len()).sum();
        periods * size_of::<StoredPeriod>()
    }
}
