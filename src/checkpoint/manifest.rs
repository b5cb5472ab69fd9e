//! What a checkpoint says of itself: one small object, put once, that names all others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::error::CheckpointError;
use super::format::{FIRST_MANIFEST_FORMAT, MANIFEST_FORMAT};
use super::name::{CheckpointName, parse_generation};
use crate::model::rules_version::{RULES_VERSION_KEY, RulesVersionMismatch, VersionedArtifact};
use crate::model::{CheckpointBarrier, EventTime, LogIdentity, STATE_SHARDS};

/// Increments that are added to one full checkpoint. Each costs a start some requests more.
const MAX_INCREMENTS: u32 = 20;

/// What the keys of an identity begin with that are of one source, before its name.
pub const SOURCE_KEY_PREFIX: &str = "source ";

/// Source, partition, and the position of its next record.
pub type PositionsBySource = BTreeMap<String, BTreeMap<u32, u64>>;

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// From where the checkpoints are.
    pub path: String,
    pub bytes: u64,
    pub rows: u64,
    /// In hexadecimal.
    pub xxh3: String,
}

/// Cities of one state shard and, where they have any, their readings in the same order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateSegment {
    pub shard: u32,
    pub cities: FileEntry,
    pub readings: Option<FileEntry>,
    /// The manifest format that readers of these files must know.
    #[serde(default = "first_format", skip_serializing_if = "is_first_format")]
    pub format: u32,
}

fn first_format() -> u32 {
    FIRST_MANIFEST_FORMAT
}

fn is_first_format(format: &u32) -> bool {
    *format == FIRST_MANIFEST_FORMAT
}

impl StateSegment {
    pub fn files(&self) -> impl Iterator<Item = &FileEntry> {
        [Some(&self.cities), self.readings.as_ref()].into_iter().flatten()
    }
}

/// What one worker has written of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerPart {
    #[serde(rename = "mark")]
    pub barrier: CheckpointBarrier,
    pub epoch: u64,
    pub segments: Vec<StateSegment>,
}

/// What a run says of a checkpoint beside the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointHeader {
    /// Number and nonce.
    pub generation: String,
    pub epoch: u64,
    /// What decides results. A run whose own differs does not use the checkpoint.
    pub identity: BTreeMap<String, String>,
    /// The state is complete up to here.
    pub positions: PositionsBySource,
    /// By source: what the logs are known by beside their names.
    pub logs: BTreeMap<String, LogIdentity>,
}

/// The size of a checkpoint and of those that it adds to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainSize {
    /// How many increments there are.
    pub increments: u32,
    /// Of the full checkpoint at its beginning.
    pub full_bytes: u64,
    pub increment_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// The version of the program that wrote it.
    pub program: String,
    pub generation: String,
    pub epoch: u64,
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    pub created_at: EventTime,
    pub identity: BTreeMap<String, String>,
    pub positions: PositionsBySource,
    /// By source: what the logs are known by beside their names.
    #[serde(default)]
    pub logs: BTreeMap<String, LogIdentity>,
    pub state_shards: u32,
    /// The name of the checkpoint that this one adds to; a full one adds to none.
    pub adds_to: Option<String>,
    pub chain: ChainSize,
    /// In its own files.
    pub cities: u64,
    pub readings: u64,
    pub segments: Vec<StateSegment>,
}

impl Manifest {
    /// Of the parts of all workers. Increments add to the checkpoint of the mark before; what they
    /// add to must be published.
    pub fn new(
        cut: CheckpointHeader,
        parts: Vec<WorkerPart>,
        adds_to: Option<&Manifest>,
    ) -> Result<Manifest, CheckpointError> {
        let incompatible = |what: &str| CheckpointError::IncompatibleParts(what.to_owned());
        if parse_generation(&cut.generation).is_none() {
            return Err(incompatible("the generation is not a number and a nonce"));
        }
        let mut shards = BTreeSet::new();
        for part in &parts {
            if part.epoch != cut.epoch || part.barrier != parts[0].barrier {
                return Err(incompatible("they are of different epochs"));
            }
            let segment_shards: BTreeSet<u32> = part.segments.iter().map(|segment| segment.shard).collect();
            if part.barrier.full != adds_to.is_none() {
                return Err(incompatible(
                    "a full checkpoint must not have a base, and an increment must have one",
                ));
            }
            if segment_shards.iter().any(|shard| *shard >= STATE_SHARDS || !shards.insert(*shard)) {
                return Err(incompatible("two workers have written the same shard"));
            }
        }
        let segments: Vec<StateSegment> = parts.into_iter().flat_map(|part| part.segments).collect();
        let rows = |file: &FileEntry| file.rows;
        let bytes = segments.iter().flat_map(StateSegment::files).map(|file| file.bytes).sum();
        let chain = match adds_to {
            None => ChainSize { full_bytes: bytes, ..ChainSize::default() },
            Some(Manifest { chain, .. }) => ChainSize {
                increments: chain.increments + 1,
                increment_bytes: chain.increment_bytes + bytes,
                ..*chain
            },
        };
        Ok(Manifest {
            format: segments.iter().map(|segment| segment.format).max().unwrap_or(FIRST_MANIFEST_FORMAT),
            program: env!("CARGO_PKG_VERSION").into(),
            generation: cut.generation,
            epoch: cut.epoch,
            created_at: created_now(),
            identity: cut.identity,
            positions: cut.positions,
            logs: cut.logs,
            state_shards: STATE_SHARDS,
            adds_to: adds_to.map(|manifest| manifest.name().to_string()),
            chain,
            cities: segments.iter().map(|segment| rows(&segment.cities)).sum(),
            readings: segments.iter().filter_map(|segment| segment.readings.as_ref()).map(rows).sum(),
            segments,
        })
    }

