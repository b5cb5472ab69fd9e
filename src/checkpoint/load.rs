//! A checkpoint read back: increments folded onto what they add to, shards side by side.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use parquet::errors::ParquetError;

use super::cities::{self, City};
use super::readings::Reader;
use super::{CheckpointError, Checkpoints, FileEntry, Manifest, Name, Segment};
use crate::fault;
use crate::model::{
    BLOCK_READINGS, Block, CityKey, CityState, EventTime, HeldReading, PartitionName, STATE_SHARDS, Slot,
    Slots, state_shard,
};

/// Shards that are read at a time, where there are as many cores.
const MOST_THREADS: usize = 8;

/// What the reader of a partition must know of its cities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CityHigh {
    pub partition: PartitionName,
    pub city: Arc<str>,
    /// The newest time of an admitted reading.
    pub high: Option<EventTime>,
    /// About how many readings are held; not less.
    pub readings: u64,
}

/// Gives the readings of a city, in order.
type ReadReadings<'a> = dyn FnMut(&mut dyn FnMut(HeldReading)) -> Result<(), ParquetError> + 'a;

/// Which number a run has for a partition.
type SlotOf<'a> = &'a (dyn Fn(&PartitionName) -> Option<Slot> + Sync);

impl Checkpoints {
    /// The cities of some state shards, as they were at the epoch of the manifest. `slots` has all partitions of the run.
    pub fn load(
        &self,
        manifest: &Manifest,
        shards: &[u32],
        slots: &Slots,
    ) -> Result<Vec<CityState>, CheckpointError> {
        let numbers: HashMap<PartitionName, Slot> =
            (0..).map(Slot).zip(slots.all()).map(|(slot, name)| (name, slot)).collect();
        let slot_of = |name: &PartitionName| numbers.get(name).copied();
        let fold = Fold { checkpoints: self, chain: &self.chain(manifest)?, slot_of: &slot_of };
        let mut cities = Vec::new();
        for shard in in_parallel(shards, |shard| fold.shard(*shard))? {
            cities.extend(shard);
        }
        Ok(cities)
    }

    /// Reads all of a checkpoint and its chain, and says how many cities and readings it holds.
    pub fn verify(&self, manifest: &Manifest) -> Result<(u64, u64), CheckpointError> {
        let chain = self.chain(manifest)?;
        let shards: Vec<u32> = (0..STATE_SHARDS).collect();
        let fold = Fold { checkpoints: self, chain: &chain, slot_of: &|_| Some(Slot(0)) };
        let counts = in_parallel(&shards, |shard| {
            let cities = fold.shard(*shard)?;
            let readings = cities.iter().flat_map(|city| &city.blocks).map(|block| block.len() as u64);
            Ok((cities.len() as u64, readings.sum::<u64>()))
        })?;
        Ok(counts.into_iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1)))
    }

    /// The cities of some partitions, for the admission of what is read of them from here on.
    pub fn highs(
        &self,
        manifest: &Manifest,
        wanted: &(dyn Fn(&PartitionName) -> bool + Sync),
    ) -> Result<Vec<CityHigh>, CheckpointError> {
        let chain = self.chain(manifest)?;
        let shards: Vec<u32> = (0..STATE_SHARDS).collect();
        let highs = in_parallel(&shards, |shard| {
            let mut found: HashMap<Arc<str>, CityHigh> = HashMap::new();
            for part in chain.iter().rev() {
                for segment in part.segments.iter().filter(|segment| segment.shard == *shard) {
                    for City { name, partition, high, readings, .. } in self.cities(part.name(), segment)? {
                        let new = || CityHigh { partition, city: name.clone(), high, readings: 0 };
                        found.entry(name.clone()).or_insert_with(new).readings += readings;
                    }
                }
            }
            Ok(found.into_values().filter(|city| wanted(&city.partition)).collect::<Vec<_>>())
        })?;
        Ok(highs.into_iter().flatten().collect())
    }

    /// One city and the partition that its readings come from.
    pub fn city(
        &self,
        manifest: &Manifest,
        city: &str,
    ) -> Result<Option<(PartitionName, CityState)>, CheckpointError> {
        let names: Mutex<Vec<PartitionName>> = Mutex::default();
        let slot_of = |name: &PartitionName| {
            let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
            let at = names.iter().position(|known| known == name).unwrap_or_else(|| {
                names.push(name.clone());
                names.len() - 1
            });
            u16::try_from(at).ok().map(Slot)
        };
        let fold = Fold { checkpoints: self, chain: &self.chain(manifest)?, slot_of: &slot_of };
        let cities = fold.shard(state_shard(CityKey::hash(city)))?;
        let names = names.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cities.into_iter().find(|state| &*state.name == city);
        Ok(found.and_then(|state| Some((names.get(usize::from(state.slot.0))?.clone(), state))))
    }

    fn cities(&self, name: Name, segment: &Segment) -> Result<Vec<City>, CheckpointError> {
        let file = &segment.cities;
        let cities = cities::decode(self.file(name, file)?, file.rows)
            .map_err(|error| unreadable(name, file, &error))?;
        let readings: u64 = cities.iter().map(|city| city.readings).fold(0, u64::saturating_add);
        if cities.len() as u64 != file.rows
            || readings != segment.readings.as_ref().map_or(0, |readings| readings.rows)
        {
            return Err(CheckpointError::damaged_object(name, &file.path, "does not have its rows"));
        }
        Ok(cities)
    }
}

