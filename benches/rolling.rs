//! What the rolling operator costs, beside what the same store costs without a dataflow and what a single thread without
//! either would take. Each line is the median of several repetitions in one process; the ratios are of the same run.
//!
//! Times are CPU times of the thread, so that what else the machine does counts only by the caches it takes.
//!
//! `taskset -c 1 cargo bench --bench rolling -- [SCENARIO...]`, scenarios: `in-order`, `cities`, `corrections`, `late`,
//! `every-second`, `memory`, `resume`; all without an argument.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use swelter::internals::admission::{Admission, AdmissionRules};
use swelter::internals::dataflow::heat_index::Formula;
use swelter::internals::dataflow::rolling::chunk::PackedHeat;
use swelter::internals::dataflow::rolling::snapshot::InitialState;
use swelter::internals::dataflow::rolling::store::ReadingStore;
use swelter::internals::dataflow::rolling::{EpochChanges, Retention, Rolling, RollingOutputs};
use swelter::internals::dataflow::{self, Closed, Graph, GraphPlan};
use swelter::internals::model::{
    Arrival, CheckpointBarrier, CityId, CityIntroduction, CityNames, CitySnapshot, EventTime, Measurement,
    Millis, ReadingEvent, Revision, Row, RowChange, SnapshotSink, Topology, Upsert,
};
use timely::worker::Worker;

#[path = "common/sensor.rs"]
mod sensor;

use sensor::{Sensor, mix, resident_bytes};

/// The CPU time of this thread.
fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

const MINUTE: i64 = 60_000;
const WINDOW_MINUTES: i64 = 1440;
const REPETITIONS: usize = 5;

fn retention() -> Retention {
    Retention { window: Millis::DAY, lateness: Millis::DAY, history: Millis::DAY }
}

fn measurement(city: u32, minute: i64, salt: u64) -> Measurement {
    let h = mix(u64::from(city), minute as u64 ^ salt << 48);
    let (temperature, humidity) = (40 + (((h & 0xFFFF) * 51) >> 16), ((h >> 16 & 0xFFFF) * 101) >> 16);
    Measurement::new(temperature as f64, humidity as f64, None).unwrap()
}

fn time_of_minute(minute: i64) -> EventTime {
    EventTime::from_millis(minute * MINUTE).unwrap()
}

/// Cities by the keys that admission gave them.
struct Cities {
    names: Vec<CityIntroduction>,
}

impl Cities {
    fn new(count: u32) -> Cities {
        let rules = AdmissionRules::new(Millis::MAX);
        let mut admission = Admission::new(0, rules);
        let names = (0..count).map(|city| {
            let name = format!("city_{city:05}");
            let event = ReadingEvent::Reading(measurement(city, 0, 0));
            let upsert = Upsert { city: &name, reading_at: time_of_minute(0), event, revision: None };
            admission.admit(&upsert, None).unwrap().introduction(&name)
        });
        Cities { names: names.collect() }
    }

    fn count(&self) -> u32 {
        self.names.len() as u32
    }

    fn arrival(&self, city: u32, minute: i64, salt: u64, revision: Option<Revision>) -> Arrival {
        let event = ReadingEvent::Reading(measurement(city, minute, salt));
        Arrival {
            city: self.names[city as usize].key,
            reading_at: time_of_minute(minute),
            event,
            revision,
            position: 0,
        }
    }

    fn arrival_at_second(&self, city: u32, at: i64) -> Arrival {
        let event = ReadingEvent::Reading(measurement(city, at, 0));
        let key = self.names[city as usize].key;
        Arrival { city: key, reading_at: time_of_second(at), event, revision: None, position: 0 }
    }

    fn arrivals_of_second(&self, at: i64) -> Vec<Arrival> {
        (0..self.count()).map(|city| self.arrival_at_second(city, at)).collect()
    }

    fn arrivals_of_minute(&self, minute: i64) -> Vec<Arrival> {
        (0..self.count()).map(|city| self.arrival(city, minute, 0, None)).collect()
    }
}

/// The operator in a dataflow of this thread, with its results taken and looked at.
struct Operator {
    worker: Worker,
    graph: Graph,
    epoch: u64,
    seen: i64,
    rows: u64,
}

