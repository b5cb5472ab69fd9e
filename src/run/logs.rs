//! Opens the logs of a run according to their plans.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::control::Control;
use super::data_dir::DataDir;
use super::durable_sinks::{SourceRegistry, file_identity, log_identity};
use super::ingest_hold::{HeldAppender, HoldReasons};
use super::peer_requests::PeerRequests;
use super::protocol::ControlEvent;
use super::run_error::RunError;
use crate::admission::AdmissionRules;
use crate::checkpoint;
use crate::config::{FileSourcePlan, IngestPlan, ServicePlan, SourceKind, SourcePlan};
use crate::kafka::topic_identity::TopicIdentity;
use crate::model::rules_version::RULES_VERSION_KEY;
use crate::model::{
    Appender, EventTime, HoldCheck, LogPosition, PartitionIndex, PartitionName, PartitionTable,
};
use crate::registry::{RegistryClient, RegistrySettings, ResponseFetcher, SchemaCache, fetch_and_record};
use crate::sinks::dead_letters::DeadLetterFiles;
use crate::sources::file::{FileSource, InputFile};
use crate::sources::generator::feed::GeneratorFeed;
use crate::sources::generator::paced::PacedLog;
use crate::sources::journal::{Journal, JournalPlan};
use crate::sources::kafka::{AppendLimits, KafkaAppender, KafkaSource, RecordFormat, RegistryPlan};
use crate::sources::{Source, SourceError};
use crate::worker::{self, LogPartition, SharedState};

/// How long a schema registry may take to answer.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after its first use a registry's response is compared with a new one.
const SCHEMA_VERIFY_DELAY: Duration = Duration::from_secs(30);

/// The folder in the data directory that records which files the file sources were read from.
const FILES_FOLDER: &str = "files";

/// The logs that a process can read, and its appender.
pub struct Logs {
    // Dropped in this order: the lock of the data directory is released last.
    journal: Option<Arc<Journal>>,
    sources: Vec<Arc<dyn Source>>,
    topics: Vec<Arc<KafkaSource>>,
    /// Appends posted and generated readings.
    appender: Option<Arc<dyn Appender>>,
    data_dir: Option<Arc<DataDir>>,
}

/// Whether this process needs a data directory.
pub fn needs_data_dir(plan: &ServicePlan) -> bool {
    plan.cluster.process.is_none_or(|process| process == 0) && uses_data_dir(plan)
}

/// Whether a run needs a data directory: for a journal, or for the position of a generator that
/// appends to a topic.
pub fn uses_data_dir(plan: &ServicePlan) -> bool {
    // The data directory is the authority of a run whose sinks count no generations.
    if plan.has_uncounted_sink() && !plan.has_progress_topic() {
        return true;
    }
    let Some(ingest) = &plan.ingest else { return false };
    ingest.source.is_none()
        || plan.sources.iter().any(|source| matches!(source.kind, SourceKind::Generator(_)))
}

impl Logs {
    /// Opens the logs that this process can read. Readings that it cannot append itself are
    /// forwarded to process 0.
    pub fn open(
        plan: &ServicePlan,
        data_dir: Option<Arc<DataDir>>,
        requests: &Arc<PeerRequests>,
        is_first: bool,
    ) -> Result<Logs, RunError> {
        let mut logs =
            Logs { journal: None, sources: Vec::new(), topics: Vec::new(), appender: None, data_dir };
        let into = plan.ingest.as_ref().map(|ingest| ingest.source.as_deref());
        if let (Some(ingest), Some(None), false) = (&plan.ingest, into, is_first) {
            logs.appender = Some(requests.forwarding_appender(ingest.queue_records, ingest.queue_bytes));
        }
        if let (Some(ingest), Some(None), Some(data_dir)) = (&plan.ingest, into, &logs.data_dir) {
            let journal = Arc::new(Journal::open(
                &data_dir.path().join("journal"),
                JournalPlan {
                    partitions: ingest.partitions,
                    queue_records: ingest.queue_records,
                    queue_bytes: ingest.queue_bytes,
                    warn_bytes: ingest.warn_bytes,
                    max_ahead: plan.max_ahead,
                    decode: plan.decode,
                    ..JournalPlan::default()
                },
            )?);
            logs.sources.push(journal.clone());
            logs.appender = Some(journal.appender());
            logs.journal = Some(journal);
        }
        for source in &plan.sources {
            // A generator beside a log appends to that log.
            if into.is_some() && matches!(source.kind, SourceKind::Generator(_)) {
                continue;
            }
            if is_first || matches!(source.kind, SourceKind::Kafka(_)) {
                let folder = logs.data_dir.as_ref().map(|dir| dir.path().join(FILES_FOLDER));
                let opened = open_source(source, folder.as_deref(), &mut logs.topics)?;
                logs.sources.push(opened);
            }
        }
        if let (Some(ingest), Some(Some(into))) = (&plan.ingest, into) {
            logs.appender = open_topic_appender(plan, ingest, into)?;
        }
        Ok(logs)
    }

