//! Tests of the folder sink: writing, torn writes, takeover, and writing after that.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{FolderFormat, FolderSink, FolderSinkPlan, SegmentLimits};
use crate::model::{BatchBuilder, Shard};
use crate::sinks::contract::DurableSink;
use crate::sinks::error::{SinkError, WriteFailure};
use crate::sinks::progress::{ClaimRequest, ShardProgress, SinkClaim, SinkIdentity};
use crate::sinks::shard::{ShardBatch, ShardWriter};

const WITHIN: Duration = Duration::from_secs(1);

fn identity() -> SinkIdentity {
    [("rules version", "2"), ("format", "json")].map(|(key, value)| (key.into(), value.into())).into()
}

fn sink_of(path: &Path, shards: u16, bytes: u64) -> FolderSink {
    let plan = FolderSinkPlan {
        path: path.join("archive"),
        format: FolderFormat::Json,
        shards,
        commit_interval: Duration::from_millis(10),
        segments: SegmentLimits { bytes, age: Duration::from_secs(3600) },
    };
    FolderSink::new(plan, identity(), "the data directory".into())
}

fn claim(sink: &FolderSink, generation: u64) -> SinkClaim {
    let generation = format!("{generation}-{generation:016x}");
    sink.claim(&ClaimRequest { generation: Some(&generation), after: None }).unwrap()
}

/// Claims the folder and opens the writer of shard 0.
fn start(sink: &FolderSink, generation: u64) -> (Box<dyn ShardWriter>, Option<ShardProgress>) {
    let claim = claim(sink, generation);
    let fenced = sink.fence(&claim, &[0]).unwrap();
    let progress = sink.read_progress(&claim).unwrap().shard(0).unwrap();
    let (_, writer) = fenced.writers.into_iter().next().unwrap();
    (writer, progress)
}

fn batch(epoch: u64, lines: &[&str]) -> ShardBatch {
    let mut out = BatchBuilder::default();
    for line in lines {
        let mut record = out.begin_record(epoch, Shard(0), 0, 0);
        record.buffer().extend_from_slice(format!("{line}\n").as_bytes());
        record.end_value();
    }
    let positions = [("log".into(), [(0, epoch)].into())].into();
    ShardBatch { batches: out.take_batches(), epoch, positions: Arc::new(positions), before: Arc::default() }
}

fn try_write(writer: &mut dyn ShardWriter, epoch: u64, lines: &[&str]) -> Result<(), WriteFailure> {
    let batch = batch(epoch, lines);
    writer.begin()?;
    writer.add(&batch)?;
    let positions = batch.positions.as_ref().clone();
    writer.commit(&ShardProgress { epoch, positions, before: BTreeMap::new() })
}

fn write(writer: &mut dyn ShardWriter, epoch: u64, lines: &[&str]) {
    try_write(writer, epoch, lines).unwrap();
}

/// All row files, finished or open, by name.
fn rows(path: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut folders = vec![path.join("archive")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if name.starts_with("rows-") {
                let before = files.insert(name, fs::read_to_string(entry.path()).unwrap());
                assert_eq!(before, None, "{:?} is there twice", entry.path());
            }
        }
    }
    files
}

fn all_rows(path: &Path) -> String {
    rows(path).into_values().collect()
}

/// The working folder of shard 0.
fn working(path: &Path) -> std::path::PathBuf {
    let all = fs::read_dir(path.join("archive/writing")).unwrap().map(|entry| entry.unwrap().path());
    let all: Vec<_> = all.collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

#[test]
fn start_goes_on_behind_last_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink_of(folder.path(), 1, 1 << 20);
    assert_eq!(sink.inspect(WITHIN).unwrap().shard(0).unwrap(), None);
    let (mut writer, before) = start(&sink, 1);
    assert_eq!(before, None);
    write(&mut *writer, 10, &["a", "b"]);
    write(&mut *writer, 11, &[]);
    write(&mut *writer, 12, &["c"]);
    drop(writer);
    let (mut writer, before) = start(&sink, 2);
    assert_eq!(before.map(|before| before.epoch), Some(12));
    write(&mut *writer, 20, &["d"]);
    writer.finish().unwrap();
    drop(writer);
    let expected = [("rows-00-0000000000000010.jsonl".into(), "a\nb\nc\nd\n".into())];
    assert_eq!(rows(folder.path()), expected.into());
    // The segment is finished: the next transaction begins another one.
    let (mut writer, before) = start(&sink, 3);
    assert_eq!(before.map(|before| before.epoch), Some(20));
    write(&mut *writer, 30, &["e"]);
    assert_eq!(rows(folder.path()).len(), 2);
}

