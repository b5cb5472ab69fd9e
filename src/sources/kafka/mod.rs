//! Topics of Kafka as logs: partitions are theirs, positions are offsets.

mod appender;
mod identity;
mod partition;
mod record_writer;
mod topic_check;
mod topic_decoder;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

pub use self::appender::{AppendLimits, AppendPlan, KafkaAppender};
use self::identity::FetchedTopic;
use self::partition::KafkaPartition;
pub use self::record_writer::RecordWriter;
use self::watch::{PartitionOffsets, SourceClientContext};
use crate::codec::ReadOptions;
use crate::fault;
use crate::kafka::partitioner::Partitioner;
use crate::kafka::topic_identity::TopicIdentity;
use crate::kafka::{KafkaCluster, REQUEST_TIMEOUT_MS};
use crate::model::{EventTime, LogPosition, Millis};
use crate::registry::SchemaCache;
use crate::sources::{Partition, Source, SourceError};

/// How long an end waits for the cluster.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a request of a start may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// What all partitions together may hold that workers have not taken yet, and one of them at least and at most.
const MAX_QUEUED_KIB: u32 = 256 * 1024;
const PARTITION_QUEUED_KIB_RANGE: (u32, u32) = (1024, 32 * 1024);
const MAX_QUEUED_RECORDS: u32 = 200_000;
const PARTITION_QUEUED_RECORDS_RANGE: (u32, u32) = (1_000, 100_000);

/// Of one answer of a broker. The allocator gives pieces of more than 8 MiB back to the system at once, which then clears them anew for
/// every fetch.
const MAX_FETCH_BYTES: u32 = 4 * 1024 * 1024;

/// A topic to read.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaSourcePlan {
    pub cluster: KafkaCluster,
    pub topic: String,
    pub format: RecordFormat,
    pub offset_reset: OffsetReset,
    /// Make the topic and those of its dead letters where they are missing, the first with so many partitions.
    pub create_topics: Option<u32>,
    /// Where the progress of the dead letters is kept, unless a sink of the same cluster keeps it.
    pub progress_topic: String,
    /// The consumer group under which positions are shown to monitors of lag. They decide nothing.
    pub group: String,
    /// Where what is appended to the topic goes.
    pub partitioner: Partitioner,
    /// After this long dead letters are sent once more by themselves, other than those that are too late.
    pub retry_after: Option<Millis>,
}

/// How records are written.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordFormat {
    Json,
    /// In Confluent's wire format, with schemas of a registry.
    AvroRegistry(RegistryPlan),
    /// Bare, each written with the schema of a file.
    AvroFile(PathBuf),
}

/// A schema registry as a client reaches it.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryPlan {
    /// Asked in turn.
    pub urls: Vec<String>,
    /// User and password.
    pub user: Option<(String, String)>,
}

// The password is never shown.
impl std::fmt::Debug for RegistryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryPlan").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// Where reading begins at the first start of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetReset {
    Earliest,
    Latest,
    /// With the first record that the log took then or later.
    FromTime(EventTime),
}

/// A topic as a log. One consumer reads all of its partitions; who reads which is the program's decision, not a group's.
pub struct KafkaSource {
    shared: Arc<KafkaSourceShared>,
    watch_thread: Option<JoinHandle<()>>,
}

/// What the workers and the watch have in common.
struct KafkaSourceShared {
    name: Arc<str>,
    plan: KafkaSourcePlan,
    read_options: ReadOptions,
    schema_cache: OnceLock<SchemaCache>,
    consumer: Arc<BaseConsumer<SourceClientContext>>,
    partitions: AtomicU32,
    open_partitions: Mutex<BTreeMap<u32, Arc<PartitionOffsets>>>,
    is_stopped: AtomicBool,
    fetched_topic: FetchedTopic,
    /// What earlier starts have recorded of the topic.
    recorded_identity: Mutex<TopicIdentity>,
    /// Reads single records.
    prober: Mutex<Option<Arc<BaseConsumer<SourceClientContext>>>>,
}

impl KafkaSource {
    /// Looks at the topic, or makes it, and begins to watch it.
    ///
    /// # Errors
    ///
    /// Where it is missing, compacted or not to be read, or the cluster cannot be reached within half a minute.
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
        let fetched = fetched.ok_or_else(|| failed(&"the client does not give its log away"))?;
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

    /// Has it read with the answers of the registry that the plan names; before a partition is opened.
    pub fn set_schema_cache(&self, schemas: SchemaCache) {
        self.shared.schema_cache.get_or_init(|| schemas);
    }

    /// Why its schemas cannot be relied on, where the registry gives others now than it gave before.
    pub fn schema_contradiction(&self) -> Option<Arc<str>> {
        self.shared.schema_cache.get().and_then(SchemaCache::contradiction)
    }

    /// Has it compared with what earlier starts have recorded of the topic; before positions are checked.
    pub fn set_recorded_identity(&self, recorded: TopicIdentity) {
        *self.shared.recorded_identity.lock().unwrap_or_else(PoisonError::into_inner) = recorded;
    }

    /// The registry that names the schemas of its records.
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
            // It has said why, where it has panicked.
            let _ = watch.join();
        }
    }
}

impl KafkaSourceShared {
    /// The position of the first record that the log took then or later, or its end.
    fn position_at_time(&self, partition: u32, time: EventTime, end: u64) -> Result<u64, SourceError> {
        let failed = |error: rdkafka::error::KafkaError| self.transient_error(partition, &error.to_string());
        let mut request = TopicPartitionList::with_capacity(1);
        // Less would ask for the log's end.
        let time = Offset::Offset(time.millis().max(0));
        request
            .add_partition_offset(&self.plan.topic, self.kafka_partition(partition)?, time)
            .map_err(failed)?;
        let found = self.consumer.offsets_for_times(request, REQUEST_TIMEOUT).map_err(failed)?;
        let Some(element) = found.elements().into_iter().next() else { return Ok(end) };
        element.error().map_err(failed)?;
        match element.offset() {
            Offset::Offset(position) => Ok(position.unsigned_abs()),
            _ => Ok(end),
        }
    }

    /// A partition has one reader: two would share its queue.
    fn register_reader(
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

    fn unregister_reader(&self, partition: u32) {
        self.lock_partitions().remove(&partition);
    }

    fn open_partitions(&self) -> BTreeMap<u32, Arc<PartitionOffsets>> {
        self.lock_partitions().clone()
    }

    fn lock_partitions(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<PartitionOffsets>>> {
        self.open_partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for KafkaSourceShared {
    fn drop(&mut self) {
        // Where the cluster is away, dropping a consumer was seen to wait without end.
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let closing = self.consumer.close_queue().is_ok();
        while closing && !self.consumer.closed() && Instant::now() < deadline {
            let _ = self.consumer.poll(Duration::from_millis(50));
        }
        if !self.consumer.closed() {
            tracing::debug!(
                source = &*self.name,
                "the consumer is left behind, since the cluster does not answer"
            );
            std::mem::forget(self.consumer.clone());
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
        // Which topic is fetched is said in the client's log alone.
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
        // A full queue is looked at again after this long: its default of a second would starve a fast worker.
        .set("fetch.queue.backoff.ms", "5")
        .create_with_context(SourceClientContext::new(name.clone()))
}
