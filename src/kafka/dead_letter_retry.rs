//! Retries of dead letters: each is sent once to the topic that it came from, whatever fails
//! meanwhile.
//!
//! The records and the progress of a retry are one transaction. A consumer group for each reason
//! holds the offsets up to which that reason's dead letters were sent, so the groups stay right
//! whatever reasons a call names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::dead_letter_topic::{
    DeadLetterRecord, DeadLetterTopicReader, DlqTopicError, LogOnlyContext, REQUEST_TIMEOUT, create_consumer,
};
use super::native::TopicState;
use super::partitioner::Partitioner;
use super::{KafkaCluster, dead_letter_headers, dead_letter_topics};
use crate::model::clock::wall_clock_ms;
use crate::model::{DeadLetter, Reason, RecordAddress};

/// The most dead letters of one transaction.
const MAX_BATCH_DEAD_LETTERS: usize = 500;
const MAX_BATCH_BYTES: usize = 4 << 20;
/// Readers of the topic wait at most this long for a transaction that was broken off.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long calls to a slow cluster are repeated.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Which dead letters are retried.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterFilter {
    /// Reason codes. If empty, all whose outcome may differ by now: neither `too_late` nor
    /// `unknown_schema`, since the registry's response is kept.
    pub reasons: BTreeSet<String>,
    /// Only dead letters written before this time, ms since 1970.
    pub written_before_ms: Option<i64>,
}

impl DeadLetterFilter {
    pub fn matches_reason(&self, reason: &str) -> bool {
        match self.reasons.is_empty() {
            true => ![Reason::TooLate.code(), Reason::UnknownSchema.code()].contains(&reason),
            false => self.reasons.contains(reason),
        }
    }
}

/// The result of a retry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryOutcome {
    /// The number of dead letters that were sent, by reason.
    pub sent: BTreeMap<String, u64>,
    /// Sent by an earlier retry.
    pub already_sent: u64,
    /// Withdrawals, which are not retried.
    pub withdrawals: u64,
    /// Dead letters without a topic to go back to.
    pub without_origin: u64,
}

impl RetryOutcome {
    pub fn add(&mut self, other: &RetryOutcome) {
        other.sent.iter().for_each(|(reason, sent)| *self.sent.entry(reason.clone()).or_default() += sent);
        self.already_sent += other.already_sent;
        self.withdrawals += other.withdrawals;
        self.without_origin += other.without_origin;
    }

    pub fn total_sent(&self) -> u64 {
        self.sent.values().sum()
    }
}

/// Counts records that could not be delivered.
#[derive(Default)]
struct FailedDeliveries(AtomicU64);

impl ClientContext for FailedDeliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        super::log_librdkafka(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "a producer of retried dead letters reports an error");
    }
}

impl ProducerContext for FailedDeliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        if delivered.is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Retries the dead letters of a cluster's topics. At most one retrier of a progress topic works: a
/// later one fences it.
pub struct DeadLetterRetrier {
    cluster: KafkaCluster,
    progress_topic: String,
    producer: BaseProducer<FailedDeliveries>,
    groups: BTreeMap<String, ReasonGroup>,
    /// The id of each dead-letter topic, if the cluster has ids.
    ids: BTreeMap<String, String>,
    /// The reader of each dead-letter topic, and its next offsets.
    readers: BTreeMap<String, (DeadLetterTopicReader, BTreeMap<i32, i64>)>,
}

/// The consumer group of a reason: up to which offsets its dead letters were sent, by topic and
/// partition.
struct ReasonGroup {
    consumer: BaseConsumer<LogOnlyContext>,
    sent_until: BTreeMap<(String, i32), i64>,
}

/// The retry of one topic.
struct TopicRetry<'a> {
    topic: &'a str,
    partitions: i32,
    /// The topic that holds the dead letters.
    dead_letter_topic: &'a str,
    outcome: RetryOutcome,
    /// The dead letters of the next transaction, each with its partition.
    batch: Vec<(i32, DeadLetter)>,
    bytes: usize,
    /// By reason, then by topic and partition.
    offsets: BTreeMap<String, BTreeMap<(String, i32), i64>>,
}

impl TopicRetry<'_> {
    fn is_full(&self) -> bool {
        self.batch.len() >= MAX_BATCH_DEAD_LETTERS || self.bytes >= MAX_BATCH_BYTES
    }
}

