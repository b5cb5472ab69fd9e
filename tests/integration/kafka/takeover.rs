//! A generation that catches up beside another one, and goes on in its place: every change once, whoever writes it.

use std::thread;
use std::time::{Duration, Instant};

use super::broker::shared;
use super::case::Case;
use super::reading::committed;
use super::swelter::Swelter;
use crate::process::{get, wait_for};

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

fn is_ready(address: &str) -> bool {
    get(address, "/readyz").is_ok_and(|answer| answer.status == 200)
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
        let address = successor.address();
        produce_until(&mut case, "the takeover", || {
            let ready = is_ready(&address);
            // While it is not, the other one is.
            assert!(ready || running.has_ended().is_none() || successor.has_ended().is_none());
            ready
        });
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
    case.setup.rules = "[cluster]\nstandby_after = \"2s\"\n".into();
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
    let mut case = Case::new(&access, 53, 3_000);
    case.setup.sink = "shards = 2\ncommit_interval = \"1s\"\n".into();
    case.setup.rules = "[cluster]\nstandby_after = \"2s\"\n".into();
    case.produce(300);
    let mut primary = case.start(1).ready();
    wait_for("the first results", || {
        (!committed(&case.setup.access, &case.setup.results).is_empty()).then_some(())
    });
    let mut standby = next(&case, 2, &["--standby"]);
    let address = standby.address();
    for _ in 0..20 {
        case.produce(20);
        thread::sleep(Duration::from_millis(40));
    }
    assert!(primary.has_ended().is_none());
    // In the middle of a transaction, as it commits once a second.
    primary.kill();
    produce_until(&mut case, "the takeover", || is_ready(&address));
    case.check_exactly_once();
    standby.terminate();
}
