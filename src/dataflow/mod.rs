//! The dataflow graph of a run.
//!
//! ```text
//!   cities ───┐ exchange            ┌─ rows ─────▶ closed batches of row changes
//!             ├──by city──▶ rolling ┼─ days ─────▶ closed batches of day changes
//!   arrivals ─┤                     ├─ outcomes ─▶ closed batches of outcomes
//!   queries ──┘                     ├─ serving updates ─▶ a worker of each process: closed batches
//!   progress ──broadcast────────────┼─────────────────▶ the same, and every worker: closed batches
//!                                   ├─ encoded batches ┐ exchange
//!   dead letters ──encoded batches──┼──────────────────┴─by shard──▶ batches for durable sinks
//!                                   └─ current ───▶ hottest cities, cities by country and category
//! ```
//!
//! With the data of an epoch travel its progress reports: how far each partition is read. So the
//! consumer of a closed batch knows the input positions that the batch is complete up to, and every
//! worker knows the epochs of the others.
//!
//! No stateful operator follows rows and days. A final row is never retracted, so state of them
//! would only grow. There are at most as many current rows as cities, and ordinary differential
//! operators compute rankings and counts from those.

mod closed;
pub mod heat_index;
pub mod rankings;
pub mod rolling;

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use timely::dataflow::operators::probe::Handle as ProbeHandle;
use timely::dataflow::operators::vec::{Broadcast, Filter, Input, Map};
use timely::dataflow::operators::{Concat, Exchange, Inspect};
use timely::dataflow::{InputHandleVec, Stream};
use timely::worker::Worker;

pub use self::closed::Closed;
use self::heat_index::Formula;
use self::rankings::{CountryCategory, RankedCity};
use self::rolling::query_responder::QueryLimits;
use self::rolling::serving::{ProcessSet, ProgressReport, ServingUpdate};
use self::rolling::snapshot::InitialState;
use self::rolling::{Retention, Rolling, RollingInputs, RollingOutputs, SinkRenderer};
use crate::directory::Directory;
use crate::model::time::DayZone;
use crate::model::{
    Arrival, ArrivalOutcome, CheckpointBarrier, CityId, CityIntroduction, CityNames, CurrentRow, DayChange,
    EncodedBatch, PartitionTable, Query, Render, RowChange, SnapshotSink, Topology,
};

/// What the graph of a run computes. Outputs that are not asked for are not built.
#[derive(Clone, Debug)]
pub struct GraphPlan {
    /// The heat index of a single reading.
    pub formula: Formula,
    /// Window, lateness, and how long rows are kept.
    pub retention: Retention,
    /// Every change of a row.
    pub rows: bool,
    /// Summaries of each city and day.
    pub days: bool,
    /// The time zone whose days they are.
    pub day_zone: DayZone,
    /// The outcome of each arrival.
    pub outcomes: bool,
    /// The current row of each city.
    pub current: bool,
    /// The ranking of this many hottest cities.
    pub hottest: Option<usize>,
    /// How many cities of each country are in each category, by the countries of a directory.
    pub by_country: Option<&'static Directory<'static>>,
    /// Updates for serving: current rows, watched rows, query responses, progress.
    pub serving: bool,
    /// Processes and workers of the run: each process has a server, and each shard belongs to one
    /// worker.
    pub topology: Topology,
    /// Encoded batches for durable sinks, and the progress up to which they are complete.
    pub encoded_batches: Option<EncodedBatchesPlan>,
    /// The time zones of cities, for summaries of local days.
    pub time_zones: Option<&'static Directory<'static>>,
    /// Limits of the work on queries.
    pub query_limits: QueryLimits,
}

/// How results are encoded as records of durable sinks.
#[derive(Clone, Debug, Default)]
pub struct EncodedBatchesPlan {
    /// One for each sink of results. Without any, only the batches that are sent to the graph are
    /// routed.
    pub renderers: Vec<RendererPlan>,
    /// The partitions of the run, whose names renderers may need.
    pub partitions: PartitionTable,
}

