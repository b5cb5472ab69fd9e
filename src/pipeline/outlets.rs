//! The outlets of a run: which clusters are written to, by which shards, and where a replay stops for them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration as Wait, Instant};

use serde::{Deserialize, Serialize};

use super::live::RunError;
use super::processes::Processes;
use crate::codec::{CURRENT_SCHEMA, DecodeSettings, ROW_SCHEMA};
use crate::config::{Plan, SourceKind, SourcePlan};
use crate::dataflow::ParcelsPlan;
use crate::kafka::topics::{self, NewTopicPlan, TopicFacts};
use crate::kafka::{Cluster, letter_topics};
use crate::model::{PartitionName, Render, Shard, Slot};
use crate::registry::{Answer, Client, ClientSettings, RecordAnswer, RegistryError};
use crate::sinks::kafka::progress::{self, Kept, ShardProgress};
use crate::sinks::kafka::render::{Avro, Json, Places, Results};
use crate::sinks::kafka::{
    self, Claimed, Delivery, Ends, Fenced, Identity, KafkaSinkPlan, Keeper, Outlet, OutletError, OutletPlan,
    RowFormat, Running, Successor,
};
use crate::sources::Source;
use crate::sources::kafka::{KafkaPlan, RecordFormat};
use crate::worker::{Cuts, LetterPlaces, LogPartition};

/// Another number says that another version may compute other results from the same log.
const RULES: u32 = 1;

/// Shards and times of an outlet that has dead letters only.
const LETTER_SHARDS: u16 = 1;
const LETTER_COMMIT: Wait = Wait::from_millis(200);
const LETTER_TIMEOUT: Wait = Wait::from_secs(60);

/// How long a schema registry may take at the start.
const REGISTRY_PATIENCE: Wait = Wait::from_secs(30);
const REGISTRY_TIMEOUT: Wait = Wait::from_secs(10);
const REGISTRY_RETRY: Wait = Wait::from_millis(500);

/// The outlets of a run before they are claimed: their topics are there, and everything about them is known but what is in them.
pub struct Prepared {
    drafts: Vec<Draft>,
    places: Option<Places>,
    written: RowsWritten,
    /// By the source's name.
    letters: HashMap<String, Letters>,
}

/// The outlets, claimed, with what earlier starts have written.
pub struct Outlets(Vec<Outlet>);

/// What one process finds out for all.
#[derive(Serialize, Deserialize)]
struct Found {
    written: RowsWritten,
    facts: Vec<BTreeMap<String, TopicFacts>>,
}

/// How rows are written; in Avro with the ids of their schemas, where they have any.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum RowsWritten {
    Json,
    Avro(Option<(u32, u32)>),
}

/// Where the dead letters of a source go.
#[derive(Clone)]
struct Letters {
    outlet: usize,
    topic: Arc<str>,
    first_shard: Shard,
    shards: u16,
    /// Number and partitions of the first and the second topic.
    topics: [(u8, u32); 2],
}

/// What a shard has made durable.
pub struct Written {
    pub positions: progress::Positions,
    /// Where it writes the dead letters of these alone.
    pub only: Option<Vec<String>>,
}

impl Written {
    /// Whether it writes anything of a source.
    pub fn is_of(&self, source: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|own| own == source))
    }
}

/// An outlet before it is opened.
struct Draft {
    plan: OutletPlan,
    topics: Vec<String>,
    has_results: bool,
    first_shard: Shard,
    identity: Identity,
}

impl Draft {
    fn new(plan: OutletPlan, topics: Vec<String>, has_results: bool) -> Draft {
        Draft { plan, topics, has_results, first_shard: Shard(0), identity: Identity::new() }
    }
}

/// Claims an outlet; every process fences the shards that it writes, and only then one reads what is durable.
fn claim(draft: &Draft, after: Option<&Successor>, cluster: &Processes) -> Result<Outlet, RunError> {
    let Draft { plan, first_shard, identity, .. } = draft;
    let topology = cluster.topology();
    let claimed = cluster.share(|| Claimed::make(plan, identity, after).map_err(RunError::from))?;
    let is_ours = |shard: &u16| {
        let writer = topology.writer_of(Shard(first_shard.0 + shard));
        topology.process_of(writer) == topology.process
    };
    let shards = (0..plan.shards).filter(is_ours);
    let fenced = Fenced::make(plan, draft.topics.clone(), shards, &claimed)?;
    cluster.gather(())?;
    let kept = cluster.share(|| claimed.read(plan, identity).map_err(RunError::from))?;
    Ok(Outlet::new(plan, *first_shard, claimed, fenced, kept)?)
}

