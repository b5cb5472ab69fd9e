//! Which checkpoints are restored or quarantined, and how far the journal is trimmed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::candidates::{CheckpointCandidates, RestoreContext};
use super::candidates::{missing_in_sinks, retry_until_answered};
use super::repository::CheckpointRepository;
use super::verifier::{Verifier, covered_by_all, is_of_journal};
use super::written_parts::WrittenParts;
use crate::checkpoint::{
    CheckpointHeader, CheckpointLocation, CheckpointName, Checkpoints, FileEntry, Manifest, StateSegment,
    WorkerPart,
};
use crate::config::CheckpointPlan;
use crate::model::{CheckpointBarrier, Fingerprint, LogIdentity, LogPosition, Millis, PartitionName};
use crate::run::durable_sinks::DurableShard;
use crate::run::protocol::{LoadFailure, LoadFailureKind};
use crate::run::run_error::RunError;
use crate::sources::{Partition, Source, SourceError};

/// A log of two partitions with these ends.
struct Log([u64; 2]);

impl Source for Log {
    fn name(&self) -> &str {
        "journal"
    }

    fn partitions(&self) -> u32 {
        2
    }

    fn check_position(&self, partition: u32, at: LogPosition) -> Result<(), SourceError> {
        match at.position <= self.0[partition as usize] {
            true => Ok(()),
            false => Err(SourceError::Fatal("it ends before".into())),
        }
    }

    fn open_partition(&self, _: u32, _: u64, _: Thread) -> Result<Box<dyn Partition>, SourceError> {
        Err(SourceError::Fatal("not to be read".into()))
    }
}

fn cut(generation: &str, epoch: u64, positions: [u64; 2]) -> CheckpointHeader {
    let identity = BTreeMap::from([("formula".to_owned(), "nws".to_owned())]);
    let positions = BTreeMap::from([("journal".to_owned(), (0..).zip(positions).collect())]);
    CheckpointHeader { generation: generation.into(), epoch, identity, positions, logs: BTreeMap::new() }
}

fn manifest(generation: &str, epoch: u64, positions: [u64; 2]) -> Manifest {
    Manifest::new(cut(generation, epoch, positions), Vec::new(), None).unwrap()
}

fn kept_in(folder: &Path) -> CheckpointRepository {
    let place = CheckpointLocation::Folder(folder.into());
    let every = Millis::from_millis(60_000).unwrap();
    CheckpointRepository {
        checkpoints: Checkpoints::open(&place).unwrap(),
        plan: CheckpointPlan {
            location: place,
            is_configured: true,
            interval: every,
            keep_full: 3,
            verify_interval: every,
        },
        identity: cut("1-a", 1, [0, 0]).identity,
        log_ids: BTreeMap::new(),
        generation: "1-a".into(),
    }
}

/// A checkpoint with an intact manifest and a file of another content.
fn damaged(kept: &CheckpointRepository, folder: &Path, epoch: u64) -> Manifest {
    let path = format!("data/{}-a/cities-00.parquet", CheckpointName { generation: 1, epoch });
    fs::create_dir_all(folder.join(&path).parent().unwrap()).unwrap();
    fs::write(folder.join(&path), "PAR1").unwrap();
    let cities = FileEntry { path, bytes: 4, rows: 1, xxh3: "0123456789abcdef".into() };
    let segments = vec![StateSegment { shard: 0, cities, readings: None, format: 1 }];
    let part = WorkerPart { barrier: CheckpointBarrier { checkpoint: epoch, full: true }, epoch, segments };
    let manifest = Manifest::new(cut("1-a", epoch, [5, 5]), vec![part], None).unwrap();
    kept.checkpoints.publish(&manifest).unwrap();
    manifest
}

#[test]
fn journal_trim_stops_at_oldest_checkpoint_of_journal() {
    let newest = manifest("9-c", 90, [50, 60]);
    let of = |others: Vec<Manifest>| {
        let kept: Vec<_> = [newest.clone()].into_iter().chain(others).map(Arc::new).collect();
        covered_by_all(&kept, &Log([55, 65]))
    };
    assert_eq!(covered_by_all(&[], &Log([55, 65])), []);
    // Each is the oldest in one partition.
    assert_eq!(of(vec![manifest("9-c", 70, [20, 55]), manifest("9-c", 80, [45, 30])]), [(0, 20), (1, 30)]);
    // A checkpoint without positions of the journal includes nothing of it.
    let mut without = manifest("8-b", 70, [10, 10]);
    without.positions.clear();
    assert_eq!(of(vec![without]), [(0, 0), (1, 0)]);
}

