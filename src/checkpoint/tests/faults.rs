//! Damage, crashes and others that write.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::thread;

use super::*;
use crate::child_tests::{assert_ran_one_test, child_test};

const FOLDER: &str = "SWELTER_TEST_CHECKPOINTS";

fn identity() -> BTreeMap<String, String> {
    header("1-a", 1).identity
}

fn usable(checkpoints: &Checkpoints) -> Vec<u64> {
    checkpoints.find_usable(&identity()).unwrap().usable.iter().map(|manifest| manifest.epoch).collect()
}

fn epochs(checkpoints: &Checkpoints) -> Vec<u64> {
    checkpoints.list_names().unwrap().iter().map(|name| name.epoch).collect()
}

/// A full checkpoint, an increment on it, and a full one.
fn three_checkpoints(folder: &Path) -> (Checkpoints, [Manifest; 3]) {
    let checkpoints = open(folder);
    let first = publish(&checkpoints, "1-a", 1, &cities(1), None);
    let second = publish(&checkpoints, "1-a", 2, &cities(2)[..2], Some(&first));
    let third = publish(&checkpoints, "2-b", 3, &cities(3), None);
    (checkpoints, [first, second, third])
}

#[test]
fn damaged_file_falls_back_to_previous_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoints, [_, _, newest]) = three_checkpoints(folder.path());
    assert_eq!(usable(&checkpoints), [3, 2, 1]);
    let refuse = |file: &FileEntry| {
        let error = load(&checkpoints, &newest).unwrap_err();
        let line = error.to_string();
        assert!(
            error.is_specific_to_checkpoint() && line.contains(&file.path) && line.contains("0000000002-"),
            "{line}"
        );
        assert_eq!(checkpoints.verify_contents(&newest).unwrap_err().to_string(), line);
    };
    for file in newest.files() {
        let path = folder.path().join(&file.path);
        let whole = fs::read(&path).unwrap();
        for at in [0, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x20;
            fs::write(&path, flipped).unwrap();
            refuse(file);
            fs::write(&path, &whole[..at]).unwrap();
            refuse(file);
            assert_eq!(usable(&checkpoints), [2, 1]);
        }
        fs::remove_file(&path).unwrap();
        refuse(file);
        assert_eq!(usable(&checkpoints), [2, 1]);
        fs::write(&path, whole).unwrap();
    }
    assert!(load(&checkpoints, &newest).is_ok());
    // What only shows in the files is set aside by who finds it: just that file.
    let file = newest.files().next().unwrap();
    let whole = fs::read(folder.path().join(&file.path)).unwrap();
    checkpoints.quarantine_object(&file.path).unwrap();
    checkpoints.quarantine_object(&file.path).unwrap();
    assert_eq!(usable(&checkpoints), [2, 1]);
    assert_eq!(fs::read(folder.path().join(format!("{}.damaged", file.path))).unwrap(), whole);
    fs::write(folder.path().join(&file.path), whole).unwrap();
    assert_eq!(usable(&checkpoints), [3, 2, 1]);
    assert!(load(&checkpoints, &newest).is_ok());
}

#[test]
fn damaged_base_invalidates_its_increments() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoints, [first, second, _]) = three_checkpoints(folder.path());
    let file = first.files().next().unwrap();
    fs::remove_file(folder.path().join(&file.path)).unwrap();
    assert_eq!(usable(&checkpoints), [3]);
    assert!(load(&checkpoints, &second).unwrap_err().to_string().contains(&file.path));
    fs::remove_file(folder.path().join(manifest_path(first.name()))).unwrap();
    assert_eq!(usable(&checkpoints), [3]);
    let line = load(&checkpoints, &second).unwrap_err().to_string();
    assert!(line.contains("adds to 0000000001-000000000000001"), "{line}");
}