impl Prepared {
    /// Checks the topics, together with the other processes.
    pub fn new(plan: &Plan, cluster: &Processes) -> Result<Prepared, RunError> {
        let mut drafts = Vec::new();
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
        if let Some(sink) = &plan.sink {
            let mut topics = vec![sink.topic.clone()];
            topics.extend(sink.current_topic.clone());
            drafts.push(Draft::new(sink.outlet.clone(), topics, true));
        }
        let mut places_of = HashMap::new();
        for (name, source) in kafka_sources(plan) {
            let same = |draft: &Draft| {
                draft.plan.cluster == source.cluster
                    && (draft.has_results || draft.plan.progress_topic == source.progress_topic)
            };
            let outlet = drafts.iter().position(same).unwrap_or_else(|| {
                drafts.push(Draft::new(letters_only(source), Vec::new(), false));
                drafts.len() - 1
            });
            let draft = &mut drafts[outlet];
            places_of.insert(name.to_owned(), (outlet, draft.topics.len() as u8));
            draft.topics.extend(letter_topics(&source.topic));
        }
        let Found { written, facts } = cluster.share(|| {
            let written = plan.sink.as_ref().map_or(Ok(RowsWritten::Json), written)?;
            let facts = drafts.iter().map(|draft| facts(plan, draft)).collect::<Result<Vec<_>, _>>()?;
            Ok::<_, RunError>(Found { written, facts })
        })?;
        let mut next_shard = 0;
        for (draft, facts) in drafts.iter_mut().zip(&facts) {
            draft.first_shard = Shard(next_shard);
            next_shard += draft.plan.shards;
            draft.identity = identity(plan, draft, facts);
        }
        let partitions =
            |outlet: usize, topic: &str| facts[outlet].get(topic).map_or(1, |facts| facts.partitions);
        let letters = kafka_sources(plan).filter_map(|(name, source)| {
            let (outlet, at) = *places_of.get(name)?;
            let [first, second] = letter_topics(&source.topic);
            let topics = [(at, partitions(outlet, &first)), (at + 1, partitions(outlet, &second))];
            let (topic, first_shard, shards) =
                (name.into(), drafts[outlet].first_shard, drafts[outlet].plan.shards);
            Some((name.to_owned(), Letters { outlet, topic, first_shard, shards, topics }))
        });
        let letters = letters.collect();
        let places = plan.sink.as_ref().map(|sink| Places {
            first_shard: Shard(0),
            shards: sink.outlet.shards,
            partitions: partitions(0, &sink.topic),
            current_partitions: sink.current_topic.as_ref().map(|topic| partitions(0, topic)),
        });
        Ok(Prepared { drafts, places, written, letters })
    }

    pub fn is_empty(&self) -> bool {
        self.drafts.is_empty()
    }

    /// Claims the outlets, together with the other processes; each after its own of `after`, where they are to follow others.
    pub fn claim(&self, after: Option<&[Successor]>, cluster: &Processes) -> Result<Outlets, RunError> {
        let each = self.drafts.iter().enumerate();
        let claim = each.map(|(at, draft)| claim(draft, after.and_then(|after| after.get(at)), cluster));
        claim.collect::<Result<_, _>>().map(Outlets)
    }

    /// What others have written of the outlets until now.
    pub fn look(&self) -> Result<Vec<Kept>, RunError> {
        let look = |draft: &Draft| Ok(kafka::look(&draft.plan, &draft.identity)?);
        self.drafts.iter().map(look).collect()
    }

    /// What every shard has made durable, by what is kept in the outlets.
    pub fn written(&self, kept: &[&Kept]) -> Result<Vec<Written>, RunError> {
        let mut all = Vec::new();
        for (at, (draft, kept)) in self.drafts.iter().zip(kept).enumerate() {
            let own = self.letters.iter().filter(|(_, letters)| letters.outlet == at);
            let only = (!draft.has_results).then(|| own.map(|(source, _)| source.clone()).collect());
            for shard in 0..draft.plan.shards {
                let progress: Option<ShardProgress> = kept.get(&progress::shard_key(shard))?;
                let positions = progress.unwrap_or_default().positions;
                all.push(Written { positions, only: Option::clone(&only) });
            }
        }
        Ok(all)
    }

