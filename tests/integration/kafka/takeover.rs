//! A generation that catches up beside another one and takes over: every change is written once.

use std::thread;
use std::time::{Duration, Instant};

use super::broker::{PrivateBroker, shared_broker};
use super::case::{KafkaCase, PARTITIONS};
use super::topic_reader::read_committed;
use super::topics::TopicAdmin;
use crate::support::{ServiceProcess, check_during, is_ready, wait_for};

/// Starts the next generation.
fn start_next_generation(case: &KafkaCase, workers: u64, arguments: &[&str]) -> ServiceProcess {
    case.setup.service(case.data.path(), workers).args(arguments).spawn()
}

/// Produces records until a condition holds.
fn produce_until(case: &mut KafkaCase, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} was waited for too long");
        case.produce_records(2);
        thread::sleep(Duration::from_millis(10));
    }
}

/// Checks for so long that the standby follows and the primary serves.
fn check_stands_by(primary: &mut ServiceProcess, standby: &mut ServiceProcess, time: Duration) {
    let (serving, following) = (primary.wait_for_address(), standby.wait_for_address());
    check_during(time, || {
        assert!(!is_ready(&following) && standby.has_ended().is_none(), "{}", standby.log());
        assert!(is_ready(&serving) && primary.has_ended().is_none(), "{}", primary.log());
    });
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn planned_takeover_loses_nothing() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 51, 6_000);
    case.setup.rules = "[checkpoints]\nevery = \"300ms\"\nurl = \"FOLDER\"\n".into();
    let folder = tempfile::tempdir().unwrap();
    case.setup.rules = case.setup.rules.replace("FOLDER", &folder.path().display().to_string());
    case.produce_records(500);
    let mut running = case.start_swelter(2).wait_until_ready();
    for (workers, arguments) in
        [(1, &["--takeover"][..]), (2, &["--takeover", "--processes", "2"]), (1, &["--takeover"])]
    {
        case.produce_records(100);
        let mut successor = start_next_generation(&case, workers, arguments);
        let (old, address) = (running.wait_for_address(), successor.wait_for_address());
        let mut beside = false;
        produce_until(&mut case, "the takeover", || {
            if is_ready(&address) {
                return true;
            }
            beside |= is_ready(&old);
            false
        });
        assert!(beside, "the old one has not served while the new one caught up");
        let log = successor.log();
        eprintln!("{}", log.lines().find(|line| line.contains("taken over")).unwrap_or_default());
        running.wait_until_taken_over();
        running = successor;
        case.produce_records(50);
    }
    case.check_exactly_once();
    running.terminate();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn standby_takes_over_after_primary_is_killed() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 52, 6_000);
    case.setup.rules = "[cluster]\nstandby_after = \"3s\"\n".into();
    case.produce_records(500);
    let mut primary = case.start_swelter(2).wait_until_ready();
    for round in 0..3 {
        let mut standby = start_next_generation(&case, 1 + round % 2, &["--standby"]);
        let address = standby.wait_for_address();
        // It stands by while the primary lives.
        let until = Instant::now() + Duration::from_secs(3);
        produce_until(&mut case, "the standby", || {
            assert!(!is_ready(&address), "{}", standby.log());
            Instant::now() > until
        });
        primary.kill();
        let killed = Instant::now();
        produce_until(&mut case, "the standby's takeover", || is_ready(&address));
        eprintln!("killed to serving: {:?}", killed.elapsed());
        primary = standby;
        case.produce_records(50);
    }
    case.check_exactly_once();
    primary.terminate();
}

/// A standby is never ahead of the durable positions of its primary.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn standby_reads_only_durable_positions_of_primary() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 53, 6_000);
    case.setup.sink = "shards = 2\ncommit_interval = \"1s\"\n".into();
    case.setup.rules = "[cluster]\nstandby_after = \"3s\"\n".into();
    case.produce_records(300);
    // Dies with a transaction that is flushed and not committed.
    let mut primary =
        case.setup.service(case.data.path(), 1).die_before_commit(20).spawn().wait_until_ready();
    let mut standby = start_next_generation(&case, 2, &["--standby"]);
    let address = standby.wait_for_address();
    produce_until(&mut case, "the primary's death", || primary.has_ended().is_some());
    primary.kill();
    produce_until(&mut case, "the takeover", || is_ready(&address));
    case.check_exactly_once();
    assert!(case.aborted_records() > 0, "the primary has not died within a transaction");
    standby.terminate();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn standby_beside_idle_primary_does_not_take_over() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 54, 1_000);
    case.setup.rules = "[cluster]\nstandby_after = \"3s\"\n".into();
    case.produce_records(100);
    let mut primary = case.start_swelter(1).wait_until_ready();
    let mut standby = start_next_generation(&case, 1, &["--standby"]);
    check_stands_by(&mut primary, &mut standby, Duration::from_secs(12));
    let signs = read_committed(&access, &case.setup.progress);
    let signs = signs.iter().filter(|record| record.key() == "marker").count();
    assert!(signs >= 8, "{signs} signs of life");
    // A pause of the standby itself does not count as silence of the primary.
    standby.pause(Duration::from_secs(5));
    check_stands_by(&mut primary, &mut standby, Duration::from_secs(4));
    case.produce_records(100);
    case.check_exactly_once();
    standby.kill();
    primary.terminate();
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn broker_outage_does_not_trigger_takeover() {
    let mut broker = PrivateBroker::start();
    let mut case = KafkaCase::new(&broker.access, 55, 1_000);
    case.setup.rules = "[cluster]\nstandby_after = \"3s\"\n".into();
    case.produce_records(100);
    let mut primary = case.start_swelter(1).wait_until_ready();
    let mut standby = start_next_generation(&case, 1, &["--standby"]);
    check_stands_by(&mut primary, &mut standby, Duration::from_secs(2));
    broker.pause(Duration::from_secs(6));
    check_stands_by(&mut primary, &mut standby, Duration::from_secs(5));
    broker.kill();
    check_during(Duration::from_secs(5), || {
        assert!(standby.has_ended().is_none() && primary.has_ended().is_none(), "{}", standby.log());
    });
    broker.restart();
    check_stands_by(&mut primary, &mut standby, Duration::from_secs(12));
    case.produce_records(100);
    case.check_exactly_once();
    standby.kill();
    primary.terminate();
}

/// A standby numbers the partitions at its start; a supervisor starts it again.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn added_partition_ends_only_standby() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 56, 1_000);
    case.produce_records(100);
    let mut primary = case.start_swelter(1).wait_until_ready();
    let mut standby = start_next_generation(&case, 1, &["--standby"]);
    standby.wait_for_address();
    TopicAdmin::of(&access).add_partitions(&case.setup.input, PARTITIONS as usize + 1);
    let status = wait_for("that the standby ends", || standby.has_ended());
    assert_eq!(status.code(), Some(1), "{}", standby.log());
    assert!(standby.log().contains(&format!("partition {PARTITIONS}")), "{}", standby.log());
    // Started again, it follows.
    let mut standby = start_next_generation(&case, 1, &["--standby"]);
    check_stands_by(&mut primary, &mut standby, Duration::from_secs(3));
    let mut successor = start_next_generation(&case, 1, &["--takeover"]);
    let address = successor.wait_for_address();
    produce_until(&mut case, "the takeover", || is_ready(&address));
    primary.wait_until_taken_over();
    // It has followed the previous primary, so it ends and is started again as well.
    let status = wait_for("that the standby ends", || standby.has_ended());
    assert_eq!(status.code(), Some(1), "{}", standby.log());
    case.check_exactly_once();
    successor.terminate();
}
