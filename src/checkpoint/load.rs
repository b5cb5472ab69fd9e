//! A checkpoint read back: increments folded onto what they add to, shards side by side.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;
use parquet::errors::ParquetError;

use super::checkpoints::Checkpoints;
use super::cities::{self, CityRecord};
use super::error::CheckpointError;
use super::manifest::{FileEntry, Manifest, StateSegment};
use super::name::CheckpointName;
use super::readings::ReadingsFileReader;
use crate::fault;
use crate::model::{
    BLOCK_READINGS, Block, CityKey, CitySnapshot, EventTime, PartitionIndex, PartitionName, PartitionTable,
    STATE_SHARDS, StoredReading, state_shard,
};

/// Shards that are read at a time, where there are as many cores.
const MAX_LOAD_THREADS: usize = 8;

/// What the reader of a partition must know of its cities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CityAdmissionState {
    pub partition: PartitionName,
    pub city: Arc<str>,
    /// The newest time of an admitted reading.
    pub high: Option<EventTime>,
    /// About how many readings are held; not less.
    pub readings: u64,
}

/// Gives the readings of a city, in order.
type ForEachReading<'a> = dyn FnMut(&mut dyn FnMut(StoredReading)) -> Result<(), ParquetError> + 'a;

/// Which number a run has for a partition.
type PartitionIndexOf<'a> = &'a (dyn Fn(&PartitionName) -> Option<PartitionIndex> + Sync);

impl Checkpoints {
    /// The cities of some state shards, as they were at the epoch of the manifest. `slots` has all
    /// partitions of the run.
    pub fn load_shards(
        &self,
        manifest: &Manifest,
        shards: &[u32],
        partitions: &PartitionTable,
    ) -> Result<Vec<CitySnapshot>, CheckpointError> {
        let numbers: HashMap<PartitionName, PartitionIndex> =
            (0..).map(PartitionIndex).zip(partitions.names()).map(|(index, name)| (name, index)).collect();
        let slot_of = |name: &PartitionName| numbers.get(name).copied();
        let fold = ShardLoader {
            checkpoints: self,
            chain: &self.read_chain(manifest)?,
            partition_index_of: &slot_of,
        };
        let mut cities = Vec::new();
        for shard in load_in_parallel(shards, |shard| fold.load_shard(*shard))? {
            cities.extend(shard);
        }
        Ok(cities)
    }

    /// Reads all of a checkpoint and its chain, and says how many cities and readings it holds.
    pub fn verify_contents(&self, manifest: &Manifest) -> Result<(u64, u64), CheckpointError> {
        let chain = self.read_chain(manifest)?;
        let shards: Vec<u32> = (0..STATE_SHARDS).collect();
        let fold = ShardLoader {
            checkpoints: self,
            chain: &chain,
            partition_index_of: &|_| Some(PartitionIndex(0)),
        };
        let counts = load_in_parallel(&shards, |shard| {
            let cities = fold.load_shard(*shard)?;
            let readings = cities.iter().flat_map(|city| &city.blocks).map(|block| block.len() as u64);
            Ok((cities.len() as u64, readings.sum::<u64>()))
        })?;
        Ok(counts.into_iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1)))
    }

    /// The cities of some partitions, for the admission of what is read of them from here on.
    pub fn admission_states(
        &self,
        manifest: &Manifest,
        is_wanted: &(dyn Fn(&PartitionName) -> bool + Sync),
    ) -> Result<Vec<CityAdmissionState>, CheckpointError> {
        let chain = self.read_chain(manifest)?;
        let shards: Vec<u32> = (0..STATE_SHARDS).collect();
        let highs = load_in_parallel(&shards, |shard| {
            let mut states: HashMap<Arc<str>, CityAdmissionState> = HashMap::new();
            for part in chain.iter().rev() {
                for segment in part.segments.iter().filter(|segment| segment.shard == *shard) {
                    for CityRecord { name, partition, high, readings, .. } in
                        self.read_cities(part.name(), segment)?
                    {
                        let new = || CityAdmissionState { partition, city: name.clone(), high, readings: 0 };
                        states.entry(name.clone()).or_insert_with(new).readings += readings;
                    }
                }
            }
            Ok(states.into_values().filter(|city| is_wanted(&city.partition)).collect::<Vec<_>>())
        })?;
        Ok(highs.into_iter().flatten().collect())
    }

    /// One city and the partition that its readings come from.
    pub fn load_city(
        &self,
        manifest: &Manifest,
        city: &str,
    ) -> Result<Option<(PartitionName, CitySnapshot)>, CheckpointError> {
        let names: Mutex<Vec<PartitionName>> = Mutex::default();
        let slot_of = |name: &PartitionName| {
            let mut names = names.lock();
            let at = names.iter().position(|candidate| candidate == name).unwrap_or_else(|| {
                names.push(name.clone());
                names.len() - 1
            });
            u16::try_from(at).ok().map(PartitionIndex)
        };
        let fold = ShardLoader {
            checkpoints: self,
            chain: &self.read_chain(manifest)?,
            partition_index_of: &slot_of,
        };
        let cities = fold.load_shard(state_shard(CityKey::hash(city)))?;
        let names = names.lock();
        let city_state = cities.into_iter().find(|state| &*state.name == city);
        Ok(city_state.and_then(|state| Some((names.get(usize::from(state.partition.0))?.clone(), state))))
    }

    fn read_cities(
        &self,
        name: CheckpointName,
        segment: &StateSegment,
    ) -> Result<Vec<CityRecord>, CheckpointError> {
        let file = &segment.cities;
        let cities = cities::decode_cities(self.read_file(name, file)?, file.rows)
            .map_err(|error| unreadable_file(name, file, &error))?;
        let readings: u64 = cities.iter().map(|city| city.readings).fold(0, u64::saturating_add);
        if cities.len() as u64 != file.rows
            || readings != segment.readings.as_ref().map_or(0, |readings| readings.rows)
        {
            return Err(CheckpointError::damaged_object(
                name,
                &file.path,
                "does not have the number of rows that the manifest gives",
            ));
        }
        Ok(cities)
    }
}

