//! A sink between its claim and its end.

use std::sync::Arc;
use std::thread;

use super::contract::{DurableSink, Heartbeat, ProgressWriter};
use super::error::SinkError;
use super::progress::{EPOCHS, ProgressSnapshot, ShardProgress, SinkClaim};
use super::shard::{FencedShards, RunningShards, ShardSenders, ShardSettings};
use crate::fault::start_failure_text;
use crate::model::Shard;

/// A sink that is this run's: no earlier start writes any more, and what they have written is known.
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
    /// A sink that was claimed, fenced and read, in this order.
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

    /// Whose heartbeat goes on as long as the sink is this run's.
    pub fn with_heartbeat(self, heartbeat: Option<Heartbeat>) -> ClaimedSink {
        ClaimedSink { heartbeat, ..self }
    }

    /// The number of this start and a random one, as `17-9f2c41d06b3e8a55`.
    pub fn generation(&self) -> Arc<str> {
        self.claim.generation()
    }

    /// No epoch below may be used: an earlier start may have used it.
    pub fn epoch_floor(&self) -> Result<u64, SinkError> {
        let shards = self.shards()?;
        let written =
            shards.iter().map(|(_, progress)| progress.as_ref().map_or(0, |progress| progress.epoch + 1));
        Ok(written.max().unwrap_or(0).max(self.progress.get::<u64>(EPOCHS)?.unwrap_or(0)))
    }

    /// The shards, and how far each has come, if it ever has.
    pub fn shards(&self) -> Result<Vec<(Shard, Option<ShardProgress>)>, SinkError> {
        let shard = |number: u16| Ok((Shard(self.first_shard.0 + number), self.progress.shard(number)?));
        (0..self.sink.shards()).map(shard).collect()
    }

    /// What earlier starts have recorded.
    pub fn progress(&self) -> &ProgressSnapshot {
        &self.progress
    }

    /// Records more, if the sink can be an authority.
    pub fn progress_writer(&self) -> Option<&ProgressWriter> {
        self.writer.as_ref()
    }

    /// Starts the shards' threads, and if asked to the watch for another claim. `failed` hears what ends the run, at most once a
    /// thread.
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

/// A sink that is written to.
pub struct RunningSink {
    shards: RunningShards,
    _heartbeat: Option<Heartbeat>,
}

impl RunningSink {
    pub fn senders(&self) -> ShardSenders {
        self.shards.senders()
    }

    /// Waits until everything that was sent is durable; the workers have dropped their senders. False if it is not.
    pub fn finish(self) -> bool {
        self.shards.finish()
    }
}
