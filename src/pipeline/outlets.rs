//! The outlets of a run: which clusters are written to, by which shards, and where a replay stops for them.

mod cuts;
mod identity;
mod recorded_topics;
mod starts;
mod topics;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread;
use std::time::{Duration as Wait, Instant};

use serde::{Deserialize, Serialize};

use self::identity::{check_letters_place, identity, letters_key};
pub use self::identity::{file_identity, log_identity};
pub use self::recorded_topics::check_nothing_is_lost;
use self::recorded_topics::{RecordedTopics, recorded_of};
use self::starts::Letters;
pub use self::starts::Starts;
use self::topics::facts;
use super::processes::Processes;
use super::run_error::RunError;
use super::standby::not_taken_over;
use crate::cluster::ValueName;
use crate::codec::{CURRENT_SCHEMA, ROW_SCHEMA};
use crate::config::{Plan, SourceKind, SourcePlan};
use crate::dataflow::ParcelsPlan;
use crate::kafka::identity::{TopicRecord, TopicRecords, TopicWatch};
use crate::kafka::topics::TopicFacts;
use crate::kafka::{Cluster, letter_topics};
use crate::model::{Render, Shard};
use crate::registry::{Client, ClientSettings, RegistryError};
use crate::sinks::kafka::progress::{Kept, Positions, ShardProgress, shard_key};
use crate::sinks::kafka::render::{Avro, Json, Places, Results};
use crate::sinks::kafka::{
    self, Alive, Claimed, Delivery, Ends, Fenced, Identity, KafkaSinkPlan, Keeper, Outlet, OutletError,
    OutletPlan, RowFormat, Running, Successor,
};
use crate::sources::kafka::KafkaPlan;
use crate::worker::{Cuts, LogPartition};

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
    recorded: Arc<RecordedTopics>,
}

/// The outlets as the configuration has them.
struct Drafts {
    drafts: Vec<Draft>,
    /// By source: its outlet, and the number of its first dead-letter topic there.
    letters: HashMap<String, (usize, u8)>,
}

impl Drafts {
    fn of(plan: &Plan) -> Drafts {
        let mut drafts = Vec::new();
        if let Some(sink) = &plan.sink {
            let mut topics = vec![sink.topic.clone()];
            topics.extend(sink.current_topic.clone());
            drafts.push(Draft::new(sink.outlet.clone(), topics, true));
        }
        let mut letters = HashMap::new();
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
            letters.insert(name.to_owned(), (outlet, draft.topics.len() as u8));
            draft.topics.extend(letter_topics(&source.topic));
        }
        Drafts { drafts, letters }
    }
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

