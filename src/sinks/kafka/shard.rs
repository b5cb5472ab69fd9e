//! What writes one shard: whole portions, and with each the positions that they are complete up to.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration as Wait, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use super::progress::{self, CLAIM, Claim, MARKER, Positions, ShardProgress, Writer};
use super::{Delivery, OutletError, OutletPlan};
use crate::kafka::AS_OF;
use crate::model::{Parcel, ParcelRecord};

/// What a portion takes beside its parcels, about, and a position.
const PORTION_BYTES: usize = 128;
const POSITION_BYTES: usize = 32;
/// A transaction of more bytes is ended at once.
const FULL_BYTES: usize = 16 * 1024 * 1024;
/// How often progress alone is written.
const PROGRESS_ONLY: Wait = Wait::from_secs(1);
/// Between two looks at what was acknowledged.
const LOOK: Wait = Wait::from_micros(300);
/// Between two attempts, at first and at most.
const RETRY: Wait = Wait::from_millis(100);
const LONGEST_RETRY: Wait = Wait::from_secs(5);
/// Of one call that waits for the cluster.
const CALL: Wait = Wait::from_secs(10);
/// How long a stop waits for a cluster that does not answer.
const LAST_WAIT: Wait = Wait::from_secs(20);
/// How long the cluster may take at the start.
const FIRST_WAIT: Wait = Wait::from_secs(60);

/// Everything that a shard has to write of the epochs since the last portion.
#[derive(Clone, Debug)]
pub struct Portion {
    /// In the order of epochs.
    pub parcels: Vec<Parcel>,
    /// The last epoch that is included; all of it.
    pub epoch: u64,
    /// The input that it is complete up to.
    pub positions: Arc<Positions>,
}

impl Portion {
    pub fn bytes(&self) -> usize {
        let positions: usize = self.positions.values().map(|partitions| partitions.len()).sum();
        self.parcels.iter().map(Parcel::bytes).sum::<usize>() + PORTION_BYTES + positions * POSITION_BYTES
    }
}

/// Counts what could not be delivered.
#[derive(Default)]
struct Deliveries {
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

