//! The sinks of a run before they are claimed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::facts::{KafkaFacts, RowEncoding, SinkFacts};
use super::identity::{check_dead_letters_topic, dead_letters_key, kafka_identity};
use super::recorded_topics::{RecordedTopics, recorded_topic};
use super::resume_points::find_resume_points;
use super::running::DurableSinks;
use super::source_registry::{DeadLetterRoute, DeadLetterTable, SourceRegistry};
use super::specs::{KafkaSpec, SinkSpecs, kafka_sources};
use super::uncounted_sinks::{UncountedSink, UncountedSinks};
use crate::config::ServicePlan;
use crate::dataflow::{EncodedBatchesPlan, RendererPlan};
use crate::kafka::topic_identity::{TopicIdentity, TopicWatch};
use crate::kafka::{KafkaCluster, dead_letter_topics};
use crate::model::{PartitionIndex, PartitionTable, Render, Shard, Topology};
use crate::run::run_error::RunError;
use crate::sinks::error::SinkError;
use crate::sinks::kafka::render::{AvroRows, JsonRows, KafkaRenderer, PartitionLayout};
use crate::sinks::kafka::{Delivery, KafkaOutputPlan, KafkaSink};
use crate::sinks::progress::{CLAIM, Claim, ClaimRequest, Positions, ProgressSnapshot, SinkClaim};
use crate::sinks::shard::FencedShards;
use crate::sinks::{ClaimedSink, DurableSink, Heartbeat};
use crate::worker::{LogPartition, ResumePoints};

/// The sinks of a run before they are claimed: their topics exist, and everything but their
/// progress is known.
pub struct InspectedSinks {
    /// In the order of claims: Kafka sinks, folders, PostgreSQL.
    sinks: Vec<InspectedSink>,
    kafka: Vec<KafkaSpec>,
    /// By name of the source.
    dead_letters: HashMap<String, DeadLetterRoute>,
    dead_letter_tables: Vec<DeadLetterTable>,
    recorded: Arc<RecordedTopics>,
}

/// A sink and the number of its first shard among the shards of all sinks.
struct InspectedSink {
    sink: Arc<dyn DurableSink>,
    first_shard: Shard,
    /// The name of the sink in messages for users.
    shown_as: Arc<str>,
    /// Encodes the rows of the sink; none if it writes only dead letters.
    renderer: Option<RendererPlan>,
}

/// The timeout of the first inspection of the sinks, which includes the start of brokers.
pub const FIRST_INSPECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// A sink whose shards this process has fenced.
pub struct FencedSink {
    sink: usize,
    claim: SinkClaim,
    shards: FencedShards,
    /// At process 0.
    heartbeat: Option<Heartbeat>,
}

/// The durable progress of a shard.
pub struct DurableShard {
    /// The sink's name in messages for users.
    pub sink: Arc<str>,
    pub positions: Positions,
    /// The sources whose dead letters the shard writes, if it writes nothing else.
    pub dead_letters_of: Option<Vec<String>>,
}

impl DurableShard {
    /// Whether the shard writes results or dead letters of a source.
    pub fn is_of(&self, source: &str) -> bool {
        self.dead_letters_of.as_ref().is_none_or(|only| only.iter().any(|own| own == source))
    }
}

