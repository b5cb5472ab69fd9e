//! What is loaded is what was written, or an error that names what is wrong.

mod damage;
mod faults;
mod s3;
mod trips;
mod writers;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::*;
use crate::model::{
    BLOCK_READINGS, Block, Category, CityKey, CityState, EventTime, HeatIndex, HeldReading, Mark,
    Measurement, PartitionName, STATE_SHARDS, Slot, Slots, Snapshots, state_shard,
};

type Told = Receiver<(Mark, u64, Result<Part, CheckpointError>)>;

fn open(folder: &Path) -> Checkpoints {
    Checkpoints::open(&Place::Folder(folder.into())).unwrap()
}

fn slots() -> Slots {
    let name = |(source, partition): (&str, u32)| PartitionName { source: source.into(), partition };
    Slots::new([("journal", 0), ("journal", 1), ("topic", 0)].map(name).to_vec())
}

fn writer(checkpoints: &Checkpoints, generation: &str, run_bytes: usize) -> (PartWriter, Told) {
    writer_of(Arc::default(), checkpoints, generation, run_bytes)
}

fn writer_of(
    writers: Arc<Writers>,
    checkpoints: &Checkpoints,
    generation: &str,
    run_bytes: usize,
) -> (PartWriter, Told) {
    let (sender, told) = mpsc::channel();
    let done = Box::new(move |mark, epoch, part| drop(sender.send((mark, epoch, part))));
    let checkpoints = checkpoints.clone();
    let writer = PartWriter::with_runs_of(run_bytes, checkpoints, generation, slots(), writers, done);
    (writer.unwrap(), told)
}

/// Writes the parts of so many workers.
fn parts(
    checkpoints: &Checkpoints,
    generation: &str,
    workers: u32,
    mark: Mark,
    epoch: u64,
    cities: &[CityState],
) -> Vec<Part> {
    let mut writers: Vec<_> = (0..workers).map(|_| writer(checkpoints, generation, 2_000)).collect();
    for (writer, _) in &mut writers {
        writer.begin(mark, epoch);
    }
    for city in cities {
        let worker = state_shard(CityKey::hash(&city.name)) % workers;
        writers[worker as usize].0.city(city.clone());
    }
    let told = writers.into_iter().map(|(mut writer, told)| {
        writer.end();
        let (told_mark, told_epoch, part) = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!((told_mark, told_epoch), (mark, epoch));
        part.unwrap()
    });
    told.collect()
}

fn cut(generation: &str, epoch: u64) -> Cut {
    let identity = BTreeMap::from([("formula".to_owned(), "rothfusz".to_owned())]);
    let positions = BTreeMap::from([("journal".to_owned(), BTreeMap::from([(0, epoch), (1, 2 * epoch)]))]);
    Cut { generation: generation.into(), epoch, identity, positions, logs: BTreeMap::new() }
}

/// Writes and publishes a checkpoint.
fn publish(
    checkpoints: &Checkpoints,
    generation: &str,
    epoch: u64,
    cities: &[CityState],
    adds_to: Option<&Manifest>,
) -> Manifest {
    let mark = Mark { checkpoint: epoch, full: adds_to.is_none() };
    let parts = parts(checkpoints, generation, 2, mark, epoch, cities);
    let manifest = Manifest::new(cut(generation, epoch), parts, adds_to).unwrap();
    checkpoints.publish(&manifest).unwrap();
    manifest
}

fn time(ms: i64) -> EventTime {
    EventTime::from_millis(ms).unwrap()
}

fn reading(ms: i64, micros: i64) -> HeldReading {
    let category = Category::ALL[micros.rem_euclid(5) as usize];
    HeldReading { reading_at: time(ms), heat_index: HeatIndex::from_micros(micros), category, revision: None }
}

fn city(name: &str, readings: &[HeldReading]) -> CityState {
    CityState {
        name: name.into(),
        slot: Slot(1),
        high: readings.last().map(|reading| reading.reading_at),
        since: EventTime::MIN,
        blocks: readings.chunks(BLOCK_READINGS).map(Block::pack).collect(),
        withdrawn: Vec::new(),
        measured: vec![(time(7), Measurement::new(80.0, 50.0, None).unwrap())],
    }
}

/// Some cities with readings that depend on `seed`.
fn cities(seed: i64) -> Vec<CityState> {
    let readings =
        |city: i64| (0..150 + city).map(move |n| reading(60_000 * n, 70_000_000 + seed * n + city));
    (0..6).map(|n| city(&format!("city {n}"), &readings(n).collect::<Vec<_>>())).collect()
}

fn all_shards() -> Vec<u32> {
    (0..STATE_SHARDS).collect()
}

fn load(checkpoints: &Checkpoints, manifest: &Manifest) -> Result<Vec<CityState>, CheckpointError> {
    checkpoints.load(manifest, &all_shards(), &slots())
}

fn held(city: &CityState) -> Vec<HeldReading> {
    city.blocks.iter().flat_map(|block| block.iter()).collect()
}

/// A city with its readings in one list, since blocks may be cut otherwise.
type Flat = (CityState, Vec<HeldReading>);

fn flat(cities: impl IntoIterator<Item = CityState>) -> BTreeMap<String, Flat> {
    let flat = |city: CityState| {
        let readings = held(&city);
        (city.name.to_string(), (CityState { blocks: Vec::new(), ..city }, readings))
    };
    cities.into_iter().map(flat).collect()
}

/// Waits until something is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}
