//! Dead letters that are sent once more to where they came from, each once, whatever fails in between.
//!
//! What is sent and how far it was sent are one transaction: a consumer group per reason holds up to where the letters of that
//! reason were sent, so the groups are right whatever reasons a call asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration as Wait, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::letters::{LettersError, Posted, Quiet, REQUEST, TopicReader, consumer};
use super::native::TopicState;
use super::partitioner::Partitioner;
use super::{Cluster, letter, letter_topics};
use crate::model::clock::wall_clock_ms;
use crate::model::{Letter, Reason, RecordPlace};

/// Of one transaction.
const BATCH_LETTERS: usize = 500;
const BATCH_BYTES: usize = 4 << 20;
/// Whoever reads the topic waits for one that was broken off.
const TRANSACTION: Wait = Wait::from_secs(10);
/// How long a call may take over a cluster that is slow.
const PATIENCE: Wait = Wait::from_secs(60);
const PAUSE: Wait = Wait::from_millis(100);

/// Which letters are sent.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Reason codes; without any, all that may have another end by now: neither what is too late, nor what has a schema that the
    /// registry did not know, since that answer is kept.
    pub reasons: BTreeSet<String>,
    /// Only those written before, ms.
    pub before: Option<i64>,
}

impl Wanted {
    pub fn reason(&self, reason: &str) -> bool {
        match self.reasons.is_empty() {
            true => ![Reason::TooLate.code(), Reason::UnknownSchema.code()].contains(&reason),
            false => self.reasons.contains(reason),
        }
    }
}

/// What became of letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Sent, by reason.
    pub sent: BTreeMap<String, u64>,
    /// Sent before.
    pub already: u64,
    /// Withdrawals, which are not sent again.
    pub withdrawals: u64,
    /// Without a place to go back to.
    pub homeless: u64,
}

impl Outcome {
    pub fn add(&mut self, other: &Outcome) {
        other.sent.iter().for_each(|(reason, sent)| *self.sent.entry(reason.clone()).or_default() += sent);
        self.already += other.already;
        self.withdrawals += other.withdrawals;
        self.homeless += other.homeless;
    }

    pub fn total(&self) -> u64 {
        self.sent.values().sum()
    }
}

/// Counts what could not be delivered.
#[derive(Default)]
struct Deliveries(AtomicU64);

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        super::log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "retry");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        if delivered.is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sends the letters of a cluster's topics. At most one of the same progress topic works: a later one ends it.
pub struct Retrier {
    cluster: Cluster,
    progress_topic: String,
    producer: BaseProducer<Deliveries>,
    groups: BTreeMap<String, Group>,
    /// By topic of dead letters: its id, where the cluster has ids.
    ids: BTreeMap<String, String>,
    /// By topic, and where it is read on.
    readers: BTreeMap<String, (TopicReader, BTreeMap<i32, i64>)>,
}

/// How far the letters of a reason were sent, by topic and partition.
struct Group {
    consumer: BaseConsumer<Quiet>,
    sent: BTreeMap<(String, i32), i64>,
}

/// The letters of a topic while they are sent.
struct Sending<'a> {
    topic: &'a str,
    partitions: i32,
    /// The topic that they are in.
    from: &'a str,
    outcome: Outcome,
    /// Of the next transaction, each with its partition.
    batch: Vec<(i32, Letter)>,
    bytes: usize,
    /// By reason; then by topic and partition.
    offsets: BTreeMap<String, BTreeMap<(String, i32), i64>>,
}

impl Sending<'_> {
    fn is_full(&self) -> bool {
        self.batch.len() >= BATCH_LETTERS || self.bytes >= BATCH_BYTES
    }
}