impl InspectedSinks {
    /// The sinks of a plan, with the facts that one process has collected.
    pub fn new(plan: &ServicePlan, facts: &SinkFacts) -> InspectedSinks {
        let specs = SinkSpecs::of(plan);
        let SinkSpecs { kafka, dead_letters, .. } = &specs;
        let mut identities: Vec<_> = kafka
            .iter()
            .zip(&facts.kafka)
            .map(|(spec, facts)| kafka_identity(plan, spec, &facts.topics))
            .collect();
        for (name, (sink, _)) in dead_letters {
            for identity in &mut identities {
                identity.insert(dead_letters_key(name), kafka[*sink].plan.progress_topic.clone());
            }
        }
        let mut sinks = Vec::new();
        let mut next_shard = 0;
        for ((spec, facts), identity) in kafka.iter().zip(&facts.kafka).zip(identities) {
            let sink = KafkaSink::new(spec.plan.clone(), spec.topics.clone(), identity);
            let first_shard = Shard(next_shard);
            next_shard += spec.plan.shards;
            let renderer = kafka_renderer(spec, facts, first_shard);
            let shown_as = format!("progress topic {}", spec.plan.progress_topic).into();
            sinks.push(InspectedSink { sink: Arc::new(sink), first_shard, shown_as, renderer });
        }
        let authority = match kafka.first() {
            Some(spec) => format!("progress topic {}", spec.plan.progress_topic),
            None => "the data directory".to_owned(),
        };
        let uncounted = UncountedSinks { plan, authority: &authority, log_ids: &facts.log_ids };
        let uncounted = uncounted.make(&specs, Shard(next_shard));
        let dead_letter_tables = uncounted.iter().filter_map(UncountedSink::dead_letter_table).collect();
        sinks.extend(uncounted.into_iter().map(|made| {
            let UncountedSink { sink, first_shard, shown_as, renderer, .. } = made;
            InspectedSink { sink, first_shard, shown_as, renderer: Some(renderer) }
        }));
        let routes = kafka_sources(plan).filter_map(|(name, source)| {
            let (sink, at) = *dead_letters.get(name)?;
            let [first, second] = dead_letter_topics(&source.topic);
            let partitions = |topic: &str| facts.kafka[sink].partitions(topic);
            let route = DeadLetterRoute {
                sink,
                source: source.clone(),
                topic: name.into(),
                progress: kafka[sink].plan.progress_topic.as_str().into(),
                first_shard: sinks[sink].first_shard,
                shards: kafka[sink].plan.shards,
                topics: [(at, partitions(&first)), (at + 1, partitions(&second))],
            };
            Some((name.to_owned(), route))
        });
        let dead_letters = routes.collect();
        let kafka = specs.kafka;
        let recorded = Arc::new(RecordedTopics::new(plan, &kafka));
        InspectedSinks { sinks, kafka, dead_letters, dead_letter_tables, recorded }
    }

    /// The number of sinks. A sink is addressed by its index in the order of claims.
    pub fn len(&self) -> usize {
        self.sinks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sinks.is_empty()
    }

    /// Whether the first sink is the authority of the run; otherwise the data directory is.
    pub fn has_authority(&self) -> bool {
        !self.kafka.is_empty()
    }

    /// Claims a sink: the first step of its start, taken by one process of a run.
    pub fn claim_sink(&self, sink: usize, request: &ClaimRequest<'_>) -> Result<SinkClaim, RunError> {
        Ok(self.sinks[sink].sink.claim(request)?)
    }

    /// Returns an error if a claim was lost.
    pub fn check_claim(&self, sink: usize, claim: &SinkClaim) -> Result<(), RunError> {
        Ok(self.sinks[sink].sink.check_claim(claim)?)
    }

    /// Fences every earlier writer of the shards that this process writes. At process 0 the
    /// heartbeat of the claim starts: the next steps may take long, and a standby would take
    /// silence for the end of this run.
    pub fn fence(&self, sink: usize, claim: SinkClaim, topology: Topology) -> Result<FencedSink, RunError> {
        let InspectedSink { sink: inspected, first_shard, .. } = &self.sinks[sink];
        let is_first = topology.is_first_process();
        let heartbeat = if is_first { inspected.prove_liveness(&claim)? } else { None };
        let is_local = |shard: &u16| {
            let writer = topology.writer_worker_of(Shard(first_shard.0 + shard));
            topology.process_of_worker(writer) == topology.process
        };
        let local: Vec<u16> = (0..inspected.shards()).filter(is_local).collect();
        let shards = inspected.fence(&claim, &local)?;
        Ok(FencedSink { sink, claim, shards, heartbeat })
    }

    /// Reads the durable progress, at one process, once every process has fenced its shards.
    pub fn read_progress(&self, sink: usize, claim: &SinkClaim) -> Result<ProgressSnapshot, RunError> {
        let progress = self.sinks[sink].sink.read_progress(claim)?;
        if sink < self.kafka.len() {
            // Record the topics before anything is written to them or read from them.
            let writer = self.sinks[sink].sink.progress_writer()?;
            self.recorded.record_claimed(sink, &progress, writer.as_ref())?;
        }
        Ok(progress)
    }