#[test]
fn torn_tail_is_cut_back_at_claim() {
    for (rows_tail, log_tail) in
        [("half a r", ""), ("whole row\n", "{\"generation\":\"1-0\",\"epo"), ("", "x\n")]
    {
        let folder = tempfile::tempdir().unwrap();
        let sink = sink_of(folder.path(), 1, 1 << 20);
        let (mut writer, _) = start(&sink, 1);
        write(&mut *writer, 10, &["a"]);
        drop(writer);
        let append = |path: &Path, text: &str| {
            File::options().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
        };
        append(&working(folder.path()).join("rows-00-0000000000000010.jsonl"), rows_tail);
        append(&working(folder.path()).join("commits.log"), log_tail);
        let (mut writer, before) = start(&sink, 2);
        assert_eq!(before.map(|before| before.epoch), Some(10));
        write(&mut *writer, 20, &["b"]);
        assert_eq!(all_rows(folder.path()), "a\nb\n", "{rows_tail:?} {log_tail:?}");
    }
}

#[test]
fn rows_without_a_commit_record_are_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink_of(folder.path(), 1, 1 << 20);
    let (mut writer, _) = start(&sink, 1);
    writer.begin().unwrap();
    let long = "x".repeat(400_000);
    writer.add(&batch(10, &[&long])).unwrap();
    assert!(all_rows(folder.path()).len() > 400_000);
    drop(writer);
    let (mut writer, before) = start(&sink, 2);
    assert_eq!(before, None);
    write(&mut *writer, 20, &["a"]);
    assert_eq!(all_rows(folder.path()), "a\n");
}

#[test]
fn rolled_back_rows_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink_of(folder.path(), 1, 1 << 20);
    let (mut writer, _) = start(&sink, 1);
    let long = "x".repeat(400_000);
    for epoch in [10, 20] {
        writer.begin().unwrap();
        writer.add(&batch(epoch, &[&long])).unwrap();
        assert!(all_rows(folder.path()).len() > 400_000);
        assert!(writer.roll_back());
        write(&mut *writer, epoch, &["a"]);
    }
    assert_eq!(all_rows(folder.path()), "a\na\n");
    assert_eq!(rows(folder.path()).len(), 1);
}

#[test]
fn missing_rows_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink_of(folder.path(), 1, 1 << 20);
    let (mut writer, _) = start(&sink, 1);
    write(&mut *writer, 10, &["a", "b"]);
    drop(writer);
    let segment = working(folder.path()).join("rows-00-0000000000000010.jsonl");
    File::options().write(true).open(&segment).unwrap().set_len(2).unwrap();
    let refused = sink.inspect(WITHIN).unwrap_err().to_string();
    assert!(
        refused.contains("has 2 bytes, and its transactions have 4") && refused.contains("restore it"),
        "{refused}"
    );
    fs::remove_file(segment).unwrap();
    assert!(sink.inspect(WITHIN).unwrap_err().to_string().contains("segment is missing"));
}

/// A writer that is suspended at any moment, and resumes after another start has fenced it, adds
/// nothing.
#[test]
fn zombie_adds_nothing() {
    for is_past_its_check in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let sink = sink_of(folder.path(), 1, 1 << 20);
        let (mut zombie, _) = start(&sink, 1);
        write(&mut *zombie, 10, &["a"]);
        if is_past_its_check {
            zombie.begin().unwrap();
        }
        let (mut writer, before) = start(&sink, 2);
        assert_eq!(before.map(|before| before.epoch), Some(10));
        write(&mut *writer, 20, &["b"]);
        if is_past_its_check {
            let long = "x".repeat(400_000);
            zombie.add(&batch(11, &[&long])).unwrap();
            let ended = zombie.commit(&ShardProgress { epoch: 11, ..ShardProgress::default() });
            assert!(matches!(ended, Err(WriteFailure::Final(SinkError::Fenced(_)))), "{ended:?}");
        } else {
            let ended = try_write(&mut *zombie, 11, &["z"]);
            assert!(matches!(ended, Err(WriteFailure::Final(SinkError::Fenced(_)))), "{ended:?}");
        }
        assert!(zombie.finish().unwrap_err().is_fenced());
        write(&mut *writer, 21, &["c"]);
        assert_eq!(all_rows(folder.path()), "a\nb\nc\n");
        let now = sink.inspect(WITHIN).unwrap().shard(0).unwrap();
        assert_eq!(now.map(|now| now.epoch), Some(21));
    }
}

