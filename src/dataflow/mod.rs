//! The whole graph on one screen.
//!
//! ```text
//!   cities ───┐ exchange            ┌─ rows ─────▶ closed batches of row changes
//!             ├──by city──▶ rolling ┼─ days ─────▶ closed batches of day changes
//!   arrivals ─┤                     ├─ outcomes ─▶ closed batches of outcomes
//!   queries ──┘                     ├─ told ─────▶ a worker of each process: closed batches for serving
//!   progress ──broadcast────────────┼────────────▶ the same, and every worker: closed batches of progress
//!                                   ├─ parcels ┐ exchange
//!   dead letters ──parcels──────────┼──────────┴─by shard──▶ closed batches for durable sinks
//!                                   └─ current ──▶ hottest cities, cities by country and category
//! ```
//!
//! Progress says of each partition how far an epoch reads, beside the epoch's data: so whoever has a closed batch knows which
//! input it is complete up to, and every worker hears which epochs the others use.
//!
//! Nothing stateful stands on rows and days: what is final is never retracted, so state on them would only grow. The
//! current rows are bounded by the number of cities, and ordinary differential operators build the rest from them.

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
    EncodedBatch, Query, Render, RowChange, SnapshotSink, Topology,
};

/// What a run's graph computes. What is not asked for is not built.
#[derive(Clone, Debug)]
pub struct GraphPlan {
    pub formula: Formula,
    pub retention: Retention,
    /// Every change of a row.
    pub rows: bool,
    /// Summaries of each city and UTC day.
    pub days: bool,
    /// Whose days they are.
    pub day_zone: DayZone,
    /// What became of each arrival.
    pub outcomes: bool,
    /// The current row of each city.
    pub current: bool,
    /// The hottest so many cities.
    pub hottest: Option<usize>,
    /// How many cities of each country are in each category, by the countries of a directory.
    pub by_country: Option<&'static Directory<'static>>,
    /// What serving needs: current rows, watched rows, answers, progress.
    pub serving: bool,
    /// Where it runs: each process has a server, and each worker the shards that are its own.
    pub topology: Topology,
    /// What durable sinks need: parcels, and the progress that they are complete up to.
    pub encoded_batches: Option<EncodedBatchesPlan>,
    pub query_limits: QueryLimits,
}

/// How results become the records of durable sinks.
#[derive(Clone, Debug, Default)]
pub struct EncodedBatchesPlan {
    /// One for each sink of results; without any there are only the batches that come in.
    pub renderers: Vec<RendererPlan>,
}

/// What encodes results for one sink.
#[derive(Clone)]
pub struct RendererPlan {
    /// Makes what encodes a worker's results.
    pub make: Arc<dyn Fn() -> Box<dyn Render> + Send + Sync>,
    /// Rows that an epoch has touched are written, changed or not.
    pub write_touched: bool,
}

impl fmt::Debug for RendererPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RendererPlan").field("write_touched", &self.write_touched).finish_non_exhaustive()
    }
}

impl GraphPlan {
    /// Row changes only.
    pub fn new(formula: Formula, retention: Retention) -> GraphPlan {
        GraphPlan {
            rows: true,
            serving: false,
            ..GraphPlan::serving_only(formula, retention, Topology::single_process(1))
        }
    }

    /// What serving needs only.
    pub fn serving_only(formula: Formula, retention: Retention, topology: Topology) -> GraphPlan {
        let (rows, days, outcomes, current, hottest, by_country) = (false, false, false, false, None, None);
        let (parcels, answers) = (None, QueryLimits::default());
        GraphPlan {
            formula,
            retention,
            rows,
            days,
            day_zone: DayZone::default(),
            outcomes,
            current,
            hottest,
            by_country,
            serving: true,
            topology,
            encoded_batches: parcels,
            query_limits: answers,
        }
    }
}

