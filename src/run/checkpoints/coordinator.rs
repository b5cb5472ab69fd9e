//! Makes the checkpoints of a run, at process 0 for all processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::part_reporter::PartReporter;
use super::repository::CheckpointRepository;
use super::verifier::Verifier;
use super::written_parts::WrittenParts;
use crate::checkpoint::{CheckpointError, CheckpointHeader, Checkpoints, Manifest, WorkerPart};
use crate::config::CheckpointPlan;
use crate::fault::start_failure_text;
use crate::model::{CheckpointBarrier, PartitionTable};
use crate::run::control::Control;
use crate::run::protocol::ControlCommand;
use crate::run::run_error::RunError;
use crate::sinks::progress::Positions;
use crate::sources::journal::Journal;
use crate::worker::{AlignedBarrier, SharedState};

/// A checkpoint without progress for this long is cancelled.
const STALL_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Makes the checkpoints of a run.
pub struct CheckpointCoordinator {
    repository: CheckpointRepository,
    parts: Arc<WrittenParts>,
    partitions: PartitionTable,
    processes: usize,
    control: Control,
    next: Instant,
    count: u64,
    /// The last checkpoint has failed, so another one is due even without new records.
    retry_due: bool,
    pending: Option<PendingCheckpoint>,
    /// The last checkpoint, which the next one may extend.
    last: Option<Manifest>,
    /// Verifies published checkpoints.
    verifier: Verifier,
}

/// A checkpoint that is being made.
struct PendingCheckpoint {
    barrier: CheckpointBarrier,
    began: Instant,
    /// Its last progress, and the time of that.
    progress: PendingProgress,
    since: Instant,
    /// Set once its epoch is complete.
    aligned: Option<AlignedBarrier>,
    /// By process.
    parts: BTreeMap<usize, Vec<WorkerPart>>,
    publishing: Option<JoinHandle<Result<Manifest, CheckpointError>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct PendingProgress {
    is_aligned: bool,
    parts: usize,
    files: u64,
}

impl CheckpointCoordinator {
    /// Starts making checkpoints: this run owns them now, and removes the remains of earlier ones.
    pub fn start(
        reporter: &PartReporter,
        partitions: &PartitionTable,
        control: &Control,
        processes: usize,
        journal: Option<Arc<Journal>>,
    ) -> Result<CheckpointCoordinator, RunError> {
        let repository = reporter.repository().clone();
        spawn_sweep(&repository)?;
        let verifier = Verifier::start(&repository, journal).map_err(RunError::Threads)?;
        let next = Instant::now() + checkpoint_interval(&repository.plan);
        Ok(CheckpointCoordinator {
            repository,
            parts: Arc::clone(reporter.parts()),
            partitions: partitions.clone(),
            processes,
            control: control.clone(),
            next,
            count: 0,
            retry_due: false,
            pending: None,
            last: None,
            verifier,
        })
    }

    /// Takes the steps that are due, without waiting.
    pub fn run_due_steps(&mut self, shared: &SharedState) {
        self.start_if_due(shared);
        let files = self.parts.writers.written_files();
        if self.pending.as_mut().is_some_and(|pending| pending.is_stalled(files, STALL_TIMEOUT)) {
            self.cancel("no file of it was written for too long");
        }
        self.publish_if_complete();
    }

    /// Starts the next checkpoint if it is due and there is something new.
    fn start_if_due(&mut self, shared: &SharedState) {
        if self.verifier.take_damage() {
            // A chain with a damaged part is not extended: a full checkpoint is due now.
            (self.last, self.retry_due) = (None, true);
            self.next = Instant::now();
        }
        if self.pending.is_some() || Instant::now() < self.next || !self.parts.writers.all_idle() {
            return;
        }
        self.next = Instant::now() + checkpoint_interval(&self.repository.plan);
        if !shared.take_moved() && !self.retry_due {
            return;
        }
        self.retry_due = false;
        self.count += 1;
        let full = self.last.as_ref().is_none_or(Manifest::next_should_be_full);
        let barrier = CheckpointBarrier { checkpoint: self.count, full };
        self.pending = Some(PendingCheckpoint::new(barrier, self.parts.writers.written_files()));
        self.control.append(ControlCommand::StartCheckpoint(barrier));
    }

    /// The epoch of a checkpoint is complete.
    pub fn on_aligned(&mut self, aligned: AlignedBarrier) {
        let Some(pending) = self.pending.as_mut().filter(|pending| pending.barrier == aligned.barrier) else {
            return;
        };
        let mut positions = Positions::new();
        let names = self.partitions.names();
        for (index, at) in &aligned.positions {
            if let Some(name) = names.get(usize::from(index.0)) {
                positions.entry(name.source.clone()).or_default().insert(name.partition, at.position);
            }
        }
        let checkpoint = aligned.barrier.checkpoint;
        pending.aligned = Some(aligned);
        self.control.append(ControlCommand::SealCheckpoint { checkpoint, positions });
    }

