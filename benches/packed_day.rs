//! A day of 15,000 cities, each with a sensor that sends a reading a second: 1.3 G readings held by one process, what memory they take, and what
//! becomes of them at a restart.
//!
//! `cargo bench --bench packed_day` prints, every few seconds, what is held and what memory that takes; what corrections of a random age take
//! then; how long a full checkpoint takes, and what it does to the epochs meanwhile; and how long another process takes from its start until
//! all of it is loaded and every current row is told. The window is a day, history and lateness 10 minutes. Smaller ones by environment:
//! `CITIES`, `SECONDS` (of data), `WORKERS` (2), `LATENESS` (seconds), and `FOLDER`, where the checkpoint goes (a temporary one).

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration as Span, Instant};

use swelter::admission::{Admission, AdmissionRules};
use swelter::checkpoint::{Checkpoints, Cut, Manifest, Part, PartWriter, Place};
use swelter::dataflow::heat_index::Formula;
use swelter::dataflow::rolling::Retention;
use swelter::dataflow::rolling::snapshot::Resumed;
use swelter::dataflow::{self, Graph, GraphPlan};
use swelter::model::{
    Arrival, CityName, Duration, Event, EventTime, Mark, Measurement, PartitionName, STATE_SHARDS, Slots,
    Topology, Upsert,
};
use timely::worker::Worker;

#[path = "common/sensor.rs"]
mod sensor;

use sensor::{Sensor, mix, resident_bytes};

/// The service's own.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const GENERATION: &str = "1-0123456789abcdef";
/// The variable that has a process begin with the checkpoint in a folder.
const RESUME: &str = "PACKED_DAY_RESUME";

#[derive(Clone, Copy)]
struct Day {
    cities: u32,
    seconds: i64,
    workers: usize,
    lateness: i64,
}

fn main() {
    let number = |name: &str, default: i64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number in the environment"))
    };
    let day = Day {
        cities: number("CITIES", 15_000) as u32,
        seconds: number("SECONDS", 86_400),
        workers: number("WORKERS", 2) as usize,
        lateness: number("LATENESS", 600),
    };
    if let Some(folder) = std::env::var_os(RESUME) {
        return day.resume(Path::new(&folder));
    }
    println!(
        "{} cities, a reading a second for {} s, {} workers, window 1 day, history and lateness {} s:",
        day.cities, day.seconds, day.workers, day.lateness
    );
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("FOLDER").map_or(temporary.path().to_path_buf(), PathBuf::from);
    day.fill(&folder);
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.env(RESUME, &folder).status().unwrap();
}

fn checkpoints(folder: &Path) -> Checkpoints {
    Checkpoints::open(&Place::Folder(folder.to_path_buf())).unwrap()
}

/// Each worker has a partition of its own, of some of the cities, whichever worker has them.
fn slots(workers: usize) -> Slots {
    Slots::new(
        (0..workers as u32).map(|partition| PartitionName { source: "day".into(), partition }).collect(),
    )
}

/// Runs workers; the others would wait for one that has panicked.
fn execute(workers: usize, work: impl Fn(&mut Worker) + Send + Sync + 'static) {
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let run = std::panic::AssertUnwindSafe(|| work(worker));
        std::panic::catch_unwind(run).unwrap_or_else(|_| std::process::exit(101));
    });
    drop(guards.unwrap().join());
}

impl Day {
    fn plan(self) -> GraphPlan {
        let small = Duration::from_millis(self.lateness * 1000).unwrap();
        let retention = Retention { window: Duration::DAY, lateness: small, history: small };
        GraphPlan {
            rows: true,
            ..GraphPlan::serving(Formula::Rothfusz, retention, Topology::alone(self.workers))
        }
    }

