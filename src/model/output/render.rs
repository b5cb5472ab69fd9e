//! What encodes an epoch's changes as the records of a sink.

use super::batch_builder::BatchBuilder;
use crate::model::arrival::ArrivalOutcome;
use crate::model::change::{CityNames, CurrentChange, DayChange, HourChange, RowChange};

/// What a sink wants of an epoch. What no sink wants is not computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenderWants {
    /// Every change of a row.
    pub rows: bool,
    /// The current row of each city that has changed.
    pub current: bool,
    /// With `current`: also cities whose newest time has changed and whose current row has not.
    pub highs: bool,
    /// The outcome of each arrival, with the time at which its log appended it.
    pub outcomes: bool,
    /// Summaries of UTC hours that have changed.
    pub hours: bool,
    /// Summaries of days that have changed: of UTC days, and of local ones of cities with a zone.
    pub days: bool,
}

impl RenderWants {
    /// What either of two sinks wants.
    pub fn union(self, other: RenderWants) -> RenderWants {
        RenderWants {
            rows: self.rows || other.rows,
            current: self.current || other.current,
            highs: self.highs || other.highs,
            outcomes: self.outcomes || other.outcomes,
            hours: self.hours || other.hours,
            days: self.days || other.days,
        }
    }
}

/// Encodes the changes of an epoch as the records of a sink. `names` has the names of the cities,
/// and says which are split. The renderer of a sink that wants outcomes is made with the names of
/// the partitions.
pub trait Render {
    /// What is rendered: by default the changes of rows alone.
    fn wants(&self) -> RenderWants {
        RenderWants { rows: true, ..RenderWants::default() }
    }

    /// The change of a row.
    fn render_row(&mut self, epoch: u64, names: &CityNames, change: &RowChange, out: &mut BatchBuilder);

    /// The change of a city's current row, at most one for each city and epoch.
    fn render_current(
        &mut self,
        _epoch: u64,
        _names: &CityNames,
        _change: &CurrentChange<'_>,
        _out: &mut BatchBuilder,
    ) {
    }

    /// The outcome of an arrival. Those of a city come in the order of its log.
    fn render_outcome(
        &mut self,
        _epoch: u64,
        _names: &CityNames,
        _outcome: &ArrivalOutcome,
        _out: &mut BatchBuilder,
    ) {
    }

    /// The change of the summary of a city's hour, at most one for each hour and epoch.
    fn render_hour(&mut self, _epoch: u64, _names: &CityNames, _hour: &HourChange, _out: &mut BatchBuilder) {}

    /// The change of the summary of a city's day, at most one for each zone, day and epoch.
    fn render_day(&mut self, _epoch: u64, _names: &CityNames, _day: &DayChange, _out: &mut BatchBuilder) {}
}
