//! What a worker hands to durable sinks: the closed parcels of its shards, with the input positions that they are complete up
//! to; and where a replay stops on its way.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::dataflow::Closed;
use crate::dataflow::rolling::serving::ProgressReport;
use crate::model::{
    Batch, EncodedBatch, Fingerprint, LogPosition, PartitionIndex, PartitionProgress, PartitionTable, Shard,
    Topology,
};
use crate::sinks::kafka::progress::BySource;
use crate::sinks::kafka::{ShardBatch, ShardSenders};

/// Bytes that may wait for the sinks before sources wait for them.
const MAX_PENDING_BYTES: usize = 64 * 1024 * 1024;

/// Where a replay stops: at the positions that shards have made durable. An epoch ends exactly there, the same one at all
/// workers, so that each shard goes on behind what it has written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ResumePoints {
    /// In their order: each is nowhere before the one in front of it.
    pub points: Vec<HashMap<PartitionIndex, u64>>,
    /// The cut behind which a shard goes on; from the beginning, where it has none.
    pub of_shards: HashMap<Shard, usize>,
}

/// What holds workers back until the outlets are theirs: while another generation writes them, nothing is read beyond what that has made
/// durable, so that whatever it ends with, this run is not ahead of it.
#[derive(Default)]
pub struct Gate {
    /// How far partitions may be read while another generation is followed.
    follow: Mutex<HashMap<PartitionIndex, u64>>,
    opened: OnceLock<Opened>,
    /// How many workers know of the opening.
    seen: AtomicUsize,
    /// All of them do, at all processes: from now on the cuts alone say where to wait.
    released: AtomicBool,
    /// No epoch below is used from then on.
    floor: AtomicU64,
}

/// Outlets that are this run's, and where a replay stops for them.
struct Opened {
    cuts: ResumePoints,
    outlets: Vec<ShardSenders>,
}

impl Gate {
    /// One that is open from the start.
    pub fn open(cuts: ResumePoints, outlets: Vec<ShardSenders>) -> Gate {
        let gate = Gate::default();
        gate.install(cuts, outlets);
        gate.release(0);
        gate
    }

    /// How far the generation that is followed has come for certain.
    pub fn follow(&self, positions: impl IntoIterator<Item = (PartitionIndex, u64)>) {
        let mut follow = self.follow.lock().unwrap_or_else(PoisonError::into_inner);
        for (slot, position) in positions {
            let known = follow.entry(slot).or_insert(position);
            *known = position.max(*known);
        }
    }

    /// The first step of the opening: every worker learns of it before any reads on.
    pub fn install(&self, cuts: ResumePoints, outlets: Vec<ShardSenders>) {
        let _ = self.opened.set(Opened { cuts, outlets });
    }

    /// How many workers of this process have learned of it.
    pub fn seen(&self) -> usize {
        self.seen.load(Ordering::Acquire)
    }

    /// The second step, once all workers of all processes have.
    pub fn release(&self, floor: u64) {
        self.floor.store(floor, Ordering::Relaxed);
        self.released.store(true, Ordering::Release);
    }

    pub fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// The least epoch that may be used.
    pub fn floor(&self) -> u64 {
        self.floor.load(Ordering::Relaxed)
    }

    fn cuts(&self) -> Option<&ResumePoints> {
        self.opened.get().map(|opened| &opened.cuts)
    }

    fn limit(&self, slot: PartitionIndex, start: u64) -> u64 {
        self.follow.lock().unwrap_or_else(PoisonError::into_inner).get(&slot).copied().unwrap_or(start)
    }
}

/// How far a replay has come on its way through the cuts.
pub struct Replay {
    gate: Arc<Gate>,
    /// This worker knows of the opening.
    is_open: bool,
    /// The epochs of the cuts that are behind us.
    passed: Vec<u64>,
    /// When each partition came to the next one.
    reached: HashMap<PartitionIndex, u64>,
    /// How far each was read, and the last record before that.
    read: BTreeMap<PartitionIndex, u64>,
    before: BTreeMap<PartitionIndex, Fingerprint>,
    /// How many there were at the start.
    partitions: usize,
}

