//! State that the workers and the watch thread of a topic share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::client_context::SourceClientContext;
use super::fetched_topic::FetchedTopic;
use super::partition_offsets::PartitionOffsets;
use super::plan::KafkaSourcePlan;
use crate::codec::ReadOptions;
use crate::kafka::topic_identity::TopicIdentity;
use crate::model::EventTime;
use crate::registry::SchemaCache;
use crate::sources::SourceError;

/// How long a shutdown waits for the cluster.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a request at start may take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// State that the workers and the watch thread share.
pub(super) struct KafkaSourceShared {
    pub(super) name: Arc<str>,
    pub(super) plan: KafkaSourcePlan,
    pub(super) read_options: ReadOptions,
    pub(super) schema_cache: OnceLock<SchemaCache>,
    pub(super) consumer: Arc<BaseConsumer<SourceClientContext>>,
    pub(super) partitions: AtomicU32,
    pub(super) open_partitions: Mutex<BTreeMap<u32, Arc<PartitionOffsets>>>,
    pub(super) is_stopped: AtomicBool,
    pub(super) fetched_topic: FetchedTopic,
    /// The identity of the topic that earlier starts have recorded.
    pub(super) recorded_identity: Mutex<TopicIdentity>,
    /// The consumer that reads single records.
    pub(super) prober: Mutex<Option<Arc<BaseConsumer<SourceClientContext>>>>,
}

impl KafkaSourceShared {
    /// The position of the first record that was appended at this time or later, or the log's end.
    pub(super) fn position_at_time(
        &self,
        partition: u32,
        time: EventTime,
        end: u64,
    ) -> Result<u64, SourceError> {
        let failed = |error: rdkafka::error::KafkaError| self.transient_error(partition, &error.to_string());
        let mut request = TopicPartitionList::with_capacity(1);
        // A negative time would request the log's end.
        let time = Offset::Offset(time.millis().max(0));
        request
            .add_partition_offset(&self.plan.topic, self.kafka_partition(partition)?, time)
            .map_err(failed)?;
        let offsets = self.consumer.offsets_for_times(request, REQUEST_TIMEOUT).map_err(failed)?;
        let Some(element) = offsets.elements().into_iter().next() else { return Ok(end) };
        element.error().map_err(failed)?;
        match element.offset() {
            Offset::Offset(position) => Ok(position.unsigned_abs()),
            _ => Ok(end),
        }
    }

    /// Registers the only reader of a partition: two would share its queue.
    pub(super) fn register_reader(
        &self,
        partition: u32,
        position: u64,
        end: u64,
    ) -> Result<Arc<PartitionOffsets>, SourceError> {
        let mut open = self.lock_partitions();
        if open.contains_key(&partition) {
            let topic = &self.plan.topic;
            return Err(SourceError::Fatal(format!(
                "partition {partition} of topic {topic} is open already"
            )));
        }
        let offsets = Arc::new(PartitionOffsets::new(position, end));
        open.insert(partition, offsets.clone());
        Ok(offsets)
    }

    pub(super) fn unregister_reader(&self, partition: u32) {
        self.lock_partitions().remove(&partition);
    }

    pub(super) fn open_partitions(&self) -> BTreeMap<u32, Arc<PartitionOffsets>> {
        self.lock_partitions().clone()
    }

    fn lock_partitions(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<PartitionOffsets>>> {
        self.open_partitions.lock()
    }
}

impl Drop for KafkaSourceShared {
    fn drop(&mut self) {
        // If the cluster is unreachable, the drop of a consumer has been observed to hang.
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let closing = self.consumer.close_queue().is_ok();
        while closing && !self.consumer.closed() && Instant::now() < deadline {
            let _ = self.consumer.poll(Duration::from_millis(50));
        }
        if !self.consumer.closed() {
            tracing::debug!(
                source = &*self.name,
                "the consumer could not be closed, because the cluster does not answer; it ends with the process"
            );
            std::mem::forget(self.consumer.clone());
        }
    }
}
