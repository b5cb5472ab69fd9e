//! What says that a topic is the one that was read before: its id, and the record before a position. And which topic it is that
//! records come from: librdkafka goes on with another one of the same name without an error.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration as Wait, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use xxhash_rust::xxh3::Xxh3Default;

use super::watch::Context;
use super::{REQUEST, Shared};
use crate::kafka::identity::TopicRecord;
use crate::kafka::native::{LogQueue, Record, RecordQueue, TopicState, topic_ids, url_safe};
use crate::kafka::{self, introduce};
use crate::model::{Fingerprint, LogPosition};
use crate::sources::SourceError;

const POLL: Wait = Wait::from_millis(2);
/// What is fetched for one record: at least the batch that has it.
const PROBE_BYTES: &str = "16384";

/// What a record is known by. Not its time or its headers, which a mirror may change.
pub(super) fn fingerprint(record: Record<'_>) -> Fingerprint {
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
    lines: Mutex<Lines>,
}

struct Lines {
    queue: LogQueue<Context>,
    /// The id of another topic, which the client has gone over to.
    another: Option<String>,
}

impl FetchedTopic {
    pub(super) fn new(topic: &str, id: Option<String>, client: &Arc<BaseConsumer<Context>>) -> Option<Self> {
        let queue = LogQueue::of(client)?;
        Some(FetchedTopic { topic: topic.to_owned(), id, lines: Mutex::new(Lines { queue, another: None }) })
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Whether all that was fetched by now is of the topic that was opened. The client writes a line about another id before it fetches
    /// by that, so whoever takes records first and then asks here, gives none of another topic. That holds for brokers that are asked
    /// by id, from 3.1 on.
    pub(super) fn check(&self) -> Result<(), SourceError> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Lines { queue, another } = &mut *lines;
        queue.drain(|level, facility, text| {
            kafka::log(level, facility, text);
            if let (Some(changed), Some(own)) = (new_id(text, &self.topic), &self.id)
                && changed != *own
            {
                another.get_or_insert(changed);
            }
        });
        match another {
            None => Ok(()),
            Some(id) => {
                Err(SourceError::Fatal(made_anew(&self.topic, id, self.id.as_deref().unwrap_or("none"))))
            }
        }
    }
}

fn made_anew(topic: &str, id: &str, own: &str) -> String {
    format!(
        "topic {topic} was deleted and made anew while it was read: it has the id {id}, and had {own}; nothing of the new one was read: \
         {WHAT_TO_DO}"
    )
}

/// The id that a line says a topic has now.
fn new_id(text: &str, topic: &str) -> Option<String> {
    let (_, ids) = text.split_once(&format!("Topic {topic} changed id from "))?;
    let (_, id) = ids.split_once(" to ")?;
    Some(url_safe(id.trim()))
}

/// The record that is at a position now.
enum Found {
    Record(Fingerprint),
    /// Retention has removed it.
    Gone,
}

impl Shared {
    /// Whether the log still reaches a position, and still has the record before it.
    pub(super) fn check_position(&self, partition: u32, at: LogPosition) -> Result<(), SourceError> {
        let low = self.check_reach(partition, at.position)?.start;
        let Some(before) = at.before else { return Ok(()) };
        let topic = &self.plan.topic;
        let recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = match before.position < low {
            true => Found::Gone,
            false => self.probe(partition, before.position)?,
        };
        match found {
            Found::Gone if recorded.id.is_some() && self.fetched.id().is_some_and(|id| Some(id) != recorded.id.as_deref()) => {
                Err(SourceError::Fatal(format!(
                    "topic {topic} is another one (its id is {}, and was {}), and its record at position {} of partition {partition}, \
                     which would tell whether it is a copy, is gone: {WHAT_TO_DO}",
                    self.fetched.id().unwrap_or("none"),
                    recorded.id.as_deref().unwrap_or("none"),
                    before.position
                )))
            }
            Found::Gone => Ok(()),
            Found::Record(now) if now.digest != before.digest => Err(SourceError::Fatal(format!(
                "topic {topic} is another one than was read: its record at position {} of partition {partition} is another one; it was \
                 made anew, or its records were replaced: {WHAT_TO_DO}",
                before.position
            ))),
            Found::Record(now) => match (now.leader_epoch, before.leader_epoch) {
                // A copy has its own leaders.
                (Some(now), Some(was)) if now != was && is_same(&recorded, self.fetched.id()) => {
                    Err(SourceError::Fatal(format!(
                        "partition {partition} of topic {topic} was cut back and written anew: its record at position {} was taken in \
                         leader epoch {now}, the one that was read in {was}, as after an unclean leader election: {WHAT_TO_DO}",
                        before.position
                    )))
                }
                _ => Ok(()),
            },
        }
    }

