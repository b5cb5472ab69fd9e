//! Resume points of a replay: the positions that the shards of durable sinks have reached.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dataflow::rolling::serving::ProgressReport;
use crate::model::{Fingerprint, LogPosition, PartitionIndex, PartitionProgress, Shard};
use crate::sinks::shard::ShardSenders;

/// Positions that shards have made durable. An epoch ends exactly at each point, and it is the same
/// epoch at all workers, so each shard continues behind what it has written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumePoints {
    /// In order: no partition of a point is before its position in the previous point.
    pub points: Vec<HashMap<PartitionIndex, u64>>,
    /// The index of the point behind which a shard continues. A shard without one receives
    /// everything.
    pub of_shards: HashMap<Shard, usize>,
}

/// The sinks of this process, and the resume points of a replay.
pub struct InstalledSinks {
    pub points: ResumePoints,
    pub senders: Vec<ShardSenders>,
}

/// The progress of one worker's replay through the resume points.
pub struct Replay {
    /// How far partitions may be read while a primary is followed; at first they are not read
    /// beyond their starts.
    read_until: HashMap<PartitionIndex, u64>,
    sinks: Option<Arc<InstalledSinks>>,
    is_released: bool,
    /// The epochs of the points that were passed.
    passed: Vec<u64>,
    /// The epoch at which each partition reached the next point.
    reached: HashMap<PartitionIndex, u64>,
    /// The position of each partition, and the last record before it.
    positions: BTreeMap<PartitionIndex, u64>,
    before: BTreeMap<PartitionIndex, Fingerprint>,
    /// The number of partitions at the start.
    partitions: usize,
}

impl Replay {
    /// `starts` holds the start position of each partition, by index.
    pub fn new(starts: &[LogPosition]) -> Replay {
        let indexed = || (0..).map(PartitionIndex).zip(starts);
        Replay {
            read_until: HashMap::new(),
            sinks: None,
            is_released: false,
            passed: Vec::new(),
            reached: HashMap::new(),
            positions: indexed().map(|(index, start)| (index, start.position)).collect(),
            before: indexed().filter_map(|(index, start)| Some((index, start.before?))).collect(),
            partitions: starts.len(),
        }
    }

    /// Raises the limits to these positions, which the primary has made durable. Limits never
    /// decrease.
    pub fn read_until(&mut self, positions: &[(PartitionIndex, u64)]) {
        for (index, position) in positions {
            let until = self.read_until.entry(*index).or_insert(*position);
            *until = (*position).max(*until);
        }
    }

    /// Installs the resume points. All epochs before `upper` are closed, and none that goes beyond
    /// a point is sent before every worker has installed the points.
    pub fn install(&mut self, sinks: Arc<InstalledSinks>, upper: u64) {
        self.sinks = Some(sinks);
        let at_next = self.at_next_point();
        self.reached.extend(at_next.into_iter().map(|index| (index, upper.saturating_sub(1))));
    }

    /// From now on only the resume points limit reading.
    pub fn release(&mut self) {
        self.is_released = true;
    }

    pub fn is_released(&self) -> bool {
        self.is_released
    }

    pub fn sinks(&self) -> Option<&Arc<InstalledSinks>> {
        self.sinks.as_ref()
    }

    pub fn positions(&self) -> &BTreeMap<PartitionIndex, u64> {
        &self.positions
    }

    pub fn before(&self) -> &BTreeMap<PartitionIndex, Fingerprint> {
        &self.before
    }

    /// The partitions that were read up to the next point.
    fn at_next_point(&self) -> Vec<PartitionIndex> {
        let Some(next) = self.next_point() else { return Vec::new() };
        let is_there = |(index, position): &(&PartitionIndex, &u64)| {
            usize::from(index.0) < self.partitions && next.get(*index).is_none_or(|point| point <= *position)
        };
        self.positions.iter().filter(is_there).map(|(index, _)| *index).collect()
    }

    fn next_point(&self) -> Option<&HashMap<PartitionIndex, u64>> {
        self.sinks.as_ref()?.points.points.get(self.passed.len())
    }

    /// The position at which a partition opened at `start` must wait for the others.
    pub fn limit(&self, index: PartitionIndex, start: u64) -> u64 {
        if self.sinks.is_some() && self.is_released {
            self.next_point().map_or(u64::MAX, |point| point.get(&index).copied().unwrap_or(start))
        } else {
            self.read_until.get(&index).copied().unwrap_or(start)
        }
    }

    /// Whether the output of an epoch is new for a shard, which has written earlier epochs.
    pub fn is_new(&self, shard: Shard, epoch: u64) -> bool {
        let Some(sinks) = &self.sinks else { return false };
        match sinks.points.of_shards.get(&shard) {
            None => true,
            Some(point) => self.passed.get(*point).is_some_and(|passed| epoch > *passed),
        }
    }

    /// Records how far a partition was read. Reports must come in the order of epochs.
    pub fn on_progress(&mut self, report: &ProgressReport) {
        let Some(PartitionProgress { partition, applied_until, before, .. }) = report.progress else {
            return;
        };
        self.positions.insert(partition, applied_until);
        if let Some(before) = before {
            self.before.insert(partition, before);
        }
        // Partitions that were added later are read behind the last point only.
        let is_from_start = usize::from(partition.0) < self.partitions;
        let is_there = |point: &HashMap<PartitionIndex, u64>| {
            point.get(&partition).is_none_or(|point| *point <= applied_until)
        };
        if self.sinks.is_some() && is_from_start && self.next_point().is_none_or(is_there) {
            self.reached.entry(partition).or_insert(report.epoch);
        }
    }

