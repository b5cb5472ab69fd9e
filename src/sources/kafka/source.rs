//! A Kafka topic as a log.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};

use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::BaseConsumer;

use super::client_context::SourceClientContext;
use super::fetched_topic::FetchedTopic;
use super::partition::KafkaPartition;
use super::plan::{KafkaSourcePlan, OffsetReset, RecordFormat, RegistryPlan};
use super::shared::KafkaSourceShared;
use super::topic_check;
use super::watch;
use crate::codec::ReadOptions;
use crate::fault;
use crate::kafka::REQUEST_TIMEOUT_MS;
use crate::kafka::topic_identity::TopicIdentity;
use crate::model::LogPosition;
use crate::registry::SchemaCache;
use crate::sources::{Partition, Source, SourceError};

/// The limits of prefetched data: of all partitions together, and the minimum and maximum of one.
const MAX_QUEUED_KIB: u32 = 256 * 1024;
const PARTITION_QUEUED_KIB_RANGE: (u32, u32) = (1024, 32 * 1024);
const MAX_QUEUED_RECORDS: u32 = 200_000;
const PARTITION_QUEUED_RECORDS_RANGE: (u32, u32) = (1_000, 100_000);

/// The limit of one fetch response. The allocator returns pieces of more than 8 MiB to the system
/// at once, which then zeroes them again for every fetch.
const MAX_FETCH_BYTES: u32 = 4 * 1024 * 1024;

/// A Kafka topic as a log. One consumer reads all of its partitions; the program assigns them to
/// workers, not a consumer group.
pub struct KafkaSource {
    shared: Arc<KafkaSourceShared>,
    watch_thread: Option<JoinHandle<()>>,
}

impl KafkaSource {
    /// Checks the topic, or creates it, and starts the watch thread.
    ///
    /// # Errors
    ///
    /// If the topic is missing, compacted or unreadable, or the cluster cannot be reached within
    /// half a minute.
    pub fn open(
        name: &str,
        plan: KafkaSourcePlan,
        read: impl Into<ReadOptions>,
    ) -> Result<KafkaSource, SourceError> {
        let (partitions, id) = topic_check::ensure_topics(&plan)?;
        let name: Arc<str> = name.into();
        let failed = |error: &dyn std::fmt::Display| SourceError::Fatal(format!("{}: {error}", plan.topic));
        let consumer = Arc::new(new_consumer(&name, &plan, partitions).map_err(|error| failed(&error))?);
        let fetched = FetchedTopic::new(&plan.topic, id, &consumer);
        let fetched = fetched.ok_or_else(|| failed(&"the log queue of the Kafka client cannot be opened"))?;
        let shared = Arc::new(KafkaSourceShared {
            name,
            plan,
            read_options: read.into(),
            schema_cache: OnceLock::new(),
            consumer,
            partitions: AtomicU32::new(partitions),
            open_partitions: Mutex::default(),
            is_stopped: AtomicBool::new(false),
            fetched_topic: fetched,
            recorded_identity: Mutex::default(),
            prober: Mutex::default(),
        });
        let watched = shared.clone();
        let watch = thread::Builder::new().name(format!("kafka {}", shared.name));
        let watch = watch.spawn(move || watch::run_watch(&watched));
        let watch = watch.map_err(|error| SourceError::Fatal(fault::start_failure_text(&error)))?;
        Ok(KafkaSource { shared, watch_thread: Some(watch) })
    }

    /// Sets the cache of schemas of the plan's registry. Call it before a partition is opened.
    pub fn set_schema_cache(&self, schemas: SchemaCache) {
        self.shared.schema_cache.get_or_init(|| schemas);
    }

    /// Why the schemas are unreliable, if the registry returns others than before.
    pub fn schema_contradiction(&self) -> Option<Arc<str>> {
        self.shared.schema_cache.get().and_then(SchemaCache::contradiction)
    }

    /// Sets the identity that earlier starts have recorded, to compare the topic with it. Call it
    /// before positions are checked.
    pub fn set_recorded_identity(&self, recorded: TopicIdentity) {
        *self.shared.recorded_identity.lock() = recorded;
    }

    /// The registry of the schemas of its records.
    pub fn registry_plan(&self) -> Option<&RegistryPlan> {
        match &self.shared.plan.format {
            RecordFormat::AvroRegistry(registry) => Some(registry),
            RecordFormat::Json | RecordFormat::AvroFile(_) => None,
        }
    }
}

impl Source for KafkaSource {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn partitions(&self) -> u32 {
        self.shared.partitions.load(Ordering::Relaxed)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn start_position(&self, partition: u32, first_start: bool) -> Result<u64, SourceError> {
        let (low, high) = self.shared.watermarks(partition)?;
        match self.shared.plan.offset_reset {
            OffsetReset::FromTime(time) if first_start => self.shared.position_at_time(partition, time, high),
            OffsetReset::Latest if first_start => Ok(high),
            OffsetReset::Earliest | OffsetReset::Latest | OffsetReset::FromTime(_) => Ok(low),
        }
    }

    fn log_id(&self) -> Result<Option<String>, SourceError> {
        Ok(self.shared.fetched_topic.id().map(str::to_owned))
    }

    fn check_position(&self, partition: u32, at: LogPosition) -> Result<(), SourceError> {
        self.shared.check_position(partition, at)
    }

    fn open_partition(
        &self,
        partition: u32,
        position: u64,
        worker: Thread,
    ) -> Result<Box<dyn Partition>, SourceError> {
        Ok(Box::new(KafkaPartition::open(self.shared.clone(), partition, position, worker)?))
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        if let Some(watch) = self.watch_thread.take() {
            // A panic of the thread is already logged.
            let _ = watch.join();
        }
    }
}

fn new_consumer(
    name: &Arc<str>,
    plan: &KafkaSourcePlan,
    partitions: u32,
) -> rdkafka::error::KafkaResult<BaseConsumer<SourceClientContext>> {
    let share =
        |all: u32, (least, most): (u32, u32)| (all / partitions.max(1)).clamp(least, most).to_string();
    plan.cluster
        .client_config()
        // Only the client's debug log says which topic is fetched.
        .set("debug", "topic")
        .set_log_level(RDKafkaLogLevel::Debug)
        .set("group.id", &plan.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("fetch.max.bytes", MAX_FETCH_BYTES.to_string())
        .set("socket.timeout.ms", REQUEST_TIMEOUT_MS)
        .set("allow.auto.create.topics", "false")
        .set("queued.min.messages", share(MAX_QUEUED_RECORDS, PARTITION_QUEUED_RECORDS_RANGE))
        .set("queued.max.messages.kbytes", share(MAX_QUEUED_KIB, PARTITION_QUEUED_KIB_RANGE))
        // A full queue is checked again after this long: the default of a second would starve a
        // fast worker.
        .set("fetch.queue.backoff.ms", "5")
        .create_with_context(SourceClientContext::new(name.clone()))
}
