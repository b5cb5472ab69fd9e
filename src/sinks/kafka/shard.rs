//! What writes one shard: whole portions, and with each the positions that they are complete up to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer};

use super::producer::{
    CALL_TIMEOUT, DeliveryErrors, FIRST_RETRY, QueueWait, WriteFailure, call_timeout, classify_failure,
    open_producer, send_batch,
};
use super::progress::{
    self, CLAIM, Claim, Fingerprints, MARKER, Positions, ProgressProducer, ProgressSnapshot, ReadExtent,
    ShardProgress, StopDeadline, WaitLimit,
};
use super::{Delivery, KafkaOutputPlan, KafkaSinkError};
use crate::kafka::broker_reminder::BrokerReminder;
use crate::kafka::native::TopicProducer;
use crate::model::EncodedBatch;
use crate::test_hooks;

/// What a portion takes beside its parcels, about, and a position.
const BATCH_OVERHEAD_BYTES: usize = 128;
const POSITION_BYTES: usize = 32;
/// A transaction of more bytes is ended at once.
const MAX_TRANSACTION_BYTES: usize = 16 * 1024 * 1024;
/// How often a wait for acknowledgements looks about.
const FLUSH_INTERVAL: Duration = Duration::from_millis(20);
/// How often progress alone is written.
const IDLE_COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// Between two attempts, at most.
const MAX_RETRY: Duration = Duration::from_secs(5);
/// How long the cluster may take at the start.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// Everything that a shard has to write of the epochs since the last portion.
#[derive(Clone, Debug)]
pub struct ShardBatch {
    /// In the order of epochs.
    pub parcels: Vec<EncodedBatch>,
    /// The last epoch that is included; all of it.
    pub epoch: u64,
    /// The input that it is complete up to.
    pub positions: Arc<Positions>,
    /// The last record of each partition before that.
    pub before: Arc<Fingerprints>,
}

impl ShardBatch {
    pub fn bytes(&self) -> usize {
        let positions: usize = self.positions.values().map(|partitions| partitions.len()).sum();
        self.parcels.iter().map(EncodedBatch::encoded_bytes).sum::<usize>()
            + BATCH_OVERHEAD_BYTES
            + positions * POSITION_BYTES
    }
}

pub(super) struct ShardWriter {
    number: u16,
    plan: KafkaOutputPlan,
    topics: Arc<[String]>,
    claim: Claim,
    producer: TopicProducer<DeliveryErrors>,
    stopping: Arc<StopDeadline>,
    as_of: String,
    durable: SharedPositions,
    /// When the last commit was due: the next one is an interval later, however long that one takes.
    due: Instant,
    /// From when they count on.
    metrics: Option<ShardMetrics>,
}

/// The input that what a shard has made durable includes.
pub(super) type SharedPositions = Arc<Mutex<Positions>>;

impl ShardWriter {
    /// Makes the producer. No earlier one of this shard writes any more then, and its open transaction is given up.
    pub fn open(
        plan: &KafkaOutputPlan,
        topics: &Arc<[String]>,
        number: u16,
        claim: &Claim,
        stopping: &Arc<StopDeadline>,
    ) -> Result<ShardWriter, KafkaSinkError> {
        let producer = open_producer(plan, topics, number, OPEN_TIMEOUT, stopping)?;
        if !plan.is_transactional() {
            // An earlier start may have left a transaction open, which readers would wait for.
            let transactional = KafkaOutputPlan { delivery: Delivery::ExactlyOnce, ..plan.clone() };
            drop(self::open_producer(&transactional, &[], number, OPEN_TIMEOUT, stopping)?);
        }
        Ok(ShardWriter {
            number,
            plan: plan.clone(),
            topics: Arc::clone(topics),
            claim: claim.clone(),
            producer,
            stopping: Arc::clone(stopping),
            as_of: String::new(),
            durable: SharedPositions::default(),
            due: Instant::now(),
            metrics: None,
        })
    }

    /// What the shard has made durable, from here on: `before` it was that.
    pub fn share_durable(&self, before: Option<ShardProgress>) -> SharedPositions {
        let positions = before.map(|before| before.positions).unwrap_or_default();
        *self.durable.lock().unwrap_or_else(PoisonError::into_inner) = positions;
        Arc::clone(&self.durable)
    }

