//! What reading a topic costs, beside librdkafka's bare loop over the same records:
//! `cargo test --release --test integration kafka::measure -- --ignored --nocapture`.

use std::io::Write as _;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use rustix::time::{ClockId, clock_gettime};
use swelter::model::{Raw, Refusal, Upsert};
use swelter::sources::{Place, Source, Take};

use super::broker::{Access, shared};
use super::source::{plan, source, topic};
use super::topics::{NewRecord, Producer};
use crate::process::DEADLINE;

const RECORDS: usize = 1_000_000;

/// Of this thread, ns.
fn thread_time() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[derive(Default)]
struct Counting {
    taken: usize,
    refused: usize,
}

impl Take for Counting {
    fn upsert(&mut self, _: Place, upsert: &Upsert<'_>) -> Result<(), Refusal> {
        self.taken += usize::from(std::hint::black_box(upsert).event.measurement().is_some());
        Ok(())
    }

    fn refused(&mut self, _: Place, _: &Refusal, _: &Raw<'_>) {
        self.refused += 1;
    }
}

fn through_a_partition(access: &Access, topic: &str) -> usize {
    let source = source(&plan(access, topic));
    let mut partition = source.open(0, 0, thread::current()).unwrap();
    let (mut counting, deadline) = (Counting::default(), Instant::now() + DEADLINE);
    while counting.taken + counting.refused < RECORDS {
        if partition.poll(1024, u64::MAX, &mut counting).unwrap().records == 0 {
            thread::park_timeout(std::time::Duration::from_millis(10));
            assert!(Instant::now() < deadline, "{} records", counting.taken);
        }
    }
    assert_eq!(counting.refused, 0);
    counting.taken
}

fn bare(access: &Access, topic: &str) -> usize {
    let mut config = access.client();
    config.set("group.id", topic).set("fetch.queue.backoff.ms", "5").set("isolation.level", "read_committed");
    let consumer: Arc<BaseConsumer> = Arc::new(config.create().unwrap());
    let queue = consumer.split_partition_queue(topic, 0).unwrap();
    let mut assigned = TopicPartitionList::new();
    assigned.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&assigned).unwrap();
    let mut bytes = 0;
    for _ in 0..RECORDS {
        bytes += queue.poll(DEADLINE).unwrap().unwrap().payload_len();
    }
    bytes
}

#[test]
#[ignore = "measures, and takes long"]
fn what_a_record_costs() {
    let Some(access) = shared() else { return };
    let topic = topic(&access, 1);
    let producer = Producer::to(&access);
    for number in 0..RECORDS {
        let city = format!("city {}", number % 15_000);
        let value = format!(
            r#"{{"city":"{city}","reading_at":"2025-06-01T12:00:00Z","temperature":{}.5,"humidity":50}}"#,
            number % 100
        );
        producer.send(&topic, &NewRecord::new(0, &city, &value));
    }
    producer.flush();
    type Run = fn(&Access, &str) -> usize;
    for _ in 0..3 {
        for (name, run) in [("bare poll", bare as Run), ("a partition", through_a_partition)] {
            let (clock, thread) = (Instant::now(), thread_time());
            assert!(run(&access, &topic) >= RECORDS);
            let wall = clock.elapsed().as_nanos() as usize / RECORDS;
            let cpu = (thread_time() - thread) as usize / RECORDS;
            writeln!(std::io::stderr(), "{name}: {cpu} ns of its thread a record, {wall} ns of the clock")
                .unwrap();
        }
    }
}
