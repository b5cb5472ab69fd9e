//! What happens to a broker, to a topic, or to a program that has a rival.

use std::time::{Duration, Instant};

use super::broker::{OwnBroker, shared};
use super::case::Case;
use super::reading::committed;
use super::swelter::Swelter;
use super::topics::{NewRecord, Producer, Topics};
use crate::process::{DEADLINE, get, post, wait_for};

#[test]
fn a_broker_that_is_killed_costs_nothing() {
    let Some(mut broker) = OwnBroker::start() else { return };
    let mut case = Case::new(&broker.access, 3, 2_000);
    case.produce(200);
    let swelter = case.start(2).ready();
    for _ in 0..2 {
        case.send(200);
        broker.kill();
        case.send(100);
        broker.start_again();
        case.produce(100);
    }
    case.wait_for_results();
    swelter.terminate();
    case.check_exactly_once();
}

/// As whoever runs the program: starts it again where it has ended, which it may as long as it says why, until the results are there.
fn supervise(case: &Case, mut swelter: Swelter) -> Swelter {
    let mut starts = 0;
    // What is stuck when a cluster goes away may be tried again only once it has timed out.
    let deadline = Instant::now() + DEADLINE * 2;
    while let Some(difference) = case.difference() {
        if let Some(status) = swelter.has_ended() {
            let log = swelter.log();
            let said = log.lines().last().unwrap_or_default();
            let names = [&case.setup.input, &case.setup.access.address];
            assert!(status.code() == Some(1) && names.iter().any(|name| said.contains(*name)), "{log}");
            assert!(!log.contains("panicked"), "{log}");
            swelter = case.start(2).ready();
            starts += 1;
            assert!(starts <= 3, "{log}");
        }
        assert!(Instant::now() < deadline, "{difference}\n{}", metrics(&mut swelter));
        std::thread::sleep(Duration::from_millis(200));
    }
    swelter
}

#[test]
fn a_broker_that_pauses_for_longer_than_a_transaction_costs_nothing() {
    // For longer than its session, too: meanwhile no partition has a leader.
    let Some(broker) = OwnBroker::start() else { return };
    let mut case = Case::new(&broker.access, 4, 2_000);
    case.setup.rules = "[log]\nlevel = \"info,swelter=debug,librdkafka=debug\"\n".into();
    case.setup.sink = "shards = 2\ncommit_interval = \"200ms\"\ntransaction_timeout = \"2s\"\n".into();
    case.produce(200);
    let swelter = case.start(2).ready();
    for _ in 0..3 {
        case.send(200);
        broker.pause(Duration::from_secs(4));
        case.produce(100);
    }
    supervise(&case, swelter).terminate();
    case.check_exactly_once();
}

#[test]
fn a_program_that_pauses_for_longer_than_its_transaction_costs_nothing() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 8, 2_000);
    case.setup.sink = "shards = 2\ncommit_interval = \"200ms\"\ntransaction_timeout = \"2s\"\n".into();
    case.produce(200);
    let mut swelter = case.start(2).ready();
    for _ in 0..10 {
        // Until a transaction was open when it was stopped.
        let ended = swelter.has_ended().is_some();
        if ended || case.aborted() > 0 {
            break;
        }
        for _ in 0..20 {
            case.produce(4);
        }
        swelter.pause(Duration::from_secs(4));
        case.produce(20);
    }
    supervise(&case, swelter).terminate();
    case.check_exactly_once();
    assert!(case.aborted() > 0, "no transaction has timed out");
}

#[test]
fn a_stop_does_not_wait_long_for_a_broker_that_is_away() {
    let Some(mut broker) = OwnBroker::start() else { return };
    let mut case = Case::new(&broker.access, 9, 1_000);
    case.setup.rules = "[log]\nlevel = \"info,swelter=debug,librdkafka=debug\"\n".into();
    case.produce(200);
    let mut swelter = case.start(2).ready();
    case.produce(200);
    broker.kill();
    swelter.ask_to_stop();
    let asked = Instant::now();
    let status = wait_for("the end", || swelter.has_ended());
    // All may have been written by then; what was not is said.
    let log = swelter.log();
    assert!(
        status.code() == Some(0) || log.contains("the next start goes on where it ends"),
        "{status}: {log}"
    );
    assert!(asked.elapsed() < Duration::from_secs(45), "it took {:?} to end", asked.elapsed());
    broker.start_again();
    // A start that cannot fence the transaction which was cut off ends, and is made again: the broker ends it in a minute.
    let swelter = started_again(&case);
    case.check_exactly_once();
    swelter.terminate();
}

