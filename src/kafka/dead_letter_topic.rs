//! Topics of dead letters, and how they are read.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::native::{TopicState, describe_topic_ids};
use super::{KafkaCluster, dead_letter_headers};
use crate::model::{DeadLetter, EventTime, RecordAddress, RetryInfo};

/// How long a request may take, and how long a reader waits for a record that must come.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// Why dead letters cannot be read or retried.
#[derive(Debug, thiserror::Error)]
pub enum DlqTopicError {
    #[error(
        "{brokers}: {doing}: {error}; check that the cluster is up and that this user may do it, then try again"
    )]
    Kafka { brokers: String, doing: String, error: Box<KafkaError> },
    #[error("{brokers}: topic {topic} is silent for {} s: check the cluster, then try again", SILENCE_TIMEOUT.as_secs())]
    Silent { brokers: String, topic: String },
    #[error("topic {0} is missing: its dead letters cannot go back to it")]
    Missing(String),
    #[error("another process retries the dead letters of {0}: let it, or stop it first")]
    Fenced(String),
    #[error("{failed} of the records were not written: try again, as ordinary arrivals may come twice")]
    NotWritten { failed: u64 },
}

/// Passes librdkafka's log on to ours.
pub(super) struct LogOnlyContext;

impl ClientContext for LogOnlyContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        super::log_librdkafka(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "a client that reads or retries dead letters reports an error");
    }
}

impl ConsumerContext for LogOnlyContext {}

/// A record of a dead-letter topic.
pub(super) struct DeadLetterRecord {
    pub partition: i32,
    pub offset: i64,
    /// When the record was written, ms since 1970.
    pub written_at_ms: Option<i64>,
    /// `None` if swelter did not write the record.
    pub dead_letter: Option<DeadLetter>,
}

/// Reads a dead-letter topic from given offsets to its end.
pub(super) struct DeadLetterTopicReader {
    brokers: String,
    topic: String,
    consumer: BaseConsumer<LogOnlyContext>,
}

impl DeadLetterTopicReader {
    pub fn new(cluster: &KafkaCluster, topic: &str) -> Result<DeadLetterTopicReader, DlqTopicError> {
        let brokers = cluster.brokers.clone();
        let consumer = create_consumer(cluster, "swelter-dead-letters");
        let failed = |error| DlqTopicError::Kafka {
            brokers: brokers.clone(),
            doing: "connect".into(),
            error: Box::new(error),
        };
        let consumer = consumer.map_err(failed)?;
        Ok(DeadLetterTopicReader { brokers, topic: topic.into(), consumer })
    }