    /// Fills the state, corrects some of it, and writes a checkpoint while readings go on.
    fn fill(self, folder: &Path) {
        let (sender, parts) = mpsc::channel::<Part>();
        let written = Arc::new(AtomicBool::new(false));
        let (kept, slots) = (checkpoints(folder), slots(self.workers));
        let publish = {
            let (kept, written) = (kept.clone(), Arc::clone(&written));
            std::thread::spawn(move || {
                let parts: Vec<Part> = (0..self.workers).map(|_| parts.recv().unwrap()).collect();
                let positions = (0..self.workers as u32).map(|partition| (partition, self.seconds as u64));
                let cut = Cut {
                    generation: GENERATION.into(),
                    epoch: parts[0].epoch,
                    identity: BTreeMap::new(),
                    positions: BTreeMap::from([("day".into(), positions.collect())]),
                    logs: BTreeMap::new(),
                };
                let manifest = Manifest::new(cut, parts, None).unwrap();
                kept.publish(&manifest).unwrap();
                written.store(true, Ordering::Release);
                manifest
            })
        };
        execute(self.workers, move |worker| {
            let sender = sender.clone();
            let done = Box::new(move |_, _, part: Result<Part, _>| sender.send(part.unwrap()).unwrap());
            let writer = PartWriter::spawn(kept.clone(), GENERATION, slots.clone(), Arc::default(), done);
            let writer = writer.unwrap();
            let graph = dataflow::build(worker, &self.plan(), Resumed::default(), Some(Box::new(writer)));
            Feed::new(self, worker, graph).run(worker, &written);
        });
        let manifest = publish.join().unwrap();
        println!(
            "  in it: {:.1} M readings, {:.1} MB",
            manifest.readings as f64 / 1e6,
            manifest.bytes() as f64 / 1e6
        );
    }

    /// Begins with the checkpoint, as a start does.
    fn resume(self, folder: &Path) {
        let start = Instant::now();
        let kept = checkpoints(folder);
        let manifest = Arc::new(kept.usable(&BTreeMap::new()).unwrap().usable.remove(0));
        let highs = kept.highs(&manifest, &|_| true).unwrap().len();
        execute(self.workers, move |worker| {
            let (index, peers) = (worker.index(), worker.peers());
            let shards: Vec<u32> =
                (0..STATE_SHARDS).filter(|shard| *shard as usize % peers == index).collect();
            let cities = kept.load(&manifest, &shards, &slots(self.workers)).unwrap();
            let loaded = start.elapsed();
            let mut graph = dataflow::build(worker, &self.plan(), Resumed { epoch: 0, cities }, None);
            graph.advance_to(1);
            while graph.probe.less_than(&1) {
                worker.step();
            }
            if index == 0 {
                println!(
                    "another process: {} cities loaded after {loaded:.1?}, all told after {:.1?}, {:.1} MB resident",
                    highs,
                    start.elapsed(),
                    resident_bytes() as f64 / 1e6
                );
            }
        });
    }
}

/// A worker's graph, the sensors that it reads, and what has come of them here.
struct Feed {
    day: Day,
    index: usize,
    graph: Graph,
    names: Vec<CityName>,
    sensors: Vec<Sensor>,
    epoch: u64,
    rows: usize,
}

impl Feed {
    fn new(day: Day, worker: &Worker, graph: Graph) -> Feed {
        let (index, peers) = (worker.index(), worker.peers());
        let own: Vec<u32> = (0..day.cities).filter(|city| *city as usize % peers == index).collect();
        let lateness = Duration::from_millis(day.lateness * 1000).unwrap();
        let mut admission = Admission::new(index as u16, AdmissionRules::new(lateness));
        let mut introduce = |city: &u32| {
            let (name, measurement) =
                (format!("city_{city:05}"), Measurement::new(70.0, 50.0, None).unwrap());
            let event = Event::Reading(measurement);
            let upsert = Upsert { city: &name, reading_at: second(0), event, revision: None };
            admission.admit(&upsert, None).unwrap().introduction(&name)
        };
        let names = own.iter().map(&mut introduce).collect();
        let sensors = own.iter().map(|city| Sensor::new(*city)).collect();
        Feed { day, index, graph, names, sensors, epoch: 0, rows: 0 }
    }

    fn run(mut self, worker: &mut Worker, written: &AtomicBool) {
        let before = resident_bytes();
        let mut report = Report { start: Instant::now(), last: Instant::now(), at: 0 };
        let mut introductions = self.names.clone();
        for at in 0..self.day.seconds {
            let arrivals = self.second(at);
            self.send(worker, &mut introductions, arrivals, 2);
            if self.index == 0 && (report.last.elapsed() > Span::from_secs(5) || at + 1 == self.day.seconds) {
                report.print(self.day.cities, at + 1, before);
            }
        }
        self.correct(worker);
        let alone = self.go_on(worker, 100, || false);
        let start = Instant::now();
        if self.index == 0 {
            self.graph.mark(self.epoch, Mark { checkpoint: 1, full: true });
        }
        let beside = self.go_on(worker, usize::MAX, || written.load(Ordering::Acquire));
        if self.index == 0 {
            println!("epochs of a reading of each city: {alone}");
            println!("  beside a full checkpoint, which takes {:.1?}: {beside}", start.elapsed());
            println!("  {:.1} MB resident", resident_bytes() as f64 / 1e6);
        }
        self.graph.close_inputs();
        while worker.has_dataflows() {
            worker.step();
            while self.graph.told.as_ref().is_some_and(|told| told.take().is_some()) {}
            while self.graph.rows.as_ref().is_some_and(|rows| rows.take().is_some()) {}
        }
    }

