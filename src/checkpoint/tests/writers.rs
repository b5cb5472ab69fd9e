//! Writers that fail, that are given up, and that are stopped.

use std::fs;

use super::*;

fn begin(writer: &mut PartWriter, checkpoint: u64) {
    writer.begin(Mark { checkpoint, full: true }, checkpoint);
}

fn folders(folder: &Path) -> usize {
    fs::read_dir(folder.join("data")).map_or(0, Iterator::count)
}

#[test]
fn a_part_that_fails_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let (mut writer, told) = writer(&checkpoints, "1-a", 2_000);
    // What is there already is not replaced.
    let (own, last) = (format!("data/{}-a", Name { generation: 1, epoch: 1 }), cities(1).pop().unwrap());
    let shard = state_shard(CityKey::hash(&last.name));
    fs::create_dir_all(folder.path().join(&own)).unwrap();
    for run in ["", "-1", "-2", "-3", "-4", "-5"] {
        fs::write(folder.path().join(format!("{own}/cities-{shard:02}{run}.parquet")), "").unwrap();
    }
    begin(&mut writer, 1);
    cities(1).into_iter().for_each(|city| writer.city(city));
    writer.end();
    let (.., part) = told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(matches!(part, Err(CheckpointError::Exists(_))), "{part:?}");
    let left = |kind: &str| {
        let entries = fs::read_dir(folder.path().join(&own)).into_iter().flatten();
        entries.filter(|entry| entry.as_ref().unwrap().path().display().to_string().contains(kind)).count()
    };
    until("that its files are removed", || left("readings") == 0);
}

#[test]
fn what_is_given_up_ends_at_once_and_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoints, writers) = (open(folder.path()), Arc::<Writers>::default());
    let (mut writer, told) = writer_of(Arc::clone(&writers), &checkpoints, "1-a", 2_000);
    assert!(writers.are_idle());
    begin(&mut writer, 1);
    cities(1).into_iter().for_each(|city| writer.city(city));
    until("that some of it is written", || folders(folder.path()) > 0);
    assert!(!writers.are_idle());
    // It has no end yet.
    writers.give_up(1);
    let (mark, _, part) = told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(mark.checkpoint == 1 && matches!(part, Err(CheckpointError::GivenUp)), "{part:?}");
    until("that the writer is idle", || writers.are_idle());
    until("that its files are removed", || folders(folder.path()) == 0);
    assert!(writer.has_given_up(mark) && !writer.has_given_up(Mark { checkpoint: 2, full: true }));
    // What still comes of it is not in the next one.
    cities(2).into_iter().for_each(|city| writer.city(city));
    begin(&mut writer, 2);
    cities(3).into_iter().for_each(|city| writer.city(city));
    writer.end();
    let part = told.recv_timeout(Duration::from_secs(60)).unwrap().2.unwrap();
    let manifest = Manifest::new(cut("1-a", 2), vec![part], None).unwrap();
    checkpoints.publish(&manifest).unwrap();
    assert_eq!(flat(load(&checkpoints, &manifest).unwrap()), flat(cities(3)));
    assert!(writers.files() >= manifest.files().count() as u64);
    until("that nothing is held", || !writer.is_full() && writers.are_idle());
}

#[test]
fn a_stop_does_not_wait_for_what_is_left_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let (mut writer, told) = writer(&checkpoints, "1-a", 1);
    begin(&mut writer, 1);
    // A run each, each with files of its own, synced.
    for seed in 0..2_000 {
        cities(seed).into_iter().for_each(|city| writer.city(city));
    }
    writer.end();
    let began = Instant::now();
    drop(writer);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(told.recv().is_err(), "nothing is heard of what was stopped");
}
