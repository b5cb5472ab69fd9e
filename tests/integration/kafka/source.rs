//! Topics as a source: workers get exactly the records of the topic, whatever the limits of their
//! polls.

use std::thread;
use std::time::Duration;

use swelter::internals::codec::DecodeSettings;
use swelter::internals::kafka::{KafkaCluster, dead_letter_headers, dead_letter_topics};
use swelter::internals::model::{
    EventTime, Fingerprint, LogPosition, RawRecord, ReadingEvent, Reason, Refusal, Upsert,
};
use swelter::internals::sources::kafka::{KafkaSource, KafkaSourcePlan, OffsetReset, RecordFormat};
use swelter::internals::sources::{NextPoll, Partition, RecordHandler, RecordPosition, Source, SourceError};

use super::broker::{BrokerAccess, PrivateBroker, shared_broker};
use super::topics::{COMPACT, LOG_APPEND_TIME, NewRecord, TestProducer, TopicAdmin, unique_name};
use crate::support::{Random, check_during, wait_for};

pub fn kafka_plan(access: &BrokerAccess, topic: &str) -> KafkaSourcePlan {
    let properties = access.properties().into_iter().filter(|(name, _)| *name != "bootstrap.servers");
    KafkaSourcePlan {
        cluster: KafkaCluster {
            brokers: access.address.clone(),
            properties: properties.map(|(name, value)| (name.to_string(), value)).collect(),
        },
        topic: topic.into(),
        format: RecordFormat::Json,
        offset_reset: OffsetReset::Earliest,
        create_topics: None,
        progress_topic: "progress".into(),
        group: format!("{topic}-group"),
        partitioner: Default::default(),
        retry_after: None,
    }
}

pub fn kafka_source(plan: &KafkaSourcePlan) -> KafkaSource {
    KafkaSource::open("readings", plan.clone(), DecodeSettings::default()).unwrap()
}

/// A topic with those of its dead letters.
pub fn create_source_topic(access: &BrokerAccess, partitions: i32) -> String {
    let (topics, name) = (TopicAdmin::of(access), unique_name("source"));
    topics.create(&name, partitions, &[LOG_APPEND_TIME]);
    dead_letter_topics(&name).iter().for_each(|letters| topics.create(letters, 1, &[]));
    name
}

/// A record as a worker gets it.
#[derive(Clone, Debug, PartialEq)]
enum ReadRecord {
    Reading { city: String, temperature: f64, retried: bool },
    Withdrawal { city: String },
    Refused { reason: Reason, key: Option<Vec<u8>>, value: Option<Vec<u8>>, attempt: Option<u32> },
}

#[derive(Default)]
struct CollectingHandler {
    got: Vec<(u64, ReadRecord)>,
    arrived: Vec<Option<EventTime>>,
}

impl RecordHandler for CollectingHandler {
    fn handle_upsert(&mut self, place: RecordPosition, upsert: &Upsert<'_>) -> Result<(), Refusal> {
        let city = upsert.city.to_string();
        let got = match upsert.event {
            ReadingEvent::Withdrawal => ReadRecord::Withdrawal { city },
            ReadingEvent::Reading(measured) => {
                ReadRecord::Reading { city, temperature: measured.temperature(), retried: false }
            }
            ReadingEvent::RetriedReading(measured) => {
                ReadRecord::Reading { city, temperature: measured.temperature(), retried: true }
            }
        };
        self.got.push((place.position, got));
        self.arrived.push(place.arrived);
        Ok(())
    }

    fn handle_refusal(&mut self, place: RecordPosition, refusal: &Refusal, raw: &RawRecord<'_>) {
        let (key, value) = (raw.key.map(Into::into), raw.value.map(Into::into));
        let attempt = raw.retry.map(|retried| retried.attempt);
        self.got.push((place.position, ReadRecord::Refused { reason: refusal.reason, key, value, attempt }));
        self.arrived.push(place.arrived);
    }
}

impl CollectingHandler {
    fn read_records(&self) -> Vec<ReadRecord> {
        self.got.iter().map(|(_, got)| got.clone()).collect()
    }

    fn next_position(&self) -> u64 {
        self.got.last().map_or(0, |(position, _)| position + 1)
    }

