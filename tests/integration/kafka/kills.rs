//! The program killed at any moment: what is in the topics in the end is as if it had never been.

use std::thread;
use std::time::{Duration, Instant};

use super::broker::shared;
use super::case::Case;
use super::swelter::Swelter;
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

fn run(seed: u64, kills: u64, sink: &str, check: impl FnOnce(&Case)) {
    let Some(access) = shared() else { return };
    eprintln!("seed {seed}");
    let mut case = Case::new(&access, seed, BEFORE + ROUND * (kills + 1) as usize);
    case.setup.sink += sink;
    kill(&mut case, Random(!seed), kills);
    case.produce(ROUND);
    let swelter = case.start(2).ready();
    case.wait_for_results();
    swelter.terminate();
    check(&case);
}

/// `SWELTER_KILLS` kills more often, `SWELTER_KILLS_SEED` is another log.
#[test]
fn every_change_is_there_once_whatever_is_killed() {
    let kills = number("SWELTER_KILLS", 30);
    run(number("SWELTER_KILLS_SEED", 1), kills, "", Case::check_exactly_once);
}

#[test]
fn at_least_once_ends_with_the_same_rows() {
    run(2, 5, "delivery = \"at_least_once\"\n", Case::wait_for_results);
}
