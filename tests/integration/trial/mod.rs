//! The trial: random logs, topologies and faults, each case drawn from a seed, and its results
//! compared with the recomputation. docs/trial.md says how to run it.

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
mod results_folder;
mod strangers;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use parking_lot::Mutex;

use self::case::CaseOutcome;
use self::plan::{CasePlan, CaseSettings, ClaimCrash, Fault, LogMode};
use self::report::TrialReport;
use crate::kafka::broker::PrivateBroker;
use crate::support::prepared::print_line;

/// Faults of a case.
const DEFAULT_FAULTS: usize = 6;
/// Cases at once.
const DEFAULT_LANES: usize = 2;

/// Runs cases, `lanes` of them at once.
fn run_cases(seeds: &[u64], faults: usize, lanes: usize) -> Vec<CaseOutcome> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let lane = || {
        let mut broker = None;
        while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let plan = CasePlan::new(seed, faults);
            if plan.mode == LogMode::Kafka && broker.is_none() {
                broker = Some(PrivateBroker::start());
            }
            let outcome = case::run_plan(&plan, &mut broker);
            print_line(&report::case_line(&outcome, faults));
            if !outcome.is_good() {
                // The broker may be the cause.
                broker = None;
            }
            outcomes.lock().push(outcome);
        }
    };
    thread::scope(|scope| (0..lanes).for_each(|_| drop(scope.spawn(lane))));
    let mut outcomes = outcomes.into_inner();
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

/// Short cases that run with all other tests, and the faults of each.
const SHORT_TRIAL_SEEDS: &[u64] = &[20, 73, 92, 189, 449, 584];
const SHORT_TRIAL_FAULTS: usize = 3;

fn short_trial_seeds(mode: LogMode) -> Vec<u64> {
    SHORT_TRIAL_SEEDS.iter().copied().filter(|seed| LogMode::of(*seed) == mode).collect()
}

#[test]
fn short_trials_cover_every_required_fault() {
    let faults = SHORT_TRIAL_SEEDS.iter().flat_map(|seed| CasePlan::new(*seed, SHORT_TRIAL_FAULTS).steps);
    let faults: Vec<Fault> = faults.map(|step| step.fault).collect();
    let kinds: [fn(&Fault) -> bool; 15] = [
        |fault| matches!(fault, Fault::KillOne),
        |fault| matches!(fault, Fault::DieBeforeCommit(_)),
        |fault| matches!(fault, Fault::DieBeforeManifest(_)),
        |fault| matches!(fault, Fault::Damage(_)),
        |fault| matches!(fault, Fault::DiskFull(_)),
        |fault| matches!(fault, Fault::Takeover),
        |fault| matches!(fault, Fault::StandbyTakeover),
        |fault| matches!(fault, Fault::Strangers(_)),
        |fault| matches!(fault, Fault::NoOpenFiles(_)),
        |fault| matches!(fault, Fault::Backup),
        |fault| matches!(fault, Fault::StoppedTakeover),
        |fault| matches!(fault, Fault::DieBetweenClaims(ClaimCrash::TakeoverClaim)),
        |fault| matches!(fault, Fault::DieBetweenClaims(_)),
        |fault| matches!(fault, Fault::DieBeforeFolderCommit(_)),
        |fault| matches!(fault, Fault::FolderBlocked(_)),
    ];
    for (number, kind) in kinds.iter().enumerate() {
        assert!(faults.iter().any(kind), "kind {number} is not in {faults:?}: take other seeds");
    }
    let settings: Vec<CaseSettings> =
        SHORT_TRIAL_SEEDS.iter().map(|seed| CasePlan::new(*seed, SHORT_TRIAL_FAULTS).settings).collect();
    assert!(settings.iter().any(|settings| settings.tls), "no TLS: take other seeds");
    for sinks in [(true, false), (false, true), (true, true)] {
        let has = |settings: &CaseSettings| (settings.sinks.kafka, settings.sinks.folder) == sinks;
        assert!(
            settings.iter().any(has),
            "no case has the sinks (Kafka, folder) {sinks:?}: take other seeds"
        );
    }
}

fn check_outcomes(outcomes: &[CaseOutcome], faults: usize) {
    let bad: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    assert!(
        bad.is_empty(),
        "{}",
        bad.iter().map(|bad| report::case_line(bad, faults)).collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn short_trial_with_journal() {
    check_outcomes(
        &run_cases(&short_trial_seeds(LogMode::Journal), SHORT_TRIAL_FAULTS, 1),
        SHORT_TRIAL_FAULTS,
    );
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn short_trial_with_kafka() {
    check_outcomes(&run_cases(&short_trial_seeds(LogMode::Kafka), SHORT_TRIAL_FAULTS, 1), SHORT_TRIAL_FAULTS);
}

/// The trial of `scripts/trial`.
#[test]
#[ignore = "takes long: scripts/trial"]
fn trial() {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let range = variable("SWELTER_TRIAL_SEEDS").unwrap_or("1..20".into());
    let (from, to) = range.split_once("..").unwrap_or((&range, &range));
    let seeds: Vec<u64> = (from.parse().unwrap()..=to.parse().unwrap()).collect();
    let faults = variable("SWELTER_TRIAL_FAULTS").map_or(DEFAULT_FAULTS, |faults| faults.parse().unwrap());
    let lanes = variable("SWELTER_TRIAL_LANES").map_or(DEFAULT_LANES, |lanes| lanes.parse().unwrap());
    if variable("SWELTER_TRIAL_PLAN").is_some() {
        return seeds.iter().for_each(|seed| print_line(&CasePlan::new(*seed, faults).to_string()));
    }
    let began = Instant::now();
    let outcomes = run_cases(&seeds, faults, lanes);
    let report =
        TrialReport { outcomes: &outcomes, range: &range, faults, lanes, time: began.elapsed() }.to_string();
    match variable("SWELTER_TRIAL_REPORT") {
        Some(file) => std::fs::write(PathBuf::from(file), report).unwrap(),
        None => print_line(&report),
    }
    check_outcomes(&outcomes, faults);
}
