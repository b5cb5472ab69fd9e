//! The writer of one shard of a cluster's topics: a transactional producer.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer};

use super::error::KafkaSinkError;
use super::plan::{Delivery, KafkaOutputPlan};
use super::producer::{
    CALL_TIMEOUT, DeliveryErrors, FIRST_RETRY, ProducerFailure, QueueWait, call_timeout, classify_failure,
    open_producer, send_batch,
};
use super::progress_topic::{ProgressProducer, ReadExtent, WaitLimit, read_topic};
use crate::kafka::broker_reminder::BrokerReminder;
use crate::kafka::native::TopicProducer;
use crate::sinks::error::{SinkError, WriteFailure};
use crate::sinks::progress::{CLAIM, Claim, MARKER, ProgressSnapshot, ShardProgress, shard_key};
use crate::sinks::shard::{ShardBatch, ShardWriter};
use crate::sinks::stop::StopDeadline;
use crate::test_hooks;

/// The interval of checks whether all records are acknowledged.
const FLUSH_INTERVAL: Duration = Duration::from_millis(20);
/// How long the cluster may take at the start.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct KafkaShardWriter {
    number: u16,
    plan: KafkaOutputPlan,
    topics: Arc<[String]>,
    claim: Claim,
    producer: TopicProducer<DeliveryErrors>,
    stop: Arc<StopDeadline>,
    as_of: String,
}

impl KafkaShardWriter {
    /// Creates the producer. It fences the earlier producers of this shard, whose open transactions
    /// are aborted.
    pub fn open(
        plan: &KafkaOutputPlan,
        topics: &Arc<[String]>,
        number: u16,
        claim: &Claim,
        stop: &Arc<StopDeadline>,
    ) -> Result<KafkaShardWriter, KafkaSinkError> {
        let producer = open_producer(plan, topics, number, OPEN_TIMEOUT, stop)?;
        if !plan.is_transactional() {
            // An earlier start may have left a transaction open, which would block readers.
            let transactional = KafkaOutputPlan { delivery: Delivery::ExactlyOnce, ..plan.clone() };
            drop(open_producer(&transactional, &[], number, OPEN_TIMEOUT, stop)?);
        }
        let (plan, topics, claim, stop) = (plan.clone(), Arc::clone(topics), claim.clone(), Arc::clone(stop));
        Ok(KafkaShardWriter { number, plan, topics, claim, producer, stop, as_of: String::new() })
    }

    /// Classifies a failure by whether a retry helps.
    fn write_failure(&self, failure: &ProducerFailure) -> WriteFailure {
        match (self.producer.client().context().permanent_error(), failure) {
            (Some(error), _) => WriteFailure::Final(error.into()),
            (None, ProducerFailure::Abort(error)) => WriteFailure::RollBack(error.to_string()),
            (None, ProducerFailure::Lost(error)) => WriteFailure::Reopen(error.to_string()),
        }
    }

    fn begin_transaction(&self) -> Result<(), ProducerFailure> {
        if self.plan.is_transactional() {
            self.producer.client().begin_transaction().map_err(classify_failure)?;
        }
        Ok(())
    }

    fn send(&mut self, batch: &ShardBatch) -> Result<(), ProducerFailure> {
        let wait = QueueWait { max_wait: self.plan.transaction_timeout, stop: Arc::clone(&self.stop) };
        send_batch(&self.producer, &self.topics, &mut self.as_of, batch, &wait)
    }

