//! What says that a topic is the one that was read before: its id, and the record before a position. And which topic it is that
//! records come from: librdkafka goes on with another one of the same name without an error.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use xxhash_rust::xxh3::Xxh3Default;

use super::watch::SourceClientContext;
use super::{KafkaSourceShared, REQUEST_TIMEOUT};
use crate::kafka::native::{
    FetchedRecord, LogQueue, RecordQueue, TopicState, describe_topic_ids, url_safe_topic_id,
};
use crate::kafka::topic_identity::TopicIdentity;
use crate::kafka::{self, prefetch_metadata};
use crate::model::{Fingerprint, LogPosition};
use crate::sources::SourceError;

const PROBE_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// What is fetched for one record: at least the batch that has it.
const PROBE_FETCH_BYTES: &str = "16384";

/// What a record is known by. Not its time or its headers, which a mirror may change.
pub(super) fn record_fingerprint(record: FetchedRecord<'_>) -> Fingerprint {
    let mut digest = Xxh3Default::new();
    for part in [record.key(), record.value()] {
        digest.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
        digest.update(part.unwrap_or_default());
    }
    let position = u64::try_from(record.offset()).unwrap_or(0);
    Fingerprint { position, digest: digest.digest(), leader_epoch: record.leader_epoch() }
}

/// Which topic the client's fetches are of.
pub(super) struct FetchedTopic {
    topic: String,
    /// As it was when the source was opened.
    id: Option<String>,
    client_log: Mutex<ClientLog>,
}

struct ClientLog {
    queue: LogQueue<SourceClientContext>,
    /// The id of another topic, which the client has gone over to.
    other_id: Option<String>,
}

impl FetchedTopic {
    pub(super) fn new(
        topic: &str,
        id: Option<String>,
        client: &Arc<BaseConsumer<SourceClientContext>>,
    ) -> Option<Self> {
        let queue = LogQueue::redirect_from(client)?;
        Some(FetchedTopic {
            topic: topic.to_owned(),
            id,
            client_log: Mutex::new(ClientLog { queue, other_id: None }),
        })
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Whether all that was fetched by now is of the topic that was opened. The client writes a line about another id before it fetches
    /// by that, so whoever takes records first and then asks here, gives none of another topic. That holds for brokers that are asked
    /// by id, from 3.1 on.
    pub(super) fn check_topic_id(&self) -> Result<(), SourceError> {
        let mut lines = self.client_log.lock().unwrap_or_else(PoisonError::into_inner);
        let ClientLog { queue, other_id: another } = &mut *lines;
        queue.drain(|level, facility, text| {
            kafka::log_librdkafka(level, facility, text);
            if let (Some(changed), Some(own)) = (parse_changed_id(text, &self.topic), &self.id)
                && changed != *own
            {
                another.get_or_insert(changed);
            }
        });
        match another {
            None => Ok(()),
            Some(id) => Err(SourceError::Fatal(topic_recreated_text(
                &self.topic,
                id,
                self.id.as_deref().unwrap_or("none"),
            ))),
        }
    }
}

fn topic_recreated_text(topic: &str, id: &str, own: &str) -> String {
    format!(
        "topic {topic} was deleted and made anew while it was read: it has the id {id}, and had {own}; nothing of the new one was read: \
         {TOPIC_REMEDY}"
    )
}

/// The id that a line says a topic has now.
fn parse_changed_id(text: &str, topic: &str) -> Option<String> {
    let (_, ids) = text.split_once(&format!("Topic {topic} changed id from "))?;
    let (_, id) = ids.split_once(" to ")?;
    Some(url_safe_topic_id(id.trim()))
}

/// A topic, and what is recorded of it.
struct ComparedTopic<'a> {
    topic: &'a str,
    id: Option<&'a str>,
    recorded_identity: &'a TopicIdentity,
}

