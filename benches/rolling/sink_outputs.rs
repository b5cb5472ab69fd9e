//! What a sink of outcomes, current rows, hours and days costs: readings in order, in epochs of a
//! minute. The renderer reads each change once and writes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use swelter::internals::dataflow::heat_index::Formula;
use swelter::internals::dataflow::rolling::snapshot::InitialState;
use swelter::internals::dataflow::{self, EncodedBatchesPlan, GraphPlan, RendererPlan};
use swelter::internals::model::{
    ArrivalOutcome, BatchBuilder, CityNames, CurrentChange, DayChange, HourChange, PartitionTable, Render,
    RenderWants, RowChange,
};

use crate::cities::{Cities, WINDOW_MINUTES, retention};
use crate::graph::single_worker;
use crate::timing::time_epochs;

/// Reads the changes that a sink wants.
struct ReadingRenderer {
    wants: RenderWants,
    seen: Arc<AtomicI64>,
}

impl ReadingRenderer {
    fn see(&self, value: i64) {
        self.seen.fetch_xor(value, Ordering::Relaxed);
    }
}

impl Render for ReadingRenderer {
    fn wants(&self) -> RenderWants {
        self.wants
    }

    fn render_row(&mut self, _: u64, _: &CityNames, change: &RowChange, _: &mut BatchBuilder) {
        self.see(change.after.map_or(0, |row| row.sum()));
    }

    fn render_current(&mut self, _: u64, _: &CityNames, change: &CurrentChange<'_>, _: &mut BatchBuilder) {
        self.see(change.after.map_or(0, |current| current.row.sum()));
    }

    fn render_outcome(&mut self, _: u64, _: &CityNames, outcome: &ArrivalOutcome, _: &mut BatchBuilder) {
        self.see(outcome.after.map_or(0, |held| held.heat_index().micros()));
    }

    fn render_hour(&mut self, _: u64, _: &CityNames, hour: &HourChange, _: &mut BatchBuilder) {
        self.see(hour.after.map_or(0, |summary| summary.sum));
    }

    fn render_day(&mut self, _: u64, _: &CityNames, day: &DayChange, _: &mut BatchBuilder) {
        self.see(day.after.map_or(0, |summary| summary.sum));
    }
}

/// Nanoseconds a reading of a graph whose only output is this sink.
fn time_sink(cities: &Cities, wants: RenderWants) -> f64 {
    let seen = Arc::new(AtomicI64::new(0));
    let shared = Arc::clone(&seen);
    let make = move |_: &PartitionTable| -> Box<dyn Render> {
        Box::new(ReadingRenderer { wants, seen: Arc::clone(&shared) })
    };
    let renderer = RendererPlan { make: Arc::new(make), write_touched: false };
    let plan = GraphPlan {
        rows: false,
        encoded_batches: Some(EncodedBatchesPlan {
            renderers: vec![renderer],
            partitions: PartitionTable::default(),
        }),
        ..GraphPlan::new(Formula::Rothfusz, retention())
    };
    let mut worker = single_worker();
    let mut graph = dataflow::build_graph(&mut worker, &plan, InitialState::default(), None);
    graph.send_epoch(0, &mut cities.names.clone(), &mut Vec::new());
    let mut epoch = 1;
    let mut run_epoch = |arrivals: &mut Vec<_>| {
        graph.send_epoch(epoch, &mut Vec::new(), arrivals);
        epoch += 1;
        while graph.probe.less_than(&epoch) {
            worker.step();
        }
        while graph.encoded_batches.as_ref().is_some_and(|closed| closed.next_batch().is_some()) {}
    };
    for minute in 0..2 * WINDOW_MINUTES {
        run_epoch(&mut cities.arrivals_of_minute(minute));
    }
    let ns = time_epochs(60, 2 * WINDOW_MINUTES, cities, run_epoch);
    std::hint::black_box(seen.load(Ordering::Relaxed));
    ns
}

pub fn bench_sink_outputs() {
    let cities = Cities::new(15_000);
    let outcomes = RenderWants { outcomes: true, ..RenderWants::default() };
    let current = RenderWants { current: true, highs: true, ..outcomes };
    println!("in order, 15,000 cities, one reading a minute, for one sink:");
    for (name, wants) in [
        ("rows", RenderWants { rows: true, ..RenderWants::default() }),
        ("outcomes", outcomes),
        ("outcomes, current rows", current),
        ("outcomes, current rows, hours and days", RenderWants { hours: true, days: true, ..current }),
        ("the same and rows", RenderWants { rows: true, hours: true, days: true, ..current }),
    ] {
        println!("  {name:40}{:6.1} ns a reading", time_sink(&cities, wants));
    }
}