    /// Polls until so many records are there.
    fn poll_until(&mut self, partition: &mut dyn Partition, records: usize) {
        wait_for("that records come", || {
            partition.poll(100, u64::MAX, self).unwrap();
            (self.got.len() >= records).then_some(())
        });
    }
}

/// The position exists in both topics, and no other check runs.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn topic_recreated_while_read_yields_no_record() {
    let access = shared_broker();
    let topic = create_source_topic(&access, 1);
    let source = kafka_source(&kafka_plan(&access, &topic));
    let mut partition = source.open_partition(0, 0, thread::current()).unwrap();
    let mut worker = CollectingHandler::default();
    assert_eq!(partition.poll(10, u64::MAX, &mut worker).unwrap().records, 0);
    TopicAdmin::of(&access).delete(&topic);
    TopicAdmin::of(&access).create(&topic, 1, &[LOG_APPEND_TIME]);
    write_readings(&access, &topic, 20);
    let error = wait_for("that another topic is noticed", || partition.poll(10, u64::MAX, &mut worker).err());
    assert_eq!(worker.got, []);
    let said = error.to_string();
    assert!(matches!(error, SourceError::Fatal(_)) && said.contains("was deleted and recreated"), "{said}");
    // Nor afterwards.
    check_during(Duration::from_millis(100), || drop(partition.poll(10, u64::MAX, &mut worker)));
    assert_eq!(worker.got, []);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn record_before_a_position_is_compared_by_key_and_value() {
    let access = shared_broker();
    let topic = create_source_topic(&access, 1);
    write_readings(&access, &topic, 10);
    let opened = kafka_source(&kafka_plan(&access, &topic));
    let mut partition = opened.open_partition(0, 0, thread::current()).unwrap();
    assert_eq!(partition.fingerprint(), None);
    let mut worker = CollectingHandler::default();
    worker.poll_until(&mut *partition, 10);
    let before = partition.fingerprint();
    let own = before.unwrap();
    assert_eq!((own.position, own.leader_epoch), (9, Some(0)));
    assert_eq!(opened.check_position(0, LogPosition { position: 10, before }), Ok(()));
    for changed in [Fingerprint { position: 8, ..own }, Fingerprint { digest: own.digest ^ 1, ..own }] {
        let refused =
            opened.check_position(0, LogPosition { position: 10, before: Some(changed) }).unwrap_err();
        assert!(refused.to_string().contains("is not the one that was read"), "{refused}");
    }
    // What is gone cannot be compared.
    TopicAdmin::of(&access).delete_records_before(&topic, 0, 10);
    let at = LogPosition { position: 10, before: Some(Fingerprint { digest: 0, ..own }) };
    assert_eq!(opened.check_position(0, at), Ok(()));
    assert_eq!(opened.log_id().unwrap().unwrap().len(), 22);
}

fn write_readings(access: &BrokerAccess, topic: &str, readings: u32) {
    let producer = TestProducer::to(access);
    for second in 0..readings {
        let value = format!(
            r#"{{"city":"c","reading_at":"2026-01-01T00:00:{second:02}Z","temperature":80,"humidity":50}}"#
        );
        producer.send_record(topic, &NewRecord::new(0, "c", &value));
    }
    producer.flush();
}

const READING_TIME: &str = "2025-06-01T12:00:00Z";

