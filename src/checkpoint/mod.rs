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
mod part;
mod readings;
mod store;
mod trim;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use self::catalog::Catalog;
pub use self::load::CityHigh;
#[cfg(any(test, fuzzing))]
pub(crate) use self::manifest::fuzz_manifest;
pub use self::manifest::{Chain, Cut, FileEntry, Manifest, Name, Part, Positions, SOURCE, Segment};
pub use self::part::{PartWriter, Writers};
pub use self::store::{Fetched, Place, Store};
use crate::model::rules::{OtherRules, rebuild_hint};

/// Where a run with a data directory has them unless it says otherwise, in that.
pub const FOLDER: &str = "checkpoints";

/// More than any manifest has.
const MANIFEST_BYTES: u64 = 64 << 20;

/// Why there is no checkpoint, or not this one.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{place} is no place for checkpoints: {problem}")]
    Place { place: String, problem: String },
    #[error("{path}: {problem}")]
    Store { path: String, problem: String },
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
    Rules(#[from] OtherRules),
    /// As it was said when all were read.
    #[error("{0}")]
    Unreadable(String),
    #[error("there is no checkpoint {0}: `swelter checkpoints list` shows those that there are")]
    Missing(Name),
    #[error(
        "{0} is there already: another process writes checkpoints there; give each service a place of its own"
    )]
    Exists(String),
    #[error(
        "the checkpoint {name} is not published: a newer generation has published {newer}; stop this one"
    )]
    Superseded { name: Name, newer: Name },
    #[error("the parts of the checkpoint do not fit: {0}; the next one has to be full")]
    Parts(String),
    #[error("the checkpoint was given up")]
    GivenUp,
    #[error(
        "the checkpoint {name} is not published: {path} is not there as it was written: make sure that all processes reach the same store"
    )]
    Elsewhere { name: Name, path: String },
    #[error(
        "the checkpoint {name} has readings of {partition}, which this run does not read: configure that source again"
    )]
    UnknownPartition { name: String, partition: String },
}

impl CheckpointError {
    fn damaged(name: Name, what: &str) -> CheckpointError {
        CheckpointError::Damaged { name: name.to_string(), what: what.into(), path: None }
    }

    /// What is wrong with an object of a checkpoint: `what` follows its path.
    fn damaged_object(name: Name, path: &str, what: &str) -> CheckpointError {
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
    pub fn is_of_this_one(&self) -> bool {
        use CheckpointError::*;
        matches!(
            self,
            Damaged { .. }
                | Unreadable(_)
                | Format { .. }
                | Identity { .. }
                | Rules(_)
                | Missing(_)
                | UnknownPartition { .. }
        )
    }
}

/// A manifest that is published, or why it cannot be used.
pub type NamedManifest = (Name, Result<Arc<Manifest>, CheckpointError>);

/// What there is to start from.
#[derive(Debug, Default)]
pub struct Usable {
    /// Newest first.
    pub usable: Vec<Manifest>,
    /// Why others cannot be used, the newest first.
    pub unusable: Vec<String>,
}

/// The checkpoints of a service. Cloned by reference; every call waits, for minutes at most.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    store: Store,
}

impl Checkpoints {
    /// Nothing is asked of a remote store yet; a folder is made where it is missing.
    pub fn open(place: &Place) -> Result<Checkpoints, CheckpointError> {
        Ok(Checkpoints { store: Store::open(place)? })
    }

    pub fn place(&self) -> &Place {
        self.store.place()
    }

    /// What is published, newest first.
    pub fn list(&self) -> Result<Vec<Name>, CheckpointError> {
        let found = self.store.list("manifests")?;
        let name =
            |path: &String| path.strip_prefix("manifests/")?.strip_suffix(".json")?.parse::<Name>().ok();
        // A name that is spelt otherwise would not be found under its own.
        let mut names: Vec<Name> =
            found.keys().filter_map(|path| name(path).filter(|name| manifest_path(*name) == *path)).collect();
        names.sort_by(|a, b| b.cmp(a));
        Ok(names)
    }

    /// A manifest that is whole. What it names is not looked at.
    pub fn read(&self, name: Name) -> Result<Manifest, CheckpointError> {
        parse_manifest(name, self.store.get(&manifest_path(name), MANIFEST_BYTES)?)
    }

    /// A name for a generation that no checkpoint has, and that is greater than those of all: its own, unless its counter has begun again.
    pub fn name_generation(&self, generation: &str) -> Result<String, CheckpointError> {
        let newest = self.list()?.first().map(|name| name.generation);
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
        let Err(error) = self.try_to_publish(manifest) else { return Ok(()) };
        match self.read(manifest.name()) {
            // Only the answer was lost.
            Ok(found) if found == *manifest => return Ok(()),
            Ok(_) | Err(CheckpointError::Missing(_)) => {
                self.store.start_delete(manifest.files().map(|file| file.path.clone()).collect());
            }
            Err(_) => {}
        }
        Err(error)
    }

    fn try_to_publish(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let name = manifest.name();
        if let Some(newer) =
            self.list()?.first().copied().filter(|newest| newest.generation > name.generation)
        {
            return Err(CheckpointError::Superseded { name, newer });
        }
        self.check_written(manifest)?;
        #[cfg(debug_assertions)]
        fault::between_files_and_manifest();
        self.store.put(manifest_path(name), manifest.to_bytes()?.into())
    }

