//! The helpers that the other tests with Kafka rely on.

use std::time::{Duration, Instant};

use super::broker::{BrokerAccess, PrivateBroker, shared_broker};
use super::topic_reader::{ConsumedRecord, read_committed, read_uncommitted};
use super::topics::{LOG_APPEND_TIME, NewRecord, TestProducer, TopicAdmin, unique_name};

fn values(records: &[ConsumedRecord]) -> Vec<&[u8]> {
    records.iter().map(|record| record.value.as_deref().unwrap_or(b"none")).collect()
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn read_committed_returns_records_byte_for_byte() {
    let access = shared_broker();
    let topics = TopicAdmin::of(&access);
    let topic = unique_name("rig");
    topics.create(&topic, 2, &[LOG_APPEND_TIME]);
    assert_eq!(topics.config(&topic)["message.timestamp.type"], "LogAppendTime");
    let producer = TestProducer::transactional(&access, &topic);
    let headers = vec![("a".into(), "1,b=2\n".into()), ("b".into(), "\"".into())];
    let bytes = NewRecord { value: Some(vec![0, 0xFF, b'\n', b'%']), headers, ..NewRecord::new(1, "k", "") };
    let tombstone = NewRecord { value: None, ..NewRecord::new(0, "k\n0 0", "") };
    let empty = NewRecord { key: None, ..NewRecord::new(0, "", "") };
    for (value, commit) in [("first", true), ("aborted", false), ("last", true)] {
        producer.begin();
        producer.send_record(&topic, &NewRecord::new(0, "k", value));
        if value == "last" {
            [&bytes, &tombstone, &empty].into_iter().for_each(|record| producer.send_record(&topic, record));
        }
        if commit { producer.commit() } else { producer.abort() }
    }
    let read = read_committed(&access, &topic);
    let expected = [&b"first"[..], b"last", b"none", b"", &[0, 0xFF, b'\n', b'%']];
    assert_eq!(values(&read), expected);
    assert_eq!((&read[2].key, &read[3].key), (&tombstone.key, &None));
    let (headers, offset) = (&read[4].headers, read[4].offset);
    assert_eq!((&*headers["a"], &*headers["b"], read[4].partition, offset), ("1,b=2\n", "\"", 1, 0));
    assert_eq!(read_uncommitted(&access, &topic).len(), expected.len() + 1);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn topics_delete_records_and_add_partitions() {
    let access = shared_broker();
    let topics = TopicAdmin::of(&access);
    let topic = unique_name("rig");
    assert_eq!(topics.partitions(&topic), 0);
    topics.create(&topic, 1, &[]);
    let producer = TestProducer::to(&access);
    (0..5).for_each(|n| producer.send_record(&topic, &NewRecord::new(0, "k", &n.to_string())));
    producer.flush();
    topics.delete_records_before(&topic, 0, 3);
    assert_eq!(values(&read_committed(&access, &topic)), [b"3", b"4"]);
    topics.add_partitions(&topic, 2);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn own_broker_survives_kill_and_pause() {
    let mut broker = PrivateBroker::start();
    let topic = unique_name("rig");
    TopicAdmin::of(&broker.access).create(&topic, 1, &[]);
    let producer = TestProducer::to(&broker.access);
    producer.send_record(&topic, &NewRecord::new(0, "k", "before"));
    producer.flush();
    broker.kill();
    producer.send_record(&topic, &NewRecord::new(0, "k", "while it was away"));
    broker.restart();
    producer.flush();
    let began = Instant::now();
    producer.send_record(&topic, &NewRecord::new(0, "k", "before the pause"));
    broker.pause(Duration::from_secs(2));
    producer.send_record(&topic, &NewRecord::new(0, "k", "after it"));
    producer.flush();
    assert!(began.elapsed() >= Duration::from_secs(2));
    let expected = [&b"before"[..], b"while it was away", b"before the pause", b"after it"];
    assert_eq!(values(&read_committed(&broker.access, &topic)), expected);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn secured_broker_refuses_users_without_rights() {
    let broker = PrivateBroker::start_secured();
    let topic = unique_name("rig");
    TopicAdmin::of(&broker.access).create(&topic, 1, &[]);
    let poor = BrokerAccess { user: Some("poor"), ..broker.access.clone() };
    assert_eq!(TopicAdmin::of(&poor).partitions(&topic), 0);
}