#[cold]
fn unreadable(name: Name, file: &FileEntry, error: &ParquetError) -> CheckpointError {
    CheckpointError::damaged_object(name, &file.path, &format!("cannot be read: {error}"))
}

/// Does the same for many shards, on as many threads as there are cores, or fewer where the host does not allow them. The first error
/// ends it.
fn in_parallel<T: Send>(
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
            results.lock().unwrap_or_else(PoisonError::into_inner).push((*shard, result));
        }
    };
    thread::scope(|scope| {
        for _ in 1..cores.min(MOST_THREADS).min(shards.len()) {
            if let Err(error) = thread::Builder::new().name("load".into()).spawn_scoped(scope, take) {
                tracing::warn!("a checkpoint is read by fewer threads: {}", fault::cannot_start(&error));
                break;
            }
        }
        take();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(shard, _)| *shard);
    results.into_iter().map(|(_, result)| result).collect()
}

struct Fold<'a> {
    checkpoints: &'a Checkpoints,
    /// The full one first.
    chain: &'a [Arc<Manifest>],
    slot_of: SlotOf<'a>,
}

/// A city of increments, from the newest backwards.
struct Folding {
    /// As the newest one has it.
    city: City,
    /// Readings before this are in older ones.
    since: EventTime,
    /// Of the increments, the newest first: each is older than the one before it.
    readings: Vec<Vec<HeldReading>>,
}

