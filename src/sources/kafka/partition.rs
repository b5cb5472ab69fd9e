//! A reader of one partition of a topic.

use std::ops::Range;
use std::sync::Arc;
use std::thread::Thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::client_context::SourceClientContext;
use super::identity::record_fingerprint;
use super::partition_offsets::PartitionOffsets;
use super::shared::{KafkaSourceShared, REQUEST_TIMEOUT};
use super::topic_decoder::{DecodeOutcome, TopicDecoder};
use crate::kafka::native::{FetchedRecord, RecordQueue};
use crate::kafka::topic_identity::{is_truncation, may_be_another_topic};
use crate::model::{EventTime, Fingerprint, LogPosition};
use crate::sources::{NextPoll, Partition, PollResult, RecordHandler, RecordPosition, SourceError};

/// How often a record that waits for its schema is retried.
const SCHEMA_RETRY_INTERVAL: Duration = Duration::from_millis(20);

pub(super) struct KafkaPartition {
    queue: RecordQueue<SourceClientContext>,
    cursor: RecordCursor,
    offsets: Arc<PartitionOffsets>,
    partition: u32,
    /// The error that a poll found behind the records it delivered.
    pending_error: Option<SourceError>,
    /// The client no longer fetches it, until it is assigned again.
    needs_reassignment: bool,
    /// The position is at the log's end, according to the last fetch.
    is_at_end: bool,
    /// The fingerprint of the last delivered record.
    fingerprint: Option<Fingerprint>,
    shared: Arc<KafkaSourceShared>,
}

/// The position of a partition and the decoder of its records.
struct RecordCursor {
    decoder: TopicDecoder,
    /// The position of the next record.
    position: u64,
}

/// The result of an offered record.
enum OfferOutcome {
    Handled,
    /// It is before the position.
    Skipped,
    /// It is at or behind `until`.
    BeyondLimit,
    /// Its schema is not available yet.
    SchemaPending,
    Failed(SourceError),
}

impl KafkaPartition {
    pub(super) fn open(
        shared: Arc<KafkaSourceShared>,
        partition: u32,
        position: u64,
        worker: Thread,
    ) -> Result<KafkaPartition, SourceError> {
        let end = shared.check_in_range(partition, position)?.end;
        let records = TopicDecoder::new(&shared)?;
        let offsets = shared.register_reader(partition, position, end)?;
        let number = shared.kafka_partition(partition)?;
        // Split the queue before the partition is assigned, or the first records would go to the
        // consumer's own queue. librdkafka keeps a queue split once an application has asked for
        // it, even if the partition is assigned again.
        let queue =
            RecordQueue::split_from_consumer(&shared.consumer, &shared.plan.topic, number, move || {
                worker.unpark()
            });
        let queue = queue.ok_or_else(|| {
            shared.unregister_reader(partition);
            SourceError::Transient(format!(
                "the client has no queue for partition {partition} of topic {}",
                shared.plan.topic
            ))
        })?;
        let opened = KafkaPartition {
            queue,
            cursor: RecordCursor { decoder: records, position },
            offsets,
            partition,
            pending_error: None,
            needs_reassignment: false,
            is_at_end: false,
            fingerprint: None,
            shared,
        };
        opened.assign_partition()?;
        Ok(opened)
    }

    fn assign_partition(&self) -> Result<(), SourceError> {
        let KafkaSourceShared { consumer, plan, .. } = &*self.shared;
        let position = i64::try_from(self.cursor.position).unwrap_or(i64::MAX);
        let mut assigned = TopicPartitionList::with_capacity(1);
        let number = self.shared.kafka_partition(self.partition)?;
        let added = assigned.add_partition_offset(&plan.topic, number, Offset::Offset(position));
        let assigned_result = added.and_then(|()| consumer.incremental_assign(&assigned));
        assigned_result.map_err(|error| self.shared.transient_error(self.partition, &error.to_string()))
    }

