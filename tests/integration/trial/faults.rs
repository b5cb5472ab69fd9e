//! Faults of a case.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::backups::TakenBackup;
use super::case::TrialCase;
use super::checkpoints;
use super::cluster::DeathPoint;
use super::host::{OpenFileBlock, StoppedProcess, send_signal};
use super::plan::{ClaimCrash, Fault, FaultStep};
use super::results_folder;
use super::strangers::StrangerFlood;
use crate::support::Random;

/// How long a process may take to die as planned.
const DEATH_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a standby may take until it follows.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a backup may take, over faults of the processes.
const BACKUP_TIMEOUT: Duration = Duration::from_secs(90);

impl TrialCase<'_> {
    pub(super) fn run_step(&mut self, step: &FaultStep) {
        thread::sleep(step.wait);
        let before = self.generation.clone();
        self.log_event(step.fault.name());
        let happened = self.inject_fault(step);
        self.settled = false;
        self.log_event("done");
        *self.outcome.faults.entry(happened.name()).or_default() += 1;
        if step.settle {
            let another = match happened {
                Fault::Pause(_) | Fault::DiskFull(_) | Fault::CheckpointsUnwritable(_) => None,
                Fault::FolderBlocked(_) => None,
                Fault::KillBroker(_)
                | Fault::PauseBroker(_)
                | Fault::CutConnections(_)
                | Fault::StallConnections(_) => None,
                Fault::NoOpenFiles(_) | Fault::Backup => None,
                _ => before,
            };
            self.wait_until_ready(another.as_deref());
        }
    }

    /// Injects a fault; returns what has happened, which may be another fault if the planned one
    /// needs luck.
    fn inject_fault(&mut self, step: &FaultStep) -> Fault {
        let FaultStep { fault, lot, topology, .. } = *step;
        match fault {
            Fault::KillOne => send_signal(self.cluster.pick_process(lot), Signal::KILL),
            Fault::KillAll => {
                self.cluster.processes().into_iter().for_each(|pid| send_signal(pid, Signal::KILL))
            }
            Fault::KillSupervisor => {
                self.cluster.kill_supervisor();
                self.restart_all(topology, None);
            }
            Fault::KillStarting(time) => {
                self.restart_all(topology, None);
                thread::sleep(time);
                self.restart_all(topology, None);
            }
            Fault::DieBeforeCommit(after) => {
                return self.restart_to_die(step, "SWELTER_TEST_DIE_BEFORE_COMMIT", after);
            }
            Fault::DieBeforeManifest(after) => {
                return self.restart_to_die(step, "SWELTER_TEST_DIE_BEFORE_MANIFEST", after);
            }
            Fault::DieBeforeFolderCommit(after) => {
                return self.restart_to_die(step, "SWELTER_TEST_DIE_BEFORE_FOLDER_COMMIT", after);
            }
            Fault::DieBetweenClaims(crash) => return self.die_between_claims(step, crash),
            Fault::Damage(damage) => {
                self.cluster.kill_all();
                let damaged = checkpoints::damage_newest(self.folder(), damage, lot);
                self.restart_all(topology, None);
                if !damaged {
                    return Fault::KillAll;
                }
            }
            Fault::ClockSkew => {
                let mut random = Random::new(lot);
                let apart = |_| random.below(600_000) as i64 - 300_000;
                self.clocks = (0..topology.processes).map(apart).collect();
                self.restart_all(topology, None);
            }
            Fault::Restart => {
                self.cluster.terminate();
                self.restart_all(topology, None);
            }
            Fault::Takeover => self.start_successor(topology, Some("--takeover"), None),
            Fault::StoppedTakeover => return self.take_over_from_stopped(step),
            Fault::StandbyTakeover => {
                self.start_successor(topology, Some("--standby"), None);
                if !self.cluster.wait_until_following(FOLLOW_TIMEOUT) {
                    // The broker may be down, or there was no primary to follow.
                    self.log_event("the standby is not there in time");
                }
                self.cluster.kill_retiring();
            }
            Fault::Strangers(time) => {
                let strangers = StrangerFlood::start(lot);
                strangers.flood(&self.cluster, time / 2);
                send_signal(self.cluster.pick_process(lot), Signal::KILL);
                strangers.flood(&self.cluster, time);
                self.restart_all(topology, None);
                strangers.flood(&self.cluster, time);
            }
            Fault::Backup => self.take_backup(),
            _ => self.hold_fault(fault, lot),
        }
        fault
    }

    /// Injects a fault that lasts for a time, and ends it.
    fn hold_fault(&mut self, fault: Fault, lot: u64) {
        match fault {
            Fault::Pause(time) => {
                let _stopped = StoppedProcess::new(self.cluster.pick_process(lot));
                thread::sleep(time);
            }
            Fault::DiskFull(time) => {
                self.cluster.limit_file_size(Some(0));
                thread::sleep(time);
                self.cluster.limit_file_size(None);
            }
            Fault::CheckpointsUnwritable(time) => {
                checkpoints::while_unwritable(self.folder(), || thread::sleep(time))
            }
            Fault::FolderBlocked(time) => {
                results_folder::while_blocked(self.folder(), || thread::sleep(time));
            }
            Fault::KillBroker(time) => {
                let broker = self.broker.as_mut().expect("a broker");
                broker.kill();
                thread::sleep(time);
                broker.restart();
            }
            Fault::PauseBroker(time) => self.broker.as_ref().expect("a broker").pause(time),
            Fault::CutConnections(time) => {
                self.cluster.links_of_process(lot).for_each(|link| link.cut_connections());
                thread::sleep(time);
                self.cluster.links_of_process(lot).for_each(|link| link.resume_connections());
            }
            Fault::StallConnections(time) => {
                self.cluster.links_of_process(lot).for_each(|link| link.stall_connections());
                thread::sleep(time);
                self.cluster.links_of_process(lot).for_each(|link| link.resume_connections());
            }
            Fault::NoOpenFiles(time) => {
                let _limited = OpenFileBlock::of(self.cluster.pick_process(lot));
                thread::sleep(time);
            }
            _ => unreachable!("{fault:?} does not last"),
        }
    }

    /// Restarts all so that one process dies as planned, after so many passes of a point; then all
    /// are killed.
    fn restart_to_die(&mut self, step: &FaultStep, variable: &'static str, after: u64) -> Fault {
        let point = DeathPoint { variable, value: after.to_string(), process: None };
        self.restart_all(step.topology, Some(point));
        let died = self.cluster.wait_for_death(DEATH_TIMEOUT);
        self.restart_all(step.topology, None);
        if died { step.fault } else { Fault::KillAll }
    }

    /// A process of the next start dies when the authority is claimed and the next sink is not; then
    /// all are started again.
    fn die_between_claims(&mut self, step: &FaultStep, crash: ClaimCrash) -> Fault {
        let FaultStep { fault, lot, topology, .. } = *step;
        let name = crash.panic_point();
        let process = (crash == ClaimCrash::Fence).then_some(lot % topology.processes);
        let point = DeathPoint { variable: "SWELTER_PANIC_POINT", value: format!("{name}:1"), process };
        let is_takeover = crash == ClaimCrash::TakeoverClaim;
        if is_takeover {
            self.wait_for_owner();
            self.start_successor(topology, Some("--takeover"), Some(point));
        } else {
            self.restart_all(topology, Some(point));
        }
        let timeout = if is_takeover { FOLLOW_TIMEOUT } else { DEATH_TIMEOUT };
        let died = self.cluster.wait_for_death(timeout) && self.cluster.has_logged(name);
        if died {
            // They have lost the authority.
            self.cluster.check_retired();
        }
        self.restart_all(topology, None);
        if died { fault } else { Fault::KillAll }
    }

    /// Waits until the running processes own the sinks: a start that has not claimed them yet would
    /// take over from its own successor. A fault may still disturb them, so `settled` stays as it is.
    fn wait_for_owner(&mut self) {
        let settled = self.settled;
        self.wait_until_ready(None);
        self.settled = settled;
    }

    /// Processes are stopped, taken over from, and go on.
    fn take_over_from_stopped(&mut self, step: &FaultStep) -> Fault {
        self.wait_for_owner();
        // A process that goes on may miss the others before it sees the new claim.
        self.settled &= self.cluster.process_count() == 1;
        let stopped = self.cluster.stop_all();
        // A plain start takes over, too.
        let flag = (step.lot.is_multiple_of(2)).then_some("--takeover");
        self.start_successor(step.topology, flag, None);
        self.cluster.wait_until_serving(self.generation.as_deref());
        // If a successor has ended, all were killed.
        let go_on = self.cluster.has_retiring();
        drop(stopped);
        if go_on { step.fault } else { Fault::KillAll }
    }

    fn take_backup(&mut self) {
        let place = self.folder().join(format!("backup-{}", self.backups.len()));
        let deadline = Instant::now() + BACKUP_TIMEOUT;
        loop {
            self.wait_until_ready(None);
            match TakenBackup::take(place.clone(), &self.folder().join("data"), &self.shared) {
                Ok(backup) => {
                    let TakenBackup { least, most, .. } = backup;
                    self.log_event(&format!("a backup of {least} to {most} posts is taken"));
                    return self.backups.push(backup);
                }
                Err(why) => self.log_event(&why),
            }
            assert!(Instant::now() < deadline, "no backup is taken");
        }
    }
}