impl Operator {
    fn new(mut worker: Worker, cities: &Cities) -> Operator {
        let plan = GraphPlan::new(Formula::Rothfusz, retention());
        let mut graph = dataflow::build_graph(&mut worker, &plan, InitialState::default(), None);
        graph.send_epoch(0, &mut cities.names.clone(), &mut Vec::new());
        Operator { worker, graph, epoch: 1, seen: 0, rows: 0 }
    }

    /// Runs an epoch to its end.
    fn run_epoch(&mut self, arrivals: &mut Vec<Arrival>) {
        self.graph.send_epoch(self.epoch, &mut Vec::new(), arrivals);
        self.epoch += 1;
        while self.graph.probe.less_than(&self.epoch) {
            self.worker.step();
        }
        read_changes(self.graph.rows.as_ref().unwrap(), &mut self.seen, &mut self.rows);
    }
}

/// Reads every change once, as a sink would.
fn read_changes(closed: &Closed<RowChange>, seen: &mut i64, rows: &mut u64) {
    while let Some(batch) = closed.next_batch() {
        for change in batch.changes.iter().flat_map(|(_, changes)| changes) {
            *seen ^= change.after.map_or(0, |row| row.sum());
            *rows += 1;
        }
    }
}

fn new_operator(cities: &Cities) -> Operator {
    Operator::new(single_worker(), cities)
}

fn single_worker() -> Worker {
    let allocator =
        timely::communication::Allocator::Thread(timely::communication::allocator::Thread::default());
    Worker::new(timely::WorkerConfig::default(), allocator, Some(Instant::now()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds a reading of `epochs` epochs, the arrivals made before the clock starts.
fn time_epochs(epochs: i64, first: i64, cities: &Cities, mut run: impl FnMut(&mut Vec<Arrival>)) -> f64 {
    let times = (0..REPETITIONS as i64).map(|repetition| {
        let mut busy = 0.0;
        for epoch in 0..epochs {
            let mut arrivals = cities.arrivals_of_minute(first + repetition * epochs + epoch);
            let start = thread_cpu_time();
            run(&mut arrivals);
            busy += (thread_cpu_time() - start).as_secs_f64();
        }
        busy * 1e9 / (epochs as f64 * f64::from(cities.count()))
    });
    median(times.collect())
}

/// What comes in order: the arrivals of each epoch, and how many fill windows and state.
struct MinuteFeed<'a> {
    cities: &'a Cities,
    retention: Retention,
    filled: i64,
    arrivals: fn(&Cities, i64) -> Vec<Arrival>,
}

impl MinuteFeed<'_> {
    fn by_minute(cities: &Cities) -> MinuteFeed<'_> {
        MinuteFeed {
            cities,
            retention: retention(),
            filled: 2 * WINDOW_MINUTES,
            arrivals: Cities::arrivals_of_minute,
        }
    }
}

/// The same store in a plain loop. `formula`: whether the heat index is computed in the loop, as the operator does.
fn bare_loop(in_order: &MinuteFeed<'_>, epochs: i64, formula: bool) -> f64 {
    let MinuteFeed { cities, retention, filled, arrivals } = *in_order;
    let mut store = ReadingStore::new(retention, false);
    for _ in &cities.names {
        store.add_city();
    }
    let evaluate = |arrival: &Arrival| match &arrival.event {
        ReadingEvent::Reading(measurement) | ReadingEvent::RetriedReading(measurement) => {
            let (heat_index, category) = Formula::Rothfusz.evaluate(measurement);
            PackedHeat::new(heat_index, category)
        }
        ReadingEvent::Withdrawal => unreachable!(),
    };
    let mut changes: Vec<RowChange> = Vec::new();
    let mut seen = 0;
    let mut run = |arrivals: &[Arrival], held: Option<&[PackedHeat]>| {
        changes.clear();
        for (i, arrival) in arrivals.iter().enumerate() {
            let held = held.map_or_else(|| evaluate(arrival), |held| held[i]);
            let (city, reading_at) = (arrival.city.number, arrival.reading_at);
            store.heads[city as usize].high = reading_at.millis();
            let (sum, count) = store.append_reading(city, reading_at.millis(), held, None);
            let after = Row::new(held.heat_index(), held.category(), sum, count);
            changes.push(RowChange { city: CityId(city), reading_at, before: None, after: Some(after) });
        }
        changes.iter().for_each(|change| seen ^= change.after.map_or(0, |row| row.sum()));
    };
    for epoch in 0..filled {
        run(&arrivals(cities, epoch), None);
    }
    let mut busy = Vec::new();
    for repetition in 0..REPETITIONS as i64 {
        let mut elapsed = 0.0;
        for epoch in 0..epochs {
            let arrivals = arrivals(cities, filled + repetition * epochs + epoch);
            let held: Option<Vec<PackedHeat>> = (!formula).then(|| arrivals.iter().map(evaluate).collect());
            let start = thread_cpu_time();
            run(&arrivals, held.as_deref());
            elapsed += (thread_cpu_time() - start).as_secs_f64();
        }
        busy.push(elapsed * 1e9 / (epochs as f64 * f64::from(cities.count())));
    }
    std::hint::black_box(seen);
    median(busy)
}

