//! Runs a log through admission and the dataflow, on any number of workers, and collects all
//! outputs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use swelter::internals::admission::{Admission, AdmissionRules};
use swelter::internals::dataflow::rolling::query_responder::QueryLimits;
use swelter::internals::dataflow::rolling::serving::ServingUpdate;
use swelter::internals::dataflow::rolling::snapshot::InitialState;
use swelter::internals::dataflow::{self, Closed, Graph, GraphPlan};
use swelter::internals::directory::{Directory, PlacesFile};
use swelter::internals::model::{
    AnswerPiece, Arrival, ArrivalOutcome, CheckpointBarrier, CityId, CityIntroduction, CityKey, CitySnapshot,
    CurrentRow, EventTime, PeriodSummary, Query, QueryKind, RemainingRows, RenderWants, Row, SnapshotSink,
    state_shard,
};

use super::entries::{LogEntry, RunSettings, city_name, city_number};
use super::recording_sink::{RecordedChanges, SinkChange};

/// Keys, and their values before and after.
type ChangeList<K, V> = Vec<(K, Option<V>, Option<V>)>;

/// One epoch's output of all workers; cities by their number in the log.
#[derive(Debug, Default)]
pub struct EpochOutput {
    pub rows: ChangeList<(u32, i64), Row>,
    pub days: ChangeList<(u32, i32), PeriodSummary>,
    pub current: Vec<(u32, CurrentRow, isize)>,
    pub hottest: Vec<(String, i64, isize)>,
    pub categories: Vec<(swelter::internals::dataflow::rankings::CountryCategory, isize)>,
    /// With the city's number as its id.
    pub outcomes: Vec<ArrivalOutcome>,
    /// Serving updates, in order.
    pub serving_updates: Vec<ServingUpdate>,
    /// What the sink of the leg was given, by the number of the city.
    pub sink_changes: Vec<(u32, SinkChange)>,
}

impl EpochOutput {
    /// Adds what another worker has put out in the same epoch.
    fn extend(&mut self, other: EpochOutput) {
        self.rows.extend(other.rows);
        self.days.extend(other.days);
        self.current.extend(other.current);
        self.hottest.extend(other.hottest);
        self.categories.extend(other.categories);
        self.outcomes.extend(other.outcomes);
        self.serving_updates.extend(other.serving_updates);
    }
}

/// The time at which the log of test runs appended an entry; it does not know the time of each.
pub fn arrival_time(position: usize) -> Option<EventTime> {
    EventTime::from_millis(position as i64 * 17).filter(|_| position % 5 != 4)
}

/// The zones of the cities of test runs. City 2 has none.
pub const CITY_ZONES: [(u32, &str); 3] =
    [(0, "America/New_York"), (1, "Pacific/Apia"), (3, "America/Sao_Paulo")];

/// A directory of these cities.
fn zoned_cities() -> &'static Directory<'static> {
    static DIRECTORY: LazyLock<&'static Directory<'static>> = LazyLock::new(|| {
        let mut places = "id,name,country,latitude,longitude,time_zone\n".to_owned();
        for (city, zone) in CITY_ZONES {
            places += &format!("{},test,,,,{zone}\n", city_name(city));
        }
        Directory::shipped_with(PlacesFile::from_csv(&places).unwrap())
    });
    *DIRECTORY
}

/// How many cities the ranking of a test run has.
pub const HOTTEST_CITIES: usize = 2;

/// Epoch `k` holds the entries before `cuts[k]` that no earlier epoch holds. The city of an entry
/// decides which worker reads it.
pub fn run_log(
    log: &[LogEntry],
    settings: RunSettings,
    workers: usize,
    cuts: &[usize],
    slice_rows: Option<usize>,
) -> Vec<EpochOutput> {
    let leg = RunLeg { workers, days: true, slice_rows, ..RunLeg::default() };
    run_leg(log, settings, cuts, leg).0
}

/// A run, perhaps resumed from the state of another one.
#[derive(Clone, Default)]
pub struct RunLeg {
    pub workers: usize,
    pub days: bool,
    /// No sink wants rows.
    pub serving_only: bool,
    /// What a sink wants, if there is one. Nothing else is computed then.
    pub sink: Option<RenderWants>,
    /// The epoch whose state is resumed, with that state: epochs begin there, without arrivals.
    pub resumed: Option<(usize, Vec<CitySnapshot>)>,
    /// Rows of answers that a worker makes at a time; any number without.
    pub slice_rows: Option<usize>,
    /// The epochs after which a snapshot is taken, and how often the sink then reports that its
    /// buffer is full.
    pub barriers: BTreeMap<usize, (CheckpointBarrier, u32)>,
}

