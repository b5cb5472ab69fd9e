//! The program killed at any moment: what is in the topics in the end is as if it had never been.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use super::broker::shared;
use super::case::Case;
use super::reading::committed;
use super::swelter::Swelter;
use crate::process::wait_for;
use crate::recovery::Random;

/// Records before the first start, and of each round.
const BEFORE: usize = 300;
const ROUND: usize = 120;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

/// Kills the program so often, with records coming all the time; at the end it is left to finish.
fn kill(case: &mut Case, mut random: Random, kills: u64) {
    case.produce(BEFORE);
    for _ in 0..kills {
        if random.next(4) == 0 {
            case.data = tempfile::tempdir().unwrap();
        }
        let workers = 1 + random.next(3);
        let dies = (random.next(3) == 0).then(|| random.next(20));
        let mut swelter = Swelter::start_to_die(&case.setup, case.data.path(), workers, dies);
        // A third of them while they start.
        let (alive, records) = match random.next(3) {
            0 => (random.next(600), ROUND / 4),
            _ if dies.is_some() => (1500, ROUND),
            _ => {
                swelter.address();
                (random.next(1200), ROUND)
            }
        };
        let until = Instant::now() + Duration::from_millis(alive);
        for _ in 0..records / 4 {
            case.send(4);
            thread::sleep(until.saturating_duration_since(Instant::now()) / 8);
        }
        thread::sleep(until.saturating_duration_since(Instant::now()));
        swelter.kill();
    }
}

/// Runs a case; none where there is no broker.
fn run(seed: u64, kills: u64, sink: &str) -> Option<Case> {
    let access = shared()?;
    eprintln!("seed {seed}");
    let mut case = Case::new(&access, seed, BEFORE + ROUND * (kills + 1) as usize);
    case.setup.sink += sink;
    kill(&mut case, Random(!seed), kills);
    case.produce(ROUND);
    let swelter = case.start(2).ready();
    case.wait_for_results();
    swelter.terminate();
    Some(case)
}

/// `SWELTER_KILLS` kills more often, `SWELTER_KILLS_SEED` is another log.
#[test]
fn every_change_is_there_once_whatever_is_killed() {
    let kills = number("SWELTER_KILLS", 30);
    let Some(case) = run(number("SWELTER_KILLS_SEED", 1), kills, "") else { return };
    case.check_exactly_once();
    assert!(case.aborted() > 0, "no process died within a transaction");
    if kills >= 30 {
        assert!(apart(&case) > 0, "no process left its shards at different positions");
        let reasons: BTreeSet<_> = case.log.letters.iter().flatten().map(|letter| &letter.reason).collect();
        assert_eq!(reasons.len(), 9, "{reasons:?}");
    }
}

#[test]
fn at_least_once_ends_with_the_same_rows() {
    let Some(case) = run(2, 5, "delivery = \"at_least_once\"\n") else { return };
    case.check_at_least_once();
}

/// How many starts have found the shards at different positions.
fn apart(case: &Case) -> usize {
    let (mut shards, mut apart) = (BTreeMap::new(), 0);
    for record in committed(&case.setup.access, &case.setup.progress) {
        match record.key() {
            "claim" => {
                apart +=
                    usize::from(shards.values().collect::<Vec<_>>().windows(2).any(|two| two[0] != two[1]))
            }
            key if key.starts_with("shard/") => {
                shards.insert(key.to_string(), record.json().unwrap()["positions"].to_string());
            }
            _ => {}
        }
    }
    apart
}

/// A shard that is behind gets newer epochs while it catches up, and is killed again before it has.
#[test]
fn a_replay_that_is_killed_in_its_middle_is_taken_up() {
    let Some(access) = shared() else { return };
    let mut case = Case::new(&access, 41, 3_000);
    case.setup.rules = "[limits]\npoll_records = 64\n".into();
    case.produce(3_000);
    for commit_interval in ["2s", "1ms"] {
        case.setup.sink = format!("shards = 2\ncommit_interval = \"{commit_interval}\"\n");
        let mut swelter = Swelter::start_to_die(&case.setup, case.data.path(), 2, Some(1));
        wait_for("its death", || swelter.has_ended());
    }
    let swelter = case.start(1).ready();
    case.check_exactly_once();
    swelter.terminate();
}