    /// Whether the topic is the one that was opened: to be asked where the client has lost its place.
    pub(super) fn check_still_there(&self) -> Result<(), SourceError> {
        self.fetched.check()?;
        let topic = &*self.plan.topic;
        let found = topic_ids(self.consumer.client(), &[topic], REQUEST);
        let states = found.map_err(|error| SourceError::Transient(format!("topic {topic}: {error}")))?;
        match (states.get(topic), self.fetched.id()) {
            (Some(TopicState::Present { id: Some(id), .. }), Some(own)) if id != own => Err(SourceError::Fatal(
                made_anew(topic, id, own),
            )),
            _ => Ok(()),
        }
    }

    /// Reads the record at a position.
    fn probe(&self, partition: u32, position: u64) -> Result<Found, SourceError> {
        let failed = |error: KafkaError| self.transient(partition, &error.to_string());
        let mut probing = self.probing.lock().unwrap_or_else(PoisonError::into_inner);
        let consumer = match &*probing {
            Some(consumer) => Arc::clone(consumer),
            None => Arc::clone(probing.insert(Arc::new(self.new_prober().map_err(failed)?))),
        };
        let number = self.number(partition)?;
        let queue = RecordQueue::split(&consumer, &self.plan.topic, number, || ());
        let mut queue = queue.ok_or_else(|| self.transient(partition, "it has no queue"))?;
        let mut assigned = TopicPartitionList::with_capacity(1);
        let offset = Offset::Offset(i64::try_from(position).unwrap_or(i64::MAX));
        assigned.add_partition_offset(&self.plan.topic, number, offset).map_err(failed)?;
        consumer.assign(&assigned).map_err(failed)?;
        let found = self.first_record(&consumer, &mut queue, partition, position);
        queue.clear();
        drop(queue);
        // It fails only where nothing is assigned.
        let _ = consumer.unassign();
        if found.is_err() {
            *probing = None;
        }
        found
    }

    fn first_record(
        &self,
        consumer: &BaseConsumer<Context>,
        queue: &mut RecordQueue<Context>,
        partition: u32,
        position: u64,
    ) -> Result<Found, SourceError> {
        let deadline = Instant::now() + REQUEST;
        while Instant::now() < deadline {
            let _ = consumer.poll(Wait::ZERO);
            queue.take_more();
            match queue.first() {
                Some(Ok(record)) => {
                    let found = fingerprint(record);
                    if found.position >= position {
                        return Ok(if found.position == position { Found::Record(found) } else { Found::Gone });
                    }
                    queue.pop();
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(Found::Gone),
                Some(Err(error)) => return Err(self.transient(partition, &error.to_string())),
                None => thread::sleep(POLL),
            }
        }
        Err(self.transient(partition, "the record before its position cannot be read in time"))
    }

    fn new_prober(&self) -> Result<BaseConsumer<Context>, KafkaError> {
        let consumer: BaseConsumer<Context> = self
            .plan
            .cluster
            .client()
            .set("group.id", &self.plan.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            // Nothing of a transaction that is committed is behind one that is open.
            .set("isolation.level", "read_uncommitted")
            .set("enable.partition.eof", "true")
            .set("fetch.message.max.bytes", PROBE_BYTES)
            .set("fetch.wait.max.ms", "20")
            .set("allow.auto.create.topics", "false")
            .create_with_context(Context::new(self.name.clone()))?;
        introduce(consumer.client(), &self.plan.topic);
        Ok(consumer)
    }
}

const WHAT_TO_DO: &str = "restore the topic that was read, or begin anew with empty outputs (docs/disaster-recovery.md)";

/// Whether leader epochs of a topic can be compared.
fn is_same(recorded: &TopicRecord, id: Option<&str>) -> bool {
    let none = BTreeSet::new();
    recorded.id.is_some() && recorded.id.as_deref() == id && recorded.former_ids == none
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_id_is_read_from_the_clients_line() {
        let line = "[thrd:main]: Topic readings changed id from AAAAAAAAAAAAAAAAAAAAAA to b+c/fE1xT4qk5Vn0Zs2zUg";
        assert_eq!(new_id(line, "readings").as_deref(), Some("b-c_fE1xT4qk5Vn0Zs2zUg"));
        assert_eq!(new_id(line, "reading"), None);
        assert_eq!(new_id("Topic readings [0] Leader 1 Epoch 0", "readings"), None);
    }
}