#[test]
fn stale_start_is_refused_and_equal_one_may_claim_again() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink_of(folder.path(), 1, 1 << 20);
    claim(&sink, 5);
    let refused = sink.claim(&ClaimRequest { generation: Some("4-a"), after: None }).unwrap_err();
    assert!(
        refused.to_string().contains("last written by generation 5, and this is generation 4"),
        "{refused}"
    );
    claim(&sink, 5);
    claim(&sink, 6);
}

#[test]
fn segments_are_finished_at_their_size() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink_of(folder.path(), 1, 4);
    let (mut writer, _) = start(&sink, 1);
    for epoch in 10..20 {
        write(&mut *writer, epoch, &["a"]);
    }
    let files = rows(folder.path());
    assert_eq!(files.len(), 5);
    assert!(files.values().all(|file| file == "a\na\n"), "{files:?}");
    // Killed between the rename of the last segment and the next transaction.
    drop(writer);
    let (mut writer, before) = start(&sink, 2);
    assert_eq!(before.map(|before| before.epoch), Some(19));
    write(&mut *writer, 20, &["b"]);
    assert_eq!(rows(folder.path()).len(), 6);
    assert_eq!(all_rows(folder.path()).len(), 22);
}

/// The only file of rows.
fn only_file(path: &Path) -> std::path::PathBuf {
    let name = rows(path).into_keys().next().unwrap();
    path.join("archive").join(name)
}

#[test]
fn finished_file_is_not_missed() {
    for bytes in [1 << 20, 1] {
        let folder = tempfile::tempdir().unwrap();
        let sink = sink_of(folder.path(), 1, bytes);
        let (mut writer, _) = start(&sink, 1);
        write(&mut *writer, 10, &["a"]);
        writer.finish().unwrap();
        drop(writer);
        // It was compressed in place, or moved away.
        fs::write(only_file(folder.path()), "").unwrap();
        assert_eq!(sink.inspect(WITHIN).unwrap().shard(0).unwrap().map(|now| now.epoch), Some(10));
        fs::remove_file(only_file(folder.path())).unwrap();
        let (mut writer, before) = start(&sink, 2);
        assert_eq!(before.map(|before| before.epoch), Some(10));
        write(&mut *writer, 20, &["b"]);
        assert_eq!(all_rows(folder.path()), "b\n");
    }
}

#[test]
fn files_that_are_replaced_while_they_are_written_end_the_run() {
    let replace = |path: &Path| {
        let copy = path.with_extension("copy");
        fs::copy(path, &copy).unwrap();
        fs::rename(copy, path).unwrap();
    };
    let damages: [&dyn Fn(&Path); 3] = [
        &|working| replace(&working.join("commits.log")),
        &|working| replace(&working.join("rows-00-0000000000000010.jsonl")),
        &|working| fs::remove_dir_all(working).unwrap(),
    ];
    for damage in damages {
        let folder = tempfile::tempdir().unwrap();
        let sink = sink_of(folder.path(), 1, 1 << 20);
        let (mut writer, _) = start(&sink, 1);
        write(&mut *writer, 10, &["a"]);
        damage(&working(folder.path()));
        let ended = try_write(&mut *writer, 11, &["b"]);
        let Err(WriteFailure::Final(error)) = ended else { panic!("{ended:?}") };
        assert!(error.to_string().contains("moved, removed or replaced"), "{error}");
        writer.finish().unwrap_err();
    }
}

/// Killed after the log says that a segment is being finished, and before the segment is moved.
#[test]
fn segment_that_was_not_moved_is_continued() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink_of(folder.path(), 1, 1 << 20);
    let (mut writer, _) = start(&sink, 1);
    write(&mut *writer, 10, &["a"]);
    writer.finish().unwrap();
    drop(writer);
    let finished = only_file(folder.path());
    fs::rename(&finished, working(folder.path()).join(finished.file_name().unwrap())).unwrap();
    for (generation, row) in [(2, "b"), (3, "c")] {
        let (mut writer, _) = start(&sink, generation);
        write(&mut *writer, generation * 10, &[row]);
    }
    assert_eq!(all_rows(folder.path()), "a\nb\nc\n");
    assert_eq!(rows(folder.path()).len(), 1);
}

