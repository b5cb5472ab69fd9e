//! Tests of dead letters: each is written once, wherever a file is cut off, and within the limit.

use std::io::Write as _;

use super::file_header::LastPosition;
use super::*;
use crate::model::rules_version::{RULES_VERSION, RULES_VERSION_KEY};
use crate::model::{Reason, RetryInfo};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

fn write(letters: &mut DeadLetterFile, partition: u32, position: u64) -> bool {
    let name = PartitionName { source: "journal".into(), partition };
    let refusal = Refusal::new(Reason::NotDecodable, "no JSON");
    let raw = if position.is_multiple_of(2) { &b"{\n\"x\""[..] } else { b"\xFF" };
    letters
        .write_dead_letter(&name, position, EventTime::from_millis(7), &refusal, &RawRecord::from_value(raw))
        .unwrap()
        > 0
}

#[test]
fn dead_letters_contain_record_origin_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dead-letters.jsonl");
    let mut letters = DeadLetterFile::open(&path, "rules").unwrap();
    assert!(write(&mut letters, 3, 10) && write(&mut letters, 3, 11));
    letters.flush_for_sync().unwrap();
    let expected = concat!(
        r#"{"source":"journal","partition":3,"position":10,"arrived_at":"1970-01-01T00:00:00.007Z","#,
        r#""reason":"not_decodable","detail":"no JSON","raw":"{\n\"x\""}"#,
        "\n",
        r#"{"source":"journal","partition":3,"position":11,"arrived_at":"1970-01-01T00:00:00.007Z","#,
        r#""reason":"not_decodable","detail":"no JSON","raw_base64":"/w=="}"#,
        "\n"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
}

#[test]
fn retried_dead_letters_have_own_file_with_origin() {
    let dir = tempfile::tempdir().unwrap();
    let name = PartitionName { source: "journal".into(), partition: 3 };
    let refusal = Refusal::new(Reason::BadTime, "no time");
    let first_seen = EventTime::from_millis(5);
    let retried = RetryInfo { origin: "journal/3/10".into(), attempt: 1, first_seen };
    let again = RawRecord { retry: Some(&retried), ..RawRecord::from_value(b"x") };
    for new in [true, false] {
        let mut letters = DeadLetterFiles::open(dir.path(), "rules", DeadLetterLimits::default()).unwrap();
        assert_eq!(letters.write_dead_letter(&name, 12, None, &refusal, &again).unwrap(), new);
        assert_eq!(
            letters.write_dead_letter(&name, 10, None, &refusal, &RawRecord::from_value(b"x")).unwrap(),
            new
        );
        letters.flush_and_rotate().unwrap();
        let beyond = |end| letters.file_beyond(&name, end).map(|path| path.file_name().unwrap().to_owned());
        assert_eq!(beyond(13), None);
        assert_eq!(beyond(12).unwrap(), FILE_NAMES[1]);
    }
    let line = std::fs::read_to_string(dir.path().join(FILE_NAMES[1])).unwrap();
    assert!(
        line.contains(r#""origin":"journal/3/10","attempt":1,"first_seen_at":"1970-01-01T00:00:00.005Z""#)
    );
    let all: Vec<_> = FILE_NAMES.map(|name| read_dead_letters(&dir.path().join(name)).unwrap()).concat();
    let places: Vec<_> = all.iter().map(|letter| (letter.address.position, letter.retry.clone())).collect();
    assert_eq!(places, [(10, None), (12, Some(retried))]);
}

#[test]
fn damage_within_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("letters");
    drop(DeadLetterFile::open(&path, "rules").unwrap());
    std::fs::write(&path, "{\"source\":\"a\",\"partition\":0,\"position\":1}\nx\n{}\n").unwrap();
    let refused = DeadLetterFile::open(&path, "rules").unwrap_err();
    assert!(matches!(refused, DlqFileError::Damaged { line: 2, .. }), "{refused}");
}

