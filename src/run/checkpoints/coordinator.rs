//! Checkpoints made while a run goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::verifier::Verifier;
use super::{CheckpointRepository, WrittenParts};
use crate::checkpoint::{CheckpointError, CheckpointHeader, Checkpoints, Manifest, WorkerPart};
use crate::cluster::message::Message;
use crate::config::CheckpointPlan;
use crate::fault::start_failure_text;
use crate::model::{CheckpointBarrier, PartitionTable};
use crate::run::processes::Processes;
use crate::run::run_error::RunError;
use crate::sinks::kafka::{ShardSenders, progress as sinks};
use crate::sources::journal::Journal;
use crate::worker::{AlignedBarrier, SharedState};

/// A checkpoint of which nothing has come for so long is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Makes the checkpoints of a run.
pub struct CheckpointCoordinator {
    repository: CheckpointRepository,
    slots: PartitionTable,
    processes: Arc<Processes>,
    parts: Arc<WrittenParts>,
    shard_senders: Vec<ShardSenders>,
    next: Instant,
    count: u64,
    /// The last one has failed, so there is one to make though nothing has come since.
    retry_due: bool,
    pending: Option<PendingCheckpoint>,
    /// What the next one may add to.
    last: Option<Manifest>,
    /// At process 0: reads back what was published.
    verifier: Option<Verifier>,
    /// Of this process: the checkpoint that it owes its part of, and what that includes.
    pending_part: Option<(u64, Arc<sinks::Positions>)>,
}

/// A checkpoint on its way, at process 0.
struct PendingCheckpoint {
    barrier: CheckpointBarrier,
    began: Instant,
    /// What there was of it when it last got on, and since when it has not.
    seen: (bool, usize, u64),
    since: Instant,
    /// Once its epoch is complete.
    aligned: Option<AlignedBarrier>,
    /// By process.
    parts: BTreeMap<usize, Vec<WorkerPart>>,
    publishing: Option<JoinHandle<Result<Manifest, CheckpointError>>>,
}

impl CheckpointCoordinator {
    /// From now on it is this run that makes them: what earlier ones have left is removed.
    pub fn start(
        kept: CheckpointRepository,
        slots: PartitionTable,
        processes: Arc<Processes>,
        (parts, outlets, journal): (Arc<WrittenParts>, Vec<ShardSenders>, Option<Arc<Journal>>),
    ) -> Result<CheckpointCoordinator, RunError> {
        let mut verifier = None;
        if processes.topology().is_first_process() {
            spawn_sweep(&kept)?;
            verifier = Some(Verifier::start(&kept, journal).map_err(RunError::Threads)?);
        }
        let next = Instant::now() + checkpoint_interval(&kept.plan);
        Ok(CheckpointCoordinator {
            repository: kept,
            slots,
            processes,
            parts,
            shard_senders: outlets,
            next,
            count: 0,
            retry_due: false,
            pending: None,
            last: None,
            verifier,
            pending_part: None,
        })
    }

    /// Does what can be done now, without waiting. What was refused is durable.
    pub fn run_due_steps(&mut self, shared: &SharedState) {
        if self.processes.topology().is_first_process() {
            self.start_if_due(shared);
            self.collect_progress(shared);
        }
        if let Some((checkpoint, positions)) = self.processes.take_sealed() {
            self.pending_part = Some((checkpoint, Arc::new(positions)));
        }
        let given_up = self.processes.given_up_checkpoint();
        if given_up > 0 && !self.parts.writers.is_cancelled(given_up) {
            self.stop_writing(given_up);
        }
        self.report_part_if_ready();
        if self.processes.topology().is_first_process() {
            self.publish_if_complete();
        }
    }