/// A snapshot of one worker.
#[derive(Debug)]
pub struct TakenSnapshot {
    pub barrier: CheckpointBarrier,
    pub epoch: u64,
    pub cities: Vec<CitySnapshot>,
    pub ended: bool,
}

/// Takes the snapshots of a worker.
struct SnapshotTaker {
    index: u32,
    peers: u32,
    barriers: BTreeMap<usize, (CheckpointBarrier, u32)>,
    taken: Rc<RefCell<Vec<TakenSnapshot>>>,
    full: Cell<u32>,
}

impl SnapshotSink for SnapshotTaker {
    fn begin_snapshot(&mut self, mark: CheckpointBarrier, epoch: u64) {
        let mut taken = self.taken.borrow_mut();
        assert!(taken.last().is_none_or(|last| last.ended), "one at a time");
        assert_eq!(self.barriers[&(epoch as usize)].0, mark);
        self.full.set(self.barriers[&(epoch as usize)].1);
        taken.push(TakenSnapshot { barrier: mark, epoch, cities: Vec::new(), ended: false });
    }

    fn write_city(&mut self, city: CitySnapshot) {
        assert_eq!(state_shard(CityKey::hash(&city.name)) % self.peers, self.index, "whole shards");
        let mut taken = self.taken.borrow_mut();
        let running = taken.last_mut().filter(|last| !last.ended).expect("it has begun");
        assert!(running.cities.iter().all(|given| given.name != city.name), "each city at most once");
        running.cities.push(city);
    }

    fn finish_snapshot(&mut self) {
        let mut taken = self.taken.borrow_mut();
        let running = taken.last_mut().expect("it has begun");
        assert!(!std::mem::replace(&mut running.ended, true));
    }

    fn is_full(&self) -> bool {
        let left = self.full.get();
        self.full.set(left.saturating_sub(1));
        left > 0
    }
}

impl RunLeg {
    /// The epoch from which a worker resumes, and its part of the state.
    fn initial_state(&self, worker: u32, workers: u32) -> (usize, InitialState) {
        let Some((epoch, cities)) = &self.resumed else { return (0, InitialState::default()) };
        let own = |city: &&CitySnapshot| state_shard(CityKey::hash(&city.name)) % workers == worker;
        let cities = cities.iter().filter(own).cloned().collect();
        (*epoch, InitialState { epoch: *epoch as u64, cities })
    }
}

/// Everything that a graph can compute, unless the leg wants less.
fn graph_plan(settings: RunSettings, leg: &RunLeg, recorded: &RecordedChanges) -> GraphPlan {
    if let Some(wants) = leg.sink {
        return GraphPlan {
            rows: false,
            encoded_batches: Some(recorded.sink_plan(wants)),
            time_zones: Some(zoned_cities()),
            ..GraphPlan::new(settings.formula, settings.retention())
        };
    }
    GraphPlan {
        rows: !leg.serving_only,
        days: leg.days,
        outcomes: true,
        current: true,
        hottest: Some(HOTTEST_CITIES),
        by_country: Some(Directory::shipped()),
        serving: true,
        query_limits: QueryLimits {
            slice_rows: leg.slice_rows.unwrap_or(usize::MAX),
            slice_time: std::time::Duration::from_secs(1),
            ..QueryLimits::default()
        },
        ..GraphPlan::new(settings.formula, settings.retention())
    }
}

/// Admits those entries of an epoch that a worker reads.
fn admit_epoch(
    log: &[LogEntry],
    epoch: Range<usize>,
    is_own: impl Fn(&LogEntry) -> bool,
    admission: &mut Admission,
) -> (Vec<CityIntroduction>, Vec<Arrival>) {
    let (mut cities, mut arrivals) = (Vec::new(), Vec::new());
    for position in epoch {
        let entry = &log[position];
        if !is_own(entry) {
            continue;
        }
        let name = city_name(entry.city);
        let upsert = entry.upsert(&name);
        let Ok(admitted) = admission.admit(&upsert, None) else { continue };
        if admitted.is_new {
            cities.push(admitted.introduction(&name));
        }
        let arrived = arrival_time(position);
        arrivals.push(admitted.arrival(&upsert, position as u64).with_arrival_time(arrived));
    }
    (cities, arrivals)
}