#[test]
fn replay_writes_no_dead_letter_twice() {
    let runs = proptest::collection::vec((0..60u64, any::<proptest::sample::Index>()), 1..6);
    // Each step syncs a disk, so there are few cases, whatever `PROPTEST_CASES` says.
    let config = ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() };
    let ran = TestRunner::new(config).run(&runs, |runs| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("letters");
        let mut furthest = 0;
        for (upto, torn) in runs {
            let mut letters = DeadLetterFile::open(&path, "rules").unwrap();
            for position in 0..upto {
                write(&mut letters, (position % 3) as u32, position);
            }
            letters.flush_for_sync().unwrap();
            furthest = furthest.max(upto);
            let bytes = std::fs::read(&path).unwrap();
            let places: Vec<LastPosition> = bytes
                .split_inclusive(|byte| *byte == b'\n')
                .map(|line| serde_json::from_slice(line).unwrap())
                .collect();
            let mut positions: Vec<u64> = places.iter().map(|place| place.position).collect();
            positions.sort();
            prop_assert!(positions.iter().copied().eq(0..furthest));
            let kept = torn.index(bytes.len() + 1);
            std::fs::write(&path, &bytes[..kept]).unwrap();
            let whole = bytes[..kept].iter().filter(|byte| **byte == b'\n').count();
            let mut letters = DeadLetterFile::open(&path, "rules").unwrap();
            let again =
                (0..furthest).filter(|position| write(&mut letters, (position % 3) as u32, *position));
            prop_assert_eq!(again.count(), furthest as usize - whole);
            letters.flush_for_sync().unwrap();
        }
        Ok(())
    });
    ran.unwrap();
}

const SMALL: DeadLetterLimits = DeadLetterLimits {
    file_bytes: 1_000,
    limit_bytes: 8_000,
    when_full: DeadLetterFullPolicy::Wait,
    client_bytes: 1 << 20,
};

fn refuse(letters: &mut DeadLetterFiles, partition: u32, position: u64) -> bool {
    let name = PartitionName { source: "journal".into(), partition };
    let refusal = Refusal::new(Reason::TooLate, "older than its city's newest reading");
    let raw = format!("{{\"city\":\"a\",\"number\":{position}}}");
    letters
        .write_dead_letter(
            &name,
            position,
            EventTime::from_millis(7),
            &refusal,
            &RawRecord::from_value(raw.as_bytes()),
        )
        .unwrap()
}

fn places(path: &Path) -> Vec<(u32, u64)> {
    let letters = read_dead_letters(path).unwrap();
    letters.iter().map(|letter| (letter.address.partition, letter.address.position)).collect()
}

#[test]
fn full_files_are_rotated_and_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAMES[0]);
    let mut lines = DeadLetterReader::new(&path);
    let (mut followed, mut written) = (Vec::new(), Vec::new());
    for start in 0..3 {
        let mut letters = DeadLetterFiles::open(dir.path(), "rules", SMALL).unwrap();
        for position in 0..(start + 1) * 10 {
            let partition = (position % 3) as u32;
            if refuse(&mut letters, partition, position) {
                written.push((partition, position));
            }
            letters.flush_and_rotate().unwrap();
            // The reader continues from its offset, in whichever file that is by now.
            if position % 4 == 0 {
                let take = |letter: crate::model::DeadLetter| {
                    followed.push((letter.address.partition, letter.address.position));
                    None
                };
                lines.read_while(take).unwrap();
            }
        }
    }
    assert_eq!((written.len(), places(&path)), (30, written.clone()));
    assert!(followed.len() > 20 && written.starts_with(&followed), "{followed:?}");
    let parts = folder::list_parts(&path).unwrap();
    assert!(parts.len() >= 3, "{parts:?}");
    for (number, part) in &parts {
        let first = std::fs::read_to_string(part).unwrap().lines().next().unwrap().to_owned();
        let head =
            format!("{{\"dead_letters_file\":{number},\"last\":[{{\"source\":\"journal\",\"partition\":0,");
        assert_eq!(first.starts_with(&head), *number > 1, "{first}");
    }
    // A start knows which dead letters were written even if the full files are removed.
    parts.iter().for_each(|(_, part)| std::fs::remove_file(part).unwrap());
    let mut letters = DeadLetterFiles::open(dir.path(), "rules", SMALL).unwrap();
    assert!((0..30).all(|position| !refuse(&mut letters, (position % 3) as u32, position)));
    assert!(refuse(&mut letters, 0, 30));
}