impl Retrier {
    pub fn open(cluster: &Cluster, progress_topic: &str) -> Result<Retrier, LettersError> {
        let mut config = cluster.producer();
        config
            .set("transactional.id", format!("{progress_topic}.retry"))
            .set("transaction.timeout.ms", TRANSACTION.as_millis().to_string())
            .set("linger.ms", "5");
        let failed = |error| failure(cluster, "take over the retry of dead letters", error);
        let producer: BaseProducer<Deliveries> =
            config.create_with_context(Deliveries::default()).map_err(failed)?;
        patiently(|| producer.init_transactions(REQUEST)).map_err(failed)?;
        let (cluster, progress_topic) = (cluster.clone(), progress_topic.to_owned());
        let (groups, readers, ids) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Retrier { cluster, progress_topic, producer, groups, ids, readers })
    }

    /// Sends the wanted letters of a topic that were not sent yet. After an error the retrier is of no use any more.
    pub fn send(&mut self, topic: &str, wanted: &Wanted) -> Result<Outcome, LettersError> {
        let [letters, _] = letter_topics(topic);
        let (reader, mut next) = match self.readers.remove(&letters) {
            Some(reading) => reading,
            None => (TopicReader::new(&self.cluster, &letters)?, BTreeMap::new()),
        };
        let mut outcome = Outcome::default();
        if let Some(TopicState::Present { id, .. }) = reader.state(&letters)? {
            // Of another topic of the name, nothing was read or sent.
            if self.ids.get(&letters) != id.as_ref() {
                next.clear();
                self.groups.clear();
                self.ids.extend(id.map(|id| (letters.clone(), id)));
            }
            let partitions = reader.partitions(topic)?.ok_or_else(|| LettersError::Missing(topic.into()))?;
            let mut sending = Sending {
                topic,
                partitions,
                from: &letters,
                outcome: Outcome::default(),
                batch: Vec::new(),
                bytes: 0,
                offsets: BTreeMap::new(),
            };
            let sent = reader.read(&mut next, &mut |posted| {
                // A stamp of a clock that was ahead says nothing, and must not keep those behind it waiting until then.
                let now = wall_clock_ms() as i64;
                let is_young = |(before, written): (i64, i64)| written >= before && written <= now;
                if wanted.before.zip(posted.written).is_some_and(is_young) {
                    return Ok(false);
                }
                self.take(&mut sending, wanted, posted)?;
                Ok(true)
            });
            let sent = sent.and_then(|()| self.commit(&mut sending));
            if sent.is_err() {
                let _ = self.producer.flush(REQUEST);
                let _ = self.producer.abort_transaction(REQUEST);
            }
            sent?;
            outcome = sending.outcome;
        }
        // A call that asks for other reasons must see all letters; one that goes on by itself asks for the same.
        self.readers.insert(letters, (reader, next));
        Ok(outcome)
    }

    fn take(
        &mut self,
        sending: &mut Sending<'_>,
        wanted: &Wanted,
        posted: Posted,
    ) -> Result<(), LettersError> {
        let outcome = &mut sending.outcome;
        let Some(letter) = posted.letter else {
            outcome.homeless += 1;
            return Ok(());
        };
        if !wanted.reason(&letter.reason) {
            return Ok(());
        }
        let at = (sending.from.to_owned(), posted.partition);
        let group = self.group(&letter.reason, sending.from)?;
        if group.sent.get(&at).is_some_and(|sent| posted.offset < *sent) {
            outcome.already += 1;
            return Ok(());
        }
        let home: Option<RecordPlace> = letter.next_attempt().origin.parse().ok();
        match home.filter(|home| i64::from(home.partition) < i64::from(sending.partitions)) {
            _ if letter.is_withdrawal() => outcome.withdrawals += 1,
            None => outcome.homeless += 1,
            Some(home) => {
                sending.bytes += letter.value.as_ref().map_or(0, Vec::len);
                *outcome.sent.entry(letter.reason.clone()).or_default() += 1;
                sending.offsets.entry(letter.reason.clone()).or_default().insert(at, posted.offset + 1);
                sending.batch.push((home.partition as i32, letter));
                return if sending.is_full() { self.commit(sending) } else { Ok(()) };
            }
        }
        sending.offsets.entry(letter.reason).or_default().insert(at, posted.offset + 1);
        Ok(())
    }

    /// The exact bytes, and in headers where they come from.
    fn produce(&self, topic: &str, partition: i32, letter: &Letter) -> Result<(), LettersError> {
        let retried = letter.next_attempt();
        let header =
            |headers: OwnedHeaders, key, value: &str| headers.insert(Header { key, value: Some(value) });
        let mut headers = header(OwnedHeaders::new(), letter::ORIGIN, &retried.origin);
        headers = header(headers, letter::ATTEMPT, &retried.attempt.to_string());
        if let Some(first_seen) = retried.first_seen {
            headers = header(headers, letter::FIRST_SEEN, &first_seen.to_string());
        }
        let mut record: BaseRecord<'_, Vec<u8>, Vec<u8>> =
            BaseRecord::to(topic).partition(partition).headers(headers);
        (record.key, record.payload) = (letter.key.as_ref(), letter.value.as_ref());
        enqueue(&self.producer, record).map_err(|error| self.failed("write to the topic", error))
    }

    /// Makes durable what was sent, and that it was.
    fn commit(&mut self, sending: &mut Sending<'_>) -> Result<(), LettersError> {
        let batch = std::mem::take(&mut sending.batch);
        let offsets = std::mem::take(&mut sending.offsets);
        sending.bytes = 0;
        // Withdrawals alone need no transaction: they are passed over again the next time.
        if batch.is_empty() {
            return Ok(());
        }
        self.producer.begin_transaction().map_err(|error| self.failed("begin a transaction", error))?;
        for (partition, letter) in &batch {
            self.produce(sending.topic, *partition, letter)?;
        }
        flush(&self.producer).map_err(|error| self.failed("write to the topic", error))?;
        if self.producer.context().0.load(Ordering::Relaxed) > 0 {
            let error = KafkaError::Flush(RDKafkaErrorCode::MessageTimedOut);
            return Err(self.failed("write to the topic", error));
        }
        for (reason, sent) in &offsets {
            let Some(group) = self.groups.get(reason) else { continue };
            let mut list = TopicPartitionList::new();
            for ((topic, partition), offset) in sent {
                let added = list.add_partition_offset(topic, *partition, Offset::Offset(*offset));
                added.map_err(|error| self.failed("keep what was sent", error))?;
            }
            // A topic that is made anew under the name begins at its beginning.
            for mut element in list.elements() {
                if let Some(id) = self.ids.get(element.topic()) {
                    element.set_metadata(id);
                }
            }
            let Some(metadata) = group.consumer.group_metadata() else { continue };
            let kept = patiently(|| self.producer.send_offsets_to_transaction(&list, &metadata, REQUEST));
            kept.map_err(|error| self.failed("keep what was sent", error))?;
        }
        patiently(|| self.producer.commit_transaction(REQUEST))
            .map_err(|error| self.failed("commit what was sent", error))?;
        for (reason, sent) in offsets {
            self.groups.entry(reason).and_modify(|group| group.sent.extend(sent));
        }
        Ok(())
    }

    /// How far a reason's letters were sent, as the cluster has it.
    fn group(&mut self, reason: &str, letters: &str) -> Result<&mut Group, LettersError> {
        if !self.groups.contains_key(reason) {
            let id = format!("{}.retry.{reason}", self.progress_topic);
            let consumer = consumer(&self.cluster, &id).map_err(|error| self.failed("connect", error))?;
            self.groups.insert(reason.to_owned(), Group { consumer, sent: BTreeMap::new() });
        }
        let known = self.groups[reason].sent.keys().any(|(topic, _)| topic == letters);
        if !known {
            let sent = self.sent(&self.groups[reason].consumer, letters)?;
            self.groups.entry(reason.to_owned()).and_modify(|group| group.sent.extend(sent));
        }
        self.groups.get_mut(reason).ok_or_else(|| LettersError::Missing(letters.into()))
    }

    fn sent(
        &self,
        consumer: &BaseConsumer<Quiet>,
        letters: &str,
    ) -> Result<BTreeMap<(String, i32), i64>, LettersError> {
        let doing = "read what was sent before";
        let metadata = consumer.fetch_metadata(Some(letters), REQUEST);
        let metadata = metadata.map_err(|error| self.failed(doing, error))?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions()).count() as i32;
        let mut asked = TopicPartitionList::new();
        for partition in 0..partitions {
            asked.add_partition(letters, partition);
        }
        let committed = patiently(|| consumer.committed_offsets(asked.clone(), REQUEST));
        let committed = committed.map_err(|error| self.failed(doing, error))?;
        let own = self.ids.get(letters);
        let offset = |element: &TopicPartitionListElem<'_>| match element.offset() {
            // One that was kept before there were ids is taken.
            Offset::Offset(offset) => {
                let kept_of = Some(element.metadata()).filter(|id| !id.is_empty());
                if kept_of.zip(own).is_none_or(|(kept_of, own)| kept_of == own) { offset } else { 0 }
            }
            _ => 0,
        };
        let entries = committed.elements();
        Ok(entries.iter().map(|e| ((letters.to_owned(), e.partition()), offset(e))).collect())
    }

    fn failed(&self, doing: &str, error: KafkaError) -> LettersError {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced) => {
                LettersError::Fenced(self.progress_topic.clone())
            }
            _ if matches!(self.producer.client().fatal_error(), Some((RDKafkaErrorCode::Fenced, _))) => {
                LettersError::Fenced(self.progress_topic.clone())
            }
            _ => failure(&self.cluster, doing, error),
        }
    }
}

