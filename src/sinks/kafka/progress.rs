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

use super::OutletError;
use crate::kafka::silence::Silence;
use crate::kafka::{ANSWER, Cluster, introduce};
use crate::model::{Fingerprint, LogPosition};

/// How long reading or writing it may take, brokers that are starting included.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a stop waits for a cluster that does not answer.
const LAST_WAIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(100);

pub const CLAIM: &str = "claim";
pub const IDENTITY: &str = "identity";
pub const TOPICS: &str = "topics";
pub const EPOCHS: &str = "epochs";
pub const MARKER: &str = "marker";
/// What the keys of shards and of starts begin with.
pub const SHARD: &str = "shard/";
pub const START: &str = "start/";

/// The key of a shard's progress, by its number within the outlet.
pub fn shard_key(shard: u16) -> String {
    format!("{SHARD}{shard}")
}

/// The key of where the partitions of a source were first read from.
pub fn start_key(source: &str) -> String {
    format!("{START}{source}")
}

/// What the keys of the answers of a source's registry begin with, before the id.
pub fn schema_key(source: &str) -> String {
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
pub struct Stopping(OnceLock<Instant>);

impl Stopping {
    pub fn begin(&self) {
        let _ = self.0.set(Instant::now());
    }

    pub fn has_begun(&self) -> bool {
        self.0.get().is_some()
    }

    /// How long the cluster may still take.
    pub fn left(&self) -> Duration {
        self.0.get().map_or(Duration::MAX, |since| LAST_WAIT.saturating_sub(since.elapsed()))
    }

    pub fn is_over(&self) -> bool {
        self.left().is_zero()
    }
}

/// How long a call waits for the cluster: to a time, and no longer than the end of the run allows.
#[derive(Clone, Debug)]
pub struct Patience {
    deadline: Instant,
    stopping: Arc<Stopping>,
}

impl Patience {
    pub fn of(wait: Duration) -> Patience {
        Patience { deadline: Instant::now() + wait, stopping: Arc::default() }
    }

    pub fn until_stopped(stopping: &Arc<Stopping>) -> Patience {
        Patience { deadline: Instant::now() + DEADLINE, stopping: Arc::clone(stopping) }
    }

    fn is_over(&self) -> bool {
        self.stopping.is_over() || Instant::now() > self.deadline
    }
}

impl Default for Patience {
    fn default() -> Patience {
        Patience::of(DEADLINE)
    }
}

/// How much of the topic is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All up to the end that it has now, whatever waits for a commit.
    Now,
    /// What is committed by now, before the first transaction that is open.
    Committed,
    /// What is committed, up to this offset, which is known to be there.
    Marker(i64),
}

/// All that the topic holds, by key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    values: BTreeMap<String, Vec<u8>>,
    topic: String,
    /// The offset of the last record, where there is one.
    last: Option<i64>,
}

impl Kept {
    /// Reads what a topic holds now, while others may be writing.
    pub fn now(cluster: &Cluster, topic: &str) -> Result<Kept, OutletError> {
        read(cluster, topic, Extent::Now, &Patience::default())
    }

    #[cfg(test)]
    pub fn of(topic: &str, values: impl Iterator<Item = (String, Vec<u8>)>, last: i64) -> Kept {
        Kept { values: values.collect(), topic: topic.to_owned(), last: Some(last) }
    }

    /// The offset of the last record that was read.
    pub fn last(&self) -> Option<i64> {
        self.last
    }

    /// With the shards' progress that another reading has.
    pub(super) fn with_shards_of(mut self, other: Kept) -> Kept {
        let is_shard = |key: &String| key.starts_with(SHARD);
        self.values.retain(|key, _| !is_shard(key));
        self.values.extend(other.values.into_iter().filter(|(key, _)| is_shard(key)));
        self
    }

    /// What is kept under a key.
    pub fn get<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Result<Option<T>, OutletError> {
        let parse = |value: &Vec<u8>| {
            serde_json::from_slice(value).map_err(|error| OutletError::Damaged {
                topic: self.topic.clone(),
                key: key.to_owned(),
                problem: error.to_string(),
            })
        };
        self.values.get(key).map(parse).transpose()
    }

    /// What follows a prefix, and the values kept there.
    pub fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let from = self.values.range(prefix.to_owned()..);
        from.map_while(move |(key, value)| Some((key.strip_prefix(prefix)?, &value[..])))
    }
}

/// Writes to the topic outside of transactions, and waits until it is durable.
pub struct Writer {
    cluster: Cluster,
    topic: String,
    producer: ThreadedProducer<Acknowledging>,
}

/// Hands on what became of a record.
struct Acknowledging;

type Heard = SyncSender<Result<i64, KafkaError>>;

impl ClientContext for Acknowledging {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, text: &str) {
        crate::kafka::log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "progress topic");
    }
}

impl ProducerContext for Acknowledging {
    type DeliveryOpaque = Box<Heard>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, heard: Box<Heard>) {
        let result = match delivered {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        // Whoever waited may have given up.
        let _ = heard.try_send(result);
    }
}

impl Writer {
    pub fn new(cluster: &Cluster, topic: &str) -> Result<Writer, OutletError> {
        let mut config = cluster.client();
        config
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .set("socket.timeout.ms", ANSWER)
            // Whoever stands by takes a longer silence after an outage for an end.
            .set("reconnect.backoff.max.ms", "1000")
            .set("message.timeout.ms", DEADLINE.as_millis().to_string());
        let producer: ThreadedProducer<Acknowledging> =
            config.create_with_context(Acknowledging).map_err(|error| OutletError::client(cluster, error))?;
        introduce(producer.client(), topic);
        Ok(Writer { cluster: cluster.clone(), topic: topic.to_owned(), producer })
    }

