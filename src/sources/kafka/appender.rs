//! The end of a topic that takes new records: what is posted, and what is made up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration as Wait;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};

use super::{KafkaPlan, RecordWriter};
use crate::codec::ReadOptions;
use crate::kafka::partitioner::Partitioner;
use crate::kafka::silence::Silence;
use crate::kafka::trouble::Trouble;
use crate::kafka::{self, Cluster, letter};
use crate::model::{
    Acknowledge, AppendError, AppendReport, Appended, Appender, NewRecord, PartitionName, RecordPlace,
    Retried,
};
use crate::sources::SourceError;

/// How long a record may take to be acknowledged.
/// Less than the one who posts waits for the answer.
const DELIVERY: Wait = Wait::from_secs(25);
/// How long an end waits for what is under way.
const LAST_WAIT: Wait = Wait::from_secs(10);
/// What a record under way takes beside its bytes, about.
const RECORD_BYTES: usize = 256;

/// A topic to append to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendPlan {
    pub cluster: Cluster,
    pub topic: String,
    pub partitioner: Partitioner,
    pub limits: AppendLimits,
}

/// What may wait for acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendLimits {
    pub records: usize,
    pub bytes: usize,
}

/// What queues records.
struct Queueing {
    writer: RecordWriter,
    /// How many were acknowledged when that was last looked at, and since when it is no more.
    acknowledged: u64,
    silence: Silence,
}

/// Appends to the topic of a source. The records of a city stand in it in the order in which they were appended.
pub struct KafkaAppender {
    source: Arc<str>,
    topic: String,
    limits: AppendLimits,
    room: Arc<Room>,
    /// Held while an append is queued, so that its records stand together.
    writer: Mutex<Queueing>,
    stopping: AtomicBool,
    producer: ThreadedProducer<Delivery>,
}

impl KafkaAppender {
    /// To the topic of a source, in its format.
    ///
    /// # Errors
    ///
    /// Where the format cannot be written, or its registry does not answer.
    pub fn of_source(
        source: &str,
        plan: &KafkaPlan,
        read: &ReadOptions,
        limits: AppendLimits,
    ) -> Result<KafkaAppender, SourceError> {
        let writer = RecordWriter::of_source(plan, read)?;
        let KafkaPlan { cluster, topic, partitioner, .. } = plan;
        let (cluster, topic, partitioner) = (cluster.clone(), topic.clone(), *partitioner);
        KafkaAppender::new(source, &AppendPlan { cluster, topic, partitioner, limits }, writer)
    }

    /// `source` is what the positions that are told are positions of.
    pub fn new(source: &str, plan: &AppendPlan, writer: RecordWriter) -> Result<KafkaAppender, SourceError> {
        let source: Arc<str> = source.into();
        let producer = plan
            .cluster
            .producer()
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", plan.partitioner.name())
            .set("allow.auto.create.topics", "false")
            .set("linger.ms", "2")
            .set("message.timeout.ms", DELIVERY.as_millis().to_string())
            // The limits are ours: they take an append as a whole or not at all.
            .set("queue.buffering.max.messages", "0")
            .set("queue.buffering.max.kbytes", i32::MAX.to_string())
            .create_with_context(Delivery(Trouble::new(source.clone())));
        let topic = plan.topic.clone();
        let producer = producer.map_err(|error| SourceError::Fatal(format!("topic {topic}: {error}")))?;
        Ok(KafkaAppender {
            source,
            topic,
            limits: plan.limits,
            room: Arc::default(),
            writer: Mutex::new(Queueing { writer, acknowledged: 0, silence: Silence::of(&plan.cluster) }),
            stopping: AtomicBool::new(false),
            producer,
        })
    }

    /// Takes nothing more, and waits until what is under way is acknowledged.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Err(error) = self.producer.flush(LAST_WAIT) {
            tracing::warn!(source = &*self.source, topic = self.topic, %error, "records are left that were not acknowledged");
        }
    }

    /// Looks whether the cluster has acknowledged something since the last append.
    fn listen(&self, queueing: &mut Queueing) {
        let acknowledged = self.room.acknowledged.load(Ordering::Relaxed);
        if acknowledged != queueing.acknowledged || self.room.is_settled() {
            queueing.acknowledged = acknowledged;
            queueing.silence.ends();
        } else {
            queueing.silence.lasts(self.producer.client());
        }
    }

    fn send(
        &self,
        writer: &mut RecordWriter,
        record: &NewRecord,
        append: &Arc<Append>,
    ) -> Result<(), KafkaError> {
        let value = writer.value(&record.bytes);
        let mut new = BaseRecord::with_opaque_to(&self.topic, append.clone()).payload(value);
        if let Some(city) = &record.city {
            new = new.key(city.as_bytes());
        }
        if let Some(retried) = &record.retried {
            new = new.headers(headers(retried));
            let origin = retried.origin.parse::<RecordPlace>().ok();
            if let Some(partition) = origin.and_then(|origin| i32::try_from(origin.partition).ok()) {
                new = new.partition(partition);
            }
        }
        self.producer.send(new).map_err(|(error, _)| error)
    }
}

