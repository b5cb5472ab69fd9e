//! The operator in a dataflow of this thread.

use std::time::Instant;

use swelter::internals::dataflow::heat_index::Formula;
use swelter::internals::dataflow::rolling::snapshot::InitialState;
use swelter::internals::dataflow::{self, Closed, Graph, GraphPlan};
use swelter::internals::model::{Arrival, CityIntroduction, RowChange};
use timely::worker::Worker;

use crate::cities::{Cities, WINDOW_MINUTES, retention};

/// The operator in a dataflow of this thread, with its results read.
pub struct Operator {
    pub worker: Worker,
    pub graph: Graph,
    pub epoch: u64,
    pub seen: i64,
    pub rows: u64,
}

impl Operator {
    pub fn new(mut worker: Worker, cities: &Cities) -> Operator {
        let plan = GraphPlan::new(Formula::Rothfusz, retention());
        let mut graph = dataflow::build_graph(&mut worker, &plan, InitialState::default(), None);
        graph.send_epoch(0, &mut cities.names.clone(), &mut Vec::new());
        Operator { worker, graph, epoch: 1, seen: 0, rows: 0 }
    }

    /// Runs an epoch to its end.
    pub fn run_epoch(&mut self, arrivals: &mut Vec<Arrival>) {
        self.graph.send_epoch(self.epoch, &mut Vec::new(), arrivals);
        self.epoch += 1;
        while self.graph.probe.less_than(&self.epoch) {
            self.worker.step();
        }
        read_changes(self.graph.rows.as_ref().unwrap(), &mut self.seen, &mut self.rows);
    }
}

/// Reads every change once, as a sink would.
pub fn read_changes(closed: &Closed<RowChange>, seen: &mut i64, rows: &mut u64) {
    while let Some(batch) = closed.next_batch() {
        for change in batch.changes.iter().flat_map(|(_, changes)| changes) {
            *seen ^= change.after.map_or(0, |row| row.sum());
            *rows += 1;
        }
    }
}

pub fn new_operator(cities: &Cities) -> Operator {
    Operator::new(single_worker(), cities)
}

pub fn single_worker() -> Worker {
    let allocator =
        timely::communication::Allocator::Thread(timely::communication::allocator::Thread::default());
    Worker::new(timely::WorkerConfig::default(), allocator, Some(Instant::now()))
}

/// A worker's graph, and counts of its outputs.
pub struct RunningGraph {
    pub graph: Graph,
    pub epoch: u64,
    pub seen: i64,
    pub rows: u64,
}

impl RunningGraph {
    /// Sends an epoch, and waits until all but the newest so many are complete.
    pub fn send_epoch(
        &mut self,
        worker: &mut Worker,
        cities: &mut Vec<CityIntroduction>,
        mut arrivals: Vec<Arrival>,
        ahead: u64,
    ) {
        self.graph.send_epoch(self.epoch, cities, &mut arrivals);
        self.epoch += 1;
        while self.graph.probe.less_than(&self.epoch.saturating_sub(ahead)) {
            worker.step();
        }
        if let Some(rows) = &self.graph.rows {
            read_changes(rows, &mut self.seen, &mut self.rows);
        }
        while self.graph.serving_updates.as_ref().is_some_and(|told| told.next_batch().is_some()) {}
    }
}

/// Fills windows and state, and one minute more than the span that retention keeps.
pub fn filled_operator(cities: &Cities) -> Operator {
    let mut operator = new_operator(cities);
    for minute in 0..2 * WINDOW_MINUTES {
        operator.run_epoch(&mut cities.arrivals_of_minute(minute));
    }
    operator
}