    /// Opens the sinks, which this run has claimed, with their progress by sink.
    pub fn open(
        &self,
        fenced: Vec<FencedSink>,
        progress: Vec<ProgressSnapshot>,
    ) -> Result<DurableSinks, RunError> {
        let open = |(fenced, progress): (FencedSink, ProgressSnapshot)| {
            let FencedSink { sink, claim, shards, heartbeat } = fenced;
            let InspectedSink { sink, first_shard, .. } = &self.sinks[sink];
            let claimed = ClaimedSink::new(Arc::clone(sink), *first_shard, claim, shards, progress)?;
            Ok(claimed.with_heartbeat(heartbeat))
        };
        let claimed = fenced.into_iter().zip(progress).map(open).collect::<Result<_, SinkError>>()?;
        let sinks = DurableSinks::new(claimed);
        // From now on, topics that are written to for the first time are recorded.
        let writers = (0..self.kafka.len()).filter_map(|sink| sinks.progress_writer_of(sink));
        self.recorded.install_writers(writers.collect());
        Ok(sinks)
    }

    /// Reads the progress of the sinks within a time limit, while another run may be writing them.
    ///
    /// # Errors
    ///
    /// If this run could not continue that progress.
    pub fn inspect_progress(&self, within: Duration) -> Result<Vec<ProgressSnapshot>, RunError> {
        let inspect = |inspected: &InspectedSink| Ok(inspected.sink.inspect(within)?);
        self.sinks.iter().map(inspect).collect()
    }

    /// Refuses, before any claim, progress that a start could not continue: shards at positions
    /// that these logs do not have, or that no single run can have reached.
    pub fn check_resumable(
        &self,
        snapshots: &[ProgressSnapshot],
        partitions: &[LogPartition],
    ) -> Result<(), RunError> {
        self.find_resume_points(snapshots, partitions)?;
        self.recorded.check(snapshots)
    }

    fn find_resume_points(
        &self,
        snapshots: &[ProgressSnapshot],
        partitions: &[LogPartition],
    ) -> Result<ResumePoints, RunError> {
        let mut all = Vec::new();
        for (inspected, snapshot) in self.sinks.iter().zip(snapshots) {
            for number in 0..inspected.sink.shards() {
                let progress = snapshot.shard(number)?;
                all.extend(progress.map(|progress| (Shard(inspected.first_shard.0 + number), progress)));
            }
        }
        find_resume_points(all, partitions)
    }

    /// The identity that earlier starts have recorded for the topic of a source.
    pub fn recorded_topic(
        &self,
        snapshots: &[ProgressSnapshot],
        source: &str,
    ) -> Result<TopicIdentity, RunError> {
        match self.dead_letters.get(source) {
            Some(route) => recorded_topic(&snapshots[route.sink], &route.source.topic),
            None => Ok(TopicIdentity::default()),
        }
    }

    /// Whether an input topic has replaced another one, with --adopt-logs.
    pub fn has_adopted_topics(&self) -> bool {
        self.dead_letters.values().any(|route| {
            let records = self.recorded.of_sink(route.sink);
            records.get(&route.source.topic).is_some_and(|record| !record.former_ids.is_empty())
        })
    }

    /// Checks the topics during the run, until dropped. `failed` receives the reason if the run
    /// cannot continue.
    pub fn watch_topics(
        &self,
        failed: impl Fn(String) + Clone + Send + 'static,
    ) -> Result<TopicWatch, RunError> {
        self.recorded.watch(failed)
    }

    /// Refuses the first start of a sink if another progress topic has records on the dead letters
    /// of its sources.
    pub fn check_dead_letters(&self, snapshots: &[ProgressSnapshot]) -> Result<(), RunError> {
        self.dead_letters.iter().try_for_each(|(name, route)| {
            let spec = &self.kafka[route.sink];
            check_dead_letters_topic(name, &route.source, spec, &snapshots[route.sink])
        })
    }

    /// The durable progress of every shard, according to these snapshots.
    pub fn durable_shards(&self, snapshots: &[&ProgressSnapshot]) -> Result<Vec<DurableShard>, RunError> {
        let mut all = Vec::new();
        for (at, (inspected, snapshot)) in self.sinks.iter().zip(snapshots).enumerate() {
            let routes_of_sink = self.dead_letters.iter().filter(|(_, route)| route.sink == at);
            let has_results = inspected.renderer.is_some();
            let only = (!has_results).then(|| routes_of_sink.map(|(source, _)| source.clone()).collect());
            for shard in 0..inspected.sink.shards() {
                let positions = snapshot.shard(shard)?.unwrap_or_default().positions;
                all.push(DurableShard {
                    sink: Arc::clone(&inspected.shown_as),
                    positions,
                    dead_letters_of: Option::clone(&only),
                });
            }
        }
        Ok(all)
    }