    pub fn data_dir(&self) -> Option<&Arc<DataDir>> {
        self.data_dir.as_ref()
    }

    /// The appender of posted and generated readings. A journal accepts nothing while there is no
    /// space for its dead letters.
    pub fn held_appender(&self, shared: &Arc<SharedState>) -> Option<Arc<dyn Appender>> {
        let appender = self.appender.clone()?;
        Some(match self.journal {
            Some(_) => Arc::new(HeldAppender::new(appender, Arc::clone(shared))),
            None => appender,
        })
    }

    pub fn hold_reasons(&self, shared: &Arc<SharedState>) -> Arc<dyn HoldCheck> {
        Arc::new(HoldReasons { journal: self.journal.clone(), shared: Arc::clone(shared) })
    }

    /// The journal and its data directory.
    pub fn journal(&self) -> Option<(Arc<Journal>, PathBuf)> {
        Some((self.journal.clone()?, self.data_dir.as_ref()?.path().to_path_buf()))
    }

    /// At process 0: gives the Avro topics their recorded schemas, and fetchers for others: `find`
    /// makes one from the name of a source and a fetcher of its registry. Process 0 fetches for all
    /// processes, so all decide the same.
    pub fn use_local_schemas(
        &self,
        registry: &SourceRegistry,
        requests: &PeerRequests,
        find: impl Fn(&str, ResponseFetcher) -> ResponseFetcher,
    ) -> Result<(), RunError> {
        for topic in &self.topics {
            let Some(RegistryPlan { urls, user }) = topic.registry_plan() else { continue };
            let settings =
                RegistrySettings { urls: urls.clone(), user: user.clone(), timeout: REGISTRY_TIMEOUT };
            let (responses, record) = registry.schema_responses(topic.name())?;
            let ask = fetch_and_record(RegistryClient::new(&settings)?, record);
            let schemas = SchemaCache::with_verification(
                responses,
                find(topic.name(), ask),
                RegistryClient::new(&settings)?,
                SCHEMA_VERIFY_DELAY,
            );
            let schemas = schemas.map_err(RunError::Threads)?;
            requests.answer_schemas(topic.name(), schemas.clone());
            topic.set_schema_cache(schemas);
        }
        Ok(())
    }

    /// At the other processes: fetches schemas that are not recorded from process 0.
    pub fn use_remote_schemas(
        &self,
        registry: &SourceRegistry,
        requests: &Arc<PeerRequests>,
    ) -> Result<(), RunError> {
        for topic in self.topics.iter().filter(|topic| topic.registry_plan().is_some()) {
            let (responses, _) = registry.schema_responses(topic.name())?;
            let schemas = SchemaCache::new(responses, requests.find_schemas_of(topic.name()));
            topic.set_schema_cache(schemas.map_err(RunError::Threads)?);
        }
        Ok(())
    }

    /// Compares the topics with the identities that earlier starts have recorded.
    pub fn compare_topics(
        &self,
        recorded: impl Fn(&str) -> Result<TopicIdentity, RunError>,
    ) -> Result<(), RunError> {
        for topic in &self.topics {
            topic.set_recorded_identity(recorded(topic.name())?);
        }
        Ok(())
    }

    /// Why posted readings cannot be accepted any more, or a topic cannot be read.
    pub fn failure(&self) -> Option<String> {
        let contradiction = |topic: &Arc<KafkaSource>| {
            Some(format!("source {}: {}", topic.name(), topic.schema_contradiction()?))
        };
        let journal = self.journal.as_ref().and_then(|journal| journal.failure());
        journal.map(|failed| failed.to_string()).or_else(|| self.topics.iter().find_map(contradiction))
    }