    /// How many partitions a topic has; `None` if there is no such topic.
    pub fn partition_count(&self, topic: &str) -> Result<Option<i32>, DlqTopicError> {
        let metadata = self.consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT);
        let metadata =
            metadata.map_err(|error| self.kafka_error(format!("describe topic {topic}"), error))?;
        let topic_metadata = metadata.topics().iter().find(|topic_metadata| topic_metadata.name() == topic);
        Ok(topic_metadata
            .map(|topic_metadata| topic_metadata.partitions().len() as i32)
            .filter(|partitions| *partitions > 0))
    }

    /// The state of a topic; `None` if there is no such topic.
    pub fn topic_state(&self, topic: &str) -> Result<Option<TopicState>, DlqTopicError> {
        let states = describe_topic_ids(self.consumer.client(), &[topic], REQUEST_TIMEOUT);
        let mut states =
            states.map_err(|error| self.kafka_error(format!("describe topic {topic}"), error))?;
        match states.remove(topic) {
            Some(TopicState::Unknown(code)) => {
                Err(self.kafka_error(format!("describe topic {topic}"), KafkaError::AdminOp(code)))
            }
            state => Ok(state.filter(|state| *state != TopicState::Missing)),
        }
    }

    /// Calls `each` with every record, from the offset of its partition in `next` on, and moves
    /// that offset behind the record. If `each` returns false, the partition is left at that
    /// record.
    pub fn read_to_end(
        &self,
        next: &mut BTreeMap<i32, i64>,
        each: &mut dyn FnMut(DeadLetterRecord) -> Result<bool, DlqTopicError>,
    ) -> Result<(), DlqTopicError> {
        let Some(partitions) = self.partition_count(&self.topic)? else { return Ok(()) };
        let mut assigned = TopicPartitionList::new();
        for partition in 0..partitions {
            let from = next.get(&partition).map_or(Offset::Beginning, |next| Offset::Offset(*next));
            let added = assigned.add_partition_offset(&self.topic, partition, from);
            added.map_err(|error| self.kafka_error("begin to read".into(), error))?;
        }
        self.consumer.assign(&assigned).map_err(|error| self.kafka_error("begin to read".into(), error))?;
        let read = self.read_assigned(partitions, next, each);
        let unassigned =
            self.consumer.unassign().map_err(|error| self.kafka_error("end reading".into(), error));
        read.and(unassigned)
    }

    fn read_assigned(
        &self,
        partitions: i32,
        next: &mut BTreeMap<i32, i64>,
        each: &mut dyn FnMut(DeadLetterRecord) -> Result<bool, DlqTopicError>,
    ) -> Result<(), DlqTopicError> {
        let mut open: Vec<bool> = vec![true; partitions as usize];
        let mut last_record_at = Instant::now();
        while open.iter().any(|open| *open) {
            let polled = self.consumer.poll(POLL_TIMEOUT);
            if polled.as_ref().is_some_and(Result::is_ok) {
                last_record_at = Instant::now();
            } else if last_record_at.elapsed() > SILENCE_TIMEOUT {
                let (brokers, topic) = (self.brokers.clone(), self.topic.clone());
                return Err(DlqTopicError::Silent { brokers, topic });
            }
            match polled {
                Some(Ok(message)) => {
                    let Some(open) = open.get_mut(message.partition() as usize).filter(|open| **open) else {
                        continue;
                    };
                    let (partition, offset) = (message.partition(), message.offset());
                    match each(to_dead_letter_record(&message))? {
                        true => drop(next.insert(partition, offset + 1)),
                        false => *open = false,
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if let Some(open) = open.get_mut(partition as usize) {
                        *open = false;
                    }
                }
                Some(Err(error)) if is_permanent(&error) => {
                    return Err(self.kafka_error(format!("read topic {}", self.topic), error));
                }
                Some(Err(_)) | None => {}
            }
        }
        Ok(())
    }

    pub fn kafka_error(&self, doing: String, error: KafkaError) -> DlqTopicError {
        DlqTopicError::Kafka { brokers: self.brokers.clone(), doing, error: Box::new(error) }
    }
}

/// Calls `each` with all dead letters of a topic; with none if there is no such topic.
pub fn read_dead_letters(
    cluster: &KafkaCluster,
    topic: &str,
    mut each: impl FnMut(DeadLetter),
) -> Result<(), DlqTopicError> {
    DeadLetterTopicReader::new(cluster, topic)?.read_to_end(&mut BTreeMap::new(), &mut |record| {
        if let Some(dead_letter) = record.dead_letter {
            each(dead_letter);
        }
        Ok(true)
    })
}

/// A consumer that reads committed records, joins no group and commits nothing.
pub(super) fn create_consumer(
    cluster: &KafkaCluster,
    group: &str,
) -> Result<BaseConsumer<LogOnlyContext>, KafkaError> {
    let mut config = cluster.client_config();
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .set("allow.auto.create.topics", "false")
        .set("fetch.queue.backoff.ms", "10");
    config.create_with_context(LogOnlyContext)
}

fn is_permanent(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::SaslAuthenticationFailed
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::Fatal
        )
    )
}

fn to_dead_letter_record(message: &BorrowedMessage<'_>) -> DeadLetterRecord {
    DeadLetterRecord {
        partition: message.partition(),
        offset: message.offset(),
        written_at_ms: message.timestamp().to_millis(),
        dead_letter: decode_dead_letter(message),
    }
}

fn decode_dead_letter(message: &BorrowedMessage<'_>) -> Option<DeadLetter> {
    let headers = message.headers()?;
    let header = |name: &str| {
        let last_header = headers.iter().filter(|header| header.key == name).last()?;
        std::str::from_utf8(last_header.value?).ok()
    };
    let address: RecordAddress = header(dead_letter_headers::POSITION)?.parse().ok()?;
    let first_seen = header(dead_letter_headers::FIRST_SEEN).and_then(|text| text.parse::<EventTime>().ok());
    let attempt: u32 = header(dead_letter_headers::ATTEMPT).map_or(Some(0), |text| text.parse().ok())?;
    let origin = header(dead_letter_headers::ORIGIN).filter(|_| attempt > 0);
    Some(DeadLetter {
        address,
        arrived_at: message.timestamp().to_millis().and_then(EventTime::from_millis),
        reason: header(dead_letter_headers::REASON)?.to_owned(),
        detail: header(dead_letter_headers::DETAIL).unwrap_or_default().to_owned(),
        retry: origin.map(|origin| RetryInfo { origin: origin.into(), attempt, first_seen }),
        first_seen,
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
    })
}