impl Replay {
    /// `starts` is where each partition is read from, by slot.
    pub fn new(gate: Arc<Gate>, starts: &[LogPosition]) -> Replay {
        let read = (0..).map(PartitionIndex).zip(starts.iter().map(|start| start.position)).collect();
        let known =
            (0..).map(PartitionIndex).zip(starts).filter_map(|(slot, start)| Some((slot, start.before?)));
        let before = known.collect();
        let (passed, reached) = (Vec::new(), HashMap::new());
        Replay { gate, is_open: false, passed, reached, read, before, partitions: starts.len() }
    }

    /// Learns of the opening; all epochs before `upper` are closed, and none that goes beyond a cut is sent before everybody has learned
    /// of it.
    fn learn(&mut self, upper: u64) -> bool {
        if self.is_open || self.gate.cuts().is_none() {
            return false;
        }
        self.is_open = true;
        let at: Vec<PartitionIndex> = self.at_next_point();
        self.reached.extend(at.into_iter().map(|slot| (slot, upper.saturating_sub(1))));
        self.gate.seen.fetch_add(1, Ordering::Release);
        true
    }

    /// The partitions that were read up to the next cut.
    fn at_next_point(&self) -> Vec<PartitionIndex> {
        let Some(next) = self.next() else { return Vec::new() };
        let at = |(slot, read): &(&PartitionIndex, &u64)| {
            usize::from(slot.0) < self.partitions && next.get(*slot).is_none_or(|cut| cut <= *read)
        };
        self.read.iter().filter(at).map(|(slot, _)| *slot).collect()
    }

    fn next(&self) -> Option<&HashMap<PartitionIndex, u64>> {
        self.gate.cuts()?.points.get(self.passed.len())
    }

    /// Where a partition, which was opened at `start`, must wait for the others.
    pub fn limit(&self, slot: PartitionIndex, start: u64) -> u64 {
        match self.is_open && self.gate.is_released() {
            true => self.next().map_or(u64::MAX, |cut| cut.get(&slot).copied().unwrap_or(start)),
            false => self.gate.limit(slot, start),
        }
    }

    /// Whether what a shard gets at an epoch is behind what it has written.
    fn is_new(&self, shard: Shard, epoch: u64) -> bool {
        let Some(cuts) = self.gate.cuts().filter(|_| self.is_open) else { return false };
        match cuts.of_shards.get(&shard) {
            None => true,
            Some(cut) => self.passed.get(*cut).is_some_and(|passed| epoch > *passed),
        }
    }

    /// Hears how far a partition was read; in the order of epochs.
    fn on_progress(&mut self, read: &ProgressReport) {
        let Some(PartitionProgress { partition: slot, applied_until: applied, before, .. }) = read.progress
        else {
            return;
        };
        self.read.insert(slot, applied);
        if let Some(before) = before {
            self.before.insert(slot, before);
        }
        // Those that came later are read behind the last cut only.
        let from_start = usize::from(slot.0) < self.partitions;
        let is_there = |cut: &HashMap<PartitionIndex, u64>| cut.get(&slot).is_none_or(|cut| *cut <= applied);
        if self.is_open && from_start && self.next().is_none_or(is_there) {
            self.reached.entry(slot).or_insert(read.epoch);
        }
    }

    /// Passes the cuts that all partitions have come to. None reads on before that, so all that is behind a cut is in later
    /// epochs.
    fn pass_reached_points(&mut self) {
        while self.is_open && self.next().is_some() && self.reached.len() == self.partitions {
            let epoch = self.reached.values().copied().max().unwrap_or(0);
            self.passed.push(epoch);
            self.reached.clear();
            // Some are at the next one already.
            let reached = self.at_next_point();
            self.reached.extend(reached.into_iter().map(|slot| (slot, epoch)));
        }
    }
}

