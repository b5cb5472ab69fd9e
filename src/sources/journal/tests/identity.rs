//! A journal is identified by its id and by the record before a position.

use super::*;
use crate::model::{Fingerprint, LogPosition};

/// The fingerprints before each position at which a reader stops.
fn fingerprints(journal: &Journal, partition: u32, step: usize) -> Vec<(u64, Fingerprint)> {
    let from = journal.log_start(partition);
    let mut reader = Source::open_partition(journal, partition, from, thread::current()).unwrap();
    let mut position = from;
    let mut found = Vec::new();
    assert_eq!(reader.fingerprint(), None, "nothing was given yet");
    loop {
        let polled = reader.poll(step, u64::MAX, &mut Seer::default()).unwrap();
        position += polled.records as u64;
        if polled.records > 0 {
            found.push((position, reader.fingerprint().unwrap()));
        }
        if polled.next != NextPoll::Now {
            return found;
        }
    }
}

fn fill(journal: &Journal, commits: i64, offset: i64) {
    let retried = RetryInfo { origin: "journal/0/1".into(), attempt: 1, first_seen: None };
    for number in 0..commits {
        let mut records: Vec<NewRecord> =
            (0..3).map(|at| reading(["a", "b"][at % 2], offset + 3 * number + at as i64)).collect();
        records.push(NewRecord { retry: Some(Box::new(retried.clone())), ..reading("a", number) });
        acknowledged(&*journal.appender(), records);
    }
}

fn check(journal: &Journal, partition: u32, position: u64, before: Fingerprint) -> Result<(), SourceError> {
    journal.check_position(partition, LogPosition { position, before: Some(before) })
}

#[test]
fn check_compares_record_before_position() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let journal = Journal::open(dir.path(), plan(2)).unwrap();
    fill(&journal, 20, 0);
    let found: Vec<_> =
        (0..2).flat_map(|p| fingerprints(&journal, p, 1).into_iter().map(move |at| (p, at))).collect();
    assert!(found.iter().all(|(_, (position, before))| before.position + 1 == *position));
    // They do not depend on the number of records in a poll.
    for step in [2, 3, 7, 1000] {
        for partition in 0..2 {
            let again = fingerprints(&journal, partition, step);
            assert!(again.iter().all(|at| found.contains(&(partition, *at))), "step {step}");
        }
    }
    drop(journal);
    let journal = Journal::open(dir.path(), plan(2)).unwrap();
    for (partition, (position, before)) in &found {
        assert_eq!(check(&journal, *partition, *position, *before), Ok(()));
    }
    // A journal of the same length with other readings.
    let another = Journal::open(other.path(), plan(2)).unwrap();
    fill(&another, 20, 1);
    for (partition, (position, before)) in &found {
        let refused = check(&another, *partition, *position, *before).unwrap_err();
        assert!(
            matches!(&refused, SourceError::RecordDiffers(line) if line.contains("another journal")),
            "{refused}"
        );
    }
    let end = journal.log_end(0);
    let before = Fingerprint { position: end, digest: 0, leader_epoch: None };
    assert!(matches!(check(&journal, 0, end + 1, before), Err(SourceError::EndsBefore(_))));
}

#[test]
fn trim_keeps_record_before_position() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), plan(1)).unwrap();
    fill(&journal, 20, 0);
    let found = fingerprints(&journal, 0, 1);
    for (position, before) in &found {
        journal.trim_before(&[(0, *position)]).unwrap();
        assert_eq!(check(&journal, 0, *position, *before), Ok(()));
        let other = Fingerprint { digest: !before.digest, ..*before };
        assert!(
            matches!(check(&journal, 0, *position, other), Err(SourceError::RecordDiffers(_))),
            "{position}"
        );
    }
    assert!(journal.log_start(0) + 8 > journal.log_end(0), "it was trimmed");
    // The record was removed by an earlier version, which did not spare the last one.
    let begin = journal.log_start(0);
    let gone = Fingerprint { position: begin - 1, digest: 0, leader_epoch: None };
    assert_eq!(check(&journal, 0, begin, gone), Ok(()), "the id decides");
}

fn id_of(journal: &Journal) -> String {
    journal.log_id().unwrap().unwrap()
}