impl EncodedBatchesPlan {
    fn make_renderers(&self) -> Vec<SinkRenderer> {
        let make = |plan: &RendererPlan| {
            let renderer = (plan.make)(&self.partitions);
            SinkRenderer::new(renderer, plan.write_touched)
        };
        self.renderers.iter().map(make).collect()
    }
}

/// Makes the renderer of a worker's results, with the partitions of the run.
pub type MakeRenderer = dyn Fn(&PartitionTable) -> Box<dyn Render> + Send + Sync;

/// How results are encoded for one sink.
#[derive(Clone)]
pub struct RendererPlan {
    pub make: Arc<MakeRenderer>,
    /// Rows that an epoch has touched are rendered, even if they did not change.
    pub write_touched: bool,
}

impl fmt::Debug for RendererPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RendererPlan").field("write_touched", &self.write_touched).finish_non_exhaustive()
    }
}

impl GraphPlan {
    /// A plan that computes row changes only.
    pub fn new(formula: Formula, retention: Retention) -> GraphPlan {
        GraphPlan {
            rows: true,
            serving: false,
            ..GraphPlan::serving_only(formula, retention, Topology::single_process(1))
        }
    }

    /// A plan that computes the updates for serving only.
    pub fn serving_only(formula: Formula, retention: Retention, topology: Topology) -> GraphPlan {
        GraphPlan {
            formula,
            retention,
            rows: false,
            days: false,
            day_zone: DayZone::default(),
            outcomes: false,
            current: false,
            hottest: None,
            by_country: None,
            serving: true,
            topology,
            encoded_batches: None,
            time_zones: None,
            query_limits: QueryLimits::default(),
        }
    }
}

/// The inputs and outputs of the graph at one worker.
pub struct Graph {
    cities: InputHandleVec<u64, CityIntroduction>,
    arrivals: InputHandleVec<u64, Arrival>,
    queries: InputHandleVec<u64, Query>,
    barriers: InputHandleVec<u64, CheckpointBarrier>,
    progress: InputHandleVec<u64, ProgressReport>,
    dead_letters: InputHandleVec<u64, EncodedBatch>,
    /// An output has the times at which logs appended the arrivals.
    wants_arrival_times: bool,
    /// The greatest epoch of a progress report, from any worker.
    newest_reported_epoch: Rc<Cell<u64>>,
    /// The epoch up to which this worker's outputs are complete.
    pub probe: ProbeHandle<u64>,
    /// The keys of this worker's cities.
    pub city_names: CityNames,
    /// Changes of rows, at the worker of their city; `None` unless the plan has `rows`.
    pub rows: Option<Closed<RowChange>>,
    /// Changes of day summaries; `None` unless the plan has `days`.
    pub days: Option<Closed<DayChange>>,
    /// The outcome of each arrival; `None` unless the plan has `outcomes`.
    pub outcomes: Option<Closed<ArrivalOutcome>>,
    /// Changes of current rows, as differences of +1 and -1; `None` unless the plan has `current`.
    pub current: Option<Closed<((CityId, CurrentRow), isize)>>,
    /// Changes of the ranking, at the one worker that ranks; `None` unless the plan has `hottest`.
    pub hottest: Option<Closed<(RankedCity, isize)>>,
    /// Changes of the counts by country and category; `None` unless the plan has `by_country`.
    pub by_country: Option<Closed<(CountryCategory, isize)>>,
    /// Updates for serving, at the worker of each process that forwards them to its server.
    pub serving_updates: Option<Closed<ServingUpdate>>,
    /// Encoded batches, at the worker that writes their shard.
    pub encoded_batches: Option<Closed<EncodedBatch>>,
    /// Progress reports of all workers, at every worker.
    pub progress_reports: Option<Closed<ProgressReport>>,
}

impl Graph {
    /// Builds the graph of `plan` in a worker, from an empty state. All workers must build the same
    /// plan, in the same order among their dataflows.
    pub fn build(worker: &mut Worker, plan: &GraphPlan) -> Graph {
        build_graph(worker, plan, InitialState::default(), None)
    }