    /// Why waiting does not help, where it does not.
    fn final_error(&self) -> Option<OutletError> {
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
enum Trouble {
    /// Nothing of it counts: it can be made again.
    Abort(KafkaError),
    /// What became of it is not known, or the producer is of no use any more.
    Lost(KafkaError),
}

pub(super) struct ShardWriter {
    number: u16,
    plan: OutletPlan,
    topics: Arc<[String]>,
    claim: Claim,
    producer: BaseProducer<Deliveries>,
    /// Set when the run ends.
    stopping: Arc<AtomicBool>,
    stop_seen: Option<Instant>,
    as_of: String,
    durable: Durable,
    /// From when they count on.
    meters: Option<Meters>,
}

/// The input that what a shard has made durable includes.
pub(super) type Durable = Arc<Mutex<Positions>>;

impl ShardWriter {
    /// Makes the producer. No earlier one of this shard writes any more then, and its open transaction is given up.
    pub fn open(
        plan: &OutletPlan,
        topics: &Arc<[String]>,
        number: u16,
        claim: &Claim,
        stopping: &Arc<AtomicBool>,
    ) -> Result<ShardWriter, OutletError> {
        let producer = producer(plan, number, FIRST_WAIT)?;
        if !plan.is_transactional() {
            // An earlier start may have left a transaction open, which readers would wait for.
            let transactional = OutletPlan { delivery: Delivery::ExactlyOnce, ..plan.clone() };
            drop(self::producer(&transactional, number, FIRST_WAIT)?);
        }
        Ok(ShardWriter {
            number,
            plan: plan.clone(),
            topics: Arc::clone(topics),
            claim: claim.clone(),
            producer,
            stopping: Arc::clone(stopping),
            stop_seen: None,
            as_of: String::new(),
            durable: Durable::default(),
            meters: None,
        })
    }

    /// What the shard has made durable, from here on: `before` it was that.
    pub fn durable(&self, before: Option<ShardProgress>) -> Durable {
        let positions = before.map(|before| before.positions).unwrap_or_default();
        *self.durable.lock().unwrap_or_else(PoisonError::into_inner) = positions;
        Arc::clone(&self.durable)
    }

    /// Writes portions until no more can come.
    pub fn run(&mut self, portions: &Receiver<Portion>, pending: &AtomicUsize) -> Result<(), OutletError> {
        while let Ok(first) = portions.recv() {
            let mut batch = vec![first];
            self.write(&mut batch, portions)?;
            pending.fetch_sub(batch.iter().map(Portion::bytes).sum(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes a batch durable, whatever it takes; more portions join it until it is due.
    fn write(&mut self, batch: &mut Vec<Portion>, portions: &Receiver<Portion>) -> Result<(), OutletError> {
        let begun = Instant::now();
        let mut retry = RETRY;
        loop {
            let trouble = match self.attempt(batch, portions, begun) {
                Ok(()) => break,
                Err(trouble) => trouble,
            };
            let (Trouble::Abort(error) | Trouble::Lost(error)) = &trouble;
            if let Some(error) = self.producer.context().final_error() {
                return Err(error);
            }
            tracing::warn!(shard = self.number, %error, "results could not be written; they are written again");
            self.pause(retry)?;
            retry = (retry * 2).min(LONGEST_RETRY);
            let aborted = match &trouble {
                Trouble::Abort(_) => self.abort(),
                Trouble::Lost(_) => false,
            };
            if !aborted && self.reopen(batch)? {
                break;
            }
        }
        if retry > RETRY {
            tracing::info!(shard = self.number, took = ?begun.elapsed(), "results are written again");
        }
        let meters = self.meters.get_or_insert_with(|| Meters::new(&self.plan.progress_topic, self.number));
        meters.written(batch);
        if let Some(last) = batch.last() {
            let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
            durable.clone_from(&last.positions);
        }
        Ok(())
    }

    /// Waits before another attempt.
    fn pause(&mut self, retry: Wait) -> Result<(), OutletError> {
        thread::sleep(retry);
        self.check_stop()
    }

    fn check_stop(&mut self) -> Result<(), OutletError> {
        if self.stopping.load(Ordering::Relaxed) {
            let since = *self.stop_seen.get_or_insert_with(Instant::now);
            if since.elapsed() > LAST_WAIT {
                return Err(OutletError::Unfinished { brokers: self.plan.cluster.brokers.clone() });
            }
        }
        Ok(())
    }

    fn attempt(
        &mut self,
        batch: &mut Vec<Portion>,
        portions: &Receiver<Portion>,
        begun: Instant,
    ) -> Result<(), Trouble> {
        if self.plan.is_transactional() {
            self.producer.begin_transaction().map_err(classify)?;
        }
        let mut empty = true;
        let mut bytes = 0;
        for portion in &*batch {
            send(&self.producer, &self.topics, &mut self.as_of, portion, self.plan.transaction_timeout)?;
            empty &= portion.parcels.is_empty();
            bytes += portion.bytes();
        }
        let mut due = begun + if empty { PROGRESS_ONLY } else { self.plan.commit_interval };
        while bytes < FULL_BYTES && batch.len() < 100_000 {
            let portion = match portions.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(portion) => portion,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            };
            if empty && !portion.parcels.is_empty() {
                empty = false;
                due = due.min(Instant::now() + self.plan.commit_interval);
            }
            bytes += portion.bytes();
            // First of all: whatever happens while it is sent, it belongs to the batch that is written again.
            batch.push(portion);
            let Some(portion) = batch.last() else { break };
            send(&self.producer, &self.topics, &mut self.as_of, portion, self.plan.transaction_timeout)?;
        }
        self.finish(batch)
    }

    /// Writes the progress of a batch that was sent, and makes all of it durable.
    fn finish(&mut self, batch: &[Portion]) -> Result<(), Trouble> {
        let Some(last) = batch.last() else { return Ok(()) };
        if !self.plan.is_transactional() {
            // Progress must not be durable before what it speaks of.
            self.flush()?;
        }
        let progress = ShardProgress { epoch: last.epoch, positions: Positions::clone(&last.positions) };
        let value = serde_json::to_vec(&progress).unwrap_or_default();
        let key = progress::shard_key(self.number);
        let record = BaseRecord::to(&self.plan.progress_topic).key(&key).payload(&value).partition(0);
        self.producer.send(record).map_err(|(error, _)| Trouble::Lost(error))?;
        self.flush()?;
        #[cfg(debug_assertions)]
        fault::between_flush_and_commit();
        if !self.plan.is_transactional() {
            return Ok(());
        }
        let deadline = Instant::now() + self.plan.transaction_timeout;
        loop {
            match self.producer.commit_transaction(CALL) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {
                    thread::sleep(RETRY);
                }
                Err(error) => return Err(classify(error)),
            }
        }
    }

    /// Waits until all that was sent is acknowledged.
    fn flush(&mut self) -> Result<(), Trouble> {
        let deadline = Instant::now() + self.plan.transaction_timeout;
        while self.producer.in_flight_count() > 0 {
            wait(&self.producer);
            let stop = self
                .stopping
                .load(Ordering::Relaxed)
                .then(|| *self.stop_seen.get_or_insert_with(Instant::now));
            if Instant::now() > deadline || stop.is_some_and(|since| since.elapsed() > LAST_WAIT) {
                return Err(Trouble::Lost(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)));
            }
        }
        match self.producer.context().failed.swap(0, Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err(Trouble::Abort(KafkaError::Flush(RDKafkaErrorCode::MessageTimedOut))),
        }
    }

    /// Gives a transaction up; false where the producer must be made anew.
    fn abort(&mut self) -> bool {
        if !self.plan.is_transactional() {
            return false;
        }
        let _ = self.flush();
        let aborted = self.producer.abort_transaction(self.plan.transaction_timeout.min(CALL));
        self.producer.context().failed.store(0, Ordering::Relaxed);
        aborted.is_ok()
    }

    /// Makes the producer anew, if nobody else has claimed the outlet; true where the batch turns out to be durable.
    fn reopen(&mut self, batch: &[Portion]) -> Result<bool, OutletError> {
        let mut retry = RETRY;
        loop {
            match self.try_reopen(batch) {
                Err(error @ OutletError::Fenced { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(shard = self.number, %error, "the sink is tried again");
                    self.pause(retry)?;
                    retry = (retry * 2).min(LONGEST_RETRY);
                }
                Ok(durable) => return Ok(durable),
            }
        }
    }

    fn try_reopen(&mut self, batch: &[Portion]) -> Result<bool, OutletError> {
        let OutletPlan { cluster, progress_topic, .. } = &self.plan;
        let still_ours = |kept: &progress::Kept| match kept.get::<Claim>(CLAIM)? {
            Some(claim) if claim != self.claim => {
                Err(OutletError::Fenced { topic: progress_topic.clone(), generation: claim.generation })
            }
            _ => Ok(()),
        };
        // First of all: a producer that is made would fence whoever has taken over.
        still_ours(&progress::read(cluster, progress_topic, None)?)?;
        let made = producer(&self.plan, self.number, CALL)?;
        let marker = Writer::new(cluster, progress_topic)?.write(MARKER, &self.claim.nonce)?;
        let kept = progress::read(cluster, progress_topic, Some(marker))?;
        still_ours(&kept)?;
        self.producer = made;
        let durable: Option<ShardProgress> = kept.get(&progress::shard_key(self.number))?;
        let last = batch.last().map(|portion| portion.epoch);
        Ok(durable.is_some_and(|durable| Some(durable.epoch) >= last))
    }
}

fn producer(plan: &OutletPlan, number: u16, wait: Wait) -> Result<BaseProducer<Deliveries>, OutletError> {
    let mut config = plan.cluster.producer();
    let timeout = plan.transaction_timeout.as_millis().to_string();
    // More goes into a request; a commit waits for the last one.
    let linger =
        if plan.is_transactional() { (plan.commit_interval.as_millis() / 10).clamp(1, 5) } else { 1 };
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
        match producer.init_transactions(CALL) {
            Ok(()) => return Ok(producer),
            Err(error) if progress::is_final(&error) || Instant::now() > deadline => {
                return Err(OutletError::Transactions { id, error });
            }
            Err(KafkaError::Transaction(error)) if error.is_retriable() => thread::sleep(RETRY),
            Err(error) => return Err(OutletError::Transactions { id, error }),
        }
    }
}

fn classify(error: KafkaError) -> Trouble {
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

/// Queues the records of a portion, and waits where there is no room.
fn send(
    producer: &BaseProducer<Deliveries>,
    topics: &[String],
    as_of: &mut String,
    portion: &Portion,
    patience: Wait,
) -> Result<(), Trouble> {
    use std::fmt::Write as _;
    for parcel in &portion.parcels {
        as_of.clear();
        let _ = write!(as_of, "{}", parcel.epoch);
        for record in parcel.records() {
            let Some(topic) = topics.get(usize::from(record.topic)) else { continue };
            queue(producer, topic, as_of, &record, patience)?;
        }
    }
    producer.poll(Wait::ZERO);
    Ok(())
}

fn queue(
    producer: &BaseProducer<Deliveries>,
    topic: &str,
    as_of: &str,
    record: &ParcelRecord<'_>,
    patience: Wait,
) -> Result<(), Trouble> {
    let mut headers = OwnedHeaders::new_with_capacity(1);
    let mut own = record.headers.clone().peekable();
    if own.peek().is_none() {
        headers = headers.insert(Header { key: AS_OF, value: Some(as_of) });
    }
    headers = own.fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
    let mut next = BaseRecord::to(topic).partition(record.partition as i32).headers(headers);
    next.key = record.key;
    next.payload = record.value;
    let mut deadline = None;
    loop {
        match producer.send(next) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + patience);
                if Instant::now() > deadline {
                    return Err(Trouble::Lost(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)));
                }
                wait(producer);
                next = back;
            }
            // Of a transaction that has failed: committing it says so, and how.
            Err((error, _)) => {
                producer.context().fail(topic, &error);
                return Err(Trouble::Abort(error));
            }
        }
    }
}