pub struct Outgoing {
    parcels: Closed<EncodedBatch>,
    read: Closed<ProgressReport>,
    open_parcels: VecDeque<(u64, Vec<EncodedBatch>)>,
    open_reads: VecDeque<(u64, Vec<ProgressReport>)>,
    /// Up to where each has been closed, and all of it was handed on.
    parcels_upper: u64,
    reads_upper: u64,
    upper: u64,
    replay: Replay,
    slots: PartitionTable,
    index: usize,
    topology: Topology,
    shards: Vec<OwnedShard>,
}

/// A shard whose parcels come to this worker.
struct OwnedShard {
    shard: Shard,
    outlet: usize,
    waiting: Vec<EncodedBatch>,
    /// The positions that it has not been told of.
    moved: bool,
}

impl Outgoing {
    pub fn new(
        parcels: Closed<EncodedBatch>,
        read: Closed<ProgressReport>,
        (index, topology): (usize, Topology),
        gate: Arc<Gate>,
        slots: PartitionTable,
        starts: &[LogPosition],
    ) -> Outgoing {
        let mut outgoing = Outgoing {
            parcels,
            read,
            open_parcels: VecDeque::new(),
            open_reads: VecDeque::new(),
            parcels_upper: 0,
            reads_upper: 0,
            upper: 0,
            replay: Replay::new(gate, starts),
            slots,
            index,
            topology,
            shards: Vec::new(),
        };
        outgoing.learn();
        outgoing
    }

    /// Learns that the outlets are this run's, once they are.
    fn learn(&mut self) {
        if !self.replay.learn(self.upper) {
            return;
        }
        let all = self
            .outlets()
            .iter()
            .enumerate()
            .flat_map(|(at, outlet)| outlet.shards().map(move |shard| (at, shard)));
        let own = all.filter(|(_, shard)| self.topology.writer_worker_of(*shard) == self.index);
        let shards =
            own.map(|(outlet, shard)| OwnedShard { shard, outlet, waiting: Vec::new(), moved: true });
        self.shards = shards.collect();
    }

    fn outlets(&self) -> &[ShardSenders] {
        self.replay.gate.opened.get().map_or(&[], |opened| &opened.outlets)
    }

    pub fn replay(&self) -> &Replay {
        &self.replay
    }

    /// Whether sources must wait for the sinks.
    pub fn is_full(&self) -> bool {
        self.outlets().iter().any(|outlet| outlet.pending_bytes() > MAX_PENDING_BYTES)
    }

    /// Hands on what has closed. At the end, epochs before `end` are complete.
    pub fn hand_on(&mut self, end: u64) {
        while let Some(Batch { upper, changes, .. }) = self.parcels.next_batch() {
            self.parcels_upper = upper;
            self.open_parcels.extend(changes);
        }
        while let Some(Batch { upper, changes, .. }) = self.read.next_batch() {
            self.reads_upper = upper;
            self.open_reads.extend(changes);
        }
        let upper = self.parcels_upper.min(self.reads_upper).min(end);
        self.learn();
        if upper <= self.upper {
            return;
        }
        self.upper = upper;
        let mut moved = false;
        while let Some((_, reads)) = before(&mut self.open_reads, upper) {
            reads.iter().for_each(|read| self.replay.on_progress(read));
            moved |= has_progress(&reads);
        }
        self.replay.pass_reached_points();
        while let Some((epoch, parcels)) = before(&mut self.open_parcels, upper) {
            for parcel in parcels {
                let own = self.shards.iter_mut().find(|own| own.shard == parcel.shard);
                if let Some(own) = own.filter(|own| self.replay.is_new(own.shard, epoch)) {
                    own.waiting.push(parcel);
                }
            }
        }
        self.send_to_shards(upper - 1, moved);
    }

    fn send_to_shards(&mut self, epoch: u64, moved: bool) {
        let mut at = None;
        let Some(Opened { outlets, .. }) = self.replay.gate.opened.get() else { return };
        for own in &mut self.shards {
            own.moved |= moved;
            if !own.moved || !self.replay.is_new(own.shard, epoch) {
                continue;
            }
            own.moved = false;
            let (positions, before) = at.get_or_insert_with(|| {
                let Replay { read, before, .. } = &self.replay;
                (Arc::new(by_source(read, &self.slots)), Arc::new(by_source(before, &self.slots)))
            });
            let parcels = std::mem::take(&mut own.waiting);
            let (positions, before) = (Arc::clone(positions), Arc::clone(before));
            let portion = ShardBatch { parcels, epoch, positions, before };
            outlets[own.outlet].send_batch(own.shard, portion);
        }
    }
}

