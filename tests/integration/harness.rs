//! Runs a log through admission and the dataflow, on any number of workers, and gives back all that came out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use swelter::admission::{Admission, AdmissionRules, Admitted};
use swelter::dataflow::heat_index::Formula;
use swelter::dataflow::rolling::Retention;
use swelter::dataflow::rolling::told::Told;
use swelter::dataflow::{self, Closed, Graph, GraphPlan};
use swelter::directory::Directory;
use swelter::model::{
    Arrival, CityId, CurrentRow, DaySummary, Duration, EventTime, OutcomeKind, Query, Question, Row, Upsert,
};

use crate::oracle::Entry;

/// Milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub formula: Formula,
    pub window: i64,
    pub lateness: i64,
    pub history: i64,
}

impl Settings {
    pub fn retention(&self) -> Retention {
        let duration = |millis| Duration::from_millis(millis).unwrap();
        Retention {
            window: duration(self.window),
            lateness: duration(self.lateness),
            history: duration(self.history),
        }
    }
}

/// Keys, and their values before and after.
type Changes<K, V> = Vec<(K, Option<V>, Option<V>)>;

/// One epoch's output of all workers; cities by their number in the log.
#[derive(Debug, Default)]
pub struct EpochOutput {
    pub rows: Changes<(u32, i64), Row>,
    pub days: Changes<(u32, i32), DaySummary>,
    pub current: Vec<(u32, CurrentRow, isize)>,
    pub hottest: Vec<(String, i64, isize)>,
    pub categories: Vec<(swelter::dataflow::rankings::CountryCategory, isize)>,
    /// By index in the log.
    pub outcomes: BTreeMap<usize, OutcomeKind>,
    /// What serving is told, in order.
    pub told: Vec<Told>,
}

/// How many cities the ranking of a test run has.
pub const HOTTEST: usize = 2;

pub fn city_name(city: u32) -> String {
    format!("city {city}")
}

pub fn arrival(upsert: &Upsert<'_>, admitted: Admitted, position: u64) -> Arrival {
    let Upsert { reading_at, event, revision, .. } = *upsert;
    Arrival { city: admitted.city, reading_at, event, revision, position }
}

pub fn city_number(name: &str) -> u32 {
    name["city ".len()..].parse().unwrap()
}

/// Epoch `k` holds the entries before `cuts[k]` that no earlier epoch holds. The city of an entry decides which worker
/// reads it.
pub fn run(log: &[Entry], settings: Settings, workers: usize, cuts: &[usize]) -> Vec<EpochOutput> {
    let (log, cuts): (Vec<Entry>, Vec<usize>) = (log.to_vec(), cuts.to_vec());
    let epochs = cuts.len();
    let failed = Arc::new(AtomicBool::new(false));
    let outputs = timely::execute(timely::Config::process(workers), move |worker| {
        let _on_panic = OnPanic(Arc::clone(&failed));
        let plan = GraphPlan {
            days: true,
            outcomes: true,
            current: true,
            hottest: Some(HOTTEST),
            by_country: Some(Directory::shipped()),
            told: true,
            ..GraphPlan::new(settings.formula, settings.retention())
        };
        let mut graph = dataflow::build(worker, &plan);
        let lateness = settings.retention().lateness;
        let mut admission = Admission::new(worker.index() as u16, AdmissionRules::new(lateness));
        let mut next = 0;
        for (epoch, &cut) in cuts.iter().enumerate() {
            let (mut cities, mut arrivals) = (Vec::new(), Vec::new());
            for (position, entry) in log.iter().enumerate().take(cut).skip(next) {
                if entry.city as usize % worker.peers() != worker.index() {
                    continue;
                }
                let name = city_name(entry.city);
                let upsert = entry.upsert(&name);
                let Ok(admitted) = admission.admit(&upsert, None) else { continue };
                if admitted.is_new {
                    cities.push(admitted.introduction(&name));
                }
                arrivals.push(arrival(&upsert, admitted, position as u64));
            }
            next = cut;
            if worker.index() == 0 {
                graph.send_aside(epoch as u64, &mut queries(epoch), &mut Vec::new(), &mut Vec::new());
            }
            graph.send(epoch as u64, &mut cities, &mut arrivals);
            worker.step();
        }
        finish(worker, graph, epochs, &failed)
    })
    .unwrap();
    let mut merged: Vec<EpochOutput> = (0..epochs).map(|_| EpochOutput::default()).collect();
    for output in outputs.join() {
        for (merged, own) in merged.iter_mut().zip(output.unwrap()) {
            merged.rows.extend(own.rows);
            merged.days.extend(own.days);
            merged.current.extend(own.current);
            merged.hottest.extend(own.hottest);
            merged.categories.extend(own.categories);
            merged.outcomes.extend(own.outcomes);
            merged.told.extend(own.told);
        }
    }
    merged
}

