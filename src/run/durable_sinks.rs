//! The outlets of a run: which clusters are written to, by which shards, and where a replay stops for them.

mod identity;
mod recorded_topics;
mod resume_points;
mod source_registry;
mod topics;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::identity::{check_dead_letters_topic, dead_letters_key, sink_identity};
pub use self::identity::{file_identity, log_identity};
pub use self::recorded_topics::check_nothing_is_lost;
use self::recorded_topics::{RecordedTopics, recorded_topic};
use self::source_registry::DeadLetterRoute;
pub use self::source_registry::SourceRegistry;
use self::topics::ensure_topics;
use super::run_error::RunError;
use crate::codec::{CURRENT_SCHEMA, ROW_SCHEMA};
use crate::config::{ServicePlan, SourceKind, SourcePlan};
use crate::dataflow::EncodedBatchesPlan;
use crate::kafka::topic_admin::TopicMetadata;
use crate::kafka::topic_identity::{TopicIdentity, TopicWatch};
use crate::kafka::{KafkaCluster, dead_letter_topics};
use crate::model::{Render, Shard, Topology};
use crate::registry::{RegistryClient, RegistryError, RegistrySettings};
use crate::sinks::kafka::progress::{Positions, ProgressSnapshot, ShardProgress, shard_key};
use crate::sinks::kafka::render::{AvroRows, JsonRows, KafkaRenderer, PartitionLayout};
use crate::sinks::kafka::{
    self, Delivery, FencedShards, Heartbeat, Identity, KafkaOutputPlan, KafkaSink, KafkaSinkError,
    KafkaSinkPlan, ProgressWriter, RowFormat, RunningKafkaSink, ShardSenders, SinkClaim, SuccessorClaim,
};
use crate::sources::kafka::KafkaSourcePlan;
use crate::worker::{LogPartition, ResumePoints};

/// How long the sinks may take to say what they hold, brokers that are starting included.
pub const FIRST_INSPECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Shards and times of an outlet that has dead letters only.
const DEAD_LETTER_SHARDS: u16 = 1;
const DEAD_LETTER_COMMIT_INTERVAL: Duration = Duration::from_millis(200);
const DEAD_LETTER_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a schema registry may take at the start.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(30);
const REGISTRY_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const REGISTRY_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The outlets of a run before they are claimed: their topics are there, and everything about them is known but what is in them.
pub struct InspectedSinks {
    specs: Vec<SinkSpec>,
    layout: Option<PartitionLayout>,
    encoding: RowEncoding,
    /// By the source's name.
    dead_letters: HashMap<String, DeadLetterRoute>,
    recorded: Arc<RecordedTopics>,
}

/// The outlets as the configuration has them.
struct SinkSpecs {
    specs: Vec<SinkSpec>,
    /// By source: its outlet, and the number of its first dead-letter topic there.
    dead_letters: HashMap<String, (usize, u8)>,
}

impl SinkSpecs {
    fn of(plan: &ServicePlan) -> SinkSpecs {
        let mut drafts = Vec::new();
        if let Some(sink) = &plan.sink {
            let mut topics = vec![sink.topic.clone()];
            topics.extend(sink.current_topic.clone());
            drafts.push(SinkSpec::new(sink.output.clone(), topics, true));
        }
        let mut letters = HashMap::new();
        for (name, source) in kafka_sources(plan) {
            let same = |draft: &SinkSpec| {
                draft.plan.cluster == source.cluster
                    && (draft.has_results || draft.plan.progress_topic == source.progress_topic)
            };
            let outlet = drafts.iter().position(same).unwrap_or_else(|| {
                drafts.push(SinkSpec::new(dead_letters_only(source), Vec::new(), false));
                drafts.len() - 1
            });
            let draft = &mut drafts[outlet];
            letters.insert(name.to_owned(), (outlet, draft.topics.len() as u8));
            draft.topics.extend(dead_letter_topics(&source.topic));
        }
        SinkSpecs { specs: drafts, dead_letters: letters }
    }
}

/// The outlets, claimed, with what earlier starts have written.
pub struct DurableSinks(Vec<KafkaSink>);