impl Fold<'_> {
    /// All cities of a shard.
    fn shard(&self, shard: u32) -> Result<Vec<CityState>, CheckpointError> {
        let Some((full, increments)) = self.chain.split_first() else { return Ok(Vec::new()) };
        let mut folding: HashMap<Arc<str>, Folding> = HashMap::new();
        for part in increments.iter().rev() {
            self.read(part, shard, |city, readings| self.add_below(&mut folding, city, readings))?;
        }
        let name = full.name();
        let mut cities = Vec::new();
        self.read(full, shard, |city, readings| {
            if city.since > EventTime::MIN {
                return Err(ParquetError::General("it lacks readings, and adds to nothing".into()));
            }
            let newer = folding.remove(&city.name);
            let since = newer.as_ref().map(|newer| newer.since);
            let mut packing = Packing::default();
            readings(&mut |reading| {
                if since.is_none_or(|since| reading.reading_at < since) {
                    packing.push(reading);
                }
            })?;
            cities.push(match newer {
                Some(newer) => (newer.city, packing.and(newer.readings)),
                None => (city, packing.finish()),
            });
            Ok(())
        })?;
        for (_, newer) in folding {
            if newer.since > EventTime::MIN {
                let what = format!(
                    "an increment lacks readings of {:?}, and they are nowhere else",
                    newer.city.name
                );
                return Err(CheckpointError::damaged(name, &what));
            }
            cities.push((newer.city, Packing::default().and(newer.readings)));
        }
        cities.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        if cities.windows(2).any(|pair| pair[0].0.name == pair[1].0.name) {
            return Err(CheckpointError::damaged(name, "it has a city twice"));
        }
        cities.into_iter().map(|(city, blocks)| self.state(city, blocks)).collect()
    }

    /// Puts what an older increment has of a city below what newer ones have.
    fn add_below(
        &self,
        folding: &mut HashMap<Arc<str>, Folding>,
        city: City,
        readings: &mut ReadReadings<'_>,
    ) -> Result<(), ParquetError> {
        let newer = folding.get(&city.name).map(|newer| newer.since);
        let mut kept = Vec::new();
        readings(&mut |reading| {
            if newer.is_none_or(|since| reading.reading_at < since) {
                kept.push(reading);
            }
        })?;
        let since = city.since;
        let name = city.name.clone();
        let newer = folding.entry(name).or_insert(Folding { city, since, readings: Vec::new() });
        newer.since = newer.since.min(since);
        newer.readings.push(kept);
        Ok(())
    }

    /// Gives the cities of a part's shard, each with what reads its readings, which has to be called.
    fn read(
        &self,
        part: &Manifest,
        shard: u32,
        mut each: impl FnMut(
            City,
            &mut dyn FnMut(&mut dyn FnMut(HeldReading)) -> Result<(), ParquetError>,
        ) -> Result<(), ParquetError>,
    ) -> Result<(), CheckpointError> {
        let name = part.name();
        for segment in part.segments.iter().filter(|segment| segment.shard == shard) {
            let cities = self.checkpoints.cities(name, segment)?;
            let file = segment.readings.as_ref().unwrap_or(&segment.cities);
            let wrong = |error: ParquetError| unreadable(name, file, &error);
            let mut reader = match &segment.readings {
                Some(file) => {
                    Some(Reader::open(self.checkpoints.file(name, file)?, file.rows).map_err(wrong)?)
                }
                None => None,
            };
            for city in cities {
                let count = city.readings;
                each(city, &mut |take| match &mut reader {
                    Some(reader) => reader.take(count, take),
                    None => Ok(()),
                })
                .map_err(wrong)?;
            }
        }
        Ok(())
    }

    fn state(&self, city: City, blocks: Vec<Block>) -> Result<CityState, CheckpointError> {
        let City { name, partition, high, withdrawn, measured, .. } = city;
        let slot = (self.slot_of)(&partition).ok_or_else(|| CheckpointError::UnknownPartition {
            name: self.chain.last().map_or_else(String::new, |last| last.name().to_string()),
            partition: format!("{}/{}", partition.source, partition.partition),
        })?;
        Ok(CityState { name, slot, high, since: EventTime::MIN, blocks, withdrawn, measured })
    }
}

/// Readings in the order of time, as full blocks.
#[derive(Default)]
struct Packing {
    readings: Vec<HeldReading>,
    blocks: Vec<Block>,
}

impl Packing {
    #[inline]
    fn push(&mut self, reading: HeldReading) {
        self.readings.push(reading);
        if self.readings.len() == BLOCK_READINGS {
            self.blocks.push(Block::pack(&self.readings));
            self.readings.clear();
        }
    }

    /// With newer readings behind, in the order of [`Folding::readings`].
    fn and(mut self, readings: Vec<Vec<HeldReading>>) -> Vec<Block> {
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