/// What a single thread could do that knows that readings come once a minute, in order, and never change: a ring of values.
fn dense_ring(cities: &Cities, epochs: i64) -> f64 {
    let span = WINDOW_MINUTES as usize + 1;
    let mut ring = vec![0i64; span * cities.count() as usize];
    let mut sums = vec![0i64; cities.count() as usize];
    let mut seen = 0;
    let ns = time_epochs(epochs, 0, cities, |arrivals| {
        for arrival in arrivals.iter() {
            let ReadingEvent::Reading(measurement) = &arrival.event else { continue };
            let (heat_index, category) = Formula::Rothfusz.evaluate(measurement);
            let city = arrival.city.number as usize;
            let slot = &mut ring[city * span + (arrival.reading_at.millis() / MINUTE) as usize % span];
            sums[city] += heat_index.micros() - *slot;
            *slot = heat_index.micros();
            seen ^= sums[city] ^ category as i64;
        }
    });
    std::hint::black_box(seen);
    ns
}

/// Fills windows and state, and one minute more than the span that retention keeps.
fn filled_operator(cities: &Cities) -> Operator {
    let mut operator = new_operator(cities);
    for minute in 0..2 * WINDOW_MINUTES {
        operator.run_epoch(&mut cities.arrivals_of_minute(minute));
    }
    operator
}

fn bench_in_order() {
    let cities = Cities::new(15_000);
    let mut operator = filled_operator(&cities);
    let ns = time_epochs(60, 2 * WINDOW_MINUTES, &cities, |arrivals| operator.run_epoch(arrivals));
    drop(operator);
    let minutes = MinuteFeed::by_minute(&cities);
    let (with_formula, without) = (bare_loop(&minutes, 60, true), bare_loop(&minutes, 60, false));
    let ring = dense_ring(&cities, 60);
    println!("in order, 15,000 cities, one reading a minute, window 1 day and full:");
    println!("  operator                        {ns:6.1} ns a reading   {:5.1} M readings/s", 1e3 / ns);
    println!("  bare loop, same store           {with_formula:6.1} ns   ratio {:.2}", ns / with_formula);
    println!("  bare loop, heat index beforehand{without:6.1} ns   ratio {:.2}", ns / without);
    println!("  dense ring, one thread          {ring:6.1} ns   ratio {:.2}", ns / ring);
}

fn bench_by_cities() {
    println!("in order, by number of cities (epochs of one minute):");
    for count in [150, 1_500, 15_000, 150_000] {
        let cities = Cities::new(count);
        let mut operator = filled_operator(&cities);
        let epochs = (900_000 / i64::from(count)).clamp(4, 6000);
        let ns = time_epochs(epochs, 2 * WINDOW_MINUTES, &cities, |arrivals| operator.run_epoch(arrivals));
        println!("  {count:7} cities {ns:6.1} ns a reading");
    }
}

