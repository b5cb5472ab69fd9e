//! Topics of a cluster: described, compared and created.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::KafkaCluster;
use super::native::{self, TopicState};
use super::topic_identity::find_written_topics;

/// How long a cluster may take until it responds.
const CLUSTER_DEADLINE: Duration = Duration::from_secs(30);
/// How long one request may take, and the time between two.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Requests that are repeated for less than this are not logged.
const WARN_AFTER: Duration = Duration::from_secs(2);

/// The settings of a topic.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TopicMetadata {
    pub partitions: u32,
    /// Only the newest record of a key is kept.
    pub compacted: bool,
    /// Old records are deleted: after this time, and beyond so many bytes of a partition.
    pub retention_ms: Option<u64>,
    pub retention_bytes: Option<u64>,
    /// Timestamps are the broker's; otherwise the producers'.
    pub append_time: bool,
    /// How far ahead of the broker's clock a producer's timestamp may be, in ms, if there is a
    /// limit.
    pub max_ahead_ms: Option<u64>,
}

impl TopicMetadata {
    /// The settings by which old records are deleted; `None` if all are kept.
    pub fn retention_text(&self) -> Option<String> {
        let by_time = self.retention_ms.map(|ms| format!("retention.ms={ms}, {}", format_span(ms)));
        let by_size = self.retention_bytes.map(|bytes| format!("retention.bytes={bytes} of a partition"));
        let both: Vec<String> = by_time.into_iter().chain(by_size).collect();
        (!both.is_empty()).then(|| both.join(" and "))
    }
}

/// In the largest unit of which it has at least two.
fn format_span(ms: u64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)];
    let unit = units.iter().find(|(_, unit)| ms >= 2 * unit);
    unit.map_or_else(|| format!("{ms} ms"), |(name, unit)| format!("{} {name}", ms / unit))
}

/// A topic to create, with the cluster's default replication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    pub name: String,
    pub partitions: u32,
    pub config: Vec<(&'static str, &'static str)>,
}

/// Why a request about topics has failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicAdminError {
    #[error("{brokers} cannot be reached: {reason}; check `brokers`, and that the cluster is up")]
    Unreachable { brokers: String, reason: String },
    #[error("{brokers} does not allow it: {reason}")]
    NotAuthorised { brokers: String, reason: String },
    #[error("{brokers}: {reason}")]
    Other { brokers: String, reason: String },
}

/// Describes topics; `None` for a missing one. Waits up to 30 s for a cluster that is not up yet.
pub fn describe_topics(
    cluster: &KafkaCluster,
    topics: &[&str],
) -> Result<BTreeMap<String, Option<TopicMetadata>>, TopicAdminError> {
    let client = TopicClient::new(cluster)?;
    topics
        .iter()
        .map(|topic| Ok((topic.to_string(), client.retry(|| client.describe_topic(topic))?)))
        .collect()
}