fn metrics(swelter: &mut Swelter) -> String {
    get(&swelter.address(), "/metrics").map_or_else(|error| error.to_string(), |answer| answer.body)
}

/// As whoever runs the program: starts it until it listens.
fn started_again(case: &Case) -> Swelter {
    for _ in 0..2 {
        let mut swelter = case.start(1);
        let deadline = Instant::now() + 2 * DEADLINE;
        while swelter.has_ended().is_none() && Instant::now() < deadline {
            if swelter.listens() {
                return swelter.ready();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("it does not listen: {}", swelter.log());
    }
    case.start(1).ready()
}

#[test]
fn of_two_with_one_identity_the_older_ends() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 5, 1_000);
    case.produce(200);
    let old = case.start(1).ready();
    case.wait_for_results();
    let other = tempfile::tempdir().unwrap();
    let new = Swelter::start(&case.setup, other.path(), 2).ready();
    case.produce(200);
    old.ends_taken_over();
    case.produce(200);
    case.wait_for_results();
    new.terminate();
    case.check_exactly_once();
}

#[test]
fn a_partition_that_is_added_is_read() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 6, 500);
    case.produce(200);
    let swelter = case.start(2).ready();
    let topics = Topics::of(&access);
    topics.add_partitions(&case.setup.input, super::case::PARTITIONS as usize + 1);
    let now = jiff::Timestamp::now();
    let reading = format!("{{\"city\":\"new\",\"reading_at\":\"{now}\",\"temperature\":90,\"humidity\":50}}");
    let producer = Producer::to(&access);
    producer.send(&case.setup.input, &NewRecord::new(super::case::PARTITIONS as i32, "new", &reading));
    producer.flush();
    wait_for("the reading of the new partition", || {
        let records = committed(&access, &case.setup.current);
        records.iter().any(|record| record.key() == "new").then_some(())
    });
    swelter.terminate();
    // Also by another start.
    let swelter = case.start(1).ready();
    swelter.terminate();
    let records = committed(&access, &case.setup.current);
    assert_eq!(records.iter().filter(|record| record.key() == "new").count(), 1);
}

#[test]
fn what_is_posted_goes_by_the_topic() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 7, 1);
    case.setup.ingest = true;
    let mut swelter = case.start(2).ready();
    let address = swelter.address();
    let now = jiff::Timestamp::now();
    let record =
        format!("{{\"city\":\"posted\",\"reading_at\":\"{now}\",\"temperature\":90, \"humidity\":50}}");
    let answer = post(&address, "application/x-ndjson", &format!("{record}\nnot JSON\n")).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((&answer["accepted"], answer["refused"].as_array().unwrap().len()), (&1.into(), 1));
    let log = committed(&access, &case.setup.input);
    let log: Vec<_> = log.iter().map(|record| (record.key(), record.value.as_deref().unwrap())).collect();
    assert_eq!(log, [("posted", record.as_bytes())], "what was answered is in the topic");
    wait_for("the result", || {
        let records = committed(&access, &case.setup.results);
        records.first().and_then(|record| (record.json()?["city"] == "posted").then_some(()))
    });
    swelter.terminate();
}

#[test]
fn a_record_that_is_too_large_for_its_topic_loses_nothing() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 31, 1000);
    let topics = Topics::of(&access);
    // The headers of a dead letter alone are longer.
    topics.set(&case.setup.letters(), ("max.message.bytes", "200"));
    let swelter = case.start(2).ready();
    case.produce(1000);
    let said = swelter.fails();
    assert!(said.contains("max.message.bytes") && said.contains(&case.setup.letters()), "{said}");
    topics.set(&case.setup.letters(), ("max.message.bytes", "1048588"));
    let swelter = case.start(1).ready();
    case.check_exactly_once();
    swelter.terminate();
}