impl ComparedTopic<'_> {
    /// Whether the record before a position is the one that was read.
    fn check_record(&self, partition: u32, before: Fingerprint, found: ProbedRecord) -> Result<(), String> {
        let ComparedTopic { topic, id, recorded_identity: recorded } = *self;
        let position = before.position;
        match found {
            ProbedRecord::Removed => match (id, recorded.id.as_deref()) {
                (Some(id), Some(was)) if id != was => Err(format!(
                    "topic {topic} is another one than was read: its id is {id}, and was {was}, and its record at position {position} of \
                     partition {partition}, which would tell whether it is a copy, is gone: {TOPIC_REMEDY}"
                )),
                _ => Ok(()),
            },
            ProbedRecord::Record(now) if now.digest != before.digest => Err(format!(
                "topic {topic} is another one than was read: its record at position {position} of partition {partition} is another one; \
                 it was made anew, or its records were replaced: {TOPIC_REMEDY}"
            )),
            ProbedRecord::Record(now) => match (now.leader_epoch, before.leader_epoch) {
                // A copy has leaders of its own.
                (Some(now), Some(was)) if now != was && id.is_some() && recorded.is_original_id(id) => {
                    Err(format!(
                        "partition {partition} of topic {topic} was cut back and written anew: its record at position {position} was taken in \
                     leader epoch {now}, the one that was read in {was}, as after an unclean leader election: {TOPIC_REMEDY}"
                    ))
                }
                _ => Ok(()),
            },
        }
    }
}

/// The record that is at a position now.
enum ProbedRecord {
    Record(Fingerprint),
    /// Retention has removed it.
    Removed,
}

impl KafkaSourceShared {
    /// Whether the log still reaches a position, and still has the record before it.
    pub(super) fn check_position(&self, partition: u32, at: LogPosition) -> Result<(), SourceError> {
        let low = self.check_in_range(partition, at.position)?.start;
        let Some(before) = at.before else { return Ok(()) };
        let recorded = self.recorded_identity.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = match before.position < low {
            true => ProbedRecord::Removed,
            false => self.probe_record(partition, before.position)?,
        };
        let topic = ComparedTopic {
            topic: &self.plan.topic,
            id: self.fetched_topic.id(),
            recorded_identity: &recorded,
        };
        topic.check_record(partition, before, found).map_err(SourceError::RecordDiffers)
    }

    /// Whether the topic is the one that was opened: to be asked where the client has lost its place.
    pub(super) fn check_same_topic(&self) -> Result<(), SourceError> {
        self.fetched_topic.check_topic_id()?;
        let topic = &*self.plan.topic;
        let found = describe_topic_ids(self.consumer.client(), &[topic], REQUEST_TIMEOUT);
        let states = found.map_err(|error| SourceError::Transient(format!("topic {topic}: {error}")))?;
        match (states.get(topic), self.fetched_topic.id()) {
            (Some(TopicState::Present { id: Some(id), .. }), Some(own)) if id != own => {
                Err(SourceError::Fatal(topic_recreated_text(topic, id, own)))
            }
            _ => Ok(()),
        }
    }

    /// What the brokers say where the leader of a later epoch does not have what was read.
    pub(super) fn truncation_error(&self, partition: u32, position: u64) -> SourceError {
        SourceError::Fatal(format!(
            "partition {partition} of topic {} was cut back before position {position}, up to which it was read, as after an unclean \
             leader election: {TOPIC_REMEDY}",
            self.plan.topic
        ))
    }

    /// Reads the record at a position.
    fn probe_record(&self, partition: u32, position: u64) -> Result<ProbedRecord, SourceError> {
        let failed = |error: KafkaError| self.transient_error(partition, &error.to_string());
        let mut probing = self.prober.lock().unwrap_or_else(PoisonError::into_inner);
        let consumer = match &*probing {
            Some(consumer) => Arc::clone(consumer),
            None => Arc::clone(probing.insert(Arc::new(self.new_prober().map_err(failed)?))),
        };
        let number = self.kafka_partition(partition)?;
        let queue = RecordQueue::split_from_consumer(&consumer, &self.plan.topic, number, || ());
        let mut queue = queue.ok_or_else(|| self.transient_error(partition, "it has no queue"))?;
        let mut assigned = TopicPartitionList::with_capacity(1);
        let offset = Offset::Offset(i64::try_from(position).unwrap_or(i64::MAX));
        assigned.add_partition_offset(&self.plan.topic, number, offset).map_err(failed)?;
        consumer.assign(&assigned).map_err(failed)?;
        let found = self.read_first_record(&consumer, &mut queue, partition, position);
        queue.release_all();
        drop(queue);
        // It fails only where nothing is assigned.
        let _ = consumer.unassign();
        if found.is_err() {
            *probing = None;
        }
        found
    }

