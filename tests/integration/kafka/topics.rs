//! Topics: created, described and written by librdkafka.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use swelter::internals::kafka::KafkaCluster;
use swelter::internals::kafka::broker_reminder::BrokerReminder;

use super::broker::BrokerAccess;
use crate::support::{WAIT_TIMEOUT, wait_for};

/// A name that no other test has, in this run or another on the same broker.
pub fn unique_name(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = jiff::Timestamp::now().as_millisecond();
    format!("{name}-{now}-{}-{number}", std::process::id())
}

pub const COMPACT: (&str, &str) = ("cleanup.policy", "compact");
pub const LOG_APPEND_TIME: (&str, &str) = ("message.timestamp.type", "LogAppendTime");

pub struct TopicAdmin(AdminClient<DefaultClientContext>);

impl TopicAdmin {
    pub fn of(access: &BrokerAccess) -> TopicAdmin {
        TopicAdmin(access.client_config().create().unwrap())
    }

    pub fn create(&self, name: &str, partitions: i32, config: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        // A broker that answered too late may have created it.
        wait_for("that a topic is made", || {
            match block_on(self.0.create_topics([&topic], &admin_options())).unwrap().remove(0) {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => Some(()),
                Err((_, RDKafkaErrorCode::RequestTimedOut)) => None,
                Err(error) => panic!("{error:?}"),
            }
        });
        wait_for("that a topic is known", || (self.partitions(name) == partitions as usize).then_some(()));
    }

    /// Deletes a topic, and waits until the broker does not know it any more.
    pub fn delete(&self, name: &str) {
        block_on(self.0.delete_topics(&[name], &admin_options())).unwrap().remove(0).unwrap();
        wait_for("that a topic is gone", || (self.partitions(name) == 0).then_some(()));
    }

    /// 0 where there is no such topic.
    pub fn partitions(&self, name: &str) -> usize {
        let metadata = self.0.inner().fetch_metadata(Some(name), Duration::from_secs(10));
        metadata.map_or(0, |metadata| metadata.topics()[0].partitions().len())
    }

    pub fn add_partitions(&self, name: &str, to: usize) {
        let partitions = NewPartitions::new(name, to);
        block_on(self.0.create_partitions([&partitions], &admin_options())).unwrap().remove(0).unwrap();
        wait_for("the new partitions", || (self.partitions(name) == to).then_some(()));
    }

    pub fn config(&self, name: &str) -> BTreeMap<String, String> {
        let topic = ResourceSpecifier::Topic(name);
        let described =
            block_on(self.0.describe_configs([&topic], &admin_options())).unwrap().remove(0).unwrap();
        described.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect()
    }

    pub fn set_config(&self, name: &str, (key, value): (&str, &str)) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(name)).set(key, value);
        block_on(self.0.alter_configs([&change], &admin_options())).unwrap().remove(0).unwrap();
        wait_for("the new setting", || (self.config(name)[key] == value).then_some(()));
    }

    /// Deletes the records before an offset.
    pub fn delete_records_before(&self, name: &str, partition: i32, offset: i64) {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(name, partition, Offset::Offset(offset)).unwrap();
        let deleted = block_on(self.0.delete_records(&offsets, &admin_options())).unwrap();
        assert!(deleted.elements()[0].error().is_ok(), "{deleted:?}");
    }
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(WAIT_TIMEOUT)).operation_timeout(Some(WAIT_TIMEOUT))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// A record to produce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecord {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    /// None: a tombstone.
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, String)>,
}

impl NewRecord {
    pub fn new(partition: i32, key: &str, value: &str) -> NewRecord {
        let (key, value) = (Some(key.as_bytes().to_vec()), Some(value.as_bytes().to_vec()));
        NewRecord { partition, key, value, headers: Vec::new() }
    }
}

/// Produces each record once and in order, over outages of the broker.
pub struct TestProducer(ThreadedProducer<DeliveryErrors>, KafkaCluster);

/// Why records could not be delivered.
#[derive(Default)]
struct DeliveryErrors(Mutex<Vec<String>>);

impl ClientContext for DeliveryErrors {}

impl ProducerContext for DeliveryErrors {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result {
            self.0.lock().push(format!("{error} ({} {})", message.topic(), message.partition()));
        }
    }
}

impl TestProducer {
    pub fn to(access: &BrokerAccess) -> TestProducer {
        TestProducer::with(access, &[])
    }

    pub fn transactional(access: &BrokerAccess, id: &str) -> TestProducer {
        let producer = TestProducer::with(access, &[("transactional.id", id)]);
        producer.0.init_transactions(WAIT_TIMEOUT).unwrap();
        producer
    }

    fn with(access: &BrokerAccess, properties: &[(&str, &str)]) -> TestProducer {
        let mut config = access.client_config();
        config.set("enable.idempotence", "true").set("linger.ms", "1");
        // A request that a broker loses while it is paused is sent again well before the deadline.
        config.set("socket.timeout.ms", "10000");
        // And one that has found no leader looks again.
        config.set("topic.metadata.refresh.interval.ms", "5000");
        for (name, value) in properties {
            config.set(*name, *value);
        }
        let cluster = KafkaCluster { brokers: access.address.clone(), properties: BTreeMap::new() };
        TestProducer(config.create_with_context(DeliveryErrors::default()).unwrap(), cluster)
    }

    pub fn begin(&self) {
        self.0.begin_transaction().unwrap();
    }

    pub fn commit(&self) {
        self.0.commit_transaction(WAIT_TIMEOUT).unwrap();
    }

    pub fn abort(&self) {
        self.flush();
        self.0.abort_transaction(WAIT_TIMEOUT).unwrap();
    }

    /// Queues it.
    pub fn send_record(&self, topic: &str, record: &NewRecord) {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &record.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        wait_for("room in the queue", || {
            let mut out: BaseRecord<'_, Vec<u8>, Vec<u8>> =
                BaseRecord::to(topic).partition(record.partition).headers(headers.clone());
            out.key = record.key.as_ref();
            out.payload = record.value.as_ref();
            match self.0.send(out) {
                Ok(()) => Some(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => None,
                Err((error, _)) => panic!("{error}"),
            }
        });
    }

    /// Waits until all that was sent is in the log.
    pub fn flush(&self) {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        let mut silence = BrokerReminder::for_cluster(&self.1);
        while let Err(error) = self.0.flush(Duration::from_secs(1)) {
            assert!(Instant::now() < deadline, "{error}");
            silence.remind_if_silent(self.0.client());
        }
        let failed = self.0.context().0.lock();
        assert!(failed.is_empty(), "{} records are not in the log: {}", failed.len(), failed[0]);
    }
}