fn written(positions: &[(&str, &[(u32, u64)])]) -> DurableShard {
    let of = |(source, of): &(&str, &[(u32, u64)])| (Arc::from(*source), of.iter().copied().collect());
    DurableShard {
        sink: "the sink".into(),
        positions: positions.iter().map(of).collect(),
        dead_letters_of: None,
    }
}

#[test]
fn sinks_behind_checkpoint_are_detected() {
    let start = |partition: u32, at: u64| (PartitionName { source: "journal".into(), partition }, at);
    let starts = [start(0, 0), start(1, 40)];
    let lacks = |written: &[DurableShard]| missing_in_sinks(&manifest("1-a", 1, [50, 40]), written, &starts);
    assert_eq!(lacks(&[]), None);
    let whole = || written(&[("journal", &[(0, 50), (1, 41)])]);
    assert_eq!(lacks(&[whole(), whole()]), None);
    // A partition that is not recorded was read up to its start.
    assert_eq!(lacks(&[whole(), written(&[("journal", &[(0, 50)])])]), None);
    for behind in
        [written(&[]), written(&[("journal", &[(0, 49), (1, 41)])]), written(&[("other", &[(0, 90)])])]
    {
        let line = lacks(&[whole(), behind]).unwrap();
        assert!(line.contains("journal/0/") && line.contains("up to 50"), "{line}");
    }
}

#[test]
fn log_check_retries_until_log_answers() {
    let asked = Cell::new(0);
    let check = |answers: u32| {
        let check = || {
            asked.set(asked.get() + 1);
            match asked.get() >= answers {
                true => Err::<(), _>(SourceError::Fatal("it ends before".into())),
                false => Err(SourceError::Transient("no broker".into())),
            }
        };
        retry_until_answered(check, Duration::from_millis(200), Duration::from_millis(1))
    };
    assert_eq!(check(4).unwrap(), Err("it ends before".into()));
    let line = check(u32::MAX).unwrap_err().to_string();
    assert!(line.contains("no broker"), "{line}");
    assert_eq!(retry_until_answered(|| Ok(()), Duration::ZERO, Duration::ZERO).unwrap(), Ok(()));
}

fn failed(kind: LoadFailureKind) -> Option<LoadFailure> {
    Some(LoadFailure { why: "as the test wants".into(), kind })
}

#[test]
fn only_locally_damaged_files_are_quarantined() {
    use LoadFailureKind::{Damaged, Missing, Store, Unfit};
    let folder = tempfile::tempdir().unwrap();
    let kept = kept_in(folder.path());
    let whole = manifest("1-a", 1, [5, 5]);
    kept.checkpoints.publish(&whole).unwrap();
    let broken = damaged(&kept, folder.path(), 2);
    let is_left =
        |manifest: &Manifest| kept.checkpoints.find_usable(&kept.identity).unwrap().usable.contains(manifest);

    assert!(kept.verdict(&whole, vec![None, None], false).unwrap());
    // A checkpoint that process 0 can read is neither damaged nor missing.
    for kind in [Damaged, Missing] {
        let line = kept.verdict(&whole, vec![None, failed(kind)], false).unwrap_err().to_string();
        assert!(line.contains("process 1") && line.contains("the two read different stores"), "{line}");
    }
    assert!(!kept.verdict(&whole, vec![failed(Damaged), None], false).unwrap(), "it was read better since");
    assert!(!kept.verdict(&whole, vec![None, failed(Unfit)], false).unwrap());
    assert!(kept.verdict(&whole, vec![None, failed(Store)], false).is_err());
    assert!(is_left(&whole));
    // While another generation runs, the checkpoint belongs to that one.
    assert!(!kept.verdict(&broken, vec![None, failed(Damaged)], true).unwrap());
    assert!(is_left(&broken));
    assert!(!kept.verdict(&broken, vec![None, failed(Damaged)], false).unwrap());
    // The file was quarantined, and the manifest was not: with the right file the checkpoint is
    // usable again.
    assert!(!is_left(&broken) && kept.checkpoints.list_names().unwrap().contains(&broken.name()));
    let file = folder.path().join(&broken.files().next().unwrap().path);
    assert!(!file.exists() && file.with_extension("parquet.damaged").exists());
    // It was removed meanwhile.
    assert!(!kept.verdict(&broken, vec![None, failed(Missing)], false).unwrap());
}

