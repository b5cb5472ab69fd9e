//! The changes of an epoch, and the outputs that a run asks for.

use crate::model::time::DayZone;
use crate::model::{
    ArrivalOutcome, CityId, CurrentChange, CurrentRow, DayChange, EventTime, HourChange, OutcomeCounts,
    RenderWants, RowChange,
};

/// The outputs that a run asks for. Others are not computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RollingOutputs {
    /// Every change of a row.
    pub rows: bool,
    /// The current row of each city.
    pub current: bool,
    /// The summary of each city and day.
    pub days: bool,
    /// The time zone whose days they are.
    pub day_zone: DayZone,
    /// The outcome of each arrival.
    pub outcomes: bool,
    /// Updates for serving: changes of current rows and of watched cities, query responses, and
    /// counts.
    pub serving: bool,
    /// Also rows and current rows that an epoch has touched without a change. A sink that may have
    /// written an intermediate row of a longer epoch needs them to write the final one.
    pub touched_unchanged: bool,
    /// What the renderers of sinks want in addition. It leaves the operator encoded.
    pub sinks: RenderWants,
}

impl RollingOutputs {
    /// Whether changes of all rows are computed.
    pub(super) fn computes_rows(&self) -> bool {
        self.rows || self.sinks.rows
    }

    pub(super) fn computes_current(&self) -> bool {
        self.current || self.serving || self.sinks.current
    }

    pub(super) fn computes_outcomes(&self) -> bool {
        self.outcomes || self.sinks.outcomes
    }

    /// Whether hours and days are summarised for sinks. Both are, since checkpoints have both.
    pub(super) fn computes_sink_periods(&self) -> bool {
        self.sinks.hours || self.sinks.days
    }
}

/// The changes of one epoch. The vectors are reused from epoch to epoch.
#[derive(Debug, Default)]
pub struct EpochChanges {
    /// In pieces, because one vector of many rows would be copied whenever it grows.
    pub rows: Vec<Vec<RowChange>>,
    pub current: Vec<(CityId, CurrentRow, isize)>,
    /// Touched cities that had no current row and have none, if current rows are asked for.
    pub cities_without_row: Vec<CityId>,
    /// All touched cities, if a sink wants newest times.
    pub(super) touched_cities: Vec<TouchedCity>,
    pub days: Vec<DayChange>,
    /// Hours and days for sinks.
    pub(super) sink_hours: Vec<HourChange>,
    pub(super) sink_days: Vec<DayChange>,
    pub outcomes: Vec<ArrivalOutcome>,
    /// Counts of the outcomes of the arrivals.
    pub counts: OutcomeCounts,
    /// The initial capacity of the first piece, in rows.
    pub(super) first_piece_capacity: usize,
}

/// The most row changes of a piece.
pub(super) const CHANGES_PER_PIECE: usize = 1024;

impl EpochChanges {
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.current.clear();
        self.cities_without_row.clear();
        self.touched_cities.clear();
        self.days.clear();
        self.sink_hours.clear();
        self.sink_days.clear();
        self.outcomes.clear();
        self.counts = OutcomeCounts::default();
    }

    /// The last piece, with capacity for one more change.
    #[inline(always)]
    pub(super) fn last_piece(&mut self) -> &mut Vec<RowChange> {
        if self.rows.last().is_none_or(|piece| piece.len() == CHANGES_PER_PIECE) {
            // Most epochs have a row of each arrival.
            let capacity = if self.rows.is_empty() { self.first_piece_capacity } else { CHANGES_PER_PIECE };
            self.rows.push(Vec::with_capacity(capacity));
        }
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    /// The cities whose current row the epoch has changed, or touched, each once.
    pub(super) fn current_changes(&self) -> impl Iterator<Item = CurrentChange<'_>> {
        let mut changes = self.current.iter().peekable();
        let change = |city: CityId, before, after| CurrentChange {
            city,
            before,
            after,
            high_before: None,
            high: None,
        };
        std::iter::from_fn(move || {
            let (city, row, diff) = changes.next()?;
            if *diff > 0 {
                return Some(change(*city, None, Some(row)));
            }
            // A retraction is followed by the row that takes its place, if there is one.
            let next = changes.next_if(|(next, _, diff)| next == city && *diff > 0);
            Some(change(*city, Some(row), next.map(|(_, row, _)| row)))
        })
    }
}

/// The current row and the newest time of a touched city before and after an epoch.
#[derive(Debug)]
pub(super) struct TouchedCity {
    pub city: CityId,
    pub before: Option<CurrentRow>,
    pub after: Option<CurrentRow>,
    pub high_before: Option<EventTime>,
    pub high: Option<EventTime>,
}

impl TouchedCity {
    pub(super) fn current_change(&self) -> CurrentChange<'_> {
        let TouchedCity { city, high_before, high, .. } = *self;
        CurrentChange { city, before: self.before.as_ref(), after: self.after.as_ref(), high_before, high }
    }
}