    /// Cluster, progress topic and number of shards of each outlet.
    pub fn topics(&self) -> impl Iterator<Item = (&Cluster, &str, u16)> {
        self.drafts.iter().map(|draft| {
            let OutletPlan { cluster, progress_topic, shards, .. } = &draft.plan;
            (cluster, &**progress_topic, *shards)
        })
    }

    /// How the graph writes results.
    pub fn parcels(&self) -> Option<ParcelsPlan> {
        if self.is_empty() {
            return None;
        }
        let Prepared { written, .. } = *self;
        let render = self.places.map(|places| -> Arc<dyn Fn() -> Box<dyn Render> + Send + Sync> {
            match written {
                RowsWritten::Json => Arc::new(move || Box::new(Results::new(places, Json))),
                RowsWritten::Avro(ids) => Arc::new(move || Box::new(Results::new(places, Avro { ids }))),
            }
        });
        let current = self.places.is_some_and(|places| places.current_partitions.is_some());
        // After a crash, epochs may be longer than those that were written before it.
        let touched = self.drafts.iter().any(|draft| draft.plan.delivery == Delivery::AtLeastOnce);
        Some(ParcelsPlan { render, current, touched })
    }

    /// What says of each partition where it begins, by what is kept in the outlets; it keeps nothing until they are claimed.
    pub fn starts(&self, kept: &[&Kept]) -> Result<Starts, RunError> {
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
        self.letters.iter().map(of_source).collect::<Result<_, _>>().map(Starts)
    }
}

impl Outlets {
    /// That of the results, where there are any.
    pub fn generation(&self) -> Option<Arc<str>> {
        self.0.first().map(Outlet::generation)
    }

    /// No epoch below may be used.
    pub fn epoch_floor(&self) -> Result<u64, RunError> {
        let floors = self.0.iter().map(Outlet::epoch_floor).collect::<Result<Vec<_>, _>>()?;
        Ok(floors.into_iter().max().unwrap_or(0))
    }

    /// What makes epochs durable where there is no data directory.
    pub fn keeper(&self) -> Option<Keeper> {
        self.0.first().map(Outlet::keeper)
    }

    pub fn kept(&self) -> Vec<&Kept> {
        self.0.iter().map(Outlet::kept).collect()
    }

    /// Where a replay of these partitions stops.
    pub fn cuts(&self, partitions: &[LogPartition]) -> Result<Cuts, RunError> {
        let mut all: Vec<(Shard, ShardProgress)> = Vec::new();
        for outlet in &self.0 {
            all.extend(outlet.shards()?.into_iter().filter_map(|(shard, progress)| Some((shard, progress?))));
        }
        let cuts = cuts(all, partitions).map_err(RunError::Failed)?;
        for log in partitions {
            let positions = cuts.positions.iter().filter_map(|cut| cut.get(&log.slot));
            if let Some(position) = positions.max() {
                let checked = log.source.check(log.name.partition, *position);
                checked.map_err(|error| RunError::Source { name: log.name.source.to_string(), error })?;
            }
        }
        Ok(cuts)
    }

    /// Starts writing; `failed` hears what ends the run.
    pub fn start_writing(
        self,
        cluster: &Processes,
        failed: Arc<dyn Fn(OutletError) + Send + Sync>,
    ) -> Result<Writing, RunError> {
        // Who loses the outlet, all end.
        let watches = cluster.topology().is_first();
        let start = |outlet: Outlet| outlet.start(watches, Arc::clone(&failed));
        Ok(Writing(self.0.into_iter().map(start).collect::<Result<_, _>>()?))
    }
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