#[test]
fn checkpoints_published_during_restore_are_candidates() {
    let folder = tempfile::tempdir().unwrap();
    let kept = kept_in(folder.path());
    let publish = |epoch: u64| kept.checkpoints.publish(&manifest("1-a", epoch, [5, 5])).unwrap();
    publish(1);
    publish(2);
    let come = RefCell::new(vec![4, 3]);
    let check = |_: &str, _: u32, _: LogPosition| Ok(());
    // Another generation publishes a checkpoint, and removes all others, at each listing.
    let written = || {
        if let Some(epoch) = come.borrow_mut().pop() {
            publish(epoch);
            kept.checkpoints.prune_checkpoints(1, &|_| true).unwrap();
        }
        Ok(vec![])
    };
    let beginning = RestoreContext {
        check: &check,
        partitions: &[],
        written: &written,
        is_following: true,
        adopt_logs: false,
    };
    let mut candidates = CheckpointCandidates::new(&kept, &beginning);
    let mut epochs = Vec::new();
    while let Some(next) = candidates.next().unwrap() {
        epochs.push(next.epoch);
    }
    assert_eq!(epochs, [2, 3, 4]);
}

type WrittenPositions<'a> = &'a dyn Fn() -> Result<Vec<DurableShard>, RunError>;

/// The newest checkpoint that fits logs which begin at a position.
fn next_candidate(
    kept: &CheckpointRepository,
    partitions: &[(PartitionName, u64)],
    begin: u64,
    written: WrittenPositions<'_>,
) -> Result<Option<Manifest>, RunError> {
    let check = |_: &str, _: u32, at: LogPosition| match at.position >= begin {
        true => Ok(()),
        false => Err(SourceError::Fatal(format!("it begins at {begin}"))),
    };
    let check = &check;
    let beginning = RestoreContext { check, partitions, written, is_following: false, adopt_logs: false };
    CheckpointCandidates::new(kept, &beginning).next()
}

#[test]
fn records_missing_in_sinks_must_be_in_logs() {
    let folder = tempfile::tempdir().unwrap();
    let kept = kept_in(folder.path());
    kept.checkpoints.publish(&manifest("1-a", 1, [50, 40])).unwrap();
    let partitions: Vec<_> =
        (0..2).map(|partition| (PartitionName { source: "journal".into(), partition }, 0)).collect();
    let next = |begin: u64, written: WrittenPositions<'_>| next_candidate(&kept, &partitions, begin, written);
    let nothing = || Ok(vec![written(&[])]);
    let all = || Ok(vec![written(&[("journal", &[(0, 50), (1, 40)])])]);
    assert!(next(0, &nothing).unwrap().is_none(), "everything is written anew");
    let line = next(10, &nothing).unwrap_err().to_string();
    assert!(line.contains("results a sink lacks") && line.contains("it begins at 10"), "{line}");
    assert!(next(10, &all).unwrap().is_some());
    assert!(next(45, &all).unwrap().is_none(), "the log does not go on there");
}

#[test]
fn start_without_checkpoint_names_damage_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let kept = kept_in(folder.path());
    let broken = damaged(&kept, folder.path(), 2);
    let file = broken.files().next().unwrap().path.clone();
    fs::remove_file(folder.path().join(&file)).unwrap();
    let partitions = [(PartitionName { source: "journal".into(), partition: 0 }, 0)];
    let written = || Ok(vec![]);
    let next = |begin: u64| next_candidate(&kept, &partitions, begin, &written);
    assert!(next(0).unwrap().is_none(), "the log reaches back");
    let line = next(1).unwrap_err().to_string();
    for says in
        [&*file, "is missing", "it begins at 1", "restore the missing or damaged files", "swelter restore"]
    {
        assert!(line.contains(says), "{says}: {line}");
    }
}