    /// Sends this worker's arrivals of an epoch, which completes the epoch at this worker: later
    /// arrivals must be of a later epoch. A city must be introduced in the epoch of its first
    /// arrival, or before.
    pub fn send_epoch(
        &mut self,
        epoch: u64,
        cities: &mut Vec<CityIntroduction>,
        arrivals: &mut Vec<Arrival>,
    ) {
        self.advance_to(epoch);
        self.cities.send_batch(cities);
        self.arrivals.send_batch(arrivals);
        self.advance_to(epoch + 1);
    }

    /// Sends queries, progress reports and encoded dead letters of an epoch, before its arrivals
    /// are [sent](Graph::send_epoch).
    pub fn send_side_inputs(
        &mut self,
        epoch: u64,
        queries: &mut Vec<Query>,
        progress: &mut Vec<ProgressReport>,
        dead_letters: &mut Vec<EncodedBatch>,
    ) {
        self.advance_to(epoch);
        self.dead_letters.send_batch(dead_letters);
        self.queries.send_batch(queries);
        self.progress.send_batch(progress);
    }

    /// Asks all workers for a snapshot of their state after `epoch`, before its arrivals are
    /// [sent](Graph::send_epoch).
    pub fn send_barrier(&mut self, epoch: u64, barrier: CheckpointBarrier) {
        self.advance_to(epoch);
        self.barriers.send(barrier);
    }

    /// Whether arrivals should be sent with [the times](Arrival::with_arrival_time) at which their
    /// logs appended them.
    pub fn wants_arrival_times(&self) -> bool {
        self.wants_arrival_times
    }

    /// The greatest epoch of a progress report, from any worker. A worker that has not closed it
    /// yet delays the others.
    pub fn newest_reported_epoch(&self) -> u64 {
        self.newest_reported_epoch.get()
    }

    /// Promises that this worker sends nothing more before `epoch`.
    pub fn advance_to(&mut self, epoch: u64) {
        self.cities.advance_to(epoch);
        self.arrivals.advance_to(epoch);
        self.queries.advance_to(epoch);
        self.barriers.advance_to(epoch);
        self.progress.advance_to(epoch);
        self.dead_letters.advance_to(epoch);
    }

    /// Ends all inputs of this worker.
    pub fn close_inputs(&mut self) {
        // A replaced handle is dropped, which closes its input. The new handles belong to no
        // dataflow.
        (self.cities, self.arrivals) = (InputHandleVec::new(), InputHandleVec::new());
        (self.queries, self.progress) = (InputHandleVec::new(), InputHandleVec::new());
        (self.dead_letters, self.barriers) = (InputHandleVec::new(), InputHandleVec::new());
    }
}

/// The outputs that the plan and its sinks ask for.
fn wanted_outputs(plan: &GraphPlan, renderers: &[SinkRenderer]) -> RollingOutputs {
    let GraphPlan { rows, days, day_zone, outcomes, serving, .. } = *plan;
    let ranked = plan.hottest.is_some() || plan.by_country.is_some();
    RollingOutputs {
        rows,
        current: plan.current || ranked,
        days,
        day_zone,
        outcomes,
        serving,
        ..RollingOutputs::of_sinks(renderers)
    }
}

