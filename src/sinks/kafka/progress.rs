//! The progress topic: what an outlet's writers have made durable, and who they are. One partition, compacted.
//!
//! | key | value |
//! |---|---|
//! | `claim` | the generation that may write: `{"generation":7,"nonce":".."}` |
//! | `identity` | what the results were made with |
//! | `topics` | what the topics that are read and written are known by: `{TOPIC:{"id":..}}` |
//! | `start/SOURCE` | where its partitions were first read from: `{PARTITION:..}` |
//! | `shard/N` | written in the shard's transactions: `{"epoch":..,"positions":{SOURCE:{PARTITION:..}},"before":{SOURCE:{PARTITION:{"position":..,"digest":..}}}}` |
//! | `epochs` | epochs below may be in use |
//! | `marker` | nothing: it marks a place, or is a sign of life |
//! | `schema/SOURCE/ID` | what a registry has answered |

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use super::KafkaSinkError;
use crate::kafka::broker_reminder::BrokerReminder;
use crate::kafka::{KafkaCluster, REQUEST_TIMEOUT_MS, prefetch_metadata};
use crate::model::{Fingerprint, LogPosition};

/// How long reading or writing it may take, brokers that are starting included.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a stop waits for a cluster that does not answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

pub const CLAIM: &str = "claim";
pub const IDENTITY: &str = "identity";
pub const TOPICS: &str = "topics";
pub const EPOCHS: &str = "epochs";
pub const MARKER: &str = "marker";
/// What the keys of shards and of starts begin with.
pub const SHARD_PREFIX: &str = "shard/";
pub const START_PREFIX: &str = "start/";

/// The key of a shard's progress, by its number within the outlet.
pub fn shard_key(shard: u16) -> String {
    format!("{SHARD_PREFIX}{shard}")
}

/// The key of where the partitions of a source were first read from.
pub fn start_key(source: &str) -> String {
    format!("{START_PREFIX}{source}")
}

/// What the keys of the answers of a source's registry begin with, before the id.
pub fn schema_prefix(source: &str) -> String {
    format!("schema/{source}/")
}

/// Who may write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub generation: u64,
    pub nonce: String,
}

/// How far a shard has come: what it has written is complete up to and with this epoch, and these positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardProgress {
    pub epoch: u64,
    pub positions: Positions,
    /// The last record of each partition before that, as far as it is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub before: Fingerprints,
}

/// Something of each partition, by the name of its source.
pub type BySource<T> = BTreeMap<Arc<str>, BTreeMap<u32, T>>;

pub type Positions = BySource<u64>;

pub type Fingerprints = BySource<Fingerprint>;

impl ShardProgress {
    /// How far a partition has come, with the record before that; nothing if it is not recorded.
    pub fn at(&self, source: &str, partition: u32) -> Option<LogPosition> {
        let position = *self.positions.get(source)?.get(&partition)?;
        let before = self.before.get(source).and_then(|of| of.get(&partition)).copied();
        Some(LogPosition { position, before })
    }
}

/// When a run has begun to end, for all who wait for a cluster.
#[derive(Debug, Default)]
pub struct StopDeadline(OnceLock<Instant>);

impl StopDeadline {
    pub fn begin(&self) {
        let _ = self.0.set(Instant::now());
    }

    pub fn has_begun(&self) -> bool {
        self.0.get().is_some()
    }

    /// How long the cluster may still take.
    pub fn time_left(&self) -> Duration {
        self.0.get().map_or(Duration::MAX, |since| STOP_TIMEOUT.saturating_sub(since.elapsed()))
    }

    pub fn is_over(&self) -> bool {
        self.time_left().is_zero()
    }
}

/// How long a call waits for the cluster: to a time, and no longer than the end of the run allows.
#[derive(Clone, Debug)]
pub struct WaitLimit {
    deadline: Instant,
    stopping: Arc<StopDeadline>,
}