    fn second(&mut self, at: i64) -> Vec<Arrival> {
        let arrival = |(n, (name, sensor)): (usize, (&CityName, &mut Sensor))| {
            let event = Event::Reading(sensor.next(n as u32, at));
            Arrival { city: name.key, reading_at: second(at), event, revision: None, position: at as u64 }
        };
        self.names.iter().zip(&mut self.sensors).enumerate().map(arrival).collect()
    }

    /// Corrections of random ages, one at a time.
    fn correct(&mut self, worker: &mut Worker) {
        for n in 0..8 {
            let h = mix(n, 1 << 48);
            let at = self.day.seconds - 1 - (h >> 32) as i64 % self.day.lateness.min(self.day.seconds);
            let event = Event::Reading(Measurement::new(40.0 + n as f64, 50.0, None).unwrap());
            let correction = Arrival {
                city: self.names[0].key,
                reading_at: second(at),
                event,
                revision: None,
                position: 0,
            };
            let (start, rows) = (Instant::now(), self.rows);
            self.send(worker, &mut Vec::new(), vec![correction], 0);
            if self.index == 0 {
                let (elapsed, rows) = (start.elapsed(), self.rows - rows);
                println!(
                    "  corrections {} s old: {elapsed:.1?}, {rows} rows here",
                    self.day.seconds - 1 - at
                );
            }
        }
    }

    /// Sends a reading of each city ten times a second, at most so often, until it is done; says how long epochs take.
    fn go_on(&mut self, worker: &mut Worker, most: usize, mut done: impl FnMut() -> bool) -> String {
        let (mut times, mut next) = (Vec::new(), Instant::now());
        while times.len() < most && !done() {
            while Instant::now() < next {
                worker.step_or_park(Some(next.saturating_duration_since(Instant::now())));
            }
            next += Span::from_millis(100);
            let arrivals = self.second(self.epoch as i64);
            let start = Instant::now();
            self.send(worker, &mut Vec::new(), arrivals, 0);
            times.push(start.elapsed());
        }
        times.sort();
        let at = |share: usize| {
            times.get(times.len().saturating_sub(1) * share / 100).copied().unwrap_or_default()
        };
        format!("p50 {:.1?}, p99 {:.1?}, max {:.1?} of {}", at(50), at(99), at(100), times.len())
    }

    /// Sends an epoch, and waits until all but the newest so many are complete.
    fn send(
        &mut self,
        worker: &mut Worker,
        cities: &mut Vec<CityName>,
        mut arrivals: Vec<Arrival>,
        ahead: u64,
    ) {
        self.graph.send(self.epoch, cities, &mut arrivals);
        self.epoch += 1;
        while self.graph.probe.less_than(&self.epoch.saturating_sub(ahead)) {
            worker.step();
        }
        while self.graph.told.as_ref().is_some_and(|told| told.take().is_some()) {}
        while let Some(batch) = self.graph.rows.as_ref().and_then(|rows| rows.take()) {
            self.rows += batch.changes.iter().map(|(_, changes)| changes.len()).sum::<usize>();
        }
    }
}

fn second(second: i64) -> EventTime {
    EventTime::from_millis(1_764_000_000_000 + second * 1000).unwrap()
}

struct Report {
    start: Instant,
    last: Instant,
    /// Seconds of data at the last line.
    at: i64,
}

impl Report {
    fn print(&mut self, cities: u32, at: i64, before: usize) {
        let readings = |seconds: i64| seconds as f64 * f64::from(cities);
        let (held, resident) = (readings(at), resident_bytes());
        println!(
            "  {:6.1} s  {:8.1} M readings held, {:8.1} MB resident, {:5.2} bytes a reading, {:5.2} M readings/s",
            self.start.elapsed().as_secs_f64(),
            held / 1e6,
            resident as f64 / 1e6,
            resident.saturating_sub(before) as f64 / held,
            readings(at - self.at) / self.last.elapsed().as_secs_f64() / 1e6
        );
        (self.last, self.at) = (Instant::now(), at);
    }
}