/// Whether a topic exists, as far as this client is authorised to know.
pub fn topic_exists(cluster: &KafkaCluster, topic: &str) -> Result<bool, TopicAdminError> {
    let client = TopicClient::new(cluster)?;
    match client.retry(|| client.partition_count(topic)) {
        Ok(partitions) => Ok(partitions.is_some()),
        Err(TopicAdminError::NotAuthorised { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The identities of topics, and which have records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicSurvey {
    pub states: BTreeMap<String, TopicState>,
    /// Topics that were ever written to, as their end offsets say: all their records may be deleted
    /// by now.
    pub written_topics: BTreeSet<String>,
}

/// Lists topics with their ids and end offsets: one request, and one more to each broker, whatever
/// the number of topics.
pub fn survey_topics(cluster: &KafkaCluster, topics: &[&str]) -> Result<TopicSurvey, TopicAdminError> {
    let client = TopicClient::new(cluster)?;
    let states = client.retry(|| client.topic_states(topics))?;
    let written = client.retry(|| client.written_topics(&states))?;
    Ok(TopicSurvey { states, written_topics: written })
}

/// The first of these topics that holds a committed record. Records of aborted transactions do not
/// count, nor do transaction markers.
pub fn first_topic_with_records(
    cluster: &KafkaCluster,
    topics: &[&str],
) -> Result<Option<String>, TopicAdminError> {
    first_topic_with(cluster, topics, |_| true)
}

/// The first of these topics that holds a committed record with this header.
pub fn first_topic_with_header(
    cluster: &KafkaCluster,
    topics: &[&str],
    (name, value): (&str, &str),
) -> Result<Option<String>, TopicAdminError> {
    first_topic_with(cluster, topics, |record| {
        let mut headers = record.headers().into_iter().flat_map(Headers::iter);
        headers.any(|header| header.key == name && header.value == Some(value.as_bytes()))
    })
}

fn first_topic_with(
    cluster: &KafkaCluster,
    topics: &[&str],
    is_wanted: impl Fn(&BorrowedMessage<'_>) -> bool,
) -> Result<Option<String>, TopicAdminError> {
    let client = TopicClient::new(cluster)?;
    for topic in topics {
        let partitions = client.retry(|| client.partition_count(topic))?.unwrap_or(0);
        if partitions > 0 && client.has_committed(topic, partitions, &is_wanted)? {
            return Ok(Some((*topic).to_owned()));
        }
    }
    Ok(None)
}

/// Creates topics, and returns once all can be used. An existing topic is left as it is.
pub fn create_topics(cluster: &KafkaCluster, topics: &[TopicSpec]) -> Result<(), TopicAdminError> {
    let client = TopicClient::new(cluster)?;
    for topic in topics {
        client.retry(|| client.create_topic(topic))?;
        // The next broker may not know the topic yet.
        client.retry(|| match client.partition_count(&topic.name)? {
            Some(_) => Ok(()),
            None => Err(AttemptFailure::Transient(format!(
                "topic {} was created but does not appear",
                topic.name
            ))),
        })?;
    }
    Ok(())
}

/// Why one attempt has failed.
enum AttemptFailure {
    Transient(String),
    NotAuthorised(String),
    Permanent(String),
}

impl AttemptFailure {
    fn from_code(doing: &str, code: RDKafkaErrorCode) -> AttemptFailure {
        use RDKafkaErrorCode as Code;
        match code {
            Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::Authentication => AttemptFailure::NotAuthorised(format!("{doing}: {code}")),
            Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::TimedOutQueue
            | Code::RequestTimedOut
            | Code::Resolve
            | Code::SSL
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::NotController
            | Code::BrokerNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::NetworkException
            | Code::OffsetNotAvailable
            | Code::UnknownLeaderEpoch
            | Code::FencedLeaderEpoch
            | Code::UnknownTopicOrPartition => AttemptFailure::Transient(format!("{doing}: {code}")),
            _ => AttemptFailure::Permanent(format!("{doing}: {code}")),
        }
    }

    fn from_error(doing: &str, error: &KafkaError) -> AttemptFailure {
        let code = match error {
            KafkaError::AdminOp(code) => Some(*code),
            other => other.rdkafka_error_code(),
        };
        code.map_or_else(
            || AttemptFailure::Permanent(format!("{doing}: {error}")),
            |code| AttemptFailure::from_code(doing, code),
        )
    }
}

/// The clients that send requests, and since when they have been trying.
struct TopicClient<'a> {
    cluster: &'a KafkaCluster,
    admin: AdminClient<rdkafka::client::DefaultClientContext>,
    /// A consumer, since a metadata request of a producer or of an admin client may create the
    /// topic.
    metadata: BaseConsumer<ClientErrors>,
    runtime: tokio::runtime::Runtime,
    since: Instant,
}

impl<'a> TopicClient<'a> {
    fn new(cluster: &'a KafkaCluster) -> Result<TopicClient<'a>, TopicAdminError> {
        let other = |reason: String| TopicAdminError::Other { brokers: cluster.brokers.clone(), reason };
        let mut config = cluster.client_config();
        let admin = config.create().map_err(|error| other(error.to_string()))?;
        config.set("allow.auto.create.topics", "false");
        let metadata =
            config.create_with_context(ClientErrors::default()).map_err(|error| other(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.map_err(|error| other(error.to_string()))?;
        Ok(TopicClient { cluster, admin, metadata, runtime, since: Instant::now() })
    }

    fn retry<T>(&self, mut attempt: impl FnMut() -> Result<T, AttemptFailure>) -> Result<T, TopicAdminError> {
        let brokers = self.cluster.brokers.clone();
        let mut warned = false;
        loop {
            let failure = match attempt() {
                Ok(result) => return Ok(result),
                Err(failure) => failure,
            };
            let reason = match failure {
                AttemptFailure::Transient(reason) => self.last_client_error().unwrap_or(reason),
                AttemptFailure::NotAuthorised(reason) => {
                    return Err(TopicAdminError::NotAuthorised { brokers, reason });
                }
                AttemptFailure::Permanent(reason) => return Err(TopicAdminError::Other { brokers, reason }),
            };
            if self.metadata.context().is_authentication_refused() {
                return Err(TopicAdminError::NotAuthorised { brokers, reason });
            }
            if self.since.elapsed() >= CLUSTER_DEADLINE {
                return Err(TopicAdminError::Unreachable { brokers, reason });
            }
            // A topic that was just created mostly appears at once.
            if !warned && self.since.elapsed() >= WARN_AFTER {
                tracing::warn!(
                    brokers,
                    reason,
                    "a Kafka cluster cannot be used yet; requests are repeated for up to 30 s"
                );
                warned = true;
            }
            thread::sleep(RETRY_INTERVAL);
        }
    }

    /// The client's own last error, which says more than the timeout of a request.
    fn last_client_error(&self) -> Option<String> {
        while self.metadata.poll(Duration::from_millis(10)).is_some() {}
        self.metadata.context().last_reason()
    }

    /// How many partitions a topic has; `None` if it does not exist.
    fn partition_count(&self, topic: &str) -> Result<Option<u32>, AttemptFailure> {
        let doing = format!("describe topic {topic}");
        let metadata = self.metadata.fetch_metadata(Some(topic), REQUEST_TIMEOUT);
        let metadata = metadata.map_err(|error| AttemptFailure::from_error(&doing, &error))?;
        let Some(topic_metadata) =
            metadata.topics().iter().find(|topic_metadata| topic_metadata.name() == topic)
        else {
            return Ok(None);
        };
        match topic_metadata.error().map(RDKafkaErrorCode::from) {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
            Some(code) => Err(AttemptFailure::from_code(&doing, code)),
            None => Ok(Some(topic_metadata.partitions().len() as u32)),
        }
    }

    fn topic_states(&self, topics: &[&str]) -> Result<BTreeMap<String, TopicState>, AttemptFailure> {
        let doing = "describe topics (DescribeTopics)";
        let ids = native::describe_topic_ids(self.metadata.client(), topics, REQUEST_TIMEOUT);
        let mut ids = ids.map_err(|error| AttemptFailure::from_error(doing, &error))?;
        for topic in topics {
            match ids.get(*topic) {
                Some(TopicState::Unknown(code)) => {
                    return Err(AttemptFailure::from_code(&format!("describe topic {topic}"), *code));
                }
                Some(_) => {}
                None => drop(ids.insert((*topic).to_owned(), TopicState::Missing)),
            }
        }
        Ok(ids)
    }

    fn written_topics(
        &self,
        topics: &BTreeMap<String, TopicState>,
    ) -> Result<BTreeSet<String>, AttemptFailure> {
        let written = find_written_topics(&self.metadata, topics, REQUEST_TIMEOUT);
        written.map_err(|error| AttemptFailure::from_error("find the ends of topics", &error))
    }

    /// Reads until such a record is found or all records are read.
    fn has_committed(
        &self,
        topic: &str,
        partitions: u32,
        is_wanted: &dyn Fn(&BorrowedMessage<'_>) -> bool,
    ) -> Result<bool, TopicAdminError> {
        let mut config = self.cluster.client_config();
        config
            .set("group.id", format!("{topic}.reader"))
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("allow.auto.create.topics", "false");
        let brokers = &self.cluster.brokers;
        let other = |error: KafkaError| TopicAdminError::Other {
            brokers: brokers.clone(),
            reason: error.to_string(),
        };
        let consumer: BaseConsumer<ClientErrors> =
            config.create_with_context(ClientErrors::default()).map_err(other)?;
        let mut assigned = TopicPartitionList::new();
        for partition in 0..partitions {
            assigned.add_partition_offset(topic, partition as i32, Offset::Beginning).map_err(other)?;
        }
        consumer.assign(&assigned).map_err(other)?;
        let mut at_end = BTreeSet::new();
        let mut last_record_at = Instant::now();
        while at_end.len() < partitions as usize {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(record)) if is_wanted(&record) => return Ok(true),
                Some(Ok(_)) => last_record_at = Instant::now(),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    at_end.insert(partition);
                    last_record_at = Instant::now();
                }
                Some(Err(error)) => {
                    let failure = AttemptFailure::from_error(&format!("read topic {topic}"), &error);
                    self.fail_if_permanent(failure, last_record_at)?;
                }
                None if last_record_at.elapsed() < CLUSTER_DEADLINE => {}
                None => {
                    let reason = format!("topic {topic} cannot be read to its end");
                    return Err(TopicAdminError::Unreachable { brokers: brokers.clone(), reason });
                }
            }
        }
        Ok(false)
    }

    fn fail_if_permanent(&self, failure: AttemptFailure, since: Instant) -> Result<(), TopicAdminError> {
        let brokers = self.cluster.brokers.clone();
        match failure {
            AttemptFailure::Transient(_) if since.elapsed() < CLUSTER_DEADLINE => Ok(()),
            AttemptFailure::Transient(reason) => Err(TopicAdminError::Unreachable { brokers, reason }),
            AttemptFailure::NotAuthorised(reason) => Err(TopicAdminError::NotAuthorised { brokers, reason }),
            AttemptFailure::Permanent(reason) => Err(TopicAdminError::Other { brokers, reason }),
        }
    }

    fn describe_topic(&self, topic: &str) -> Result<Option<TopicMetadata>, AttemptFailure> {
        let Some(partitions) = self.partition_count(topic)? else { return Ok(None) };
        let doing = format!("read the settings of topic {topic} (DescribeConfigs)");
        let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
        let resources = [ResourceSpecifier::Topic(topic)];
        let configs = self.admin.describe_configs(&resources, &options);
        let configs =
            self.runtime.block_on(configs).map_err(|error| AttemptFailure::from_error(&doing, &error))?;
        let config = configs.into_iter().next();
        let config = config.ok_or_else(|| AttemptFailure::Permanent(format!("{doing}: no response")))?;
        let config = config.map_err(|code| AttemptFailure::from_code(&doing, code))?;
        let setting = |name| config.get(name).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        let limit = |name| setting(name).parse::<i64>().ok().filter(|limit| (0..i64::MAX).contains(limit));
        let deleted = setting("cleanup.policy").contains("delete");
        Ok(Some(TopicMetadata {
            partitions,
            compacted: setting("cleanup.policy").contains("compact"),
            retention_ms: limit("retention.ms").filter(|_| deleted).map(i64::unsigned_abs),
            retention_bytes: limit("retention.bytes").filter(|_| deleted).map(i64::unsigned_abs),
            append_time: setting("message.timestamp.type") == "LogAppendTime",
            max_ahead_ms: limit("message.timestamp.after.max.ms").map(i64::unsigned_abs),
        }))
    }

    fn create_topic(&self, topic: &TopicSpec) -> Result<(), AttemptFailure> {
        let doing = format!("create topic {}", topic.name);
        // -1: the cluster's default replication.
        let mut new = NewTopic::new(&topic.name, topic.partitions as i32, TopicReplication::Fixed(-1));
        for (name, value) in &topic.config {
            new = new.set(name, value);
        }
        let options = AdminOptions::new()
            .request_timeout(Some(REQUEST_TIMEOUT))
            .operation_timeout(Some(REQUEST_TIMEOUT));
        let results = self.runtime.block_on(self.admin.create_topics(&[new], &options));
        match results.map_err(|error| AttemptFailure::from_error(&doing, &error))?.into_iter().next() {
            Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
            Some(Err((_, code))) => Err(AttemptFailure::from_code(&doing, code)),
            None => Err(AttemptFailure::Permanent(format!("{doing}: no response"))),
        }
    }
}

/// The last error of a client's connections.
#[derive(Clone, Default)]
struct ClientErrors(Arc<Mutex<Option<(RDKafkaErrorCode, String)>>>);

impl ClientErrors {
    fn last_reason(&self) -> Option<String> {
        let last = self.0.lock();
        last.as_ref().map(|(_, reason)| reason.clone())
    }

    /// No client with these properties will ever be authenticated.
    fn is_authentication_refused(&self) -> bool {
        let last = self.0.lock();
        last.as_ref().is_some_and(|(code, _)| *code == RDKafkaErrorCode::Authentication)
    }
}

impl ClientContext for ClientErrors {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        super::log_librdkafka(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        // The error of one broker says why; that all are down does not.
        if code != RDKafkaErrorCode::AllBrokersDown {
            *self.0.lock() = Some((code, reason.to_string()));
        }
    }
}

impl ConsumerContext for ClientErrors {}
