//! The folder of checkpoints, and what is done to it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::plan::Damage;

/// Where the checkpoints of a case are.
pub fn folder(case: &Path) -> PathBuf {
    case.join("data").join("checkpoints")
}

/// Manifests, the newest last, with the files that they name.
fn manifests(folder: &Path) -> Vec<(PathBuf, BTreeSet<PathBuf>)> {
    let entries = fs::read_dir(folder.join("manifests")).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), named(folder, &path))).collect()
}

fn named(folder: &Path, manifest: &Path) -> BTreeSet<PathBuf> {
    let text = fs::read_to_string(manifest).unwrap_or_default();
    let manifest = serde_json::Deserializer::from_str(&text).into_iter::<Value>().next();
    let manifest = manifest.and_then(Result::ok).unwrap_or_default();
    let segments = manifest["segments"].as_array().into_iter().flatten();
    let files = segments.flat_map(|segment| [&segment["cities"], &segment["readings"]]);
    files.filter_map(|file| Some(folder.join(file["path"].as_str()?))).collect()
}

/// Damages a file of the newest checkpoint that the one before does not need, unless there is none before: without any the log would
/// not reach back far enough. Says whether it has.
pub fn damage(case: &Path, damage: Damage, lot: u64) -> bool {
    let folder = folder(case);
    // One that was damaged before is no longer whole, so it does not count.
    let mark = case.join("damaged");
    let damaged = fs::read_to_string(&mark).unwrap_or_default();
    let is_whole = |(path, _): &(PathBuf, _)| !damaged.lines().any(|line| Path::new(line) == path);
    let whole: Vec<_> = manifests(&folder).into_iter().filter(is_whole).collect();
    let [.., (_, before), (newest, files)] = &whole[..] else { return false };
    let own: Vec<&PathBuf> = files.difference(before).filter(|path| path.exists()).chain([newest]).collect();
    let file = own[lot as usize % own.len()];
    let Ok(mut bytes) = fs::read(file) else { return false };
    let at = (lot as usize >> 8) % bytes.len().max(1);
    match damage {
        Damage::Removed => fs::remove_file(file).unwrap(),
        Damage::Truncated => fs::write(file, &bytes[..at]).unwrap(),
        Damage::Changed => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (lot % 8);
            }
            fs::write(file, &bytes).unwrap();
        }
    }
    fs::write(&mark, format!("{damaged}{}\n", newest.display())).unwrap();
    true
}

/// Does something while the folder cannot be written to, by anybody: a file is in its place.
pub fn without(case: &Path, during: impl FnOnce()) {
    let (folder, away) = (folder(case), case.join("checkpoints-away"));
    let moved = fs::rename(&folder, &away).is_ok();
    if moved {
        fs::write(&folder, "").unwrap();
    }
    during();
    if moved {
        fs::remove_file(&folder).unwrap();
        fs::rename(&away, &folder).unwrap();
    }
}
