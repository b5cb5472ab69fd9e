//! Where the partitions of topics were first read from, what their registries have answered, and where their dead letters go.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Outlets;
use crate::model::{LogPosition, PartitionName, Shard, Slot};
use crate::pipeline::run_error::RunError;
use crate::registry::{Answer, RecordAnswer};
use crate::sinks::kafka::Keeper;
use crate::sinks::kafka::progress::{self, Kept};
use crate::sources::Source;
use crate::sources::kafka::KafkaPlan;
use crate::worker::{LetterPlaces, LogPartition};

/// Where the dead letters of a source go.
#[derive(Clone)]
pub(super) struct Letters {
    pub outlet: usize,
    pub source: KafkaPlan,
    pub topic: Arc<str>,
    pub progress: Arc<str>,
    pub first_shard: Shard,
    pub shards: u16,
    /// Number and partitions of the first and the second topic.
    pub topics: [(u8, u32); 2],
}

/// Where the partitions of topics were first read from, which is kept, and where their dead letters go.
pub struct Starts(HashMap<String, SourceStarts>);

struct SourceStarts {
    kept: Mutex<BTreeMap<u32, u64>>,
    schemas: Vec<(u32, Answer)>,
    /// Once the outlet is this run's.
    keeper: Arc<OnceLock<Keeper>>,
    letters: Letters,
}

/// What is asked for before the outlets are this run's.
fn not_ours() -> RunError {
    RunError::Failed("another generation still writes the results".into())
}

type Answers = Vec<(u32, Answer)>;

impl Starts {
    /// By what is kept in the outlets; it keeps nothing until they are claimed.
    pub(super) fn of(letters: &HashMap<String, Letters>, kept: &[&Kept]) -> Result<Starts, RunError> {
        let of_source = |(name, letters): (&String, &Letters)| {
            let of_outlet = kept[letters.outlet];
            let kept = of_outlet.get(&progress::start_key(name))?.unwrap_or_default();
            let prefix = progress::schema_key(name);
            let schemas = of_outlet.below(&prefix).filter_map(|(id, answer)| {
                Some((id.parse().ok()?, serde_json::from_slice::<Answer>(answer).ok()?))
            });
            let (schemas, letters) = (schemas.collect(), letters.clone());
            let starts = SourceStarts { kept: Mutex::new(kept), schemas, keeper: Arc::default(), letters };
            Ok((name.clone(), starts))
        };
        letters.iter().map(of_source).collect::<Result<_, _>>().map(Starts)
    }

    /// What the registry of a source has answered before, and what keeps further answers.
    pub fn answers(&self, source: &str) -> Result<(Answers, RecordAnswer), RunError> {
        let starts = self.0.get(source);
        let starts =
            starts.ok_or_else(|| RunError::Failed(format!("source {source} has no progress topic")))?;
        let (keeper, prefix) = (starts.keeper.clone(), progress::schema_key(source));
        let record = move |id: u32, answer: &Answer| {
            let keeper = keeper.get().ok_or_else(|| not_ours().to_string())?;
            keeper.keep(&format!("{prefix}{id}"), answer).map_err(|error| error.to_string())
        };
        Ok((starts.schemas.clone(), Box::new(record)))
    }

    /// From now on, what has to be kept is kept.
    pub fn claimed(&self, outlets: &Outlets) {
        for starts in self.0.values() {
            if let Some(outlet) = outlets.0.get(starts.letters.outlet) {
                let _ = starts.keeper.set(outlet.keeper());
            }
        }
    }

    /// Whether it is known from where a partition was first read; of a log that is no topic it always is.
    pub fn knows(&self, source: &str, partition: u32) -> bool {
        self.0.get(source).is_none_or(|starts| {
            starts.kept.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&partition)
        })
    }

    /// A partition as it is read: from where it was read first.
    pub fn partition(
        &self,
        source: &Arc<dyn Source>,
        partition: u32,
        slot: Slot,
    ) -> Result<LogPartition, RunError> {
        let of_source = self.0.get(source.name());
        let start = of_source.map_or(Ok(0), |starts| starts.start(&**source, partition))?;
        Ok(self.at(source, partition, slot, start.into()))
    }

    /// A partition as it is read from a position on.
    pub fn at(
        &self,
        source: &Arc<dyn Source>,
        partition: u32,
        slot: Slot,
        start: LogPosition,
    ) -> LogPartition {
        let name = PartitionName { source: source.name().into(), partition };
        let letters = self.0.get(source.name()).map(|starts| starts.letters.of(partition));
        let shared = source.is_shared();
        LogPartition { slot, name, source: Arc::clone(source), start, shared, letters }
    }
}

impl SourceStarts {
    fn start(&self, source: &dyn Source, partition: u32) -> Result<u64, RunError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(start) = kept.get(&partition) {
            return Ok(*start);
        }
        // Those of a first start are kept all at once: what is missing later has come later.
        let first_start = kept.is_empty();
        for partition in
            (0..source.partitions().max(partition + 1)).filter(|p| !kept.contains_key(p)).collect::<Vec<_>>()
        {
            let failed = |error| RunError::Source { name: source.name().to_owned(), error };
            let start = source.start(partition, first_start).map_err(failed)?;
            kept.insert(partition, start);
        }
        self.keeper.get().ok_or_else(not_ours)?.keep(&progress::start_key(source.name()), &*kept)?;
        Ok(kept.get(&partition).copied().unwrap_or(0))
    }
}

impl Letters {
    fn of(&self, partition: u32) -> LetterPlaces {
        let places = self.topics.map(|(topic, partitions)| {
            // By the partition that is read, whatever becomes of the letters' topic.
            let shard = Shard(self.first_shard.0 + (partition % u32::from(self.shards)) as u16);
            (shard, topic, partition % partitions.max(1))
        });
        LetterPlaces { topic: self.topic.clone(), progress: self.progress.clone(), places }
    }
}
