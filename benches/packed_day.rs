//! A day of 15,000 cities, each with a sensor that sends a reading a second: 1.3 G readings held by
//! one process, what memory they take, and what becomes of them at a restart.
//!
//! `cargo bench -p swelter-benches --bench packed_day` prints, every few seconds, what is held and what memory that
//! takes; what corrections of a random age take then; how long a full checkpoint takes, and what it
//! does to the epochs meanwhile; and how long another process takes from its start until all of it
//! is loaded and every current row is told. The window is a day, history and lateness 10 minutes.
//! Smaller ones by environment: `CITIES`, `SECONDS` (of data), `WORKERS` (2), `LATENESS` (seconds),
//! and `FOLDER`, where the checkpoint goes (a temporary one).

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use swelter::internals::admission::{Admission, AdmissionRules};
use swelter::internals::checkpoint::{
    CheckpointHeader, CheckpointLocation, Checkpoints, Manifest, PartWriter, WorkerPart,
};
use swelter::internals::dataflow::heat_index::Formula;
use swelter::internals::dataflow::rolling::Retention;
use swelter::internals::dataflow::rolling::snapshot::InitialState;
use swelter::internals::dataflow::{self, Graph, GraphPlan};
use swelter::internals::model::{
    Arrival, CheckpointBarrier, CityIntroduction, EventTime, Measurement, Millis, PartitionName,
    PartitionTable, ReadingEvent, STATE_SHARDS, Topology, Upsert,
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
const RESUME_FOLDER_VARIABLE: &str = "PACKED_DAY_RESUME";

#[derive(Clone, Copy)]
struct DayPlan {
    cities: u32,
    seconds: i64,
    workers: usize,
    lateness: i64,
}

fn main() {
    let number = |name: &str, default: i64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number in the environment"))
    };
    let day = DayPlan {
        cities: number("CITIES", 15_000) as u32,
        seconds: number("SECONDS", 86_400),
        workers: number("WORKERS", 2) as usize,
        lateness: number("LATENESS", 600),
    };
    if let Some(folder) = std::env::var_os(RESUME_FOLDER_VARIABLE) {
        return day.resume_from_checkpoint(Path::new(&folder));
    }
    println!(
        "{} cities, a reading a second for {} s, {} workers, window 1 day, history and lateness {} s:",
        day.cities, day.seconds, day.workers, day.lateness
    );
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("FOLDER").map_or(temporary.path().to_path_buf(), PathBuf::from);
    day.fill_and_checkpoint(&folder);
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.env(RESUME_FOLDER_VARIABLE, &folder).status().unwrap();
}

fn open_checkpoints(folder: &Path) -> Checkpoints {
    Checkpoints::open(&CheckpointLocation::Folder(folder.to_path_buf())).unwrap()
}

/// Each worker has a partition of its own, of some of the cities, whichever worker has them.
fn partition_table(workers: usize) -> PartitionTable {
    PartitionTable::new(
        (0..workers as u32).map(|partition| PartitionName { source: "day".into(), partition }).collect(),
    )
}

/// Runs workers; the others would wait for one that has panicked.
fn run_workers(workers: usize, work: impl Fn(&mut Worker) + Send + Sync + 'static) {
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let run = std::panic::AssertUnwindSafe(|| work(worker));
        std::panic::catch_unwind(run).unwrap_or_else(|_| std::process::exit(101));
    });
    drop(guards.unwrap().join());
}

impl DayPlan {
    fn graph_plan(self) -> GraphPlan {
        let small = Millis::from_millis(self.lateness * 1000).unwrap();
        let retention = Retention { window: Millis::DAY, lateness: small, history: small };
        GraphPlan {
            rows: true,
            ..GraphPlan::serving_only(Formula::Rothfusz, retention, Topology::single_process(self.workers))
        }
    }