/// The outputs of each epoch, with state that is taken and resumed.
pub fn run_leg(
    log: &[LogEntry],
    settings: RunSettings,
    cuts: &[usize],
    leg: RunLeg,
) -> (Vec<EpochOutput>, Vec<TakenSnapshot>) {
    let (log, cuts): (Vec<LogEntry>, Vec<usize>) = (log.to_vec(), cuts.to_vec());
    let epochs = cuts.len();
    let failed = Arc::new(AtomicBool::new(false));
    let recorded = RecordedChanges::default();
    let recorded_by_workers = recorded.clone();
    let outputs = timely::execute(timely::Config::process(leg.workers), move |worker| {
        let _on_panic = PanicFlag(Arc::clone(&failed));
        let plan = graph_plan(settings, &leg, &recorded_by_workers);
        let (index, peers) = (worker.index() as u32, worker.peers() as u32);
        let taken = Rc::default();
        let (marks, full) = (leg.barriers.clone(), Cell::default());
        let taker = SnapshotTaker { index, peers, barriers: marks, taken: Rc::clone(&taken), full };
        let (first, resumed) = leg.initial_state(index, peers);
        let mut graph = dataflow::build_graph(worker, &plan, resumed, Some(Box::new(taker)));
        let lateness = settings.retention().lateness;
        let mut admission = Admission::new(worker.index() as u16, AdmissionRules::new(lateness));
        let mut next = 0;
        let (mut cities, mut arrivals) = (Vec::new(), Vec::new());
        for (epoch, &cut) in cuts.iter().enumerate() {
            let own = |entry: &LogEntry| entry.city as usize % worker.peers() == worker.index();
            let (introduced, admitted) = admit_epoch(&log, next..cut, own, &mut admission);
            cities.extend(introduced);
            arrivals.extend(admitted);
            next = cut;
            if leg.resumed.is_some() && epoch <= first {
                arrivals.clear();
            }
            if epoch < first {
                continue;
            }
            if worker.index() == 0 && leg.sink.is_none() {
                let mut queries = queries_of_epoch(epoch, epoch + 1 == epochs);
                queries.extend(explain_queries(&log, &cuts, epoch));
                graph.send_side_inputs(epoch as u64, &mut queries, &mut Vec::new(), &mut Vec::new());
            }
            if let (0, Some((mark, _))) = (worker.index(), leg.barriers.get(&epoch)) {
                graph.send_barrier(epoch as u64, *mark);
            }
            graph.send_epoch(epoch as u64, &mut cities, &mut arrivals);
            worker.step();
        }
        while taken.borrow().iter().filter(|taken: &&TakenSnapshot| taken.ended).count() < leg.barriers.len()
        {
            worker.step_or_park(Some(std::time::Duration::from_millis(1)));
            assert!(!failed.load(Ordering::Relaxed), "another worker has panicked");
        }
        (collect_outputs(worker, graph, epochs, &failed), taken.take())
    })
    .unwrap();
    let outputs = outputs.join().into_iter().map(Result::unwrap);
    merge_workers(outputs, epochs, &recorded)
}

/// The outputs of all workers and of the sink, by epoch, and all snapshots.
fn merge_workers(
    workers: impl Iterator<Item = (Vec<EpochOutput>, Vec<TakenSnapshot>)>,
    epochs: usize,
    recorded: &RecordedChanges,
) -> (Vec<EpochOutput>, Vec<TakenSnapshot>) {
    let (mut merged, mut all_taken) = (Vec::new(), Vec::new());
    merged.resize_with(epochs, EpochOutput::default);
    for (outputs, taken) in workers {
        all_taken.extend(taken);
        merged.iter_mut().zip(outputs).for_each(|(merged, own)| merged.extend(own));
    }
    for (epoch, city, change) in recorded.take() {
        merged[epoch as usize].sink_changes.push((city_number(&city), change));
    }
    (merged, all_taken)
}

/// The city that is watched, and from and to which epoch.
pub const WATCHED_CITY_AND_EPOCHS: (u32, std::ops::Range<usize>) = (0, 1..20);

