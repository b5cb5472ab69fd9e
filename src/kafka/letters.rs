//! Dead letters in topics: read back, and sent once more.

use std::collections::BTreeMap;
use std::time::{Duration as Wait, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::native::{TopicState, topic_ids};
use super::{Cluster, letter};
use crate::model::{EventTime, Letter, RecordPlace, Retried};

/// How long a request may take, and how long nothing may come where something must.
pub(super) const REQUEST: Wait = Wait::from_secs(20);
const SILENCE: Wait = Wait::from_secs(30);
const POLL: Wait = Wait::from_millis(100);

/// Why dead letters cannot be read or sent.
#[derive(Debug, thiserror::Error)]
pub enum LettersError {
    #[error(
        "{brokers}: {doing}: {error}; check that the cluster is up and that this user may do it, then try again"
    )]
    Kafka { brokers: String, doing: String, error: Box<KafkaError> },
    #[error("{brokers}: topic {topic} is silent for {} s: check the cluster, then try again", SILENCE.as_secs())]
    Silent { brokers: String, topic: String },
    #[error("topic {0} is missing: its dead letters cannot go back to it")]
    Missing(String),
    #[error("another process retries the dead letters of {0}: let it, or stop it first")]
    Fenced(String),
    #[error("{failed} of the records were not written: try again, as ordinary arrivals may come twice")]
    NotWritten { failed: u64 },
}

/// Sends what librdkafka says to our log.
pub(super) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        super::log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "dead letters");
    }
}

impl ConsumerContext for Quiet {}

/// A letter and where it lies in its topic.
pub(super) struct Posted {
    pub partition: i32,
    pub offset: i64,
    /// When it was written, ms.
    pub written: Option<i64>,
    /// Nothing where the record is none that we wrote.
    pub letter: Option<Letter>,
}

/// Reads a topic of dead letters from given offsets to its end.
pub(super) struct TopicReader {
    brokers: String,
    topic: String,
    consumer: BaseConsumer<Quiet>,
}

impl TopicReader {
    pub fn new(cluster: &Cluster, topic: &str) -> Result<TopicReader, LettersError> {
        let brokers = cluster.brokers.clone();
        let consumer = consumer(cluster, "swelter-dead-letters");
        let failed = |error| LettersError::Kafka {
            brokers: brokers.clone(),
            doing: "connect".into(),
            error: Box::new(error),
        };
        let consumer = consumer.map_err(failed)?;
        Ok(TopicReader { brokers, topic: topic.into(), consumer })
    }

    /// How many partitions a topic has; nothing where there is none.
    pub fn partitions(&self, topic: &str) -> Result<Option<i32>, LettersError> {
        let metadata = self.consumer.fetch_metadata(Some(topic), REQUEST);
        let metadata = metadata.map_err(|error| self.failed(format!("describe topic {topic}"), error))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        Ok(found.map(|found| found.partitions().len() as i32).filter(|partitions| *partitions > 0))
    }

    /// What the cluster says of a topic: nothing where there is none.
    pub fn state(&self, topic: &str) -> Result<Option<TopicState>, LettersError> {
        let states = topic_ids(self.consumer.client(), &[topic], REQUEST);
        let mut states = states.map_err(|error| self.failed(format!("describe topic {topic}"), error))?;
        match states.remove(topic) {
            Some(TopicState::Unknown(code)) => {
                Err(self.failed(format!("describe topic {topic}"), KafkaError::AdminOp(code)))
            }
            state => Ok(state.filter(|state| *state != TopicState::Missing)),
        }
    }

    /// Gives each record to `each`, of each partition from its offset in `next` on, and moves that behind it. A partition of
    /// which `each` says false is left there.
    pub fn read(
        &self,
        next: &mut BTreeMap<i32, i64>,
        each: &mut dyn FnMut(Posted) -> Result<bool, LettersError>,
    ) -> Result<(), LettersError> {
        let Some(partitions) = self.partitions(&self.topic)? else { return Ok(()) };
        let mut assigned = TopicPartitionList::new();
        for partition in 0..partitions {
            let from = next.get(&partition).map_or(Offset::Beginning, |next| Offset::Offset(*next));
            let added = assigned.add_partition_offset(&self.topic, partition, from);
            added.map_err(|error| self.failed("begin to read".into(), error))?;
        }
        self.consumer.assign(&assigned).map_err(|error| self.failed("begin to read".into(), error))?;
        let read = self.read_assigned(partitions, next, each);
        let left = self.consumer.unassign().map_err(|error| self.failed("end reading".into(), error));
        read.and(left)
    }