/// One worker's ends of the graph.
pub struct Graph {
    cities: InputHandleVec<u64, CityIntroduction>,
    arrivals: InputHandleVec<u64, Arrival>,
    queries: InputHandleVec<u64, Query>,
    barriers: InputHandleVec<u64, CheckpointBarrier>,
    progress: InputHandleVec<u64, ProgressReport>,
    dead_letters: InputHandleVec<u64, EncodedBatch>,
    /// The greatest epoch at which any worker has said its progress.
    newest_reported_epoch: Rc<Cell<u64>>,
    /// How far this worker's outputs are complete.
    pub probe: ProbeHandle<u64>,
    /// The keys of this worker's cities.
    pub city_names: CityNames,
    pub rows: Option<Closed<RowChange>>,
    pub days: Option<Closed<DayChange>>,
    pub outcomes: Option<Closed<ArrivalOutcome>>,
    pub current: Option<Closed<((CityId, CurrentRow), isize)>>,
    /// At the worker that ranks: the others get nothing.
    pub hottest: Option<Closed<(RankedCity, isize)>>,
    pub by_country: Option<Closed<(CountryCategory, isize)>>,
    /// At the worker of each process that tells its server.
    pub serving_updates: Option<Closed<ServingUpdate>>,
    /// At the worker that writes the shard.
    pub encoded_batches: Option<Closed<EncodedBatch>>,
    /// How far partitions were read, at every worker.
    pub progress_reports: Option<Closed<ProgressReport>>,
}

impl Graph {
    /// Sends this worker's arrivals of an epoch, which is then complete here: later ones must be of a later epoch. A city must
    /// be introduced no later than with its first arrival.
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

    /// Sends queries, how far partitions have been read, and what was refused, as parcels, for an epoch whose arrivals are [sent](Graph::send) next.
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

    /// Asks all workers for a snapshot of their state after `epoch`, whose arrivals are [sent](Graph::send) next.
    pub fn send_barrier(&mut self, epoch: u64, mark: CheckpointBarrier) {
        self.advance_to(epoch);
        self.barriers.send(mark);
    }

    /// The greatest epoch at which any worker has said its progress: who has not closed it yet holds the others up.
    pub fn newest_reported_epoch(&self) -> u64 {
        self.newest_reported_epoch.get()
    }

    /// Says that nothing more comes from this worker before `epoch`.
    pub fn advance_to(&mut self, epoch: u64) {
        self.cities.advance_to(epoch);
        self.arrivals.advance_to(epoch);
        self.queries.advance_to(epoch);
        self.barriers.advance_to(epoch);
        self.progress.advance_to(epoch);
        self.dead_letters.advance_to(epoch);
    }

    /// Says that nothing more comes from this worker.
    pub fn close_inputs(&mut self) {
        // A handle that is replaced is dropped, which closes its input; the fresh ones lead nowhere.
        (self.cities, self.arrivals) = (InputHandleVec::new(), InputHandleVec::new());
        (self.queries, self.progress) = (InputHandleVec::new(), InputHandleVec::new());
        (self.dead_letters, self.barriers) = (InputHandleVec::new(), InputHandleVec::new());
    }
}

/// What the operator gives out: what the plan asks for, and what its sinks need.
fn wanted_outputs(plan: &GraphPlan, renderers: &[SinkRenderer]) -> RollingOutputs {
    let GraphPlan { rows, days, day_zone, outcomes, serving, .. } = *plan;
    let ranked = plan.hottest.is_some() || plan.by_country.is_some();
    let sinks = RollingOutputs::of_sinks(renderers);
    RollingOutputs {
        rows,
        current: plan.current || ranked || sinks.current,
        days: days || sinks.days,
        day_zone,
        outcomes: outcomes || sinks.outcomes,
        serving,
        touched_unchanged: sinks.touched_unchanged,
    }
}

