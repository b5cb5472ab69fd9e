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
use self::rankings::{CountryCategory, Ranked};
use self::rolling::answers::AnswerLimits;
use self::rolling::snapshot::Resumed;
use self::rolling::told::{Processes, Read, Told};
use self::rolling::{Inputs, Retention, Rolling, Wanted};
use crate::directory::Directory;
use crate::model::time::DayZone;
use crate::model::{
    Arrival, Change, CityId, CityName, CityNames, CurrentRow, DayChange, Mark, Outcome, Parcel, Query,
    Render, Snapshots, Topology,
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
    pub told: bool,
    /// Where it runs: each process has a server, and each worker the shards that are its own.
    pub topology: Topology,
    /// What durable sinks need: parcels, and the progress that they are complete up to.
    pub parcels: Option<ParcelsPlan>,
    pub answers: AnswerLimits,
}

/// How results become the records of durable sinks.
#[derive(Clone, Default)]
pub struct ParcelsPlan {
    /// Makes what writes a worker's rows; without it there are only the parcels that come in.
    pub render: Option<Arc<dyn Fn() -> Box<dyn Render> + Send + Sync>>,
    /// Current rows are written, too.
    pub current: bool,
    /// Rows that an epoch has touched are written, changed or not.
    pub touched: bool,
}

impl fmt::Debug for ParcelsPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParcelsPlan").field("current", &self.current).finish_non_exhaustive()
    }
}

impl GraphPlan {
    /// Row changes only.
    pub fn new(formula: Formula, retention: Retention) -> GraphPlan {
        GraphPlan { rows: true, told: false, ..GraphPlan::serving(formula, retention, Topology::alone(1)) }
    }

    /// What serving needs only.
    pub fn serving(formula: Formula, retention: Retention, topology: Topology) -> GraphPlan {
        let (rows, days, outcomes, current, hottest, by_country) = (false, false, false, false, None, None);
        let (parcels, answers) = (None, AnswerLimits::default());
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
            told: true,
            topology,
            parcels,
            answers,
        }
    }
}

/// One worker's ends of the graph.
pub struct Graph {
    cities: InputHandleVec<u64, CityName>,
    arrivals: InputHandleVec<u64, Arrival>,
    queries: InputHandleVec<u64, Query>,
    marks: InputHandleVec<u64, Mark>,
    progress: InputHandleVec<u64, Read>,
    letters: InputHandleVec<u64, Parcel>,
    /// The greatest epoch at which any worker has said its progress.
    heard: Rc<Cell<u64>>,
    /// How far this worker's outputs are complete.
    pub probe: ProbeHandle<u64>,
    /// The keys of this worker's cities.
    pub names: CityNames,
    pub rows: Option<Closed<Change>>,
    pub days: Option<Closed<DayChange>>,
    pub outcomes: Option<Closed<Outcome>>,
    pub current: Option<Closed<((CityId, CurrentRow), isize)>>,
    /// At the worker that ranks: the others get nothing.
    pub hottest: Option<Closed<(Ranked, isize)>>,
    pub by_country: Option<Closed<(CountryCategory, isize)>>,
    /// At the worker of each process that tells its server.
    pub told: Option<Closed<Told>>,
    /// At the worker that writes the shard.
    pub parcels: Option<Closed<Parcel>>,
    /// How far partitions were read, at every worker.
    pub read: Option<Closed<Read>>,
}

impl Graph {
    /// Sends this worker's arrivals of an epoch, which is then complete here: later ones must be of a later epoch. A city must
    /// be introduced no later than with its first arrival.
    pub fn send(&mut self, epoch: u64, cities: &mut Vec<CityName>, arrivals: &mut Vec<Arrival>) {
        self.advance_to(epoch);
        self.cities.send_batch(cities);
        self.arrivals.send_batch(arrivals);
        self.advance_to(epoch + 1);
    }

    /// Sends queries, how far partitions have been read, and what was refused, as parcels, for an epoch whose arrivals are [sent](Graph::send) next.
    pub fn send_aside(
        &mut self,
        epoch: u64,
        queries: &mut Vec<Query>,
        progress: &mut Vec<Read>,
        letters: &mut Vec<Parcel>,
    ) {
        self.advance_to(epoch);
        self.letters.send_batch(letters);
        self.queries.send_batch(queries);
        self.progress.send_batch(progress);
    }

    /// Asks all workers for a snapshot of their state after `epoch`, whose arrivals are [sent](Graph::send) next.
    pub fn mark(&mut self, epoch: u64, mark: Mark) {
        self.advance_to(epoch);
        self.marks.send(mark);
    }

    /// The greatest epoch at which any worker has said its progress: who has not closed it yet holds the others up.
    pub fn heard(&self) -> u64 {
        self.heard.get()
    }

