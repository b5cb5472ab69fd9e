//! Writers that fail, that are given up, and that are stopped.

use std::fs;

use super::*;

fn begin(writer: &mut PartWriter, checkpoint: u64) {
    writer.begin_snapshot(CheckpointBarrier { checkpoint, full: true }, checkpoint);
}

fn folders(folder: &Path) -> usize {
    fs::read_dir(folder.join("data")).map_or(0, Iterator::count)
}

#[test]
fn failed_part_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let (mut writer, told) = writer(&checkpoints, "1-a", 2_000);
    // What is there already is not replaced.
    let (own, last) =
        (format!("data/{}-a", CheckpointName { generation: 1, epoch: 1 }), cities(1).pop().unwrap());
    let shard = state_shard(CityKey::hash(&last.name));
    fs::create_dir_all(folder.path().join(&own)).unwrap();
    for run in ["", "-1", "-2", "-3", "-4", "-5"] {
        fs::write(folder.path().join(format!("{own}/cities-{shard:02}{run}.parquet")), "").unwrap();
    }
    begin(&mut writer, 1);
    cities(1).into_iter().for_each(|city| writer.write_city(city));
    writer.finish_snapshot();
    let (.., part) = told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(matches!(part, Err(CheckpointError::AlreadyPublished(_))), "{part:?}");
    let left = |kind: &str| {
        let entries = fs::read_dir(folder.path().join(&own)).into_iter().flatten();
        entries.filter(|entry| entry.as_ref().unwrap().path().display().to_string().contains(kind)).count()
    };
    wait_until("that its files are removed", || left("readings") == 0);
}

#[test]
fn cancelled_write_ends_at_once_and_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoints, writers) = (open(folder.path()), Arc::<PartWriterControl>::default());
    let (mut writer, told) = writer_of(Arc::clone(&writers), &checkpoints, "1-a", 2_000);
    assert!(writers.all_idle());
    begin(&mut writer, 1);
    cities(1).into_iter().for_each(|city| writer.write_city(city));
    wait_until("that some of it is written", || folders(folder.path()) > 0);
    assert!(!writers.all_idle());
    // It has no end yet.
    writers.cancel_checkpoint(1);
    let (mark, _, part) = told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(mark.checkpoint == 1 && matches!(part, Err(CheckpointError::Cancelled)), "{part:?}");
    wait_until("that the writer is idle", || writers.all_idle());
    wait_until("that its files are removed", || folders(folder.path()) == 0);
    assert!(
        writer.is_cancelled(mark) && !writer.is_cancelled(CheckpointBarrier { checkpoint: 2, full: true })
    );
    // What still comes of it is not in the next one.
    cities(2).into_iter().for_each(|city| writer.write_city(city));
    begin(&mut writer, 2);
    cities(3).into_iter().for_each(|city| writer.write_city(city));
    writer.finish_snapshot();
    let part = told.recv_timeout(Duration::from_secs(60)).unwrap().2.unwrap();
    let manifest = Manifest::new(header("1-a", 2), vec![part], None).unwrap();
    checkpoints.publish(&manifest).unwrap();
    assert_eq!(flat_cities(load(&checkpoints, &manifest).unwrap()), flat_cities(cities(3)));
    assert!(writers.written_files() >= manifest.files().count() as u64);
    wait_until("that nothing is held", || !writer.is_full() && writers.all_idle());
}

#[test]
fn stop_does_not_wait_for_remaining_writes() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let (mut writer, told) = writer(&checkpoints, "1-a", 1);
    begin(&mut writer, 1);
    // A run each, each with files of its own, synced.
    for seed in 0..2_000 {
        cities(seed).into_iter().for_each(|city| writer.write_city(city));
    }
    writer.finish_snapshot();
    let began = Instant::now();
    drop(writer);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(told.recv().is_err(), "nothing is heard of what was stopped");
}