/// A full checkpoint with one intact file.
fn base(kept: &CheckpointRepository, folder: &Path, epoch: u64) -> (Manifest, PathBuf) {
    let path = format!("data/{}-a/cities-00.parquet", CheckpointName { generation: 1, epoch });
    fs::create_dir_all(folder.join(&path).parent().unwrap()).unwrap();
    fs::write(folder.join(&path), "PAR1").unwrap();
    let xxh3 = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(b"PAR1"));
    let cities = FileEntry { path: path.clone(), bytes: 4, rows: 1, xxh3 };
    let segments = vec![StateSegment { shard: 0, cities, readings: None, format: 1 }];
    let part = WorkerPart { barrier: CheckpointBarrier { checkpoint: epoch, full: true }, epoch, segments };
    let manifest = Manifest::new(cut("1-a", epoch, [5, 5]), vec![part], None).unwrap();
    kept.checkpoints.publish(&manifest).unwrap();
    (manifest, folder.join(&path))
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn verifier_quarantines_damage_and_prunes_only_past_complete_bases() {
    let folder = tempfile::tempdir().unwrap();
    let mut kept = kept_in(folder.path());
    (kept.plan.keep_full, kept.plan.verify_interval) = (2, Millis::from_millis(50).unwrap());
    let epochs = || kept.checkpoints.list_names().unwrap().iter().map(|name| name.epoch).collect::<Vec<_>>();
    let (first, _) = base(&kept, folder.path(), 1);
    let (_, second) = base(&kept, folder.path(), 2);
    let verifier = Verifier::start(&kept, None).unwrap();
    base(&kept, folder.path(), 3);
    until("that the first one is given up", || epochs() == [3, 2]);
    assert!(!verifier.take_damage() && kept.checkpoints.read_manifest(first.name()).is_err());

    // The same size, another content.
    fs::write(&second, "PAR2").unwrap();
    until("that damage is found", || verifier.take_damage());
    let aside = second.with_extension("parquet.damaged");
    until("that it is set aside", || aside.exists() && !second.exists());
    // Several rounds of verification, none of which may report it again.
    std::thread::sleep(Duration::from_millis(200));
    assert!(epochs() == [3, 2] && !verifier.take_damage(), "it is said once");
    // One intact full checkpoint remains, so none is removed, whatever is published.
    fs::write(&second, "PAR1").unwrap();
    base(&kept, folder.path(), 4);
    verifier.enqueue(CheckpointName { generation: 1, epoch: 4 });
    until("that older ones are given up", || epochs() == [4, 3]);
}

#[test]
fn checkpoint_of_a_log_with_another_id_is_not_restored_unless_adopted() {
    let folder = tempfile::tempdir().unwrap();
    let mut kept = kept_in(folder.path());
    let id = |id: &str| BTreeMap::from([("journal".to_owned(), id.to_owned())]);
    kept.log_ids = id("new");
    let mut read = manifest("1-a", 1, [5, 5]);
    let before = Fingerprint { position: 4, digest: 77, leader_epoch: None };
    read.logs =
        [("journal".into(), LogIdentity { id: Some("old".into()), before: [(1, before)].into() })].into();
    kept.checkpoints.publish(&read).unwrap();
    let checked = RefCell::new(Vec::new());
    let check = |_: &str, _: u32, at: LogPosition| {
        checked.borrow_mut().push(at.before);
        Ok(())
    };
    let written = || Ok(vec![]);
    let next = |kept: &CheckpointRepository, adopt_logs| {
        let (check, written) = (&check, &written);
        let beginning = RestoreContext { check, partitions: &[], written, is_following: false, adopt_logs };
        CheckpointCandidates::new(kept, &beginning).next().map(|next| next.is_some())
    };
    let refused = next(&kept, false).unwrap_err().to_string();
    assert!(refused.contains("--adopt-logs") && refused.contains("a location of its own"), "{refused}");
    assert_eq!(checked.take(), [None, Some(before)], "what lies before each position is compared");
    assert!(next(&kept, true).unwrap());
    kept.log_ids = id("old");
    assert!(next(&kept, false).unwrap());
    // A log without an id is identified by its records only.
    kept.log_ids.clear();
    assert!(next(&kept, false).unwrap());
}