/// What process 0 finds out about the topics of the sinks, for all processes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SharedTopics {
    written: RowEncoding,
    facts: Vec<BTreeMap<String, TopicMetadata>>,
}

/// How rows are written; in Avro with the ids of their schemas, where they have any.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum RowEncoding {
    Json,
    Avro(Option<(u32, u32)>),
}

/// What a shard has made durable.
pub struct DurableShard {
    pub positions: Positions,
    /// Where it writes the dead letters of these alone.
    pub dead_letters_of: Option<Vec<String>>,
}

impl DurableShard {
    /// Whether it writes anything of a source.
    pub fn is_of(&self, source: &str) -> bool {
        self.dead_letters_of.as_ref().is_none_or(|only| only.iter().any(|own| own == source))
    }
}

/// An outlet before it is opened.
struct SinkSpec {
    plan: KafkaOutputPlan,
    topics: Vec<String>,
    has_results: bool,
    first_shard: Shard,
    identity: Identity,
}

impl SinkSpec {
    fn new(plan: KafkaOutputPlan, topics: Vec<String>, has_results: bool) -> SinkSpec {
        SinkSpec { plan, topics, has_results, first_shard: Shard(0), identity: Identity::new() }
    }
}

/// A sink whose shards this process has fenced.
pub struct FencedSink {
    sink: usize,
    claim: SinkClaim,
    shards: FencedShards,
    /// At process 0: signs of life of the claim.
    heartbeat: Option<Heartbeat>,
}

impl InspectedSinks {
    /// At process 0: checks the topics, makes those that may be made, and registers the schemas of rows.
    pub fn find_topics(plan: &ServicePlan) -> Result<SharedTopics, RunError> {
        let is_generator = |source: &&SourcePlan| matches!(source.kind, SourceKind::Generator(_));
        if let (Some(_), None, Some(source)) =
            (&plan.sink, &plan.ingest, plan.sources.iter().find(is_generator))
        {
            return Err(RunError::Failed(format!(
                "source {}: what is made up is in no log without ingest, so results of it could not be written exactly once: set \
                 ingest.enabled = true",
                source.name
            )));
        }
        let written = plan.sink.as_ref().map_or(Ok(RowEncoding::Json), register_row_schemas)?;
        let SinkSpecs { specs, .. } = SinkSpecs::of(plan);
        let facts = specs.iter().map(|spec| ensure_topics(plan, spec)).collect::<Result<Vec<_>, _>>()?;
        Ok(SharedTopics { written, facts })
    }

    /// The sinks, by what process 0 has found out about their topics.
    pub fn new(plan: &ServicePlan, topics: SharedTopics) -> InspectedSinks {
        let SinkSpecs { specs: mut drafts, dead_letters: places_of } = SinkSpecs::of(plan);
        let SharedTopics { written, facts } = topics;
        let mut next_shard = 0;
        for (draft, facts) in drafts.iter_mut().zip(&facts) {
            draft.first_shard = Shard(next_shard);
            next_shard += draft.plan.shards;
            draft.identity = sink_identity(plan, draft, facts);
        }
        for (name, (outlet, _)) in &places_of {
            let progress_topic = drafts[*outlet].plan.progress_topic.clone();
            for draft in &mut drafts {
                draft.identity.insert(dead_letters_key(name), progress_topic.clone());
            }
        }
        let partitions =
            |outlet: usize, topic: &str| facts[outlet].get(topic).map_or(1, |facts| facts.partitions);
        let letters = kafka_sources(plan).filter_map(|(name, source)| {
            let (outlet, at) = *places_of.get(name)?;
            let [first, second] = dead_letter_topics(&source.topic);
            let topics = [(at, partitions(outlet, &first)), (at + 1, partitions(outlet, &second))];
            let (topic, first_shard, shards) =
                (name.into(), drafts[outlet].first_shard, drafts[outlet].plan.shards);
            let source = source.clone();
            let progress = drafts[outlet].plan.progress_topic.as_str().into();
            Some((
                name.to_owned(),
                DeadLetterRoute { sink: outlet, source, topic, progress, first_shard, shards, topics },
            ))
        });
        let letters = letters.collect();
        let places = plan.sink.as_ref().map(|sink| PartitionLayout {
            first_shard: Shard(0),
            shards: sink.output.shards,
            partitions: partitions(0, &sink.topic),
            current_partitions: sink.current_topic.as_ref().map(|topic| partitions(0, topic)),
        });
        let recorded = Arc::new(RecordedTopics::new(plan, &drafts));
        InspectedSinks { specs: drafts, layout: places, encoding: written, dead_letters: letters, recorded }
    }

    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    pub fn len(&self) -> usize {
        self.specs.len()
    }