impl WaitLimit {
    pub fn at_most(wait: Duration) -> WaitLimit {
        WaitLimit { deadline: Instant::now() + wait, stopping: Arc::default() }
    }

    pub fn until_stopped(stopping: &Arc<StopDeadline>) -> WaitLimit {
        WaitLimit { deadline: Instant::now() + TOPIC_TIMEOUT, stopping: Arc::clone(stopping) }
    }

    fn is_over(&self) -> bool {
        self.stopping.is_over() || Instant::now() > self.deadline
    }
}

impl Default for WaitLimit {
    fn default() -> WaitLimit {
        WaitLimit::at_most(TOPIC_TIMEOUT)
    }
}

/// How much of the topic is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadExtent {
    /// All up to the end that it has now, whatever waits for a commit.
    Now,
    /// What is committed by now, before the first transaction that is open.
    Committed,
    /// What is committed, up to this offset, which is known to be there.
    Marker(i64),
}

/// All that the topic holds, by key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgressSnapshot {
    values: BTreeMap<String, Vec<u8>>,
    topic: String,
    /// The offset of the last record, where there is one.
    last: Option<i64>,
}

impl ProgressSnapshot {
    /// Reads what a topic holds now, while others may be writing.
    pub fn read_now(cluster: &KafkaCluster, topic: &str) -> Result<ProgressSnapshot, KafkaSinkError> {
        read_topic(cluster, topic, ReadExtent::Now, &WaitLimit::default())
    }

    #[cfg(test)]
    pub fn of(topic: &str, values: impl Iterator<Item = (String, Vec<u8>)>, last: i64) -> ProgressSnapshot {
        ProgressSnapshot { values: values.collect(), topic: topic.to_owned(), last: Some(last) }
    }

    /// The offset of the last record that was read.
    pub fn last_offset(&self) -> Option<i64> {
        self.last
    }

    /// With the shards' progress that another reading has.
    pub(super) fn with_shards_of(mut self, other: ProgressSnapshot) -> ProgressSnapshot {
        let is_shard = |key: &String| key.starts_with(SHARD_PREFIX);
        self.values.retain(|key, _| !is_shard(key));
        self.values.extend(other.values.into_iter().filter(|(key, _)| is_shard(key)));
        self
    }

    /// What is kept under a key.
    pub fn get<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Result<Option<T>, KafkaSinkError> {
        let parse = |value: &Vec<u8>| {
            serde_json::from_slice(value).map_err(|error| KafkaSinkError::Damaged {
                topic: self.topic.clone(),
                key: key.to_owned(),
                problem: error.to_string(),
            })
        };
        self.values.get(key).map(parse).transpose()
    }

    /// What follows a prefix, and the values kept there.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let from = self.values.range(prefix.to_owned()..);
        from.map_while(move |(key, value)| Some((key.strip_prefix(prefix)?, &value[..])))
    }
}

/// Writes to the topic outside of transactions, and waits until it is durable.
pub struct ProgressProducer {
    cluster: KafkaCluster,
    topic: String,
    producer: ThreadedProducer<AckContext>,
}

/// Hands on what became of a record.
struct AckContext;

type AckSender = SyncSender<Result<i64, KafkaError>>;

impl ClientContext for AckContext {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, text: &str) {
        crate::kafka::log_librdkafka(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "progress topic");
    }
}

impl ProducerContext for AckContext {
    type DeliveryOpaque = Box<AckSender>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, heard: Box<AckSender>) {
        let result = match delivered {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        // Whoever waited may have given up.
        let _ = heard.try_send(result);
    }
}