    /// Passes the points that all partitions have reached. No partition is read beyond a point
    /// before that, so all records behind it are in later epochs.
    pub fn pass_reached_points(&mut self) {
        while self.next_point().is_some() && self.reached.len() == self.partitions {
            let epoch = self.reached.values().copied().max().unwrap_or(0);
            self.passed.push(epoch);
            self.reached.clear();
            // Some partitions are at the next point already.
            let at_next = self.at_next_point();
            self.reached.extend(at_next.into_iter().map(|index| (index, epoch)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads the partitions within their limits, a few records in each epoch. All workers get the
    /// progress when the epoch has closed.
    fn replay(
        points: &ResumePoints,
        starts: &[u64],
        ends: &[u64],
        steps: &[(usize, u64)],
    ) -> (Replay, Vec<Vec<u64>>) {
        let from: Vec<LogPosition> = starts.iter().map(|start| (*start).into()).collect();
        let mut replay = Replay::new(&from);
        replay.install(Arc::new(InstalledSinks { points: points.clone(), senders: Vec::new() }), 0);
        replay.release();
        let mut read = starts.to_vec();
        let mut epochs: Vec<Vec<u64>> = starts.iter().map(|start| vec![0; *start as usize]).collect();
        let mut said = vec![None; starts.len()];
        for (epoch, (partition, records)) in
            (1..).zip(steps.iter().copied().chain((0..10_000).map(|i| (i, 3))))
        {
            let at = partition % starts.len();
            let limit = replay.limit(PartitionIndex(at as u16), starts[at]).min(ends[at]);
            for _ in read[at]..limit.min(read[at] + records) {
                epochs[at].push(epoch);
            }
            read[at] = epochs[at].len() as u64;
            if said[at] != Some(read[at]) {
                said[at] = Some(read[at]);
                let progress = PartitionProgress {
                    partition: PartitionIndex(at as u16),
                    applied_until: read[at],
                    log_end: ends[at],
                    withheld: 0,
                    before: None,
                    city_count: 0,
                };
                replay.on_progress(&ProgressReport { epoch, progress: Some(progress), caught_up: false });
            }
            replay.pass_reached_points();
        }
        (replay, epochs)
    }

    #[test]
    fn partitions_wait_at_their_starts_until_something_is_durable_and_for_the_release() {
        let mut replay = Replay::new(&[5.into()]);
        let partition = PartitionIndex(0);
        assert_eq!(replay.limit(partition, 5), 5);
        replay.read_until(&[(partition, 9)]);
        replay.read_until(&[(partition, 7)]);
        assert_eq!(replay.limit(partition, 5), 9, "limits never fall");
        let points =
            ResumePoints { points: vec![[(partition, 11)].into()], of_shards: [(Shard(0), 0)].into() };
        replay.install(Arc::new(InstalledSinks { points, senders: Vec::new() }), 3);
        assert_eq!(replay.limit(partition, 5), 9, "others may not know the points yet");
        replay.release();
        assert_eq!(replay.limit(partition, 5), 11);
        assert!(!replay.is_new(Shard(0), 3));
    }

    proptest! {
        #[test]
        fn replayed_records_fall_on_correct_side_of_resume_points(
            starts in proptest::collection::vec(0..5u64, 1..5),
            rises in proptest::collection::vec(proptest::collection::vec(0..7u64, 5), 0..4),
            absent in proptest::collection::vec(any::<bool>(), 5),
            steps in proptest::collection::vec((0..5usize, 0..9u64), 0..80),
        ) {
            let mut points = ResumePoints::default();
            let mut at = starts.clone();
            for rise in &rises {
                let positions = at.iter_mut().zip(rise).enumerate().filter_map(|(slot, (at, rise))| {
                    *at += if absent[slot] { 0 } else { *rise };
                    (!absent[slot]).then_some((PartitionIndex(slot as u16), *at))
                });
                points.points.push(positions.collect());
            }
            points.of_shards = (0..rises.len()).map(|point| (Shard(point as u16), point)).collect();
            let ends: Vec<u64> = at.iter().map(|at| at + 5).collect();
            let (replay, epochs) = replay(&points, &starts, &ends, &steps);
            prop_assert_eq!(replay.passed.len(), rises.len());
            for (slot, epochs) in epochs.iter().enumerate() {
                prop_assert_eq!(epochs.len() as u64, ends[slot]);
                for (cut, positions) in points.points.iter().enumerate() {
                    let at = positions.get(&PartitionIndex(slot as u16)).copied().unwrap_or(starts[slot]);
                    for (position, epoch) in epochs.iter().enumerate().skip(starts[slot] as usize) {
                        let is_new = replay.is_new(Shard(cut as u16), *epoch);
                        prop_assert_eq!(is_new, position as u64 >= at, "slot {} position {}", slot, position);
                    }
                }
            }
        }
    }
}
