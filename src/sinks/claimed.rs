//! A claimed sink, from its claim until the run ends.

use std::sync::Arc;
use std::thread;

use super::contract::{DurableSink, Heartbeat, ProgressWriter};
use super::error::SinkError;
use super::progress::{EPOCHS, ProgressSnapshot, ShardProgress, SinkClaim};
use super::shard::{FencedShards, RunningShards, ShardSenders, ShardSettings};
use crate::fault::start_failure_text;
use crate::model::Shard;

/// A sink that belongs to this run: all earlier generations are fenced, and their progress is
/// known.
pub struct ClaimedSink {
    sink: Arc<dyn DurableSink>,
    first_shard: Shard,
    claim: SinkClaim,
    fenced: FencedShards,
    heartbeat: Option<Heartbeat>,
    progress: ProgressSnapshot,
    writer: Option<ProgressWriter>,
}

impl ClaimedSink {
    /// A sink after it was claimed, fenced and read, in this order.
    pub fn new(
        sink: Arc<dyn DurableSink>,
        first_shard: Shard,
        claim: SinkClaim,
        fenced: FencedShards,
        progress: ProgressSnapshot,
    ) -> Result<ClaimedSink, SinkError> {
        let writer = sink.progress_writer()?;
        Ok(ClaimedSink { sink, first_shard, claim, fenced, heartbeat: None, progress, writer })
    }

    /// Keeps `heartbeat` running as long as this run has the sink.
    pub fn with_heartbeat(self, heartbeat: Option<Heartbeat>) -> ClaimedSink {
        ClaimedSink { heartbeat, ..self }
    }

    /// The generation of this run: its number and nonce, as `17-9f2c41d06b3e8a55`.
    pub fn generation(&self) -> Arc<str> {
        self.claim.generation()
    }

    /// The lowest epoch that may be used; an earlier generation may have used those below.
    pub fn epoch_floor(&self) -> Result<u64, SinkError> {
        let shards = self.shards()?;
        let written =
            shards.iter().map(|(_, progress)| progress.as_ref().map_or(0, |progress| progress.epoch + 1));
        Ok(written.max().unwrap_or(0).max(self.progress.get::<u64>(EPOCHS)?.unwrap_or(0)))
    }

    /// The shards, and the progress of each; `None` if a shard has none yet.
    pub fn shards(&self) -> Result<Vec<(Shard, Option<ShardProgress>)>, SinkError> {
        let shard = |number: u16| Ok((Shard(self.first_shard.0 + number), self.progress.shard(number)?));
        (0..self.sink.shards()).map(shard).collect()
    }

    /// The progress that earlier generations have recorded.
    pub fn progress(&self) -> &ProgressSnapshot {
        &self.progress
    }

    /// The writer of further records, if the sink can be an authority.
    pub fn progress_writer(&self) -> Option<&ProgressWriter> {
        self.writer.as_ref()
    }

    /// Starts the threads of the shards and, if `watches`, the watch for another claim.
    /// `failed` gets the error that ends the run, at most once from each thread.
    pub fn start_writers(
        self,
        watches: bool,
        failed: &Arc<dyn Fn(SinkError) + Send + Sync>,
    ) -> Result<RunningSink, SinkError> {
        let ClaimedSink { sink, first_shard, claim, fenced, heartbeat, progress, .. } = self;
        let settings =
            ShardSettings { commit_interval: sink.commit_interval(), metric_label: sink.metric_label() };
        let shards =
            RunningShards::start(fenced, first_shard, &settings, |number| progress.shard(number), failed)?;
        if watches {
            let (stop, failed) = (Arc::clone(shards.stop()), Arc::clone(failed));
            let watch = move || {
                if let Err(error) = sink.watch_for_claims(&claim, &stop) {
                    failed(error);
                }
            };
            let spawned = thread::Builder::new().name("claims".into()).spawn(watch);
            spawned.map_err(|error| SinkError::Fatal(start_failure_text(&error)))?;
        }
        Ok(RunningSink { shards, _heartbeat: heartbeat })
    }
}

/// A sink with running writers.
pub struct RunningSink {
    shards: RunningShards,
    _heartbeat: Option<Heartbeat>,
}

impl RunningSink {
    pub fn senders(&self) -> ShardSenders {
        self.shards.senders()
    }

    /// Waits until everything that was sent is durable; the workers must have dropped their
    /// senders. Returns false if it is not durable.
    pub fn finish(self) -> bool {
        self.shards.finish()
    }
}