/// Without its commit log, or with an older one, the rows of finished files would be written twice.
#[test]
fn finished_file_without_its_transaction_is_refused() {
    let refuse = |damage: &dyn Fn(&Path), says: &str| {
        let folder = tempfile::tempdir().unwrap();
        let sink = sink_of(folder.path(), 1, 1);
        let (mut writer, _) = start(&sink, 1);
        write(&mut *writer, 10, &["a"]);
        fs::copy(working(folder.path()).join("commits.log"), folder.path().join("older")).unwrap();
        write(&mut *writer, 20, &["b"]);
        damage(folder.path());
        let refused = sink.inspect(WITHIN).unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
        let claim = claim(&sink, 2);
        let refused = sink.fence(&claim, &[0]).err().unwrap().to_string();
        assert!(refused.contains(says), "{refused}");
    };
    let log = |path: &Path| working(path).join("commits.log");
    let older = "is older than rows-00-0000000000000020.jsonl";
    refuse(&|path| fs::remove_dir_all(path.join("archive/writing")).unwrap(), older);
    refuse(&|path| fs::write(log(path), "").unwrap(), older);
    refuse(&|path| fs::copy(path.join("older"), log(path)).map(|_| ()).unwrap(), older);
}

/// The first line of a log is durable before the folder of the log has its name.
#[test]
fn damaged_first_line_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink_of(folder.path(), 1, 1 << 20);
    let (mut writer, _) = start(&sink, 1);
    write(&mut *writer, 10, &["a"]);
    drop(writer);
    let (writer, _) = start(&sink, 2);
    drop(writer);
    let log = working(folder.path()).join("commits.log");
    let mut bytes = fs::read(&log).unwrap();
    bytes[5] ^= 1;
    fs::write(&log, bytes).unwrap();
    assert!(sink.inspect(WITHIN).unwrap_err().to_string().contains("line 1 is damaged"));
}

#[test]
fn removed_claims_do_not_make_older_working_folder_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink_of(folder.path(), 1, 1 << 20);
    for generation in 1..=3 {
        let (mut writer, before) = start(&sink, generation);
        assert_eq!(before.map_or(0, |before| before.epoch), (generation - 1) * 10);
        write(&mut *writer, generation * 10, &[&generation.to_string()]);
        drop(writer);
        fs::remove_dir_all(folder.path().join("archive/claims")).unwrap();
    }
    assert_eq!(all_rows(folder.path()), "1\n2\n3\n");
}

#[test]
fn names_that_no_start_gives_claim_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink_of(folder.path(), 1, 1 << 20);
    claim(&sink, 1);
    let claims = folder.path().join("archive/claims");
    for name in ["7", "+00008", "000009~", "99999999999999999999"] {
        fs::copy(claims.join("000001"), claims.join(name)).unwrap();
    }
    assert_eq!(claim(&sink, 2).at, 2);
    fs::copy(claims.join("000001"), claims.join(u64::MAX.to_string())).unwrap();
    let refused = sink.claim(&ClaimRequest { generation: Some("3-a"), after: None }).unwrap_err().to_string();
    assert!(refused.contains("18446744073709551615, which no start has made"), "{refused}");
}

#[test]
fn another_identity_and_foreign_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let sink = sink_of(folder.path(), 1, 4);
    claim(&sink, 1);
    let mut other = identity();
    other.insert("format".into(), "csv".into());
    let other = FolderSink::new(sink.plan().clone(), other, String::new());
    let refused = other.inspect(WITHIN).unwrap_err().to_string();
    assert!(refused.contains("were made with format json, now it is csv: set it back"), "{refused}");
    fs::write(folder.path().join("holiday.txt"), "").unwrap();
    let plan = FolderSinkPlan { path: folder.path().into(), ..sink.plan().clone() };
    let refused = FolderSink::new(plan, identity(), String::new()).inspect(WITHIN).unwrap_err().to_string();
    assert!(refused.contains("holds files that no folder sink has written"), "{refused}");
}