    /// Cluster, progress topic and number of shards of each Kafka sink: the first sinks, in the
    /// order of claims.
    pub fn progress_topics(&self) -> impl Iterator<Item = (&KafkaCluster, &str, u16)> {
        self.kafka.iter().map(|spec| {
            let KafkaOutputPlan { cluster, progress_topic, shards, .. } = &spec.plan;
            (cluster, &**progress_topic, *shards)
        })
    }

    /// Refuses to follow a generation that does not write all sinks of this run, or whose sinks
    /// this host cannot read.
    pub fn check_followable(&self, snapshots: &[ProgressSnapshot]) -> Result<(), RunError> {
        for (inspected, snapshot) in self.sinks.iter().zip(snapshots).skip(self.kafka.len()) {
            if snapshot.get::<Claim>(CLAIM)?.is_none() {
                return Err(RunError::Failed(format!(
                    "cluster.start: the {} has no claim of the generation to take over from: start on a host that sees the folders and databases of that \
                     generation; to add a sink, start without --takeover and --standby",
                    inspected.shown_as
                )));
            }
        }
        Ok(())
    }

    /// Limits how far a follower may read to what every shard of every sink has made durable.
    /// `positions` are the durable positions of the sinks with a progress topic.
    pub fn limit_followed(
        &self,
        positions: Vec<(PartitionIndex, u64)>,
        partitions: &PartitionTable,
    ) -> Vec<(PartitionIndex, u64)> {
        let mut positions: BTreeMap<PartitionIndex, u64> = positions.into_iter().collect();
        for inspected in &self.sinks[self.kafka.len()..] {
            // A sink that cannot be read now is read again soon.
            let Ok(snapshot) = inspected.sink.inspect(Duration::ZERO) else { return Vec::new() };
            for number in 0..inspected.sink.shards() {
                let Ok(Some(shard)) = snapshot.shard(number) else { return Vec::new() };
                positions.retain(|index, position| {
                    let has = partitions.name(*index).and_then(|name| shard.at(&name.source, name.partition));
                    has.is_some_and(|has| {
                        *position = has.position.min(*position);
                        true
                    })
                });
            }
        }
        positions.into_iter().collect()
    }

    /// How the dataflow encodes results.
    pub fn output_plan(&self, partitions: &PartitionTable) -> Option<EncodedBatchesPlan> {
        let renderers = self.sinks.iter().filter_map(|sink| sink.renderer.clone()).collect();
        (!self.is_empty()).then(|| EncodedBatchesPlan { renderers, partitions: partitions.clone() })
    }

    /// The registry of first read positions, as recorded in these snapshots; it records nothing
    /// until the sinks are claimed.
    pub fn source_registry(&self, snapshots: &[&ProgressSnapshot]) -> Result<SourceRegistry, RunError> {
        SourceRegistry::of(&self.dead_letters, &self.dead_letter_tables, snapshots)
    }
}

/// The renderer of a Kafka sink, if it has rows.
fn kafka_renderer(spec: &KafkaSpec, facts: &KafkaFacts, first_shard: Shard) -> Option<RendererPlan> {
    let results = spec.results.as_ref()?;
    let layout = PartitionLayout {
        first_shard,
        shards: spec.plan.shards,
        partitions: facts.partitions(&results.topic),
        current_partitions: results.current_topic.as_ref().map(|topic| facts.partitions(topic)),
    };
    let encoding = facts.encoding;
    let make = move |_: &PartitionTable| -> Box<dyn Render> {
        match encoding {
            RowEncoding::Json => Box::new(KafkaRenderer::new(layout, JsonRows)),
            RowEncoding::Avro(ids) => Box::new(KafkaRenderer::new(layout, AvroRows { ids })),
        }
    };
    // After a crash, epochs may be longer than those that were written before it.
    let write_touched = spec.plan.delivery == Delivery::AtLeastOnce;
    Some(RendererPlan { make: Arc::new(make), write_touched })
}