    fn read_first_record(
        &self,
        consumer: &BaseConsumer<SourceClientContext>,
        queue: &mut RecordQueue<SourceClientContext>,
        partition: u32,
        position: u64,
    ) -> Result<ProbedRecord, SourceError> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        while Instant::now() < deadline {
            let _ = consumer.poll(Duration::ZERO);
            queue.fetch_more();
            match queue.first_record() {
                Some(Ok(record)) => {
                    let found = record_fingerprint(record);
                    if found.position >= position {
                        return Ok(if found.position == position {
                            ProbedRecord::Record(found)
                        } else {
                            ProbedRecord::Removed
                        });
                    }
                    queue.release_first();
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(ProbedRecord::Removed),
                Some(Err(error)) => return Err(self.transient_error(partition, &error.to_string())),
                None => thread::sleep(PROBE_POLL_INTERVAL),
            }
        }
        Err(self.transient_error(partition, "the record before its position cannot be read in time"))
    }

    fn new_prober(&self) -> Result<BaseConsumer<SourceClientContext>, KafkaError> {
        let consumer: BaseConsumer<SourceClientContext> = self
            .plan
            .cluster
            .client_config()
            .set("group.id", &self.plan.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            // Nothing of a transaction that is committed is behind one that is open.
            .set("isolation.level", "read_uncommitted")
            .set("enable.partition.eof", "true")
            .set("fetch.message.max.bytes", PROBE_FETCH_BYTES)
            .set("fetch.wait.max.ms", "20")
            .set("allow.auto.create.topics", "false")
            .create_with_context(SourceClientContext::new(self.name.clone()))?;
        prefetch_metadata(consumer.client(), &self.plan.topic);
        Ok(consumer)
    }
}

const TOPIC_REMEDY: &str =
    "restore the topic that was read, or begin anew with empty outputs (docs/disaster-recovery.md)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_id_change_is_parsed_from_client_log_line() {
        let line =
            "[thrd:main]: Topic readings changed id from AAAAAAAAAAAAAAAAAAAAAA to b+c/fE1xT4qk5Vn0Zs2zUg";
        assert_eq!(parse_changed_id(line, "readings").as_deref(), Some("b-c_fE1xT4qk5Vn0Zs2zUg"));
        assert_eq!(parse_changed_id(line, "reading"), None);
        assert_eq!(parse_changed_id("Topic readings [0] Leader 1 Epoch 0", "readings"), None);
    }

    #[test]
    fn topic_comparison_uses_id_digest_and_leader_epoch() {
        let read = Fingerprint { position: 7, digest: 1, leader_epoch: Some(3) };
        let record = |former: &[&str]| TopicIdentity {
            id: Some("a".into()),
            former_ids: former.iter().map(|id| (*id).to_owned()).collect(),
            is_written: true,
        };
        let compare = |id: Option<&str>, recorded: &TopicIdentity, found: Option<Fingerprint>| {
            let found = found.map_or(ProbedRecord::Removed, ProbedRecord::Record);
            ComparedTopic { topic: "t", id, recorded_identity: recorded }.check_record(2, read, found)
        };
        let (own, none) = (record(&[]), TopicIdentity::default());
        for id in [Some("a"), Some("b"), None] {
            assert!(compare(id, &own, Some(read)).is_ok());
            let another = Fingerprint { digest: 2, ..read };
            assert!(compare(id, &own, Some(another)).unwrap_err().contains("is another one than was read"));
        }
        // The id decides where the record is gone.
        assert!(compare(Some("a"), &own, None).is_ok() && compare(None, &own, None).is_ok());
        assert!(compare(Some("b"), &none, None).is_ok());
        assert!(compare(Some("b"), &own, None).unwrap_err().contains("is gone"));
        // The same record of another leader: what was read was cut off. A copy's leaders are its own.
        let again = Some(Fingerprint { leader_epoch: Some(4), ..read });
        assert!(compare(Some("a"), &own, again).unwrap_err().contains("unclean leader election"));
        for (id, recorded) in
            [(Some("b"), &own), (None, &own), (Some("a"), &none), (Some("a"), &record(&["b"]))]
        {
            assert!(compare(id, recorded, again).is_ok());
        }
        assert!(compare(Some("a"), &own, Some(Fingerprint { leader_epoch: None, ..read })).is_ok());
    }
}
