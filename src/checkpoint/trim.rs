//! What is no longer needed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::catalog::Catalog;
use super::{CheckpointError, Checkpoints, Manifest, Name, Part, Segment, manifest_path};

/// Files that no manifest names are left alone for so long: their checkpoint may be published yet.
const UNPUBLISHED_MS: i64 = 3_600_000;

impl Checkpoints {
    /// Removes all checkpoints but the newest `keep` that are whole and what those add to, with their files. Returns what is left of them, the newest
    /// first: logs may be trimmed below the positions of all, as far as they are of these logs.
    ///
    /// Files that no manifest names are what a crash or a failed write has left, or of a checkpoint that is being written. They are removed where they
    /// are older than the newest manifest and, beside that, of an earlier generation than it, which cannot publish any more, or an hour old.
    pub fn trim(&self, keep: usize) -> Result<Vec<Arc<Manifest>>, CheckpointError> {
        let catalog = Catalog::read(self)?;
        let files = self.store.list("data")?;
        let whole = |name: Name| {
            let manifest = catalog.get(name).ok()?;
            catalog.check_files(&manifest, &files).is_ok().then_some(manifest)
        };
        let newest: Vec<_> = catalog.names().rev().filter_map(whole).take(keep.max(1)).collect();
        let Some(last) = newest.first().map(|manifest| manifest.name()) else { return Ok(Vec::new()) };
        let mut kept = BTreeSet::new();
        let mut named = BTreeSet::new();
        for manifest in &newest {
            for part in catalog.chain(manifest)? {
                kept.insert(part.name());
                named.extend(part.files().map(|file| file.path.clone()));
            }
        }
        let dropped: BTreeSet<Name> =
            catalog.names().filter(|name| !kept.contains(name) && *name < last).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let is_left_over = |path: &str, modified_ms: i64| {
            let name = name_of(path);
            let is_old = |name: Name| name.generation < last.generation || now - modified_ms > UNPUBLISHED_MS;
            !named.contains(path)
                && name.is_some_and(|name| name < last && (dropped.contains(&name) || is_old(name)))
        };
        let files: Vec<String> = files
            .into_iter()
            .filter(|(path, object)| is_left_over(path, object.modified_ms))
            .map(|(path, _)| path)
            .collect();
        // First the manifests: one without its files would be taken for damage. Newest first, so that none loses what it adds to.
        for name in dropped.iter().rev() {
            self.store.delete(vec![manifest_path(*name)])?;
        }
        let aside =
            |path: &String| set_aside_as(path).is_some_and(|name| name < last && !kept.contains(&name));
        self.store.delete(self.store.list("manifests")?.into_keys().filter(aside).collect())?;
        self.store.delete(files)?;
        kept.into_iter().rev().map(|name| catalog.get(name)).collect()
    }

    /// Removes what generations before this one have left behind without a manifest. It is to be called once they cannot publish any more: room that
    /// they have taken may be what the next checkpoint lacks.
    pub fn sweep(&self, generation: &str) -> Result<(), CheckpointError> {
        let Some((own, _)) = super::manifest::parse_generation(generation) else { return Ok(()) };
        let manifests = self.store.list("manifests")?;
        let name = |path: &String| published_as(path).or_else(|| set_aside_as(path));
        let named: BTreeSet<Name> = manifests.keys().filter_map(name).collect();
        let is_left = |name: Name| name.generation < own && !named.contains(&name);
        let files = self.store.list("data")?;
        let left = files.into_keys().filter(|path| name_of(path).is_some_and(is_left));
        self.store.delete(left.collect())?;
        let unfinished = |path: &str| {
            name_of(path).or_else(|| published_as(path)).is_some_and(|name| name.generation < own)
        };
        self.store.remove_unfinished(unfinished).map_err(|error| CheckpointError::Store {
            path: self.place().to_string(),
            problem: error.to_string(),
        })
    }

    /// Begins to remove what was written of a checkpoint that will not be.
    pub fn discard(&self, parts: &[Part]) {
        let files = parts.iter().flat_map(|part| &part.segments).flat_map(Segment::files);
        self.store.start_delete(files.map(|file| file.path.clone()).collect());
    }
}

fn published_as(path: &str) -> Option<Name> {
    path.strip_prefix("manifests/")?.strip_suffix(".json")?.parse().ok()
}

fn set_aside_as(path: &str) -> Option<Name> {
    path.strip_prefix("manifests/")?.strip_suffix(".json.damaged")?.parse().ok()
}

/// The checkpoint that a file in `data/` is of.
fn name_of(path: &str) -> Option<Name> {
    let folder = path.strip_prefix("data/")?.split_once('/')?.0;
    folder.rsplit_once('-')?.0.parse().ok()
}
