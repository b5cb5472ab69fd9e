//! Checkpoints made while a run goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration as Wait, Instant};

use super::verifying::Verifier;
use super::{Checkpointed, Parts};
use crate::checkpoint::{CheckpointError, Checkpoints, Cut, Manifest, Part};
use crate::cluster::message::Message;
use crate::config::CheckpointPlan;
use crate::fault::cannot_start;
use crate::model::{Mark, Slots};
use crate::pipeline::processes::Processes;
use crate::pipeline::run_error::RunError;
use crate::sinks::kafka::{Ends, progress as sinks};
use crate::sources::journal::Journal;
use crate::worker::{Marked, Shared};

/// A checkpoint of which nothing has come for so long is given up.
const PATIENCE: Wait = Wait::from_secs(15 * 60);

/// Makes the checkpoints of a run.
pub struct Making {
    kept: Checkpointed,
    slots: Slots,
    processes: Arc<Processes>,
    parts: Arc<Parts>,
    outlets: Vec<Ends>,
    next: Instant,
    count: u64,
    /// The last one has failed, so there is one to make though nothing has come since.
    again: bool,
    running: Option<Running>,
    /// What the next one may add to.
    last: Option<Manifest>,
    /// At process 0: reads back what was published.
    verifier: Option<Verifier>,
    /// Of this process: the checkpoint that it owes its part of, and what that includes.
    owed: Option<(u64, Arc<sinks::Positions>)>,
}

/// A checkpoint on its way, at process 0.
struct Running {
    mark: Mark,
    began: Instant,
    /// What there was of it when it last got on, and since when it has not.
    seen: (bool, usize, u64),
    since: Instant,
    /// Once its epoch is complete.
    marked: Option<Marked>,
    /// By process.
    parts: BTreeMap<usize, Vec<Part>>,
    publishing: Option<JoinHandle<Result<Manifest, CheckpointError>>>,
}

impl Making {
    /// From now on it is this run that makes them: what earlier ones have left is removed.
    pub fn start(
        kept: Checkpointed,
        slots: Slots,
        processes: Arc<Processes>,
        (parts, outlets, journal): (Arc<Parts>, Vec<Ends>, Option<Arc<Journal>>),
    ) -> Result<Making, RunError> {
        let mut verifier = None;
        if processes.topology().is_first() {
            sweep(&kept)?;
            verifier = Some(Verifier::start(&kept, journal).map_err(RunError::Threads)?);
        }
        let next = Instant::now() + every(&kept.plan);
        Ok(Making {
            kept,
            slots,
            processes,
            parts,
            outlets,
            next,
            count: 0,
            again: false,
            running: None,
            last: None,
            verifier,
            owed: None,
        })
    }

    /// Does what can be done now, without waiting. What was refused is durable.
    pub fn look(&mut self, shared: &Shared) {
        if self.processes.topology().is_first() {
            self.begin(shared);
            self.hear(shared);
        }
        if let Some((checkpoint, positions)) = self.processes.take_sealed() {
            self.owed = Some((checkpoint, Arc::new(positions)));
        }
        let given_up = self.processes.given_up_checkpoint();
        if given_up > 0 && !self.parts.writers.has_given_up(given_up) {
            self.stop_writing(given_up);
        }
        self.hand_in();
        if self.processes.topology().is_first() {
            self.publish();
        }
    }

    /// Asks for the next one, where it is time and there is anything new.
    fn begin(&mut self, shared: &Shared) {
        if self.verifier.as_ref().is_some_and(Verifier::take_damage) {
            // What stands on what is damaged is not added to: a base is due, now.
            (self.last, self.again) = (None, true);
            self.next = Instant::now();
        }
        if self.running.is_some() || Instant::now() < self.next || !self.parts.writers.are_idle() {
            return;
        }
        self.next = Instant::now() + every(&self.kept.plan);
        if !shared.has_moved() && !self.again {
            return;
        }
        self.again = false;
        self.count += 1;
        let full = self.last.as_ref().is_none_or(Manifest::wants_full);
        let mark = Mark { checkpoint: self.count, full };
        let (began, seen) = (Instant::now(), (false, 0, self.parts.writers.files()));
        let (marked, parts, publishing) = (None, BTreeMap::new(), None);
        self.running = Some(Running { mark, began, seen, since: began, marked, parts, publishing });
        shared.mark(mark);
    }

