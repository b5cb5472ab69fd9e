//! What an epoch changes, and which of that a run wants to know.

use crate::model::time::DayZone;
use crate::model::{
    ArrivalOutcome, BatchBuilder, CityId, CityNames, CurrentRow, DayChange, OutcomeCounts, Render, RowChange,
};

/// What a run wants to know besides row changes; what it does not ask for costs it nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RollingOutputs {
    /// Every change of a row.
    pub rows: bool,
    /// The current row of each city.
    pub current: bool,
    /// The summary of each city and UTC day.
    pub days: bool,
    /// Whose days they are.
    pub day_zone: DayZone,
    /// What became of each arrival.
    pub outcomes: bool,
    /// What serving is told: the changes of current rows and of watched cities, answers, and counts.
    pub serving: bool,
    /// Also rows and current rows that an epoch has touched and left as they were: a sink that may have written what they were
    /// within a longer epoch must write what they are.
    pub touched_unchanged: bool,
}

/// What an epoch has changed. The vectors are filled anew by each epoch.
#[derive(Debug, Default)]
pub struct EpochChanges {
    /// In pieces, since one vector of many rows would be copied whenever it grows.
    pub rows: Vec<Vec<RowChange>>,
    pub current: Vec<(CityId, CurrentRow, isize)>,
    /// Cities that were touched, had no current row, and have none, where they are wanted.
    pub cities_without_row: Vec<CityId>,
    pub days: Vec<DayChange>,
    pub outcomes: Vec<ArrivalOutcome>,
    /// What became of the arrivals.
    pub counts: OutcomeCounts,
    /// For how many rows the first piece has room at first.
    pub(super) first_piece_capacity: usize,
}

/// Row changes in a piece.
pub(super) const CHANGES_PER_PIECE: usize = 1024;

impl EpochChanges {
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.current.clear();
        self.cities_without_row.clear();
        self.days.clear();
        self.outcomes.clear();
        self.counts = OutcomeCounts::default();
    }

    /// A piece with room for a change.
    #[inline(always)]
    pub(super) fn last_piece(&mut self) -> &mut Vec<RowChange> {
        if self.rows.last().is_none_or(|piece| piece.len() == CHANGES_PER_PIECE) {
            // Most epochs have a row of each arrival.
            let room = if self.rows.is_empty() { self.first_piece_capacity } else { CHANGES_PER_PIECE };
            self.rows.push(Vec::with_capacity(room));
        }
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    /// Writes an epoch's changed rows, and the current rows that it leaves, as records of a sink.
    pub(super) fn render_records(
        &self,
        epoch: u64,
        names: &CityNames,
        render: &mut dyn Render,
        out: &mut BatchBuilder,
    ) {
        for change in self.rows.iter().flatten() {
            render.render_row(epoch, names, change, out);
        }
        for (city, row) in self.changed_current_rows() {
            render.render_current(epoch, names, city, row, out);
        }
        for city in &self.cities_without_row {
            render.render_current(epoch, names, *city, None, out);
        }
    }

    /// The cities whose current row has changed, each once.
    pub(super) fn changed_current_rows(&self) -> impl Iterator<Item = (CityId, Option<&CurrentRow>)> {
        let mut changes = self.current.iter().peekable();
        std::iter::from_fn(move || {
            let (city, row, diff) = changes.next()?;
            if *diff > 0 {
                return Some((*city, Some(row)));
            }
            // A retraction is followed by the row that takes its place, where there is one.
            let next = changes.next_if(|(next, _, diff)| next == city && *diff > 0);
            Some((*city, next.map(|(_, row, _)| row)))
        })
    }
}
