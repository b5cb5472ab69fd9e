//! The trial: random logs, topologies and faults, each case drawn from a seed, and what has come of it compared with the
//! recomputation. docs/trial.md says how to run it.

mod backups;
mod case;
mod checkpoints;
mod cluster;
mod comparisons;
mod faults;
mod feeder;
mod follower;
mod host;
mod plan;
pub mod proxy;
mod report;
mod strangers;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use self::case::Outcome;
use self::plan::{Fault, Mode, Plan};
use self::report::Report;
use crate::kafka::broker::OwnBroker;

/// Whether there are checkpoints.
const CHECKPOINTS: bool = true;

/// Faults of a case.
const FAULTS: usize = 6;
/// Cases at once.
const LANES: usize = 2;

/// Runs cases, so many at once.
fn run(seeds: &[u64], faults: usize, lanes: usize) -> Vec<Outcome> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let lane = || {
        let mut broker = None;
        while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let plan = Plan::new(seed, faults);
            if plan.mode == Mode::Kafka && broker.is_none() {
                broker = OwnBroker::start();
            }
            let outcome = case::run(&plan, &mut broker);
            say(&report::line(&outcome, faults));
            if !outcome.is_good() {
                // It may be the broker that is left in disorder.
                broker = None;
            }
            outcomes.lock().unwrap().push(outcome);
        }
    };
    thread::scope(|scope| (0..lanes).for_each(|_| drop(scope.spawn(lane))));
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

/// What tests print would be captured.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Cases of a few faults that are tried with all other tests, and how many faults each has.
const SHORT: &[u64] = &[5, 18, 35, 97];
const SHORT_FAULTS: usize = 3;

fn short(mode: Mode) -> Vec<u64> {
    SHORT.iter().copied().filter(|seed| Mode::of(*seed) == mode).collect()
}

#[test]
fn a_short_trial_has_the_faults_that_matter() {
    let faults = SHORT.iter().flat_map(|seed| Plan::new(*seed, SHORT_FAULTS).steps);
    let faults: Vec<Fault> = faults.map(|step| step.fault).collect();
    let kinds: [fn(&Fault) -> bool; 10] = [
        |fault| matches!(fault, Fault::KillOne),
        |fault| matches!(fault, Fault::DieBeforeCommit(_)),
        |fault| matches!(fault, Fault::DieBeforeManifest(_)),
        |fault| matches!(fault, Fault::Damage(_)),
        |fault| matches!(fault, Fault::DiskFull(_)),
        |fault| matches!(fault, Fault::TakeOver),
        |fault| matches!(fault, Fault::StandIn),
        |fault| matches!(fault, Fault::Strangers(_)),
        |fault| matches!(fault, Fault::NoFiles(_)),
        |fault| matches!(fault, Fault::Backup),
    ];
    for (number, kind) in kinds.iter().enumerate() {
        assert!(faults.iter().any(kind), "kind {number} is not in {faults:?}: take other seeds");
    }
    assert!(SHORT.iter().any(|seed| Plan::new(*seed, SHORT_FAULTS).settings.tls), "no TLS: take other seeds");
}

fn check(outcomes: &[Outcome], faults: usize) {
    let bad: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    assert!(
        bad.is_empty(),
        "{}",
        bad.iter().map(|bad| report::line(bad, faults)).collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn a_short_trial_of_the_journal() {
    check(&run(&short(Mode::Journal), SHORT_FAULTS, 1), SHORT_FAULTS);
}

#[test]
fn a_short_trial_of_kafka() {
    if OwnBroker::is_prepared() {
        check(&run(&short(Mode::Kafka), SHORT_FAULTS, 1), SHORT_FAULTS);
    }
}

/// What `scripts/trial` runs.
#[test]
#[ignore = "takes long: scripts/trial runs it"]
fn trial() {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let range = variable("SWELTER_TRIAL_SEEDS").unwrap_or("1..20".into());
    let (from, to) = range.split_once("..").unwrap_or((&range, &range));
    let seeds: Vec<u64> = (from.parse().unwrap()..=to.parse().unwrap()).collect();
    let faults = variable("SWELTER_TRIAL_FAULTS").map_or(FAULTS, |faults| faults.parse().unwrap());
    let lanes = variable("SWELTER_TRIAL_LANES").map_or(LANES, |lanes| lanes.parse().unwrap());
    if variable("SWELTER_TRIAL_PLAN").is_some() {
        return seeds.iter().for_each(|seed| say(&Plan::new(*seed, faults).to_string()));
    }
    if seeds.iter().any(|seed| Mode::of(*seed) == Mode::Kafka) {
        assert!(OwnBroker::is_prepared(), "scripts/trial prepares a broker");
    }
    let began = Instant::now();
    let outcomes = run(&seeds, faults, lanes);
    let report =
        Report { outcomes: &outcomes, range: &range, faults, lanes, time: began.elapsed() }.to_string();
    match variable("SWELTER_TRIAL_REPORT") {
        Some(file) => std::fs::write(PathBuf::from(file), report).unwrap(),
        None => say(&report),
    }
    check(&outcomes, faults);
}