    /// Other processes have written most of it, into what they take for the same store.
    fn check_written(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let folders: BTreeSet<&str> =
            manifest.files().filter_map(|file| Some(file.path.rsplit_once('/')?.0)).collect();
        let mut found = BTreeMap::new();
        for folder in folders {
            found.extend(self.store.list(folder)?);
        }
        let is_there =
            |file: &&FileEntry| found.get(&file.path).is_some_and(|found| found.bytes == file.bytes);
        match manifest.files().find(|file| !is_there(file)) {
            None => Ok(()),
            Some(file) => Err(CheckpointError::Elsewhere { name: manifest.name(), path: file.path.clone() }),
        }
    }

    /// Those that a run of this identity can start from, newest first: manifest and chain are whole, and all files are there. Of others it is
    /// said why not, in the log as well. What is in the files shows when they are loaded.
    ///
    /// # Errors
    ///
    /// Where the newest that is whole has another identity; and where the store cannot be asked: what it has is not known then.
    pub fn usable(&self, identity: &BTreeMap<String, String>) -> Result<Usable, CheckpointError> {
        let catalog = Catalog::read(self)?;
        let files = self.store.list("data")?;
        let mut found = Usable::default();
        for name in catalog.names().rev() {
            let checked = catalog.get(name).and_then(|manifest| {
                catalog.check_files(&manifest, &files)?;
                manifest.check_identity(identity).map(|()| manifest)
            });
            match checked {
                Ok(manifest) => found.usable.push(Arc::unwrap_or_clone(manifest)),
                Err(error @ (CheckpointError::Identity { .. } | CheckpointError::Rules(_)))
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
    pub fn set_aside(&self, path: &str) -> Result<(), CheckpointError> {
        self.store.rename(path, &format!("{path}{DAMAGED}"))
    }

    /// What a checkpoint is made of: the full one first, itself last.
    fn chain(&self, manifest: &Manifest) -> Result<Vec<Arc<Manifest>>, CheckpointError> {
        match manifest.adds_to {
            None => Ok(vec![Arc::new(manifest.clone())]),
            Some(_) => Catalog::read(self)?.chain(manifest),
        }
    }

    /// The content of a file as it was written. Its size is compared before it is read.
    fn file(&self, name: Name, file: &FileEntry) -> Result<Bytes, CheckpointError> {
        let bytes = content_of(name, file, self.store.get_sized(&file.path, file.bytes)?)?;
        match checksum(&bytes) == file.xxh3 {
            true => Ok(bytes),
            false => Err(CheckpointError::damaged_object(name, &file.path, NO_CHECKSUM)),
        }
    }

    /// Reads a file piece by piece, and says whether it is as it was written. `pace` hears how many bytes were read, and may wait, or end it.
    pub fn check_file(
        &self,
        name: Name,
        file: &FileEntry,
        pace: &mut dyn FnMut(u64) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let mut hasher = Xxh3::new();
        let mut each = |piece: &[u8]| {
            hasher.update(piece);
            pace(piece.len() as u64)
        };
        if let Some(other) = self.store.read_pieces(&file.path, file.bytes, &mut each)? {
            return content_of(name, file, other).map(drop);
        }
        match format!("{:016x}", hasher.digest()) == file.xxh3 {
            true => Ok(()),
            false => Err(CheckpointError::damaged_object(name, &file.path, NO_CHECKSUM)),
        }
    }

    /// Gives every object of a checkpoint of its own, with its path, as a copy needs them: the manifest last.
    pub fn each_object(
        &self,
        manifest: &Manifest,
        each: &mut dyn FnMut(&str, Bytes) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        for file in manifest.files() {
            each(&file.path, self.file(manifest.name(), file)?)?;
        }
        each(&manifest_path(manifest.name()), manifest.to_bytes()?.into())
    }

    /// All manifests that there are, the oldest first, or why one cannot be used.
    pub fn manifests(&self) -> Result<Vec<NamedManifest>, CheckpointError> {
        let catalog = Catalog::read(self)?;
        Ok(catalog.names().map(|name| (name, catalog.get(name))).collect())
    }
}

/// Added to the name of what is damaged.
const DAMAGED: &str = ".damaged";
const NO_CHECKSUM: &str = "does not have its checksum";

fn parse_manifest(name: Name, found: Fetched) -> Result<Manifest, CheckpointError> {
    match found {
        Fetched::Missing => Err(CheckpointError::Missing(name)),
        Fetched::Content(content) => Manifest::parse(name, &content),
        Fetched::OtherSize(bytes) => Err(CheckpointError::damaged_object(
            name,
            &manifest_path(name),
            &format!("has {bytes} bytes, more than any manifest"),
        )),
    }
}

fn content_of(name: Name, file: &FileEntry, found: Fetched) -> Result<Bytes, CheckpointError> {
    let wrong = |what: String| CheckpointError::damaged_object(name, &file.path, &what);
    found.content(&file.bytes.to_string()).map_err(wrong)
}

fn manifest_path(name: Name) -> String {
    format!("manifests/{name}.json")
}

fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

/// Where tests have the process die.
#[cfg(debug_assertions)]
mod fault {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    /// How many manifests are published before the process dies with all files of the next one written.
    static LEFT: LazyLock<AtomicI64> = LazyLock::new(|| {
        let after =
            std::env::var("SWELTER_TEST_DIE_BEFORE_MANIFEST").ok().and_then(|after| after.parse().ok());
        AtomicI64::new(after.unwrap_or(i64::MAX))
    });

    pub fn between_files_and_manifest() {
        if LEFT.fetch_sub(1, Ordering::Relaxed) <= 0 {
            std::process::abort();
        }
    }
}