#[cold]
fn unreadable_file(name: CheckpointName, file: &FileEntry, error: &ParquetError) -> CheckpointError {
    CheckpointError::damaged_object(name, &file.path, &format!("cannot be read: {error}"))
}

/// Does the same for many shards, on as many threads as there are cores, or fewer where the host
/// does not allow them. The first error ends it.
fn load_in_parallel<T: Send>(
    shards: &[u32],
    work: impl Fn(&u32) -> Result<T, CheckpointError> + Sync,
) -> Result<Vec<T>, CheckpointError> {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Mutex::new(Vec::with_capacity(shards.len()));
    let take = || {
        while let Some(shard) = shards.get(next.fetch_add(1, Ordering::Relaxed))
            && !failed.load(Ordering::Relaxed)
        {
            let result = work(shard);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            results.lock().push((*shard, result));
        }
    };
    thread::scope(|scope| {
        for _ in 1..cores.min(MAX_LOAD_THREADS).min(shards.len()) {
            if let Err(error) = thread::Builder::new().name("load".into()).spawn_scoped(scope, take) {
                tracing::warn!(
                    "a checkpoint is read with fewer threads: {}",
                    fault::start_failure_text(&error)
                );
                break;
            }
        }
        take();
    });
    let mut results = results.into_inner();
    results.sort_by_key(|(shard, _)| *shard);
    results.into_iter().map(|(_, result)| result).collect()
}

struct ShardLoader<'a> {
    checkpoints: &'a Checkpoints,
    /// The full one first.
    chain: &'a [Arc<Manifest>],
    partition_index_of: PartitionIndexOf<'a>,
}

/// A city of increments, from the newest backwards.
struct FoldedCity {
    /// As the newest one has it.
    city: CityRecord,
    /// Readings before this are in older ones.
    since: EventTime,
    /// Of the increments, the newest first: each is older than the one before it.
    readings: Vec<Vec<StoredReading>>,
}

