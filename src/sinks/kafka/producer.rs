//! The producer of a shard, and what becomes of what it is given.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration as Wait, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};

use super::progress::{self, Stopping};
use super::shard::Portion;
use super::{OutletError, OutletPlan};
use crate::kafka::AS_OF;
use crate::kafka::native::{NewRecord, TopicProducer};
use crate::model::ParcelRecord;

/// Between two looks at what was acknowledged.
const LOOK: Wait = Wait::from_micros(300);
/// With commits that are far apart, their last requests are not to be large.
const LONGEST_LINGER_MS: u128 = 50;
/// Between two attempts, at first.
pub(super) const RETRY: Wait = Wait::from_millis(100);
/// Of one call that waits for the cluster.
pub(super) const CALL: Wait = Wait::from_secs(10);

/// Counts what could not be delivered.
#[derive(Default)]
pub(super) struct Deliveries {
    failed: AtomicU64,
    /// What was said of the last one, and its topic.
    last: Mutex<Option<(String, KafkaError)>>,
}

impl Deliveries {
    fn fail(&self, topic: &str, error: &KafkaError) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // What is purged goes with one that has failed before.
        if !matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
        ) {
            *last = Some((topic.to_owned(), error.clone()));
        }
    }

    /// How many there were since the last call.
    pub fn take_failed(&self) -> u64 {
        self.failed.swap(0, Ordering::Relaxed)
    }

    /// Why waiting does not help, where it does not.
    pub fn final_error(&self) -> Option<OutletError> {
        use RDKafkaErrorCode::{ClusterAuthorizationFailed, MessageSizeTooLarge, TopicAuthorizationFailed};
        let (topic, error) = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        match error.rdkafka_error_code() {
            Some(MessageSizeTooLarge) => Some(OutletError::TooLarge { topic }),
            Some(TopicAuthorizationFailed | ClusterAuthorizationFailed) => {
                Some(OutletError::Writing { topic, error })
            }
            _ => None,
        }
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        crate::kafka::log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "sink");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = delivered {
            tracing::debug!(%error, topic = message.topic(), "a record was not written");
            self.fail(message.topic(), error);
        }
    }
}

/// Why an attempt has ended.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nothing of it counts: it can be made again.
    Abort(KafkaError),
    /// What became of it is not known, or the producer is of no use any more.
    Lost(KafkaError),
}

/// Makes a producer of these topics; no earlier one of this shard writes any more then.
pub(super) fn producer(
    plan: &OutletPlan,
    topics: &[String],
    number: u16,
    wait: Wait,
    stopping: &Stopping,
) -> Result<TopicProducer<Deliveries>, OutletError> {
    let claimed = claim(plan, number, wait, stopping)?;
    TopicProducer::new(claimed, topics).map_err(|error| OutletError::client(&plan.cluster, error))
}

fn claim(
    plan: &OutletPlan,
    number: u16,
    wait: Wait,
    stopping: &Stopping,
) -> Result<BaseProducer<Deliveries>, OutletError> {
    let mut config = plan.cluster.producer();
    let timeout = plan.transaction_timeout.as_millis().to_string();
    // A request is of one partition, so the fewer, the more in each. What waits for a commit may wait here: the commit has it sent.
    let linger = match plan.is_transactional() {
        true => plan.commit_interval.as_millis().clamp(1, LONGEST_LINGER_MS),
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
    let producer: BaseProducer<Deliveries> = config
        .create_with_context(Deliveries::default())
        .map_err(|error| OutletError::client(&plan.cluster, error))?;
    if !plan.is_transactional() {
        return Ok(producer);
    }
    let deadline = Instant::now() + wait;
    loop {
        match producer.init_transactions(call(stopping)) {
            Ok(()) => return Ok(producer),
            Err(error) if progress::is_final(&error) || stopping.is_over() || Instant::now() > deadline => {
                return Err(OutletError::Transactions { id, error });
            }
            Err(KafkaError::Transaction(error)) if error.is_retriable() => thread::sleep(RETRY),
            Err(error) => return Err(OutletError::Transactions { id, error }),
        }
    }
}

pub(super) fn classify(error: KafkaError) -> Trouble {
    match &error {
        KafkaError::Transaction(inner) if inner.txn_requires_abort() => Trouble::Abort(error),
        _ => Trouble::Lost(error),
    }
}

/// Waits a moment for acknowledgements. A poll that waits would be busy for the last part of a millisecond.
fn wait(producer: &BaseProducer<Deliveries>) {
    producer.poll(Wait::ZERO);
    thread::sleep(LOOK);
}

/// How long a call may wait for the cluster.
pub(super) fn call(stopping: &Stopping) -> Wait {
    stopping.left().clamp(RETRY, CALL)
}

/// How long a portion waits for room in the queue of its producer.
pub(super) struct Room {
    pub patience: Wait,
    pub stopping: Arc<Stopping>,
}

/// Queues the records of a portion, and waits where there is no room.
pub(super) fn send(
    producer: &TopicProducer<Deliveries>,
    topics: &[String],
    as_of: &mut String,
    portion: &Portion,
    room: &Room,
) -> Result<(), Trouble> {
    use std::fmt::Write as _;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let timestamp = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    for parcel in &portion.parcels {
        as_of.clear();
        let _ = write!(as_of, "{}", parcel.epoch);
        for record in parcel.records() {
            let Some(topic) = topics.get(usize::from(record.topic)) else { continue };
            queue(producer, topic, (as_of, timestamp), &record, room)?;
        }
    }
    producer.client().poll(Wait::ZERO);
    Ok(())
}

fn queue(
    producer: &TopicProducer<Deliveries>,
    topic: &str,
    (as_of, timestamp): (&str, i64),
    record: &ParcelRecord<'_>,
    room: &Room,
) -> Result<(), Trouble> {
    let own = record.headers.clone();
    let of_result = own.clone().next().is_none().then_some((AS_OF, as_of.as_bytes()));
    let next = NewRecord {
        topic: usize::from(record.topic),
        partition: record.partition as i32,
        timestamp,
        key: record.key,
        value: record.value,
        headers: of_result.into_iter().chain(own),
    };
    let mut deadline = None;
    loop {
        match producer.send(&next) {
            Ok(()) => return Ok(()),
            Err(full @ KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + room.patience);
                if Instant::now() > deadline || room.stopping.is_over() {
                    return Err(Trouble::Lost(full));
                }
                wait(producer.client());
            }
            // Of a transaction that has failed: committing it says so, and how.
            Err(error) => {
                producer.client().context().fail(topic, &error);
                return Err(Trouble::Abort(error));
            }
        }
    }
}