    /// Writes a value, and gives its offset.
    pub fn write(&self, key: &str, value: &impl Serialize) -> Result<i64, OutletError> {
        self.write_within(key, value, &Patience::default())
    }

    pub fn write_within(
        &self,
        key: &str,
        value: &impl Serialize,
        patience: &Patience,
    ) -> Result<i64, OutletError> {
        let failed = |error| OutletError::writing(&self.topic, error);
        let value = serde_json::to_vec(value).unwrap_or_default();
        let (heard, answer) = sync_channel(1);
        let record =
            BaseRecord::with_opaque_to(&self.topic, Box::new(heard)).key(key).payload(&value).partition(0);
        self.producer.send(record).map_err(|(error, _)| failed(error))?;
        let mut silence = Silence::of(&self.cluster);
        loop {
            match answer.recv_timeout(POLL) {
                Ok(delivered) => return delivered.map_err(failed),
                Err(RecvTimeoutError::Timeout) if !patience.is_over() => {
                    silence.lasts(self.producer.client());
                }
                Err(_) => {
                    return Err(failed(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)));
                }
            }
        }
    }
}

/// Reads the topic from its beginning.
pub fn read(
    cluster: &Cluster,
    topic: &str,
    extent: Extent,
    patience: &Patience,
) -> Result<Kept, OutletError> {
    let failed = |error| OutletError::reading(topic, error);
    let isolation = if extent == Extent::Now { UNCOMMITTED } else { COMMITTED };
    let mut reader = Reader::open(cluster, topic, isolation, Offset::Beginning)?;
    let marker = match extent {
        Extent::Marker(marker) => Some(marker),
        Extent::Now | Extent::Committed => None,
    };
    let mut kept = Kept { topic: topic.to_owned(), ..Kept::default() };
    while marker.is_none_or(|marker| kept.last < Some(marker)) {
        if patience.is_over() {
            return Err(OutletError::Hangs { topic: topic.to_owned(), seen: kept.last, marker });
        }
        match reader.poll() {
            Some(Ok(message)) => {
                kept.last = Some(message.offset());
                if let (Some(key), Some(value)) = (message.key(), message.payload()) {
                    kept.values.insert(String::from_utf8_lossy(key).into_owned(), value.to_vec());
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) if marker.is_none() => break,
            Some(Err(error)) if is_final(&error) => return Err(failed(error)),
            Some(Err(_)) | None => {}
        }
    }
    Ok(kept)
}

/// Isolation levels.
pub(super) const COMMITTED: &str = "read_committed";
pub(super) const UNCOMMITTED: &str = "read_uncommitted";

/// A client that reads the topic.
pub(super) struct Reader {
    topic: String,
    consumer: BaseConsumer,
    silence: Silence,
    /// The last poll has asked the cluster, which did not answer.
    is_away: bool,
}

impl Reader {
    pub fn open(
        cluster: &Cluster,
        topic: &str,
        isolation: &str,
        from: Offset,
    ) -> Result<Reader, OutletError> {
        let mut config = cluster.client();
        config
            .set("group.id", format!("{topic}.reader"))
            .set("isolation.level", isolation)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.timeout.ms", ANSWER)
            .set("fetch.wait.max.ms", "20")
            .set("fetch.queue.backoff.ms", "20");
        let consumer: BaseConsumer = config.create().map_err(|error| OutletError::client(cluster, error))?;
        introduce(consumer.client(), topic);
        let mut assignment = TopicPartitionList::new();
        let added = assignment.add_partition_offset(topic, 0, from);
        let assigned = added.and_then(|()| consumer.assign(&assignment));
        assigned.map_err(|error| OutletError::reading(topic, error))?;
        Ok(Reader { topic: topic.to_owned(), consumer, silence: Silence::of(cluster), is_away: false })
    }

    /// What comes next, if it comes soon.
    pub fn poll(&mut self) -> Option<Result<BorrowedMessage<'_>, KafkaError>> {
        let polled = self.consumer.poll(POLL);
        match polled {
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => {
                self.silence.ends();
                self.is_away = false;
            }
            Some(Err(_)) | None => {
                self.is_away = !self.silence.may_last(self.consumer.client(), &self.topic);
            }
        }
        polled
    }

    /// Whether the cluster answers.
    pub fn is_answered(&self, within: Duration) -> bool {
        !self.is_away && self.consumer.fetch_watermarks(&self.topic, 0, within).is_ok()
    }
}

/// Whether waiting does not help.
pub fn is_final(error: &KafkaError) -> bool {
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
    fn a_stop_ends_every_wait() {
        let stopping = Arc::<Stopping>::default();
        let patience = Patience::until_stopped(&stopping);
        assert!(!patience.is_over() && !stopping.has_begun() && stopping.left() > LAST_WAIT);
        stopping.begin();
        assert!(!patience.is_over() && stopping.left() <= LAST_WAIT);
        let begun = Instant::now().checked_sub(LAST_WAIT).unwrap();
        let stopping = Arc::new(Stopping(OnceLock::from(begun)));
        assert!(Patience::until_stopped(&stopping).is_over());
        assert!(Patience::of(Duration::ZERO).is_over());
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
    fn shards_are_those_that_are_committed() {
        let kept = |values: &[(&str, &str)]| Kept {
            values: values.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            ..Kept::default()
        };
        let now = kept(&[("claim", "2"), ("shard/0", "open"), ("shard/1", "aborted")]);
        let committed = kept(&[("claim", "1"), ("shard/0", "before")]);
        assert_eq!(now.with_shards_of(committed), kept(&[("claim", "2"), ("shard/0", "before")]));
    }
}