impl ProgressProducer {
    pub fn new(cluster: &KafkaCluster, topic: &str) -> Result<ProgressProducer, KafkaSinkError> {
        let mut config = cluster.client_config();
        config
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .set("socket.timeout.ms", REQUEST_TIMEOUT_MS)
            // Whoever stands by takes a longer silence after an outage for an end.
            .set("reconnect.backoff.max.ms", "1000")
            .set("message.timeout.ms", TOPIC_TIMEOUT.as_millis().to_string());
        let producer: ThreadedProducer<AckContext> = config
            .create_with_context(AckContext)
            .map_err(|error| KafkaSinkError::cannot_connect(cluster, error))?;
        prefetch_metadata(producer.client(), topic);
        Ok(ProgressProducer { cluster: cluster.clone(), topic: topic.to_owned(), producer })
    }

    /// Writes a value, and gives its offset.
    pub fn write(&self, key: &str, value: &impl Serialize) -> Result<i64, KafkaSinkError> {
        self.write_within(key, value, &WaitLimit::default())
    }

    pub fn write_within(
        &self,
        key: &str,
        value: &impl Serialize,
        patience: &WaitLimit,
    ) -> Result<i64, KafkaSinkError> {
        let failed = |error| KafkaSinkError::cannot_write(&self.topic, error);
        let value = serde_json::to_vec(value).unwrap_or_default();
        let (heard, answer) = sync_channel(1);
        let record =
            BaseRecord::with_opaque_to(&self.topic, Box::new(heard)).key(key).payload(&value).partition(0);
        self.producer.send(record).map_err(|(error, _)| failed(error))?;
        let mut silence = BrokerReminder::for_cluster(&self.cluster);
        loop {
            match answer.recv_timeout(POLL_INTERVAL) {
                Ok(delivered) => return delivered.map_err(failed),
                Err(RecvTimeoutError::Timeout) if !patience.is_over() => {
                    silence.remind_if_silent(self.producer.client());
                }
                Err(_) => {
                    return Err(failed(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)));
                }
            }
        }
    }
}

/// Reads the topic from its beginning.
pub fn read_topic(
    cluster: &KafkaCluster,
    topic: &str,
    extent: ReadExtent,
    patience: &WaitLimit,
) -> Result<ProgressSnapshot, KafkaSinkError> {
    let failed = |error| KafkaSinkError::cannot_read(topic, error);
    let isolation = if extent == ReadExtent::Now { READ_UNCOMMITTED } else { READ_COMMITTED };
    let mut reader = ProgressReader::open(cluster, topic, isolation, Offset::Beginning)?;
    let marker = match extent {
        ReadExtent::Marker(marker) => Some(marker),
        ReadExtent::Now | ReadExtent::Committed => None,
    };
    let mut kept = ProgressSnapshot { topic: topic.to_owned(), ..ProgressSnapshot::default() };
    while marker.is_none_or(|marker| kept.last < Some(marker)) {
        if patience.is_over() {
            return Err(KafkaSinkError::Hangs { topic: topic.to_owned(), seen: kept.last, marker });
        }
        match reader.poll() {
            Some(Ok(message)) => {
                kept.last = Some(message.offset());
                if let (Some(key), Some(value)) = (message.key(), message.payload()) {
                    kept.values.insert(String::from_utf8_lossy(key).into_owned(), value.to_vec());
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) if marker.is_none() => break,
            Some(Err(error)) if is_permanent(&error) => return Err(failed(error)),
            Some(Err(_)) | None => {}
        }
    }
    Ok(kept)
}

/// Isolation levels.
pub(super) const READ_COMMITTED: &str = "read_committed";
pub(super) const READ_UNCOMMITTED: &str = "read_uncommitted";

/// A client that reads the topic.
pub(super) struct ProgressReader {
    topic: String,
    consumer: BaseConsumer,
    silence: BrokerReminder,
    /// The last poll has asked the cluster, which did not answer.
    is_away: bool,
}

impl ProgressReader {
    pub fn open(
        cluster: &KafkaCluster,
        topic: &str,
        isolation: &str,
        from: Offset,
    ) -> Result<ProgressReader, KafkaSinkError> {
        let mut config = cluster.client_config();
        config
            .set("group.id", format!("{topic}.reader"))
            .set("isolation.level", isolation)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.timeout.ms", REQUEST_TIMEOUT_MS)
            .set("fetch.wait.max.ms", "20")
            .set("fetch.queue.backoff.ms", "20");
        let consumer: BaseConsumer =
            config.create().map_err(|error| KafkaSinkError::cannot_connect(cluster, error))?;
        prefetch_metadata(consumer.client(), topic);
        let mut assignment = TopicPartitionList::new();
        let added = assignment.add_partition_offset(topic, 0, from);
        let assigned = added.and_then(|()| consumer.assign(&assignment));
        assigned.map_err(|error| KafkaSinkError::cannot_read(topic, error))?;
        Ok(ProgressReader {
            topic: topic.to_owned(),
            consumer,
            silence: BrokerReminder::for_cluster(cluster),
            is_away: false,
        })
    }

    /// What comes next, if it comes soon.
    pub fn poll(&mut self) -> Option<Result<BorrowedMessage<'_>, KafkaError>> {
        let polled = self.consumer.poll(POLL_INTERVAL);
        match polled {
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => {
                self.silence.record_response();
                self.is_away = false;
            }
            Some(Err(_)) | None => {
                self.is_away = !self.silence.probe_if_silent(self.consumer.client(), &self.topic);
            }
        }
        polled
    }

    /// Whether the cluster answers.
    pub fn is_reachable(&self, within: Duration) -> bool {
        !self.is_away && self.consumer.fetch_watermarks(&self.topic, 0, within).is_ok()
    }
}

