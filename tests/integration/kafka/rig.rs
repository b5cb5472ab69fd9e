//! The rig by itself: what the other tests of Kafka stand on.

use std::time::{Duration, Instant};

use super::broker::{Access, OwnBroker, shared};
use super::reading::{Record, committed, uncommitted};
use super::topics::{LOG_APPEND_TIME, NewRecord, Producer, Topics, unique};

fn values(records: &[Record]) -> Vec<&[u8]> {
    records.iter().map(|record| record.value.as_deref().unwrap_or(b"none")).collect()
}

#[test]
fn a_reader_sees_what_was_committed_byte_for_byte() {
    let Some(access) = shared() else { return };
    let topics = Topics::of(&access);
    let topic = unique("rig");
    topics.create(&topic, 2, &[LOG_APPEND_TIME]);
    assert_eq!(topics.config(&topic)["message.timestamp.type"], "LogAppendTime");
    let producer = Producer::transactional(&access, &topic);
    let headers = vec![("a".into(), "1,b=2\n".into()), ("b".into(), "\"".into())];
    let bytes = NewRecord { value: Some(vec![0, 0xFF, b'\n', b'%']), headers, ..NewRecord::new(1, "k", "") };
    let tombstone = NewRecord { value: None, ..NewRecord::new(0, "k\n0 0", "") };
    let empty = NewRecord { key: None, ..NewRecord::new(0, "", "") };
    for (value, commit) in [("first", true), ("aborted", false), ("last", true)] {
        producer.begin();
        producer.send(&topic, &NewRecord::new(0, "k", value));
        if value == "last" {
            [&bytes, &tombstone, &empty].into_iter().for_each(|record| producer.send(&topic, record));
        }
        if commit { producer.commit() } else { producer.abort() }
    }
    let read = committed(&access, &topic);
    let expected = [&b"first"[..], b"last", b"none", b"", &[0, 0xFF, b'\n', b'%']];
    assert_eq!(values(&read), expected);
    assert_eq!((&read[2].key, &read[3].key), (&tombstone.key, &None));
    let (headers, offset) = (&read[4].headers, read[4].offset);
    assert_eq!((&*headers["a"], &*headers["b"], read[4].partition, offset), ("1,b=2\n", "\"", 1, 0));
    assert_eq!(uncommitted(&access, &topic).len(), expected.len() + 1);
}

#[test]
fn records_can_be_deleted_and_partitions_added() {
    let Some(access) = shared() else { return };
    let topics = Topics::of(&access);
    let topic = unique("rig");
    assert_eq!(topics.partitions(&topic), 0);
    topics.create(&topic, 1, &[]);
    let producer = Producer::to(&access);
    (0..5).for_each(|n| producer.send(&topic, &NewRecord::new(0, "k", &n.to_string())));
    producer.flush();
    topics.delete_before(&topic, 0, 3);
    assert_eq!(values(&committed(&access, &topic)), [b"3", b"4"]);
    topics.add_partitions(&topic, 2);
}

#[test]
fn a_broker_can_be_killed_and_paused() {
    let Some(mut broker) = OwnBroker::start() else { return };
    let topic = unique("rig");
    Topics::of(&broker.access).create(&topic, 1, &[]);
    let producer = Producer::to(&broker.access);
    producer.send(&topic, &NewRecord::new(0, "k", "before"));
    producer.flush();
    broker.kill();
    producer.send(&topic, &NewRecord::new(0, "k", "while it was away"));
    broker.start_again();
    producer.flush();
    let began = Instant::now();
    producer.send(&topic, &NewRecord::new(0, "k", "before the pause"));
    broker.pause(Duration::from_secs(2));
    producer.send(&topic, &NewRecord::new(0, "k", "after it"));
    producer.flush();
    assert!(began.elapsed() >= Duration::from_secs(2));
    let expected = [&b"before"[..], b"while it was away", b"before the pause", b"after it"];
    assert_eq!(values(&committed(&broker.access, &topic)), expected);
}

#[test]
fn a_secured_broker_keeps_the_poor_out() {
    let Some(broker) = OwnBroker::secured() else { return };
    let topic = unique("rig");
    Topics::of(&broker.access).create(&topic, 1, &[]);
    let poor = Access { user: Some("poor"), ..broker.access.clone() };
    assert_eq!(Topics::of(&poor).partitions(&topic), 0);
}