    /// Writes the progress of a transaction whose records were sent, and commits both.
    fn commit_transaction(&self, progress: &ShardProgress) -> Result<(), ProducerFailure> {
        if !self.plan.is_transactional() {
            // Progress must not become durable before the records that it covers.
            self.flush()?;
        }
        let value = serde_json::to_vec(progress).unwrap_or_default();
        let key = shard_key(self.number);
        let record = BaseRecord::to(&self.plan.progress_topic).key(&key).payload(&value).partition(0);
        self.producer.client().send(record).map_err(|(error, _)| ProducerFailure::Lost(error))?;
        self.flush()?;
        test_hooks::crash_before_commit();
        if !self.plan.is_transactional() {
            return Ok(());
        }
        let deadline = Instant::now() + self.plan.transaction_timeout;
        let mut reminder = BrokerReminder::for_cluster(&self.plan.cluster);
        loop {
            let is_late = Instant::now() > deadline || self.stop.is_over();
            match self.producer.client().commit_transaction(call_timeout(&self.stop)) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && !is_late => {
                    reminder.remind_if_silent(self.producer.client().client());
                    thread::sleep(FIRST_RETRY);
                }
                Err(error) => return Err(classify_failure(error)),
            }
        }
    }

    /// Waits until all sent records are acknowledged.
    fn flush(&self) -> Result<(), ProducerFailure> {
        let deadline = Instant::now() + self.plan.transaction_timeout;
        let mut reminder = BrokerReminder::for_cluster(&self.plan.cluster);
        while !self.producer.flush_within(FLUSH_INTERVAL) {
            reminder.remind_if_silent(self.producer.client().client());
            if Instant::now() > deadline || self.stop.is_over() {
                return Err(ProducerFailure::Lost(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)));
            }
        }
        match self.producer.client().context().take_failed() {
            0 => Ok(()),
            _ => Err(ProducerFailure::Abort(KafkaError::Flush(RDKafkaErrorCode::MessageTimedOut))),
        }
    }

    fn check_claim(&self, progress: &ProgressSnapshot) -> Result<(), SinkError> {
        match progress.get::<Claim>(CLAIM)? {
            Some(last) if last != self.claim => {
                let topic = self.plan.progress_topic.clone();
                Err(KafkaSinkError::Fenced { topic, generation: last.generation }.into())
            }
            _ => Ok(()),
        }
    }
}

impl ShardWriter for KafkaShardWriter {
    fn begin(&mut self) -> Result<(), WriteFailure> {
        self.begin_transaction().map_err(|failure| self.write_failure(&failure))
    }

    fn add(&mut self, batch: &ShardBatch) -> Result<(), WriteFailure> {
        self.send(batch).map_err(|failure| self.write_failure(&failure))
    }

    fn commit(&mut self, progress: &ShardProgress) -> Result<(), WriteFailure> {
        self.commit_transaction(progress).map_err(|failure| self.write_failure(&failure))
    }

    fn roll_back(&mut self) -> bool {
        if !self.plan.is_transactional() {
            return false;
        }
        let _ = self.flush();
        let timeout = self.plan.transaction_timeout.min(call_timeout(&self.stop));
        let aborted = self.producer.client().abort_transaction(timeout);
        self.producer.client().context().take_failed();
        aborted.is_ok()
    }

    fn reopen(&mut self, last_epoch: u64) -> Result<bool, SinkError> {
        let KafkaOutputPlan { cluster, progress_topic, .. } = &self.plan;
        // Check the claim before creating a producer, because that would fence a successor.
        let limit = WaitLimit::until_stopped(&self.stop);
        self.check_claim(&read_topic(cluster, progress_topic, ReadExtent::Now, &limit)?)?;
        let producer = open_producer(&self.plan, &self.topics, self.number, CALL_TIMEOUT, &self.stop)?;
        let writer = ProgressProducer::new(cluster, progress_topic)?;
        let marker = writer.write_within(MARKER, &self.claim.nonce, &limit)?;
        let progress = read_topic(cluster, progress_topic, ReadExtent::Marker(marker), &limit)?;
        self.check_claim(&progress)?;
        self.producer = producer;
        let durable = progress.shard(self.number)?;
        Ok(durable.is_some_and(|durable| durable.epoch >= last_epoch))
    }

    fn unfinished(&self) -> SinkError {
        KafkaSinkError::Unfinished { brokers: self.plan.cluster.brokers.clone() }.into()
    }
}
