//! What is no longer needed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::catalog::Catalog;
use super::store::Object;
use super::{CheckpointError, Checkpoints, DAMAGED, Manifest, Name, Part, Segment, manifest_path};

/// Files that no manifest names are left alone for so long: their checkpoint may be published yet.
const UNPUBLISHED_MS: i64 = 3_600_000;

impl Checkpoints {
    /// Removes the checkpoints before the newest `keep` bases that are whole and that `counts` says yes to, with their files. A base is a full
    /// checkpoint; it is kept with all its increments, and whatever is newer stays, also what is damaged: the right files may come back.
    ///
    /// Nothing is removed before there are two such bases. Returns what logs must reach back to, the newest first: nothing before there are two, else
    /// the kept checkpoints that are whole and count, and those of the second base where only one is kept.
    ///
    /// Files that no manifest names are what a crash or a failed write has left, or of a checkpoint that is being written. They are removed if they
    /// are older than the newest manifest and, besides, of an earlier generation than it, which cannot publish any more, or an hour old.
    pub fn trim(
        &self,
        keep: usize,
        counts: &dyn Fn(&Manifest) -> bool,
    ) -> Result<Vec<Arc<Manifest>>, CheckpointError> {
        let catalog = Catalog::read(self)?;
        let files = self.store.list("data")?;
        let whole = |name: Name| {
            let manifest = catalog.get(name).ok()?;
            let chain = catalog.chain(&manifest).ok()?;
            let is_good =
                catalog.check_files(&manifest, &files).is_ok() && chain.iter().all(|part| counts(part));
            is_good.then_some(manifest)
        };
        let whole: Vec<_> = catalog.names().rev().filter_map(whole).collect();
        let bases = whole.iter().filter(|manifest| manifest.adds_to.is_none()).map(|base| base.name());
        let bases: Vec<Name> = bases.take(keep.max(2)).collect();
        let Some(oldest) = bases.last().copied().filter(|_| bases.len() > 1) else { return Ok(Vec::new()) };
        let first_kept = bases.get(keep.max(1) - 1).copied().unwrap_or(oldest);
        self.remove_before(first_kept, &catalog, files)?;
        Ok(whole.into_iter().filter(|manifest| manifest.name() >= oldest).collect())
    }

    fn remove_before(
        &self,
        first_kept: Name,
        catalog: &Catalog,
        files: BTreeMap<String, Object>,
    ) -> Result<(), CheckpointError> {
        let Some(last) = catalog.names().next_back() else { return Ok(()) };
        let mut kept: BTreeSet<Name> = catalog.names().filter(|name| *name >= first_kept).collect();
        for name in kept.clone() {
            let chain = catalog.get(name).and_then(|manifest| catalog.chain(&manifest));
            kept.extend(chain.into_iter().flatten().map(|part| part.name()));
        }
        let named: BTreeSet<String> = (kept.iter().filter_map(|name| catalog.get(*name).ok()))
            .flat_map(|manifest| manifest.files().map(|file| file.path.clone()).collect::<Vec<_>>())
            .collect();
        let dropped: BTreeSet<Name> = catalog.names().filter(|name| !kept.contains(name)).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let is_left_over = |path: &str, modified_ms: i64| {
            let name = name_of(path);
            let is_old = |name: Name| name.generation < last.generation || now - modified_ms > UNPUBLISHED_MS;
            // What was set aside stays for as long as its checkpoint, and what a damaged manifest may name as well.
            let is_kept = |name: &Name| catalog.get(*name).is_err() && kept.contains(name);
            !named.contains(path.strip_suffix(DAMAGED).unwrap_or(path))
                && name.is_some_and(|name| {
                    !is_kept(&name) && name < last && (dropped.contains(&name) || is_old(name))
                })
        };
        let left = files.into_iter().filter(|(path, object)| is_left_over(path, object.modified_ms));
        let files: Vec<String> = left.map(|(path, _)| path).collect();
        // First the manifests: one without its files would be taken for damage. Newest first, so that none loses what it adds to.
        for name in dropped.iter().rev() {
            self.store.delete(vec![manifest_path(*name)])?;
        }
        let aside = |path: &String| set_aside_as(path).is_some_and(|name| name < first_kept);
        self.store.delete(self.store.list("manifests")?.into_keys().filter(aside).collect())?;
        self.store.delete(files)
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