    /// At process 0: claims a sink, after the claim that it is to follow, if it is to follow one.
    pub fn claim(&self, sink: usize, after: Option<&SuccessorClaim>) -> Result<SinkClaim, RunError> {
        let SinkSpec { plan, identity, .. } = &self.specs[sink];
        Ok(SinkClaim::acquire(plan, identity, after)?)
    }

    /// Fences every earlier writer of the shards that this process writes. At process 0 the claim gives signs of life from now on: what
    /// follows may take long, and a standby would take the silence for an end.
    pub fn fence(&self, sink: usize, claim: SinkClaim, topology: Topology) -> Result<FencedSink, RunError> {
        let SinkSpec { plan, first_shard, topics, .. } = &self.specs[sink];
        let heartbeat = topology.is_first_process().then(|| Heartbeat::begin(plan, &claim)).transpose()?;
        let is_local = |shard: &u16| {
            let writer = topology.writer_worker_of(Shard(first_shard.0 + shard));
            topology.process_of_worker(writer) == topology.process
        };
        let local = (0..plan.shards).filter(is_local);
        let shards = FencedShards::fence(plan, topics.clone(), local, &claim)?;
        Ok(FencedSink { sink, claim, shards, heartbeat })
    }

    /// At process 0, once every process has fenced its shards: what is durable, finally.
    pub fn read_progress(&self, sink: usize, claim: &SinkClaim) -> Result<ProgressSnapshot, RunError> {
        let SinkSpec { plan, identity, .. } = &self.specs[sink];
        Ok(claim.read_progress(plan, identity, &self.recorded.of_sink(sink))?)
    }

    /// The sinks are this run's, and hold this, by sink.
    pub fn open(
        &self,
        fenced: Vec<FencedSink>,
        progress: Vec<ProgressSnapshot>,
    ) -> Result<DurableSinks, RunError> {
        let open = |(fenced, progress): (FencedSink, ProgressSnapshot)| {
            let FencedSink { sink, claim, shards, heartbeat } = fenced;
            let SinkSpec { plan, first_shard, .. } = &self.specs[sink];
            KafkaSink::new(plan, *first_shard, claim, (shards, heartbeat), progress)
        };
        let sinks = fenced.into_iter().zip(progress).map(open).collect::<Result<Vec<KafkaSink>, _>>()?;
        self.recorded.install_writers(sinks.iter().map(KafkaSink::progress_writer).collect());
        Ok(DurableSinks(sinks))
    }

    /// What others have written of the outlets until now, within so much time.
    ///
    /// # Errors
    ///
    /// Where it was made with anything that is other now.
    pub fn inspect_progress(&self, within: Duration) -> Result<Vec<ProgressSnapshot>, RunError> {
        let look = |draft: &SinkSpec| Ok(kafka::inspect_progress(&draft.plan, &draft.identity, within)?);
        self.specs.iter().map(look).collect()
    }

    /// Refuses before anything is claimed what a start could not go on with: shards that stand where these logs, or no single run
    /// of them, have ever been.
    pub fn check_resumable(
        &self,
        kept: &[ProgressSnapshot],
        partitions: &[LogPartition],
    ) -> Result<(), RunError> {
        let mut all = Vec::new();
        for (draft, kept) in self.specs.iter().zip(kept) {
            for number in 0..draft.plan.shards {
                let progress: Option<ShardProgress> = kept.get(&shard_key(number))?;
                all.extend(progress.map(|progress| (Shard(draft.first_shard.0 + number), progress)));
            }
        }
        resume_points::find_resume_points(all, partitions)?;
        self.recorded.check(kept)
    }

