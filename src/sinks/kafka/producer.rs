//! The producer of a shard, and the delivery of its records.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};

use super::error::KafkaSinkError;
use super::plan::KafkaOutputPlan;
use super::progress_topic::is_permanent;
use crate::kafka::AS_OF_HEADER;
use crate::kafka::native::{ProducerRecord, TopicProducer};
use crate::model::EncodedRecord;
use crate::sinks::shard::ShardBatch;
use crate::sinks::stop::StopDeadline;

/// The interval of polls for acknowledgements.
const ACK_POLL_INTERVAL: Duration = Duration::from_micros(300);
/// The upper limit of `linger.ms`: with long commit intervals, the last requests should not become
/// large.
const MAX_LINGER_MS: u128 = 50;
/// The delay before the first retry.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest time that a call waits for the cluster.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Counts records that could not be delivered.
#[derive(Default)]
pub(super) struct DeliveryErrors {
    failed: AtomicU64,
    /// The last error, and the topic of its record.
    last: Mutex<Option<(String, KafkaError)>>,
}

impl DeliveryErrors {
    fn record_failure(&self, topic: &str, error: &KafkaError) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut last = self.last.lock();
        // A purged record follows from an earlier failure, whose error stays.
        if !matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
        ) {
            *last = Some((topic.to_owned(), error.clone()));
        }
    }

    /// How many deliveries failed since the last call.
    pub fn take_failed(&self) -> u64 {
        self.failed.swap(0, Ordering::Relaxed)
    }

    /// The error, if it is permanent, so that a retry does not help.
    pub fn permanent_error(&self) -> Option<KafkaSinkError> {
        use RDKafkaErrorCode::{ClusterAuthorizationFailed, MessageSizeTooLarge, TopicAuthorizationFailed};
        let (topic, error) = self.last.lock().clone()?;
        match error.rdkafka_error_code() {
            Some(MessageSizeTooLarge) => Some(KafkaSinkError::TooLarge { topic }),
            Some(TopicAuthorizationFailed | ClusterAuthorizationFailed) => {
                Some(KafkaSinkError::Writing { topic, error })
            }
            _ => None,
        }
    }
}

impl ClientContext for DeliveryErrors {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        crate::kafka::log_librdkafka(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "a producer of a sink reports an error");
    }
}

impl ProducerContext for DeliveryErrors {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = delivered {
            tracing::debug!(%error, topic = message.topic(), "a record was not acknowledged by the brokers; its transaction is aborted and its results are written again");
            self.record_failure(message.topic(), error);
        }
    }
}

/// Why a producer's transaction has failed.
#[derive(Debug)]
pub(super) enum ProducerFailure {
    /// The transaction can be aborted and written again.
    Abort(KafkaError),
    /// The outcome is unknown, or the producer cannot be used any more.
    Lost(KafkaError),
}

/// Creates a producer for these topics. It fences the earlier producers of this shard.
pub(super) fn open_producer(
    plan: &KafkaOutputPlan,
    topics: &[String],
    number: u16,
    wait: Duration,
    stop: &StopDeadline,
) -> Result<TopicProducer<DeliveryErrors>, KafkaSinkError> {
    let claimed = init_producer(plan, number, wait, stop)?;
    TopicProducer::new(claimed, topics).map_err(|error| KafkaSinkError::cannot_connect(&plan.cluster, error))
}

