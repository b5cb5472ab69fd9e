//! The reported lag of a topic: behind transaction markers, and behind an open transaction.

use std::thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use swelter::internals::kafka::topic_admin::describe_topics;
use swelter::internals::model::{RawRecord, Refusal, Upsert};
use swelter::internals::sources::{Partition, RecordHandler, RecordPosition, Source};

use super::broker::{BrokerAccess, shared_broker};
use super::source::{create_source_topic, kafka_plan, kafka_source};
use super::topics::{NewRecord, TestProducer, TopicAdmin, unique_name};
use crate::support::wait_for;

/// The positions of the records that were read.
#[derive(Default)]
struct RecordedPositions(Vec<u64>);

impl RecordHandler for RecordedPositions {
    fn handle_upsert(&mut self, place: RecordPosition, _: &Upsert<'_>) -> Result<(), Refusal> {
        self.0.push(place.position);
        Ok(())
    }

    fn handle_refusal(&mut self, place: RecordPosition, refusal: &Refusal, _: &RawRecord<'_>) {
        panic!("{refusal} at {}", place.position);
    }
}

/// The position that the group has committed, which monitors of lag compare with the end.
fn committed_position(access: &BrokerAccess, topic: &str) -> i64 {
    let mut config = access.client_config();
    let consumer: BaseConsumer = config.set("group.id", format!("{topic}-group")).create().unwrap();
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, 0);
    let found = consumer.committed_offsets(asked, Duration::from_secs(10)).unwrap();
    match found.elements()[0].offset() {
        Offset::Offset(position) => position,
        _ => -1,
    }
}

fn reading_at(second: u32) -> NewRecord {
    let value = format!(
        r#"{{"city":"c","reading_at":"2026-01-01T00:00:{second:02}Z","temperature":80,"humidity":50}}"#
    );
    NewRecord::new(0, "c", &value)
}

/// Reads until a partition reports this position, end and number of waiting records.
fn read_until_reported(
    partition: &mut dyn Partition,
    read: &mut RecordedPositions,
    reached: (u64, u64, u64),
) {
    let mut found = (0, 0, 0);
    wait_for(&format!("{reached:?}"), || {
        partition.poll(100, u64::MAX, read).unwrap();
        found = (partition.position().unwrap(), partition.end(), partition.withheld());
        (found == reached).then_some(())
    });
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn lag_reaches_zero_past_transaction_markers_and_reports_open_ones() {
    let access = shared_broker();
    let topic = create_source_topic(&access, 1);
    let committing = TestProducer::transactional(&access, &unique_name("committing"));
    committing.begin();
    (0..3).for_each(|second| committing.send_record(&topic, &reading_at(second)));
    committing.commit();
    let source = kafka_source(&kafka_plan(&access, &topic));
    let mut partition = source.open_partition(0, 0, thread::current()).unwrap();
    let mut read = RecordedPositions::default();
    // Three records, and a transaction marker.
    read_until_reported(&mut *partition, &mut read, (4, 4, 0));
    wait_for("the committed position", || (committed_position(&access, &topic) == 4).then_some(()));
    // An open transaction holds back the records of other producers.
    let open = TestProducer::transactional(&access, &unique_name("open"));
    open.begin();
    open.send_record(&topic, &reading_at(10));
    open.flush();
    let plain = TestProducer::to(&access);
    (11..13).for_each(|second| plain.send_record(&topic, &reading_at(second)));
    plain.flush();
    read_until_reported(&mut *partition, &mut read, (4, 4, 3));
    assert_eq!(committed_position(&access, &topic), 4);
    open.abort();
    read_until_reported(&mut *partition, &mut read, (8, 8, 0));
    wait_for("the committed position", || (committed_position(&access, &topic) == 8).then_some(()));
    assert_eq!(read.0, [0, 1, 2, 5, 6]);
    // A replay that ends behind the marker reaches it, though no record follows.
    drop(partition);
    let (mut again, mut read) =
        (source.open_partition(0, 4, thread::current()).unwrap(), RecordedPositions::default());
    wait_for("its end", || {
        again.poll(100, 8, &mut read).unwrap();
        (again.position().unwrap() >= 8).then_some(())
    });
    assert_eq!(read.0, [5, 6]);
}

/// The retention that a start warns of; the text of the warning is tested beside it.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn topic_retention_is_read_from_topic_config() {
    let access = shared_broker();
    let (topics, kept, lost) = (TopicAdmin::of(&access), unique_name("kept"), unique_name("lost"));
    topics.create(&kept, 1, &[("retention.ms", "-1"), ("retention.bytes", "-1")]);
    topics.create(&lost, 1, &[("retention.ms", "3600000"), ("retention.bytes", "1000")]);
    let cluster = kafka_plan(&access, &kept).cluster;
    let facts = describe_topics(&cluster, &[&kept, &lost]).unwrap();
    let retention = |name: &str| facts[name].as_ref().unwrap().retention_text();
    assert_eq!(retention(&kept), None);
    let both = "retention.ms=3600000, 60 min and retention.bytes=1000 of a partition";
    assert_eq!(retention(&lost).as_deref(), Some(both));
}