fn bench_corrections() {
    let cities = Cities::new(15_000);
    let mut operator = filled_operator(&cities);
    let mut rates = Vec::new();
    for repetition in 0..REPETITIONS as u64 {
        let (mut busy, rows) = (0.0, operator.rows);
        for epoch in 0..60 {
            let correction = |i: u64| {
                let h = mix(repetition << 16 | epoch, i);
                let minute = 2 * WINDOW_MINUTES - 1 - (h >> 32) as i64 % WINDOW_MINUTES;
                cities.arrival(h as u32 % cities.count(), minute, 1 + repetition, None)
            };
            let mut arrivals: Vec<Arrival> = (0..150).map(correction).collect();
            let start = thread_cpu_time();
            operator.run_epoch(&mut arrivals);
            busy += (thread_cpu_time() - start).as_secs_f64();
        }
        rates.push((operator.rows - rows) as f64 / busy);
    }
    println!(
        "corrections of a random age up to a day, 150 an epoch: {:.1} M changed rows/s",
        median(rates) / 1e6
    );
}

fn bench_late() {
    let cities = Cities::new(15_000);
    let mut operator = filled_operator(&cities);
    // 5 % come 1 to 10 minutes late.
    let delay = |city: u32, minute: i64| match mix(u64::from(city), minute as u64 | 1 << 40) {
        h if h % 20 == 0 => 1 + (h >> 32) as i64 % 10,
        _ => 0,
    };
    let first = 2 * WINDOW_MINUTES;
    let mut times = Vec::new();
    for repetition in 0..REPETITIONS as i64 {
        let (mut busy, mut readings) = (0.0, 0);
        for minute in first + repetition * 60..first + (repetition + 1) * 60 {
            let due = (0..=10).flat_map(|d| (0..cities.count()).map(move |city| (city, minute - d, d)));
            let due = due.filter(|&(city, at, d)| at >= first && delay(city, at) == d);
            let mut arrivals: Vec<Arrival> =
                due.map(|(city, at, _)| cities.arrival(city, at, 0, None)).collect();
            readings += arrivals.len();
            let start = thread_cpu_time();
            operator.run_epoch(&mut arrivals);
            busy += (thread_cpu_time() - start).as_secs_f64();
        }
        times.push(busy * 1e9 / readings as f64);
    }
    drop(operator);
    let (ns, bare) = (median(times), bare_loop(&MinuteFeed::by_minute(&cities), 60, true));
    println!("5 % of readings 1 to 10 minutes late: {:.1} M readings/s", 1e3 / ns);
    println!("  {ns:.1} ns a reading; bare loop, all in order {bare:.1} ns   ratio {:.2}", ns / bare);
}

/// A reading a second of every city: windows of 86,400 readings, 675 blocks.
fn bench_every_second() {
    let cities = Cities::new(500);
    let small = Millis::from_millis(10 * MINUTE).unwrap();
    let retention = Retention { window: Millis::DAY, lateness: small, history: small };
    let in_order =
        MinuteFeed { cities: &cities, retention, filled: 90_000, arrivals: Cities::arrivals_of_second };
    let bare = bare_loop(&in_order, 60, true);
    println!("a reading a second of 500 cities, window 1 day and full, lateness and history 10 minutes:");
    println!("  bare loop, same store           {bare:7.1} ns a reading");
    let print = |what: &str, ns: f64| println!("  {what:32}{ns:7.1} ns   ratio {:.2}", ns / bare);
    let rows = GraphPlan::new(Formula::Rothfusz, retention);
    let told = GraphPlan::serving_only(Formula::Rothfusz, retention, Topology::single_process(1));
    for (plan, names) in [
        (told, ["told, as in `run`", "told, 5 % 1 to 10 s late"]),
        (rows, ["rows, in order", "rows, 5 % 1 to 10 s late"]),
    ] {
        let mut worker = single_worker();
        let graph = dataflow::build_graph(&mut worker, &plan, InitialState::default(), None);
        let mut flow = RunningGraph { graph, epoch: 0, seen: 0, rows: 0 };
        let mut introductions = cities.names.clone();
        let mut at = 0;
        while at < in_order.filled {
            let seconds = (at..at + 600).flat_map(|at| cities.arrivals_of_second(at));
            flow.send_epoch(&mut worker, &mut introductions, seconds.collect(), 0);
            at += 600;
        }
        for (late, name) in [false, true].into_iter().zip(names) {
            print(name, time_seconds(&cities, &mut flow, &mut worker, &mut at, late));
        }
    }
}