#[test]
fn damaged_manifests_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoints, [_, second, newest]) = three_checkpoints(folder.path());
    let path = folder.path().join(manifest_path(newest.name()));
    let whole = fs::read(&path).unwrap();
    let refuse = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        let error = checkpoints.read_manifest(newest.name()).unwrap_err();
        assert!(error.is_specific_to_checkpoint() && error.to_string().contains("0000000002-"), "{error}");
    };
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        refuse(&flipped);
        if at % 50 == 0 {
            refuse(&whole[..at]);
        }
    }
    assert_eq!(usable(&checkpoints), [2, 1]);
    // Whole, but another one.
    refuse(&fs::read(folder.path().join(manifest_path(second.name()))).unwrap());
    let line = |json: String| format!("{json}\n{}\n", checksum(json.as_bytes()));
    let text = std::str::from_utf8(&whole).unwrap().lines().next().unwrap();
    refuse(line(text.replacen("\"format\":1", "\"format\":3", 1)).as_bytes());
    assert!(matches!(
        checkpoints.read_manifest(newest.name()),
        Err(CheckpointError::Format { found: 3, .. })
    ));
    refuse(line("[]".into()).as_bytes());
    refuse(line(text.replacen("\"state_shards\":64", "\"state_shards\":32", 1)).as_bytes());
    fs::write(&path, &whole).unwrap();
    assert_eq!(usable(&checkpoints), [3, 2, 1]);
}

#[test]
fn different_computation_settings_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoints, [first, _, newest]) = three_checkpoints(folder.path());
    let mut other = identity();
    other.insert("formula".into(), "nws".into());
    let line = checkpoints.find_usable(&other).unwrap_err().to_string();
    assert!(
        line.contains("0000000002-") && line.contains("formula = \"rothfusz\", and this run has \"nws\""),
        "{line}"
    );
    // Also where it is not the newest of all, but the newest that is whole.
    let manifest = folder.path().join(manifest_path(newest.name()));
    let whole = fs::read(&manifest).unwrap();
    fs::write(&manifest, "").unwrap();
    assert!(matches!(checkpoints.find_usable(&other), Err(CheckpointError::Identity { .. })));
    fs::write(&manifest, whole).unwrap();
    other.insert("formula".into(), "rothfusz".into());
    other.insert("window".into(), "1d".into());
    let line = first.check_identity(&other).unwrap_err().to_string();
    assert!(line.contains("window = nothing"), "{line}");
    // A source that is no longer read.
    let fewer = PartitionTable::new(partition_table().names()[..1].to_vec());
    let error = checkpoints.load_shards(&first, &all_shards(), &fewer).unwrap_err();
    assert!(error.to_string().contains("journal/1"), "{error}");
}

#[test]
fn sources_may_be_added_and_removed_but_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let mut cut = header("1-a", 1);
    cut.identity.insert("source a".into(), "topic a as json".into());
    let manifest = Manifest::new(cut.clone(), Vec::new(), None).unwrap();
    checkpoints.publish(&manifest).unwrap();
    let mut own = cut.identity;
    own.insert("source b".into(), "topic b as json".into());
    assert_eq!(checkpoints.find_usable(&own).unwrap().usable.len(), 1);
    own.remove("source a");
    assert_eq!(checkpoints.find_usable(&own).unwrap().usable.len(), 1);
    own.insert("source a".into(), "topic a as avro".into());
    let line = checkpoints.find_usable(&own).unwrap_err().to_string();
    assert!(line.contains("source a = \"topic a as json\""), "{line}");
}

#[test]
fn restarted_generation_counter_continues_checkpoint_names() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    assert_eq!(checkpoints.unused_generation_name("1-a").unwrap(), "1-a");
    publish(&checkpoints, "7-a", 1, &cities(1), None);
    assert_eq!(checkpoints.unused_generation_name("8-b").unwrap(), "8-b");
    let (first, second) =
        (checkpoints.unused_generation_name("1-c"), checkpoints.unused_generation_name("2-d"));
    assert_eq!((first.unwrap(), second.unwrap()), ("8-c".into(), "9-d".into()));
    publish(&checkpoints, "9-d", 1, &cities(1), None);
    assert_eq!(checkpoints.unused_generation_name("0-e").unwrap(), "10-e");
}

