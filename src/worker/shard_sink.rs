//! Sends whole epochs to the shards of durable sinks, with the input positions up to which they are
//! complete.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::closed_epochs::ClosedEpochs;
use super::replay::{InstalledSinks, Replay};
use crate::dataflow::rolling::serving::ProgressReport;
use crate::model::{EncodedBatch, PartitionIndex, PartitionTable, Shard, Topology};
use crate::sinks::progress::BySource;
use crate::sinks::shard::{ShardBatch, ShardSenders};

/// Bytes that may wait for the sinks before sources must wait.
const MAX_PENDING_BYTES: usize = 64 * 1024 * 1024;

pub struct ShardSink {
    partitions: PartitionTable,
    worker: usize,
    topology: Topology,
    /// Epochs below this one were sent on.
    upper: u64,
    shards: Vec<OwnedShard>,
}

/// A shard whose batches this worker receives.
struct OwnedShard {
    shard: Shard,
    /// The index of its sink.
    sink: usize,
    waiting: Vec<EncodedBatch>,
    /// Positions have moved since the last batch.
    has_moved: bool,
}

impl ShardSink {
    pub fn new(partitions: PartitionTable, worker: usize, topology: Topology) -> ShardSink {
        ShardSink { partitions, worker, topology, upper: 0, shards: Vec::new() }
    }

    pub fn upper(&self) -> u64 {
        self.upper
    }

    pub fn is_full(senders: &[ShardSenders]) -> bool {
        senders.iter().any(|senders| senders.pending_bytes() > MAX_PENDING_BYTES)
    }

    /// Finds the shards of this worker, once this run owns the sinks.
    fn find_owned_shards(&mut self, sinks: &InstalledSinks) {
        let all = sinks.senders.iter().enumerate();
        let all = all.flat_map(|(sink, senders)| senders.shards().map(move |shard| (sink, shard)));
        let owned = all.filter(|(_, shard)| self.topology.writer_worker_of(*shard) == self.worker);
        let owned =
            owned.map(|(sink, shard)| OwnedShard { shard, sink, waiting: Vec::new(), has_moved: true });
        self.shards = owned.collect();
    }

    /// Sends on all epochs before `upper`, which are closed.
    pub fn hand_on(
        &mut self,
        batches: &mut ClosedEpochs<EncodedBatch>,
        progress: &mut ClosedEpochs<ProgressReport>,
        upper: u64,
        replay: &mut Replay,
    ) {
        if upper <= self.upper {
            return;
        }
        self.upper = upper;
        if self.shards.is_empty()
            && let Some(sinks) = replay.sinks()
        {
            self.find_owned_shards(&Arc::clone(sinks));
        }
        let mut has_moved = false;
        while let Some((_, reports)) = progress.next_before(upper) {
            reports.iter().for_each(|report| replay.on_progress(report));
            has_moved |= has_progress(&reports);
        }
        replay.pass_reached_points();
        while let Some((epoch, batches)) = batches.next_before(upper) {
            for batch in batches {
                let owned = self.shards.iter_mut().find(|owned| owned.shard == batch.shard);
                if let Some(owned) = owned.filter(|owned| replay.is_new(owned.shard, epoch)) {
                    owned.waiting.push(batch);
                }
            }
        }
        self.send_to_shards(upper - 1, has_moved, replay);
    }

    fn send_to_shards(&mut self, epoch: u64, has_moved: bool, replay: &Replay) {
        let mut at = None;
        let Some(sinks) = replay.sinks() else { return };
        for owned in &mut self.shards {
            owned.has_moved |= has_moved;
            if !owned.has_moved || !replay.is_new(owned.shard, epoch) {
                continue;
            }
            owned.has_moved = false;
            let (positions, before) = at.get_or_insert_with(|| {
                let of_source = |values| Arc::new(by_source(values, &self.partitions));
                (of_source(replay.positions()), Arc::new(by_source(replay.before(), &self.partitions)))
            });
            let batch = ShardBatch {
                batches: std::mem::take(&mut owned.waiting),
                epoch,
                positions: Arc::clone(positions),
                before: Arc::clone(before),
            };
            sinks.senders[owned.sink].send_batch(owned.shard, batch);
        }
    }
}

/// Whether partitions were read. Queries do not count as progress: otherwise the batches that wait
/// for an unreachable sink would grow without limit.
fn has_progress(reports: &[ProgressReport]) -> bool {
    reports.iter().any(|report| report.progress.is_some())
}

fn by_source<T: Copy>(values: &BTreeMap<PartitionIndex, T>, partitions: &PartitionTable) -> BySource<T> {
    let names = partitions.names();
    let mut by_source = BySource::new();
    for (index, value) in values {
        if let Some(name) = names.get(usize::from(index.0)) {
            by_source.entry(name.source.clone()).or_default().insert(name.partition, *value);
        }
    }
    by_source
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PartitionProgress;

    #[test]
    fn queries_are_no_progress() {
        let query = ProgressReport { epoch: 1, progress: None, caught_up: false };
        let progress = PartitionProgress {
            partition: PartitionIndex(0),
            applied_until: 1,
            log_end: 1,
            withheld: 0,
            before: None,
            city_count: 0,
        };
        assert!(!has_progress(&[]) && !has_progress(&[query]));
        assert!(has_progress(&[query, ProgressReport { progress: Some(progress), ..query }]));
    }
}