/// Whether waiting does not help.
pub fn is_permanent(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
                | Code::SaslAuthenticationFailed
                | Code::Authentication
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_ends_every_wait() {
        let stopping = Arc::<StopDeadline>::default();
        let patience = WaitLimit::until_stopped(&stopping);
        assert!(!patience.is_over() && !stopping.has_begun() && stopping.time_left() > STOP_TIMEOUT);
        stopping.begin();
        assert!(!patience.is_over() && stopping.time_left() <= STOP_TIMEOUT);
        let begun = Instant::now().checked_sub(STOP_TIMEOUT).unwrap();
        let stopping = Arc::new(StopDeadline(OnceLock::from(begun)));
        assert!(WaitLimit::until_stopped(&stopping).is_over());
        assert!(WaitLimit::at_most(Duration::ZERO).is_over());
    }

    #[test]
    fn shard_progress_of_earlier_versions_has_no_fingerprints() {
        let old = r#"{"epoch":3,"positions":{"readings":{"0":7}}}"#;
        let progress: ShardProgress = serde_json::from_str(old).unwrap();
        assert_eq!(progress.at("readings", 0), Some(7.into()));
        assert_eq!((progress.at("readings", 1), progress.at("other", 0)), (None, None));
        assert_eq!(serde_json::to_string(&progress).unwrap(), old);
        let before = Fingerprint { position: 5, digest: 9, leader_epoch: None };
        let progress =
            ShardProgress { before: [("readings".into(), [(0, before)].into())].into(), ..progress };
        let json = serde_json::to_vec(&progress).unwrap();
        let read: ShardProgress = serde_json::from_slice(&json).unwrap();
        assert_eq!(read.at("readings", 0), Some(LogPosition { position: 7, before: Some(before) }));
    }

    #[test]
    fn shard_progress_is_taken_from_committed_records() {
        let kept = |values: &[(&str, &str)]| ProgressSnapshot {
            values: values.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            ..ProgressSnapshot::default()
        };
        let now = kept(&[("claim", "2"), ("shard/0", "open"), ("shard/1", "aborted")]);
        let committed = kept(&[("claim", "1"), ("shard/0", "before")]);
        assert_eq!(now.with_shards_of(committed), kept(&[("claim", "2"), ("shard/0", "before")]));
    }
}