impl ShardLoader<'_> {
    /// All cities of a shard.
    fn load_shard(&self, shard: u32) -> Result<Vec<CitySnapshot>, CheckpointError> {
        let Some((full, increments)) = self.chain.split_first() else { return Ok(Vec::new()) };
        let mut folding: HashMap<Arc<str>, FoldedCity> = HashMap::new();
        for part in increments.iter().rev() {
            self.for_each_city(part, shard, |city, readings| {
                self.add_older_readings(&mut folding, city, readings)
            })?;
        }
        let name = full.name();
        let mut cities = Vec::new();
        self.for_each_city(full, shard, |city, readings| {
            if city.since > EventTime::MIN {
                return Err(ParquetError::General("it lacks readings, and is not an increment".into()));
            }
            let newer = folding.remove(&city.name);
            let since = newer.as_ref().map(|newer| newer.since);
            let mut packing = BlockPacker::default();
            readings(&mut |reading| {
                if since.is_none_or(|since| reading.reading_at < since) {
                    packing.push(reading);
                }
            })?;
            cities.push(match newer {
                Some(newer) => (newer.city, packing.finish_with_newer(newer.readings)),
                None => (city, packing.finish()),
            });
            Ok(())
        })?;
        for (_, newer) in folding {
            if newer.since > EventTime::MIN {
                let what = format!(
                    "an increment lacks readings of {:?}, and its base does not have them",
                    newer.city.name
                );
                return Err(CheckpointError::damaged(name, &what));
            }
            cities.push((newer.city, BlockPacker::default().finish_with_newer(newer.readings)));
        }
        cities.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        if cities.windows(2).any(|pair| pair[0].0.name == pair[1].0.name) {
            return Err(CheckpointError::damaged(name, "it has a city twice"));
        }
        cities.into_iter().map(|(city, blocks)| self.city_state(city, blocks)).collect()
    }

    /// Puts what an older increment has of a city below what newer ones have.
    fn add_older_readings(
        &self,
        folding: &mut HashMap<Arc<str>, FoldedCity>,
        city: CityRecord,
        readings: &mut ForEachReading<'_>,
    ) -> Result<(), ParquetError> {
        let newer = folding.get(&city.name).map(|newer| newer.since);
        let mut older_readings = Vec::new();
        readings(&mut |reading| {
            if newer.is_none_or(|since| reading.reading_at < since) {
                older_readings.push(reading);
            }
        })?;
        let since = city.since;
        let name = city.name.clone();
        let newer = folding.entry(name).or_insert(FoldedCity { city, since, readings: Vec::new() });
        newer.since = newer.since.min(since);
        newer.readings.push(older_readings);
        Ok(())
    }

    /// Gives the cities of a part's shard, each with what reads its readings, which has to be
    /// called.
    fn for_each_city(
        &self,
        part: &Manifest,
        shard: u32,
        mut each: impl FnMut(
            CityRecord,
            &mut dyn FnMut(&mut dyn FnMut(StoredReading)) -> Result<(), ParquetError>,
        ) -> Result<(), ParquetError>,
    ) -> Result<(), CheckpointError> {
        let name = part.name();
        for segment in part.segments.iter().filter(|segment| segment.shard == shard) {
            let cities = self.checkpoints.read_cities(name, segment)?;
            let file = segment.readings.as_ref().unwrap_or(&segment.cities);
            let unreadable_error = |error: ParquetError| unreadable_file(name, file, &error);
            let mut reader = match &segment.readings {
                Some(file) => Some(
                    ReadingsFileReader::open(self.checkpoints.read_file(name, file)?, file.rows)
                        .map_err(unreadable_error)?,
                ),
                None => None,
            };
            for city in cities {
                let count = city.readings;
                each(city, &mut |take| match &mut reader {
                    Some(reader) => reader.read_city(count, take),
                    None => Ok(()),
                })
                .map_err(unreadable_error)?;
            }
        }
        Ok(())
    }

    fn city_state(&self, city: CityRecord, blocks: Vec<Block>) -> Result<CitySnapshot, CheckpointError> {
        let CityRecord {
            name,
            partition,
            high,
            tombstones: withdrawn,
            measurements: measured,
            is_split,
            periods,
            since: _,
            readings: _,
        } = city;
        let index =
            (self.partition_index_of)(&partition).ok_or_else(|| CheckpointError::UnknownPartition {
                name: self.chain.last().map_or_else(String::new, |last| last.name().to_string()),
                partition: format!("{}/{}", partition.source, partition.partition),
            })?;
        Ok(CitySnapshot {
            name,
            partition: index,
            high,
            changed_since: EventTime::MIN,
            blocks,
            tombstones: withdrawn,
            measurements: measured,
            is_split,
            periods,
        })
    }
}

/// Readings in the order of time, as full blocks.
#[derive(Default)]
struct BlockPacker {
    readings: Vec<StoredReading>,
    blocks: Vec<Block>,
}

impl BlockPacker {
    #[inline]
    fn push(&mut self, reading: StoredReading) {
        self.readings.push(reading);
        if self.readings.len() == BLOCK_READINGS {
            self.blocks.push(Block::pack(&self.readings));
            self.readings.clear();
        }
    }

    /// With newer readings behind, in the order of [`FoldedCity::readings`].
    fn finish_with_newer(mut self, readings: Vec<Vec<StoredReading>>) -> Vec<Block> {
        readings.into_iter().rev().flatten().for_each(|reading| self.push(reading));
        self.finish()
    }

    fn finish(mut self) -> Vec<Block> {
        if !self.readings.is_empty() {
            self.blocks.push(Block::pack(&self.readings));
        }
        self.blocks
    }
}
