//! Every file of every checkpoint, damaged in every way: the best one that is whole is used, and
//! never a wrong state.

use std::fs;
use std::path::PathBuf;

use super::*;

/// Two bases with increments, oldest first, and what each holds.
fn chains(checkpoints: &Checkpoints) -> Vec<(Manifest, BTreeMap<String, FlatCity>)> {
    let mut all: Vec<(Manifest, BTreeMap<String, FlatCity>)> = Vec::new();
    for (epoch, seed, changed) in
        [(10, 1, None), (20, 2, Some(2)), (30, 3, None), (40, 4, Some(3)), (50, 5, Some(1))]
    {
        let cities = cities(seed);
        let (base, mut state) = match (changed, all.last()) {
            (Some(_), Some((base, state))) => (Some(base.clone()), state.clone()),
            _ => (None, BTreeMap::new()),
        };
        let written = &cities[..changed.unwrap_or(cities.len())];
        let manifest = publish(checkpoints, "1-a", epoch, written, base.as_ref());
        state.extend(flat_cities(written.to_vec()));
        all.push((manifest, state));
    }
    all
}

/// As a start does it: the newest is loaded; of what is found damaged just that file is set aside,
/// and the next one is tried.
fn start(checkpoints: &Checkpoints) -> Option<(u64, BTreeMap<String, FlatCity>)> {
    for _ in 0..10 {
        let newest =
            checkpoints.find_usable(&header("1-a", 1).identity).unwrap().usable.into_iter().next()?;
        match load(checkpoints, &newest) {
            Ok(cities) => return Some((newest.epoch, flat_cities(cities))),
            Err(error) => checkpoints.quarantine_object(error.damaged_path().unwrap()).unwrap(),
        }
    }
    panic!("it does not come to an end");
}

/// What a damaged file makes unusable: its own checkpoint, and what adds to that.
fn best_without(damaged: &[u64]) -> Option<u64> {
    let needs = |epoch: u64| match epoch {
        10 => vec![10],
        20 => vec![10, 20],
        30 => vec![30],
        40 => vec![30, 40],
        _ => vec![30, 40, 50],
    };
    [50, 40, 30, 20, 10].into_iter().find(|epoch| needs(*epoch).iter().all(|part| !damaged.contains(part)))
}

#[test]
fn any_damaged_file_falls_back_to_best_complete_checkpoint_until_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let all = chains(&checkpoints);
    let state = |epoch: u64| &all.iter().find(|(manifest, _)| manifest.epoch == epoch).unwrap().1;
    let mut objects: Vec<(u64, PathBuf)> = Vec::new();
    for (manifest, _) in &all {
        let paths = manifest.files().map(|file| file.path.clone()).chain([manifest_path(manifest.name())]);
        objects.extend(paths.map(|path| (manifest.epoch, folder.path().join(path))));
    }
    let contents: Vec<Vec<u8>> = objects.iter().map(|(_, path)| fs::read(path).unwrap()).collect();
    let check = |damaged: &[usize], what: &str| {
        let epochs: Vec<u64> = damaged.iter().map(|at| objects[*at].0).collect();
        let expected = best_without(&epochs);
        let found = start(&checkpoints);
        assert_eq!(found.as_ref().map(|found| found.0), expected, "{what} of {:?}", objects[damaged[0]]);
        if let Some((epoch, found)) = found {
            assert!(found == *state(epoch), "{what} of {:?}: a wrong state", objects[damaged[0]]);
        }
        for at in damaged {
            let _ = fs::remove_file(&objects[*at].1);
            fs::write(&objects[*at].1, &contents[*at]).unwrap();
        }
        let healed = start(&checkpoints).map(|found| found.0);
        assert_eq!(healed, Some(50), "with the right file: {what} of {:?}", objects[damaged[0]]);
    };
    for (at, (_, path)) in objects.iter().enumerate() {
        let right = &contents[at];
        let mut flipped = right.clone();
        flipped[at * 7_919 % right.len()] ^= 1 << (at % 8);
        fs::write(path, flipped).unwrap();
        check(&[at], "a flipped bit");
        fs::write(path, &right[..at * 104_729 % right.len()]).unwrap();
        check(&[at], "a cut");
        fs::remove_file(path).unwrap();
        check(&[at], "the removal");
        fs::remove_file(path).unwrap();
        fs::File::create(path).unwrap().set_len(6 << 30).unwrap();
        check(&[at], "a sparse file");
        let other = (at + 1 + at % 5) % objects.len();
        if contents[other] != *right {
            fs::write(path, &contents[other]).unwrap();
            fs::write(&objects[other].1, right).unwrap();
            check(&[at, other], "an exchange");
        }
    }
}

#[test]
fn damage_of_both_bases_leaves_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let all = chains(&checkpoints);
    for at in [0, 2] {
        let path = folder.path().join(&all[at].0.files().next().unwrap().path);
        let mut bytes = fs::read(&path).unwrap();
        bytes[9] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    assert!(start(&checkpoints).is_none());
    assert_eq!(checkpoints.list_names().unwrap().len(), 5, "nothing but the two files was renamed");
}
