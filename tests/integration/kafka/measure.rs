//! What reading a topic costs, beside librdkafka's bare loop over the same records:
//! `cargo test --release --test integration kafka::measure -- --ignored --nocapture`.

use std::io::Write as _;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use rustix::time::{ClockId, clock_gettime};
use swelter::internals::model::{RawRecord, Refusal, Upsert};
use swelter::internals::sources::{RecordHandler, RecordPosition, Source};

use super::broker::{BrokerAccess, shared_broker};
use super::source::{create_source_topic, kafka_plan, kafka_source};
use super::topics::{NewRecord, TestProducer};
use crate::support::WAIT_TIMEOUT;

const RECORDS: usize = 1_000_000;

/// Of this thread, ns.
fn thread_cpu_ns() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[derive(Default)]
struct CountingHandler {
    taken: usize,
    refused: usize,
}

impl RecordHandler for CountingHandler {
    fn handle_upsert(&mut self, _: RecordPosition, upsert: &Upsert<'_>) -> Result<(), Refusal> {
        self.taken += usize::from(std::hint::black_box(upsert).event.measurement().is_some());
        Ok(())
    }

    fn handle_refusal(&mut self, _: RecordPosition, _: &Refusal, _: &RawRecord<'_>) {
        self.refused += 1;
    }
}

fn read_through_partition(access: &BrokerAccess, topic: &str) -> usize {
    let source = kafka_source(&kafka_plan(access, topic));
    let mut partition = source.open_partition(0, 0, thread::current()).unwrap();
    let (mut counting, deadline) = (CountingHandler::default(), Instant::now() + WAIT_TIMEOUT);
    while counting.taken + counting.refused < RECORDS {
        if partition.poll(1024, u64::MAX, &mut counting).unwrap().records == 0 {
            thread::park_timeout(std::time::Duration::from_millis(10));
            assert!(Instant::now() < deadline, "{} records", counting.taken);
        }
    }
    assert_eq!(counting.refused, 0);
    counting.taken
}

fn read_with_bare_client(access: &BrokerAccess, topic: &str) -> usize {
    let mut config = access.client_config();
    config.set("group.id", topic).set("fetch.queue.backoff.ms", "5").set("isolation.level", "read_committed");
    let consumer: Arc<BaseConsumer> = Arc::new(config.create().unwrap());
    let queue = consumer.split_partition_queue(topic, 0).unwrap();
    let mut assigned = TopicPartitionList::new();
    assigned.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&assigned).unwrap();
    let mut bytes = 0;
    for _ in 0..RECORDS {
        bytes += queue.poll(WAIT_TIMEOUT).unwrap().unwrap().payload_len();
    }
    bytes
}

#[test]
#[ignore = "measures: run it alone, in release"]
fn measure_cost_per_record() {
    let access = shared_broker();
    let topic = create_source_topic(&access, 1);
    let producer = TestProducer::to(&access);
    for number in 0..RECORDS {
        let city = format!("city {}", number % 15_000);
        let value = format!(
            r#"{{"city":"{city}","reading_at":"2025-06-01T12:00:00Z","temperature":{}.5,"humidity":50}}"#,
            number % 100
        );
        producer.send_record(&topic, &NewRecord::new(0, &city, &value));
    }
    producer.flush();
    type Run = fn(&BrokerAccess, &str) -> usize;
    for _ in 0..3 {
        for (name, run) in
            [("bare poll", read_with_bare_client as Run), ("a partition", read_through_partition)]
        {
            let (clock, thread) = (Instant::now(), thread_cpu_ns());
            assert!(run(&access, &topic) >= RECORDS);
            let wall = clock.elapsed().as_nanos() as usize / RECORDS;
            let cpu = (thread_cpu_ns() - thread) as usize / RECORDS;
            writeln!(std::io::stderr(), "{name}: {cpu} ns of its thread a record, {wall} ns of the clock")
                .unwrap();
        }
    }
}