/// The states of a folder after a process is killed at any step of a rotation.
#[test]
fn interrupted_rotation_writes_each_dead_letter_once() {
    type Cut = fn(&Path);
    let cuts: [Cut; 4] = [
        |_| (),
        // Killed before the new file was renamed.
        |path| {
            let newest = folder::list_parts(path).unwrap().pop().unwrap();
            let current = std::fs::read(path).unwrap();
            std::fs::write(path.with_extension("jsonl.new"), current).unwrap();
            std::fs::remove_file(path).unwrap();
            assert!(newest.0 > 1);
        },
        // A start created a file where there was none, and was killed before it wrote to it.
        |path| std::fs::write(path, b"").unwrap(),
        |path| {
            std::fs::write(path.with_extension("jsonl.new"), b"{\"dead_let").unwrap();
        },
    ];
    for cut in cuts {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAMES[0]);
        let mut letters = DeadLetterFiles::open(dir.path(), "rules", SMALL).unwrap();
        let mut count = 0;
        // Write until the next file has just been started.
        while folder::list_parts(&path).unwrap().len() < 2 {
            refuse(&mut letters, 0, count);
            letters.flush_and_rotate().unwrap();
            count += 1;
        }
        let current = std::fs::read_to_string(&path).unwrap();
        let lost = current.lines().filter(|line| !line.contains("dead_letters_file")).count() as u64;
        drop(letters);
        cut(&path);
        let missing = count - places(&path).len() as u64;
        assert!(missing <= lost);
        let mut letters = DeadLetterFiles::open(dir.path(), "rules", SMALL).unwrap();
        let again = (0..count + 5).filter(|position| refuse(&mut letters, 0, *position)).count() as u64;
        letters.flush_and_rotate().unwrap();
        assert_eq!(again, missing + 5);
        assert_eq!(places(&path), (0..count + 5).map(|position| (0, position)).collect::<Vec<_>>());
    }
}

#[test]
fn files_of_other_rules_version_are_moved_aside_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAMES[0]);
    for rules in ["some", "others", "more"] {
        let mut letters = DeadLetterFiles::open(dir.path(), rules, SMALL).unwrap();
        for position in 0..20 {
            assert!(refuse(&mut letters, 0, position));
            letters.flush_and_rotate().unwrap();
        }
        assert_eq!(places(&path).len(), 20);
    }
    for aside in ["dead-letters.old-1.jsonl", "dead-letters.old-2.jsonl"] {
        assert_eq!(places(&dir.path().join(aside)).len(), 20, "{aside}");
    }
}

#[test]
fn size_limit_pauses_source_until_files_are_moved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAMES[0]);
    let mut letters = DeadLetterFiles::open(dir.path(), "rules", SMALL).unwrap();
    let mut count = 0;
    while !letters.is_full() {
        assert!(refuse(&mut letters, 0, count));
        letters.flush_and_rotate().unwrap();
        count += 1;
    }
    let used = folder::used_bytes(dir.path()).unwrap();
    assert!((SMALL.limit_bytes..SMALL.limit_bytes + 500).contains(&used), "{used}");
    drop(letters);
    // A restarted source passes the dead letters that are written already, and waits at the first
    // that is not.
    let mut letters = DeadLetterFiles::open(dir.path(), "rules", SMALL).unwrap();
    assert!((0..count).all(|position| !refuse(&mut letters, 0, position)) && !letters.is_full());
    assert!(refuse(&mut letters, 0, count) && letters.is_full());
    letters.flush_and_rotate().unwrap();
    std::fs::remove_file(&folder::list_parts(&path).unwrap()[0].1).unwrap();
    letters.next_usage_check = Instant::now();
    letters.flush_and_rotate().unwrap();
    assert!(!letters.is_full());
    assert_eq!(places(&path).last(), Some(&(0, count)));
}