/// Ids of queries that belong to one epoch.
pub const QUERY_IDS_PER_EPOCH: u64 = 8;

/// The queries of an epoch: the whole history of every city, and part of the watched one's. Rows
/// are granted with the query, or some of them then and the others an epoch later.
fn queries_of_epoch(epoch: usize, is_last: bool) -> Vec<Query> {
    let city = |city| Arc::from(city_name(city));
    let (from, to) = (EventTime::MIN, EventTime::MAX);
    let first = epoch as u64 * QUERY_IDS_PER_EPOCH;
    let query =
        |id, question| Query { id: first + u64::from(id), process: 0, city: city(id), kind: question };
    let all = |id| query(id, QueryKind::History { from, to, limit: u32::MAX });
    let mut queries: Vec<_> = (0..4).map(all).collect();
    queries.push(Query {
        id: first + 4,
        ..query(WATCHED_CITY_AND_EPOCHS.0, QueryKind::History { from, to, limit: 3 })
    });
    match epoch {
        epoch if epoch == WATCHED_CITY_AND_EPOCHS.1.start => {
            queries.push(Query { id: first + 5, ..query(WATCHED_CITY_AND_EPOCHS.0, QueryKind::Watch) })
        }
        epoch if epoch == WATCHED_CITY_AND_EPOCHS.1.end => {
            queries.push(query(WATCHED_CITY_AND_EPOCHS.0, QueryKind::Unwatch))
        }
        _ => {}
    }
    // This query is cancelled: no more rows are computed for it.
    queries.push(Query { id: first + 7, ..all(1) });
    let grant = |query: &Query, rows| Query { kind: QueryKind::GrantRows { rows }, ..query.clone() };
    let asked = |query: &&Query| query.kind != QueryKind::Unwatch;
    let mut all: Vec<Query> = queries.clone();
    for (query, n) in queries.iter().filter(asked).zip(0..) {
        all.push(grant(query, if is_last || n % 2 == 0 { u32::MAX } else { n }));
    }
    if let Some(before) = first.checked_sub(QUERY_IDS_PER_EPOCH) {
        let of_before = |n: u64| Query { id: before + n, ..query((n % 4) as u32, QueryKind::Cancel) };
        all.extend([1, 3, 5].map(|n| {
            grant(&Query { city: city(if n == 5 { 0 } else { n as u32 }), ..of_before(n) }, u32::MAX)
        }));
        all.push(Query { city: city(1), ..of_before(7) });
    }
    all
}

/// The id of an epoch's query that explains a row, among the queries of the epoch.
pub const EXPLAIN_QUERY_ID: u64 = 6;

/// City and time of the row that an epoch asks an explanation of: those of its last entry, or of an
/// older one.
pub fn explained_key(log: &[LogEntry], cuts: &[usize], epoch: usize) -> Option<(u32, i64)> {
    let cut = cuts[epoch];
    let at = if epoch.is_multiple_of(2) { cut.checked_sub(1)? } else { cut / 2 };
    log.get(at).map(|entry| (entry.city, entry.millis))
}

/// The query that explains a row. Every other epoch its rows are granted an epoch later.
fn explain_queries(log: &[LogEntry], cuts: &[usize], epoch: usize) -> Vec<Query> {
    let mut queries = Vec::new();
    let mut push = |epoch: usize, city, kind| {
        let id = epoch as u64 * QUERY_IDS_PER_EPOCH + EXPLAIN_QUERY_ID;
        queries.push(Query { id, process: 0, city: city_name(city).into(), kind });
    };
    let all = QueryKind::GrantRows { rows: u32::MAX };
    if let Some((city, _)) = epoch.checked_sub(1).and_then(|before| explained_key(log, cuts, before)) {
        push(epoch - 1, city, all);
    }
    if let Some((city, millis)) = explained_key(log, cuts, epoch) {
        let reading_at = EventTime::from_millis(millis).unwrap();
        push(epoch, city, QueryKind::Explain { reading_at, from: EventTime::MIN, limit: u32::MAX });
        let is_granted_at_once = epoch.is_multiple_of(2) || epoch + 1 == cuts.len();
        push(epoch, city, if is_granted_at_once { all } else { QueryKind::GrantRows { rows: 1 } });
    }
    queries
}

/// Sets a flag when its thread panics.
struct PanicFlag(Arc<AtomicBool>);