impl DeadLetterRetrier {
    pub fn open(cluster: &KafkaCluster, progress_topic: &str) -> Result<DeadLetterRetrier, DlqTopicError> {
        let mut config = cluster.producer_config();
        config
            .set("transactional.id", format!("{progress_topic}.retry"))
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string())
            .set("linger.ms", "5");
        let failed = |error| dlq_error(cluster, "take over the retry of dead letters", error);
        let producer: BaseProducer<FailedDeliveries> =
            config.create_with_context(FailedDeliveries::default()).map_err(failed)?;
        call_until_deadline(|| producer.init_transactions(REQUEST_TIMEOUT)).map_err(failed)?;
        let (cluster, progress_topic) = (cluster.clone(), progress_topic.to_owned());
        let (groups, readers, ids) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Ok(DeadLetterRetrier { cluster, progress_topic, producer, groups, ids, readers })
    }

    /// Retries the dead letters of a topic that the filter takes and that were not sent yet. After
    /// an error the retrier cannot be used any more.
    pub fn retry_topic(
        &mut self,
        topic: &str,
        filter: &DeadLetterFilter,
    ) -> Result<RetryOutcome, DlqTopicError> {
        let [dead_letter_topic, _] = dead_letter_topics(topic);
        let (reader, mut next) = match self.readers.remove(&dead_letter_topic) {
            Some(reading) => reading,
            None => (DeadLetterTopicReader::new(&self.cluster, &dead_letter_topic)?, BTreeMap::new()),
        };
        let mut outcome = RetryOutcome::default();
        if let Some(TopicState::Present { id, .. }) = reader.topic_state(&dead_letter_topic)? {
            // A topic that was made anew under the name: nothing of it was read or sent.
            if self.ids.get(&dead_letter_topic) != id.as_ref() {
                next.clear();
                self.groups.clear();
                self.ids.extend(id.map(|id| (dead_letter_topic.clone(), id)));
            }
            let partitions =
                reader.partition_count(topic)?.ok_or_else(|| DlqTopicError::Missing(topic.into()))?;
            let mut retry = TopicRetry {
                topic,
                partitions,
                dead_letter_topic: &dead_letter_topic,
                outcome: RetryOutcome::default(),
                batch: Vec::new(),
                bytes: 0,
                offsets: BTreeMap::new(),
            };
            let sent = reader.read_to_end(&mut next, &mut |record| {
                // A timestamp in the future is ignored: it must not delay the dead letters behind
                // it.
                let now = wall_clock_ms() as i64;
                let is_young = |(before, written): (i64, i64)| written >= before && written <= now;
                if filter.written_before_ms.zip(record.written_at_ms).is_some_and(is_young) {
                    return Ok(false);
                }
                self.take_dead_letter(&mut retry, filter, record)?;
                Ok(true)
            });
            let sent = sent.and_then(|()| self.commit_batch(&mut retry));
            if sent.is_err() {
                let _ = self.producer.flush(REQUEST_TIMEOUT);
                let _ = self.producer.abort_transaction(REQUEST_TIMEOUT);
            }
            sent?;
            outcome = retry.outcome;
        }
        // A call for other reasons must see all dead letters; a periodic retry names the same
        // reasons each time.
        self.readers.insert(dead_letter_topic, (reader, next));
        Ok(outcome)
    }

    fn take_dead_letter(
        &mut self,
        retry: &mut TopicRetry<'_>,
        filter: &DeadLetterFilter,
        record: DeadLetterRecord,
    ) -> Result<(), DlqTopicError> {
        let outcome = &mut retry.outcome;
        let Some(dead_letter) = record.dead_letter else {
            outcome.without_origin += 1;
            return Ok(());
        };
        if !filter.matches_reason(&dead_letter.reason) {
            return Ok(());
        }
        let at = (retry.dead_letter_topic.to_owned(), record.partition);
        let group = self.reason_group(&dead_letter.reason, retry.dead_letter_topic)?;
        if group.sent_until.get(&at).is_some_and(|sent| record.offset < *sent) {
            outcome.already_sent += 1;
            return Ok(());
        }
        let address: Option<RecordAddress> = dead_letter.next_retry().origin.parse().ok();
        match address.filter(|address| i64::from(address.partition) < i64::from(retry.partitions)) {
            _ if dead_letter.is_withdrawal() => outcome.withdrawals += 1,
            None => outcome.without_origin += 1,
            Some(address) => {
                retry.bytes += dead_letter.value.as_ref().map_or(0, Vec::len);
                *outcome.sent.entry(dead_letter.reason.clone()).or_default() += 1;
                retry.offsets.entry(dead_letter.reason.clone()).or_default().insert(at, record.offset + 1);
                retry.batch.push((address.partition as i32, dead_letter));
                return if retry.is_full() { self.commit_batch(retry) } else { Ok(()) };
            }
        }
        retry.offsets.entry(dead_letter.reason).or_default().insert(at, record.offset + 1);
        Ok(())
    }

    /// Sends the exact bytes, with headers for where they came from.
    fn produce_retry(
        &self,
        topic: &str,
        partition: i32,
        dead_letter: &DeadLetter,
    ) -> Result<(), DlqTopicError> {
        let retry_info = dead_letter.next_retry();
        let header =
            |headers: OwnedHeaders, key, value: &str| headers.insert(Header { key, value: Some(value) });
        let mut headers = header(OwnedHeaders::new(), dead_letter_headers::ORIGIN, &retry_info.origin);
        headers = header(headers, dead_letter_headers::ATTEMPT, &retry_info.attempt.to_string());
        if let Some(first_seen) = retry_info.first_seen {
            headers = header(headers, dead_letter_headers::FIRST_SEEN, &first_seen.to_string());
        }
        let mut record: BaseRecord<'_, Vec<u8>, Vec<u8>> =
            BaseRecord::to(topic).partition(partition).headers(headers);
        (record.key, record.payload) = (dead_letter.key.as_ref(), dead_letter.value.as_ref());
        enqueue_record(&self.producer, record).map_err(|error| self.kafka_error("write to the topic", error))
    }

    /// Commits the records and the offsets up to which they were sent.
    fn commit_batch(&mut self, retry: &mut TopicRetry<'_>) -> Result<(), DlqTopicError> {
        let batch = std::mem::take(&mut retry.batch);
        let offsets = std::mem::take(&mut retry.offsets);
        retry.bytes = 0;
        // Withdrawals alone need no transaction: the next retry skips them again.
        if batch.is_empty() {
            return Ok(());
        }
        self.producer.begin_transaction().map_err(|error| self.kafka_error("begin a transaction", error))?;
        for (partition, dead_letter) in &batch {
            self.produce_retry(retry.topic, *partition, dead_letter)?;
        }
        flush_all(&self.producer).map_err(|error| self.kafka_error("write to the topic", error))?;
        if self.producer.context().0.load(Ordering::Relaxed) > 0 {
            let error = KafkaError::Flush(RDKafkaErrorCode::MessageTimedOut);
            return Err(self.kafka_error("write to the topic", error));
        }
        for (reason, sent) in &offsets {
            let Some(group) = self.groups.get(reason) else { continue };
            let mut list = TopicPartitionList::new();
            for ((topic, partition), offset) in sent {
                let added = list.add_partition_offset(topic, *partition, Offset::Offset(*offset));
                added
                    .map_err(|error| self.kafka_error("commit the offsets of retried dead letters", error))?;
            }
            // A topic that was made anew under the name is read from its beginning.
            for mut element in list.elements() {
                if let Some(id) = self.ids.get(element.topic()) {
                    element.set_metadata(id);
                }
            }
            let Some(metadata) = group.consumer.group_metadata() else { continue };
            let sent_offsets = call_until_deadline(|| {
                self.producer.send_offsets_to_transaction(&list, &metadata, REQUEST_TIMEOUT)
            });
            sent_offsets
                .map_err(|error| self.kafka_error("commit the offsets of retried dead letters", error))?;
        }
        call_until_deadline(|| self.producer.commit_transaction(REQUEST_TIMEOUT))
            .map_err(|error| self.kafka_error("commit a transaction of retried dead letters", error))?;
        for (reason, sent) in offsets {
            self.groups.entry(reason).and_modify(|group| group.sent_until.extend(sent));
        }
        Ok(())
    }

    /// The consumer group of a reason, with the offsets that the cluster has of it.
    fn reason_group(
        &mut self,
        reason: &str,
        dead_letter_topic: &str,
    ) -> Result<&mut ReasonGroup, DlqTopicError> {
        if !self.groups.contains_key(reason) {
            let id = format!("{}.retry.{reason}", self.progress_topic);
            let consumer =
                create_consumer(&self.cluster, &id).map_err(|error| self.kafka_error("connect", error))?;
            self.groups.insert(reason.to_owned(), ReasonGroup { consumer, sent_until: BTreeMap::new() });
        }
        let known = self.groups[reason].sent_until.keys().any(|(topic, _)| topic == dead_letter_topic);
        if !known {
            let sent = self.fetch_sent_until(&self.groups[reason].consumer, dead_letter_topic)?;
            self.groups.entry(reason.to_owned()).and_modify(|group| group.sent_until.extend(sent));
        }
        self.groups.get_mut(reason).ok_or_else(|| DlqTopicError::Missing(dead_letter_topic.into()))
    }

    fn fetch_sent_until(
        &self,
        consumer: &BaseConsumer<LogOnlyContext>,
        dead_letter_topic: &str,
    ) -> Result<BTreeMap<(String, i32), i64>, DlqTopicError> {
        let doing = "read the offsets of retried dead letters";
        let metadata = consumer.fetch_metadata(Some(dead_letter_topic), REQUEST_TIMEOUT);
        let metadata = metadata.map_err(|error| self.kafka_error(doing, error))?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions()).count() as i32;
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition(dead_letter_topic, partition);
        }
        let committed = call_until_deadline(|| consumer.committed_offsets(list.clone(), REQUEST_TIMEOUT));
        let committed = committed.map_err(|error| self.kafka_error(doing, error))?;
        let current_id = self.ids.get(dead_letter_topic);
        let offset = |element: &TopicPartitionListElem<'_>| match element.offset() {
            // An offset from before there were ids is accepted.
            Offset::Offset(offset) => {
                let committed_id = Some(element.metadata()).filter(|id| !id.is_empty());
                if committed_id
                    .zip(current_id)
                    .is_none_or(|(committed_id, current_id)| committed_id == current_id)
                {
                    offset
                } else {
                    0
                }
            }
            _ => 0,
        };
        let entries = committed.elements();
        Ok(entries.iter().map(|e| ((dead_letter_topic.to_owned(), e.partition()), offset(e))).collect())
    }

    fn kafka_error(&self, doing: &str, error: KafkaError) -> DlqTopicError {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced) => {
                DlqTopicError::Fenced(self.progress_topic.clone())
            }
            _ if matches!(self.producer.client().fatal_error(), Some((RDKafkaErrorCode::Fenced, _))) => {
                DlqTopicError::Fenced(self.progress_topic.clone())
            }
            _ => dlq_error(&self.cluster, doing, error),
        }
    }
}

