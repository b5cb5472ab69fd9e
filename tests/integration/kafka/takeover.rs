//! A generation that catches up beside another one, and goes on in its place: every change once, whoever writes it.

use std::thread;
use std::time::{Duration, Instant};

use super::broker::{OwnBroker, shared};
use super::case::{Case, PARTITIONS};
use super::reading::committed;
use super::swelter::{Swelter, is_ready};
use super::topics::Topics;
use crate::process::wait_for;

/// How long neither of two may be ready: while one fences the other.
const GAP: Duration = Duration::from_secs(10);

/// Starts the next generation.
fn next(case: &Case, workers: u64, arguments: &[&str]) -> Swelter {
    Swelter::start_with(&case.setup, case.data.path(), workers, None, arguments)
}

/// Produces until it holds.
fn produce_until(case: &mut Case, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} was waited for too long");
        case.produce(2);
        thread::sleep(Duration::from_millis(10));
    }
}

/// Looks for so long whether it stands by, and the other one serves.
fn stands_by(primary: &mut Swelter, standby: &mut Swelter, time: Duration) {
    let (serving, following) = (primary.address(), standby.address());
    let until = Instant::now() + time;
    while Instant::now() < until {
        assert!(!is_ready(&following) && standby.has_ended().is_none(), "{}", standby.log());
        assert!(is_ready(&serving) && primary.has_ended().is_none(), "{}", primary.log());
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_planned_takeover_costs_nothing() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 51, 6_000);
    case.setup.rules = "[checkpoints]\nevery = \"300ms\"\nurl = \"FOLDER\"\n".into();
    let folder = tempfile::tempdir().unwrap();
    case.setup.rules = case.setup.rules.replace("FOLDER", &folder.path().display().to_string());
    case.produce(500);
    let mut running = case.start(2).ready();
    for (workers, arguments) in
        [(1, &["--takeover"][..]), (2, &["--takeover", "--processes", "2"]), (1, &["--takeover"])]
    {
        case.produce(100);
        let mut successor = next(&case, workers, arguments);
        let (old, address) = (running.address(), successor.address());
        let (mut beside, mut neither) = (false, None);
        produce_until(&mut case, "the takeover", || {
            if is_ready(&address) {
                return true;
            }
            // While it is not, the other one is.
            match is_ready(&old) {
                true => (beside, neither) = (true, None),
                false => {
                    let since: Instant = *neither.get_or_insert_with(Instant::now);
                    assert!(since.elapsed() < GAP, "{}", successor.log());
                }
            }
            false
        });
        assert!(beside, "the old one has not served while the new one caught up");
        let log = successor.log();
        eprintln!("{}", log.lines().find(|line| line.contains("taken over")).unwrap_or_default());
        running.ends_taken_over();
        running = successor;
        case.produce(50);
    }
    case.check_exactly_once();
    running.terminate();
}

#[test]
fn a_standby_goes_on_when_the_primary_is_killed() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 52, 6_000);
    case.setup.rules = "[cluster]\nstandby_after = \"3s\"\n".into();
    case.produce(500);
    let mut primary = case.start(2).ready();
    for round in 0..3 {
        let mut standby = next(&case, 1 + round % 2, &["--standby"]);
        let address = standby.address();
        // It stands by as long as the other one lives.
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
        case.produce(50);
    }
    case.check_exactly_once();
    primary.terminate();
}

/// One that stands by is not ahead of the one that it follows, whatever that has read.
#[test]
fn a_standby_waits_for_what_is_durable() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 53, 6_000);
    case.setup.sink = "shards = 2\ncommit_interval = \"1s\"\n".into();
    case.setup.rules = "[cluster]\nstandby_after = \"3s\"\n".into();
    case.produce(300);
    // Dies with a transaction that is flushed and not committed.
    let mut primary = Swelter::start_to_die(&case.setup, case.data.path(), 1, Some(20)).ready();
    let mut standby = next(&case, 2, &["--standby"]);
    let address = standby.address();
    produce_until(&mut case, "the primary's death", || primary.has_ended().is_some());
    primary.kill();
    produce_until(&mut case, "the takeover", || is_ready(&address));
    case.check_exactly_once();
    assert!(case.aborted() > 0, "the primary has not died within a transaction");
    standby.terminate();
}

#[test]
fn a_standby_beside_an_idle_primary_stands_by() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 54, 1_000);
    case.setup.rules = "[cluster]\nstandby_after = \"3s\"\n".into();
    case.produce(100);
    let mut primary = case.start(1).ready();
    let mut standby = next(&case, 1, &["--standby"]);
    stands_by(&mut primary, &mut standby, Duration::from_secs(12));
    let signs = committed(&access, &case.setup.progress);
    let signs = signs.iter().filter(|record| record.key() == "marker").count();
    assert!(signs >= 8, "{signs} signs of life");
    // A pause of its own is no silence of the other one.
    standby.pause(Duration::from_secs(5));
    stands_by(&mut primary, &mut standby, Duration::from_secs(4));
    case.produce(100);
    case.check_exactly_once();
    standby.kill();
    primary.terminate();
}

#[test]
fn an_outage_of_the_broker_is_no_silence() {
    let Some(mut broker) = OwnBroker::start() else { return };
    let mut case = Case::new(&broker.access, 55, 1_000);
    case.setup.rules = "[cluster]\nstandby_after = \"3s\"\n".into();
    case.produce(100);
    let mut primary = case.start(1).ready();
    let mut standby = next(&case, 1, &["--standby"]);
    stands_by(&mut primary, &mut standby, Duration::from_secs(2));
    broker.pause(Duration::from_secs(6));
    stands_by(&mut primary, &mut standby, Duration::from_secs(5));
    broker.kill();
    thread::sleep(Duration::from_secs(5));
    broker.start_again();
    stands_by(&mut primary, &mut standby, Duration::from_secs(12));
    case.produce(100);
    case.check_exactly_once();
    standby.kill();
    primary.terminate();
}

/// It has numbered the partitions at its start; whoever supervises it starts it again.
#[test]
fn a_partition_that_comes_ends_a_standby_and_nobody_else() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 56, 1_000);
    case.produce(100);
    let mut primary = case.start(1).ready();
    let mut standby = next(&case, 1, &["--standby"]);
    standby.address();
    Topics::of(&access).add_partitions(&case.setup.input, PARTITIONS as usize + 1);
    let status = wait_for("that the standby ends", || standby.has_ended());
    assert_eq!(status.code(), Some(1), "{}", standby.log());
    assert!(standby.log().contains(&format!("partition {PARTITIONS}")), "{}", standby.log());
    // Started again, it follows.
    let mut standby = next(&case, 1, &["--standby"]);
    stands_by(&mut primary, &mut standby, Duration::from_secs(3));
    let mut successor = next(&case, 1, &["--takeover"]);
    let address = successor.address();
    produce_until(&mut case, "the takeover", || is_ready(&address));
    primary.ends_taken_over();
    // It has followed the one before, so it is started again as well.
    let status = wait_for("that the standby ends", || standby.has_ended());
    assert_eq!(status.code(), Some(1), "{}", standby.log());
    case.check_exactly_once();
    successor.terminate();
}