#[test]
fn oldest_file_is_dropped_if_configured() {
    let dir = tempfile::tempdir().unwrap();
    let limits = DeadLetterLimits { when_full: DeadLetterFullPolicy::DropOldest, ..SMALL };
    let mut letters = DeadLetterFiles::open(dir.path(), "rules", limits).unwrap();
    for position in 0..500 {
        assert!(refuse(&mut letters, 0, position) && !letters.is_full());
        letters.flush_and_rotate().unwrap();
        assert!(folder::used_bytes(dir.path()).unwrap() < limits.limit_bytes + 500);
    }
    let left = places(&dir.path().join(FILE_NAMES[0]));
    assert!(left.len() > 20 && left.len() < 100, "{}", left.len());
    let newest: Vec<_> = (500 - left.len() as u64..500).map(|position| (0, position)).collect();
    assert_eq!(left, newest);
}

#[test]
fn failed_dead_letters_are_written_later_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dead-letters.jsonl");
    let mut letters = DeadLetterFile::open(&path, "rules").unwrap();
    write(&mut letters, 0, 1);
    letters.flush_for_sync().unwrap();
    // A write that was cut off, and whose partial line cannot be removed either.
    File::options().append(true).open(&path).unwrap().write_all(b"{\"sour").unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let whole = letters.replace_file(full);
    write(&mut letters, 0, 2);
    let error = letters.flush_for_sync().unwrap_err();
    assert!(error.is_transient(), "{error}");
    let expected = format!("free space on the disk of {}", path.display());
    assert!(error.to_string().contains(&expected), "{error}");
    letters.replace_file(whole);
    write(&mut letters, 0, 3);
    letters.flush_for_sync().unwrap();
    drop(letters);
    let found = read_dead_letters(&path).unwrap();
    assert_eq!(found.iter().map(|letter| letter.address.position).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn dead_letters_of_another_rules_version_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let name = PartitionName { source: "journal".into(), partition: 3 };
    let refusal = Refusal::new(Reason::BadTime, "no time");
    let open = |rules: &str| DeadLetterFiles::open(dir.path(), rules, DeadLetterLimits::default());
    let own = format!("{RULES_VERSION_KEY} = {RULES_VERSION}\n");
    for (more, new) in [("a = 1\n", true), ("a = 1\n", false), ("a = 2\n", true)] {
        let mut letters = open(&format!("{own}{more}")).unwrap();
        assert_eq!(
            letters.write_dead_letter(&name, 10, None, &refusal, &RawRecord::from_value(b"x")).unwrap(),
            new,
            "{more}"
        );
        letters.flush_and_rotate().unwrap();
    }
    assert!(dir.path().join("dead-letters.old-1.jsonl").exists());
    let noted = dir.path().join(FILE_NAMES[0]).with_extension("rules");
    for (rules, maker) in [
        ("AdmissionRules { lateness: Duration(86400000) }\n", "swelter 0.1.0 of November 2026 or before"),
        ("rules version = 3\na = 2\n", "another swelter (rules version 3)"),
    ] {
        std::fs::write(&noted, rules).unwrap();
        let line = open(&format!("{own}a = 2\n")).unwrap_err().to_string();
        assert!(line.contains("dead-letters.jsonl were written by") && line.contains(maker), "{line}");
        assert_eq!(std::fs::read_to_string(&noted).unwrap(), rules);
    }
    assert!(!dir.path().join("dead-letters.old-2.jsonl").exists(), "nothing has become of it");
}