    /// Writes portions until no more can come.
    pub fn run(
        &mut self,
        portions: &Receiver<ShardBatch>,
        pending: &AtomicUsize,
    ) -> Result<(), KafkaSinkError> {
        while let Ok(first) = portions.recv() {
            let mut batch = vec![first];
            self.write_durably(&mut batch, portions)?;
            pending.fetch_sub(batch.iter().map(ShardBatch::bytes).sum(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes a batch durable, whatever it takes; more portions join it until it is due.
    fn write_durably(
        &mut self,
        batch: &mut Vec<ShardBatch>,
        portions: &Receiver<ShardBatch>,
    ) -> Result<(), KafkaSinkError> {
        let begun = Instant::now();
        let mut retry = FIRST_RETRY;
        loop {
            let trouble = match self.try_write(batch, portions, begun) {
                Ok(()) => break,
                Err(trouble) => trouble,
            };
            let (WriteFailure::Abort(error) | WriteFailure::Lost(error)) = &trouble;
            if let Some(error) = self.producer.client().context().permanent_error() {
                return Err(error);
            }
            tracing::warn!(shard = self.number, %error, "results could not be written; they are written again");
            self.pause_before_retry(retry)?;
            retry = (retry * 2).min(MAX_RETRY);
            let aborted = match &trouble {
                WriteFailure::Abort(_) => self.abort(),
                WriteFailure::Lost(_) => false,
            };
            if !aborted && self.reopen(batch)? {
                break;
            }
        }
        if retry > FIRST_RETRY {
            tracing::info!(shard = self.number, took = ?begun.elapsed(), "results are written again");
        }
        let meters =
            self.metrics.get_or_insert_with(|| ShardMetrics::new(&self.plan.progress_topic, self.number));
        meters.count_written(batch);
        if let Some(last) = batch.last() {
            let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
            durable.clone_from(&last.positions);
        }
        Ok(())
    }

    /// Waits before another attempt.
    fn pause_before_retry(&self, retry: Duration) -> Result<(), KafkaSinkError> {
        thread::sleep(retry.min(self.stopping.time_left()));
        self.check_stop()
    }

    fn check_stop(&self) -> Result<(), KafkaSinkError> {
        match self.stopping.is_over() {
            true => Err(KafkaSinkError::Unfinished { brokers: self.plan.cluster.brokers.clone() }),
            false => Ok(()),
        }
    }

    fn send(&mut self, portion: &ShardBatch) -> Result<(), WriteFailure> {
        let (patience, stopping) = (self.plan.transaction_timeout, Arc::clone(&self.stopping));
        send_batch(
            &self.producer,
            &self.topics,
            &mut self.as_of,
            portion,
            &QueueWait { max_wait: patience, stopping },
        )
    }

    fn try_write(
        &mut self,
        batch: &mut Vec<ShardBatch>,
        portions: &Receiver<ShardBatch>,
        begun: Instant,
    ) -> Result<(), WriteFailure> {
        if self.plan.is_transactional() {
            self.producer.client().begin_transaction().map_err(classify_failure)?;
        }
        let mut empty = true;
        let mut bytes = 0;
        for portion in &*batch {
            self.send(portion)?;
            empty &= portion.parcels.is_empty();
            bytes += portion.bytes();
        }
        let interval = self.plan.commit_interval;
        let last = self.due;
        let soon = |from: Instant| (last + interval).clamp(from + interval / 4, from + interval);
        let mut due = if empty { begun + IDLE_COMMIT_INTERVAL } else { soon(begun) };
        while bytes < MAX_TRANSACTION_BYTES && batch.len() < 100_000 {
            let portion = match portions.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(portion) => portion,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            };
            if empty && !portion.parcels.is_empty() {
                empty = false;
                due = due.min(soon(Instant::now()));
            }
            bytes += portion.bytes();
            // First of all: whatever happens while it is sent, it belongs to the batch that is written again.
            batch.push(portion);
            let Some(portion) = batch.last() else { break };
            self.send(portion)?;
        }
        self.due = Instant::now();
        self.commit(batch)
    }

    /// Writes the progress of a batch that was sent, and makes all of it durable.
    fn commit(&self, batch: &[ShardBatch]) -> Result<(), WriteFailure> {
        let Some(last) = batch.last() else { return Ok(()) };
        if !self.plan.is_transactional() {
            // Progress must not be durable before what it speaks of.
            self.flush()?;
        }
        let (positions, before) = (Positions::clone(&last.positions), Fingerprints::clone(&last.before));
        let progress = ShardProgress { epoch: last.epoch, positions, before };
        let value = serde_json::to_vec(&progress).unwrap_or_default();
        let key = progress::shard_key(self.number);
        let record = BaseRecord::to(&self.plan.progress_topic).key(&key).payload(&value).partition(0);
        self.producer.client().send(record).map_err(|(error, _)| WriteFailure::Lost(error))?;
        self.flush()?;
        test_hooks::crash_before_commit();
        if !self.plan.is_transactional() {
            return Ok(());
        }
        let deadline = Instant::now() + self.plan.transaction_timeout;
        let mut silence = BrokerReminder::for_cluster(&self.plan.cluster);
        loop {
            let is_late = Instant::now() > deadline || self.stopping.is_over();
            match self.producer.client().commit_transaction(call_timeout(&self.stopping)) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && !is_late => {
                    silence.remind_if_silent(self.producer.client().client());
                    thread::sleep(FIRST_RETRY);
                }
                Err(error) => return Err(classify_failure(error)),
            }
        }
    }

    /// Waits until all that was sent is acknowledged.
    fn flush(&self) -> Result<(), WriteFailure> {
        let deadline = Instant::now() + self.plan.transaction_timeout;
        let mut silence = BrokerReminder::for_cluster(&self.plan.cluster);
        while !self.producer.flush_within(FLUSH_INTERVAL) {
            silence.remind_if_silent(self.producer.client().client());
            if Instant::now() > deadline || self.stopping.is_over() {
                return Err(WriteFailure::Lost(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)));
            }
        }
        match self.producer.client().context().take_failed() {
            0 => Ok(()),
            _ => Err(WriteFailure::Abort(KafkaError::Flush(RDKafkaErrorCode::MessageTimedOut))),
        }
    }

    /// Gives a transaction up; false where the producer must be made anew.
    fn abort(&self) -> bool {
        if !self.plan.is_transactional() {
            return false;
        }
        let _ = self.flush();
        let aborted = self
            .producer
            .client()
            .abort_transaction(self.plan.transaction_timeout.min(call_timeout(&self.stopping)));
        self.producer.client().context().take_failed();
        aborted.is_ok()
    }

    /// Makes the producer anew, if nobody else has claimed the outlet; true where the batch turns out to be durable.
    fn reopen(&mut self, batch: &[ShardBatch]) -> Result<bool, KafkaSinkError> {
        let mut retry = FIRST_RETRY;
        loop {
            match self.try_reopen(batch) {
                Err(error @ KafkaSinkError::Fenced { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(shard = self.number, %error, "the sink is tried again");
                    self.pause_before_retry(retry)?;
                    retry = (retry * 2).min(MAX_RETRY);
                }
                Ok(durable) => return Ok(durable),
            }
        }
    }

    fn try_reopen(&mut self, batch: &[ShardBatch]) -> Result<bool, KafkaSinkError> {
        let KafkaOutputPlan { cluster, progress_topic, .. } = &self.plan;
        let still_ours = |kept: &ProgressSnapshot| match kept.get::<Claim>(CLAIM)? {
            Some(claim) if claim != self.claim => {
                Err(KafkaSinkError::Fenced { topic: progress_topic.clone(), generation: claim.generation })
            }
            _ => Ok(()),
        };
        // First of all: a producer that is made would fence whoever has taken over.
        let patience = WaitLimit::until_stopped(&self.stopping);
        still_ours(&progress::read_topic(cluster, progress_topic, ReadExtent::Now, &patience)?)?;
        let made = open_producer(&self.plan, &self.topics, self.number, CALL_TIMEOUT, &self.stopping)?;
        let writer = ProgressProducer::new(cluster, progress_topic)?;
        let marker = writer.write_within(MARKER, &self.claim.nonce, &patience)?;
        let kept = progress::read_topic(cluster, progress_topic, ReadExtent::Marker(marker), &patience)?;
        still_ours(&kept)?;
        self.producer = made;
        let durable: Option<ShardProgress> = kept.get(&progress::shard_key(self.number))?;
        let last = batch.last().map(|portion| portion.epoch);
        Ok(durable.is_some_and(|durable| Some(durable.epoch) >= last))
    }
}

/// What a shard counts of itself.
struct ShardMetrics {
    records: metrics::Counter,
    transactions: metrics::Counter,
    epoch: metrics::Gauge,
}

impl ShardMetrics {
    fn new(progress_topic: &str, number: u16) -> ShardMetrics {
        let labels = [("progress_topic", progress_topic.to_owned()), ("shard", number.to_string())];
        ShardMetrics {
            records: metrics::counter!("swelter_sink_records_total", &labels),
            transactions: metrics::counter!("swelter_sink_commits_total", &labels),
            epoch: metrics::gauge!("swelter_sink_durable_epoch", &labels),
        }
    }

    fn count_written(&self, batch: &[ShardBatch]) {
        let parcels = batch.iter().flat_map(|portion| &portion.parcels);
        self.records.increment(parcels.map(|parcel| u64::from(parcel.record_count)).sum());
        self.transactions.increment(1);
        if let Some(last) = batch.last() {
            self.epoch.set(last.epoch as f64);
        }
    }
}