/// What a shard counts of itself.
struct Meters {
    records: metrics::Counter,
    transactions: metrics::Counter,
    epoch: metrics::Gauge,
}

impl Meters {
    fn new(progress_topic: &str, number: u16) -> Meters {
        let labels = [("progress_topic", progress_topic.to_owned()), ("shard", number.to_string())];
        Meters {
            records: metrics::counter!("swelter_sink_records_total", &labels),
            transactions: metrics::counter!("swelter_sink_commits_total", &labels),
            epoch: metrics::gauge!("swelter_sink_durable_epoch", &labels),
        }
    }

    fn written(&self, batch: &[Portion]) {
        let parcels = batch.iter().flat_map(|portion| &portion.parcels);
        self.records.increment(parcels.map(|parcel| u64::from(parcel.records)).sum());
        self.transactions.increment(1);
        if let Some(last) = batch.last() {
            self.epoch.set(last.epoch as f64);
        }
    }
}

/// Where tests have the process die.
#[cfg(debug_assertions)]
mod fault {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    /// How many transactions are flushed before one is not committed.
    static LEFT: LazyLock<AtomicI64> = LazyLock::new(|| {
        let after = std::env::var("SWELTER_TEST_DIE_BEFORE_COMMIT").ok().and_then(|after| after.parse().ok());
        AtomicI64::new(after.unwrap_or(i64::MAX))
    });

    pub fn between_flush_and_commit() {
        if LEFT.fetch_sub(1, Ordering::Relaxed) <= 0 {
            std::process::abort();
        }
    }
}
