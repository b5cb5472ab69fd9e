//! All that is published, read once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::store::{Fetched, Object};
use super::{CheckpointError, Checkpoints, FileEntry, MANIFEST_BYTES, Manifest, Name, manifest_path};

pub(super) struct Catalog {
    /// Or why it cannot be used.
    manifests: BTreeMap<Name, Result<Arc<Manifest>, String>>,
}

impl Catalog {
    pub(super) fn read(checkpoints: &Checkpoints) -> Result<Catalog, CheckpointError> {
        let names = checkpoints.list()?;
        let paths: Vec<String> = names.iter().map(|name| manifest_path(*name)).collect();
        let contents = checkpoints.store.get_all(&paths, MANIFEST_BYTES)?;
        let parse = |(name, found): (Name, Fetched)| {
            let manifest = super::parse_manifest(name, found);
            (name, manifest.map(Arc::new).map_err(|error| error.to_string()))
        };
        Ok(Catalog { manifests: names.into_iter().zip(contents).map(parse).collect() })
    }

    /// Oldest first.
    pub(super) fn names(&self) -> impl DoubleEndedIterator<Item = Name> {
        self.manifests.keys().copied()
    }

    pub(super) fn get(&self, name: Name) -> Result<Arc<Manifest>, CheckpointError> {
        match self.manifests.get(&name) {
            Some(Ok(manifest)) => Ok(manifest.clone()),
            Some(Err(why)) => Err(CheckpointError::Unreadable(why.clone())),
            None => Err(CheckpointError::Missing(name)),
        }
    }

    /// What a checkpoint is made of: the full one first, itself last.
    pub(super) fn chain(&self, manifest: &Manifest) -> Result<Vec<Arc<Manifest>>, CheckpointError> {
        let broken = |what: String| CheckpointError::damaged(manifest.name(), &what);
        let mut chain = vec![Arc::new(manifest.clone())];
        while let Some((above, below)) =
            chain.last().and_then(|last| Some((last.name(), last.adds_to.clone()?)))
        {
            let below: Name = below.parse().map_err(broken)?;
            if below >= above {
                return Err(broken(format!("{above} adds to {below}, which is not older")));
            }
            let found =
                self.get(below).map_err(|error| broken(format!("it adds to {below}, but {error}")))?;
            if found.identity != manifest.identity {
                return Err(broken(format!("it adds to {below}, which was computed otherwise")));
            }
            chain.push(found);
        }
        chain.reverse();
        Ok(chain)
    }

    /// Whether all files of a checkpoint and its chain are among these.
    pub(super) fn check_files(
        &self,
        manifest: &Manifest,
        files: &BTreeMap<String, Object>,
    ) -> Result<(), CheckpointError> {
        let found = |file: &FileEntry| match files.get(&file.path) {
            Some(found) if found.bytes == file.bytes => None,
            Some(found) => Some(Fetched::OtherSize(found.bytes)),
            None => Some(Fetched::Missing),
        };
        for part in self.chain(manifest)? {
            let wrong = part.files().find_map(|file| Some((file, found(file)?)));
            if let Some((file, found)) = wrong {
                super::content_of(part.name(), file, found)?;
            }
        }
        Ok(())
    }
}
