//! What is said of how far a topic is read: behind marks of transactions, and behind one that is open.

use std::thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use swelter::kafka::topics::describe;
use swelter::model::{Raw, Refusal, Upsert};
use swelter::sources::{Partition, Place, Source, Take};

use super::broker::{Access, shared};
use super::source::{plan, source, topic};
use super::topics::{NewRecord, Producer, Topics, unique};
use crate::process::wait_for;

/// The positions of what was read.
#[derive(Default)]
struct Positions(Vec<u64>);

impl Take for Positions {
    fn upsert(&mut self, place: Place, _: &Upsert<'_>) -> Result<(), Refusal> {
        self.0.push(place.position);
        Ok(())
    }

    fn refused(&mut self, place: Place, refusal: &Refusal, _: &Raw<'_>) {
        panic!("{refusal} at {}", place.position);
    }
}

/// The position that the group has committed, which monitors of lag compare with the end.
fn committed_position(access: &Access, topic: &str) -> i64 {
    let mut config = access.client();
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

/// Reads until a partition says so of its position, its end, and what waits behind that.
fn read_until(partition: &mut dyn Partition, read: &mut Positions, reached: (u64, u64, u64)) {
    let mut found = (0, 0, 0);
    wait_for(&format!("{reached:?}"), || {
        partition.poll(100, u64::MAX, read).unwrap();
        found = (partition.position().unwrap(), partition.end(), partition.withheld());
        (found == reached).then_some(())
    });
}

#[test]
fn lag_comes_to_nothing_behind_marks_of_transactions_and_what_is_open_is_said() {
    let Some(access) = shared() else { return };
    let topic = topic(&access, 1);
    let committing = Producer::transactional(&access, &unique("committing"));
    committing.begin();
    (0..3).for_each(|second| committing.send(&topic, &reading_at(second)));
    committing.commit();
    let source = source(&plan(&access, &topic));
    let mut partition = source.open(0, 0, thread::current()).unwrap();
    let mut read = Positions::default();
    // Three records, and a mark.
    read_until(&mut *partition, &mut read, (4, 4, 0));
    wait_for("the committed position", || (committed_position(&access, &topic) == 4).then_some(()));
    // One that is open holds up what others write.
    let open = Producer::transactional(&access, &unique("open"));
    open.begin();
    open.send(&topic, &reading_at(10));
    open.flush();
    let plain = Producer::to(&access);
    (11..13).for_each(|second| plain.send(&topic, &reading_at(second)));
    plain.flush();
    read_until(&mut *partition, &mut read, (4, 4, 3));
    assert_eq!(committed_position(&access, &topic), 4);
    open.abort();
    read_until(&mut *partition, &mut read, (8, 8, 0));
    wait_for("the committed position", || (committed_position(&access, &topic) == 8).then_some(()));
    assert_eq!(read.0, [0, 1, 2, 5, 6]);
    // A replay that is to end behind the mark comes to it, though no record follows.
    drop(partition);
    let (mut again, mut read) = (source.open(0, 4, thread::current()).unwrap(), Positions::default());
    wait_for("its end", || {
        again.poll(100, 8, &mut read).unwrap();
        (again.position().unwrap() >= 8).then_some(())
    });
    assert_eq!(read.0, [5, 6]);
}

/// What the start warns of; the words are tested beside them.
#[test]
fn retention_of_a_topic_is_read_from_its_settings() {
    let Some(access) = shared() else { return };
    let (topics, kept, lost) = (Topics::of(&access), unique("kept"), unique("lost"));
    topics.create(&kept, 1, &[("retention.ms", "-1"), ("retention.bytes", "-1")]);
    topics.create(&lost, 1, &[("retention.ms", "3600000"), ("retention.bytes", "1000")]);
    let cluster = plan(&access, &kept).cluster;
    let facts = describe(&cluster, &[&kept, &lost]).unwrap();
    let retention = |name: &str| facts[name].as_ref().unwrap().retention();
    assert_eq!(retention(&kept), None);
    let both = "retention.ms=3600000, 60 min and retention.bytes=1000 of a partition";
    assert_eq!(retention(&lost).as_deref(), Some(both));
}
