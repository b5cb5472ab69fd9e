//! The program is killed at random moments of a seed: the topics are the same as without kills.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use super::broker::shared_broker;
use super::case::KafkaCase;
use super::topic_reader::read_committed;
use crate::support::{Random, wait_for};

/// Records before the first start, and of each round.
const RECORDS_BEFORE_KILLS: usize = 300;
const RECORDS_PER_ROUND: usize = 120;

pub fn env_number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

/// Kills the program so often while records arrive.
fn kill_repeatedly(case: &mut KafkaCase, mut random: Random, kills: u64) {
    case.produce_records(RECORDS_BEFORE_KILLS);
    for _ in 0..kills {
        if random.below(4) == 0 {
            case.data = tempfile::tempdir().unwrap();
        }
        let workers = 1 + random.below(3);
        let dies = (random.below(3) == 0).then(|| random.below(20));
        let mut service = case.setup.service(case.data.path(), workers);
        if let Some(transactions) = dies {
            service = service.die_before_commit(transactions);
        }
        let mut swelter = service.spawn();
        // A third of them while they start.
        let (alive, records) = match random.below(3) {
            0 => (random.below(600), RECORDS_PER_ROUND / 4),
            _ if dies.is_some() => (1500, RECORDS_PER_ROUND),
            _ => {
                swelter.wait_for_address();
                (random.below(1200), RECORDS_PER_ROUND)
            }
        };
        let until = Instant::now() + Duration::from_millis(alive);
        for _ in 0..records / 4 {
            case.send_records(4);
            thread::sleep(until.saturating_duration_since(Instant::now()) / 8);
        }
        thread::sleep(until.saturating_duration_since(Instant::now()));
        swelter.kill();
    }
}

pub fn run_case(seed: u64, kills: u64, sink: &str) -> KafkaCase {
    let access = shared_broker();
    eprintln!("seed {seed}");
    let mut case =
        KafkaCase::new(&access, seed, RECORDS_BEFORE_KILLS + RECORDS_PER_ROUND * (kills + 1) as usize);
    case.setup.sink += sink;
    kill_repeatedly(&mut case, Random::new(!seed), kills);
    case.produce_records(RECORDS_PER_ROUND);
    let swelter = case.start_swelter(2).wait_until_ready();
    case.wait_for_results();
    swelter.terminate();
    case
}

/// `SWELTER_KILLS` kills more often, `SWELTER_KILLS_SEED` is another log.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn exactly_once_survives_kills() {
    let kills = env_number("SWELTER_KILLS", 30);
    let case = run_case(env_number("SWELTER_KILLS_SEED", 1), kills, "");
    case.check_exactly_once();
    assert!(case.aborted_records() > 0, "no process died within a transaction");
    if kills >= 30 {
        assert!(starts_with_diverged_shards(&case) > 0, "no process left its shards at different positions");
        let reasons: BTreeSet<_> = case.log.letters.iter().flatten().map(|letter| &letter.reason).collect();
        assert_eq!(reasons.len(), 9, "{reasons:?}");
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn at_least_once_ends_with_the_same_rows() {
    let case = run_case(2, 5, "delivery = \"at_least_once\"\n");
    case.check_at_least_once();
}

/// The number of starts that found the shards at different positions.
fn starts_with_diverged_shards(case: &KafkaCase) -> usize {
    let (mut shards, mut apart) = (BTreeMap::new(), 0);
    for record in read_committed(&case.setup.access, &case.setup.progress) {
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
#[ignore = "needs Kafka: scripts/test"]
fn killed_replay_is_resumed() {
    let access = shared_broker();
    let mut case = KafkaCase::new(&access, 41, 3_000);
    case.setup.rules = "[limits]\npoll_records = 64\n".into();
    case.produce_records(3_000);
    for commit_interval in ["2s", "1ms"] {
        case.setup.sink = format!("shards = 2\ncommit_interval = \"{commit_interval}\"\n");
        let mut swelter = case.setup.service(case.data.path(), 2).die_before_commit(1).spawn();
        wait_for("its death", || swelter.has_ended());
    }
    let swelter = case.start_swelter(1).wait_until_ready();
    case.check_exactly_once();
    swelter.terminate();
}