/// Whether partitions were read. Questions are no such reads: were they counted, what waits for a sink that is away would have no end.
fn has_progress(reads: &[ProgressReport]) -> bool {
    reads.iter().any(|read| read.progress.is_some())
}

/// The first piece, if it is of an epoch before `upper`.
fn before<T>(open: &mut VecDeque<(u64, T)>, upper: u64) -> Option<(u64, T)> {
    open.front().is_some_and(|(epoch, _)| *epoch < upper).then(|| open.pop_front()).flatten()
}

fn by_source<T: Copy>(values: &BTreeMap<PartitionIndex, T>, slots: &PartitionTable) -> BySource<T> {
    let names = slots.names();
    let mut by_source = BySource::new();
    for (slot, value) in values {
        if let Some(name) = names.get(usize::from(slot.0)) {
            by_source.entry(name.source.clone()).or_default().insert(name.partition, *value);
        }
    }
    by_source
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Partitions are read as they may be, a few records an epoch, by workers that all hear of it when the epoch has closed.
    fn replay(
        cuts: &ResumePoints,
        starts: &[u64],
        ends: &[u64],
        steps: &[(usize, u64)],
    ) -> (Replay, Vec<Vec<u64>>) {
        let from: Vec<LogPosition> = starts.iter().map(|start| (*start).into()).collect();
        let mut replay = Replay::new(Arc::new(Gate::open(cuts.clone(), Vec::new())), &from);
        replay.learn(0);
        let mut read = starts.to_vec();
        let mut epochs: Vec<Vec<u64>> = starts.iter().map(|start| vec![0; *start as usize]).collect();
        let mut said = vec![None; starts.len()];
        for (epoch, (slot, records)) in (1..).zip(steps.iter().copied().chain((0..10_000).map(|i| (i, 3)))) {
            let at = slot % starts.len();
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
    fn progress_queries_do_not_count_as_progress() {
        let question = ProgressReport { epoch: 1, progress: None, caught_up: false };
        let progress = Some(PartitionProgress {
            partition: PartitionIndex(0),
            applied_until: 1,
            log_end: 1,
            withheld: 0,
            before: None,
            city_count: 0,
        });
        assert!(!has_progress(&[]) && !has_progress(&[question]));
        assert!(has_progress(&[question, ProgressReport { progress, ..question }]));
    }

    proptest! {
        #[test]
        fn replayed_records_fall_on_correct_side_of_resume_points(
            starts in proptest::collection::vec(0..5u64, 1..5),
            rises in proptest::collection::vec(proptest::collection::vec(0..7u64, 5), 0..4),
            absent in proptest::collection::vec(any::<bool>(), 5),
            steps in proptest::collection::vec((0..5usize, 0..9u64), 0..80),
        ) {
            let mut cuts = ResumePoints::default();
            let mut at = starts.clone();
            for rise in &rises {
                let positions = at.iter_mut().zip(rise).enumerate().filter_map(|(slot, (at, rise))| {
                    *at += if absent[slot] { 0 } else { *rise };
                    (!absent[slot]).then_some((PartitionIndex(slot as u16), *at))
                });
                cuts.points.push(positions.collect());
            }
            cuts.of_shards = (0..rises.len()).map(|cut| (Shard(cut as u16), cut)).collect();
            let ends: Vec<u64> = at.iter().map(|at| at + 5).collect();
            let (replay, epochs) = replay(&cuts, &starts, &ends, &steps);
            prop_assert_eq!(replay.passed.len(), rises.len());
            for (slot, epochs) in epochs.iter().enumerate() {
                prop_assert_eq!(epochs.len() as u64, ends[slot]);
                for (cut, positions) in cuts.points.iter().enumerate() {
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