#[test]
fn concurrent_publish_of_one_checkpoint_has_one_winner() {
    let folder = tempfile::tempdir().unwrap();
    let published: Vec<_> = thread::scope(|scope| {
        let race = |nonce: &'static str| {
            let checkpoints = open(folder.path());
            scope.spawn(move || {
                let generation = format!("1-{nonce}");
                let mark = CheckpointBarrier { checkpoint: 1, full: true };
                let parts = parts(&checkpoints, &generation, 1, mark, 1, &cities(nonce.len() as i64));
                checkpoints.publish(&Manifest::new(header(&generation, 1), parts, None).unwrap())
            })
        };
        let racing: Vec<_> = ["a", "bb", "ccc", "dddd"].map(race).into();
        racing.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(published.iter().filter(|published| published.is_ok()).count(), 1);
    assert!(
        published
            .iter()
            .all(|published| matches!(published, Ok(()) | Err(CheckpointError::AlreadyPublished(_))))
    );
    let checkpoints = open(folder.path());
    let manifest = checkpoints.read_manifest(checkpoints.list_names().unwrap()[0]).unwrap();
    let seed = manifest.generation.len() as i64 - 2;
    assert_eq!(flat_cities(load(&checkpoints, &manifest).unwrap()), flat_cities(cities(seed)));
    // Again what is there already: an answer that was lost.
    checkpoints.publish(&manifest).unwrap();
}

#[test]
fn superseded_generation_cannot_publish() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoints, _) = three_checkpoints(folder.path());
    let mark = CheckpointBarrier { checkpoint: 9, full: true };
    let parts = parts(&checkpoints, "1-a", 1, mark, 9, &cities(1));
    let late = Manifest::new(header("1-a", 9), parts, None).unwrap();
    assert!(matches!(checkpoints.publish(&late), Err(CheckpointError::Superseded { .. })));
    assert_eq!(usable(&checkpoints), [3, 2, 1]);
}

fn data(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder.join("data"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn oldest(kept: &[Arc<Manifest>]) -> Option<u64> {
    kept.iter().map(|one| one.positions["journal"][&0]).min()
}

#[test]
fn prune_keeps_bases_with_their_increments() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let trim = |keep: usize| oldest(&checkpoints.prune_checkpoints(keep, &|_| true).unwrap());
    assert_eq!(trim(3), None);
    let orphan = |generation: &str, epoch: u64| {
        let mark = CheckpointBarrier { checkpoint: epoch, full: true };
        drop(parts(&checkpoints, generation, 1, mark, epoch, &cities(1)[..1]));
    };
    orphan("1-dead", 5);
    let first = publish(&checkpoints, "2-a", 10, &cities(1), None);
    let second = publish(&checkpoints, "2-a", 20, &cities(2)[..1], Some(&first));
    let third = publish(&checkpoints, "2-a", 30, &cities(3)[..1], Some(&second));
    // A failed write of this generation, and one that goes on.
    orphan("2-a", 25);
    orphan("2-a", 40);
    // One base is never enough to give anything up.
    assert_eq!((trim(1), trim(2)), (None, None));
    assert_eq!((epochs(&checkpoints), data(folder.path()).len()), (vec![30, 20, 10], 6));
    let full = publish(&checkpoints, "2-a", 50, &cities(4), None);
    assert_eq!(trim(2), Some(10));
    let folders = data(folder.path());
    assert_eq!((epochs(&checkpoints), folders.len()), (vec![50, 30, 20, 10], 6), "{folders:?}");
    assert!(!folders.iter().any(|folder| folder.ends_with("dead")));
    // A damaged base does not count, and neither does one that was not read back.
    let damaged = publish(&checkpoints, "2-a", 60, &cities(5), None);
    let file = folder.path().join(&damaged.files().next().unwrap().path);
    let right = fs::read(&file).unwrap();
    fs::write(&file, "").unwrap();
    assert_eq!(trim(2), Some(10));
    fs::write(&file, right).unwrap();
    assert_eq!(
        oldest(&checkpoints.prune_checkpoints(2, &|manifest| manifest.epoch != 60).unwrap()),
        Some(10)
    );
    assert_eq!(epochs(&checkpoints), [60, 50, 30, 20, 10]);
    assert!(load(&checkpoints, &third).is_ok());
    // Now there are three bases, of which two are kept.
    assert_eq!(trim(2), Some(50));
    assert_eq!(epochs(&checkpoints), [60, 50]);
    let last = publish(&checkpoints, "3-b", 70, &cities(6), None);
    // Where one is kept, the logs must reach back to the one before all the same.
    assert_eq!(trim(1), Some(60));
    assert_eq!((epochs(&checkpoints), data(folder.path()).len()), (vec![70], 1));
    assert!(load(&checkpoints, &last).is_ok() && load(&checkpoints, &full).is_err());
}

#[test]
fn prune_keeps_quarantined_files_until_their_checkpoint_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let trim = || oldest(&checkpoints.prune_checkpoints(2, &|_| true).unwrap());
    publish(&checkpoints, "1-a", 10, &cities(1), None);
    let damaged = publish(&checkpoints, "1-a", 20, &cities(2), None);
    let increment = publish(&checkpoints, "1-a", 30, &cities(3)[..1], Some(&damaged));
    let file = &damaged.files().next().unwrap().path;
    checkpoints.quarantine_object(file).unwrap();
    publish(&checkpoints, "2-b", 40, &cities(4), None);
    assert_eq!(trim(), Some(10));
    fs::rename(folder.path().join(format!("{file}.damaged")), folder.path().join(file)).unwrap();
    assert!(load(&checkpoints, &increment).is_ok(), "with the right file it is whole");
    checkpoints.quarantine_object(file).unwrap();
    publish(&checkpoints, "2-b", 50, &cities(5), None);
    assert_eq!(trim(), Some(40));
    assert_eq!((epochs(&checkpoints), data(folder.path()).len()), (vec![50, 40], 2));
}

