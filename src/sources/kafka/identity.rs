//! The identity of a topic: its id, and the record before a position. It also identifies the topic
//! of fetched records: librdkafka continues with another topic of the same name without an error.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use xxhash_rust::xxh3::Xxh3Default;

use super::client_context::SourceClientContext;
use super::fetched_topic::{TOPIC_REMEDY, topic_recreated_text};
use super::shared::{KafkaSourceShared, REQUEST_TIMEOUT};
use crate::kafka::native::{FetchedRecord, RecordQueue, TopicState, describe_topic_ids};
use crate::kafka::prefetch_metadata;
use crate::kafka::topic_identity::TopicIdentity;
use crate::model::{Fingerprint, LogPosition};
use crate::sources::SourceError;

const PROBE_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Bytes to fetch for one record; a broker sends at least the batch that contains it.
const PROBE_FETCH_BYTES: &str = "16384";

/// The fingerprint of a record, without its time and headers, which a mirror may change.
pub(super) fn record_fingerprint(record: FetchedRecord<'_>) -> Fingerprint {
    let mut digest = Xxh3Default::new();
    for part in [record.key(), record.value()] {
        digest.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
        digest.update(part.unwrap_or_default());
    }
    let position = u64::try_from(record.offset()).unwrap_or(0);
    Fingerprint { position, digest: digest.digest(), leader_epoch: record.leader_epoch() }
}

/// A topic, and its recorded identity.
struct ComparedTopic<'a> {
    topic: &'a str,
    id: Option<&'a str>,
    recorded_identity: &'a TopicIdentity,
}

impl ComparedTopic<'_> {
    /// Checks that the record before a position is the one that was read.
    fn check_record(&self, partition: u32, before: Fingerprint, record: ProbedRecord) -> Result<(), String> {
        let ComparedTopic { topic, id, recorded_identity: recorded } = *self;
        let position = before.position;
        match record {
            ProbedRecord::Removed => match (id, recorded.id.as_deref()) {
                (Some(id), Some(was)) if id != was => Err(format!(
                    "topic {topic} is not the one that was read: its id is {id}, and was {was}, and its record at position {position} of partition {partition}, which would show whether it is a copy, is gone: {TOPIC_REMEDY}"
                )),
                _ => Ok(()),
            },
            ProbedRecord::Record(now) if now.digest != before.digest => Err(format!(
                "topic {topic} is not the one that was read: its record at position {position} of partition {partition} differs, so it was recreated or its records were replaced: {TOPIC_REMEDY}"
            )),
            ProbedRecord::Record(now) => match (now.leader_epoch, before.leader_epoch) {
                // A copy has other leader epochs.
                (Some(now), Some(was)) if now != was && id.is_some() && recorded.is_original_id(id) => {
                    Err(format!(
                        "partition {partition} of topic {topic} was truncated and rewritten: its record at position {position} has leader epoch {now}, and the one that was read had {was}, as after an unclean leader election: {TOPIC_REMEDY}"
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
    /// Checks that the log still reaches a position, and still has the same record before it.
    pub(super) fn check_position(&self, partition: u32, at: LogPosition) -> Result<(), SourceError> {
        let low = self.check_in_range(partition, at.position)?.start;
        let Some(before) = at.before else { return Ok(()) };
        let recorded = self.recorded_identity.lock().clone();
        let record = match before.position < low {
            true => ProbedRecord::Removed,
            false => self.probe_record(partition, before.position)?,
        };
        let topic = ComparedTopic {
            topic: &self.plan.topic,
            id: self.fetched_topic.id(),
            recorded_identity: &recorded,
        };
        topic.check_record(partition, before, record).map_err(SourceError::RecordDiffers)
    }

    /// Checks that the topic is the one that was opened. Call it if the client has lost its
    /// position.
    pub(super) fn check_same_topic(&self) -> Result<(), SourceError> {
        self.fetched_topic.check_topic_id()?;
        let topic = &*self.plan.topic;
        let ids = describe_topic_ids(self.consumer.client(), &[topic], REQUEST_TIMEOUT);
        let states = ids.map_err(|error| SourceError::Transient(format!("topic {topic}: {error}")))?;
        match (states.get(topic), self.fetched_topic.id()) {
            (Some(TopicState::Present { id: Some(id), .. }), Some(own)) if id != own => {
                Err(SourceError::Fatal(topic_recreated_text(topic, id, own)))
            }
            _ => Ok(()),
        }
    }

    /// The error for a truncated log: the leader of a later epoch does not have the records that
    /// were read.
    pub(super) fn truncation_error(&self, partition: u32, position: u64) -> SourceError {
        SourceError::Fatal(format!(
            "partition {partition} of topic {} was truncated below position {position}, up to which it was read, as after an unclean leader election: {TOPIC_REMEDY}",
            self.plan.topic
        ))
    }

    /// Reads the record at a position.
    fn probe_record(&self, partition: u32, position: u64) -> Result<ProbedRecord, SourceError> {
        let failed = |error: KafkaError| self.transient_error(partition, &error.to_string());
        let mut probing = self.prober.lock();
        let consumer = match &*probing {
            Some(consumer) => Arc::clone(consumer),
            None => Arc::clone(probing.insert(Arc::new(self.new_prober().map_err(failed)?))),
        };
        let number = self.kafka_partition(partition)?;
        let queue = RecordQueue::split_from_consumer(&consumer, &self.plan.topic, number, || ());
        let mut queue = queue
            .ok_or_else(|| self.transient_error(partition, "the client has no queue for the partition"))?;
        let mut assigned = TopicPartitionList::with_capacity(1);
        let offset = Offset::Offset(i64::try_from(position).unwrap_or(i64::MAX));
        assigned.add_partition_offset(&self.plan.topic, number, offset).map_err(failed)?;
        consumer.assign(&assigned).map_err(failed)?;
        let record = self.read_first_record(&consumer, &mut queue, partition, position);
        queue.release_all();
        drop(queue);
        // It fails only if nothing is assigned.
        let _ = consumer.unassign();
        if record.is_err() {
            *probing = None;
        }
        record
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
                    let fingerprint = record_fingerprint(record);
                    if fingerprint.position >= position {
                        return Ok(if fingerprint.position == position {
                            ProbedRecord::Record(fingerprint)
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
        Err(self.transient_error(partition, "the record before the position was not received in time"))
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
            // A record that was read as committed is never behind an open transaction, so
            // read_uncommitted finds the same record.
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

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(compare(id, &own, Some(another)).unwrap_err().contains("is not the one that was read"));
        }
        // If the record is gone, the id decides.
        assert!(compare(Some("a"), &own, None).is_ok() && compare(None, &own, None).is_ok());
        assert!(compare(Some("b"), &none, None).is_ok());
        assert!(compare(Some("b"), &own, None).unwrap_err().contains("is gone"));
        // The same record with another leader epoch: the log was truncated and rewritten. The
        // leader epochs of a copy are its own.
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
