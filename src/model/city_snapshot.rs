//! The state of cities as checkpoints hold it.

use std::sync::Arc;

#[cfg(any(test, feature = "internals"))]
use super::{BLOCK_READINGS, StoredReading};
use super::{Block, EventTime, Measurement, PartitionIndex, Revision};

/// The state is kept in so many parts, by the hash of the city, so that any number of workers up to this one loads whole parts.
pub const STATE_SHARDS: u32 = 64;

/// The part of the state that a city of this hash (see [`super::CityKey`]) belongs to; the worker that has the part is
/// its number modulo the number of workers.
#[inline(always)]
pub fn state_shard(hash: u32) -> u32 {
    hash % STATE_SHARDS
}

/// All that decides the future results of a city.
#[derive(Clone, Debug, PartialEq)]
pub struct CitySnapshot {
    pub name: Arc<str>,
    /// The partition that its readings come from.
    pub partition: PartitionIndex,
    /// The newest time of an admitted reading; none while only withdrawals were.
    pub high: Option<EventTime>,
    /// All readings at this time and later are in `blocks`. What lies before it has not changed since the checkpoint that this
    /// one adds to; [`EventTime::MIN`] where it adds to none.
    pub changed_since: EventTime,
    /// By time.
    pub blocks: Vec<Block>,
    /// Keys without a reading that were withdrawn, with the revision of the withdrawal; by time. Always all of them.
    pub tombstones: Vec<(EventTime, Option<Revision>)>,
    /// The newest measurements, by time. Always all of them.
    pub measurements: Vec<(EventTime, Measurement)>,
}

impl CitySnapshot {
    /// Applies what has changed since the state that `newer` adds to, which is this one.
    #[cfg(any(test, feature = "internals"))]
    pub fn apply_increment(&mut self, newer: CitySnapshot) {
        let CitySnapshot {
            name,
            partition: slot,
            high,
            changed_since: since,
            blocks,
            tombstones: withdrawn,
            measurements: measured,
        } = newer;
        self.truncate_from(since);
        let mut blocks = blocks.into_iter();
        // A block that the last checkpoint has cut off becomes whole again.
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
        let since = since.min(self.changed_since);
        let blocks = std::mem::take(&mut self.blocks);
        *self = CitySnapshot {
            name,
            partition: slot,
            high,
            changed_since: since,
            blocks,
            tombstones: withdrawn,
            measurements: measured,
        };
    }

    /// Drops the readings at `since` and later.
    #[cfg(any(test, feature = "internals"))]
    fn truncate_from(&mut self, since: EventTime) {
        while let Some(last) = self.blocks.pop_if(|last| last.last_reading_at().is_none_or(|at| at >= since))
        {
            if last.first_reading_at().is_some_and(|at| at < since) {
                let kept: Vec<StoredReading> =
                    last.iter().take_while(|reading| reading.reading_at < since).collect();
                self.blocks.push(Block::pack(&kept));
            }
        }
    }
}

/// Asks for a checkpoint: the state as it is after the epoch at which this is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct CheckpointBarrier {
    pub checkpoint: u64,
    /// Of every city all readings; otherwise only the cities that have changed since the last mark, with what has changed.
    pub full: bool,
}

/// Takes the state of a worker's cities, while the flow goes on.
pub trait SnapshotSink {
    /// What follows is the state after `epoch`.
    fn begin_snapshot(&mut self, mark: CheckpointBarrier, epoch: u64);

    /// A city, each at most once, in any order.
    fn write_city(&mut self, city: CitySnapshot);

    /// There were all.
    fn finish_snapshot(&mut self);

    /// Whether it should be given no more for a moment. A city that is about to change is given all the same.
    fn is_full(&self) -> bool;

    /// Whether nobody wants this one any more: no more of it is given. The next one is full then.
    fn is_cancelled(&self, _mark: CheckpointBarrier) -> bool {
        false
    }
}