/// Nanoseconds a reading, in epochs of a second each.
fn time_seconds(
    cities: &Cities,
    flow: &mut RunningGraph,
    worker: &mut Worker,
    at: &mut i64,
    late: bool,
) -> f64 {
    let delay = |city: u32, at: i64| match mix(u64::from(city), at as u64 | 1 << 41) {
        h if late && h % 20 == 0 => 1 + (h >> 32) as i64 % 10,
        _ => 0,
    };
    let first = *at;
    let times = (0..REPETITIONS).map(|_| {
        let (mut busy, mut readings) = (0.0, 0);
        for _ in 0..120 {
            let now = *at;
            let due = (0..=10).flat_map(|d| (0..cities.count()).map(move |city| (city, now - d, d)));
            let due = due.filter(|&(city, at, d)| at >= first && delay(city, at) == d);
            let arrivals: Vec<Arrival> =
                due.map(|(city, at, _)| cities.arrival_at_second(city, at)).collect();
            readings += arrivals.len();
            let start = thread_cpu_time();
            flow.send_epoch(worker, &mut Vec::new(), arrivals, 0);
            busy += (thread_cpu_time() - start).as_secs_f64();
            *at += 1;
        }
        busy * 1e9 / readings as f64
    });
    median(times.collect())
}

fn time_of_second(second: i64) -> EventTime {
    EventTime::from_millis(1_764_000_000_000 + second * 1000).unwrap()
}

/// A worker's graph, and what has come out of it here.
struct RunningGraph {
    graph: Graph,
    epoch: u64,
    seen: i64,
    rows: u64,
}