    /// The partitions that are read already, as sources call them, and from where they were first.
    pub fn known(&self, source: &str) -> BTreeMap<u32, u64> {
        let starts = self.0.get(source);
        starts.map_or_else(BTreeMap::new, |starts| {
            starts.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        Ok(self.at(source, partition, slot, start))
    }

    /// A partition as it is read from a position on.
    pub fn at(&self, source: &Arc<dyn Source>, partition: u32, slot: Slot, start: u64) -> LogPartition {
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
        LetterPlaces { topic: self.topic.clone(), places }
    }
}

/// Registers the schemas of rows, where there is a registry.
fn written(sink: &KafkaSinkPlan) -> Result<RowsWritten, RunError> {
    let (urls, user) = match &sink.format {
        RowFormat::Json => return Ok(RowsWritten::Json),
        RowFormat::BareAvro => return Ok(RowsWritten::Avro(None)),
        RowFormat::Avro { urls, user } => (urls.clone(), user.clone()),
    };
    let client = Client::new(&ClientSettings { urls, user, timeout: REGISTRY_TIMEOUT })?;
    let register = |topic: &str, schema: &str| {
        let deadline = Instant::now() + REGISTRY_PATIENCE;
        loop {
            match client.register(&format!("{topic}-value"), schema) {
                Err(RegistryError::Unavailable(_)) if Instant::now() < deadline => {
                    thread::sleep(REGISTRY_RETRY)
                }
                registered => return registered,
            }
        }
    };
    let row = register(&sink.topic, ROW_SCHEMA)?;
    let current = sink.current_topic.as_ref().map(|topic| register(topic, CURRENT_SCHEMA));
    Ok(RowsWritten::Avro(Some((row, current.transpose()?.unwrap_or(0)))))
}

/// Outlets that are written to.
pub struct Writing(Vec<Running>);

impl Writing {
    pub fn ends(&self) -> Vec<Ends> {
        self.0.iter().map(Running::ends).collect()
    }

    /// Waits until everything is durable: false where it is not.
    pub fn finish(self) -> bool {
        let written: Vec<bool> = self.0.into_iter().map(Running::finish).collect();
        written.into_iter().all(|written| written)
    }
}

fn kafka_sources(plan: &Plan) -> impl Iterator<Item = (&str, &KafkaPlan)> {
    plan.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::Kafka(kafka) => Some((source.name.as_str(), kafka)),
        SourceKind::Generator(_) | SourceKind::File(_) => None,
    })
}

fn letters_only(source: &KafkaPlan) -> OutletPlan {
    OutletPlan {
        cluster: source.cluster.clone(),
        progress_topic: source.progress_topic.clone(),
        delivery: Delivery::ExactlyOnce,
        shards: LETTER_SHARDS,
        commit_interval: LETTER_COMMIT,
        transaction_timeout: LETTER_TIMEOUT,
    }
}

/// Newest value of a key.
const COMPACTED: [(&str, &str); 1] = [("cleanup.policy", "compact")];
/// Cleaned often: a start reads all of it.
const PROGRESS: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("segment.bytes", "16777216"),
    ("segment.ms", "600000"),
    ("min.cleanable.dirty.ratio", "0.1"),
];
/// Kept until somebody has looked at them.
/// A letter is longer than its record by its headers.
const LETTERS: [(&str, &str); 3] =
    [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("max.message.bytes", "16777216")];

fn new_topic(name: &str, partitions: u32, config: &[(&'static str, &'static str)]) -> NewTopicPlan {
    NewTopicPlan { name: name.to_owned(), partitions, config: config.to_vec() }
}