    /// Hears of its epoch, and of the parts of other processes.
    fn hear(&mut self, shared: &Shared) {
        for marked in shared.marked_since() {
            let Some(running) = self.running.as_mut().filter(|running| running.mark == marked.mark) else {
                continue;
            };
            let mut positions = sinks::Positions::new();
            let names = self.slots.all();
            for (slot, at) in &marked.positions {
                if let Some(name) = names.get(usize::from(slot.0)) {
                    positions.entry(name.source.clone()).or_default().insert(name.partition, at.position);
                }
            }
            let checkpoint = marked.mark.checkpoint;
            self.processes.tell(&Message::Sealed { checkpoint, positions: positions.clone() });
            self.owed = Some((checkpoint, Arc::new(positions)));
            running.marked = Some(marked);
        }
        for (process, checkpoint, part) in self.processes.parts_that_came() {
            let part = part.and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string()));
            self.take(process, checkpoint, part);
        }
        let files = self.parts.writers.files();
        if self.running.as_mut().is_some_and(|running| running.hangs(files, PATIENCE)) {
            self.give_up("it does not get on");
        }
    }

    /// Hands in this process's part, once it is whole and its shards have come as far.
    fn hand_in(&mut self) {
        let Some((checkpoint, positions)) = &self.owed else { return };
        if !self.outlets.iter().all(|outlet| outlet.have_written(positions)) {
            return;
        }
        let topology = self.processes.topology();
        let Some(parts) = self.parts.take(*checkpoint, topology.workers) else { return };
        let checkpoint = *checkpoint;
        self.owed = None;
        let parts = self.whole(parts);
        if topology.is_first() {
            return self.take(0, checkpoint, parts);
        }
        let part = parts.and_then(|parts| serde_json::to_vec(&parts).map_err(|error| error.to_string()));
        self.processes.tell(&Message::Checkpoint { checkpoint, part });
    }

    /// The parts of all workers, or why one has none.
    fn whole(&self, parts: Vec<Result<Part, String>>) -> Result<Vec<Part>, String> {
        let (written, failed): (Vec<_>, Vec<_>) = parts.into_iter().partition(Result::is_ok);
        let written: Vec<Part> = written.into_iter().filter_map(Result::ok).collect();
        let Some(why) = failed.into_iter().find_map(Result::err) else { return Ok(written) };
        self.kept.checkpoints.discard(&written);
        Err(why)
    }

    fn take(&mut self, process: usize, checkpoint: u64, part: Result<Vec<Part>, String>) {
        let Some(running) = self.running.as_mut().filter(|running| running.mark.checkpoint == checkpoint)
        else {
            // It was given up before this came.
            return self.kept.checkpoints.discard(&part.unwrap_or_default());
        };
        match part {
            Ok(parts) => drop(running.parts.insert(process, parts)),
            Err(why) => self.give_up(&why),
        }
    }

    /// Publishes what is whole, on a thread of its own, and hears what became of it.
    fn publish(&mut self) {
        let Some(running) = &mut self.running else { return };
        if let Some(publishing) = running.publishing.take_if(|publishing| publishing.is_finished()) {
            match publishing.join() {
                Ok(Ok(manifest)) => {
                    let took = running.began.elapsed();
                    tracing::debug!(checkpoint = %manifest.name(), full = running.mark.full, ?took, "a checkpoint is published");
                    metrics::gauge!("swelter_checkpoint_epoch").set(manifest.epoch as f64);
                    metrics::gauge!("swelter_checkpoint_seconds").set(took.as_secs_f64());
                    metrics::gauge!("swelter_checkpoint_bytes").set(manifest.bytes() as f64);
                    metrics::counter!("swelter_checkpoints_total").increment(1);
                    if let Some(verifier) = &self.verifier {
                        verifier.published(manifest.name());
                    }
                    (self.last, self.running) = (Some(manifest), None);
                }
                Ok(Err(error)) => self.give_up(&error.to_string()),
                Err(_) => self.give_up("its publisher has panicked"),
            }
            return;
        }
        let all = running.parts.len() == self.processes.topology().processes;
        let Some(marked) = running.marked.as_ref().filter(|_| all && running.publishing.is_none()) else {
            return;
        };
        let (positions, logs) = self.kept.covered_logs(&marked.positions, &self.slots);
        let cut = Cut {
            generation: self.kept.generation.clone(),
            epoch: marked.epoch,
            identity: self.kept.identity.clone(),
            positions,
            logs,
        };
        let parts = std::mem::take(&mut running.parts).into_values().flatten().collect();
        let adds_to = self.last.clone().filter(|_| !running.mark.full);
        let checkpoints = self.kept.checkpoints.clone();
        let publish = move || publish(&checkpoints, cut, parts, adds_to.as_ref());
        match thread::Builder::new().name("publish".into()).spawn(publish) {
            Ok(publishing) => running.publishing = Some(publishing),
            Err(error) => self.give_up(&cannot_start(&error)),
        }
    }

    /// The next one is full, whatever became of this one.
    fn give_up(&mut self, why: &str) {
        tracing::warn!("a checkpoint could not be made; the next one is tried in its turn: {why}");
        metrics::counter!("swelter_checkpoint_failures_total").increment(1);
        self.last = None;
        self.again = true;
        self.next = self.next.max(Instant::now() + every(&self.kept.plan));
        let Some(running) = self.running.take() else { return };
        let checkpoint = running.mark.checkpoint;
        self.kept.checkpoints.discard(&running.parts.into_values().flatten().collect::<Vec<_>>());
        self.processes.tell(&Message::GivenUp { checkpoint });
        self.stop_writing(checkpoint);
    }

    fn stop_writing(&mut self, checkpoint: u64) {
        self.owed.take_if(|(owed, _)| *owed <= checkpoint);
        self.kept.checkpoints.discard(&self.parts.give_up(checkpoint));
    }
}

