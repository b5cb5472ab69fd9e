//! A sink that records what its renderers are given.

use std::sync::Arc;

use parking_lot::Mutex;

use swelter::internals::dataflow::{EncodedBatchesPlan, RendererPlan};
use swelter::internals::model::{
    ArrivalOutcome, BatchBuilder, CityNames, CurrentChange, CurrentRow, DayChange, EventTime, HourChange,
    PartitionTable, Render, RenderWants, RowChange,
};

/// A change that a renderer was given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SinkChange {
    Row(RowChange),
    Current {
        before: Option<CurrentRow>,
        after: Option<CurrentRow>,
        high_before: Option<EventTime>,
        high: Option<EventTime>,
    },
    Outcome(ArrivalOutcome),
    Hour(HourChange),
    Day(DayChange),
}

/// Epoch, city and change.
type RecordedChange = (u64, Arc<str>, SinkChange);

/// The changes of all workers, in the order of each worker.
#[derive(Clone, Default)]
pub struct RecordedChanges(Arc<Mutex<Vec<RecordedChange>>>);

impl RecordedChanges {
    /// The plan of a graph whose only sink wants this.
    pub fn sink_plan(&self, wants: RenderWants) -> EncodedBatchesPlan {
        let recorded = self.clone();
        let make = move |_: &PartitionTable| -> Box<dyn Render> {
            Box::new(RecordingRenderer { wants, recorded: recorded.clone() })
        };
        let renderer = RendererPlan { make: Arc::new(make), write_touched: false };
        EncodedBatchesPlan { renderers: vec![renderer], partitions: PartitionTable::default() }
    }

    pub fn take(&self) -> Vec<RecordedChange> {
        std::mem::take(&mut self.0.lock())
    }
}

struct RecordingRenderer {
    wants: RenderWants,
    recorded: RecordedChanges,
}

impl RecordingRenderer {
    fn record(&self, epoch: u64, city: Arc<str>, change: SinkChange) {
        self.recorded.0.lock().push((epoch, city, change));
    }
}

impl Render for RecordingRenderer {
    fn wants(&self) -> RenderWants {
        self.wants
    }

    fn render_row(&mut self, epoch: u64, names: &CityNames, change: &RowChange, _: &mut BatchBuilder) {
        self.record(epoch, names.get(change.city), SinkChange::Row(*change));
    }

    fn render_current(
        &mut self,
        epoch: u64,
        names: &CityNames,
        change: &CurrentChange<'_>,
        _: &mut BatchBuilder,
    ) {
        let CurrentChange { city, before, after, high_before, high } = *change;
        let (before, after) = (before.copied(), after.copied());
        self.record(epoch, names.get(city), SinkChange::Current { before, after, high_before, high });
    }

    fn render_outcome(
        &mut self,
        epoch: u64,
        names: &CityNames,
        outcome: &ArrivalOutcome,
        _: &mut BatchBuilder,
    ) {
        self.record(epoch, names.get(outcome.city), SinkChange::Outcome(*outcome));
    }

    fn render_hour(&mut self, epoch: u64, names: &CityNames, hour: &HourChange, _: &mut BatchBuilder) {
        self.record(epoch, names.get(hour.city), SinkChange::Hour(*hour));
    }

    fn render_day(&mut self, epoch: u64, names: &CityNames, day: &DayChange, _: &mut BatchBuilder) {
        self.record(epoch, names.get(day.city), SinkChange::Day(*day));
    }
}
