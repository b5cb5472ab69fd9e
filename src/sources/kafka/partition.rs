//! A partition as a worker reads it.

use std::ops::Range;
use std::sync::Arc;
use std::thread::Thread;
use std::time::{Duration as Wait, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::identity::fingerprint;
use super::record::{Content, Records};
use super::watch::{Context, Marks};
use super::{REQUEST, Shared};
use crate::kafka::identity::{is_truncation, may_be_another_topic};
use crate::kafka::native::{Record, RecordQueue};
use crate::model::{EventTime, Fingerprint, LogPosition};
use crate::sources::{Next, Partition, Place, Polled, SourceError, Take};

/// How soon a record is tried again that waits for its schema.
const PENDING: Wait = Wait::from_millis(20);

pub(super) struct KafkaPartition {
    queue: RecordQueue<Context>,
    cursor: Cursor,
    marks: Arc<Marks>,
    partition: u32,
    /// What a poll has met behind records that it gave.
    fault: Option<SourceError>,
    /// The client fetches it no more, until it is assigned again.
    given_up: bool,
    /// The log's end stands at the position, as far as the last fetch says.
    at_end: bool,
    /// Of the last record that was given.
    fingerprint: Option<Fingerprint>,
    shared: Arc<Shared>,
}

/// Where a partition is read, and how.
struct Cursor {
    records: Records,
    /// Of the next record.
    position: u64,
}

/// What became of a record.
enum Offer {
    Given,
    /// Before the position.
    Skipped,
    /// It stands at or behind `upto`.
    Beyond,
    /// It waits for its schema.
    Pending,
    Failed(SourceError),
}

impl KafkaPartition {
    pub(super) fn open(
        shared: Arc<Shared>,
        partition: u32,
        position: u64,
        worker: Thread,
    ) -> Result<KafkaPartition, SourceError> {
        let end = shared.check_reach(partition, position)?.end;
        let records = Records::new(&shared)?;
        let marks = shared.begin(partition, position, end)?;
        let number = shared.number(partition)?;
        // Before it is assigned: else the first records would go to the consumer's own queue. librdkafka keeps a queue split
        // once an application has asked, also when the partition is assigned again.
        let queue = RecordQueue::split(&shared.consumer, &shared.plan.topic, number, move || worker.unpark());
        let queue = queue.ok_or_else(|| {
            shared.finish(partition);
            SourceError::Transient(format!("partition {partition} of {} has no queue", shared.plan.topic))
        })?;
        let opened = KafkaPartition {
            queue,
            cursor: Cursor { records, position },
            marks,
            partition,
            fault: None,
            given_up: false,
            at_end: false,
            fingerprint: None,
            shared,
        };
        opened.assign()?;
        Ok(opened)
    }

    fn assign(&self) -> Result<(), SourceError> {
        let Shared { consumer, plan, .. } = &*self.shared;
        let position = i64::try_from(self.cursor.position).unwrap_or(i64::MAX);
        let mut assigned = TopicPartitionList::with_capacity(1);
        let number = self.shared.number(self.partition)?;
        let added = assigned.add_partition_offset(&plan.topic, number, Offset::Offset(position));
        let done = added.and_then(|()| consumer.incremental_assign(&assigned));
        done.map_err(|error| self.shared.transient(self.partition, &error.to_string()))
    }

    fn unassign(&self) {
        let Ok(number) = self.shared.number(self.partition) else { return };
        let mut assigned = TopicPartitionList::with_capacity(1);
        assigned.add_partition(&self.shared.plan.topic, number);
        // It fails only where it is not assigned.
        let _ = self.shared.consumer.incremental_unassign(&assigned);
    }

    /// Has the client fetch on where it has given the partition up, if the log still goes on there. What fails in passing is done at the
    /// next poll: nothing else would ever come.
    fn take_up_again(&mut self) -> Result<(), SourceError> {
        if self.given_up {
            let at = LogPosition { position: self.cursor.position, before: self.fingerprint };
            self.shared.check_position(self.partition, at)?;
            self.unassign();
            self.queue.clear();
            self.assign()?;
            self.given_up = false;
        }
        Ok(())
    }

    fn fault(&mut self, error: &KafkaError) -> SourceError {
        match error {
            error if may_be_another_topic(error) => {
                self.given_up = true;
                if let Err(another) = self.shared.check_still_there() {
                    return another;
                }
                if is_truncation(error) {
                    return self.shared.cut_back(self.partition, self.cursor.position);
                }
                let again = self.take_up_again().err();
                again.unwrap_or_else(|| self.shared.transient(self.partition, &error.to_string()))
            }
            KafkaError::MessageConsumptionFatal(code) => SourceError::Fatal(format!(
                "partition {} of topic {}: the client has failed for good: {code}; start again",
                self.partition, self.shared.plan.topic
            )),
            error => self.shared.transient(self.partition, &error.to_string()),
        }
    }

    /// Offers the first of the queue, and takes it off if it was taken; nothing where the queue is empty.
    fn offer_first(&mut self, upto: u64, take: &mut dyn Take) -> Option<Offer> {
        match self.queue.first()? {
            Ok(record) => {
                self.at_end = false;
                let offer = self.cursor.offer(record, upto, take);
                match offer {
                    Offer::Given => self.queue.pop_given(),
                    Offer::Skipped => self.queue.pop(),
                    Offer::Beyond | Offer::Pending | Offer::Failed(_) => {}
                }
                Some(offer)
            }
            Err(error) => {
                let stands_at = self.queue.first_offset();
                self.queue.pop();
                if let KafkaError::PartitionEOF(_) = error {
                    self.at_end = true;
                    // No record lies between, only marks of transactions and what was aborted.
                    self.cursor.position = self.cursor.position.max(stands_at.unwrap_or_default());
                    return Some(Offer::Skipped);
                }
                Some(Offer::Failed(self.fault(&error)))
            }
        }
    }
}

impl Partition for KafkaPartition {
    fn poll(&mut self, limit: usize, upto: u64, take: &mut dyn Take) -> Result<Polled, SourceError> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        self.take_up_again()?;
        let mut records = 0;
        let mut next = Next::Now;
        while records < limit && self.cursor.position < upto && !take.is_full() {
            if self.queue.take_more()
                && let Err(fault) = self.shared.fetched.check()
            {
                self.queue.clear();
                self.fault = Some(fault);
                break;
            }
            let Some(offer) = self.offer_first(upto, take) else {
                next = Next::Woken;
                break;
            };
            match offer {
                Offer::Given => records += 1,
                Offer::Skipped => {}
                Offer::Beyond => {
                    next = Next::Reached;
                    break;
                }
                Offer::Pending => {
                    next = Next::At(Instant::now() + PENDING);
                    break;
                }
                Offer::Failed(fault) => {
                    self.fault = Some(fault);
                    break;
                }
            }
        }
        self.marks.moved(self.cursor.position, self.at_end);
        // Once a poll, not once a record.
        if let Some(last) = self.queue.last_given() {
            self.fingerprint = Some(fingerprint(last));
            self.queue.forget_given();
        }
        match self.fault.take() {
            // What was given must be told; the next poll says the rest.
            Some(fault) if records > 0 => {
                self.fault = Some(fault);
                Ok(Polled { records, next: Next::Now })
            }
            Some(fault) => Err(fault),
            None => Ok(Polled { records, next }),
        }
    }

    fn end(&self) -> u64 {
        // Records of open transactions lie behind it.
        if self.at_end { self.cursor.position } else { self.marks.end().max(self.cursor.position) }
    }

    fn position(&self) -> Option<u64> {
        Some(self.cursor.position)
    }

    fn withheld(&self) -> u64 {
        self.marks.withheld()
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }
}