/// A city and the bytes of a record of it.
pub type Keyed = (String, Vec<u8>);

/// Writes ordinary arrivals, each to its city's partition. Returns when all are durable.
pub fn produce(
    cluster: &Cluster,
    topic: &str,
    partitioner: Partitioner,
    records: &[Keyed],
) -> Result<(), LettersError> {
    let failed = |error| failure(cluster, "write to the topic", error);
    let mut config = cluster.producer();
    config
        .set("enable.idempotence", "true")
        .set("partitioner", partitioner.name())
        .set("message.timeout.ms", PATIENCE.as_millis().to_string());
    let producer: BaseProducer<Deliveries> =
        config.create_with_context(Deliveries::default()).map_err(failed)?;
    for (city, value) in records {
        enqueue(&producer, BaseRecord::to(topic).key(city).payload(value)).map_err(failed)?;
    }
    flush(&producer).map_err(failed)?;
    match producer.context().0.load(Ordering::Relaxed) {
        0 => Ok(()),
        failed => Err(LettersError::NotWritten { failed }),
    }
}

fn failure(cluster: &Cluster, doing: &str, error: KafkaError) -> LettersError {
    LettersError::Kafka { brokers: cluster.brokers.clone(), doing: doing.into(), error: Box::new(error) }
}

fn enqueue<K: rdkafka::message::ToBytes + ?Sized, P: rdkafka::message::ToBytes + ?Sized>(
    producer: &BaseProducer<Deliveries>,
    mut record: BaseRecord<'_, K, P>,
) -> Result<(), KafkaError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                if Instant::now() < deadline =>
            {
                producer.poll(PAUSE);
                record = back;
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// Waits until all is delivered, or given up.
fn flush(producer: &BaseProducer<Deliveries>) -> Result<(), KafkaError> {
    let deadline = Instant::now() + PATIENCE + PATIENCE;
    while producer.in_flight_count() > 0 {
        producer.poll(PAUSE);
        if Instant::now() > deadline {
            return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
        }
    }
    Ok(())
}

/// Calls again while the cluster says that it may help.
fn patiently<T>(mut call: impl FnMut() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match call() {
            Err(error) if Instant::now() < deadline && may_pass(&error) => thread::sleep(PAUSE),
            done => return done,
        }
    }
}

fn may_pass(error: &KafkaError) -> bool {
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
