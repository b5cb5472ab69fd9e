//! The folder of checkpoints, and faults of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::plan::Damage;
use crate::support::{Oracle, city_name, swelter_command, wait_for};

/// Where the checkpoints of a case are.
pub fn checkpoint_folder(case: &Path) -> PathBuf {
    case.join("data").join("checkpoints")
}

/// Manifests, the newest last, with the files that they name.
fn manifests_with_files(folder: &Path) -> Vec<(PathBuf, BTreeSet<PathBuf>)> {
    let entries = fs::read_dir(folder.join("manifests")).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), files_named_by(folder, &path))).collect()
}

fn files_named_by(folder: &Path, manifest: &Path) -> BTreeSet<PathBuf> {
    let text = fs::read_to_string(manifest).unwrap_or_default();
    let manifest = serde_json::Deserializer::from_str(&text).into_iter::<Value>().next();
    let manifest = manifest.and_then(Result::ok).unwrap_or_default();
    let segments = manifest["segments"].as_array().into_iter().flatten();
    let files = segments.flat_map(|segment| [&segment["cities"], &segment["readings"]]);
    files.filter_map(|file| Some(folder.join(file["path"].as_str()?))).collect()
}

/// Damages a file of the newest checkpoint that the previous one does not need; returns whether it
/// has. The only checkpoint is left alone: without it the log would not reach back far enough.
pub fn damage_newest(case: &Path, damage: Damage, lot: u64) -> bool {
    let folder = checkpoint_folder(case);
    // A checkpoint that was damaged before is not complete and does not count.
    let mark = case.join("damaged");
    let damaged = fs::read_to_string(&mark).unwrap_or_default();
    let is_whole = |(path, _): &(PathBuf, _)| !damaged.lines().any(|line| Path::new(line) == path);
    let whole: Vec<_> = manifests_with_files(&folder).into_iter().filter(is_whole).collect();
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

/// Runs `act` while a file is in the place of the folder, so that no user can write to it.
pub fn while_unwritable(case: &Path, during: impl FnOnce()) {
    let (folder, away) = (checkpoint_folder(case), case.join("checkpoints-away"));
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

/// The output of `swelter checkpoints`.
fn run_checkpoints_command(case: &Path, arguments: &[&str]) -> Result<Value, String> {
    let mut command = swelter_command();
    command.arg("checkpoints").args(arguments).args(["--json", "--url"]).arg(checkpoint_folder(case));
    let output = command.output().unwrap();
    if !output.status.success() {
        return Err(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

/// Records that a checkpoint includes; `None` if it is damaged or was removed meanwhile.
fn included_records(case: &Path, name: &str) -> Option<u64> {
    let facts = run_checkpoints_command(case, &["show", name]).ok()?;
    let positions = facts["positions"].as_object()?.values();
    positions.flat_map(|of| of.as_object().unwrap().values()).map(Value::as_u64).sum()
}

/// Waits for a checkpoint of the whole log and compares it with the recomputation; returns the
/// number of values.
pub fn check_newest(case: &Path, records: u64, oracle: &Oracle, cities: u32) -> usize {
    let name = wait_for("a checkpoint of all", || {
        let newest = manifests_with_files(&checkpoint_folder(case)).pop()?.0;
        let name = newest.file_stem()?.to_str()?.to_owned();
        (included_records(case, &name)? == records).then_some(name)
    });
    let say = |arguments: &[&str]| {
        run_checkpoints_command(case, arguments).unwrap_or_else(|error| panic!("{error}"))
    };
    say(&["verify", &name]);
    let known = (0..cities).filter(|city| oracle.knows_city(*city));
    known.map(|city| check_city(&say(&["show", &name, "--city", &city_name(city)]), oracle, city)).sum()
}

/// A checkpoint may hold more than results still need, but only values that were in the log.
fn check_city(kept: &Value, oracle: &Oracle, city: u32) -> usize {
    let expected = oracle.city_state(city);
    assert_eq!(kept["high"], expected.high, "the newest time of {}", kept["city"]);
    assert_eq!(kept["measured"], json!(expected.measured), "the measurements of {}", kept["city"]);
    let mut values = 2;
    for (what, needed, all) in [
        ("readings", expected.needed_readings, expected.readings),
        ("withdrawn", expected.needed_withdrawn, expected.withdrawn),
    ] {
        let kept_ones = kept[what].as_array().unwrap();
        let held = &all[all.len().saturating_sub(kept_ones.len())..];
        assert_eq!(kept_ones, held, "{what} of {}", kept["city"]);
        assert!(kept_ones.len() >= needed, "{what} of {}: {} of {needed}", kept["city"], kept_ones.len());
        values += kept_ones.len();
    }
    values
}
