//! The checkpoints of a service in their store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::catalog::ManifestCatalog;
use super::error::CheckpointError;
use super::manifest::{FileEntry, Manifest};
use super::name::{CheckpointName, parse_generation};
use super::objects::{
    DAMAGED_SUFFIX, MAX_MANIFEST_BYTES, NO_CHECKSUM, checksum, expect_content, list_names, manifest_path,
    parse_manifest,
};
use super::store::{BlobStore, CheckpointLocation};
use crate::test_hooks;

/// A manifest that is published, or why it cannot be used.
pub type NamedManifest = (CheckpointName, Result<Arc<Manifest>, CheckpointError>);

/// The checkpoints that a run can start from.
#[derive(Debug, Default)]
pub struct UsableCheckpoints {
    /// Newest first.
    pub usable: Vec<Manifest>,
    /// Why other checkpoints cannot be used, newest first.
    pub unusable: Vec<String>,
}

/// The checkpoints of a service. A clone refers to the same store. Every call blocks, for minutes
/// at most.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    pub(super) store: BlobStore,
}

impl Checkpoints {
    /// Opens the store. A missing folder is created; a remote store gets no request yet.
    pub fn open(location: &CheckpointLocation) -> Result<Checkpoints, CheckpointError> {
        Ok(Checkpoints { store: BlobStore::open(location)? })
    }

    pub fn location(&self) -> &CheckpointLocation {
        self.store.location()
    }

    /// The names of the published checkpoints, newest first.
    pub fn list_names(&self) -> Result<Vec<CheckpointName>, CheckpointError> {
        list_names(&self.store)
    }

    /// Reads a manifest and checks its checksum. The files that it names are not checked.
    pub fn read_manifest(&self, name: CheckpointName) -> Result<Manifest, CheckpointError> {
        parse_manifest(name, self.store.get_object(&manifest_path(name), MAX_MANIFEST_BYTES)?)
    }

    /// The generation's own name, or, if its counter has started again, a name above those of all
    /// checkpoints.
    pub fn unused_generation_name(&self, generation: &str) -> Result<String, CheckpointError> {
        let newest = self.list_names()?.first().map(|name| name.generation);
        let known = newest.zip(parse_generation(generation));
        match known.filter(|(newest, (number, _))| number <= newest) {
            // The number differs between starts even if none of them publishes.
            Some((newest, (number, nonce))) => {
                Ok(format!("{}-{nonce}", newest.saturating_add(number.max(1))))
            }
            None => Ok(generation.to_owned()),
        }
    }

    /// Publishes a checkpoint whose files are written: it exists when this returns `Ok`. If it
    /// certainly does not exist after an error, its files are removed.
    ///
    /// # Errors
    ///
    /// Fails also if a later generation has published, which has taken over then, and if files are
    /// missing.
    pub fn publish(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let Err(error) = self.try_publish(manifest) else { return Ok(()) };
        match self.read_manifest(manifest.name()) {
            // The put succeeded, and only its response was lost.
            Ok(stored) if stored == *manifest => return Ok(()),
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

    /// Other processes have written most of the files, perhaps into another store.
    fn check_files_present(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let folders: BTreeSet<&str> =
            manifest.files().filter_map(|file| Some(file.path.rsplit_once('/')?.0)).collect();
        let mut objects = BTreeMap::new();
        for folder in folders {
            objects.extend(self.store.list_objects(folder)?);
        }
        let is_there =
            |file: &&FileEntry| objects.get(&file.path).is_some_and(|object| object.bytes == file.bytes);
        match manifest.files().find(|file| !is_there(file)) {
            None => Ok(()),
            Some(file) => {
                Err(CheckpointError::FileMissing { name: manifest.name(), path: file.path.clone() })
            }
        }
    }

    /// The checkpoints that a run of this identity can start from, newest first: manifest and chain
    /// are valid and all files exist. The others are logged with the reason. The content of files
    /// is checked when they are loaded.
    ///
    /// # Errors
    ///
    /// Fails if the newest valid checkpoint has another identity, and if the store does not answer.
    pub fn find_usable(
        &self,
        identity: &BTreeMap<String, String>,
    ) -> Result<UsableCheckpoints, CheckpointError> {
        let catalog = ManifestCatalog::read_all(&self.store)?;
        let files = self.store.list_objects("data")?;
        let mut listed = UsableCheckpoints::default();
        for name in catalog.names_oldest_first().rev() {
            let checked = catalog.manifest(name).and_then(|manifest| {
                catalog.check_files(&manifest, &files)?;
                manifest.check_identity(identity).map(|()| manifest)
            });
            match checked {
                Ok(manifest) => listed.usable.push(Arc::unwrap_or_clone(manifest)),
                Err(error @ (CheckpointError::Identity { .. } | CheckpointError::OtherRules(_)))
                    if listed.usable.is_empty() =>
                {
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!("the checkpoint cannot be used: {error}");
                    listed.unusable.push(error.to_string());
                }
            }
        }
        Ok(listed)
    }

    /// Renames a damaged object, so that the next start does not try it again and the right object
    /// can be restored in its place. The rest of its checkpoint, and checkpoints that add to it,
    /// stay: with the right object they can be used again.
    pub fn quarantine_object(&self, path: &str) -> Result<(), CheckpointError> {
        self.store.rename_object(path, &format!("{path}{DAMAGED_SUFFIX}"))
    }

    /// The chain of a checkpoint: the full checkpoint first, this one last.
    pub(super) fn read_chain(&self, manifest: &Manifest) -> Result<Vec<Arc<Manifest>>, CheckpointError> {
        match manifest.adds_to {
            None => Ok(vec![Arc::new(manifest.clone())]),
            Some(_) => ManifestCatalog::read_all(&self.store)?.chain(manifest),
        }
    }

    /// Reads a file and checks its size and checksum. The size is checked first.
    pub(super) fn read_file(&self, name: CheckpointName, file: &FileEntry) -> Result<Bytes, CheckpointError> {
        let bytes = expect_content(name, file, self.store.get_object_of_size(&file.path, file.bytes)?)?;
        match checksum(&bytes) == file.xxh3 {
            true => Ok(bytes),
            false => Err(CheckpointError::damaged_object(name, &file.path, NO_CHECKSUM)),
        }
    }

    /// Reads a file piece by piece and checks its size and checksum. `pace` is called with the
    /// bytes of each piece; it may wait, or end the check with an error.
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

    /// Calls `each` with the path and content of every object of a checkpoint, without its chain,
    /// in the order of a copy: the manifest last.
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

    /// All manifests, oldest first, each valid or with the reason why it cannot be used.
    pub fn read_manifests(&self) -> Result<Vec<NamedManifest>, CheckpointError> {
        let catalog = ManifestCatalog::read_all(&self.store)?;
        Ok(catalog.names_oldest_first().map(|name| (name, catalog.manifest(name))).collect())
    }
}
