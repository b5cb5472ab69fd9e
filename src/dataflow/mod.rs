//! The whole graph on one screen.
//!
//! ```text
//!   cities ───┐ exchange            ┌─ rows ─────▶ closed batches of row changes
//!             ├──by city──▶ rolling ┼─ days ─────▶ closed batches of day changes
//!   arrivals ─┘                     ├─ outcomes ─▶ closed batches of outcomes
//!                                   └─ current ──▶ hottest cities, cities by country and category
//! ```
//!
//! Nothing stateful stands on rows and days: what is final is never retracted, so state on them would only grow. The
//! current rows are bounded by the number of cities, and ordinary differential operators build the rest from them.

mod closed;
pub mod heat_index;
pub mod rankings;
pub mod rolling;

use timely::dataflow::InputHandleVec;
use timely::dataflow::operators::probe::Handle as ProbeHandle;
use timely::dataflow::operators::vec::Input;
use timely::worker::Worker;

pub use self::closed::Closed;
use self::heat_index::Formula;
use self::rankings::{CountryCategory, Ranked};
use self::rolling::{Retention, Rolling, Wanted};
use crate::directory::Directory;
use crate::model::{Arrival, Change, CityId, CityName, CityNames, CurrentRow, DayChange, Outcome};

/// What a run's graph computes. What is not asked for is not built.
#[derive(Clone, Debug)]
pub struct GraphPlan {
    pub formula: Formula,
    pub retention: Retention,
    /// Summaries of each city and UTC day.
    pub days: bool,
    /// What became of each arrival.
    pub outcomes: bool,
    /// The current row of each city.
    pub current: bool,
    /// The hottest so many cities.
    pub hottest: Option<usize>,
    /// How many cities of each country are in each category, by the countries of a directory.
    pub by_country: Option<&'static Directory<'static>>,
}

impl GraphPlan {
    /// Row changes only.
    pub fn new(formula: Formula, retention: Retention) -> GraphPlan {
        let (days, outcomes, current, hottest, by_country) = (false, false, false, None, None);
        GraphPlan { formula, retention, days, outcomes, current, hottest, by_country }
    }
}

/// One worker's ends of the graph.
pub struct Graph {
    cities: InputHandleVec<u64, CityName>,
    arrivals: InputHandleVec<u64, Arrival>,
    /// How far this worker's outputs are complete.
    pub probe: ProbeHandle<u64>,
    /// The keys of this worker's cities.
    pub names: CityNames,
    pub rows: Closed<Change>,
    pub days: Option<Closed<DayChange>>,
    pub outcomes: Option<Closed<Outcome>>,
    pub current: Option<Closed<((CityId, CurrentRow), isize)>>,
    /// At the worker that ranks: the others get nothing.
    pub hottest: Option<Closed<(Ranked, isize)>>,
    pub by_country: Option<Closed<(CountryCategory, isize)>>,
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

    /// Says that nothing more comes from this worker before `epoch`.
    pub fn advance_to(&mut self, epoch: u64) {
        self.cities.advance_to(epoch);
        self.arrivals.advance_to(epoch);
    }

    /// Says that nothing more comes from this worker.
    pub fn close_inputs(&mut self) {
        // A handle that is replaced is dropped, which closes its input; the fresh ones lead nowhere.
        (self.cities, self.arrivals) = (InputHandleVec::new(), InputHandleVec::new());
    }
}

/// Builds the graph, the same on every worker.
pub fn build(worker: &mut Worker, plan: &GraphPlan) -> Graph {
    let ranked = plan.hottest.is_some() || plan.by_country.is_some();
    let wanted = Wanted { current: plan.current || ranked, days: plan.days, outcomes: plan.outcomes };
    let names = CityNames::default();
    worker.dataflow(|scope| {
        let (city_input, cities) = scope.new_input();
        let (arrival_input, arrivals) = scope.new_input();
        let state = Rolling::new(plan.formula, plan.retention, wanted, names.clone());
        let streams = rolling::rolling(cities, arrivals, state);

        let probe = ProbeHandle::new();
        let current = plan.current.then(|| closed::close_collection(streams.current.clone(), &probe));
        let named = ranked.then(|| rankings::named(streams.current, names.clone()));
        Graph {
            cities: city_input,
            arrivals: arrival_input,
            names,
            rows: closed::close(streams.rows, &probe),
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
            probe,
        }
    })
}
