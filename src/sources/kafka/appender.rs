//! The producer that appends posted and generated records to a topic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};

use super::plan::KafkaSourcePlan;
use super::record_writer::RecordWriter;
use crate::codec::ReadOptions;
use crate::kafka::broker_reminder::BrokerReminder;
use crate::kafka::error_log::KafkaErrorLog;
use crate::kafka::partitioner::Partitioner;
use crate::kafka::{self, KafkaCluster, dead_letter_headers};
use crate::model::{
    AppendCallback, AppendError, AppendReport, AppendedRange, Appender, NewRecord, PartitionName,
    RecordAddress, RetryInfo,
};
use crate::sources::SourceError;

/// How long a record may take to be acknowledged. Shorter than a posting client waits for its
/// response.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(25);
/// How long a stop waits for appends in flight.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// Approximate memory of a record in flight beside its bytes.
const RECORD_OVERHEAD_BYTES: usize = 256;

/// A topic to append to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendPlan {
    pub cluster: KafkaCluster,
    pub topic: String,
    pub partitioner: Partitioner,
    pub limits: AppendLimits,
}

/// The limits of records and bytes that wait for acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendLimits {
    pub records: usize,
    pub bytes: usize,
}

/// The state needed to queue records.
struct AppenderState {
    record_writer: RecordWriter,
    /// The number of acknowledged records at the last check.
    last_acknowledged: u64,
    broker_reminder: BrokerReminder,
}

/// Appends to the topic of a source. The records of a city are in the topic in the order of their
/// appends.
pub struct KafkaAppender {
    source: Arc<str>,
    topic: String,
    limits: AppendLimits,
    in_flight: Arc<InFlightRecords>,
    /// Held while an append is queued, so that its records are contiguous.
    state: Mutex<AppenderState>,
    is_stopping: AtomicBool,
    producer: ThreadedProducer<DeliveryContext>,
}

impl KafkaAppender {
    /// Creates an appender to the topic of a source, in the topic's format.
    ///
    /// # Errors
    ///
    /// If the format cannot be written, or its schema registry does not respond.
    pub fn for_source(
        source: &str,
        plan: &KafkaSourcePlan,
        read: &ReadOptions,
        limits: AppendLimits,
    ) -> Result<KafkaAppender, SourceError> {
        let writer = RecordWriter::for_source(plan, read)?;
        let KafkaSourcePlan { cluster, topic, partitioner, .. } = plan;
        let (cluster, topic, partitioner) = (cluster.clone(), topic.clone(), *partitioner);
        KafkaAppender::new(source, &AppendPlan { cluster, topic, partitioner, limits }, writer)
    }