/// What is known of the topics of an outlet, which are all there; those that may be made are made.
fn facts(plan: &Plan, draft: &Draft) -> Result<BTreeMap<String, TopicFacts>, RunError> {
    let OutletPlan { cluster, progress_topic, .. } = &draft.plan;
    let mut wanted: Vec<NewTopicPlan> = Vec::new();
    let results = plan.sink.as_ref().filter(|_| draft.has_results);
    if let Some(sink) = results {
        let partitions = sink.create_topics;
        for topic in [Some(&sink.topic), sink.current_topic.as_ref()].into_iter().flatten() {
            wanted.push(new_topic(topic, partitions.unwrap_or(1), &COMPACTED));
        }
    }
    wanted.push(new_topic(progress_topic, 1, &PROGRESS));
    let mut may_create = results.is_some_and(|sink| sink.create_topics.is_some());
    for (_, source) in
        kafka_sources(plan).filter(|(_, source)| draft.topics.contains(&letter_topics(&source.topic)[0]))
    {
        may_create |= source.create_topics.is_some();
        for topic in letter_topics(&source.topic) {
            wanted.push(new_topic(&topic, source.create_topics.unwrap_or(1), &LETTERS));
        }
    }
    let facts = found(cluster, &wanted, may_create)?;
    if facts.get(progress_topic).is_some_and(|facts| facts.partitions != 1) {
        return Err(RunError::Failed(format!(
            "progress topic {progress_topic} has more than one partition: make it with one, and cleanup.policy=compact"
        )));
    }
    for topic in [
        Some(progress_topic),
        results.map(|sink| &sink.topic),
        results.and_then(|sink| sink.current_topic.as_ref()),
    ] {
        if let Some(topic) = topic.filter(|topic| facts.get(*topic).is_some_and(|facts| !facts.compacted)) {
            tracing::warn!(
                topic,
                "the topic is not compacted: it keeps every change, or loses results with its retention; set cleanup.policy=compact"
            );
        }
    }
    Ok(facts)
}

fn found(
    cluster: &Cluster,
    wanted: &[NewTopicPlan],
    may_create: bool,
) -> Result<BTreeMap<String, TopicFacts>, RunError> {
    let names: Vec<&str> = wanted.iter().map(|topic| topic.name.as_str()).collect();
    let mut described = topics::describe(cluster, &names)?;
    let is_missing = |topic: &&NewTopicPlan| described.get(&topic.name).is_none_or(Option::is_none);
    let missing: Vec<NewTopicPlan> = wanted.iter().filter(is_missing).cloned().collect();
    if !missing.is_empty() {
        let list: Vec<&str> = missing.iter().map(|topic| topic.name.as_str()).collect();
        if !may_create {
            return Err(RunError::Failed(format!(
                "topics are missing at {}: {}: make them, or set create_topics = true",
                cluster.brokers,
                list.join(", ")
            )));
        }
        tracing::info!(topics = list.join(", "), "making topics");
        topics::create(cluster, &missing)?;
        described = topics::describe(cluster, &names)?;
    }
    Ok(described.into_iter().filter_map(|(name, facts)| Some((name, facts?))).collect())
}

/// What the results, or the dead letters, of an outlet are made with.
fn identity(plan: &Plan, draft: &Draft, facts: &BTreeMap<String, TopicFacts>) -> Identity {
    let mut identity = log_identity(plan);
    let mut say = |what: &str, value: String| drop(identity.insert(what.to_owned(), value));
    say("shards", draft.plan.shards.to_string());
    if let Some(sink) = plan.sink.as_ref().filter(|_| draft.has_results) {
        say("results.formula", plan.formula.name().to_owned());
        say("results.window", plan.retention.window.to_string());
        say("results.history", plan.retention.history.to_string());
        for topic in [Some(&sink.topic), sink.current_topic.as_ref()].into_iter().flatten() {
            let partitions = facts.get(topic).map_or(0, |facts| facts.partitions);
            say(&format!("partitions of topic {topic}"), partitions.to_string());
        }
    }
    identity
}

/// What decides how the logs are read.
pub fn log_identity(plan: &Plan) -> Identity {
    let DecodeSettings { assume_offset, units, moisture } = plan.decode;
    let mut identity = Identity::new();
    let mut say = |what: &str, value: String| drop(identity.insert(what.to_owned(), value));
    say("rules version", RULES.to_string());
    say("results.lateness", plan.retention.lateness.to_string());
    say("results.max_ahead", plan.max_ahead.to_string());
    say("results.max_cities", plan.max_cities.to_string());
    say("decode.assume_offset", assume_offset.map_or("\"\"".into(), |offset| offset.to_string()));
    say("decode.units", format!("{units:?}").to_lowercase());
    say("decode.moisture", format!("{moisture:?}").to_lowercase());
    for source in &plan.sources {
        if let SourceKind::Kafka(KafkaPlan { topic, format, .. }) = &source.kind {
            let format = match format {
                RecordFormat::Json => "json",
                RecordFormat::AvroRegistry(_) => "avro",
                RecordFormat::AvroFile(_) => "avro with a schema file",
            };
            say(&format!("source {}", source.name), format!("topic {topic} as {format}"));
        }
    }
    identity
}

