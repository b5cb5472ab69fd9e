//! A copy has the same records as its journal, and another id.

use super::*;

/// Fills a journal, then trims a part of it.
fn trimmed(dir: &Path) -> Journal {
    let journal = Journal::open(dir, plan(3)).unwrap();
    for number in 0..200 {
        let mut record = reading(["a", "b", "c", "d"][number % 4], number as i64);
        if number % 50 == 7 {
            let origin = "journal/0/1".into();
            record.retry = Some(Box::new(RetryInfo { origin, attempt: 1, first_seen: None }));
        }
        acknowledged(&*journal.appender(), vec![record]);
    }
    journal.trim_before(&[(0, 20), (1, 0), (2, journal.log_end(2))]).unwrap();
    journal
}

fn blocks(journal: &Journal) -> Vec<StoredBlock> {
    let (begins, ends) = (journal.log_starts(), journal.log_ends());
    let of = |partition: usize| {
        journal.stored_blocks(partition as u32, begins[partition], ends[partition]).unwrap()
    };
    (0..begins.len()).flat_map(of).collect()
}

fn left(journal: &Journal) -> Vec<Vec<Seen>> {
    let of = |partition| read_from(journal, partition, journal.log_start(partition), 1000).unwrap();
    (0..journal.partitions()).map(of).collect()
}

#[test]
fn journal_copy_has_same_records_and_own_id() {
    let folder = tempfile::tempdir().unwrap();
    let journal = trimmed(&folder.path().join("own"));
    let dir = folder.path().join("copy");
    let mut copy = JournalCopy::create(&dir, &journal.log_starts()).unwrap();
    blocks(&journal).iter().for_each(|(key, stored)| copy.push_block(key, stored).unwrap());
    let parent = ParentJournal { id: JournalId::parse(&journal.id()).unwrap(), ends: journal.log_ends() };
    let id = copy.finish(&journal.log_ends(), Some(parent)).unwrap();
    assert!(std::fs::read_to_string(dir.join("id")).unwrap().contains(&journal.id()));
    let copy = Journal::open(&dir, plan(3)).unwrap();
    assert_eq!(copy.id(), id);
    assert_ne!(copy.id(), journal.id());
    assert_eq!((copy.log_starts(), copy.log_ends()), (journal.log_starts(), journal.log_ends()));
    assert!(copy.log_start(0) > 0);
    assert_eq!(left(&copy), left(&journal));
    // Both continue independently.
    acknowledged(&*copy.appender(), vec![reading("a", 900)]);
    assert_eq!(copy.log_ends().iter().sum::<u64>(), journal.log_ends().iter().sum::<u64>() + 1);
}

#[test]
fn copy_refuses_damaged_missing_or_swapped_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let journal = trimmed(&folder.path().join("own"));
    let (begins, ends, blocks) = (journal.log_starts(), journal.log_ends(), blocks(&journal));
    let check = |blocks: &[StoredBlock]| {
        let mut sequence = BlockSequence::new(&begins).unwrap();
        blocks.iter().try_for_each(|(key, stored)| sequence.push_block(key, stored).map(drop))?;
        sequence.check_ends(&ends)
    };
    assert_eq!(check(&blocks), Ok(()));
    for at in 0..blocks.len() {
        let mut wrong = blocks.clone();
        wrong.remove(at);
        assert!(check(&wrong).is_err(), "without block {at}");
        let mut wrong = blocks.clone();
        let bytes = &mut wrong[at].1;
        let byte = at * 31 % bytes.len();
        bytes[byte] ^= 1 << (at % 8);
        assert!(check(&wrong).is_err(), "block {at} changed");
        let mut wrong = blocks.clone();
        wrong.swap(at, (at + 1) % blocks.len());
        let partition = |at: usize| blocks[at % blocks.len()].0[..4].to_vec();
        assert!(check(&wrong).is_err() || partition(at) != partition(at + 1), "block {at} exchanged");
    }
}

#[test]
fn trim_is_skipped_while_held() {
    let folder = tempfile::tempdir().unwrap();
    let journal = trimmed(&folder.path().join("own"));
    let held = journal.block_trimming();
    assert_eq!(journal.trim_unless_blocked(|| 1), None);
    drop(held);
    assert_eq!(journal.trim_unless_blocked(|| 1), Some(1));
}