    /// What earlier starts have recorded of the topic of a source.
    pub fn recorded_topic(&self, kept: &[ProgressSnapshot], source: &str) -> Result<TopicIdentity, RunError> {
        match self.dead_letters.get(source) {
            Some(letters) => recorded_topic(&kept[letters.sink], &letters.source.topic),
            None => Ok(TopicIdentity::default()),
        }
    }

    /// Whether a topic that is read has taken the place of another one, with --adopt-logs.
    pub fn has_adopted_topics(&self) -> bool {
        self.dead_letters.values().any(|letters| {
            let records = self.recorded.of_sink(letters.sink);
            records.get(&letters.source.topic).is_some_and(|record| !record.former_ids.is_empty())
        })
    }

    /// Looks at the topics while the run goes on, until this is dropped; `failed` hears why it cannot.
    pub fn watch_topics(
        &self,
        failed: impl Fn(String) + Clone + Send + 'static,
    ) -> Result<TopicWatch, RunError> {
        self.recorded.watch(failed)
    }

    /// Refuses a first start of an outlet whose sources' dead letters another progress topic says more of.
    pub fn check_dead_letters(&self, kept: &[ProgressSnapshot]) -> Result<(), RunError> {
        self.dead_letters.iter().try_for_each(|(name, letters)| {
            let draft = &self.specs[letters.sink];
            check_dead_letters_topic(name, &letters.source, draft, &kept[letters.sink])
        })
    }

    /// What every shard has made durable, by what is kept in the outlets.
    pub fn durable_shards(&self, kept: &[&ProgressSnapshot]) -> Result<Vec<DurableShard>, RunError> {
        let mut all = Vec::new();
        for (at, (draft, kept)) in self.specs.iter().zip(kept).enumerate() {
            let own = self.dead_letters.iter().filter(|(_, letters)| letters.sink == at);
            let only = (!draft.has_results).then(|| own.map(|(source, _)| source.clone()).collect());
            for shard in 0..draft.plan.shards {
                let progress: Option<ShardProgress> = kept.get(&shard_key(shard))?;
                let positions = progress.unwrap_or_default().positions;
                all.push(DurableShard { positions, dead_letters_of: Option::clone(&only) });
            }
        }
        Ok(all)
    }

    /// Cluster, progress topic and number of shards of each outlet.
    pub fn progress_topics(&self) -> impl Iterator<Item = (&KafkaCluster, &str, u16)> {
        self.specs.iter().map(|draft| {
            let KafkaOutputPlan { cluster, progress_topic, shards, .. } = &draft.plan;
            (cluster, &**progress_topic, *shards)
        })
    }

    /// How the graph writes results.
    pub fn output_plan(&self) -> Option<EncodedBatchesPlan> {
        if self.is_empty() {
            return None;
        }
        let InspectedSinks { encoding: written, .. } = *self;
        let render = self.layout.map(|places| -> Arc<dyn Fn() -> Box<dyn Render> + Send + Sync> {
            match written {
                RowEncoding::Json => Arc::new(move || Box::new(KafkaRenderer::new(places, JsonRows))),
                RowEncoding::Avro(ids) => {
                    Arc::new(move || Box::new(KafkaRenderer::new(places, AvroRows { ids })))
                }
            }
        });
        let current = self.layout.is_some_and(|places| places.current_partitions.is_some());
        // After a crash, epochs may be longer than those that were written before it.
        let touched = self.specs.iter().any(|draft| draft.plan.delivery == Delivery::AtLeastOnce);
        Some(EncodedBatchesPlan { make_renderer: render, write_current: current, write_touched: touched })
    }

    /// What says of each partition where it begins, by what is kept in the outlets; it keeps nothing until they are claimed.
    pub fn source_registry(&self, kept: &[&ProgressSnapshot]) -> Result<SourceRegistry, RunError> {
        SourceRegistry::of(&self.dead_letters, kept)
    }
}

impl DurableSinks {
    /// That of the results, where there are any.
    pub fn generation(&self) -> Option<Arc<str>> {
        self.0.first().map(KafkaSink::generation)
    }