    /// Asks for the next one, where it is time and there is anything new.
    fn start_if_due(&mut self, shared: &SharedState) {
        if self.verifier.as_ref().is_some_and(Verifier::take_damage) {
            // What stands on what is damaged is not added to: a base is due, now.
            (self.last, self.retry_due) = (None, true);
            self.next = Instant::now();
        }
        if self.pending.is_some() || Instant::now() < self.next || !self.parts.writers.all_idle() {
            return;
        }
        self.next = Instant::now() + checkpoint_interval(&self.repository.plan);
        if !shared.has_moved() && !self.retry_due {
            return;
        }
        self.retry_due = false;
        self.count += 1;
        let full = self.last.as_ref().is_none_or(Manifest::next_should_be_full);
        let mark = CheckpointBarrier { checkpoint: self.count, full };
        let (began, seen) = (Instant::now(), (false, 0, self.parts.writers.written_files()));
        let (marked, parts, publishing) = (None, BTreeMap::new(), None);
        self.pending = Some(PendingCheckpoint {
            barrier: mark,
            began,
            seen,
            since: began,
            aligned: marked,
            parts,
            publishing,
        });
        shared.mark(mark);
    }

    /// Hears of its epoch, and of the parts of other processes.
    fn collect_progress(&mut self, shared: &SharedState) {
        for marked in shared.marked_since() {
            let Some(running) = self.pending.as_mut().filter(|running| running.barrier == marked.mark) else {
                continue;
            };
            let mut positions = sinks::Positions::new();
            let names = self.slots.names();
            for (slot, at) in &marked.positions {
                if let Some(name) = names.get(usize::from(slot.0)) {
                    positions.entry(name.source.clone()).or_default().insert(name.partition, at.position);
                }
            }
            let checkpoint = marked.mark.checkpoint;
            self.processes.tell(&Message::Sealed { checkpoint, positions: positions.clone() });
            self.pending_part = Some((checkpoint, Arc::new(positions)));
            running.aligned = Some(marked);
        }
        for (process, checkpoint, part) in self.processes.parts_that_came() {
            let part = part.and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string()));
            self.add_part(process, checkpoint, part);
        }
        let files = self.parts.writers.written_files();
        if self.pending.as_mut().is_some_and(|running| running.is_stalled(files, STALL_TIMEOUT)) {
            self.cancel("it does not get on");
        }
    }

    /// Hands in this process's part, once it is whole and its shards have come as far.
    fn report_part_if_ready(&mut self) {
        let Some((checkpoint, positions)) = &self.pending_part else { return };
        if !self.shard_senders.iter().all(|outlet| outlet.have_written(positions)) {
            return;
        }
        let topology = self.processes.topology();
        let Some(parts) = self.parts.take_complete(*checkpoint, topology.workers_per_process) else { return };
        let checkpoint = *checkpoint;
        self.pending_part = None;
        let parts = self.complete_part(parts);
        if topology.is_first_process() {
            return self.add_part(0, checkpoint, parts);
        }
        let part = parts.and_then(|parts| serde_json::to_vec(&parts).map_err(|error| error.to_string()));
        self.processes.tell(&Message::Checkpoint { checkpoint, part });
    }

    /// The parts of all workers, or why one has none.
    fn complete_part(&self, parts: Vec<Result<WorkerPart, String>>) -> Result<Vec<WorkerPart>, String> {
        let (written, failed): (Vec<_>, Vec<_>) = parts.into_iter().partition(Result::is_ok);
        let written: Vec<WorkerPart> = written.into_iter().filter_map(Result::ok).collect();
        let Some(why) = failed.into_iter().find_map(Result::err) else { return Ok(written) };
        self.repository.checkpoints.discard_parts(&written);
        Err(why)
    }

    fn add_part(&mut self, process: usize, checkpoint: u64, part: Result<Vec<WorkerPart>, String>) {
        let Some(running) = self.pending.as_mut().filter(|running| running.barrier.checkpoint == checkpoint)
        else {
            // It was given up before this came.
            return self.repository.checkpoints.discard_parts(&part.unwrap_or_default());
        };
        match part {
            Ok(parts) => drop(running.parts.insert(process, parts)),
            Err(why) => self.cancel(&why),
        }
    }

    /// Publishes what is whole, on a thread of its own, and hears what became of it.
    fn publish_if_complete(&mut self) {
        let Some(running) = &mut self.pending else { return };
        if let Some(publishing) = running.publishing.take_if(|publishing| publishing.is_finished()) {
            match publishing.join() {
                Ok(Ok(manifest)) => {
                    let took = running.began.elapsed();
                    tracing::debug!(checkpoint = %manifest.name(), full = running.barrier.full, ?took, "a checkpoint is published");
                    metrics::gauge!("swelter_checkpoint_epoch").set(manifest.epoch as f64);
                    metrics::gauge!("swelter_checkpoint_seconds").set(took.as_secs_f64());
                    metrics::gauge!("swelter_checkpoint_bytes").set(manifest.own_bytes() as f64);
                    metrics::counter!("swelter_checkpoints_total").increment(1);
                    if let Some(verifier) = &self.verifier {
                        verifier.enqueue(manifest.name());
                    }
                    (self.last, self.pending) = (Some(manifest), None);
                }
                Ok(Err(error)) => self.cancel(&error.to_string()),
                Err(_) => self.cancel("its publisher has panicked"),
            }
            return;
        }
        let all = running.parts.len() == self.processes.topology().processes;
        let Some(marked) = running.aligned.as_ref().filter(|_| all && running.publishing.is_none()) else {
            return;
        };
        let (positions, logs) = self.repository.covered_positions(&marked.positions, &self.slots);
        let cut = CheckpointHeader {
            generation: self.repository.generation.clone(),
            epoch: marked.epoch,
            identity: self.repository.identity.clone(),
            positions,
            logs,
        };
        let parts = std::mem::take(&mut running.parts).into_values().flatten().collect();
        let adds_to = self.last.clone().filter(|_| !running.barrier.full);
        let checkpoints = self.repository.checkpoints.clone();
        let publish = move || publish_manifest(&checkpoints, cut, parts, adds_to.as_ref());
        match thread::Builder::new().name("publish".into()).spawn(publish) {
            Ok(publishing) => running.publishing = Some(publishing),
            Err(error) => self.cancel(&start_failure_text(&error)),
        }
    }

    /// The next one is full, whatever became of this one.
    fn cancel(&mut self, why: &str) {
        tracing::warn!("a checkpoint could not be made; the next one is tried in its turn: {why}");
        metrics::counter!("swelter_checkpoint_failures_total").increment(1);
        self.last = None;
        self.retry_due = true;
        self.next = self.next.max(Instant::now() + checkpoint_interval(&self.repository.plan));
        let Some(running) = self.pending.take() else { return };
        let checkpoint = running.barrier.checkpoint;
        self.repository.checkpoints.discard_parts(&running.parts.into_values().flatten().collect::<Vec<_>>());
        self.processes.tell(&Message::GivenUp { checkpoint });
        self.stop_writing(checkpoint);
    }

    fn stop_writing(&mut self, checkpoint: u64) {
        self.pending_part.take_if(|(owed, _)| *owed <= checkpoint);
        self.repository.checkpoints.discard_parts(&self.parts.cancel(checkpoint));
    }
}

