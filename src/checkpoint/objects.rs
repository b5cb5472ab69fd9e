//! The objects of checkpoints in a store: their paths, and the checks of what is read.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::error::CheckpointError;
use super::manifest::{FileEntry, Manifest};
use super::name::CheckpointName;
use super::store::{BlobStore, FetchResult};

/// Larger than any manifest.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// Suffix of a quarantined object.
pub const DAMAGED_SUFFIX: &str = ".damaged";
pub const NO_CHECKSUM: &str = "does not match its checksum";

/// The names of the published checkpoints, newest first.
pub fn list_names(store: &BlobStore) -> Result<Vec<CheckpointName>, CheckpointError> {
    let objects = store.list_objects("manifests")?;
    let name = |path: &String| {
        path.strip_prefix("manifests/")?.strip_suffix(".json")?.parse::<CheckpointName>().ok()
    };
    // A manifest is read by the path that its name has, so one with another spelling of the name
    // does not count.
    let mut names: Vec<CheckpointName> =
        objects.keys().filter_map(|path| name(path).filter(|name| manifest_path(*name) == *path)).collect();
    names.sort_by(|a, b| b.cmp(a));
    Ok(names)
}

pub fn parse_manifest(name: CheckpointName, fetch_result: FetchResult) -> Result<Manifest, CheckpointError> {
    match fetch_result {
        FetchResult::Missing => Err(CheckpointError::Missing(name)),
        FetchResult::Content(content) => Manifest::parse(name, &content),
        FetchResult::SizeMismatch(bytes) => Err(CheckpointError::damaged_object(
            name,
            &manifest_path(name),
            &format!("has {bytes} bytes, more than a manifest can have"),
        )),
    }
}

pub fn expect_content(
    name: CheckpointName,
    file: &FileEntry,
    fetch_result: FetchResult,
) -> Result<Bytes, CheckpointError> {
    let damaged_error = |what: String| CheckpointError::damaged_object(name, &file.path, &what);
    fetch_result.into_content(&file.bytes.to_string()).map_err(damaged_error)
}

pub fn manifest_path(name: CheckpointName) -> String {
    format!("manifests/{name}.json")
}

pub fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}
