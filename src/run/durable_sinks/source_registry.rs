//! First read positions of partitions, recorded responses of schema registries, and routes of dead
//! letters.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::running::DurableSinks;
use crate::model::{LogPosition, PartitionIndex, PartitionName, Shard};
use crate::registry::{RegistryResponse, ResponseRecorder};
use crate::run::run_error::RunError;
use crate::sinks::ProgressWriter;
use crate::sinks::progress::{self, ProgressSnapshot};
use crate::sources::Source;
use crate::sources::kafka::KafkaSourcePlan;
use crate::worker::{DeadLetterTargets, LogPartition};

/// Where the dead letters of a source go.
#[derive(Clone)]
pub(super) struct DeadLetterRoute {
    pub sink: usize,
    pub source: KafkaSourcePlan,
    pub topic: Arc<str>,
    pub progress: Arc<str>,
    pub first_shard: Shard,
    pub shards: u16,
    /// Number and partition count of the first and the second topic.
    pub topics: [(u8, u32); 2],
}

/// Shards of a sink that share the dead letters of all sources, as rows of a table.
#[derive(Clone, Copy)]
pub(super) struct DeadLetterTable {
    pub first_shard: Shard,
    pub shards: u16,
}

/// The recorded first read positions of partitions, and the routes of their dead letters.
pub struct SourceRegistry {
    /// By the name of the source: those that are topics.
    sources: HashMap<String, RegisteredSource>,
    dead_letter_tables: Vec<DeadLetterTable>,
}

struct RegisteredSource {
    kept: Mutex<BTreeMap<u32, u64>>,
    schemas: Vec<(u32, RegistryResponse)>,
    /// Set once the sink is claimed.
    writer: Arc<OnceLock<ProgressWriter>>,
    dead_letters: DeadLetterRoute,
}

/// The error of a call that requires claimed sinks.
fn not_claimed() -> RunError {
    RunError::Failed("another generation still writes the results".into())
}

type Answers = Vec<(u32, RegistryResponse)>;

impl SourceRegistry {
    /// Built from the sinks' progress; it records nothing until the sinks are claimed.
    pub(super) fn of(
        routes: &HashMap<String, DeadLetterRoute>,
        dead_letter_tables: &[DeadLetterTable],
        snapshots: &[&ProgressSnapshot],
    ) -> Result<SourceRegistry, RunError> {
        let of_source = |(name, route): (&String, &DeadLetterRoute)| {
            let of_sink = snapshots[route.sink];
            let start_positions = of_sink.get(&progress::start_key(name))?.unwrap_or_default();
            let prefix = progress::schema_prefix(name);
            let schemas = of_sink.with_prefix(&prefix).filter_map(|(id, answer)| {
                Some((id.parse().ok()?, serde_json::from_slice::<RegistryResponse>(answer).ok()?))
            });
            let (schemas, dead_letters) = (schemas.collect(), route.clone());
            let starts = RegisteredSource {
                kept: Mutex::new(start_positions),
                schemas,
                writer: Arc::default(),
                dead_letters,
            };
            Ok((name.clone(), starts))
        };
        let sources = routes.iter().map(of_source).collect::<Result<_, RunError>>()?;
        Ok(SourceRegistry { sources, dead_letter_tables: dead_letter_tables.to_vec() })
    }

    /// The recorded responses of a source's registry, and the recorder of further ones.
    pub fn schema_responses(&self, source: &str) -> Result<(Answers, ResponseRecorder), RunError> {
        let starts = self.sources.get(source);
        let starts =
            starts.ok_or_else(|| RunError::Failed(format!("source {source} has no progress topic")))?;
        let (writer, prefix) = (starts.writer.clone(), progress::schema_prefix(source));
        let record = move |id: u32, answer: &RegistryResponse| {
            let writer = writer.get().ok_or_else(|| not_claimed().to_string())?;
            writer.write(&format!("{prefix}{id}"), answer).map_err(|error| error.to_string())
        };
        Ok((starts.schemas.clone(), Box::new(record)))
    }

    /// Starts recording.
    pub fn install_writers(&self, sinks: &DurableSinks) {
        for source in self.sources.values() {
            if let Some(writer) = sinks.progress_writer_of(source.dead_letters.sink) {
                let _ = source.writer.set(writer);
            }
        }
    }

    /// Whether the first read position of a partition is known. It always is for a log that is no
    /// topic.
    pub fn knows(&self, source: &str, partition: u32) -> bool {
        self.sources.get(source).is_none_or(|starts| starts.kept.lock().contains_key(&partition))
    }

    /// The start position of a partition without a checkpoint: the position at which it was first
    /// read.
    pub fn start_of(&self, source: &Arc<dyn Source>, partition: u32) -> Result<u64, RunError> {
        let registered = self.sources.get(source.name());
        registered.map_or(Ok(0), |registered| registered.start_position(&**source, partition))
    }

    /// A partition to be read from a position on.
    pub fn partition_from(
        &self,
        source: &Arc<dyn Source>,
        partition: u32,
        index: PartitionIndex,
        start: LogPosition,
    ) -> LogPartition {
        let name = PartitionName { source: source.name().into(), partition };
        let dead_letters = self.sources.get(source.name()).map(|starts| starts.dead_letters.of(partition));
        let shard = |table: &DeadLetterTable| shard_of_partition(table.first_shard, table.shards, partition);
        let dead_letter_rows = self.dead_letter_tables.iter().map(shard).collect();
        let shared = source.is_shared();
        let source = Arc::clone(source);
        LogPartition { index, name, source, start, shared, dead_letters, dead_letter_rows }
    }
}

impl RegisteredSource {
    fn start_position(&self, source: &dyn Source, partition: u32) -> Result<u64, RunError> {
        let mut kept = self.kept.lock();
        if let Some(start) = kept.get(&partition) {
            return Ok(*start);
        }
        // A first start records all positions at once, so a partition without one was added later.
        let first_start = kept.is_empty();
        for partition in
            (0..source.partitions().max(partition + 1)).filter(|p| !kept.contains_key(p)).collect::<Vec<_>>()
        {
            let failed = |error| RunError::Source { name: source.name().to_owned(), error };
            let start = source.start_position(partition, first_start).map_err(failed)?;
            kept.insert(partition, start);
        }
        self.writer.get().ok_or_else(not_claimed)?.write(&progress::start_key(source.name()), &*kept)?;
        Ok(kept.get(&partition).copied().unwrap_or(0))
    }
}

/// The shard that writes the dead letters of a partition.
fn shard_of_partition(first: Shard, shards: u16, partition: u32) -> Shard {
    Shard(first.0 + (partition % u32::from(shards)) as u16)
}

impl DeadLetterRoute {
    fn of(&self, partition: u32) -> DeadLetterTargets {
        let routes = self.topics.map(|(topic, partitions)| {
            // Chosen by the partition that is read, however many partitions the dead-letter topic
            // has.
            let shard = shard_of_partition(self.first_shard, self.shards, partition);
            (shard, topic, partition % partitions.max(1))
        });
        DeadLetterTargets { topic: self.topic.clone(), progress: self.progress.clone(), targets: routes }
    }
}