    fn read_assigned(
        &self,
        partitions: i32,
        next: &mut BTreeMap<i32, i64>,
        each: &mut dyn FnMut(Posted) -> Result<bool, LettersError>,
    ) -> Result<(), LettersError> {
        let mut open: Vec<bool> = vec![true; partitions as usize];
        let mut heard = Instant::now();
        while open.iter().any(|open| *open) {
            let polled = self.consumer.poll(POLL);
            if polled.as_ref().is_some_and(Result::is_ok) {
                heard = Instant::now();
            } else if heard.elapsed() > SILENCE {
                let (brokers, topic) = (self.brokers.clone(), self.topic.clone());
                return Err(LettersError::Silent { brokers, topic });
            }
            match polled {
                Some(Ok(message)) => {
                    let Some(open) = open.get_mut(message.partition() as usize).filter(|open| **open) else {
                        continue;
                    };
                    let (partition, offset) = (message.partition(), message.offset());
                    match each(posted(&message))? {
                        true => drop(next.insert(partition, offset + 1)),
                        false => *open = false,
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.get_mut(partition as usize).into_iter().for_each(|open| *open = false);
                }
                Some(Err(error)) if is_final(&error) => {
                    return Err(self.failed(format!("read topic {}", self.topic), error));
                }
                Some(Err(_)) | None => {}
            }
        }
        Ok(())
    }

    pub fn failed(&self, doing: String, error: KafkaError) -> LettersError {
        LettersError::Kafka { brokers: self.brokers.clone(), doing, error: Box::new(error) }
    }
}

/// All letters of a topic, to `each`; none where there is no such topic.
pub fn read(cluster: &Cluster, topic: &str, mut each: impl FnMut(Letter)) -> Result<(), LettersError> {
    TopicReader::new(cluster, topic)?.read(&mut BTreeMap::new(), &mut |posted| {
        posted.letter.into_iter().for_each(&mut each);
        Ok(true)
    })
}

/// A consumer that reads what is committed, joins nothing and commits nothing.
pub(super) fn consumer(cluster: &Cluster, group: &str) -> Result<BaseConsumer<Quiet>, KafkaError> {
    let mut config = cluster.client();
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .set("allow.auto.create.topics", "false")
        .set("fetch.queue.backoff.ms", "10");
    config.create_with_context(Quiet)
}

fn is_final(error: &KafkaError) -> bool {
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

fn posted(message: &BorrowedMessage<'_>) -> Posted {
    Posted {
        partition: message.partition(),
        offset: message.offset(),
        written: message.timestamp().to_millis(),
        letter: letter_of(message),
    }
}

fn letter_of(message: &BorrowedMessage<'_>) -> Option<Letter> {
    let headers = message.headers()?;
    let header = |name: &str| {
        let found = headers.iter().filter(|header| header.key == name).last()?;
        std::str::from_utf8(found.value?).ok()
    };
    let place: RecordPlace = header(letter::POSITION)?.parse().ok()?;
    let first_seen = header(letter::FIRST_SEEN).and_then(|text| text.parse::<EventTime>().ok());
    let attempt: u32 = header(letter::ATTEMPT).map_or(Some(0), |text| text.parse().ok())?;
    let origin = header(letter::ORIGIN).filter(|_| attempt > 0);
    Some(Letter {
        place,
        at: message.timestamp().to_millis().and_then(EventTime::from_millis),
        reason: header(letter::REASON)?.to_owned(),
        detail: header(letter::DETAIL).unwrap_or_default().to_owned(),
        retried: origin.map(|origin| Retried { origin: origin.into(), attempt, first_seen }),
        first_seen,
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
    })
}