impl Running {
    /// Whether nothing of it has come for so long; what is being published has limits of its own.
    fn hangs(&mut self, files: u64, patience: Wait) -> bool {
        let now = (self.marked.is_some(), self.parts.len(), files);
        if self.seen != now || self.publishing.is_some() {
            (self.seen, self.since) = (now, Instant::now());
        }
        self.since.elapsed() > patience
    }
}

fn every(plan: &CheckpointPlan) -> Wait {
    Wait::from_millis(plan.every.millis().unsigned_abs())
}

/// Removes what earlier generations have left, on a thread of its own.
fn sweep(kept: &Checkpointed) -> Result<(), RunError> {
    let (checkpoints, generation) = (kept.checkpoints.clone(), kept.generation.clone());
    let sweep = move || {
        if let Err(error) = checkpoints.sweep(&generation) {
            tracing::warn!("what earlier runs have left of checkpoints cannot be removed yet: {error}");
        }
    };
    thread::Builder::new().name("sweep".into()).spawn(sweep).map(drop).map_err(RunError::Threads)
}

fn publish(
    checkpoints: &Checkpoints,
    cut: Cut,
    parts: Vec<Part>,
    adds_to: Option<&Manifest>,
) -> Result<Manifest, CheckpointError> {
    let manifest = Manifest::new(cut, parts.clone(), adds_to);
    let manifest = manifest.inspect_err(|_| checkpoints.discard(&parts))?;
    checkpoints.publish(&manifest)?;
    Ok(manifest)
}