#[test]
fn sparse_replacement_file_is_damage_and_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoints, [_, _, newest]) = three_checkpoints(folder.path());
    let replace = |path: &str| {
        let path = folder.path().join(path);
        let right = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::File::create(&path).unwrap().set_len(6 << 30).unwrap();
        move || {
            fs::remove_file(&path).unwrap();
            fs::write(&path, &right).unwrap();
        }
    };
    let began = Instant::now();
    let file = newest.files().last().unwrap();
    let put_back = replace(&file.path);
    let line = load(&checkpoints, &newest).unwrap_err().to_string();
    assert!(line.contains(&file.path) && line.contains("has 6442450944 bytes"), "{line}");
    let checked = checkpoints.verify_file(newest.name(), file, &mut |_| Ok(())).unwrap_err();
    assert_eq!((checked.to_string(), checked.damaged_path()), (line, Some(&*file.path)));
    assert_eq!(usable(&checkpoints), [2, 1]);
    put_back();
    let put_back = replace(&manifest_path(newest.name()));
    assert!(checkpoints.read_manifest(newest.name()).unwrap_err().is_specific_to_checkpoint());
    assert_eq!(usable(&checkpoints), [2, 1]);
    put_back();
    assert_eq!(usable(&checkpoints), [3, 2, 1]);
    assert!(began.elapsed() < Duration::from_secs(20), "it was read");
}

#[test]
fn footer_with_wrong_row_count_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoints, [_, _, newest]) = three_checkpoints(folder.path());
    let mut other = newest.clone();
    let segment = other.segments.iter_mut().find(|segment| segment.readings.is_some()).unwrap();
    segment.readings.as_mut().unwrap().rows += 1;
    segment.cities.rows += 1;
    let line = load(&checkpoints, &other).unwrap_err().to_string();
    assert!(line.contains("does not have the sizes of its rows"), "{line}");
}

#[test]
fn unwritable_location_fails_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    fs::write(folder.path().join("data"), "a file where a folder should be").unwrap();
    let (mut writer, told) = writer(&checkpoints, "1-a", 2_000);
    for epoch in [1, 2] {
        writer.begin_snapshot(CheckpointBarrier { checkpoint: epoch, full: true }, epoch);
        cities(1).into_iter().for_each(|city| writer.write_city(city));
        writer.finish_snapshot();
        let (_, told_epoch, part) = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(told_epoch, epoch);
        match epoch {
            1 => {
                let line = part.unwrap_err().to_string();
                assert!(
                    line.contains("data/") && line.contains("is not a folder: move that file away"),
                    "{line}"
                );
                fs::remove_file(folder.path().join("data")).unwrap();
            }
            _ => {
                let manifest = Manifest::new(header("1-a", 2), vec![part.unwrap()], None).unwrap();
                checkpoints.publish(&manifest).unwrap();
                assert_eq!(flat_cities(load(&checkpoints, &manifest).unwrap()), flat_cities(cities(1)));
            }
        }
        assert!(!writer.is_full());
    }
}

