//! Damaged files are refused or do not matter: records read are never wrong and never missing.

use std::fs;

use super::*;

/// A file: its path, its bytes without trailing zeros, its length.
struct Kept(PathBuf, Vec<u8>, u64);

fn keep(folder: &Path, kept: &mut Vec<Kept>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            keep(&entry, kept);
        } else {
            let mut bytes = fs::read(&entry).unwrap();
            let length = bytes.len() as u64;
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            kept.push(Kept(entry, bytes, length));
        }
    }
}

fn restore(dir: &Path, kept: &[Kept]) {
    fs::remove_dir_all(dir).unwrap();
    for Kept(path, bytes, length) in kept {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        fs::File::options().write(true).open(path).unwrap().set_len(*length).unwrap();
    }
}

/// `None` if the damage was detected.
fn read(dir: &Path) -> Option<Vec<Vec<Seen>>> {
    match Journal::open(dir, plan(2)) {
        Ok(journal) => match read_all(&journal) {
            Ok(seen) => Some(seen),
            Err(SourceError::Fatal(line)) => {
                assert!(line.contains("restore it from a backup"), "{line}");
                None
            }
            Err(error) => panic!("{error}"),
        },
        Err(
            error @ (JournalError::Damaged { .. }
            | JournalError::Id { .. }
            | JournalError::Io { .. }
            | JournalError::Format { .. }),
        ) => {
            assert!(error.to_string().contains("journal"), "{error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Creates a journal with records in tables and in the write-ahead log; some in compressed blocks.
fn journal(dir: &Path) -> Vec<Vec<Seen>> {
    let journal = Journal::open(dir, plan(2)).unwrap();
    for round in 0..8 {
        for number in 0..5 {
            acknowledged(&*journal.appender(), vec![reading("a", number), reading("b", round)]);
        }
        acknowledged(&*journal.appender(), (0..100).map(|number| reading("c", number)).collect());
        if round == 3 {
            journal.shared.store.flush();
        }
    }
    read_all(&journal).unwrap()
}

#[test]
fn flipped_byte_is_refused_or_harmless() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("journal");
    let expected = journal(&dir);
    let mut kept = Vec::new();
    keep(&dir, &mut kept);
    let (mut noticed, mut harmless) = (0, 0);
    for Kept(path, bytes, _) in &kept {
        let step = (bytes.len() / 40).max(1);
        for at in (0..bytes.len()).step_by(step) {
            restore(&dir, &kept);
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            let length = fs::metadata(path).unwrap().len();
            fs::write(path, &bytes).unwrap();
            fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
            match read(&dir) {
                Some(seen) => {
                    assert!(seen == expected, "byte {at} of {} was not noticed", path.display());
                    harmless += 1;
                }
                None => noticed += 1,
            }
        }
    }
    assert!(noticed > 100, "{noticed} noticed, {harmless} harmless");
}

/// The store would allocate as many entries as a table of contents declares, before it verifies a
/// checksum.
#[test]
fn flipped_contents_length_is_refused_before_allocation() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("journal");
    journal(&dir);
    let mut kept = Vec::new();
    keep(&dir, &mut kept);
    let mut tables = 0;
    for Kept(path, bytes, length) in kept.iter().filter(|kept| kept.0.to_string_lossy().contains("/tables/"))
    {
        let Some(at) = bytes.windows(4).rposition(|window| window == b"TOC!") else { continue };
        tables += 1;
        for bit in [16, 24, 30, 31] {
            restore(&dir, &kept);
            let mut bytes = bytes.clone();
            bytes[at + 4 + bit / 8] ^= 1 << (bit % 8);
            fs::write(path, &bytes).unwrap();
            fs::File::options().write(true).open(path).unwrap().set_len(*length).unwrap();
            let error = Journal::open(&dir, plan(2)).err().expect("it is refused");
            let said = "declares more contents than it has";
            assert!(
                matches!(&error, JournalError::Damaged { what, .. } if what.contains(said)),
                "{}: {error}",
                path.display()
            );
        }
    }
    assert!(tables > 0);
}

#[test]
fn missing_file_is_refused_or_harmless() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("journal");
    let expected = journal(&dir);
    let mut kept = Vec::new();
    keep(&dir, &mut kept);
    for Kept(path, ..) in &kept {
        restore(&dir, &kept);
        fs::remove_file(path).unwrap();
        let seen = read(&dir);
        assert!(seen.is_none_or(|seen| seen == expected), "{} was not missed", path.display());
    }
}

#[test]
fn torn_end_is_truncated() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("journal");
    let expected = journal(&dir);
    let mut kept = Vec::new();
    keep(&dir, &mut kept);
    let log =
        kept.iter().find(|kept| kept.0.extension().is_some_and(|extension| extension == "jnl")).unwrap();
    for torn in [&b"\x01"[..], &log.1[..30], &log.1[..log.1.len() / 2], &[0xFF; 100]] {
        restore(&dir, &kept);
        let mut bytes = log.1.clone();
        bytes.extend_from_slice(torn);
        fs::write(&log.0, bytes).unwrap();
        let seen = read(&dir);
        assert!(seen.is_some_and(|seen| seen == expected), "{} bytes", torn.len());
    }
}