#[test]
fn checkpoint_of_other_records_is_refused_unless_an_older_one() {
    let folder = tempfile::tempdir().unwrap();
    let kept = kept_in(folder.path());
    let publish =
        |epoch: u64, positions| kept.checkpoints.publish(&manifest("1-a", epoch, positions)).unwrap();
    // The checkpoint belongs to a log that had other records at 7.
    let check = |_: &str, _: u32, at: LogPosition| match at.position {
        7 => Err(SourceError::RecordDiffers("it has another record".into())),
        8 => Err(SourceError::EndsBefore("it ends before".into())),
        _ => Ok(()),
    };
    let written = || Ok(vec![]);
    let beginning = |adopt_logs| RestoreContext {
        check: &check,
        partitions: &[],
        written: &written,
        is_following: false,
        adopt_logs,
    };
    publish(1, [7, 7]);
    for adopt_logs in [false, true] {
        let refused =
            CheckpointCandidates::new(&kept, &beginning(adopt_logs)).next().unwrap_err().to_string();
        assert!(refused.contains("it has another record") && !refused.contains("--adopt-logs"), "{refused}");
    }
    publish(2, [8, 8]);
    let refused = CheckpointCandidates::new(&kept, &beginning(false)).next().unwrap_err().to_string();
    assert!(refused.contains("it ends before") && refused.contains("Restore the newer log"), "{refused}");
    publish(3, [5, 5]);
    let beginning = beginning(false);
    let mut candidates = CheckpointCandidates::new(&kept, &beginning);
    assert_eq!(candidates.next().unwrap().map(|manifest| manifest.epoch), Some(3));
    assert!(candidates.next().unwrap().is_none(), "those before were made in the same place, earlier");
}

/// The data directory is an old copy, or two runs have continued from the same one: the other run's
/// checkpoints are at the same location.
#[test]
fn checkpoint_beyond_journal_end_refuses_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut kept = kept_in(folder.path());
    kept.log_ids = BTreeMap::from([("journal".to_owned(), "own".to_owned())]);
    let publish = |epoch: u64, at: u64, id: &str| {
        let mut made = manifest("1-a", epoch, [at, 0]);
        let before = [(0, Fingerprint { position: at - 1, digest: at, leader_epoch: None })].into();
        made.logs = [("journal".into(), LogIdentity { id: Some(id.into()), before })].into();
        kept.checkpoints.publish(&made).unwrap();
    };
    let check = |_: &str, _: u32, at: LogPosition| match at.position <= 50 {
        true => Ok(()),
        false => Err(SourceError::EndsBefore("it ends at 50".into())),
    };
    let written = || Ok(vec![]);
    let next = |adopt_logs| {
        let (check, written) = (&check, &written);
        let beginning = RestoreContext { check, partitions: &[], written, is_following: false, adopt_logs };
        CheckpointCandidates::new(&kept, &beginning).next().map(|next| next.map(|next| next.epoch))
    };
    publish(1, 40, "own");
    publish(2, 70, "own");
    let line = next(false).unwrap_err().to_string();
    for says in ["it ends at 50", "--adopt-logs", "checkpoints.url", "an older copy"] {
        assert!(line.contains(says), "{says}: {line}");
    }
    assert_eq!(next(true).unwrap(), Some(1), "it goes on from what it has");
    // This run's checkpoint is newer, so the start is not refused any more.
    publish(3, 45, "own");
    assert_eq!(next(false).unwrap(), Some(3));
    // A checkpoint of another journal is used for a start only if adopted, and never for trimming.
    publish(4, 45, "other");
    let line = next(false).unwrap_err().to_string();
    assert!(line.contains("was made of another log") && line.contains("--adopt-logs"), "{line}");
    assert_eq!(next(true).unwrap(), Some(4));
    let of = |epoch: u64| {
        let name = CheckpointName { generation: 1, epoch };
        is_of_journal(
            &kept.checkpoints.read_manifest(name).unwrap(),
            kept.log_ids.get("journal"),
            &Log([50, 50]),
        )
    };
    assert_eq!([1, 2, 3, 4].map(of), [true, false, true, false]);
}

#[test]
fn parts_of_cancelled_checkpoint_are_deleted() {
    let parts = WrittenParts::default();
    let mark = |checkpoint: u64| CheckpointBarrier { checkpoint, full: true };
    let part =
        |checkpoint: u64| WorkerPart { barrier: mark(checkpoint), epoch: checkpoint, segments: Vec::new() };
    assert_eq!(parts.add(mark(1), Ok(part(1))), None);
    assert_eq!(parts.add(mark(1), Err("full".into())), None);
    assert_eq!(parts.cancel(1), [part(1)]);
    assert_eq!(parts.add(mark(1), Ok(part(1))), Some(part(1)));
    assert_eq!(parts.add(mark(2), Ok(part(2))), None);
    assert_eq!(parts.take_complete(2, 2), None);
    assert_eq!(parts.add(mark(2), Ok(part(2))), None);
    assert_eq!(parts.take_complete(2, 2).map(|parts| parts.len()), Some(2));
}