impl Cursor {
    #[inline]
    fn offer(&mut self, record: Record<'_>, upto: u64, take: &mut dyn Take) -> Offer {
        let Ok(position) = u64::try_from(record.offset()) else { return Offer::Skipped };
        if position < self.position {
            return Offer::Skipped;
        }
        if position >= upto {
            return Offer::Beyond;
        }
        let place = Place { position, arrived: record.timestamp().and_then(EventTime::from_millis) };
        match self.records.give(record, place, take) {
            Content::Given => {
                self.position = position + 1;
                Offer::Given
            }
            Content::Pending => Offer::Pending,
            Content::Failed(error) => Offer::Failed(error),
        }
    }
}

impl Drop for KafkaPartition {
    fn drop(&mut self) {
        self.unassign();
        self.shared.finish(self.partition);
    }
}

impl Shared {
    /// The log's beginning and end, where it holds the position or ends there.
    pub(super) fn check_reach(&self, partition: u32, position: u64) -> Result<Range<u64>, SourceError> {
        let (low, high) = self.watermarks(partition)?;
        let topic = &self.plan.topic;
        if position < low {
            return Err(SourceError::Fatal(format!(
                "partition {partition} of topic {topic} is needed from position {position}, but its records before {low} are \
                 gone: keep its records for longer (retention.ms, retention.bytes), and start over with empty outputs"
            )));
        }
        if position > high {
            return Err(SourceError::Behind(format!(
                "partition {partition} of topic {topic} is needed from position {position}, but it ends at {high}: it was made \
                 anew or has lost records; start over with empty outputs, or name the topic that they were made of"
            )));
        }
        Ok(low..high)
    }

    /// Where the partition's records begin and end.
    pub(super) fn watermarks(&self, partition: u32) -> Result<(u64, u64), SourceError> {
        let number = self.number(partition)?;
        let found = self.consumer.fetch_watermarks(&self.plan.topic, number, REQUEST);
        let (low, high) = found.map_err(|error| self.transient(partition, &error.to_string()))?;
        match (u64::try_from(low), u64::try_from(high)) {
            (Ok(low), Ok(high)) => Ok((low, high)),
            _ => Err(self.transient(partition, "the broker does not say where it begins and ends")),
        }
    }

    pub(super) fn number(&self, partition: u32) -> Result<i32, SourceError> {
        i32::try_from(partition).map_err(|_| {
            SourceError::Fatal(format!("topic {} has no partition {partition}", self.plan.topic))
        })
    }

    pub(super) fn transient(&self, partition: u32, reason: &str) -> SourceError {
        SourceError::Transient(format!("partition {partition} of topic {}: {reason}", self.plan.topic))
    }
}