    /// `source` is the name of the source in the reported positions.
    pub fn new(source: &str, plan: &AppendPlan, writer: RecordWriter) -> Result<KafkaAppender, SourceError> {
        let source: Arc<str> = source.into();
        let producer = plan
            .cluster
            .producer_config()
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", plan.partitioner.name())
            .set("allow.auto.create.topics", "false")
            .set("linger.ms", "2")
            .set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string())
            // The appender has its own limits: it accepts an append as a whole or not at all.
            .set("queue.buffering.max.messages", "0")
            .set("queue.buffering.max.kbytes", i32::MAX.to_string())
            .create_with_context(DeliveryContext(KafkaErrorLog::new(source.clone())));
        let topic = plan.topic.clone();
        let producer = producer.map_err(|error| SourceError::Fatal(format!("topic {topic}: {error}")))?;
        Ok(KafkaAppender {
            source,
            topic,
            limits: plan.limits,
            in_flight: Arc::default(),
            state: Mutex::new(AppenderState {
                record_writer: writer,
                last_acknowledged: 0,
                broker_reminder: BrokerReminder::for_cluster(&plan.cluster),
            }),
            is_stopping: AtomicBool::new(false),
            producer,
        })
    }

    /// Refuses new appends, and waits until those in flight are acknowledged.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        if let Err(error) = self.producer.flush(FLUSH_TIMEOUT) {
            tracing::warn!(source = &*self.source, topic = self.topic, %error, "the producer is closed with records that were not acknowledged");
        }
    }

    /// Checks whether the cluster has acknowledged something since the last append.
    fn check_acknowledgements(&self, queueing: &mut AppenderState) {
        let acknowledged = self.in_flight.acknowledged.load(Ordering::Relaxed);
        if acknowledged != queueing.last_acknowledged || self.in_flight.is_idle() {
            queueing.last_acknowledged = acknowledged;
            queueing.broker_reminder.record_response();
        } else {
            queueing.broker_reminder.remind_if_silent(self.producer.client());
        }
    }

    fn send_record(
        &self,
        writer: &mut RecordWriter,
        record: &NewRecord,
        append: &Arc<AppendInFlight>,
    ) -> Result<(), KafkaError> {
        let value = writer.encode_value(&record.bytes);
        let mut new = BaseRecord::with_opaque_to(&self.topic, append.clone()).payload(value);
        if let Some(city) = &record.city {
            new = new.key(city.as_bytes());
        }
        if let Some(retried) = &record.retry {
            new = new.headers(retry_headers(retried));
            let origin = retried.origin.parse::<RecordAddress>().ok();
            if let Some(partition) = origin.and_then(|origin| i32::try_from(origin.partition).ok()) {
                new = new.partition(partition);
            }
        }
        self.producer.send(new).map_err(|(error, _)| error)
    }
}

impl Appender for KafkaAppender {
    fn append(&self, records: Vec<NewRecord>, acknowledge: AppendCallback) {
        if records.is_empty() {
            return acknowledge(Ok(AppendReport::default()));
        }
        let bytes = records.iter().map(|record| record.bytes.len() + RECORD_OVERHEAD_BYTES).sum();
        let mut queueing = self.state.lock();
        self.check_acknowledgements(&mut queueing);
        let refused = if self.is_stopping.load(Ordering::Relaxed) {
            Some(AppendError::Stopping)
        } else if let Some((code, reason)) = self.producer.client().fatal_error() {
            Some(AppendError::Failed(format!("the producer has failed: {code}: {reason}").into()))
        } else if !self.in_flight.try_acquire(records.len(), bytes, self.limits) {
            Some(AppendError::Busy)
        } else {
            None
        };
        if let Some(error) = refused {
            drop(queueing);
            return acknowledge(Err(error));
        }
        let append = Arc::new(AppendInFlight {
            source: self.source.clone(),
            in_flight: self.in_flight.clone(),
            bytes,
            records: records.len(),
            unsettled: AtomicUsize::new(records.len()),
            outcome: Mutex::new(AppendOutcome {
                appended_ranges: BTreeMap::new(),
                failure: None,
                acknowledge: Some(acknowledge),
            }),
        });
        let mut sent = 0;
        let failed = records.iter().find_map(|record| {
            let error = self.send_record(&mut queueing.record_writer, record, &append).err();
            sent += usize::from(error.is_none());
            error
        });
        drop(queueing);
        if let Some(error) = failed {
            append.settle_records(records.len() - sent, Err(error.to_string()));
        }
    }
}

fn retry_headers(retried: &RetryInfo) -> OwnedHeaders {
    let add = |headers: OwnedHeaders, key, value: &str| headers.insert(Header { key, value: Some(value) });
    let headers = add(OwnedHeaders::new(), dead_letter_headers::ORIGIN, &retried.origin);
    let headers = add(headers, dead_letter_headers::ATTEMPT, &retried.attempt.to_string());
    match retried.first_seen {
        Some(first_seen) => add(headers, dead_letter_headers::FIRST_SEEN, &first_seen.to_string()),
        None => headers,
    }
}

