//! The files of checkpoints in a folder.

use std::path::{Path, PathBuf};

/// The manifests of a folder. A manifest that is being written has another name until it is whole.
pub fn published_manifests(location: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(location.join("manifests")).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|kind| kind == "json")).collect()
}