/// A city and the bytes of one of its records.
pub type KeyedRecord = (String, Vec<u8>);

/// Writes ordinary arrivals, each to its city's partition. Returns once all are durable.
pub fn produce_records(
    cluster: &KafkaCluster,
    topic: &str,
    partitioner: Partitioner,
    records: &[KeyedRecord],
) -> Result<(), DlqTopicError> {
    let failed = |error| dlq_error(cluster, "write to the topic", error);
    let mut config = cluster.producer_config();
    config
        .set("enable.idempotence", "true")
        .set("partitioner", partitioner.name())
        .set("message.timeout.ms", CALL_DEADLINE.as_millis().to_string());
    let producer: BaseProducer<FailedDeliveries> =
        config.create_with_context(FailedDeliveries::default()).map_err(failed)?;
    for (city, value) in records {
        enqueue_record(&producer, BaseRecord::to(topic).key(city).payload(value)).map_err(failed)?;
    }
    flush_all(&producer).map_err(failed)?;
    match producer.context().0.load(Ordering::Relaxed) {
        0 => Ok(()),
        failed => Err(DlqTopicError::NotWritten { failed }),
    }
}

fn dlq_error(cluster: &KafkaCluster, doing: &str, error: KafkaError) -> DlqTopicError {
    DlqTopicError::Kafka { brokers: cluster.brokers.clone(), doing: doing.into(), error: Box::new(error) }
}

