//! What encodes an epoch's changes as the records of a sink.

use super::batch_builder::BatchBuilder;
use crate::model::arrival::ArrivalOutcome;
use crate::model::change::{CityId, CityNames, CurrentRow, DayChange, RowChange};

/// What a sink wants of an epoch beside its changes of rows. What no sink wants is not computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenderWants {
    /// The current row of each city that has changed.
    pub current: bool,
    /// What became of each arrival.
    pub outcomes: bool,
    /// Summaries of days that have changed.
    pub days: bool,
}

/// Writes what an epoch changes as the records of a sink.
pub trait Render {
    /// What is written beside rows.
    fn wants(&self) -> RenderWants {
        RenderWants::default()
    }

    fn render_row(&mut self, epoch: u64, names: &CityNames, change: &RowChange, out: &mut BatchBuilder);

    /// The current row of a city from this epoch on.
    fn render_current(
        &mut self,
        _epoch: u64,
        _names: &CityNames,
        _city: CityId,
        _row: Option<&CurrentRow>,
        _out: &mut BatchBuilder,
    ) {
    }

    /// What became of an arrival, in the order of its log.
    fn render_outcome(
        &mut self,
        _epoch: u64,
        _names: &CityNames,
        _outcome: &ArrivalOutcome,
        _out: &mut BatchBuilder,
    ) {
    }

    /// The summary of a city's day from this epoch on.
    fn render_day(&mut self, _epoch: u64, _names: &CityNames, _day: &DayChange, _out: &mut BatchBuilder) {}
}