    /// The dead letters of the journal and of files.
    pub fn dead_letters(&self, plan: &ServicePlan) -> Result<Option<DeadLetterFiles>, RunError> {
        let Some((dir, journal)) = self.data_dir.as_ref().zip(self.journal.as_ref()) else { return Ok(None) };
        let rules = refusal_rules(plan);
        let letters = DeadLetterFiles::open(dir.path(), &rules, plan.dead_letters)?;
        let name: Arc<str> = journal.name().into();
        for partition in 0..journal.partitions() {
            // Dead letters of another journal would prevent writing those of this one.
            let name = PartitionName { source: name.clone(), partition };
            if let Some(path) = letters.file_beyond(&name, journal.log_end(partition)) {
                let path = path.display();
                return Err(RunError::Failed(format!(
                    "{path} has dead letters of records that the journal does not have, so it belongs to another journal: move it away, and with it the full files beside it (dead-letters*.part-*.jsonl)"
                )));
            }
        }
        Ok(Some(letters))
    }

    /// The partitions by index, and their start positions; with `known_only`, only those that
    /// earlier starts have read.
    pub fn partitions(
        &self,
        registry: &SourceRegistry,
        known_only: bool,
    ) -> Result<Vec<LogPartition>, RunError> {
        let mut partitions = Vec::new();
        for source in &self.sources {
            for partition in 0..source.partitions() {
                if known_only && !registry.knows(source.name(), partition) {
                    continue;
                }
                let index = PartitionIndex(partitions.len() as u16);
                let start = registry.start_of(source, partition)?;
                partitions.push(registry.partition_from(source, partition, index, start.into()));
            }
        }
        Ok(partitions)
    }

    /// Checks that a log continues at a position that an earlier run has reached.
    pub fn check_position(&self, source: &str, partition: u32, at: LogPosition) -> Result<(), SourceError> {
        let log = self.sources.iter().find(|log| log.name() == source);
        let log = log.filter(|log| partition < log.partitions());
        let log = log.ok_or_else(|| SourceError::Fatal(format!("it has no partition {partition}")))?;
        log.check_position(partition, at)
    }

    /// The ids of the logs that have one, by source.
    pub fn log_ids(&self) -> Result<BTreeMap<String, String>, RunError> {
        let id = |source: &Arc<dyn Source>| match source.log_id() {
            Ok(id) => Ok(id.map(|id| (source.name().to_owned(), id))),
            Err(error) => Err(RunError::Source { name: source.name().to_owned(), error }),
        };
        self.sources.iter().filter_map(|source| id(source).transpose()).collect()
    }

    /// Records the id of a journal that has none yet. Call it once all outputs of the log are known
    /// to fit it.
    pub fn record_ids(&self) -> Result<(), RunError> {
        self.journal.as_ref().map_or(Ok(()), |journal| Ok(journal.save_id()?))
    }

    /// Of these partitions, those that this process can read, with their start positions.
    pub fn local_partitions(
        &self,
        registry: &SourceRegistry,
        all: &[(PartitionName, LogPosition)],
    ) -> Vec<LogPartition> {
        let indexed = (0..).map(PartitionIndex).zip(all);
        let local = indexed.map(|(index, (name, start))| self.local_partition(registry, index, name, *start));
        local.flatten().collect()
    }

    /// At process 0: reports the partitions that were added since the start.
    pub fn announce_new_partitions(
        &self,
        registry: &SourceRegistry,
        partitions: &PartitionTable,
        control: &Control,
    ) -> Result<(), RunError> {
        let known_partitions = partitions.names();
        for source in &self.sources {
            let name: Arc<str> = source.name().into();
            let is_known = |partition: u32| {
                known_partitions.iter().any(|known| known.source == name && known.partition == partition)
            };
            for partition in (0..source.partitions()).filter(|partition| !is_known(*partition)) {
                tracing::info!(source = &*name, partition, "a source has a new partition");
                let start = match registry.start_of(source, partition) {
                    // It is tried again soon.
                    Err(RunError::Source { error: SourceError::Transient(error), .. }) => {
                        tracing::warn!(
                            source = &*name,
                            partition,
                            error,
                            "a new partition cannot be read yet; it is retried"
                        );
                        return Ok(());
                    }
                    start => start?,
                };
                let name = PartitionName { source: name.clone(), partition };
                control.report(ControlEvent::PartitionFound { name, start });
            }
        }
        Ok(())
    }

    /// A partition to be read from a position on, if this process can read it.
    pub fn local_partition(
        &self,
        registry: &SourceRegistry,
        index: PartitionIndex,
        name: &PartitionName,
        start: LogPosition,
    ) -> Option<LogPartition> {
        let source = self.sources.iter().find(|source| *source.name() == *name.source)?;
        Some(registry.partition_from(source, name.partition, index, start))
    }

