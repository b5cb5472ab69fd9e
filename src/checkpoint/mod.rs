//! Checkpoints: the state of all cities at an epoch, kept where others can read it.
//!
//! ```text
//! manifests/<generation>-<epoch>.json                        what a checkpoint is: put last, and once
//! data/<generation>-<epoch>-<nonce>/cities-<shard>.parquet   all of the cities of a state shard but their readings
//! data/<generation>-<epoch>-<nonce>/readings-<shard>.parquet those, of the cities in the same order
//! ```
//!
//! Every worker writes the state shards that it owns ([`PartWriter`]) into files whose names have the nonce of the generation, so no two processes
//! ever write the same one. When all parts are there, one process makes a [`Manifest`] of them and publishes it. A put of it fails
//! where there is one of that name; until it is there, there is no checkpoint. A manifest has a checksum and those of all files, so
//! what is read is what was written or an error.
//!
//! A **full** checkpoint has everything. An **increment** has the cities that have changed since the one that it adds to, whole but for the readings
//! before [`CityState::since`](crate::model::CityState::since). [`Manifest::wants_full`] says when a chain of them is to end.

mod catalog;
mod cities;
mod load;
mod manifest;
mod part_writer;
mod prune;
mod readings;
mod store;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use self::catalog::ManifestCatalog;
#[cfg(any(test, fuzzing))]
pub(crate) use self::manifest::fuzz_manifest;
pub use self::manifest::{
    CheckpointHeader, CheckpointName, FileEntry, Manifest, PositionsBySource, SOURCE_KEY_PREFIX,
    StateSegment, WorkerPart,
};
pub use self::part_writer::{PartWriter, PartWriterControl};
pub use self::store::{BlobStore, CheckpointLocation, FetchResult};
use crate::model::rules_version::{RulesVersionMismatch, rebuild_hint};
use crate::test_hooks;

/// Where a run with a data directory has them unless it says otherwise, in that.
pub const DEFAULT_FOLDER: &str = "checkpoints";

/// More than any manifest has.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// Why there is no checkpoint, or not this one.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{place} is no place for checkpoints: {problem}")]
    Location { place: String, problem: String },
    #[error("{path}: {problem}")]
    StoreFailed { path: String, problem: String },
    #[error("the checkpoint {name} is damaged: {what}; use the one before, or restore it from a backup")]
    Damaged {
        name: String,
        what: String,
        /// The object that is not what it was, where it is just one.
        path: Option<String>,
    },
    #[error(
        "the checkpoint {name} is of format {found}, this program knows {known}: use the version that wrote it"
    )]
    Format { name: String, found: u32, known: u32 },
    #[error(
        "the checkpoint {name} was made with {key} = {found}, and this run has {wanted}: configure it as it was, or begin with new \
         outputs and another place for checkpoints{}",
        rebuild_hint(key)
    )]
    Identity { name: String, key: String, found: String, wanted: String },
    #[error(transparent)]
    OtherRules(#[from] RulesVersionMismatch),
    /// As it was said when all were read.
    #[error("{0}")]
    Unreadable(String),
    #[error("there is no checkpoint {0}: `swelter checkpoints list` shows those that there are")]
    Missing(CheckpointName),
    #[error(
        "{0} is there already: another process writes checkpoints there; give each service a place of its own"
    )]
    AlreadyPublished(String),
    #[error(
        "the checkpoint {name} is not published: a newer generation has published {newer}; stop this one"
    )]
    Superseded { name: CheckpointName, newer: CheckpointName },
    #[error("the parts of the checkpoint do not fit: {0}; the next one has to be full")]
    IncompatibleParts(String),
    #[error("the checkpoint was given up")]
    Cancelled,
    #[error(
        "the checkpoint {name} is not published: {path} is not there as it was written: make sure that all processes reach the same store"
    )]
    FileMissing { name: CheckpointName, path: String },
    #[error(
        "the checkpoint {name} has readings of {partition}, which this run does not read: configure that source again"
    )]
    UnknownPartition { name: String, partition: String },
}

impl CheckpointError {
    fn damaged(name: CheckpointName, what: &str) -> CheckpointError {
        CheckpointError::Damaged { name: name.to_string(), what: what.into(), path: None }
    }

    /// What is wrong with an object of a checkpoint: `what` follows its path.
    fn damaged_object(name: CheckpointName, path: &str, what: &str) -> CheckpointError {
        let (what, path) = (format!("{path} {what}"), Some(path.to_owned()));
        CheckpointError::Damaged { name: name.to_string(), what, path }
    }

    /// The object that is damaged, where it is just one.
    pub fn damaged_path(&self) -> Option<&str> {
        match self {
            CheckpointError::Damaged { path, .. } => path.as_deref(),
            _ => None,
        }
    }