/// Leaves the journal as a version without ids would.
fn without_id(dir: &Path) {
    fs::remove_file(dir.join(id::FILE_NAME)).unwrap();
    let mut marks = AckedEnds::open_file(dir).unwrap();
    marks.id = None;
    marks.write_ends().unwrap();
    marks.write_ends().unwrap();
}

#[test]
fn id_is_persistent() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let journal = Journal::open(dir.path(), plan(1)).unwrap();
    let id = id_of(&journal);
    assert_eq!(fs::read_to_string(dir.path().join("id")).unwrap(), format!("{{\"id\":\"{id}\"}}\n"));
    acknowledged(&*journal.appender(), vec![reading("a", 0)]);
    drop(journal);
    assert_eq!(id_of(&Journal::open(dir.path(), plan(1)).unwrap()), id);
    assert_ne!(id_of(&Journal::open(other.path(), plan(1)).unwrap()), id);
}

#[test]
fn journal_with_missing_id_is_refused_with_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let id = id_of(&Journal::open(dir.path(), plan(1)).unwrap());
    let path = dir.path().join("id");
    let refused = || Journal::open(dir.path(), plan(1)).err().unwrap().to_string();
    let other = JournalId::random(None);
    let parent = ParentJournal { id: other.id, ends: vec![0] };
    let of_another = serde_json::to_string(&JournalId::random(Some(parent))).unwrap();
    let own = format!("{{\"id\":\"{id}\"}}");
    fs::remove_file(&path).unwrap();
    let line = refused();
    assert!(line.contains("is missing") && line.contains(&own), "{line}");
    for (content, says) in [
        ("", "cannot be read"),
        ("{\"id\":\"12\"}", "cannot be read"),
        ("{\"id\":\"+2345678901234567890123456789012\"}", "cannot be read"),
        (&*serde_json::to_string(&other).unwrap(), "belongs to another journal"),
        (&*of_another, "belongs to another journal"),
    ] {
        fs::write(&path, content).unwrap();
        let line = refused();
        assert!(line.contains(says) && line.contains(&own), "{content}: {line}");
    }
    // The remedy in the error works.
    fs::write(&path, own).unwrap();
    assert_eq!(id_of(&Journal::open(dir.path(), plan(1)).unwrap()), id);
}

#[test]
fn restored_journal_gets_own_id() {
    let dir = tempfile::tempdir().unwrap();
    let id = Journal::open(dir.path(), plan(1)).unwrap().shared.id.id;
    let copy = JournalId::random(Some(ParentJournal { id, ends: vec![0] }));
    copy.write_file(dir.path()).unwrap();
    let journal = Journal::open(dir.path(), plan(1)).unwrap();
    assert_eq!(id_of(&journal), copy.to_hex());
    acknowledged(&*journal.appender(), vec![reading("a", 0)]);
    drop(journal);
    // After it has an id, it is not taken for the journal that it was copied from.
    JournalId { id, parent: None }.write_file(dir.path()).unwrap();
    assert!(matches!(Journal::open(dir.path(), plan(1)), Err(JournalError::Id { .. })));
}

#[test]
fn journal_of_earlier_version_gets_id_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), plan(2)).unwrap();
    fill(&journal, 3, 0);
    let read = read_all(&journal).unwrap();
    drop(journal);
    without_id(dir.path());
    let ids = [0; 2].map(|_| id_of(&Journal::open(dir.path(), plan(2)).unwrap()));
    assert!(ids[0] != ids[1] && !dir.path().join("id").exists(), "nothing was compared yet");
    let journal = Journal::open(dir.path(), plan(2)).unwrap();
    journal.save_id().unwrap();
    let id = id_of(&journal);
    assert_eq!(read_all(&journal).unwrap(), read);
    drop(journal);
    let journal = Journal::open(dir.path(), plan(2)).unwrap();
    journal.save_id().unwrap();
    assert_eq!(id_of(&journal), id);
    fill(&journal, 1, 0);
    drop(journal);
    // The loss of the file is now detected.
    fs::remove_file(dir.path().join("id")).unwrap();
    assert!(matches!(Journal::open(dir.path(), plan(2)), Err(JournalError::Id { .. })));
}
