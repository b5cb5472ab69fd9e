//! Reports a process's part of a checkpoint, once all its workers have written theirs and its
//! shards are durable that far.

use super::repository::CheckpointRepository;
use super::written_parts::WrittenParts;
use std::sync::Arc;

use crate::checkpoint::WorkerPart;
use crate::run::control::Control;
use crate::run::protocol::ControlEvent;
use crate::sinks::progress::Positions;
use crate::sinks::shard::ShardSenders;

/// Reports the parts of this process.
pub struct PartReporter {
    repository: CheckpointRepository,
    parts: Arc<WrittenParts>,
    shard_senders: Vec<ShardSenders>,
    workers: usize,
    control: Control,
    /// The checkpoint whose part is not reported yet, and the positions that it includes.
    pending_part: Option<(u64, Positions)>,
}

impl PartReporter {
    pub fn new(
        repository: CheckpointRepository,
        parts: Arc<WrittenParts>,
        workers: usize,
        control: Control,
    ) -> PartReporter {
        PartReporter { repository, parts, shard_senders: Vec::new(), workers, control, pending_part: None }
    }

    pub fn repository(&self) -> &CheckpointRepository {
        &self.repository
    }

    pub fn parts(&self) -> &Arc<WrittenParts> {
        &self.parts
    }

    /// Parts must wait for these shards from now on.
    pub fn set_shard_senders(&mut self, shard_senders: Vec<ShardSenders>) {
        self.shard_senders = shard_senders;
    }

    /// The epoch of a checkpoint is complete, and includes the logs up to these positions.
    pub fn on_sealed(&mut self, checkpoint: u64, positions: Positions) {
        self.pending_part = Some((checkpoint, positions));
    }

    /// This checkpoint and all earlier ones are cancelled.
    pub fn on_cancelled(&mut self, checkpoint: u64) {
        self.pending_part.take_if(|(pending, _)| *pending <= checkpoint);
        self.repository.checkpoints.discard_parts(&self.parts.cancel(checkpoint));
    }

    /// Reports the pending part if it is complete. All refusals up to now must be durable.
    pub fn report_part_if_ready(&mut self) {
        let Some((checkpoint, positions)) = &self.pending_part else { return };
        if !self.shard_senders.iter().all(|senders| senders.have_written(positions)) {
            return;
        }
        let Some(parts) = self.parts.take_complete(*checkpoint, self.workers) else { return };
        let checkpoint = *checkpoint;
        self.pending_part = None;
        let parts = self.complete_part(parts);
        let part = parts.and_then(|parts| serde_json::to_vec(&parts).map_err(|error| error.to_string()));
        self.control.report(ControlEvent::CheckpointPart { checkpoint, part });
    }

    /// The parts of all workers, or why one has none.
    fn complete_part(&self, parts: Vec<Result<WorkerPart, String>>) -> Result<Vec<WorkerPart>, String> {
        let (written, failed): (Vec<_>, Vec<_>) = parts.into_iter().partition(Result::is_ok);
        let written: Vec<WorkerPart> = written.into_iter().filter_map(Result::ok).collect();
        let Some(why) = failed.into_iter().find_map(Result::err) else { return Ok(written) };
        self.repository.checkpoints.discard_parts(&written);
        Err(why)
    }
}
