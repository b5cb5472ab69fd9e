//! All published manifests, read once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::CheckpointError;
use super::manifest::{FileEntry, Manifest};
use super::name::CheckpointName;
use super::objects::{MAX_MANIFEST_BYTES, expect_content, list_names, manifest_path, parse_manifest};
use super::store::{BlobStore, FetchResult, StoredObject};

pub(super) struct ManifestCatalog {
    /// Each valid, or with the reason why it cannot be used.
    manifests: BTreeMap<CheckpointName, Result<Arc<Manifest>, String>>,
}

impl ManifestCatalog {
    pub(super) fn read_all(store: &BlobStore) -> Result<ManifestCatalog, CheckpointError> {
        let names = list_names(store)?;
        let paths: Vec<String> = names.iter().map(|name| manifest_path(*name)).collect();
        let contents = store.get_objects(&paths, MAX_MANIFEST_BYTES)?;
        let parse = |(name, fetch_result): (CheckpointName, FetchResult)| {
            let manifest = parse_manifest(name, fetch_result);
            (name, manifest.map(Arc::new).map_err(|error| error.to_string()))
        };
        Ok(ManifestCatalog { manifests: names.into_iter().zip(contents).map(parse).collect() })
    }

    /// The names of the manifests, oldest first.
    pub(super) fn names_oldest_first(&self) -> impl DoubleEndedIterator<Item = CheckpointName> {
        self.manifests.keys().copied()
    }

    pub(super) fn manifest(&self, name: CheckpointName) -> Result<Arc<Manifest>, CheckpointError> {
        match self.manifests.get(&name) {
            Some(Ok(manifest)) => Ok(manifest.clone()),
            Some(Err(why)) => Err(CheckpointError::Unreadable(why.clone())),
            None => Err(CheckpointError::Missing(name)),
        }
    }

    /// The chain of a checkpoint: the full checkpoint first, this one last.
    pub(super) fn chain(&self, manifest: &Manifest) -> Result<Vec<Arc<Manifest>>, CheckpointError> {
        let damaged_error = |what: String| CheckpointError::damaged(manifest.name(), &what);
        let mut chain = vec![Arc::new(manifest.clone())];
        while let Some((above, below)) =
            chain.last().and_then(|last| Some((last.name(), last.adds_to.clone()?)))
        {
            let below: CheckpointName = below.parse().map_err(damaged_error)?;
            if below >= above {
                return Err(damaged_error(format!("{above} adds to {below}, which is not older")));
            }
            let found = self
                .manifest(below)
                .map_err(|error| damaged_error(format!("it adds to {below}, but {error}")))?;
            if found.identity != manifest.identity {
                return Err(damaged_error(format!("it adds to {below}, which has other settings")));
            }
            chain.push(found);
        }
        chain.reverse();
        Ok(chain)
    }

    /// Checks that all files of a checkpoint and its chain are among `files`, with the right sizes.
    pub(super) fn check_files(
        &self,
        manifest: &Manifest,
        files: &BTreeMap<String, StoredObject>,
    ) -> Result<(), CheckpointError> {
        let stored = |file: &FileEntry| match files.get(&file.path) {
            Some(stored) if stored.bytes == file.bytes => None,
            Some(stored) => Some(FetchResult::SizeMismatch(stored.bytes)),
            None => Some(FetchResult::Missing),
        };
        for part in self.chain(manifest)? {
            let damaged_file = part.files().find_map(|file| Some((file, stored(file)?)));
            if let Some((file, stored)) = damaged_file {
                expect_content(part.name(), file, stored)?;
            }
        }
        Ok(())
    }
}