    fn unassign_partition(&self) {
        let Ok(number) = self.shared.kafka_partition(self.partition) else { return };
        let mut assigned = TopicPartitionList::with_capacity(1);
        assigned.add_partition(&self.shared.plan.topic, number);
        // It fails only if the partition is not assigned.
        let _ = self.shared.consumer.incremental_unassign(&assigned);
    }

    /// Reassigns the partition if the client has stopped fetching it, after a check that the log
    /// continues at the position. After a transient failure the next poll tries again: no record
    /// would come otherwise.
    fn reassign_if_needed(&mut self) -> Result<(), SourceError> {
        if self.needs_reassignment {
            let at = LogPosition { position: self.cursor.position, before: self.fingerprint };
            self.shared.check_position(self.partition, at)?;
            self.unassign_partition();
            self.queue.release_all();
            self.assign_partition()?;
            self.needs_reassignment = false;
        }
        Ok(())
    }

    fn handle_error(&mut self, error: &KafkaError) -> SourceError {
        match error {
            error if may_be_another_topic(error) => {
                self.needs_reassignment = true;
                if let Err(another) = self.shared.check_same_topic() {
                    return another;
                }
                if is_truncation(error) {
                    return self.shared.truncation_error(self.partition, self.cursor.position);
                }
                let again = self.reassign_if_needed().err();
                again.unwrap_or_else(|| self.shared.transient_error(self.partition, &error.to_string()))
            }
            KafkaError::MessageConsumptionFatal(code) => SourceError::Fatal(format!(
                "partition {} of topic {}: the Kafka client has failed for good: {code}; start again",
                self.partition, self.shared.plan.topic
            )),
            error => self.shared.transient_error(self.partition, &error.to_string()),
        }
    }

    /// Offers the first record of the queue, and removes it if it was handled; `None` if the queue
    /// is empty.
    fn offer_first_record(&mut self, until: u64, handler: &mut dyn RecordHandler) -> Option<OfferOutcome> {
        match self.queue.first_record()? {
            Ok(record) => {
                self.is_at_end = false;
                let offer = self.cursor.offer_record(record, until, handler);
                match offer {
                    OfferOutcome::Handled => self.queue.pop_and_retain(),
                    OfferOutcome::Skipped => self.queue.release_first(),
                    OfferOutcome::BeyondLimit | OfferOutcome::SchemaPending | OfferOutcome::Failed(_) => {}
                }
                Some(offer)
            }
            Err(error) => {
                let stands_at = self.queue.first_offset();
                self.queue.release_first();
                if let KafkaError::PartitionEOF(_) = error {
                    self.is_at_end = true;
                    // There is no record between, only transaction markers and aborted records.
                    self.cursor.position = self.cursor.position.max(stands_at.unwrap_or_default());
                    return Some(OfferOutcome::Skipped);
                }
                Some(OfferOutcome::Failed(self.handle_error(&error)))
            }
        }
    }
}

impl Partition for KafkaPartition {
    fn poll(
        &mut self,
        limit: usize,
        until: u64,
        handler: &mut dyn RecordHandler,
    ) -> Result<PollResult, SourceError> {
        if let Some(fault) = self.pending_error.take() {
            return Err(fault);
        }
        self.reassign_if_needed()?;
        let mut records = 0;
        let mut next = NextPoll::Now;
        while records < limit && self.cursor.position < until && !handler.is_full() {
            if self.queue.fetch_more()
                && let Err(fault) = self.shared.fetched_topic.check_topic_id()
            {
                self.queue.release_all();
                self.pending_error = Some(fault);
                break;
            }
            let Some(offer) = self.offer_first_record(until, handler) else {
                next = NextPoll::OnUnpark;
                break;
            };
            match offer {
                OfferOutcome::Handled => records += 1,
                OfferOutcome::Skipped => {}
                OfferOutcome::BeyondLimit => {
                    next = NextPoll::UntilReached;
                    break;
                }
                OfferOutcome::SchemaPending => {
                    next = NextPoll::At(Instant::now() + SCHEMA_RETRY_INTERVAL);
                    break;
                }
                OfferOutcome::Failed(fault) => {
                    self.pending_error = Some(fault);
                    break;
                }
            }
        }
        self.offsets.update_position(self.cursor.position, self.is_at_end);
        // Once per poll, not once per record.
        if let Some(last) = self.queue.retained_record() {
            self.fingerprint = Some(record_fingerprint(last));
            self.queue.release_retained();
        }
        match self.pending_error.take() {
            // The delivered records must be reported first; the next poll returns the error.
            Some(fault) if records > 0 => {
                self.pending_error = Some(fault);
                Ok(PollResult { records, next: NextPoll::Now })
            }
            Some(fault) => Err(fault),
            None => Ok(PollResult { records, next }),
        }
    }

