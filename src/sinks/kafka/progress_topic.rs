//! The progress topic of a cluster's sink: one partition, compacted, with the keys of
//! [`crate::sinks::progress`].

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use serde::Serialize;

use super::error::KafkaSinkError;
use crate::kafka::broker_reminder::BrokerReminder;
use crate::kafka::{KafkaCluster, REQUEST_TIMEOUT_MS, prefetch_metadata};
use crate::sinks::progress::ProgressSnapshot;
use crate::sinks::stop::StopDeadline;

/// How long reading or writing may take, including brokers that are starting.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long calls may wait for the cluster: until a deadline, and no longer than the end of the run
/// allows.
#[derive(Clone, Debug)]
pub struct WaitLimit {
    deadline: Instant,
    stop: Arc<StopDeadline>,
}

impl WaitLimit {
    pub fn at_most(wait: Duration) -> WaitLimit {
        WaitLimit { deadline: Instant::now() + wait, stop: Arc::default() }
    }

    pub fn until_stopped(stop: &Arc<StopDeadline>) -> WaitLimit {
        WaitLimit { deadline: Instant::now() + TOPIC_TIMEOUT, stop: Arc::clone(stop) }
    }

    fn is_over(&self) -> bool {
        self.stop.is_over() || Instant::now() > self.deadline
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
    /// Up to the present end, including uncommitted records.
    Now,
    /// The records that are committed now, up to the first open transaction.
    Committed,
    /// Committed records up to this offset, which is known to exist.
    Marker(i64),
}

/// Writes to the topic outside of transactions, and waits until the record is durable.
pub struct ProgressProducer {
    cluster: KafkaCluster,
    topic: String,
    producer: ThreadedProducer<AckContext>,
}

/// Returns the delivery result of a record to its caller.
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

    fn delivery(&self, delivered: &DeliveryResult<'_>, acked: Box<AckSender>) {
        let result = match delivered {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        // The caller may have stopped waiting.
        let _ = acked.try_send(result);
    }
}

impl ProgressProducer {
    pub fn new(cluster: &KafkaCluster, topic: &str) -> Result<ProgressProducer, KafkaSinkError> {
        let mut config = cluster.client_config();
        config
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .set("socket.timeout.ms", REQUEST_TIMEOUT_MS)
            // A standby would take a longer silence after an outage for the end of the run.
            .set("reconnect.backoff.max.ms", "1000")
            .set("message.timeout.ms", TOPIC_TIMEOUT.as_millis().to_string());
        let producer: ThreadedProducer<AckContext> = config
            .create_with_context(AckContext)
            .map_err(|error| KafkaSinkError::cannot_connect(cluster, error))?;
        prefetch_metadata(producer.client(), topic);
        Ok(ProgressProducer { cluster: cluster.clone(), topic: topic.to_owned(), producer })
    }

    /// Writes a value. Returns its offset.
    pub fn write(&self, key: &str, value: &impl Serialize) -> Result<i64, KafkaSinkError> {
        self.write_within(key, value, &WaitLimit::default())
    }

    pub fn write_within(
        &self,
        key: &str,
        value: &impl Serialize,
        limit: &WaitLimit,
    ) -> Result<i64, KafkaSinkError> {
        // Every value that a sink records can be serialized.
        self.write_bytes(key, &serde_json::to_vec(value).unwrap_or_default(), limit)
    }

    /// Writes a value of JSON. Returns its offset.
    pub fn write_bytes(&self, key: &str, value: &[u8], limit: &WaitLimit) -> Result<i64, KafkaSinkError> {
        let failed = |error| KafkaSinkError::cannot_write(&self.topic, error);
        let (acked, answer) = sync_channel(1);
        let record =
            BaseRecord::with_opaque_to(&self.topic, Box::new(acked)).key(key).payload(value).partition(0);
        self.producer.send(record).map_err(|(error, _)| failed(error))?;
        let mut silence = BrokerReminder::for_cluster(&self.cluster);
        loop {
            match answer.recv_timeout(POLL_INTERVAL) {
                Ok(delivered) => return delivered.map_err(failed),
                Err(RecvTimeoutError::Timeout) if !limit.is_over() => {
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
    limit: &WaitLimit,
) -> Result<ProgressSnapshot, KafkaSinkError> {
    let failed = |error| KafkaSinkError::cannot_read(topic, error);
    let isolation = if extent == ReadExtent::Now { READ_UNCOMMITTED } else { READ_COMMITTED };
    let mut reader = ProgressReader::open(cluster, topic, isolation, Offset::Beginning)?;
    let marker = match extent {
        ReadExtent::Marker(marker) => Some(marker),
        ReadExtent::Now | ReadExtent::Committed => None,
    };
    let mut snapshot = ProgressSnapshot::new(&format!("topic {topic}"));
    while marker.is_none_or(|marker| snapshot.last_offset() < Some(marker)) {
        if limit.is_over() {
            let last_offset = snapshot.last_offset();
            return Err(KafkaSinkError::Hangs { topic: topic.to_owned(), last_offset, marker });
        }
        match reader.poll() {
            Some(Ok(message)) => {
                let record = message.key().zip(message.payload());
                let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
                snapshot.add_record(message.offset(), record.map(|(key, value)| (text(key), value.to_vec())));
            }
            Some(Err(KafkaError::PartitionEOF(_))) if marker.is_none() => break,
            Some(Err(error)) if is_permanent(&error) => return Err(failed(error)),
            Some(Err(_)) | None => {}
        }
    }
    Ok(snapshot)
}

/// Isolation levels of consumers.
pub(super) const READ_COMMITTED: &str = "read_committed";
pub(super) const READ_UNCOMMITTED: &str = "read_uncommitted";

/// A consumer of the topic.
pub(super) struct ProgressReader {
    topic: String,
    consumer: BaseConsumer,
    silence: BrokerReminder,
    /// The last poll has probed the cluster, which did not answer.
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

    /// The next message, if one comes soon.
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

/// Whether the error is permanent, so that waiting does not help.
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
        let stop = Arc::new(StopDeadline::default());
        let limit = WaitLimit::until_stopped(&stop);
        assert!(!limit.is_over());
        stop.begin();
        assert!(!limit.is_over());
        assert!(WaitLimit::until_stopped(&Arc::new(StopDeadline::long_over())).is_over());
        assert!(WaitLimit::at_most(Duration::ZERO).is_over());
    }
}