    /// Says that nothing more comes from this worker before `epoch`.
    pub fn advance_to(&mut self, epoch: u64) {
        self.cities.advance_to(epoch);
        self.arrivals.advance_to(epoch);
        self.queries.advance_to(epoch);
        self.marks.advance_to(epoch);
        self.progress.advance_to(epoch);
        self.letters.advance_to(epoch);
    }

    /// Says that nothing more comes from this worker.
    pub fn close_inputs(&mut self) {
        // A handle that is replaced is dropped, which closes its input; the fresh ones lead nowhere.
        (self.cities, self.arrivals) = (InputHandleVec::new(), InputHandleVec::new());
        (self.queries, self.progress) = (InputHandleVec::new(), InputHandleVec::new());
        (self.letters, self.marks) = (InputHandleVec::new(), InputHandleVec::new());
    }
}

/// Builds the graph, the same on every worker, with what is `resumed` as the state that it begins with. `snapshots` takes the state
/// at each [mark](Graph::mark). A plan with days has neither: summaries of days are in no checkpoint.
pub fn build(
    worker: &mut Worker,
    plan: &GraphPlan,
    resumed: Resumed,
    snapshots: Option<Box<dyn Snapshots>>,
) -> Graph {
    let ranked = plan.hottest.is_some() || plan.by_country.is_some();
    let GraphPlan { rows, days, day_zone, outcomes, told, .. } = *plan;
    let written = plan.parcels.as_ref().filter(|parcels| parcels.render.is_some());
    let current = plan.current || ranked || written.is_some_and(|parcels| parcels.current);
    let touched = written.is_some_and(|parcels| parcels.touched);
    let wanted = Wanted { rows, current, days, day_zone, outcomes, told, touched };
    let render = written.and_then(|parcels| parcels.render.as_ref().map(|make| make()));
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
        let inputs = Inputs { cities, arrivals, queries, marks: marks.broadcast() };
        let streams = rolling::rolling(inputs, state, render, resumed, snapshots, plan.answers);

        let probe = ProbeHandle::new();
        let heard = Rc::new(Cell::new(0));
        let progress = hear(progress, Rc::clone(&heard));
        let read = plan.parcels.is_some().then(|| closed::close(progress.clone(), &probe));
        let parcels = plan.parcels.is_some().then(|| {
            let parcels = streams
                .parcels
                .concat(letters)
                .exchange(move |parcel: &Parcel| topology.writer_of(parcel.shard) as u64);
            closed::close(parcels, &probe)
        });
        let tells = index == topology.teller_of(topology.process_of(index));
        let progress = progress.filter(move |_| tells).map(Told::Read);
        let told = tell(streams.told, topology).concat(progress);
        let current = plan.current.then(|| closed::close_collection(streams.current.clone(), &probe));
        let named = ranked.then(|| rankings::named(streams.current, names.clone()));
        Graph {
            cities: city_input,
            arrivals: arrival_input,
            queries: query_input,
            marks: mark_input,
            progress: progress_input,
            letters: letter_input,
            heard,
            names,
            rows: plan.rows.then(|| closed::close(streams.rows, &probe)),
            days: plan.days.then(|| closed::close(streams.days, &probe)),
            outcomes: plan.outcomes.then(|| closed::close(streams.outcomes, &probe)),
            current,
            hottest: plan
                .hottest
                .zip(named.clone())
                .map(|(count, named)| closed::close_collection(rankings::hottest(named, count), &probe)),
            by_country: plan.by_country.zip(named).map(|(directory, named)| {
                closed::close_collection(rankings::by_country(named, directory), &probe)
            }),
            told: plan.told.then(|| closed::close(told, &probe)),
            parcels,
            read,
            probe,
        }
    })
}

/// Takes what is told to the workers that tell the servers.
fn tell<'scope>(
    told: Stream<'scope, u64, Vec<(Processes, Told)>>,
    topology: Topology,
) -> Stream<'scope, u64, Vec<Told>> {
    let each = move |(processes, told): (Processes, Told)| {
        let mut told = Some(told);
        let chosen = (0..topology.processes).filter(move |process| processes >> process & 1 == 1);
        let mut chosen = chosen.peekable();
        std::iter::from_fn(move || {
            let process = chosen.next()?;
            let told = if chosen.peek().is_some() { told.clone() } else { told.take() };
            told.map(|told| (topology.teller_of(process) as u64, told))
        })
    };
    told.flat_map(each).exchange(|(worker, _)| *worker).map(|(_, told)| told)
}

/// Tells every worker of the progress of all.
fn hear<'scope>(
    progress: Stream<'scope, u64, Vec<Read>>,
    heard: Rc<Cell<u64>>,
) -> Stream<'scope, u64, Vec<Read>> {
    progress.broadcast().inspect(move |read| heard.set(heard.get().max(read.epoch)))
}
