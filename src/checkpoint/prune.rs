//! Removal of checkpoints and files that are no longer needed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::catalog::ManifestCatalog;
use super::checkpoints::Checkpoints;
use super::error::CheckpointError;
use super::manifest::{Manifest, StateSegment, WorkerPart};
use super::name::{CheckpointName, parse_generation};
use super::objects::{DAMAGED_SUFFIX, manifest_path};
use super::store::StoredObject;

/// Files without a manifest stay for this long, because their checkpoint may still be published.
const UNPUBLISHED_GRACE_MS: i64 = 3_600_000;

impl Checkpoints {
    /// Removes the checkpoints, with their files, that are older than the newest `keep` valid bases
    /// that `counts` accepts. A base is a full checkpoint; its increments are kept with it.
    /// Everything newer stays, damaged checkpoints too, because their files may be restored.
    ///
    /// Nothing is removed before there are two such bases. Returns the checkpoints that logs must
    /// reach back to, newest first: none before there are two bases, else the valid, accepted
    /// checkpoints that are kept, and those of the second base if only one is kept.
    ///
    /// A file without a manifest was left by a crash or a failed write, or belongs to a checkpoint
    /// that is being written. It is removed if it is older than the newest manifest and either
    /// belongs to an earlier generation, which cannot publish any more, or is more than an hour
    /// old.
    pub fn prune_checkpoints(
        &self,
        keep: usize,
        counts: &dyn Fn(&Manifest) -> bool,
    ) -> Result<Vec<Arc<Manifest>>, CheckpointError> {
        let catalog = ManifestCatalog::read_all(&self.store)?;
        let files = self.store.list_objects("data")?;
        let whole = |name: CheckpointName| {
            let manifest = catalog.manifest(name).ok()?;
            let chain = catalog.chain(&manifest).ok()?;
            let is_good =
                catalog.check_files(&manifest, &files).is_ok() && chain.iter().all(|part| counts(part));
            is_good.then_some(manifest)
        };
        let whole: Vec<_> = catalog.names_oldest_first().rev().filter_map(whole).collect();
        let bases = whole.iter().filter(|manifest| manifest.adds_to.is_none()).map(|base| base.name());
        let bases: Vec<CheckpointName> = bases.take(keep.max(2)).collect();
        let Some(oldest) = bases.last().copied().filter(|_| bases.len() > 1) else { return Ok(Vec::new()) };
        let first_kept = bases.get(keep.max(1) - 1).copied().unwrap_or(oldest);
        self.remove_checkpoints_before(first_kept, &catalog, files)?;
        Ok(whole.into_iter().filter(|manifest| manifest.name() >= oldest).collect())
    }

    fn remove_checkpoints_before(
        &self,
        first_kept: CheckpointName,
        catalog: &ManifestCatalog,
        files: BTreeMap<String, StoredObject>,
    ) -> Result<(), CheckpointError> {
        let Some(last) = catalog.names_oldest_first().next_back() else { return Ok(()) };
        let mut retained: BTreeSet<CheckpointName> =
            catalog.names_oldest_first().filter(|name| *name >= first_kept).collect();
        for name in retained.clone() {
            let chain = catalog.manifest(name).and_then(|manifest| catalog.chain(&manifest));
            retained.extend(chain.into_iter().flatten().map(|part| part.name()));
        }
        let named: BTreeSet<String> = (retained.iter().filter_map(|name| catalog.manifest(*name).ok()))
            .flat_map(|manifest| manifest.files().map(|file| file.path.clone()).collect::<Vec<_>>())
            .collect();
        let dropped: BTreeSet<CheckpointName> =
            catalog.names_oldest_first().filter(|name| !retained.contains(name)).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let is_left_over = |path: &str, modified_ms: i64| {
            let name = checkpoint_of_file(path);
            let is_old = |name: CheckpointName| {
                name.generation < last.generation || now - modified_ms > UNPUBLISHED_GRACE_MS
            };
            // A quarantined file stays as long as its checkpoint, and so does a file that a damaged
            // manifest may name.
            let is_kept = |name: &CheckpointName| catalog.manifest(*name).is_err() && retained.contains(name);
            !named.contains(path.strip_suffix(DAMAGED_SUFFIX).unwrap_or(path))
                && name.is_some_and(|name| {
                    !is_kept(&name) && name < last && (dropped.contains(&name) || is_old(name))
                })
        };
        let leftovers = files.into_iter().filter(|(path, object)| is_left_over(path, object.modified_ms));
        let files: Vec<String> = leftovers.map(|(path, _)| path).collect();
        // Manifests go first: a manifest without its files would count as damage. They go newest
        // first, so none loses the checkpoint that it adds to.
        for name in dropped.iter().rev() {
            self.store.delete_objects(vec![manifest_path(*name)])?;
        }
        let aside = |path: &String| quarantined_name(path).is_some_and(|name| name < first_kept);
        self.store
            .delete_objects(self.store.list_objects("manifests")?.into_keys().filter(aside).collect())?;
        self.store.delete_objects(files)
    }

    /// Removes files without a manifest of earlier generations. Call it once those generations
    /// cannot publish any more: the next checkpoint may need the space.
    pub fn remove_orphaned_files(&self, generation: &str) -> Result<(), CheckpointError> {
        let Some((own_generation, _)) = parse_generation(generation) else { return Ok(()) };
        let manifests = self.store.list_objects("manifests")?;
        let name = |path: &String| published_name(path).or_else(|| quarantined_name(path));
        let named: BTreeSet<CheckpointName> = manifests.keys().filter_map(name).collect();
        let is_left = |name: CheckpointName| name.generation < own_generation && !named.contains(&name);
        let files = self.store.list_objects("data")?;
        let leftovers = files.into_keys().filter(|path| checkpoint_of_file(path).is_some_and(is_left));
        self.store.delete_objects(leftovers.collect())?;
        let unfinished = |path: &str| {
            checkpoint_of_file(path)
                .or_else(|| published_name(path))
                .is_some_and(|name| name.generation < own_generation)
        };
        self.store.remove_unfinished(unfinished).map_err(|error| CheckpointError::StoreFailed {
            path: self.location().to_string(),
            problem: error.to_string(),
        })
    }

    /// Starts to remove the files of a checkpoint that was cancelled.
    pub fn discard_parts(&self, parts: &[WorkerPart]) {
        let files = parts.iter().flat_map(|part| &part.segments).flat_map(StateSegment::files);
        self.store.start_delete_objects(files.map(|file| file.path.clone()).collect());
    }
}

fn published_name(path: &str) -> Option<CheckpointName> {
    path.strip_prefix("manifests/")?.strip_suffix(".json")?.parse().ok()
}

fn quarantined_name(path: &str) -> Option<CheckpointName> {
    path.strip_prefix("manifests/")?.strip_suffix(".json.damaged")?.parse().ok()
}

/// The checkpoint that a file in `data/` belongs to.
fn checkpoint_of_file(path: &str) -> Option<CheckpointName> {
    let folder = path.strip_prefix("data/")?.split_once('/')?.0;
    folder.rsplit_once('-')?.0.parse().ok()
}
