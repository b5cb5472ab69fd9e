//! The broker, and topics on it.

use std::fs;
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;

pub const PARTITIONS: i32 = 12;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Ends with the bench, its data too.
pub struct Broker {
    pub address: String,
    own: Option<(Child, TempDir)>,
}

impl Broker {
    pub fn start() -> Broker {
        if let Ok(address) = std::env::var("SWELTER_KAFKA") {
            return Broker { address, own: None };
        }
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/kafka");
        let child = Command::new(script).arg("run").arg(folder.path()).stdin(Stdio::null()).spawn().unwrap();
        let (log, file) = (folder.path().join("log"), folder.path().join("address"));
        let mut broker = Broker { address: String::new(), own: Some((child, folder)) };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !fs::read_to_string(&log).is_ok_and(|said| said.contains("Kafka Server started")) {
            let (child, _) = broker.own.as_mut().unwrap();
            assert_eq!(child.try_wait().unwrap(), None, "the broker has ended: see scripts/kafka");
            assert!(Instant::now() < deadline, "the broker does not start");
            thread::sleep(Duration::from_millis(100));
        }
        broker.address = fs::read_to_string(&file).unwrap().trim().to_owned();
        broker
    }

    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address);
        config
    }

    /// A consumer of all partitions of a topic, from the beginning or the end.
    pub fn consumer(&self, topic: &str, from: Offset) -> BaseConsumer {
        self.consumer_of(topic, 0..PARTITIONS, from)
    }

    pub fn consumer_of(&self, topic: &str, partitions: Range<i32>, from: Offset) -> BaseConsumer {
        let mut config = self.client_config();
        config
            .set("group.id", "bench")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("fetch.queue.backoff.ms", "5");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut assignment = TopicPartitionList::new();
        for partition in partitions {
            assignment.add_partition_offset(topic, partition, from).unwrap();
        }
        consumer.assign(&assignment).unwrap();
        consumer
    }

    /// Offsets that are committed, over all partitions: records, and the marks of transactions.
    pub fn committed_offsets(&self, consumer: &BaseConsumer, topic: &str) -> u64 {
        let end = |partition| {
            consumer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT).map_or(0, |(_, high)| high)
        };
        (0..PARTITIONS).map(|partition| end(partition).unsigned_abs()).sum()
    }

    /// A topic that is removed when this is dropped, with those whose names are longer.
    pub fn create_topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) -> Topic<'_> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let topic = Topic { broker: self, name: format!("bench-{unique}-{name}") };
        let mut new = NewTopic::new(&topic.name, partitions, TopicReplication::Fixed(1));
        for (name, value) in config {
            new = new.set(name, value);
        }
        let made = block_on(self.admin().create_topics(&[new], &AdminOptions::new()));
        made.unwrap().into_iter().for_each(|result| drop(result.unwrap()));
        topic
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client_config().create().unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.own {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub struct Topic<'a> {
    broker: &'a Broker,
    pub name: String,
}

impl Drop for Topic<'_> {
    fn drop(&mut self) {
        let consumer: BaseConsumer = self.broker.client_config().create().unwrap();
        let Ok(metadata) = consumer.fetch_metadata(None, REQUEST_TIMEOUT) else { return };
        let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
        let own: Vec<String> = names.filter(|name| name.starts_with(&self.name)).collect();
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let _ = block_on(self.broker.admin().delete_topics(&own, &AdminOptions::new()));
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