/// Builds the graph, the same on every worker, with what is `resumed` as the state that it begins with. `snapshots` takes the state
/// at each [mark](Graph::mark). A plan with days has neither: summaries of days are in no checkpoint.
pub fn build_graph(
    worker: &mut Worker,
    plan: &GraphPlan,
    initial_state: InitialState,
    snapshot_sink: Option<Box<dyn SnapshotSink>>,
) -> Graph {
    let ranked = plan.hottest.is_some() || plan.by_country.is_some();
    let plans = plan.encoded_batches.iter().flat_map(|batches| &batches.renderers);
    let renderers: Vec<SinkRenderer> =
        plans.map(|plan| SinkRenderer::new((plan.make)(), plan.write_touched)).collect();
    let wanted = wanted_outputs(plan, &renderers);
    let names = CityNames::default();
    let (index, topology) = (worker.index(), plan.topology);
    worker.dataflow(|scope| {
        let (city_input, cities) = scope.new_input();
        let (arrival_input, arrivals) = scope.new_input();
        let (query_input, queries) = scope.new_input();
        let (mark_input, marks) = scope.new_input();
        let (progress_input, progress) = scope.new_input();
        let (letter_input, letters) = scope.new_input();
        let state = Rolling::new(plan.formula, plan.retention, wanted, names.clone());
        let inputs = RollingInputs { cities, arrivals, queries, barriers: marks.broadcast() };
        let streams =
            rolling::build_rolling(inputs, state, renderers, initial_state, snapshot_sink, plan.query_limits);

        let probe = ProbeHandle::new();
        let heard = Rc::new(Cell::new(0));
        let progress = broadcast_progress(progress, Rc::clone(&heard));
        let read = plan.encoded_batches.is_some().then(|| closed::collect_closed(progress.clone(), &probe));
        let parcels = plan.encoded_batches.is_some().then(|| {
            let parcels = streams
                .encoded_batches
                .concat(letters)
                .exchange(move |parcel: &EncodedBatch| topology.writer_worker_of(parcel.shard) as u64);
            closed::collect_closed(parcels, &probe)
        });
        let tells = index == topology.serving_worker_of(topology.process_of_worker(index));
        let progress = progress.filter(move |_| tells).map(ServingUpdate::Progress);
        let told = route_serving_updates(streams.serving_updates, topology).concat(progress);
        let current =
            plan.current.then(|| closed::collect_closed_collection(streams.current.clone(), &probe));
        let named = ranked.then(|| rankings::current_rows_by_key(streams.current, names.clone()));
        Graph {
            cities: city_input,
            arrivals: arrival_input,
            queries: query_input,
            barriers: mark_input,
            progress: progress_input,
            dead_letters: letter_input,
            newest_reported_epoch: heard,
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
            serving_updates: plan.serving.then(|| closed::collect_closed(told, &probe)),
            encoded_batches: parcels,
            progress_reports: read,
            probe,
        }
    })
}

/// Takes what is told to the workers that tell the servers.
fn route_serving_updates<'scope>(
    told: Stream<'scope, u64, Vec<(ProcessSet, ServingUpdate)>>,
    topology: Topology,
) -> Stream<'scope, u64, Vec<ServingUpdate>> {
    let each = move |(processes, told): (ProcessSet, ServingUpdate)| {
        let mut told = Some(told);
        let chosen = (0..topology.processes).filter(move |process| processes >> process & 1 == 1);
        let mut chosen = chosen.peekable();
        std::iter::from_fn(move || {
            let process = chosen.next()?;
            let told = if chosen.peek().is_some() { told.clone() } else { told.take() };
            told.map(|told| (topology.serving_worker_of(process) as u64, told))
        })
    };
    told.flat_map(each).exchange(|(worker, _)| *worker).map(|(_, told)| told)
}

/// Tells every worker of the progress of all.
fn broadcast_progress<'scope>(
    progress: Stream<'scope, u64, Vec<ProgressReport>>,
    heard: Rc<Cell<u64>>,
) -> Stream<'scope, u64, Vec<ProgressReport>> {
    progress.broadcast().inspect(move |read| heard.set(heard.get().max(read.epoch)))
}
