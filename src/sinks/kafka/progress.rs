//! The progress topic: what an outlet's writers have made durable, and who they are. One partition, compacted.
//!
//! | key | value |
//! |---|---|
//! | `claim` | the generation that may write: `{"generation":7,"nonce":".."}` |
//! | `identity` | what the results were made with |
//! | `start/SOURCE` | where its partitions were first read from: `{PARTITION:..}` |
//! | `shard/N` | written in the shard's transactions: `{"epoch":..,"positions":{SOURCE:{PARTITION:..}}}` |
//! | `epochs` | epochs below may be in use |
//! | `schema/SOURCE/ID` | what a registry has answered |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use super::OutletError;
use crate::kafka::Cluster;

/// How long reading or writing it may take, brokers that are starting included.
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

pub const CLAIM: &str = "claim";
pub const IDENTITY: &str = "identity";
pub const EPOCHS: &str = "epochs";
pub const MARKER: &str = "marker";

/// The key of a shard's progress, by its number within the outlet.
pub fn shard_key(shard: u16) -> String {
    format!("shard/{shard}")
}

/// The key of where the partitions of a source were first read from.
pub fn start_key(source: &str) -> String {
    format!("start/{source}")
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
}

/// The position of each partition, by the name of its source.
pub type Positions = BTreeMap<Arc<str>, BTreeMap<u32, u64>>;

/// All that the topic holds, by key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    values: BTreeMap<String, Vec<u8>>,
    topic: String,
}

impl Kept {
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
    topic: String,
    producer: ThreadedProducer<Acknowledging>,
}

/// Hands on what became of a record.
struct Acknowledging;

type Heard = std::sync::mpsc::SyncSender<Result<i64, KafkaError>>;

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
            .set("message.timeout.ms", DEADLINE.as_millis().to_string());
        let producer =
            config.create_with_context(Acknowledging).map_err(|error| OutletError::client(cluster, error))?;
        Ok(Writer { topic: topic.to_owned(), producer })
    }

    /// Writes a value, and gives its offset.
    pub fn write(&self, key: &str, value: &impl Serialize) -> Result<i64, OutletError> {
        let failed = |error| OutletError::writing(&self.topic, error);
        let value = serde_json::to_vec(value).unwrap_or_default();
        let (heard, answer) = std::sync::mpsc::sync_channel(1);
        let record =
            BaseRecord::with_opaque_to(&self.topic, Box::new(heard)).key(key).payload(&value).partition(0);
        self.producer.send(record).map_err(|(error, _)| failed(error))?;
        match answer.recv_timeout(DEADLINE + POLL) {
            Ok(delivered) => delivered.map_err(failed),
            Err(_) => Err(failed(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut))),
        }
    }
}

/// Reads the whole topic: all that is committed up to `marker`, an offset that is known to be there; without one, all up to the
/// end that it has now, whatever waits for a commit.
pub fn read(cluster: &Cluster, topic: &str, marker: Option<i64>) -> Result<Kept, OutletError> {
    let failed = |error| OutletError::reading(topic, error);
    let mut config = reader(cluster, topic);
    config.set("isolation.level", if marker.is_some() { "read_committed" } else { "read_uncommitted" });
    let consumer: BaseConsumer = config.create().map_err(|error| OutletError::client(cluster, error))?;
    assign(&consumer, topic, Offset::Beginning).map_err(failed)?;
    let deadline = Instant::now() + DEADLINE;
    let mut kept = Kept { topic: topic.to_owned(), ..Kept::default() };
    let mut seen = -1;
    while marker.is_none_or(|marker| seen < marker) {
        if Instant::now() > deadline {
            return Err(OutletError::Hangs { topic: topic.to_owned(), seen, marker });
        }
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                seen = message.offset();
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

fn reader(cluster: &Cluster, topic: &str) -> ClientConfig {
    let mut config = cluster.client();
    config
        .set("group.id", format!("{topic}.reader"))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "20")
        .set("fetch.queue.backoff.ms", "20");
    config
}

fn assign(consumer: &BaseConsumer, topic: &str, from: Offset) -> Result<(), KafkaError> {
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, from)?;
    consumer.assign(&assignment)
}

/// Watches for the claim of another start, until there is one or `ended`.
pub fn watch(
    cluster: &Cluster,
    topic: &str,
    from: i64,
    own: &Claim,
    ended: &AtomicBool,
) -> Result<Option<Claim>, OutletError> {
    let mut config = reader(cluster, topic);
    config.set("isolation.level", "read_uncommitted").set("fetch.wait.max.ms", "500");
    let consumer: BaseConsumer = config.create().map_err(|error| OutletError::client(cluster, error))?;
    assign(&consumer, topic, Offset::Offset(from)).map_err(|error| OutletError::reading(topic, error))?;
    while !ended.load(Ordering::Relaxed) {
        // Whatever goes wrong here goes wrong where results are written, too, and is said there.
        let Some(Ok(message)) = consumer.poll(POLL) else { continue };
        if message.key() == Some(CLAIM.as_bytes())
            && let Some(claim) =
                message.payload().and_then(|value| serde_json::from_slice::<Claim>(value).ok())
            && claim != *own
        {
            return Ok(Some(claim));
        }
    }
    Ok(None)
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
