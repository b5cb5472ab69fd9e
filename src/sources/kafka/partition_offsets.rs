//! The positions of a partition that its reader and the watch thread share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The positions of a partition that its reader and the watch thread share.
#[derive(Debug)]
pub(super) struct PartitionOffsets {
    /// The position of the client: that of the next record, or behind the transaction markers after
    /// the last record.
    pub(super) position: AtomicU64,
    /// The end of the readable records: the first record of an open transaction, or the log's end.
    pub(super) end: AtomicU64,
    /// The log's end.
    pub(super) high_watermark: AtomicU64,
    pub(super) is_at_end: AtomicBool,
    pub(super) withheld: AtomicU64,
}

impl PartitionOffsets {
    pub(super) fn new(position: u64, end: u64) -> PartitionOffsets {
        PartitionOffsets {
            position: position.into(),
            end: end.into(),
            high_watermark: end.into(),
            is_at_end: false.into(),
            withheld: 0.into(),
        }
    }

    /// The number of positions from the end of the readable records on that wait for the end of a
    /// transaction.
    pub(super) fn withheld(&self) -> u64 {
        self.withheld.load(Ordering::Relaxed)
    }

    pub(super) fn update_position(&self, position: u64, at_end: bool) {
        self.position.store(position, Ordering::Relaxed);
        self.is_at_end.store(at_end, Ordering::Relaxed);
    }

    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    pub(super) fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    pub(super) fn lag(&self) -> u64 {
        let end = if self.is_at_end.load(Ordering::Relaxed) { self.position() } else { self.end() };
        end.max(self.high_watermark.load(Ordering::Relaxed)).saturating_sub(self.position())
    }
}