/// What a shard has made durable.
pub struct Written {
    pub positions: Positions,
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
fn claim(
    draft: &Draft,
    topics: &TopicRecords,
    after: Option<&Successor>,
    cluster: &Processes,
) -> Result<Outlet, RunError> {
    let Draft { plan, first_shard, identity, .. } = draft;
    let topology = cluster.topology();
    // Here already, since it is told to the others, too: whoever loses the race for a succession was not taken over from.
    let failed = |error: OutletError| match after {
        Some(_) => not_taken_over(error.into()),
        None => error.into(),
    };
    let claimed = cluster.share(ValueName::CLAIM, || Claimed::make(plan, identity, after).map_err(failed))?;
    // From now on: what follows may take long, and whoever stands by would take the silence for an end.
    let alive = topology.is_first().then(|| Alive::begin(plan, &claimed)).transpose()?;
    let is_ours = |shard: &u16| {
        let writer = topology.writer_of(Shard(first_shard.0 + shard));
        topology.process_of(writer) == topology.process
    };
    let shards = (0..plan.shards).filter(is_ours);
    let fenced = Fenced::make(plan, draft.topics.clone(), shards, &claimed).map_err(failed)?;
    cluster.gather(ValueName::NOTHING, ())?;
    let kept = cluster.share(ValueName::PROGRESS, || claimed.read(plan, identity, topics).map_err(failed))?;
    Ok(Outlet::new(plan, *first_shard, claimed, (fenced, alive), kept)?)
}

impl Prepared {
    /// Checks the topics, together with the other processes.
    pub fn new(plan: &Plan, cluster: &Processes) -> Result<Prepared, RunError> {
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
        let Drafts { mut drafts, letters: places_of } = Drafts::of(plan);
        let Found { written, facts } = cluster.share(ValueName::TOPICS, || {
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
        for (name, (outlet, _)) in &places_of {
            let progress_topic = drafts[*outlet].plan.progress_topic.clone();
            for draft in &mut drafts {
                draft.identity.insert(letters_key(name), progress_topic.clone());
            }
        }
        let partitions =
            |outlet: usize, topic: &str| facts[outlet].get(topic).map_or(1, |facts| facts.partitions);
        let letters = kafka_sources(plan).filter_map(|(name, source)| {
            let (outlet, at) = *places_of.get(name)?;
            let [first, second] = letter_topics(&source.topic);
            let topics = [(at, partitions(outlet, &first)), (at + 1, partitions(outlet, &second))];
            let (topic, first_shard, shards) =
                (name.into(), drafts[outlet].first_shard, drafts[outlet].plan.shards);
            let source = source.clone();
            let progress = drafts[outlet].plan.progress_topic.as_str().into();
            Some((name.to_owned(), Letters { outlet, source, topic, progress, first_shard, shards, topics }))
        });
        let letters = letters.collect();
        let places = plan.sink.as_ref().map(|sink| Places {
            first_shard: Shard(0),
            shards: sink.outlet.shards,
            partitions: partitions(0, &sink.topic),
            current_partitions: sink.current_topic.as_ref().map(|topic| partitions(0, topic)),
        });
        let recorded = Arc::new(RecordedTopics::new(plan, &drafts));
        Ok(Prepared { drafts, places, written, letters, recorded })
    }

    pub fn is_empty(&self) -> bool {
        self.drafts.is_empty()
    }

    /// Claims the outlets, together with the other processes; each after its own of `after`, where they are to follow others.
    pub fn claim(&self, after: Option<&[Successor]>, cluster: &Processes) -> Result<Outlets, RunError> {
        let each = self.drafts.iter().enumerate();
        let claim = each.map(|(at, draft)| {
            let topics = self.recorded.of_outlet(at);
            claim(draft, &topics, after.and_then(|after| after.get(at)), cluster)
        });
        let outlets = claim.collect::<Result<Vec<Outlet>, _>>()?;
        self.recorded.claimed(outlets.iter().map(Outlet::keeper).collect());
        Ok(Outlets(outlets))
    }

    /// What others have written of the outlets until now, within so much time.
    ///
    /// # Errors
    ///
    /// Where it was made with anything that is other now.
    pub fn look(&self, within: Wait) -> Result<Vec<Kept>, RunError> {
        let look = |draft: &Draft| Ok(kafka::look(&draft.plan, &draft.identity, within)?);
        self.drafts.iter().map(look).collect()
    }

    /// Refuses before anything is claimed what a start could not go on with: shards that stand where these logs, or no single run
    /// of them, have ever been.
    pub fn check(&self, kept: &[Kept], partitions: &[LogPartition]) -> Result<(), RunError> {
        let mut all = Vec::new();
        for (draft, kept) in self.drafts.iter().zip(kept) {
            for number in 0..draft.plan.shards {
                let progress: Option<ShardProgress> = kept.get(&shard_key(number))?;
                all.extend(progress.map(|progress| (Shard(draft.first_shard.0 + number), progress)));
            }
        }
        cuts::find(all, partitions)?;
        self.recorded.check(kept)
    }

    /// What earlier starts have recorded of the topic of a source.
    pub fn recorded_topic(&self, kept: &[Kept], source: &str) -> Result<TopicRecord, RunError> {
        match self.letters.get(source) {
            Some(letters) => recorded_of(&kept[letters.outlet], &letters.source.topic),
            None => Ok(TopicRecord::default()),
        }
    }

    /// Whether a topic that is read has taken the place of another one, with --adopt-logs.
    pub fn has_adopted_topics(&self) -> bool {
        self.letters.values().any(|letters| {
            let records = self.recorded.of_outlet(letters.outlet);
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
    pub fn check_letters(&self, kept: &[Kept]) -> Result<(), RunError> {
        self.letters.iter().try_for_each(|(name, letters)| {
            let draft = &self.drafts[letters.outlet];
            check_letters_place(name, &letters.source, draft, &kept[letters.outlet])
        })
    }

    /// What every shard has made durable, by what is kept in the outlets.
    pub fn written(&self, kept: &[&Kept]) -> Result<Vec<Written>, RunError> {
        let mut all = Vec::new();
        for (at, (draft, kept)) in self.drafts.iter().zip(kept).enumerate() {
            let own = self.letters.iter().filter(|(_, letters)| letters.outlet == at);
            let only = (!draft.has_results).then(|| own.map(|(source, _)| source.clone()).collect());
            for shard in 0..draft.plan.shards {
                let progress: Option<ShardProgress> = kept.get(&shard_key(shard))?;
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
        Starts::of(&self.letters, kept)
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
        let mut all = Vec::new();
        for outlet in &self.0 {
            all.extend(outlet.shards()?.into_iter().filter_map(|(shard, progress)| Some((shard, progress?))));
        }
        cuts::find(all, partitions)
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
