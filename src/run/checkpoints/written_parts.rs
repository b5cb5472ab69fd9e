//! The checkpoint parts that the workers of a process have written.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::checkpoint::{PartWriterControl, WorkerPart};
use crate::model::CheckpointBarrier;

/// Collects the parts of this process's workers.
#[derive(Default)]
pub struct WrittenParts {
    written: Mutex<HashMap<u64, Vec<Result<WorkerPart, String>>>>,
    pub(super) writers: Arc<PartWriterControl>,
}

impl WrittenParts {
    /// Adds a part. Returns it if its checkpoint was cancelled.
    pub(super) fn add(
        &self,
        barrier: CheckpointBarrier,
        part: Result<WorkerPart, String>,
    ) -> Option<WorkerPart> {
        let mut written = self.written.lock();
        if self.writers.is_cancelled(barrier.checkpoint) {
            return part.ok();
        }
        written.entry(barrier.checkpoint).or_default().push(part);
        None
    }

    /// Takes the parts of a checkpoint, once all workers have written theirs.
    pub(super) fn take_complete(
        &self,
        checkpoint: u64,
        workers: usize,
    ) -> Option<Vec<Result<WorkerPart, String>>> {
        let mut written = self.written.lock();
        let are_there = written.get(&checkpoint).is_some_and(|parts| parts.len() >= workers);
        are_there.then(|| written.remove(&checkpoint).unwrap_or_default())
    }

    /// Cancels this checkpoint and all earlier ones. Returns the parts written so far.
    pub(super) fn cancel(&self, checkpoint: u64) -> Vec<WorkerPart> {
        let mut written = self.written.lock();
        self.writers.cancel_checkpoint(checkpoint);
        let unwanted = written.extract_if(|number, _| *number <= checkpoint);
        unwanted.flat_map(|(_, parts)| parts).filter_map(Result::ok).collect()
    }
}