impl Appender for KafkaAppender {
    fn append(&self, records: Vec<NewRecord>, done: Acknowledge) {
        if records.is_empty() {
            return done(Ok(AppendReport::default()));
        }
        let bytes = records.iter().map(|record| record.bytes.len() + RECORD_BYTES).sum();
        let mut queueing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.listen(&mut queueing);
        let refused = if self.stopping.load(Ordering::Relaxed) {
            Some(AppendError::Stopping)
        } else if let Some((code, reason)) = self.producer.client().fatal_error() {
            Some(AppendError::Failed(format!("the producer has failed: {code}: {reason}").into()))
        } else if !self.room.take(records.len(), bytes, self.limits) {
            Some(AppendError::Busy)
        } else {
            None
        };
        if let Some(error) = refused {
            drop(queueing);
            return done(Err(error));
        }
        let append = Arc::new(Append {
            source: self.source.clone(),
            room: self.room.clone(),
            bytes,
            records: records.len(),
            left: AtomicUsize::new(records.len()),
            outcome: Mutex::new(Outcome { places: BTreeMap::new(), failed: None, done: Some(done) }),
        });
        let mut sent = 0;
        let failed = records.iter().find_map(|record| {
            let error = self.send(&mut queueing.writer, record, &append).err();
            sent += usize::from(error.is_none());
            error
        });
        drop(queueing);
        if let Some(error) = failed {
            append.settle(records.len() - sent, Err(error.to_string()));
        }
    }
}

fn headers(retried: &Retried) -> OwnedHeaders {
    let add = |headers: OwnedHeaders, key, value: &str| headers.insert(Header { key, value: Some(value) });
    let headers = add(OwnedHeaders::new(), letter::ORIGIN, &retried.origin);
    let headers = add(headers, letter::ATTEMPT, &retried.attempt.to_string());
    match retried.first_seen {
        Some(first_seen) => add(headers, letter::FIRST_SEEN, &first_seen.to_string()),
        None => headers,
    }
}

impl Drop for KafkaAppender {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What is under way.
#[derive(Default)]
struct Room {
    records: AtomicUsize,
    bytes: AtomicUsize,
    /// In all.
    acknowledged: AtomicU64,
    /// Nothing was since one was not.
    missed: AtomicBool,
}

impl Room {
    /// Whether no acknowledgement is due.
    fn is_settled(&self) -> bool {
        self.records.load(Ordering::Acquire) == 0 && !self.missed.load(Ordering::Relaxed)
    }

    /// One that is larger than all there is may be alone. Whoever asks holds the lock of the writer, and only acknowledgements,
    /// which make room, come between.
    fn take(&self, records: usize, bytes: usize, limits: AppendLimits) -> bool {
        let (has_records, has_bytes) =
            (self.records.load(Ordering::Acquire), self.bytes.load(Ordering::Acquire));
        let fits = has_records + records <= limits.records && has_bytes + bytes <= limits.bytes;
        if fits || has_records == 0 {
            self.records.fetch_add(records, Ordering::AcqRel);
            self.bytes.fetch_add(bytes, Ordering::AcqRel);
            return true;
        }
        false
    }

    fn free(&self, records: usize, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.records.fetch_sub(records, Ordering::AcqRel);
    }
}

/// One append under way.
struct Append {
    source: Arc<str>,
    room: Arc<Room>,
    records: usize,
    bytes: usize,
    /// Records that were not heard of yet.
    left: AtomicUsize,
    outcome: Mutex<Outcome>,
}

struct Outcome {
    /// By partition, the first record, and behind the last one.
    places: BTreeMap<u32, (u64, u64)>,
    failed: Option<Arc<str>>,
    done: Option<Acknowledge>,
}

impl Append {
    /// So many records were heard of: where one is now, or why they may not be in the log.
    fn settle(&self, records: usize, result: Result<(i32, i64), String>) {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok((partition, offset)) => {
                self.room.acknowledged.fetch_add(1, Ordering::Relaxed);
                self.room.missed.store(false, Ordering::Relaxed);
                // A record that was sent twice, and kept once, has no offset here.
                if let (Ok(partition), Ok(offset)) = (u32::try_from(partition), u64::try_from(offset)) {
                    let (first, end) = outcome.places.entry(partition).or_insert((offset, offset + 1));
                    (*first, *end) = ((*first).min(offset), (*end).max(offset + 1));
                }
            }
            Err(reason) => {
                self.room.missed.store(true, Ordering::Relaxed);
                outcome.failed.get_or_insert_with(|| reason.into());
            }
        }
        if self.left.fetch_sub(records, Ordering::AcqRel) > records {
            return;
        }
        let (failed, done) = (outcome.failed.take(), outcome.done.take());
        let places = std::mem::take(&mut outcome.places);
        drop(outcome);
        self.room.free(self.records, self.bytes);
        let Some(done) = done else { return };
        done(match failed {
            Some(reason) => Err(AppendError::Failed(reason)),
            None => {
                let place = |(partition, (first, end))| Appended {
                    partition: PartitionName { source: self.source.clone(), partition },
                    first,
                    end,
                };
                // What the topic says of time is decided by its own stamps, when it is read.
                Ok(AppendReport { positions: places.into_iter().map(place).collect(), refused: Vec::new() })
            }
        });
    }
}

/// Hears what became of records.
struct Delivery(Trouble);

impl ClientContext for Delivery {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        kafka::log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.tell(&error, reason);
    }
}

impl ProducerContext for Delivery {
    type DeliveryOpaque = Arc<Append>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, append: Arc<Append>) {
        append.settle(
            1,
            match delivered {
                Ok(message) => Ok((message.partition(), message.offset())),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut), _)) => {
                    Err(format!("the Kafka cluster has not acknowledged within {} s", DELIVERY.as_secs()))
                }
                Err((error, _)) => Err(error.to_string()),
            },
        );
    }
}