    pub fn name(&self) -> CheckpointName {
        let generation = parse_generation(&self.generation).map_or(0, |(number, _)| number);
        CheckpointName { generation, epoch: self.epoch }
    }

    /// Whether the next checkpoint should be a full one: once increments have half the bytes of
    /// what they add to, a start would read more of what was replaced since than a full checkpoint
    /// costs to write; and a chain does not grow for ever.
    pub fn next_should_be_full(&self) -> bool {
        let ChainSize { increments, full_bytes, increment_bytes } = self.chain;
        increments >= MAX_INCREMENTS || increment_bytes > full_bytes / 2
    }

    /// Bytes of its own files.
    pub fn own_bytes(&self) -> u64 {
        self.files().map(|file| file.bytes).sum()
    }

    pub fn files(&self) -> impl Iterator<Item = &FileEntry> {
        self.segments.iter().flat_map(StateSegment::files)
    }

    /// Refuses a checkpoint that was computed otherwise than a run computes. A source that only one
    /// of them has is no difference: one that has come is read from its start, and the positions
    /// say of one that is gone.
    pub fn check_identity(&self, identity: &BTreeMap<String, String>) -> Result<(), CheckpointError> {
        RulesVersionMismatch::check_version(
            self.identity.get(RULES_VERSION_KEY),
            identity.get(RULES_VERSION_KEY),
            || VersionedArtifact::Checkpoint { name: self.name().to_string() },
        )?;
        let keys: BTreeSet<&String> = self.identity.keys().chain(identity.keys()).collect();
        let (own_identity, their_identity) = (identity, &self.identity);
        let differs = |key: &&String| {
            let (our, their) = (own_identity.get(*key), their_identity.get(*key));
            our != their && !(key.starts_with(SOURCE_KEY_PREFIX) && (our.is_none() || their.is_none()))
        };
        let Some(key) = keys.into_iter().find(differs) else { return Ok(()) };
        let value_text =
            |value: Option<&String>| value.map_or_else(|| "nothing".into(), |value| format!("{value:?}"));
        let (found, expected) = (value_text(their_identity.get(key)), value_text(own_identity.get(key)));
        Err(CheckpointError::Identity {
            name: self.name().to_string(),
            key: key.clone(),
            found,
            wanted: expected,
        })
    }

    /// A line of JSON and its checksum.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        let json = serde_json::to_string(self)
            .map_err(|error| CheckpointError::IncompatibleParts(error.to_string()))?;
        Ok(format!("{json}\n{:016x}\n", xxh3_64(json.as_bytes())).into_bytes())
    }

    pub(super) fn parse(name: CheckpointName, bytes: &[u8]) -> Result<Manifest, CheckpointError> {
        let damaged = |what: &str| CheckpointError::damaged(name, what);
        let lines =
            std::str::from_utf8(bytes).ok().and_then(|text| text.strip_suffix('\n')?.split_once('\n'));
        let (json, sum) = lines.ok_or_else(|| damaged("its manifest is truncated"))?;
        if sum != format!("{:016x}", xxh3_64(json.as_bytes())) {
            return Err(damaged("its manifest does not match its checksum"));
        }
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let unreadable =
            |error: serde_json::Error| damaged(&format!("its manifest cannot be read ({error})"));
        let Format { format } = serde_json::from_str(json).map_err(unreadable)?;
        if !(FIRST_MANIFEST_FORMAT..=MANIFEST_FORMAT).contains(&format) {
            return Err(CheckpointError::Format {
                name: name.to_string(),
                found: format,
                known: MANIFEST_FORMAT,
            });
        }
        let manifest: Manifest = serde_json::from_str(json).map_err(unreadable)?;
        if manifest.name() != name || parse_generation(&manifest.generation).is_none() {
            return Err(damaged("its manifest belongs to another checkpoint"));
        }
        if manifest.state_shards != STATE_SHARDS
            || manifest.segments.iter().any(|segment| segment.shard >= STATE_SHARDS)
        {
            return Err(damaged(&format!("it does not have {STATE_SHARDS} shards")));
        }
        Ok(manifest)
    }
}

/// A manifest of any bytes, if its name is right: whether it has its checksum. One that is read is
/// written as it was.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_manifest(bytes: &[u8]) -> bool {
    let name = CheckpointName { generation: 17, epoch: 1_764_000_000_000 };
    match Manifest::parse(name, bytes) {
        Ok(manifest) => {
            let again = manifest.to_bytes().expect("what was read is written");
            assert_eq!(Manifest::parse(name, &again).expect("what was written is read"), manifest);
            let _ = (
                manifest.next_should_be_full(),
                manifest.own_bytes(),
                manifest.check_identity(&BTreeMap::new()),
            );
            true
        }
        Err(CheckpointError::Format { .. }) => true,
        Err(error) => {
            let why = error.to_string();
            !why.contains("cut off") && !why.contains("checksum")
        }
    }
}

fn created_now() -> EventTime {
    let ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    EventTime::from_millis(ms).unwrap_or(EventTime::MAX)
}

fn write_time<S: serde::Serializer>(time: &EventTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(time)
}

fn read_time<'de, D: serde::Deserializer<'de>>(from: D) -> Result<EventTime, D::Error> {
    let text = String::deserialize(from)?;
    text.parse::<EventTime>().map_err(serde::de::Error::custom)
}
