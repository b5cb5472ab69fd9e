//! Checkpoints: the state of all cities at an epoch, in a folder or an object store.
//!
//! ```text
//! manifests/<generation>-<epoch>.json      describes a checkpoint: written last, and once
//! data/<generation>-<epoch>-<nonce>/
//!   cities-<shard>.parquet                 the cities of a state shard, without their readings
//!   readings-<shard>.parquet               the readings, by city in the same order
//! ```
//!
//! Every worker writes the state shards that it owns ([`PartWriter`]). File names have the nonce of
//! the generation, so two processes never write the same file. When all parts are written, one
//! process makes a [`Manifest`] of them and publishes it. A checkpoint exists from the moment its
//! manifest does; a manifest is never replaced. A manifest has a checksum of itself and of all
//! files, so a checkpoint is read as it was written, or reading it fails.
//!
//! A **full** checkpoint holds everything. An **increment** holds the cities that have changed
//! since the checkpoint that it adds to, without the readings before
//! [`CitySnapshot::changed_since`](crate::model::CitySnapshot::changed_since).
//! [`Manifest::next_should_be_full`] decides when the next checkpoint must be full.

mod catalog;
mod checkpoints;
mod cities;
mod error;
mod format;
mod list_columns;
mod load;
mod manifest;
mod name;
mod objects;
mod part_writer;
mod periods;
mod prune;
mod readings;
mod store;

#[cfg(test)]
mod tests;

pub use self::checkpoints::{Checkpoints, NamedManifest, UsableCheckpoints};
pub use self::error::CheckpointError;
#[cfg(test)]
pub use self::manifest::StateSegment;
#[cfg(any(test, fuzzing))]
pub(crate) use self::manifest::fuzz_manifest;
pub use self::manifest::{
    CheckpointHeader, FileEntry, Manifest, PositionsBySource, SOURCE_KEY_PREFIX, WorkerPart,
};
pub use self::name::CheckpointName;
pub use self::part_writer::{PartWriter, PartWriterControl};
pub use self::store::{BlobStore, CheckpointLocation, FetchResult};

/// The folder of the checkpoints in a data directory, unless the configuration names a location.
pub const DEFAULT_FOLDER: &str = "checkpoints";