fn enqueue_record<K: rdkafka::message::ToBytes + ?Sized, P: rdkafka::message::ToBytes + ?Sized>(
    producer: &BaseProducer<FailedDeliveries>,
    mut record: BaseRecord<'_, K, P>,
) -> Result<(), KafkaError> {
    let deadline = Instant::now() + CALL_DEADLINE;
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                if Instant::now() < deadline =>
            {
                producer.poll(RETRY_PAUSE);
                record = back;
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// Waits until all records are delivered or have failed.
fn flush_all(producer: &BaseProducer<FailedDeliveries>) -> Result<(), KafkaError> {
    let deadline = Instant::now() + CALL_DEADLINE + CALL_DEADLINE;
    while producer.in_flight_count() > 0 {
        producer.poll(RETRY_PAUSE);
        if Instant::now() > deadline {
            return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
        }
    }
    Ok(())
}

/// Repeats a call while the cluster says that this may help.
fn call_until_deadline<T>(mut call: impl FnMut() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let deadline = Instant::now() + CALL_DEADLINE;
    loop {
        match call() {
            Err(error) if Instant::now() < deadline && is_transient(&error) => thread::sleep(RETRY_PAUSE),
            done => return done,
        }
    }
}

fn is_transient(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    match error {
        KafkaError::Transaction(error) => error.is_retriable(),
        _ => matches!(
            error.rdkafka_error_code(),
            Some(
                Code::UnstableOffsetCommit
                    | Code::CoordinatorLoadInProgress
                    | Code::CoordinatorNotAvailable
                    | Code::NotCoordinator
                    | Code::BrokerTransportFailure
                    | Code::OperationTimedOut
                    | Code::RequestTimedOut
                    | Code::WaitingForCoordinator
            )
        ),
    }
}