/// Builds the graph, the same on every worker, from `initial_state`. At each
/// [barrier](Graph::send_barrier) the state of the worker goes to `snapshot_sink`. A plan with days
/// has neither, because only the summaries for sinks are in checkpoints.
pub fn build_graph(
    worker: &mut Worker,
    plan: &GraphPlan,
    initial_state: InitialState,
    snapshot_sink: Option<Box<dyn SnapshotSink>>,
) -> Graph {
    let ranked = plan.hottest.is_some() || plan.by_country.is_some();
    let renderers = plan.encoded_batches.as_ref().map_or_else(Vec::new, EncodedBatchesPlan::make_renderers);
    let outputs = wanted_outputs(plan, &renderers);
    let names = CityNames::default();
    let (index, topology) = (worker.index(), plan.topology);
    worker.dataflow(|scope| {
        let (city_input, cities) = scope.new_input();
        let (arrival_input, arrivals) = scope.new_input();
        let (query_input, queries) = scope.new_input();
        let (barrier_input, barriers) = scope.new_input();
        let (progress_input, progress) = scope.new_input();
        let (dead_letter_input, dead_letters) = scope.new_input();
        let state = Rolling::new(plan.formula, plan.retention, outputs, names.clone())
            .with_directory(plan.time_zones);
        let inputs = RollingInputs { cities, arrivals, queries, barriers: barriers.broadcast() };
        let streams =
            rolling::build_rolling(inputs, state, renderers, initial_state, snapshot_sink, plan.query_limits);

        let probe = ProbeHandle::new();
        let newest_epoch = Rc::new(Cell::new(0));
        let progress = broadcast_progress(progress, Rc::clone(&newest_epoch));
        let progress_reports =
            plan.encoded_batches.is_some().then(|| closed::collect_closed(progress.clone(), &probe));
        let encoded = plan.encoded_batches.is_some().then(|| {
            let encoded = streams
                .encoded_batches
                .concat(dead_letters)
                .exchange(move |batch: &EncodedBatch| topology.writer_worker_of(batch.shard) as u64);
            closed::collect_closed(encoded, &probe)
        });
        let is_serving_worker = index == topology.serving_worker_of(topology.process_of_worker(index));
        let progress = progress.filter(move |_| is_serving_worker).map(ServingUpdate::Progress);
        let serving_updates = route_serving_updates(streams.serving_updates, topology).concat(progress);
        let current =
            plan.current.then(|| closed::collect_closed_collection(streams.current.clone(), &probe));
        let named = ranked.then(|| rankings::current_rows_by_key(streams.current, names.clone()));
        Graph {
            cities: city_input,
            arrivals: arrival_input,
            queries: query_input,
            barriers: barrier_input,
            progress: progress_input,
            dead_letters: dead_letter_input,
            wants_arrival_times: outputs.sinks.outcomes,
            newest_reported_epoch: newest_epoch,
            city_names: names,
            rows: plan.rows.then(|| closed::collect_closed(streams.rows, &probe)),
            days: plan.days.then(|| closed::collect_closed(streams.days, &probe)),
            outcomes: plan.outcomes.then(|| closed::collect_closed(streams.outcomes, &probe)),
            current,
            hottest: plan.hottest.zip(named.clone()).map(|(count, named)| {
                closed::collect_closed_collection(rankings::hottest_cities(named, count), &probe)
            }),
            by_country: plan.by_country.zip(named).map(|(directory, named)| {
                closed::collect_closed_collection(rankings::count_by_country(named, directory), &probe)
            }),
            serving_updates: plan.serving.then(|| closed::collect_closed(serving_updates, &probe)),
            encoded_batches: encoded,
            progress_reports,
            probe,
        }
    })
}

/// Sends each update to the serving workers of its processes.
fn route_serving_updates<'scope>(
    updates: Stream<'scope, u64, Vec<(ProcessSet, ServingUpdate)>>,
    topology: Topology,
) -> Stream<'scope, u64, Vec<ServingUpdate>> {
    let address = move |(processes, update): (ProcessSet, ServingUpdate)| {
        let mut update = Some(update);
        let receivers = (0..topology.processes).filter(move |process| processes >> process & 1 == 1);
        let mut receivers = receivers.peekable();
        std::iter::from_fn(move || {
            let process = receivers.next()?;
            // The last receiver gets the update itself.
            let update = if receivers.peek().is_some() { update.clone() } else { update.take() };
            update.map(|update| (topology.serving_worker_of(process) as u64, update))
        })
    };
    updates.flat_map(address).exchange(|(worker, _)| *worker).map(|(_, update)| update)
}

/// Sends the progress reports of each worker to all workers, and notes the newest epoch.
fn broadcast_progress<'scope>(
    progress: Stream<'scope, u64, Vec<ProgressReport>>,
    newest_epoch: Rc<Cell<u64>>,
) -> Stream<'scope, u64, Vec<ProgressReport>> {
    progress.broadcast().inspect(move |report| newest_epoch.set(newest_epoch.get().max(report.epoch)))
}