fn init_producer(
    plan: &KafkaOutputPlan,
    number: u16,
    wait: Duration,
    stop: &StopDeadline,
) -> Result<BaseProducer<DeliveryErrors>, KafkaSinkError> {
    let mut config = plan.cluster.producer_config();
    let timeout = plan.transaction_timeout.as_millis().to_string();
    // A request holds records of one partition, so fewer requests hold more records each. Records
    // that wait for a commit may linger: the commit flushes them.
    let linger = match plan.is_transactional() {
        true => plan.commit_interval.as_millis().clamp(1, MAX_LINGER_MS),
        false => 1,
    };
    config
        .set("enable.idempotence", "true")
        .set("linger.ms", linger.to_string())
        .set("queue.buffering.max.messages", "500000")
        .set("queue.buffering.max.kbytes", "262144")
        .set("delivery.report.only.error", "true");
    let id = format!("{}.shard.{number}", plan.progress_topic);
    if plan.is_transactional() {
        config.set("transactional.id", &id).set("transaction.timeout.ms", &timeout);
    } else {
        config.set("message.timeout.ms", &timeout);
    }
    let producer: BaseProducer<DeliveryErrors> = config
        .create_with_context(DeliveryErrors::default())
        .map_err(|error| KafkaSinkError::cannot_connect(&plan.cluster, error))?;
    if !plan.is_transactional() {
        return Ok(producer);
    }
    let deadline = Instant::now() + wait;
    loop {
        match producer.init_transactions(call_timeout(stop)) {
            Ok(()) => return Ok(producer),
            Err(error) if is_permanent(&error) || stop.is_over() || Instant::now() > deadline => {
                return Err(KafkaSinkError::Transactions { id, error });
            }
            Err(KafkaError::Transaction(error)) if error.is_retriable() => thread::sleep(FIRST_RETRY),
            Err(error) => return Err(KafkaSinkError::Transactions { id, error }),
        }
    }
}

pub(super) fn classify_failure(error: KafkaError) -> ProducerFailure {
    match &error {
        KafkaError::Transaction(inner) if inner.txn_requires_abort() => ProducerFailure::Abort(error),
        _ => ProducerFailure::Lost(error),
    }
}

/// Polls for acknowledgements, then sleeps a moment. A poll with a timeout would spin during the
/// last part of a millisecond.
fn poll_acks(producer: &BaseProducer<DeliveryErrors>) {
    producer.poll(Duration::ZERO);
    thread::sleep(ACK_POLL_INTERVAL);
}

/// How long a call may wait for the cluster.
pub(super) fn call_timeout(stop: &StopDeadline) -> Duration {
    stop.time_left().clamp(FIRST_RETRY, CALL_TIMEOUT)
}

/// How long a batch waits for space in the producer's queue.
pub(super) struct QueueWait {
    pub max_wait: Duration,
    pub stop: Arc<StopDeadline>,
}

/// Queues the records of a batch, and waits while the queue is full.
pub(super) fn send_batch(
    producer: &TopicProducer<DeliveryErrors>,
    topics: &[String],
    as_of: &mut String,
    batch: &ShardBatch,
    wait: &QueueWait,
) -> Result<(), ProducerFailure> {
    use std::fmt::Write as _;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let timestamp = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    for encoded in &batch.batches {
        as_of.clear();
        let _ = write!(as_of, "{}", encoded.epoch);
        for record in encoded.records() {
            let Some(topic) = topics.get(usize::from(record.topic)) else { continue };
            enqueue_record(producer, topic, (as_of, timestamp), &record, wait)?;
        }
    }
    producer.client().poll(Duration::ZERO);
    Ok(())
}

fn enqueue_record(
    producer: &TopicProducer<DeliveryErrors>,
    topic: &str,
    (as_of, timestamp): (&str, i64),
    record: &EncodedRecord<'_>,
    wait: &QueueWait,
) -> Result<(), ProducerFailure> {
    let headers = record.headers.clone();
    let of_result = headers.clone().next().is_none().then_some((AS_OF_HEADER, as_of.as_bytes()));
    let next = ProducerRecord {
        topic: usize::from(record.topic),
        partition: record.partition as i32,
        timestamp,
        key: record.key,
        value: record.value,
        headers: of_result.into_iter().chain(headers),
    };
    let mut deadline = None;
    loop {
        match producer.queue_record(&next) {
            Ok(()) => return Ok(()),
            Err(full @ KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + wait.max_wait);
                if Instant::now() > deadline || wait.stop.is_over() {
                    return Err(ProducerFailure::Lost(full));
                }
                poll_acks(producer.client());
            }
            // The transaction has failed: the commit returns the error.
            Err(error) => {
                producer.client().context().record_failure(topic, &error);
                return Err(ProducerFailure::Abort(error));
            }
        }
    }
}
