//! Readings of a city as they are held and kept: bit-packed.

use std::sync::Arc;

use super::{Category, EventTime, HeatIndex, Revision};

/// Readings in a full block.
pub const BLOCK_READINGS: usize = 128;

/// What is held of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldReading {
    pub reading_at: EventTime,
    pub heat_index: HeatIndex,
    pub category: Category,
    pub revision: Option<Revision>,
}

/// Up to [`BLOCK_READINGS`] consecutive readings of a city, by time. Never changed, and shared by cloning it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    bytes: Arc<[u8]>,
}