impl RunningGraph {
    /// Sends an epoch, and waits until all but the newest so many are complete.
    fn send_epoch(
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

/// Keeps what a snapshot gives.
#[derive(Default)]
struct SnapshotCollector(std::rc::Rc<std::cell::RefCell<Vec<CitySnapshot>>>);

impl SnapshotSink for SnapshotCollector {
    fn begin_snapshot(&mut self, _: CheckpointBarrier, _: u64) {}

    fn write_city(&mut self, city: CitySnapshot) {
        self.0.borrow_mut().push(city);
    }

    fn finish_snapshot(&mut self) {}

    fn is_full(&self) -> bool {
        false
    }
}

/// 15,000 cities of 1,440 readings, of a sensor a city: given as a snapshot, and a graph that begins with it.
fn bench_resume() {
    let cities = Cities::new(15_000);
    let keep = SnapshotCollector::default();
    let kept = std::rc::Rc::clone(&keep.0);
    let serving = GraphPlan::serving_only(
        Formula::Rothfusz,
        Retention { history: Millis::default(), ..retention() },
        Topology::single_process(1),
    );
    let mut worker = single_worker();
    let graph = dataflow::build_graph(&mut worker, &serving, InitialState::default(), Some(Box::new(keep)));
    let mut flow = RunningGraph { graph, epoch: 0, seen: 0, rows: 0 };
    let mut sensors: Vec<Sensor> = (0..cities.count()).map(Sensor::new).collect();
    let mut introductions = cities.names.clone();
    let run = |flow: &mut RunningGraph,
               worker: &mut Worker,
               introductions: &mut Vec<CityIntroduction>,
               arrivals| {
        let mut arrivals: Vec<Arrival> = arrivals;
        let start = thread_cpu_time();
        flow.graph.send_epoch(flow.epoch, introductions, &mut arrivals);
        flow.epoch += 1;
        while flow.graph.probe.less_than(&flow.epoch) {
            worker.step();
        }
        while flow.graph.serving_updates.as_ref().unwrap().next_batch().is_some() {}
        (thread_cpu_time() - start).as_secs_f64()
    };
    let mut arrivals = |minute: i64| -> Vec<Arrival> {
        let arrival = |city: u32, sensor: &mut Sensor| {
            let event = ReadingEvent::Reading(sensor.next(city, minute));
            let key = cities.names[city as usize].key;
            Arrival { city: key, reading_at: time_of_minute(minute), event, revision: None, position: 0 }
        };
        (0..cities.count()).zip(&mut sensors).map(|(city, sensor)| arrival(city, sensor)).collect()
    };
    let mut busy = 0.0;
    for minute in 0..WINDOW_MINUTES {
        let arrivals = arrivals(minute);
        let elapsed = run(&mut flow, &mut worker, &mut introductions, arrivals);
        busy += if minute >= WINDOW_MINUTES / 2 { elapsed } else { 0.0 };
    }
    let told = busy * 1e9 / (WINDOW_MINUTES as f64 / 2.0 * f64::from(cities.count()));
    println!("serving, 15,000 cities, one reading a minute, window 1 day: {told:.1} ns a reading");
    let (start, epoch) = (thread_cpu_time(), flow.epoch);
    flow.graph.send_barrier(epoch, CheckpointBarrier { checkpoint: 0, full: true });
    run(&mut flow, &mut worker, &mut introductions, Vec::new());
    while kept.borrow().len() < cities.names.len() {
        worker.step();
    }
    println!("  a snapshot of all cities {:6.1} ms", (thread_cpu_time() - start).as_secs_f64() * 1e3);
    let mut worker = single_worker();
    let (start, resumed) = (thread_cpu_time(), InitialState { epoch: 0, cities: kept.take() });
    let mut graph = dataflow::build_graph(&mut worker, &serving, resumed, None);
    graph.advance_to(1);
    while graph.probe.less_than(&1) {
        worker.step();
    }
    let told: usize = graph
        .serving_updates
        .as_ref()
        .unwrap()
        .next_batch()
        .iter()
        .flat_map(|batch| &batch.changes)
        .map(|(_, told)| told.len())
        .sum();
    println!(
        "  resumed, {:.1} M readings {:6.1} ms, {told} current rows told",
        WINDOW_MINUTES as f64 * f64::from(cities.count()) / 1e6,
        (thread_cpu_time() - start).as_secs_f64() * 1e3
    );
}

type RevisionNumbering = fn(i64) -> Option<Revision>;
/// Of readings that are random, or of sensors.
const REVISION_NUMBERINGS: [(&str, bool, RevisionNumbering); 4] = [
    ("sensors, no revisions", true, |_| None),
    ("random, no revisions", false, |_| None),
    ("random, revisions 0 to 9", false, |minute| Revision::new(minute % 10)),
    ("random, revisions that are stamps", false, |minute| Revision::new(1_764_000_000_000 + minute * MINUTE)),
];

/// Each kind in a process of its own, so that what is resident is its own.
fn bench_memory() {
    println!("memory, 15,000 cities, window 1 day, history 1 day (2,880 readings a city held):");
    for kind in 0..REVISION_NUMBERINGS.len() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.env("ROLLING_MEMORY_OF", kind.to_string()).status().unwrap();
    }
}

fn memory_of(kind: usize) {
    let cities = Cities::new(15_000);
    let (name, sensible, revision) = REVISION_NUMBERINGS[kind];
    let mut sensors: Vec<Sensor> = (0..cities.count()).map(Sensor::new).collect();
    let before = resident_bytes();
    let mut rolling =
        Rolling::new(Formula::Rothfusz, retention(), RollingOutputs::default(), CityNames::default());
    cities.names.iter().for_each(|name| rolling.introduce_city(name));
    let mut changed = EpochChanges::default();
    for minute in 0..3 * WINDOW_MINUTES {
        let arrivals = (0..cities.count()).zip(&mut sensors).map(|(city, sensor)| {
            let random = cities.arrival(city, minute, 0, revision(minute));
            let event =
                if sensible { ReadingEvent::Reading(sensor.next(city, minute)) } else { random.event };
            Arrival { event, ..random }
        });
        rolling.apply_arrivals(&[arrivals.collect()], |_| true, &mut changed);
    }
    drop(changed);
    let held = 2.0 * WINDOW_MINUTES as f64 * f64::from(cities.count());
    let (resident, counted) = (resident_bytes().saturating_sub(before) as f64, rolling.memory_bytes() as f64);
    println!(
        "  {name:38} {:5.2} bytes a reading resident, {:5.2} in blocks, chunks and heads",
        resident / held,
        counted / held
    );
}

fn main() {
    if let Ok(kind) = std::env::var("ROLLING_MEMORY_OF") {
        return memory_of(kind.parse().unwrap());
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let scenarios: [(&str, fn()); 7] = [
        ("in-order", bench_in_order),
        ("cities", bench_by_cities),
        ("corrections", bench_corrections),
        ("late", bench_late),
        ("every-second", bench_every_second),
        ("memory", bench_memory),
        ("resume", bench_resume),
    ];
    for (name, run) in scenarios {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run();
        }
    }
}