#[test]
fn truncated_part_is_not_a_part() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let (mut writer, told) = writer(&checkpoints, "1-a", 1 << 20);
    writer.write_city(cities(1).remove(0));
    writer.begin_snapshot(CheckpointBarrier { checkpoint: 1, full: true }, 1);
    writer.write_city(cities(1).remove(0));
    writer.begin_snapshot(CheckpointBarrier { checkpoint: 2, full: true }, 2);
    writer.write_city(cities(1).remove(1));
    writer.finish_snapshot();
    writer.begin_snapshot(CheckpointBarrier { checkpoint: 3, full: false }, 3);
    writer.write_city(cities(1).remove(0));
    let heard: Vec<_> = (0..2).map(|_| told.recv_timeout(Duration::from_secs(60)).unwrap()).collect();
    drop(writer);
    assert!(told.recv().is_err());
    let told = heard;
    assert!(matches!((told[0].1, &told[0].2), (1, Err(CheckpointError::IncompatibleParts(_)))));
    let part = told[1].2.as_ref().unwrap();
    assert_eq!((part.epoch, part.segments.len(), part.segments[0].cities.rows), (2, 1, 1));
}

#[test]
fn parts_written_to_another_location_are_not_published() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let mark = CheckpointBarrier { checkpoint: 1, full: true };
    let parts = parts(&checkpoints, "1-a", 2, mark, 1, &cities(1));
    let manifest = Manifest::new(header("1-a", 1), parts, None).unwrap();
    let lost = manifest.files().last().unwrap();
    fs::remove_file(folder.path().join(&lost.path)).unwrap();
    let line = checkpoints.publish(&manifest).unwrap_err().to_string();
    assert!(line.contains(&lost.path) && line.contains("same store"), "{line}");
    assert!(checkpoints.list_names().unwrap().is_empty());
    wait_until("that its files are removed", || data(folder.path()).is_empty());
}

#[test]
fn unfinished_files_of_earlier_generations_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let orphan = |generation: &str, epoch: u64| {
        let mark = CheckpointBarrier { checkpoint: epoch, full: true };
        drop(parts(&checkpoints, generation, 1, mark, epoch, &cities(1)[..1]));
    };
    let published = publish(&checkpoints, "1-a", 1, &cities(1), None);
    let damaged = publish(&checkpoints, "1-a", 2, &cities(1), None);
    let manifest = manifest_path(damaged.name());
    fs::rename(folder.path().join(&manifest), folder.path().join(format!("{manifest}.damaged"))).unwrap();
    orphan("1-a", 3);
    orphan("2-b", 4);
    // As a process that is killed leaves them.
    let cut_off = |path: String| fs::write(folder.path().join(path), "PAR1").unwrap();
    let own = published.files().next().unwrap();
    cut_off(format!("{}#1", own.path));
    cut_off(format!("data/{}-b/cities-01.parquet#12", CheckpointName { generation: 2, epoch: 4 }));
    cut_off(format!("manifests/{}.json#1", CheckpointName { generation: 1, epoch: 3 }));
    checkpoints.remove_orphaned_files("2-b").unwrap();
    let folders = data(folder.path());
    assert_eq!(folders.len(), 3, "{folders:?}");
    assert!(load(&checkpoints, &published).is_ok());
    let unfinished = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.display().to_string().contains('#')).count()
    };
    assert_eq!(unfinished(&folder.path().join("manifests")), 0);
    let left: usize = folders.iter().map(|name| unfinished(&folder.path().join("data").join(name))).sum();
    assert_eq!(left, 1, "that of the generation that runs");
}

/// The process that dies with all files written and no manifest.
#[test]
#[ignore = "child process of `kill_before_manifest_keeps_previous_checkpoint`"]
fn child_process_dies_before_manifest() {
    let folder = std::env::var_os(FOLDER).unwrap();
    let checkpoints = open(Path::new(&folder));
    let first = publish(&checkpoints, "1-a", 1, &cities(1), None);
    publish(&checkpoints, "1-a", 2, &cities(2), Some(&first));
}

#[test]
fn kill_before_manifest_keeps_previous_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let child = child_test("checkpoint::tests::faults::child_process_dies_before_manifest")
        .env(FOLDER, folder.path())
        .env("SWELTER_TEST_DIE_BEFORE_MANIFEST", "1")
        .output()
        .unwrap();
    assert_ran_one_test(&child.stdout);
    assert_eq!(child.status.signal(), Some(6), "it must abort: {}", String::from_utf8_lossy(&child.stderr));
    let checkpoints = open(folder.path());
    assert_eq!((usable(&checkpoints), data(folder.path()).len()), (vec![1], 2));
    publish(&checkpoints, "2-b", 3, &cities(3), None);
    checkpoints.prune_checkpoints(5, &|_| true).unwrap();
    assert_eq!((usable(&checkpoints), data(folder.path()).len()), (vec![3, 1], 2));
}
