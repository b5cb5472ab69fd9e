//! What is loaded is what was written, or an error that names what is wrong.

mod damage;
mod faults;
mod s3;
mod trips;
mod writers;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::objects::{checksum, manifest_path};
use super::*;
use crate::model::{
    BLOCK_READINGS, Block, Category, CheckpointBarrier, CityKey, CitySnapshot, EventTime, HeatIndex,
    Measurement, PartitionIndex, PartitionName, PartitionTable, STATE_SHARDS, SnapshotSink, StoredReading,
    state_shard,
};

type PartResults = Receiver<(CheckpointBarrier, u64, Result<WorkerPart, CheckpointError>)>;

fn open(folder: &Path) -> Checkpoints {
    Checkpoints::open(&CheckpointLocation::Folder(folder.into())).unwrap()
}

fn partition_table() -> PartitionTable {
    let name = |(source, partition): (&str, u32)| PartitionName { source: source.into(), partition };
    PartitionTable::new([("journal", 0), ("journal", 1), ("topic", 0)].map(name).to_vec())
}

fn writer(checkpoints: &Checkpoints, generation: &str, run_bytes: usize) -> (PartWriter, PartResults) {
    writer_of(Arc::default(), checkpoints, generation, run_bytes)
}

fn writer_of(
    writers: Arc<PartWriterControl>,
    checkpoints: &Checkpoints,
    generation: &str,
    run_bytes: usize,
) -> (PartWriter, PartResults) {
    let (sender, told) = mpsc::channel();
    let done = Box::new(move |mark, epoch, part| drop(sender.send((mark, epoch, part))));
    let checkpoints = checkpoints.clone();
    let writer = PartWriter::spawn_with_run_bytes(
        run_bytes,
        checkpoints,
        generation,
        partition_table(),
        writers,
        done,
    );
    (writer.unwrap(), told)
}

/// Writes the parts of so many workers.
fn parts(
    checkpoints: &Checkpoints,
    generation: &str,
    workers: u32,
    mark: CheckpointBarrier,
    epoch: u64,
    cities: &[CitySnapshot],
) -> Vec<WorkerPart> {
    let mut writers: Vec<_> = (0..workers).map(|_| writer(checkpoints, generation, 2_000)).collect();
    for (writer, _) in &mut writers {
        writer.begin_snapshot(mark, epoch);
    }
    for city in cities {
        let worker = state_shard(CityKey::hash(&city.name)) % workers;
        writers[worker as usize].0.write_city(city.clone());
    }
    let told = writers.into_iter().map(|(mut writer, told)| {
        writer.finish_snapshot();
        let (told_mark, told_epoch, part) = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!((told_mark, told_epoch), (mark, epoch));
        part.unwrap()
    });
    told.collect()
}

fn header(generation: &str, epoch: u64) -> CheckpointHeader {
    let identity = BTreeMap::from([("formula".to_owned(), "rothfusz".to_owned())]);
    let positions = BTreeMap::from([("journal".to_owned(), BTreeMap::from([(0, epoch), (1, 2 * epoch)]))]);
    CheckpointHeader { generation: generation.into(), epoch, identity, positions, logs: BTreeMap::new() }
}

/// Writes and publishes a checkpoint.
fn publish(
    checkpoints: &Checkpoints,
    generation: &str,
    epoch: u64,
    cities: &[CitySnapshot],
    adds_to: Option<&Manifest>,
) -> Manifest {
    let mark = CheckpointBarrier { checkpoint: epoch, full: adds_to.is_none() };
    let parts = parts(checkpoints, generation, 2, mark, epoch, cities);
    let manifest = Manifest::new(header(generation, epoch), parts, adds_to).unwrap();
    checkpoints.publish(&manifest).unwrap();
    manifest
}

fn time(ms: i64) -> EventTime {
    EventTime::from_millis(ms).unwrap()
}

fn reading(ms: i64, micros: i64) -> StoredReading {
    let category = Category::ALL[micros.rem_euclid(5) as usize];
    StoredReading {
        reading_at: time(ms),
        heat_index: HeatIndex::from_micros(micros),
        category,
        revision: None,
    }
}

fn city(name: &str, readings: &[StoredReading]) -> CitySnapshot {
    CitySnapshot {
        name: name.into(),
        partition: PartitionIndex(1),
        high: readings.last().map(|reading| reading.reading_at),
        changed_since: EventTime::MIN,
        blocks: readings.chunks(BLOCK_READINGS).map(Block::pack).collect(),
        tombstones: Vec::new(),
        measurements: vec![(time(7), Measurement::new(80.0, 50.0, None).unwrap())],
        is_split: false,
        periods: None,
    }
}

/// Some cities with readings that depend on `seed`.
fn cities(seed: i64) -> Vec<CitySnapshot> {
    let readings =
        |city: i64| (0..150 + city).map(move |n| reading(60_000 * n, 70_000_000 + seed * n + city));
    (0..6).map(|n| city(&format!("city {n}"), &readings(n).collect::<Vec<_>>())).collect()
}

fn all_shards() -> Vec<u32> {
    (0..STATE_SHARDS).collect()
}

fn load(checkpoints: &Checkpoints, manifest: &Manifest) -> Result<Vec<CitySnapshot>, CheckpointError> {
    checkpoints.load_shards(manifest, &all_shards(), &partition_table())
}

fn all_readings(city: &CitySnapshot) -> Vec<StoredReading> {
    city.blocks.iter().flat_map(|block| block.iter()).collect()
}

/// A city with its readings in one list, since blocks may be cut otherwise.
type FlatCity = (CitySnapshot, Vec<StoredReading>);

fn flat_cities(cities: impl IntoIterator<Item = CitySnapshot>) -> BTreeMap<String, FlatCity> {
    let flat = |city: CitySnapshot| {
        let readings = all_readings(&city);
        (city.name.to_string(), (CitySnapshot { blocks: Vec::new(), ..city }, readings))
    };
    cities.into_iter().map(flat).collect()
}

/// Waits until something is so.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}