impl Drop for KafkaAppender {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Records that wait for acknowledgement, and counters of them.
#[derive(Default)]
struct InFlightRecords {
    records: AtomicUsize,
    bytes: AtomicUsize,
    /// The total number of acknowledged records.
    acknowledged: AtomicU64,
    /// A record has failed, and none was acknowledged since.
    has_missed: AtomicBool,
}

impl InFlightRecords {
    /// Whether no acknowledgement is outstanding.
    fn is_idle(&self) -> bool {
        self.records.load(Ordering::Acquire) == 0 && !self.has_missed.load(Ordering::Relaxed)
    }

    /// Reserves space for an append. One that exceeds the limits is accepted if nothing else is in
    /// flight. The caller holds the lock of the writer, so only acknowledgements, which free space,
    /// run concurrently.
    fn try_acquire(&self, records: usize, bytes: usize, limits: AppendLimits) -> bool {
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

    fn release(&self, records: usize, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.records.fetch_sub(records, Ordering::AcqRel);
    }
}

/// One append in flight.
struct AppendInFlight {
    source: Arc<str>,
    in_flight: Arc<InFlightRecords>,
    records: usize,
    bytes: usize,
    /// Records without a result yet.
    unsettled: AtomicUsize,
    outcome: Mutex<AppendOutcome>,
}

struct AppendOutcome {
    /// By partition, the first position, and the one behind the last record.
    appended_ranges: BTreeMap<u32, (u64, u64)>,
    failure: Option<Arc<str>>,
    acknowledge: Option<AppendCallback>,
}

impl AppendInFlight {
    /// Records the result of a number of records: the position of one, or why they may not be in
    /// the log.
    fn settle_records(&self, records: usize, result: Result<(i32, i64), String>) {
        let mut outcome = self.outcome.lock();
        match result {
            Ok((partition, offset)) => {
                self.in_flight.acknowledged.fetch_add(1, Ordering::Relaxed);
                self.in_flight.has_missed.store(false, Ordering::Relaxed);
                // A record that was sent twice and deduplicated has no offset here.
                if let (Ok(partition), Ok(offset)) = (u32::try_from(partition), u64::try_from(offset)) {
                    let (first, end) =
                        outcome.appended_ranges.entry(partition).or_insert((offset, offset + 1));
                    (*first, *end) = ((*first).min(offset), (*end).max(offset + 1));
                }
            }
            Err(reason) => {
                self.in_flight.has_missed.store(true, Ordering::Relaxed);
                outcome.failure.get_or_insert_with(|| reason.into());
            }
        }
        if self.unsettled.fetch_sub(records, Ordering::AcqRel) > records {
            return;
        }
        let (failure, acknowledge) = (outcome.failure.take(), outcome.acknowledge.take());
        let ranges = std::mem::take(&mut outcome.appended_ranges);
        drop(outcome);
        self.in_flight.release(self.records, self.bytes);
        let Some(acknowledge) = acknowledge else { return };
        acknowledge(match failure {
            Some(reason) => Err(AppendError::Failed(reason)),
            None => {
                let appended_range = |(partition, (first, end))| AppendedRange {
                    partition: PartitionName { source: self.source.clone(), partition },
                    first,
                    end,
                };
                // Readings of the future are refused when the record is read, by the topic's own
                // timestamps.
                Ok(AppendReport {
                    ranges: ranges.into_iter().map(appended_range).collect(),
                    refusals: Vec::new(),
                })
            }
        });
    }
}

/// Receives the delivery results of records.
struct DeliveryContext(KafkaErrorLog);

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        kafka::log_librdkafka(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.log_error(&error, reason);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Arc<AppendInFlight>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, append: Arc<AppendInFlight>) {
        append.settle_records(
            1,
            match delivered {
                Ok(message) => Ok((message.partition(), message.offset())),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut), _)) => Err(format!(
                    "the Kafka cluster has not acknowledged within {} s",
                    DELIVERY_TIMEOUT.as_secs()
                )),
                Err((error, _)) => Err(error.to_string()),
            },
        );
    }
}
