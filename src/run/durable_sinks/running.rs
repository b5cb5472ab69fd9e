//! The sinks of a run once they are claimed.

use std::sync::Arc;

use super::resume_points::find_resume_points;
use crate::run::run_error::RunError;
use crate::sinks::error::SinkError;
use crate::sinks::progress::ProgressSnapshot;
use crate::sinks::shard::ShardSenders;
use crate::sinks::{ClaimedSink, ProgressWriter, RunningSink};
use crate::worker::{LogPartition, ResumePoints};

/// The claimed sinks in their order, with the progress of earlier starts.
pub struct DurableSinks(Vec<ClaimedSink>);

impl DurableSinks {
    pub fn new(claimed: Vec<ClaimedSink>) -> DurableSinks {
        DurableSinks(claimed)
    }

    /// The generation of the authority, if it is one of the sinks.
    pub fn generation(&self) -> Option<Arc<str>> {
        self.authority().map(ClaimedSink::generation)
    }

    fn authority(&self) -> Option<&ClaimedSink> {
        self.0.first().filter(|sink| sink.progress_writer().is_some())
    }

    /// The lowest epoch that may be used.
    pub fn epoch_floor(&self) -> Result<u64, RunError> {
        let floors = self.0.iter().map(ClaimedSink::epoch_floor).collect::<Result<Vec<_>, _>>()?;
        Ok(floors.into_iter().max().unwrap_or(0))
    }

    /// Writes the durable epoch bound if there is no data directory.
    pub fn progress_writer(&self) -> Option<ProgressWriter> {
        self.authority().and_then(ClaimedSink::progress_writer).cloned()
    }

    /// Writes further records of a sink, given by its index in the order of claims.
    pub(super) fn progress_writer_of(&self, sink: usize) -> Option<ProgressWriter> {
        self.0.get(sink).and_then(ClaimedSink::progress_writer).cloned()
    }

    pub fn progress(&self) -> Vec<&ProgressSnapshot> {
        self.0.iter().map(ClaimedSink::progress).collect()
    }

    /// The resume points of a replay of these partitions.
    pub fn resume_points(&self, partitions: &[LogPartition]) -> Result<ResumePoints, RunError> {
        let mut all = Vec::new();
        for sink in &self.0 {
            all.extend(sink.shards()?.into_iter().filter_map(|(shard, progress)| Some((shard, progress?))));
        }
        find_resume_points(all, partitions)
    }

    /// Starts the writers, and if requested the watch for other claims. `failed` receives the
    /// reason if the run must end.
    pub fn start_writing(
        self,
        watches: bool,
        failed: Arc<dyn Fn(SinkError) + Send + Sync>,
    ) -> Result<RunningSinks, RunError> {
        let start = |sink: ClaimedSink| sink.start_writers(watches, &failed);
        Ok(RunningSinks(self.0.into_iter().map(start).collect::<Result<_, _>>()?))
    }
}

/// Sinks that are being written to.
pub struct RunningSinks(Vec<RunningSink>);

impl RunningSinks {
    pub fn senders(&self) -> Vec<ShardSenders> {
        self.0.iter().map(RunningSink::senders).collect()
    }

    /// Waits until everything is durable. Returns false if that fails.
    pub fn finish(self) -> bool {
        // Finish all sinks, even after one has failed.
        let written: Vec<bool> = self.0.into_iter().map(RunningSink::finish).collect();
        written.into_iter().all(|written| written)
    }
}