    /// Fills the state, corrects some of it, and writes a checkpoint while readings go on.
    fn fill_and_checkpoint(self, folder: &Path) {
        let (sender, parts) = mpsc::channel::<WorkerPart>();
        let written = Arc::new(AtomicBool::new(false));
        let (kept, slots) = (open_checkpoints(folder), partition_table(self.workers));
        let publish = {
            let (kept, written) = (kept.clone(), Arc::clone(&written));
            std::thread::spawn(move || {
                let parts: Vec<WorkerPart> = (0..self.workers).map(|_| parts.recv().unwrap()).collect();
                let positions = (0..self.workers as u32).map(|partition| (partition, self.seconds as u64));
                let cut = CheckpointHeader {
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
        run_workers(self.workers, move |worker| {
            let sender = sender.clone();
            let done = Box::new(move |_, _, part: Result<WorkerPart, _>| sender.send(part.unwrap()).unwrap());
            let writer = PartWriter::spawn(kept.clone(), GENERATION, slots.clone(), Arc::default(), done);
            let writer = writer.unwrap();
            let graph = dataflow::build_graph(
                worker,
                &self.graph_plan(),
                InitialState::default(),
                Some(Box::new(writer)),
            );
            ReadingFeed::new(self, worker, graph).run(worker, &written);
        });
        let manifest = publish.join().unwrap();
        println!(
            "  in it: {:.1} M readings, {:.1} MB",
            manifest.readings as f64 / 1e6,
            manifest.own_bytes() as f64 / 1e6
        );
    }

    /// Begins with the checkpoint, as a start does.
    fn resume_from_checkpoint(self, folder: &Path) {
        let start = Instant::now();
        let kept = open_checkpoints(folder);
        let manifest = Arc::new(kept.find_usable(&BTreeMap::new()).unwrap().usable.remove(0));
        let highs = kept.admission_states(&manifest, &|_| true).unwrap().len();
        run_workers(self.workers, move |worker| {
            let (index, peers) = (worker.index(), worker.peers());
            let shards: Vec<u32> =
                (0..STATE_SHARDS).filter(|shard| *shard as usize % peers == index).collect();
            let cities = kept.load_shards(&manifest, &shards, &partition_table(self.workers)).unwrap();
            let loaded = start.elapsed();
            let mut graph =
                dataflow::build_graph(worker, &self.graph_plan(), InitialState { epoch: 0, cities }, None);
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

/// A worker's graph, the sensors that it reads, and counts of its outputs.
struct ReadingFeed {
    day: DayPlan,
    index: usize,
    graph: Graph,
    names: Vec<CityIntroduction>,
    sensors: Vec<Sensor>,
    epoch: u64,
    rows: usize,
}

impl ReadingFeed {
    fn new(day: DayPlan, worker: &Worker, graph: Graph) -> ReadingFeed {
        let (index, peers) = (worker.index(), worker.peers());
        let own: Vec<u32> = (0..day.cities).filter(|city| *city as usize % peers == index).collect();
        let lateness = Millis::from_millis(day.lateness * 1000).unwrap();
        let mut admission = Admission::new(index as u16, AdmissionRules::new(lateness));
        let mut introduce = |city: &u32| {
            let (name, measurement) =
                (format!("city_{city:05}"), Measurement::new(70.0, 50.0, None).unwrap());
            let event = ReadingEvent::Reading(measurement);
            let upsert = Upsert { city: &name, reading_at: time_of_second(0), event, revision: None };
            admission.admit(&upsert, None).unwrap().introduction(&name)
        };
        let names = own.iter().map(&mut introduce).collect();
        let sensors = own.iter().map(|city| Sensor::new(*city)).collect();
        ReadingFeed { day, index, graph, names, sensors, epoch: 0, rows: 0 }
    }

    fn run(mut self, worker: &mut Worker, written: &AtomicBool) {
        let before = resident_bytes();
        let mut report = Report { start: Instant::now(), last: Instant::now(), at: 0 };
        let mut introductions = self.names.clone();
        for at in 0..self.day.seconds {
            let arrivals = self.arrivals_of_second(at);
            self.send_epoch(worker, &mut introductions, arrivals, 2);
            if self.index == 0
                && (report.last.elapsed() > Duration::from_secs(5) || at + 1 == self.day.seconds)
            {
                report.print_report(self.day.cities, at + 1, before);
            }
        }
        self.send_corrections(worker);
        let alone = self.send_readings_until(worker, 100, || false);
        let start = Instant::now();
        if self.index == 0 {
            self.graph.send_barrier(self.epoch, CheckpointBarrier { checkpoint: 1, full: true });
        }
        let beside = self.send_readings_until(worker, usize::MAX, || written.load(Ordering::Acquire));
        if self.index == 0 {
            println!("epochs of a reading of each city: {alone}");
            println!("  beside a full checkpoint, which takes {:.1?}: {beside}", start.elapsed());
            println!("  {:.1} MB resident", resident_bytes() as f64 / 1e6);
        }
        self.graph.close_inputs();
        while worker.has_dataflows() {
            worker.step();
            while self.graph.serving_updates.as_ref().is_some_and(|told| told.next_batch().is_some()) {}
            while self.graph.rows.as_ref().is_some_and(|rows| rows.next_batch().is_some()) {}
        }
    }

    fn arrivals_of_second(&mut self, at: i64) -> Vec<Arrival> {
        let arrival = |(n, (name, sensor)): (usize, (&CityIntroduction, &mut Sensor))| {
            let event = ReadingEvent::Reading(sensor.next(n as u32, at));
            Arrival::new(name.key, time_of_second(at), event, None, at as u64)
        };
        self.names.iter().zip(&mut self.sensors).enumerate().map(arrival).collect()
    }

    /// Corrections of random ages, one at a time.
    fn send_corrections(&mut self, worker: &mut Worker) {
        for n in 0..8 {
            let h = mix(n, 1 << 48);
            let at = self.day.seconds - 1 - (h >> 32) as i64 % self.day.lateness.min(self.day.seconds);
            let event = ReadingEvent::Reading(Measurement::new(40.0 + n as f64, 50.0, None).unwrap());
            let correction = Arrival::new(self.names[0].key, time_of_second(at), event, None, 0);
            let (start, rows) = (Instant::now(), self.rows);
            self.send_epoch(worker, &mut Vec::new(), vec![correction], 0);
            if self.index == 0 {
                let (elapsed, rows) = (start.elapsed(), self.rows - rows);
                println!(
                    "  corrections {} s old: {elapsed:.1?}, {rows} rows here",
                    self.day.seconds - 1 - at
                );
            }
        }
    }

    /// Sends a reading of each city ten times a second, at most so often, until it is done; says
    /// how long epochs take.
    fn send_readings_until(
        &mut self,
        worker: &mut Worker,
        most: usize,
        mut done: impl FnMut() -> bool,
    ) -> String {
        let (mut times, mut next) = (Vec::new(), Instant::now());
        while times.len() < most && !done() {
            while Instant::now() < next {
                worker.step_or_park(Some(next.saturating_duration_since(Instant::now())));
            }
            next += Duration::from_millis(100);
            let arrivals = self.arrivals_of_second(self.epoch as i64);
            let start = Instant::now();
            self.send_epoch(worker, &mut Vec::new(), arrivals, 0);
            times.push(start.elapsed());
        }
        times.sort();
        let at = |share: usize| {
            times.get(times.len().saturating_sub(1) * share / 100).copied().unwrap_or_default()
        };
        format!("p50 {:.1?}, p99 {:.1?}, max {:.1?} of {}", at(50), at(99), at(100), times.len())
    }

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
        while self.graph.serving_updates.as_ref().is_some_and(|told| told.next_batch().is_some()) {}
        while let Some(batch) = self.graph.rows.as_ref().and_then(|rows| rows.next_batch()) {
            self.rows += batch.changes.iter().map(|(_, changes)| changes.len()).sum::<usize>();
        }
    }
}

fn time_of_second(second: i64) -> EventTime {
    EventTime::from_millis(1_764_000_000_000 + second * 1000).unwrap()
}

struct Report {
    start: Instant,
    last: Instant,
    /// Seconds of data at the last line.
    at: i64,
}

impl Report {
    fn print_report(&mut self, cities: u32, at: i64, before: usize) {
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