    /// A process has written its part, or reports why it has none.
    pub fn on_part(&mut self, process: usize, checkpoint: u64, part: Result<Vec<u8>, String>) {
        let part: Result<Vec<WorkerPart>, String> =
            part.and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string()));
        let Some(pending) = self.pending.as_mut().filter(|pending| pending.barrier.checkpoint == checkpoint)
        else {
            // The part arrived after the checkpoint was cancelled.
            return self.repository.checkpoints.discard_parts(&part.unwrap_or_default());
        };
        match part {
            Ok(parts) => drop(pending.parts.insert(process, parts)),
            Err(why) => self.cancel(&why),
        }
    }

    /// Publishes a complete checkpoint on a thread of its own, and handles the result.
    fn publish_if_complete(&mut self) {
        let Some(pending) = &mut self.pending else { return };
        if let Some(publishing) = pending.publishing.take_if(|publishing| publishing.is_finished()) {
            match publishing.join() {
                Ok(Ok(manifest)) => self.finish(manifest),
                Ok(Err(error)) => self.cancel(&error.to_string()),
                Err(_) => self.cancel("the thread that publishes it has panicked"),
            }
            return;
        }
        let is_complete = pending.parts.len() == self.processes && pending.publishing.is_none();
        let Some(aligned) = pending.aligned.as_ref().filter(|_| is_complete) else { return };
        let (positions, logs) = self.repository.covered_positions(&aligned.positions, &self.partitions);
        let header = CheckpointHeader {
            generation: self.repository.generation.clone(),
            epoch: aligned.epoch,
            identity: self.repository.identity.clone(),
            positions,
            logs,
        };
        let parts = std::mem::take(&mut pending.parts).into_values().flatten().collect();
        let adds_to = self.last.clone().filter(|_| !pending.barrier.full);
        let checkpoints = self.repository.checkpoints.clone();
        let publish = move || publish_manifest(&checkpoints, header, parts, adds_to.as_ref());
        match thread::Builder::new().name("publish".into()).spawn(publish) {
            Ok(publishing) => pending.publishing = Some(publishing),
            Err(error) => self.cancel(&start_failure_text(&error)),
        }
    }

    fn finish(&mut self, manifest: Manifest) {
        if let Some(pending) = self.pending.take() {
            let took = pending.began.elapsed();
            tracing::debug!(checkpoint = %manifest.name(), full = pending.barrier.full, ?took, "a checkpoint was published");
            metrics::gauge!("swelter_checkpoint_seconds").set(took.as_secs_f64());
        }
        metrics::gauge!("swelter_checkpoint_epoch").set(manifest.epoch as f64);
        metrics::gauge!("swelter_checkpoint_bytes").set(manifest.own_bytes() as f64);
        metrics::counter!("swelter_checkpoints_total").increment(1);
        self.verifier.enqueue(manifest.name());
        self.last = Some(manifest);
    }

    /// Cancels the pending checkpoint. The next one is full, since this one may or may not have
    /// been published.
    fn cancel(&mut self, why: &str) {
        tracing::warn!(
            "a checkpoint failed; the next one is full and follows after checkpoints.every: {why}"
        );
        metrics::counter!("swelter_checkpoint_failures_total").increment(1);
        self.last = None;
        self.retry_due = true;
        self.next = self.next.max(Instant::now() + checkpoint_interval(&self.repository.plan));
        let Some(pending) = self.pending.take() else { return };
        let parts: Vec<WorkerPart> = pending.parts.into_values().flatten().collect();
        self.repository.checkpoints.discard_parts(&parts);
        self.control.append(ControlCommand::CancelCheckpoint { checkpoint: pending.barrier.checkpoint });
    }
}

impl PendingCheckpoint {
    fn new(barrier: CheckpointBarrier, files: u64) -> PendingCheckpoint {
        let now = Instant::now();
        PendingCheckpoint {
            barrier,
            began: now,
            progress: PendingProgress { is_aligned: false, parts: 0, files },
            since: now,
            aligned: None,
            parts: BTreeMap::new(),
            publishing: None,
        }
    }

    /// Whether the checkpoint has made no progress for too long. Publishing has timeouts of its
    /// own.
    fn is_stalled(&mut self, files: u64, timeout: Duration) -> bool {
        let now = PendingProgress { is_aligned: self.aligned.is_some(), parts: self.parts.len(), files };
        if self.progress != now || self.publishing.is_some() {
            (self.progress, self.since) = (now, Instant::now());
        }
        self.since.elapsed() > timeout
    }
}

fn checkpoint_interval(plan: &CheckpointPlan) -> Duration {
    Duration::from_millis(plan.interval.millis().unsigned_abs())
}

/// Removes the remains of earlier generations, on a thread of its own.
fn spawn_sweep(repository: &CheckpointRepository) -> Result<(), RunError> {
    let (checkpoints, generation) = (repository.checkpoints.clone(), repository.generation.clone());
    let sweep = move || {
        if let Err(error) = checkpoints.remove_orphaned_files(&generation) {
            tracing::warn!(
                "unfinished checkpoints of earlier runs cannot be removed now; the next start tries again: {error}"
            );
        }
    };
    thread::Builder::new().name("sweep".into()).spawn(sweep).map(drop).map_err(RunError::Threads)
}

fn publish_manifest(
    checkpoints: &Checkpoints,
    header: CheckpointHeader,
    parts: Vec<WorkerPart>,
    adds_to: Option<&Manifest>,
) -> Result<Manifest, CheckpointError> {
    let manifest = Manifest::new(header, parts.clone(), adds_to);
    let manifest = manifest.inspect_err(|_| checkpoints.discard_parts(&parts))?;
    checkpoints.publish(&manifest)?;
    Ok(manifest)
}