    /// Starts the generators that append to the log.
    pub fn spawn_feeds(
        &self,
        plan: &ServicePlan,
        appender: Option<Arc<dyn Appender>>,
    ) -> Result<Vec<(String, GeneratorFeed)>, RunError> {
        let mut feeds = Vec::new();
        let Some((appender, dir)) = appender.zip(self.data_dir.as_ref()) else { return Ok(feeds) };
        for source in &plan.sources {
            if let SourceKind::Generator(generator) = &source.kind {
                let name = source.name.clone();
                let feed = GeneratorFeed::spawn(
                    &name,
                    generator.clone(),
                    &dir.path().join("feeds"),
                    appender.clone(),
                );
                feeds.push((name.clone(), feed.map_err(|error| RunError::Feed { name, error })?));
            }
        }
        Ok(feeds)
    }
}

/// Opens a source that is a log of its own.
fn open_source(
    source: &SourcePlan,
    files_folder: Option<&Path>,
    topics: &mut Vec<Arc<KafkaSource>>,
) -> Result<Arc<dyn Source>, RunError> {
    let name = source.name.clone();
    match &source.kind {
        SourceKind::Generator(generator) => {
            let now = EventTime::from_millis(worker::ingest_clock_ms() as i64).unwrap_or_default();
            let paced = PacedLog::new(&name, generator.clone(), now);
            let paced = paced.map_err(|error| RunError::Generator { name, error })?;
            Ok(Arc::new(Arc::new(paced)))
        }
        SourceKind::File(FileSourcePlan { path, format, compression, follow }) => {
            let input = InputFile { path: Some(path.clone()), format: *format, compression: *compression };
            let file =
                FileSource::new(&name, vec![input], *follow, source.read_options.clone(), files_folder);
            Ok(Arc::new(file.map_err(|error| RunError::Source { name, error })?))
        }
        SourceKind::Kafka(kafka) => {
            let topic = KafkaSource::open(&name, kafka.clone(), &source.read_options);
            let topic = Arc::new(topic.map_err(|error| RunError::Source { name, error })?);
            topics.push(Arc::clone(&topic));
            Ok(topic)
        }
    }
}

/// Opens the appender to the topic of a source. A topic in Avro that cannot be written, since its
/// schemas are foreign or its registry is down, is still read.
fn open_topic_appender(
    plan: &ServicePlan,
    ingest: &IngestPlan,
    into: &str,
) -> Result<Option<Arc<dyn Appender>>, RunError> {
    let of_name = |source: &&SourcePlan| source.name == into;
    let Some(SourceKind::Kafka(kafka)) = plan.sources.iter().find(of_name).map(|source| &source.kind) else {
        return Err(RunError::Failed(format!("ingest.into is {into}, which is not a topic of Kafka")));
    };
    let limits = AppendLimits { records: ingest.queue_records, bytes: ingest.queue_bytes };
    match KafkaAppender::for_source(into, kafka, &plan.ingest_read_options(), limits) {
        Ok(appender) => Ok(Some(Arc::new(appender))),
        Err(error) if kafka.format != RecordFormat::Json => {
            tracing::warn!(source = into, %error, "readings cannot be posted to this topic; ingest.enabled = false says so");
            Ok(None)
        }
        Err(error) => Err(RunError::Source { name: into.to_owned(), error }),
    }
}

pub fn admission_rules(plan: &ServicePlan) -> AdmissionRules {
    let (max_ahead, max_cities) = (Some(plan.max_ahead), plan.max_cities);
    AdmissionRules { max_ahead, max_cities, ..AdmissionRules::new(plan.retention.lateness) }
}

/// The settings that decide which records of the journal and of files are refused, one a line.
/// Another file of the same name is detected by its content.
fn refusal_rules(plan: &ServicePlan) -> String {
    let mut identity = log_identity(plan);
    let version = identity.remove(RULES_VERSION_KEY).unwrap_or_default();
    identity.retain(|key, _| !key.starts_with(checkpoint::SOURCE_KEY_PREFIX));
    identity.extend(plan.sources.iter().filter_map(file_identity));
    let lines = identity.iter().map(|(key, value)| format!("{key} = {value}\n"));
    format!("{RULES_VERSION_KEY} = {version}\n{}", lines.collect::<String>())
}