    fn end(&self) -> u64 {
        // Records of open transactions are behind it.
        if self.is_at_end { self.cursor.position } else { self.offsets.end().max(self.cursor.position) }
    }

    fn position(&self) -> Option<u64> {
        Some(self.cursor.position)
    }

    fn withheld(&self) -> u64 {
        self.offsets.withheld()
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }
}

impl RecordCursor {
    #[inline]
    fn offer_record(
        &mut self,
        record: FetchedRecord<'_>,
        until: u64,
        handler: &mut dyn RecordHandler,
    ) -> OfferOutcome {
        let Ok(position) = u64::try_from(record.offset()) else { return OfferOutcome::Skipped };
        if position < self.position {
            return OfferOutcome::Skipped;
        }
        if position >= until {
            return OfferOutcome::BeyondLimit;
        }
        let record_position =
            RecordPosition { position, arrived: record.timestamp().and_then(EventTime::from_millis) };
        match self.decoder.handle_record(record, record_position, handler) {
            DecodeOutcome::Handled => {
                self.position = position + 1;
                OfferOutcome::Handled
            }
            DecodeOutcome::SchemaPending => OfferOutcome::SchemaPending,
            DecodeOutcome::Failed(error) => OfferOutcome::Failed(error),
        }
    }
}

impl Drop for KafkaPartition {
    fn drop(&mut self) {
        self.unassign_partition();
        self.shared.unregister_reader(self.partition);
    }
}

impl KafkaSourceShared {
    /// Returns the log's start and end if the position is between them or at the end.
    pub(super) fn check_in_range(&self, partition: u32, position: u64) -> Result<Range<u64>, SourceError> {
        let (low, high) = self.watermarks(partition)?;
        let topic = &self.plan.topic;
        if position < low {
            return Err(SourceError::Fatal(format!(
                "partition {partition} of topic {topic} is needed from position {position}, but its records before {low} are \
                 gone: keep its records for longer (retention.ms, retention.bytes), and start over with empty outputs"
            )));
        }
        if position > high {
            return Err(SourceError::EndsBefore(format!(
                "partition {partition} of topic {topic} is needed from position {position}, but it ends at {high}, so it was recreated or has lost records: name the topic that was read, or start over with empty outputs"
            )));
        }
        Ok(low..high)
    }

    /// The low and high watermarks of the partition.
    pub(super) fn watermarks(&self, partition: u32) -> Result<(u64, u64), SourceError> {
        let number = self.kafka_partition(partition)?;
        let watermarks = self.consumer.fetch_watermarks(&self.plan.topic, number, REQUEST_TIMEOUT);
        let (low, high) = watermarks.map_err(|error| self.transient_error(partition, &error.to_string()))?;
        match (u64::try_from(low), u64::try_from(high)) {
            (Ok(low), Ok(high)) => Ok((low, high)),
            _ => {
                Err(self.transient_error(partition, "the broker does not return its first and last offsets"))
            }
        }
    }

    pub(super) fn kafka_partition(&self, partition: u32) -> Result<i32, SourceError> {
        i32::try_from(partition).map_err(|_| {
            SourceError::Fatal(format!("topic {} has no partition {partition}", self.plan.topic))
        })
    }

    pub(super) fn transient_error(&self, partition: u32, reason: &str) -> SourceError {
        SourceError::Transient(format!("partition {partition} of topic {}: {reason}", self.plan.topic))
    }
}