/// The positions at which shards go on, in order, and which shard goes on at which.
fn cuts(mut all: Vec<(Shard, ShardProgress)>, partitions: &[LogPartition]) -> Result<Cuts, String> {
    let slots: HashMap<(&str, u32), Slot> = partitions
        .iter()
        .map(|partition| ((&*partition.name.source, partition.name.partition), partition.slot))
        .collect();
    // In the order of the log, which is not that of epochs: a shard that is behind gets newer epochs while it catches up. No
    // partition is read past another shard's place before all have come to it, so the sums are in that order.
    let read = |progress: &ShardProgress| progress.positions.values().flat_map(BTreeMap::values).sum::<u64>();
    all.sort_by_key(|(_, progress)| read(progress));
    let mut cuts = Cuts::default();
    for (shard, progress) in all {
        let mut positions = HashMap::new();
        for (source, of_source) in &progress.positions {
            for (partition, position) in of_source {
                let slot = slots.get(&(&**source, *partition)).ok_or_else(|| {
                    format!(
                        "the results include source {source}, partition {partition}, which is not there any more: configure the source \
                         again, or name new progress and result topics to begin anew"
                    )
                })?;
                positions.insert(*slot, *position);
            }
        }
        if cuts.positions.last() != Some(&positions) {
            let before = cuts.positions.last();
            let falls =
                |(slot, position): (&Slot, &u64)| positions.get(slot).is_none_or(|now| now < position);
            if before.is_some_and(|before| before.iter().any(falls)) {
                return Err(
                    "the shards' progress records contradict each other: were their topics restored from different times? Name \
                     new progress and result topics to begin anew"
                        .into(),
                );
            }
            cuts.positions.push(positions);
        }
        cuts.of_shards.insert(shard, cuts.positions.len() - 1);
    }
    Ok(cuts)
}

#[cfg(test)]
mod tests {
    use std::thread::Thread;

    use super::*;
    use crate::sources::{Partition, SourceError};

    struct Log;

    impl Source for Log {
        fn name(&self) -> &str {
            "log"
        }

        fn partitions(&self) -> u32 {
            2
        }

        fn open(&self, _: u32, _: u64, _: Thread) -> Result<Box<dyn Partition>, SourceError> {
            Err(SourceError::Fatal("not to be read".into()))
        }
    }

    fn partitions() -> Vec<LogPartition> {
        let log = |partition: u32| LogPartition {
            slot: Slot(partition as u16),
            name: PartitionName { source: "log".into(), partition },
            source: Arc::new(Log),
            start: 0,
            shared: false,
            letters: None,
        };
        vec![log(0), log(1)]
    }

    fn at(shard: u16, epoch: u64, positions: &[u64]) -> (Shard, ShardProgress) {
        let positions = (0..).zip(positions.iter().copied()).collect();
        (Shard(shard), ShardProgress { epoch, positions: [("log".into(), positions)].into() })
    }

    #[test]
    fn cuts_are_in_the_order_of_the_log() {
        // Shard 0 has caught up a little, in newer epochs, to before where shard 1 has been all the time; shard 2 stands with it.
        let all = vec![at(1, 50, &[40, 7]), at(0, 90, &[10, 7]), at(2, 91, &[10, 7]), at(3, 20, &[3])];
        let cuts = cuts(all, &partitions()).unwrap();
        let of =
            |positions: &[u64]| (0..).map(Slot).zip(positions.iter().copied()).collect::<HashMap<_, _>>();
        assert_eq!(cuts.positions, [of(&[3]), of(&[10, 7]), of(&[40, 7])]);
        let of_shards = [(Shard(0), 1), (Shard(1), 2), (Shard(2), 1), (Shard(3), 0)];
        assert_eq!(cuts.of_shards, of_shards.into());
    }

    #[test]
    fn records_that_contradict_each_other_are_refused() {
        let refused = cuts(vec![at(0, 1, &[5, 1]), at(1, 2, &[4, 9])], &partitions()).unwrap_err();
        assert!(refused.contains("contradict"), "{refused}");
        let gone = cuts(vec![at(0, 1, &[5, 1, 1])], &partitions()).unwrap_err();
        assert!(gone.contains("source log, partition 2"), "{gone}");
    }
}
