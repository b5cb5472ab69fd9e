//! The output of a worker: sends closed epochs, in order, to the server of the process and to the
//! shards of durable sinks.

use super::closed_epochs::ClosedEpochs;
use super::replay::Replay;
use super::serving_sink::ServingSink;
use super::shard_sink::ShardSink;
use super::shared_state::SharedState;
use crate::dataflow::Graph;
use crate::dataflow::rolling::serving::{ProgressReport, ServingUpdate};
use crate::model::EncodedBatch;

/// The outputs of a worker's dataflow, and their receivers.
pub struct Egress {
    replay: Replay,
    serving: Option<ClosedEpochs<ServingUpdate>>,
    /// Set at the worker that serves; other workers discard serving updates.
    serving_sink: Option<ServingSink>,
    shards: Option<ShardEgress>,
}

/// The input of a worker's shards: encoded batches, and the progress up to which they are complete.
struct ShardEgress {
    batches: ClosedEpochs<EncodedBatch>,
    progress: ClosedEpochs<ProgressReport>,
    sink: ShardSink,
}

impl Egress {
    pub fn new(
        graph: &mut Graph,
        replay: Replay,
        serving_sink: Option<ServingSink>,
        shard_sink: ShardSink,
    ) -> Egress {
        let outputs = graph.encoded_batches.take().zip(graph.progress_reports.take());
        let shards = outputs.map(|(batches, progress)| ShardEgress {
            batches: ClosedEpochs::new(batches),
            progress: ClosedEpochs::new(progress),
            sink: shard_sink,
        });
        let serving = graph.serving_updates.take().map(ClosedEpochs::new);
        Egress { replay, serving, serving_sink, shards }
    }

    pub fn replay(&self) -> &Replay {
        &self.replay
    }

    pub fn replay_mut(&mut self) -> &mut Replay {
        &mut self.replay
    }

    pub fn serving_sink_mut(&mut self) -> Option<&mut ServingSink> {
        self.serving_sink.as_mut()
    }

    /// Epochs below this one were sent to the shards.
    pub fn shards_upper(&self) -> u64 {
        self.shards.as_ref().map_or(0, |shards| shards.sink.upper())
    }

    /// Whether the server has not accepted the last update yet.
    pub fn is_held_back(&self) -> bool {
        self.serving_sink.as_ref().is_some_and(ServingSink::is_held_back)
    }

    /// Whether so many bytes wait for the sinks that sources must wait.
    pub fn is_full(&self) -> bool {
        self.replay.sinks().is_some_and(|sinks| ShardSink::is_full(&sinks.senders))
    }

    /// Sends on the closed epochs. At the end, epochs before `end` are complete.
    pub fn hand_on(&mut self, end: u64, shared: &SharedState) {
        if let Some(ShardEgress { batches, progress, sink }) = &mut self.shards {
            let upper = batches.collect().min(progress.collect()).min(end);
            sink.hand_on(batches, progress, upper, &mut self.replay);
        }
        match (&mut self.serving, &mut self.serving_sink) {
            (Some(updates), Some(sink)) => {
                let is_ready = self.replay.is_released();
                let is_held_back = sink.publish_closed(updates, shared, is_ready, end);
                // The senders are the same at every worker of the process.
                shared.set_congested(is_held_back || self.is_full());
            }
            (Some(updates), None) => updates.discard(),
            (None, _) => {}
        }
    }
}