/// The city that is watched, and from and to which epoch.
pub const WATCHED: (u32, std::ops::Range<usize>) = (0, 1..20);

/// What is asked at an epoch: all of every city, and part of the one that is watched.
fn queries(epoch: usize) -> Vec<Query> {
    let city = |city| Arc::from(city_name(city));
    let (from, to) = (EventTime::MIN, EventTime::MAX);
    let query = |id, question| Query { id: u64::from(id), process: 0, city: city(id), question };
    let all = |id| query(id, Question::History { from, to, limit: u32::MAX });
    let mut queries: Vec<_> = (0..4).map(all).collect();
    queries.push(Query { id: 4, ..query(WATCHED.0, Question::History { from, to, limit: 3 }) });
    match epoch {
        epoch if epoch == WATCHED.1.start => {
            queries.push(Query { id: 5, ..query(WATCHED.0, Question::Watch) })
        }
        epoch if epoch == WATCHED.1.end => queries.push(query(WATCHED.0, Question::Unwatch)),
        _ => {}
    }
    queries
}

/// Says so when its thread panics.
struct OnPanic(Arc<AtomicBool>);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

fn finish(
    worker: &mut timely::worker::Worker,
    mut graph: Graph,
    epochs: usize,
    failed: &AtomicBool,
) -> Vec<EpochOutput> {
    graph.close_inputs();
    let Graph { names, rows, days, outcomes, current, hottest, by_country, told, .. } = graph;
    // Workers wait for each other, so one that panics must not leave the others waiting.
    while worker.has_dataflows() {
        worker.step_or_park(Some(std::time::Duration::from_millis(10)));
        assert!(!failed.load(Ordering::Relaxed), "another worker has panicked");
    }
    let mut out: Vec<EpochOutput> = (0..epochs).map(|_| EpochOutput::default()).collect();
    let city = |id: CityId| city_number(&names.get(id));
    each(&rows.unwrap(), |epoch, change| {
        out[epoch].rows.push(((city(change.city), change.reading_at.millis()), change.before, change.after));
    });
    each(&days.unwrap(), |epoch, change| {
        out[epoch].days.push(((city(change.city), change.day), change.before, change.after));
    });
    each(&outcomes.unwrap(), |epoch, outcome| {
        out[epoch].outcomes.insert(outcome.position as usize, outcome.kind);
    });
    each(&current.unwrap(), |epoch, ((id, row), diff)| out[epoch].current.push((city(id), row, diff)));
    each(&hottest.unwrap(), |epoch, (ranked, diff)| {
        let micros = ranked.heat_index().micros();
        out[epoch].hottest.push((ranked.city, micros, diff));
    });
    each(&by_country.unwrap(), |epoch, change| out[epoch].categories.push(change));
    each(&told.unwrap(), |epoch, told| out[epoch].told.push(told));
    out
}

/// Batches must join without a gap, and each epoch be in the batch that covers it.
fn each<C>(closed: &Closed<C>, mut each: impl FnMut(usize, C)) {
    let mut lower = 0;
    while let Some(batch) = closed.take() {
        assert_eq!(batch.lower, lower);
        assert!(batch.upper > batch.lower);
        lower = batch.upper;
        for (epoch, changes) in batch.changes {
            assert!((batch.lower..batch.upper).contains(&epoch));
            changes.into_iter().for_each(|change| each(epoch as usize, change));
        }
    }
    assert_eq!(lower, u64::MAX, "the last batch ends with the input");
}