    /// No epoch below may be used.
    pub fn epoch_floor(&self) -> Result<u64, RunError> {
        let floors = self.0.iter().map(KafkaSink::epoch_floor).collect::<Result<Vec<_>, _>>()?;
        Ok(floors.into_iter().max().unwrap_or(0))
    }

    /// What makes epochs durable where there is no data directory.
    pub fn progress_writer(&self) -> Option<ProgressWriter> {
        self.0.first().map(KafkaSink::progress_writer)
    }

    pub fn progress(&self) -> Vec<&ProgressSnapshot> {
        self.0.iter().map(KafkaSink::progress).collect()
    }

    /// Where a replay of these partitions stops.
    pub fn resume_points(&self, partitions: &[LogPartition]) -> Result<ResumePoints, RunError> {
        let mut all = Vec::new();
        for outlet in &self.0 {
            all.extend(outlet.shards()?.into_iter().filter_map(|(shard, progress)| Some((shard, progress?))));
        }
        resume_points::find_resume_points(all, partitions)
    }

    /// Starts writing; `failed` gets what ends the run.
    pub fn start_writing(
        self,
        watches_for_claims: bool,
        failed: Arc<dyn Fn(KafkaSinkError) + Send + Sync>,
    ) -> Result<RunningSinks, RunError> {
        let start = |outlet: KafkaSink| outlet.start_writers(watches_for_claims, Arc::clone(&failed));
        Ok(RunningSinks(self.0.into_iter().map(start).collect::<Result<_, _>>()?))
    }
}

/// Registers the schemas of rows, where there is a registry.
fn register_row_schemas(sink: &KafkaSinkPlan) -> Result<RowEncoding, RunError> {
    let (urls, user) = match &sink.format {
        RowFormat::Json => return Ok(RowEncoding::Json),
        RowFormat::BareAvro => return Ok(RowEncoding::Avro(None)),
        RowFormat::Avro { urls, user } => (urls.clone(), user.clone()),
    };
    let client = RegistryClient::new(&RegistrySettings { urls, user, timeout: REGISTRY_REQUEST_TIMEOUT })?;
    let register = |topic: &str, schema: &str| {
        let deadline = Instant::now() + REGISTRATION_TIMEOUT;
        loop {
            match client.register_schema(&format!("{topic}-value"), schema) {
                Err(RegistryError::Unavailable(_)) if Instant::now() < deadline => {
                    thread::sleep(REGISTRY_RETRY_INTERVAL)
                }
                registered => return registered,
            }
        }
    };
    let row = register(&sink.topic, ROW_SCHEMA)?;
    let current = sink.current_topic.as_ref().map(|topic| register(topic, CURRENT_SCHEMA));
    Ok(RowEncoding::Avro(Some((row, current.transpose()?.unwrap_or(0)))))
}

/// Outlets that are written to.
pub struct RunningSinks(Vec<RunningKafkaSink>);

impl RunningSinks {
    pub fn senders(&self) -> Vec<ShardSenders> {
        self.0.iter().map(RunningKafkaSink::senders).collect()
    }

    /// Waits until everything is durable: false where it is not.
    pub fn finish(self) -> bool {
        let written: Vec<bool> = self.0.into_iter().map(RunningKafkaSink::finish).collect();
        written.into_iter().all(|written| written)
    }
}

fn kafka_sources(plan: &ServicePlan) -> impl Iterator<Item = (&str, &KafkaSourcePlan)> {
    plan.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::Kafka(kafka) => Some((source.name.as_str(), kafka)),
        SourceKind::Generator(_) | SourceKind::File(_) => None,
    })
}

fn dead_letters_only(source: &KafkaSourcePlan) -> KafkaOutputPlan {
    KafkaOutputPlan {
        cluster: source.cluster.clone(),
        progress_topic: source.progress_topic.clone(),
        delivery: Delivery::ExactlyOnce,
        shards: DEAD_LETTER_SHARDS,
        commit_interval: DEAD_LETTER_COMMIT_INTERVAL,
        transaction_timeout: DEAD_LETTER_TRANSACTION_TIMEOUT,
    }
}
