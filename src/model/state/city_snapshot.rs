//! Snapshots of the state of cities, for checkpoints.

use std::sync::Arc;

use super::block::Block;
#[cfg(any(test, feature = "internals"))]
use super::block::{BLOCK_READINGS, StoredReading};
use super::city_periods::CityPeriods;
use crate::model::{EventTime, Measurement, PartitionIndex, Revision};

/// The number of parts in which the state is stored, by the hash of the city: any number of workers
/// up to this one loads whole parts.
pub const STATE_SHARDS: u32 = 64;

/// The part of the state that a city of this hash (see [`CityKey`](crate::model::CityKey)) belongs
/// to. The worker that owns a part is its number modulo the number of workers.
#[inline(always)]
pub fn state_shard(hash: u32) -> u32 {
    hash % STATE_SHARDS
}

/// All state of a city that its future results depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct CitySnapshot {
    pub name: Arc<str>,
    /// The partition that its readings come from.
    pub partition: PartitionIndex,
    /// The newest time of an admitted reading; `None` if only withdrawals were admitted.
    pub high: Option<EventTime>,
    /// `blocks` holds all readings at this time and later. Earlier ones have not changed since the
    /// checkpoint that this one adds to; [`EventTime::MIN`] if it adds to none.
    pub changed_since: EventTime,
    /// By time.
    pub blocks: Vec<Block>,
    /// Withdrawn keys without a reading, with the revision of the withdrawal, by time. Always
    /// complete.
    pub tombstones: Vec<(EventTime, Option<Revision>)>,
    /// The newest measurements, by time. Always complete.
    pub measurements: Vec<(EventTime, Measurement)>,
    /// The city was seen in more than one partition.
    pub is_split: bool,
    /// Its open periods, if the run summarises hours and days. Always complete.
    pub periods: Option<CityPeriods>,
}

impl CitySnapshot {
    /// Applies `newer`, which holds the changes since this state.
    #[cfg(any(test, feature = "internals"))]
    pub fn apply_increment(&mut self, mut newer: CitySnapshot) {
        self.truncate_from(newer.changed_since);
        let changed_since = newer.changed_since.min(self.changed_since);
        let mut blocks = std::mem::take(&mut newer.blocks).into_iter();
        // A block that the last checkpoint cut off is joined with its rest.
        if let Some(last) = self.blocks.last()
            && let Some(next) = blocks.as_slice().first()
            && last.len() + next.len() <= BLOCK_READINGS
        {
            let joined: Vec<StoredReading> = last.iter().chain(next.iter()).collect();
            self.blocks.pop();
            blocks.next();
            self.blocks.push(Block::pack(&joined));
        }
        self.blocks.extend(blocks);
        let blocks = std::mem::take(&mut self.blocks);
        *self = CitySnapshot { changed_since, blocks, ..newer };
    }

    /// Drops the readings at `since` and later.
    #[cfg(any(test, feature = "internals"))]
    fn truncate_from(&mut self, since: EventTime) {
        while let Some(last) = self.blocks.pop_if(|last| last.last_reading_at().is_none_or(|at| at >= since))
        {
            if last.first_reading_at().is_some_and(|at| at < since) {
                let earlier: Vec<StoredReading> =
                    last.iter().take_while(|reading| reading.reading_at < since).collect();
                self.blocks.push(Block::pack(&earlier));
            }
        }
    }
}

/// Requests a checkpoint: the state at the end of the epoch at which the barrier is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct CheckpointBarrier {
    pub checkpoint: u64,
    /// With all readings of every city; otherwise only the cities that changed since the last
    /// barrier, with their changes.
    pub full: bool,
}

/// Receives the state of a worker's cities while the dataflow goes on.
pub trait SnapshotSink {
    /// Begins a snapshot of the state at the end of `epoch`.
    fn begin_snapshot(&mut self, barrier: CheckpointBarrier, epoch: u64);

    /// Writes a city; each comes at most once, in any order.
    fn write_city(&mut self, city: CitySnapshot);

    /// Ends the snapshot: all cities were written.
    fn finish_snapshot(&mut self);

    /// Whether to pause. A city that is about to change is written all the same.
    fn is_full(&self) -> bool;

    /// Whether the snapshot was cancelled: no more of it is written, and the next one must be full.
    fn is_cancelled(&self, _barrier: CheckpointBarrier) -> bool {
        false
    }
}
