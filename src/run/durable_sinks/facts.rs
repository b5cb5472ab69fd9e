//! Facts about the sinks that one process collects for all.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::specs::SinkSpecs;
use super::topics::ensure_topics;
use crate::codec::{CURRENT_SCHEMA, ROW_SCHEMA};
use crate::config::{ServicePlan, SourceKind, SourcePlan};
use crate::kafka::topic_admin::TopicMetadata;
use crate::registry::{RegistryClient, RegistryError, RegistrySettings};
use crate::run::run_error::RunError;
use crate::sinks::kafka::{KafkaSinkPlan, RowFormat};

/// How long a schema registry may take at the start.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(30);
const REGISTRY_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const REGISTRY_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Facts about the sinks in addition to the configuration. All topics exist.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SinkFacts {
    /// Facts of each Kafka sink.
    pub(super) kafka: Vec<KafkaFacts>,
    /// Ids of the logs that have one, by source.
    pub(super) log_ids: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KafkaFacts {
    pub encoding: RowEncoding,
    pub topics: BTreeMap<String, TopicMetadata>,
}

/// The encoding of rows; for Avro with the ids of their schemas, if there is a registry.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum RowEncoding {
    #[serde(rename = "json")]
    Json,
    #[serde(rename = "avro")]
    Avro(Option<(u32, u32)>),
}

impl SinkFacts {
    /// Looks up the topics, creates missing ones if allowed, and registers the schemas of rows. One
    /// process calls this for all.
    ///
    /// # Errors
    ///
    /// If the log of a source does not exist, or a topic is missing.
    pub fn find(plan: &ServicePlan, log_ids: BTreeMap<String, String>) -> Result<SinkFacts, RunError> {
        let is_generator = |source: &&SourcePlan| matches!(source.kind, SourceKind::Generator(_));
        if let (false, None, Some(source)) =
            (plan.sinks.is_empty(), &plan.ingest, plan.sources.iter().find(is_generator))
        {
            return Err(RunError::Failed(format!(
                "source {}: without ingest no log keeps generated readings, so their results cannot be written exactly once: set ingest.enabled = true",
                source.name
            )));
        }
        let specs = SinkSpecs::of(plan);
        let facts = specs.kafka.iter().map(|spec| {
            let encoding = spec.results.as_ref().map_or(Ok(RowEncoding::Json), register_row_schemas)?;
            Ok(KafkaFacts { encoding, topics: ensure_topics(plan, spec)? })
        });
        Ok(SinkFacts { kafka: facts.collect::<Result<_, RunError>>()?, log_ids })
    }
}

impl KafkaFacts {
    /// The number of partitions of a topic.
    pub fn partitions(&self, topic: &str) -> u32 {
        self.topics.get(topic).map_or(1, |metadata| metadata.partitions)
    }
}

/// Registers the schemas of rows, if there is a registry.
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
