//! Faults of brokers and topics, and two processes with the same identity.

use std::time::{Duration, Instant};

use super::broker::{PrivateBroker, shared_broker};
use super::case::KafkaCase;
use super::topic_reader::read_committed;
use super::topics::{NewRecord, TestProducer, TopicAdmin};
use crate::support::{ServiceProcess, WAIT_TIMEOUT, get, post, wait_for};

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn broker_kill_loses_nothing() {
    let mut broker = PrivateBroker::start();
    let mut case = KafkaCase::new(&broker.access, 3, 2_000);
    case.produce_records(200);
    let swelter = case.start_swelter(2).wait_until_ready();
    for _ in 0..2 {
        case.send_records(200);
        broker.kill();
        case.send_records(100);
        broker.restart();
        case.produce_records(100);
    }
    case.wait_for_results();
    swelter.terminate();
    case.check_exactly_once();
}

/// Starts the program again, as a supervisor does, if it has ended with a reason, until the results
/// are complete.
fn restart_until_results(case: &KafkaCase, mut swelter: ServiceProcess) -> ServiceProcess {
    let mut starts = 0;
    // Requests that are in flight when a broker is lost are retried only after their timeout.
    let deadline = Instant::now() + WAIT_TIMEOUT * 2;
    while let Some(difference) = case.find_difference() {
        if let Some(status) = swelter.has_ended() {
            let log = swelter.log();
            let said = log.lines().last().unwrap_or_default();
            let names = [&case.setup.input, &case.setup.access.address];
            assert!(status.code() == Some(1) && names.iter().any(|name| said.contains(*name)), "{log}");
            assert!(!log.contains("panicked"), "{log}");
            swelter = case.start_swelter(2).wait_until_ready();
            starts += 1;
            assert!(starts <= 3, "{log}");
        }
        assert!(Instant::now() < deadline, "{difference}\n{}", fetch_metrics(&mut swelter));
        std::thread::sleep(Duration::from_millis(200));
    }
    swelter
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn broker_pause_beyond_transaction_timeout_loses_nothing() {
    // For longer than its session, too: meanwhile no partition has a leader.
    let broker = PrivateBroker::start();
    let mut case = KafkaCase::new(&broker.access, 4, 2_000);
    case.setup.rules = "[log]\nlevel = \"info,swelter=debug,librdkafka=debug\"\n".into();
    case.setup.sink = "shards = 2\ncommit_interval = \"200ms\"\ntransaction_timeout = \"2s\"\n".into();
    case.produce_records(200);
    let swelter = case.start_swelter(2).wait_until_ready();
    for _ in 0..3 {
        case.send_records(200);
        broker.pause(Duration::from_secs(4));
        case.produce_records(100);
    }
    restart_until_results(&case, swelter).terminate();
    case.check_exactly_once();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn process_pause_beyond_transaction_timeout_loses_nothing() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 8, 2_000);
    case.setup.sink = "shards = 2\ncommit_interval = \"200ms\"\ntransaction_timeout = \"2s\"\n".into();
    case.produce_records(200);
    let mut swelter = case.start_swelter(2).wait_until_ready();
    for _ in 0..10 {
        // Until a transaction was open when it was stopped.
        let ended = swelter.has_ended().is_some();
        if ended || case.aborted_records() > 0 {
            break;
        }
        for _ in 0..20 {
            case.produce_records(4);
        }
        swelter.pause(Duration::from_secs(4));
        case.produce_records(20);
    }
    restart_until_results(&case, swelter).terminate();
    case.check_exactly_once();
    assert!(case.aborted_records() > 0, "no transaction has timed out");
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn stop_does_not_wait_long_for_lost_broker() {
    let mut broker = PrivateBroker::start();
    let mut case = KafkaCase::new(&broker.access, 9, 1_000);
    case.setup.rules = "[log]\nlevel = \"info,swelter=debug,librdkafka=debug\"\n".into();
    case.produce_records(200);
    let mut swelter = case.start_swelter(2).wait_until_ready();
    case.produce_records(200);
    broker.kill();
    swelter.send_terminate();
    let asked = Instant::now();
    let status = wait_for("the end", || swelter.has_ended());
    // Either everything was written by then, or the log says that the rest follows.
    let log = swelter.log();
    assert!(status.code() == Some(0) || log.contains("the next start writes them"), "{status}: {log}");
    assert!(asked.elapsed() < Duration::from_secs(45), "it took {:?} to end", asked.elapsed());
    broker.restart();
    // A start that cannot fence the interrupted transaction ends and is retried: the broker aborts
    // it within a minute.
    let swelter = restart_until_listening(&case);
    case.check_exactly_once();
    swelter.terminate();
}

fn fetch_metrics(swelter: &mut ServiceProcess) -> String {
    get(swelter.wait_for_address(), "/metrics").map_or_else(|error| error.to_string(), |answer| answer.body)
}

/// Starts the program, as a supervisor does, until it listens.
fn restart_until_listening(case: &KafkaCase) -> ServiceProcess {
    for _ in 0..2 {
        let mut swelter = case.start_swelter(1);
        let deadline = Instant::now() + 2 * WAIT_TIMEOUT;
        while swelter.has_ended().is_none() && Instant::now() < deadline {
            if swelter.is_listening() {
                return swelter.wait_until_ready();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("it does not listen: {}", swelter.log());
    }
    case.start_swelter(1).wait_until_ready()
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn older_of_two_with_same_identity_is_fenced() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 5, 1_000);
    case.produce_records(200);
    let old = case.start_swelter(1).wait_until_ready();
    case.wait_for_results();
    let other = tempfile::tempdir().unwrap();
    let new = case.setup.service(other.path(), 2).spawn().wait_until_ready();
    case.produce_records(200);
    old.wait_until_taken_over();
    case.produce_records(200);
    case.wait_for_results();
    new.terminate();
    case.check_exactly_once();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn added_partition_is_read() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 6, 500);
    case.produce_records(200);
    let swelter = case.start_swelter(2).wait_until_ready();
    let topics = TopicAdmin::of(&access);
    topics.add_partitions(&case.setup.input, super::case::PARTITIONS as usize + 1);
    let now = jiff::Timestamp::now();
    let reading = format!("{{\"city\":\"new\",\"reading_at\":\"{now}\",\"temperature\":90,\"humidity\":50}}");
    let producer = TestProducer::to(&access);
    producer.send_record(&case.setup.input, &NewRecord::new(super::case::PARTITIONS as i32, "new", &reading));
    producer.flush();
    wait_for("the reading of the new partition", || {
        let records = read_committed(&access, &case.setup.current);
        records.iter().any(|record| record.key() == "new").then_some(())
    });
    swelter.terminate();
    // Also by another start.
    let swelter = case.start_swelter(1).wait_until_ready();
    swelter.terminate();
    let records = read_committed(&access, &case.setup.current);
    assert_eq!(records.iter().filter(|record| record.key() == "new").count(), 1);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn posted_readings_pass_through_topic() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 7, 1);
    case.setup.ingest = true;
    let mut swelter = case.start_swelter(2).wait_until_ready();
    let address = swelter.wait_for_address();
    let now = jiff::Timestamp::now();
    let record =
        format!("{{\"city\":\"posted\",\"reading_at\":\"{now}\",\"temperature\":90, \"humidity\":50}}");
    let answer = post(&address, "application/x-ndjson", &format!("{record}\nnot JSON\n")).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((&answer["accepted"], answer["refused"].as_array().unwrap().len()), (&1.into(), 1));
    let log = read_committed(&access, &case.setup.input);
    let log: Vec<_> = log.iter().map(|record| (record.key(), record.value.as_deref().unwrap())).collect();
    assert_eq!(log, [("posted", record.as_bytes())], "what was answered is in the topic");
    wait_for("the result", || {
        let records = read_committed(&access, &case.setup.results);
        records.first().and_then(|record| (record.json()?["city"] == "posted").then_some(()))
    });
    swelter.terminate();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn record_too_large_for_topic_loses_nothing() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 31, 1000);
    let topics = TopicAdmin::of(&access);
    // The headers of a dead letter alone are longer.
    topics.set_config(&case.setup.dead_letter_topic(), ("max.message.bytes", "200"));
    let swelter = case.start_swelter(2).wait_until_ready();
    case.produce_records(1000);
    let said = swelter.wait_for_failure();
    assert!(said.contains("max.message.bytes") && said.contains(&case.setup.dead_letter_topic()), "{said}");
    topics.set_config(&case.setup.dead_letter_topic(), ("max.message.bytes", "1048588"));
    let swelter = case.start_swelter(1).wait_until_ready();
    case.check_exactly_once();
    swelter.terminate();
}