impl PendingCheckpoint {
    /// Whether nothing of it has come for so long; what is being published has limits of its own.
    fn is_stalled(&mut self, files: u64, patience: Duration) -> bool {
        let now = (self.aligned.is_some(), self.parts.len(), files);
        if self.seen != now || self.publishing.is_some() {
            (self.seen, self.since) = (now, Instant::now());
        }
        self.since.elapsed() > patience
    }
}

fn checkpoint_interval(plan: &CheckpointPlan) -> Duration {
    Duration::from_millis(plan.interval.millis().unsigned_abs())
}

/// Removes what earlier generations have left, on a thread of its own.
fn spawn_sweep(kept: &CheckpointRepository) -> Result<(), RunError> {
    let (checkpoints, generation) = (kept.checkpoints.clone(), kept.generation.clone());
    let sweep = move || {
        if let Err(error) = checkpoints.remove_orphaned_files(&generation) {
            tracing::warn!("what earlier runs have left of checkpoints cannot be removed yet: {error}");
        }
    };
    thread::Builder::new().name("sweep".into()).spawn(sweep).map(drop).map_err(RunError::Threads)
}

fn publish_manifest(
    checkpoints: &Checkpoints,
    cut: CheckpointHeader,
    parts: Vec<WorkerPart>,
    adds_to: Option<&Manifest>,
) -> Result<Manifest, CheckpointError> {
    let manifest = Manifest::new(cut, parts.clone(), adds_to);
    let manifest = manifest.inspect_err(|_| checkpoints.discard_parts(&parts))?;
    checkpoints.publish(&manifest)?;
    Ok(manifest)
}