/// A record of any kind, and what a worker must make of it.
fn random_record(random: &mut Random, partition: i32, number: usize) -> (NewRecord, ReadRecord) {
    let city = format!("city {}", random.below(20));
    let reading = format!(
        r#"{{"city":"{city}","reading_at":"{READING_TIME}","temperature":{},"humidity":50}}"#,
        number % 100
    );
    let withdrawal = format!(r#"{{"city":"{city}","reading_at":"{READING_TIME}","deleted":true}}"#);
    let key = format!(r#"{{"city":"{city}","reading_at":"{READING_TIME}"}}"#);
    let sent_again = || {
        vec![
            (dead_letter_headers::ORIGIN.to_string(), "readings/0/7".to_string()),
            (dead_letter_headers::ATTEMPT.to_string(), "2".to_string()),
        ]
    };
    let temperature = (number % 100) as f64;
    let record = |key: &str, value: &str| NewRecord::new(partition, key, value);
    let refused = |record: &NewRecord, reason, attempt| ReadRecord::Refused {
        reason,
        key: record.key.clone(),
        value: record.value.clone(),
        attempt,
    };
    match random.below(12) {
        0 => (record(&city, &withdrawal), ReadRecord::Withdrawal { city }),
        1 => (NewRecord { value: None, ..record(&key, "") }, ReadRecord::Withdrawal { city }),
        2 => {
            let record = NewRecord { value: None, ..record(&city, "") };
            let got = refused(&record, Reason::NotDecodable, None);
            (record, got)
        }
        3 => {
            let record = NewRecord { value: None, key: None, ..record("", "") };
            let got = refused(&record, Reason::NotDecodable, None);
            (record, got)
        }
        4 => {
            let record = NewRecord { value: Some(vec![0, 255, b'{']), ..record(&city, "") };
            let got = refused(&record, Reason::NotDecodable, None);
            (record, got)
        }
        5 => {
            let record = NewRecord { headers: sent_again(), ..record(&city, &reading) };
            (record, ReadRecord::Reading { city, temperature, retried: true })
        }
        6 => {
            let record = NewRecord { headers: sent_again(), ..record(&city, &withdrawal) };
            let got = refused(&record, Reason::BadOperation, Some(2));
            (record, got)
        }
        7 => {
            let record = record(&city, "");
            let got = refused(&record, Reason::NotDecodable, None);
            (record, got)
        }
        _ => (record(&city, &reading), ReadRecord::Reading { city, temperature, retried: false }),
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn random_logs_read_as_produced_from_any_position() {
    const PARTITIONS: usize = 3;
    let access = shared_broker();
    let topic = create_source_topic(&access, PARTITIONS as i32);
    let mut random = Random::new(7);
    let mut expected = vec![Vec::new(); PARTITIONS];
    let producer = TestProducer::transactional(&access, &topic);
    for transaction in 0..40 {
        let commit = transaction % 3 != 1;
        producer.begin();
        for number in 0..random.below(60) as usize {
            let partition = random.below(PARTITIONS as u64) as usize;
            let (record, got) = random_record(&mut random, partition as i32, number);
            producer.send_record(&topic, &record);
            if commit {
                expected[partition].push(got);
            }
        }
        if commit { producer.commit() } else { producer.abort() }
    }
    let source = kafka_source(&kafka_plan(&access, &topic));
    assert_eq!(source.partitions(), PARTITIONS as u32);
    for (number, expected) in expected.iter().enumerate() {
        let whole = read_in_any_steps(&source, number as u32, 0, expected.len(), &mut random);
        assert_eq!(whole.read_records(), *expected);
        assert!(whole.got.is_sorted_by(|(a, _), (b, _)| a < b));
        assert!(whole.arrived.iter().all(Option::is_some));
        for _ in 0..5 {
            let from = random.below(expected.len() as u64) as usize;
            let position = whole.got[from].0;
            let rest =
                read_in_any_steps(&source, number as u32, position, expected.len() - from, &mut random);
            assert_eq!(rest.got, whole.got[from..]);
        }
    }
}

/// Reads a partition to its end, with limits and ends of polls as they fall.
fn read_in_any_steps(
    source: &KafkaSource,
    number: u32,
    from: u64,
    records: usize,
    random: &mut Random,
) -> CollectingHandler {
    let mut partition = source.open_partition(number, from, thread::current()).unwrap();
    let mut worker = CollectingHandler::default();
    let mut upto = from;
    wait_for("the end of a log", || {
        let (limit, before) = (random.below(40) as usize, worker.got.len());
        let polled = partition.poll(limit, upto, &mut worker).unwrap();
        assert_eq!(worker.got.len() - before, polled.records);
        assert!(polled.records <= limit && (worker.got.is_empty() || worker.next_position() <= upto));
        if polled.records < limit {
            upto += random.below(30);
        }
        let is_at_end = partition.position() == Some(partition.end());
        (worker.got.len() >= records && is_at_end).then_some(())
    });
    for _ in 0..20 {
        assert_eq!(partition.poll(10, u64::MAX, &mut worker).unwrap().records, 0);
    }
    worker
}

fn reading(temperature: usize) -> NewRecord {
    let value =
        format!(r#"{{"city":"a","reading_at":"{READING_TIME}","temperature":{temperature},"humidity":50}}"#);
    NewRecord::new(0, "a", &value)
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn log_ending_in_aborted_records_is_read_to_end() {
    let access = shared_broker();
    let topic = create_source_topic(&access, 1);
    let producer = TestProducer::transactional(&access, &topic);
    producer.begin();
    producer.send_record(&topic, &reading(1));
    producer.commit();
    producer.begin();
    (0..10).for_each(|number| producer.send_record(&topic, &reading(number)));
    producer.abort();
    let source = kafka_source(&kafka_plan(&access, &topic));
    let mut partition = source.open_partition(0, 0, thread::current()).unwrap();
    assert_eq!(partition.end(), 13);
    let mut worker = CollectingHandler::default();
    wait_for("the end of the log", || {
        partition.poll(100, u64::MAX, &mut worker).unwrap();
        (partition.position() == Some(13)).then_some(())
    });
    assert_eq!((partition.end(), worker.got.len()), (13, 1));
    // It continues from there, and a waiting thread is woken.
    producer.begin();
    producer.send_record(&topic, &reading(2));
    producer.commit();
    wait_for("that the worker is woken", || {
        let polled = partition.poll(100, u64::MAX, &mut worker).unwrap();
        if polled.next == NextPoll::OnUnpark && worker.got.len() < 2 {
            thread::park_timeout(Duration::from_secs(5));
        }
        (worker.got.len() == 2).then_some(())
    });
    assert_eq!(worker.got[1].0, 13);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn position_outside_retained_log_is_refused() {
    let access = shared_broker();
    let topic = create_source_topic(&access, 1);
    let producer = TestProducer::to(&access);
    (0..10).for_each(|number| producer.send_record(&topic, &reading(number)));
    producer.flush();
    let source = kafka_source(&kafka_plan(&access, &topic));
    TopicAdmin::of(&access).delete_records_before(&topic, 0, 4);
    let open = |position| source.open_partition(0, position, thread::current());
    for (position, said) in [(3, "its records before 4 are gone"), (11, "it ends at 10")] {
        let error = open(position).err().expect("it is not opened");
        assert!(!matches!(error, SourceError::Transient(_)));
        let error = error.to_string();
        assert!(error.contains(said) && error.contains(&topic), "{error}");
    }
    assert_eq!(source.start_position(0, true).unwrap(), 4);
    let mut worker = CollectingHandler::default();
    worker.poll_until(&mut *open(4).unwrap(), 6);
    assert_eq!(worker.got[0].0, 4);
    assert!(open(10).is_ok());
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn partition_has_one_reader_at_a_time() {
    let access = shared_broker();
    let topic = create_source_topic(&access, 1);
    let source = kafka_source(&kafka_plan(&access, &topic));
    let first = source.open_partition(0, 0, thread::current()).unwrap();
    assert!(matches!(source.open_partition(0, 0, thread::current()), Err(SourceError::Fatal(_))));
    drop(first);
    assert!(source.open_partition(0, 0, thread::current()).is_ok());
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn offset_reset_accepts_earliest_latest_or_time() {
    let access = shared_broker();
    let topic = create_source_topic(&access, 2);
    let producer = TestProducer::to(&access);
    producer.send_record(&topic, &reading(1));
    producer.flush();
    let mut worker = CollectingHandler::default();
    let plan = kafka_plan(&access, &topic);
    worker.poll_until(&mut *kafka_source(&plan).open_partition(0, 0, thread::current()).unwrap(), 1);
    let first = worker.arrived[0].unwrap();
    let after = EventTime::from_millis(first.millis() + 1).unwrap();
    let starts = [
        (OffsetReset::Earliest, 0, 0),
        (OffsetReset::Latest, 1, 0),
        (OffsetReset::FromTime(first), 0, 0),
        (OffsetReset::FromTime(after), 1, 0),
        (OffsetReset::FromTime(EventTime::from_millis(-1).unwrap()), 0, 0),
    ];
    for (start, first, empty) in starts {
        let source = kafka_source(&KafkaSourcePlan { offset_reset: start, ..plan.clone() });
        assert_eq!(
            (source.start_position(0, true), source.start_position(1, true)),
            (Ok(first), Ok(empty)),
            "{start:?}"
        );
        assert_eq!(source.start_position(0, false), Ok(0), "{start:?}");
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn new_partitions_are_found() {
    let access = shared_broker();
    let topic = create_source_topic(&access, 1);
    let source = kafka_source(&kafka_plan(&access, &topic));
    let mut worker = CollectingHandler::default();
    let mut old = source.open_partition(0, 0, thread::current()).unwrap();
    TopicAdmin::of(&access).add_partitions(&topic, 3);
    wait_for("the new partitions", || (source.partitions() == 3).then_some(()));
    let producer = TestProducer::to(&access);
    producer.send_record(&topic, &NewRecord { partition: 2, ..reading(1) });
    producer.send_record(&topic, &reading(2));
    producer.flush();
    let start = source.start_position(2, false).unwrap();
    let mut new = source.open_partition(2, start, thread::current()).unwrap();
    worker.poll_until(&mut *new, 1);
    worker.poll_until(&mut *old, 2);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn topics_are_checked_and_created() {
    let access = shared_broker();
    let topics = TopicAdmin::of(&access);
    let plan = kafka_plan(&access, &unique_name("source"));
    let open =
        |plan: &KafkaSourcePlan| KafkaSource::open("readings", plan.clone(), DecodeSettings::default());
    let refused = |plan: &KafkaSourcePlan| match open(plan) {
        Err(SourceError::Fatal(error)) => error,
        other => panic!("{:?}", other.err()),
    };
    let [first, second] = dead_letter_topics(&plan.topic);
    let missing = format!("{}, {first}, {second}", plan.topic);
    assert!(refused(&plan).contains(&missing), "{}", refused(&plan));
    assert_eq!(topics.partitions(&plan.topic), 0);
    let source = open(&KafkaSourcePlan { create_topics: Some(4), ..plan.clone() }).unwrap();
    assert_eq!(source.partitions(), 4);
    assert_eq!(topics.config(&plan.topic)["message.timestamp.type"], "LogAppendTime");
    for topic in [&*plan.topic, &first, &second] {
        let config = topics.config(topic);
        assert_eq!((&*config["cleanup.policy"], &*config["retention.ms"]), ("delete", "-1"), "{topic}");
    }
    assert!(open(&plan).is_ok());

    let compacted = KafkaSourcePlan { topic: unique_name("source"), create_topics: Some(1), ..plan };
    topics.create(&compacted.topic, 1, &[COMPACT]);
    assert!(refused(&compacted).contains("is compacted"), "{}", refused(&compacted));
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn missing_read_permission_is_reported() {
    let broker = PrivateBroker::start_secured();
    let topic = create_source_topic(&broker.access, 1);
    let refused = |access: &BrokerAccess| match KafkaSource::open(
        "readings",
        kafka_plan(access, &topic),
        DecodeSettings::default(),
    ) {
        Err(SourceError::Fatal(error)) => error,
        other => panic!("{:?}", other.err()),
    };
    let poor = refused(&BrokerAccess { user: Some("poor"), ..broker.access.clone() });
    assert!(poor.contains("does not allow it") && poor.contains(&topic), "{poor}");
    let stranger = refused(&BrokerAccess { user: Some("stranger"), ..broker.access.clone() });
    assert!(stranger.contains("does not allow it"), "{stranger}");
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn broker_kill_delays_reading_but_loses_nothing() {
    let mut broker = PrivateBroker::start();
    let topic = create_source_topic(&broker.access, 1);
    let producer = TestProducer::to(&broker.access);
    producer.send_record(&topic, &reading(1));
    producer.flush();
    let source = kafka_source(&kafka_plan(&broker.access, &topic));
    let mut partition = source.open_partition(0, 0, thread::current()).unwrap();
    let mut worker = CollectingHandler::default();
    worker.poll_until(&mut *partition, 1);
    broker.kill();
    producer.send_record(&topic, &reading(2));
    check_during(Duration::from_millis(500), || match partition.poll(10, u64::MAX, &mut worker) {
        Ok(_) | Err(SourceError::Transient(_)) => {}
        Err(error) => panic!("{error}"),
    });
    broker.restart();
    producer.flush();
    wait_for("what came meanwhile", || match partition.poll(10, u64::MAX, &mut worker) {
        Ok(_) | Err(SourceError::Transient(_)) => (worker.got.len() == 2).then_some(()),
        Err(error) => panic!("{error}"),
    });
    broker.kill();
    drop((partition, source));
}
