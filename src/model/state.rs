//! The state of cities as checkpoints hold it.

use std::sync::Arc;

use super::{BLOCK_READINGS, Block, EventTime, HeldReading, Measurement, Revision, Slot};

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
pub struct CityState {
    pub name: Arc<str>,
    /// The partition that its readings come from.
    pub slot: Slot,
    /// The newest time of an admitted reading; none while only withdrawals were.
    pub high: Option<EventTime>,
    /// All readings at this time and later are in `blocks`. What lies before it has not changed since the checkpoint that this
    /// one adds to; [`EventTime::MIN`] where it adds to none.
    pub since: EventTime,
    /// By time.
    pub blocks: Vec<Block>,
    /// Keys without a reading that were withdrawn, with the revision of the withdrawal; by time. Always all of them.
    pub withdrawn: Vec<(EventTime, Option<Revision>)>,
    /// The newest measurements, by time. Always all of them.
    pub measured: Vec<(EventTime, Measurement)>,
}

impl CityState {
    /// Applies what has changed since the state that `newer` adds to, which is this one.
    pub fn add(&mut self, newer: CityState) {
        let CityState { name, slot, high, since, blocks, withdrawn, measured } = newer;
        self.cut(since);
        let mut blocks = blocks.into_iter();
        // A block that the last checkpoint has cut off becomes whole again.
        if let Some(last) = self.blocks.last()
            && let Some(next) = blocks.as_slice().first()
            && last.len() + next.len() <= BLOCK_READINGS
        {
            let joined: Vec<HeldReading> = last.iter().chain(next.iter()).collect();
            self.blocks.pop();
            blocks.next();
            self.blocks.push(Block::pack(&joined));
        }
        self.blocks.extend(blocks);
        let since = since.min(self.since);
        let blocks = std::mem::take(&mut self.blocks);
        *self = CityState { name, slot, high, since, blocks, withdrawn, measured };
    }

    /// Drops the readings at `since` and later.
    fn cut(&mut self, since: EventTime) {
        while let Some(last) = self.blocks.pop_if(|last| last.last().is_none_or(|at| at >= since)) {
            if last.first().is_some_and(|at| at < since) {
                let kept: Vec<HeldReading> =
                    last.iter().take_while(|reading| reading.reading_at < since).collect();
                self.blocks.push(Block::pack(&kept));
            }
        }
    }
}

/// Asks for a checkpoint: the state as it is after the epoch at which this is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    pub checkpoint: u64,
    /// Of every city all readings; otherwise only the cities that have changed since the last mark, with what has changed.
    pub full: bool,
}

/// Takes the state of a worker's cities, while the flow goes on.
pub trait Snapshots {
    /// What follows is the state after `epoch`.
    fn begin(&mut self, mark: Mark, epoch: u64);

    /// A city, each at most once, in any order.
    fn city(&mut self, city: CityState);

    /// There were all.
    fn end(&mut self);

    /// Whether it should be given no more for a moment. A city that is about to change is given all the same.
    fn is_full(&self) -> bool;

    /// Whether nobody wants this one any more: no more of it is given. The next one is full then.
    fn has_given_up(&self, _mark: Mark) -> bool {
        false
    }
}