    /// Whether another checkpoint may be better; otherwise it is the store, or the program, that does not work.
    pub fn is_specific_to_checkpoint(&self) -> bool {
        use CheckpointError::*;
        matches!(
            self,
            Damaged { .. }
                | Unreadable(_)
                | Format { .. }
                | Identity { .. }
                | OtherRules(_)
                | Missing(_)
                | UnknownPartition { .. }
        )
    }
}

/// A manifest that is published, or why it cannot be used.
pub type NamedManifest = (CheckpointName, Result<Arc<Manifest>, CheckpointError>);

/// What there is to start from.
#[derive(Debug, Default)]
pub struct UsableCheckpoints {
    /// Newest first.
    pub usable: Vec<Manifest>,
    /// Why others cannot be used, the newest first.
    pub unusable: Vec<String>,
}

/// The checkpoints of a service. Cloned by reference; every call waits, for minutes at most.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    store: BlobStore,
}

impl Checkpoints {
    /// Nothing is asked of a remote store yet; a folder is made where it is missing.
    pub fn open(place: &CheckpointLocation) -> Result<Checkpoints, CheckpointError> {
        Ok(Checkpoints { store: BlobStore::open(place)? })
    }

    pub fn location(&self) -> &CheckpointLocation {
        self.store.location()
    }

    /// What is published, newest first.
    pub fn list_names(&self) -> Result<Vec<CheckpointName>, CheckpointError> {
        let found = self.store.list_objects("manifests")?;
        let name = |path: &String| {
            path.strip_prefix("manifests/")?.strip_suffix(".json")?.parse::<CheckpointName>().ok()
        };
        // A name that is spelt otherwise would not be found under its own.
        let mut names: Vec<CheckpointName> =
            found.keys().filter_map(|path| name(path).filter(|name| manifest_path(*name) == *path)).collect();
        names.sort_by(|a, b| b.cmp(a));
        Ok(names)
    }

    /// A manifest that is whole. What it names is not looked at.
    pub fn read_manifest(&self, name: CheckpointName) -> Result<Manifest, CheckpointError> {
        parse_manifest(name, self.store.get_object(&manifest_path(name), MAX_MANIFEST_BYTES)?)
    }

    /// A name for a generation that no checkpoint has, and that is greater than those of all: its own, unless its counter has begun again.
    pub fn unused_generation_name(&self, generation: &str) -> Result<String, CheckpointError> {
        let newest = self.list_names()?.first().map(|name| name.generation);
        let known = newest.zip(manifest::parse_generation(generation));
        match known.filter(|(newest, (number, _))| number <= newest) {
            // So starts that publish nothing differ, too.
            Some((newest, (number, nonce))) => {
                Ok(format!("{}-{nonce}", newest.saturating_add(number.max(1))))
            }
            None => Ok(generation.to_owned()),
        }
    }

    /// Makes a checkpoint of what was written: it is there when this returns. Where it certainly is not, its files are removed.
    ///
    /// # Errors
    ///
    /// Also where a generation after this one has published, which has taken over then, and where its files are not all there.
    pub fn publish(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let Err(error) = self.try_publish(manifest) else { return Ok(()) };
        match self.read_manifest(manifest.name()) {
            // Only the answer was lost.
            Ok(found) if found == *manifest => return Ok(()),
            Ok(_) | Err(CheckpointError::Missing(_)) => {
                self.store.start_delete_objects(manifest.files().map(|file| file.path.clone()).collect());
            }
            Err(_) => {}
        }
        Err(error)
    }

    fn try_publish(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let name = manifest.name();
        if let Some(newer) =
            self.list_names()?.first().copied().filter(|newest| newest.generation > name.generation)
        {
            return Err(CheckpointError::Superseded { name, newer });
        }
        self.check_files_present(manifest)?;
        test_hooks::crash_before_manifest();
        self.store.put_object(manifest_path(name), manifest.to_bytes()?.into())
    }

    /// Other processes have written most of it, into what they take for the same store.
    fn check_files_present(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let folders: BTreeSet<&str> =
            manifest.files().filter_map(|file| Some(file.path.rsplit_once('/')?.0)).collect();
        let mut found = BTreeMap::new();
        for folder in folders {
            found.extend(self.store.list_objects(folder)?);
        }
        let is_there =
            |file: &&FileEntry| found.get(&file.path).is_some_and(|found| found.bytes == file.bytes);
        match manifest.files().find(|file| !is_there(file)) {
            None => Ok(()),
            Some(file) => {
                Err(CheckpointError::FileMissing { name: manifest.name(), path: file.path.clone() })
            }
        }
    }