impl Drop for PanicFlag {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

fn collect_outputs(
    worker: &mut timely::worker::Worker,
    mut graph: Graph,
    epochs: usize,
    failed: &AtomicBool,
) -> Vec<EpochOutput> {
    graph.close_inputs();
    let Graph {
        city_names: names,
        rows,
        days,
        outcomes,
        current,
        hottest,
        by_country,
        serving_updates: told,
        ..
    } = graph;
    // Workers wait for each other, so one that panics must not leave the others waiting.
    while worker.has_dataflows() {
        worker.step_or_park(Some(std::time::Duration::from_millis(10)));
        assert!(!failed.load(Ordering::Relaxed), "another worker has panicked");
    }
    let mut out: Vec<EpochOutput> = (0..epochs).map(|_| EpochOutput::default()).collect();
    let city = |id: CityId| city_number(&names.get(id));
    if let Some(rows) = rows {
        for_each_change(&rows, |epoch, change| {
            let key = (city(change.city), change.reading_at.millis());
            out[epoch].rows.push((key, change.before, change.after));
        });
    }
    if let Some(days) = days {
        for_each_change(&days, |epoch, change| {
            out[epoch].days.push(((city(change.city), change.day), change.before, change.after));
        });
    }
    // A run with a sink has no other outputs.
    let Some(outcomes) = outcomes else { return out };
    for_each_change(&outcomes, |epoch, outcome| {
        out[epoch].outcomes.push(ArrivalOutcome { city: CityId(city(outcome.city)), ..outcome });
    });
    for_each_change(&current.unwrap(), |epoch, ((id, row), diff)| {
        out[epoch].current.push((city(id), row, diff))
    });
    for_each_change(&hottest.unwrap(), |epoch, (ranked, diff)| {
        let micros = ranked.heat_index().micros();
        out[epoch].hottest.push((ranked.city, micros, diff));
    });
    for_each_change(&by_country.unwrap(), |epoch, change| out[epoch].categories.push(change));
    let mut answers: BTreeMap<u64, Vec<AnswerPiece>> = BTreeMap::new();
    for_each_change(&told.unwrap(), |epoch, told| match told {
        ServingUpdate::AnswerPiece(piece) => answers.entry(piece.query_id).or_default().push(piece),
        told => out[epoch].serving_updates.push(told),
    });
    for (_, pieces) in answers.into_iter().filter(|(query, _)| query % QUERY_IDS_PER_EPOCH != 7) {
        let answer = join_pieces(pieces);
        out[answer.epoch as usize].serving_updates.push(ServingUpdate::AnswerPiece(answer));
    }
    out
}

/// An answer from its pieces.
fn join_pieces(mut pieces: Vec<AnswerPiece>) -> AnswerPiece {
    // The piece with the counts comes first.
    pieces.sort_by_key(|piece| (piece.first_row, piece.rows.len()));
    let bound = |piece: &AnswerPiece| match piece.remaining {
        RemainingRows::AtMost { rows, .. } => Some(piece.first_row + piece.rows.len() as u64 + rows),
        _ => None,
    };
    let mut pieces = pieces.into_iter();
    let mut answer = pieces.next().expect("there are pieces");
    let most = bound(&answer);
    for mut piece in pieces {
        assert_eq!(answer.rows.len() as u64, piece.first_row, "pieces follow each other");
        assert_ne!(answer.remaining, RemainingRows::Nothing, "{piece:?} comes behind the end");
        assert!(bound(&piece).is_none_or(|rows| Some(rows) == most), "{piece:?} says other than {most:?}");
        assert_eq!(
            (piece.epoch, &piece.city, piece.is_city_known),
            (answer.epoch, &answer.city, answer.is_city_known)
        );
        answer.rows.append(&mut piece.rows);
        (answer.remaining, answer.has_more) = (piece.remaining, piece.has_more);
    }
    assert_eq!(answer.remaining, RemainingRows::Nothing, "an answer has no end: {answer:?}");
    assert!(most.is_none_or(|most| answer.rows.len() as u64 <= most), "more than was said");
    answer
}

/// Batches must join without a gap, and each epoch be in the batch that covers it.
fn for_each_change<C>(closed: &Closed<C>, mut each: impl FnMut(usize, C)) {
    let mut lower = 0;
    while let Some(batch) = closed.next_batch() {
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
