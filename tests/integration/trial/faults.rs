//! What is done to a case.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::case::Case;
use super::checkpoints;
use super::host::{NoMoreFiles, Stopped, send};
use super::plan::{Fault, Step};
use super::strangers::Strangers;
use crate::recovery::Random;

/// How long a process may take to die that is to die by itself.
const TO_DIE: Duration = Duration::from_secs(8);
/// And until a standby follows those that run.
const TO_FOLLOW: Duration = Duration::from_secs(20);

impl Case<'_> {
    pub(super) fn befall(&mut self, step: &Step) {
        thread::sleep(step.wait);
        let before = self.generation.clone();
        self.note(step.fault.name());
        let happened = self.inflict(step);
        self.settled = false;
        self.note("done");
        *self.outcome.faults.entry(happened.name()).or_default() += 1;
        if step.settle {
            let another = match happened {
                Fault::Pause(_) | Fault::DiskFull(_) | Fault::CheckpointsAway(_) => None,
                Fault::KillBroker(_) | Fault::PauseBroker(_) | Fault::Cut(_) | Fault::Stall(_) => None,
                Fault::NoFiles(_) | Fault::Backup => None,
                _ => before,
            };
            self.settle(another.as_deref());
        }
    }

    /// Says what has happened: what needs luck may have become something else.
    fn inflict(&mut self, step: &Step) -> Fault {
        let Step { fault, lot, topology, .. } = *step;
        match fault {
            Fault::KillOne => send(self.cluster.one(lot), Signal::KILL),
            Fault::KillAll => self.cluster.processes().into_iter().for_each(|pid| send(pid, Signal::KILL)),
            Fault::KillSupervisor => {
                self.cluster.kill_supervisor();
                self.start_again(topology, None);
            }
            Fault::KillStarting(time) => {
                self.start_again(topology, None);
                thread::sleep(time);
                self.start_again(topology, None);
            }
            Fault::Pause(time) => {
                let _stopped = Stopped::new(self.cluster.one(lot));
                thread::sleep(time);
            }
            Fault::DieBeforeCommit(after) => {
                return self.die(step, ("SWELTER_TEST_DIE_BEFORE_COMMIT", after));
            }
            Fault::DieBeforeManifest(after) => {
                return self.die(step, ("SWELTER_TEST_DIE_BEFORE_MANIFEST", after));
            }
            Fault::Damage(damage) => {
                self.cluster.kill_all();
                let damaged = checkpoints::damage(self.folder(), damage, lot);
                self.start_again(topology, None);
                if !damaged {
                    return Fault::KillAll;
                }
            }
            Fault::DiskFull(time) => {
                self.cluster.limit_files(Some(0));
                thread::sleep(time);
                self.cluster.limit_files(None);
            }
            Fault::CheckpointsAway(time) => checkpoints::without(self.folder(), || thread::sleep(time)),
            Fault::KillBroker(time) => {
                let broker = self.broker.as_mut().expect("a broker");
                broker.kill();
                thread::sleep(time);
                broker.start_again();
            }
            Fault::PauseBroker(time) => self.broker.as_ref().expect("a broker").pause(time),
            Fault::Cut(time) => {
                self.cluster.links(lot).for_each(|link| link.cut());
                thread::sleep(time);
                self.cluster.links(lot).for_each(|link| link.resume());
            }
            Fault::Stall(time) => {
                self.cluster.links(lot).for_each(|link| link.stall());
                thread::sleep(time);
                self.cluster.links(lot).for_each(|link| link.resume());
            }
            Fault::Clocks => {
                let mut random = Random(lot);
                let apart = |_| random.next(600_000) as i64 - 300_000;
                self.clocks = (0..topology.processes).map(apart).collect();
                self.start_again(topology, None);
            }
            Fault::Stop => {
                self.cluster.terminate();
                self.start_again(topology, None);
            }
            Fault::TakeOver => self.succeed(topology, "--takeover"),
            Fault::StandIn => {
                self.succeed(topology, "--standby");
                if !self.cluster.follows(TO_FOLLOW) {
                    // The broker may be away, or nobody has ever been there to follow.
                    self.note("the standby is not there in time");
                }
                self.cluster.kill_retiring();
            }
            Fault::Strangers(time) => {
                let strangers = Strangers::start(lot);
                strangers.flood(&self.cluster, time / 2);
                send(self.cluster.one(lot), Signal::KILL);
                strangers.flood(&self.cluster, time);
                self.start_again(topology, None);
                strangers.flood(&self.cluster, time);
            }
            Fault::NoFiles(time) => {
                let _limited = NoMoreFiles::of(self.cluster.one(lot));
                thread::sleep(time);
            }
            Fault::Backup => self.back_up(),
        }
        fault
    }

    /// Starts all anew so that one dies by itself; then they are killed.
    fn die(&mut self, step: &Step, dies: (&'static str, u64)) -> Fault {
        self.start_again(step.topology, Some(dies));
        let died = self.cluster.has_died(TO_DIE);
        self.start_again(step.topology, None);
        if died { step.fault } else { Fault::KillAll }
    }
}