    /// Those that a run of this identity can start from, newest first: manifest and chain are whole, and all files are there. Of others it is
    /// said why not, in the log as well. What is in the files shows when they are loaded.
    ///
    /// # Errors
    ///
    /// Where the newest that is whole has another identity; and where the store cannot be asked: what it has is not known then.
    pub fn find_usable(
        &self,
        identity: &BTreeMap<String, String>,
    ) -> Result<UsableCheckpoints, CheckpointError> {
        let catalog = ManifestCatalog::read_all(self)?;
        let files = self.store.list_objects("data")?;
        let mut found = UsableCheckpoints::default();
        for name in catalog.names_oldest_first().rev() {
            let checked = catalog.manifest(name).and_then(|manifest| {
                catalog.check_files(&manifest, &files)?;
                manifest.check_identity(identity).map(|()| manifest)
            });
            match checked {
                Ok(manifest) => found.usable.push(Arc::unwrap_or_clone(manifest)),
                Err(error @ (CheckpointError::Identity { .. } | CheckpointError::OtherRules(_)))
                    if found.usable.is_empty() =>
                {
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!("not used: {error}");
                    found.unusable.push(error.to_string());
                }
            }
        }
        Ok(found)
    }

    /// Gives a damaged object another name, so that the next start does not try it again, and the right one can be put in its place. All
    /// else of its checkpoint, and those that add to it, stay as they are: with the right object they can be used again.
    pub fn quarantine_object(&self, path: &str) -> Result<(), CheckpointError> {
        self.store.rename_object(path, &format!("{path}{DAMAGED_SUFFIX}"))
    }

    /// What a checkpoint is made of: the full one first, itself last.
    fn read_chain(&self, manifest: &Manifest) -> Result<Vec<Arc<Manifest>>, CheckpointError> {
        match manifest.adds_to {
            None => Ok(vec![Arc::new(manifest.clone())]),
            Some(_) => ManifestCatalog::read_all(self)?.chain(manifest),
        }
    }

    /// The content of a file as it was written. Its size is compared before it is read.
    fn read_file(&self, name: CheckpointName, file: &FileEntry) -> Result<Bytes, CheckpointError> {
        let bytes = expect_content(name, file, self.store.get_object_of_size(&file.path, file.bytes)?)?;
        match checksum(&bytes) == file.xxh3 {
            true => Ok(bytes),
            false => Err(CheckpointError::damaged_object(name, &file.path, NO_CHECKSUM)),
        }
    }

    /// Reads a file piece by piece, and says whether it is as it was written. `pace` hears how many bytes were read, and may wait, or end it.
    pub fn verify_file(
        &self,
        name: CheckpointName,
        file: &FileEntry,
        pace: &mut dyn FnMut(u64) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let mut hasher = Xxh3::new();
        let mut each = |piece: &[u8]| {
            hasher.update(piece);
            pace(piece.len() as u64)
        };
        if let Some(other) = self.store.read_pieces(&file.path, file.bytes, &mut each)? {
            return expect_content(name, file, other).map(drop);
        }
        match format!("{:016x}", hasher.digest()) == file.xxh3 {
            true => Ok(()),
            false => Err(CheckpointError::damaged_object(name, &file.path, NO_CHECKSUM)),
        }
    }

    /// Gives every object of a checkpoint of its own, with its path, as a copy needs them: the manifest last.
    pub fn for_each_object(
        &self,
        manifest: &Manifest,
        each: &mut dyn FnMut(&str, Bytes) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        for file in manifest.files() {
            each(&file.path, self.read_file(manifest.name(), file)?)?;
        }
        each(&manifest_path(manifest.name()), manifest.to_bytes()?.into())
    }

    /// All manifests that there are, the oldest first, or why one cannot be used.
    pub fn read_manifests(&self) -> Result<Vec<NamedManifest>, CheckpointError> {
        let catalog = ManifestCatalog::read_all(self)?;
        Ok(catalog.names_oldest_first().map(|name| (name, catalog.manifest(name))).collect())
    }
}

/// Added to the name of what is damaged.
const DAMAGED_SUFFIX: &str = ".damaged";
const NO_CHECKSUM: &str = "does not have its checksum";

fn parse_manifest(name: CheckpointName, found: FetchResult) -> Result<Manifest, CheckpointError> {
    match found {
        FetchResult::Missing => Err(CheckpointError::Missing(name)),
        FetchResult::Content(content) => Manifest::parse(name, &content),
        FetchResult::SizeMismatch(bytes) => Err(CheckpointError::damaged_object(
            name,
            &manifest_path(name),
            &format!("has {bytes} bytes, more than any manifest"),
        )),
    }
}

fn expect_content(
    name: CheckpointName,
    file: &FileEntry,
    found: FetchResult,
) -> Result<Bytes, CheckpointError> {
    let wrong = |what: String| CheckpointError::damaged_object(name, &file.path, &what);
    found.into_content(&file.bytes.to_string()).map_err(wrong)
}

fn manifest_path(name: CheckpointName) -> String {
    format!("manifests/{name}.json")
}

fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}
