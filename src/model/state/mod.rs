//! The state of cities: readings in packed blocks, and a city's state in a checkpoint.
//!
//! The dataflow's store packs its readings into blocks, checkpoints write them to files, and
//! neither layer imports the other, so both find them here.

mod block;
mod city_periods;
mod city_snapshot;

pub use self::block::{BLOCK_READINGS, Block, StoredReading};
pub use self::city_periods::{CityPeriods, PeriodKind, StoredPeriod};
pub use self::city_snapshot::{CheckpointBarrier, CitySnapshot, STATE_SHARDS, SnapshotSink, state_shard};
