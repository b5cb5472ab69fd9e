//! Tests of files as a live source.

use std::fs::{self, File};
use std::io::Write;
use std::thread;

use super::*;
use crate::model::{RawRecord, Refusal, Upsert};
use crate::sources::{NextPoll, RecordHandler, RecordPosition};

mod rotation;

/// A position, and the city or the bytes of a refused record.
type Seen = (u64, Result<String, Vec<u8>>);

#[derive(Default)]
struct Seer(Vec<Seen>);

impl RecordHandler for Seer {
    fn handle_upsert(&mut self, place: RecordPosition, upsert: &Upsert<'_>) -> Result<(), Refusal> {
        self.0.push((place.position, Ok(upsert.city.into())));
        Ok(())
    }

    fn handle_refusal(&mut self, place: RecordPosition, _: &Refusal, raw: &RawRecord<'_>) {
        self.0.push((place.position, Err(raw.value.unwrap().to_vec())));
    }
}

fn partition(path: &Path, format: Format, follow: bool, position: u64) -> Box<dyn Partition> {
    let input = InputFile { path: Some(path.into()), format, compression: Compression::None };
    let source = FileSource::new("files", vec![input], follow, ReadOptions::default(), None).unwrap();
    source.open_partition(0, position, thread::current()).unwrap()
}

/// Polls until nothing more is available.
fn drain(partition: &mut dyn Partition, limit: usize) -> Result<(Vec<Seen>, NextPoll), SourceError> {
    let mut seen = Seer::default();
    loop {
        let polled = partition.poll(limit, u64::MAX, &mut seen)?;
        if polled.next != NextPoll::Now {
            return Ok((seen.0, polled.next));
        }
    }
}

fn line(city: usize) -> String {
    format!("{{\"city\":\"{city}\",\"reading_at\":\"2025-01-01T00:00:00Z\",\"deleted\":true}}\n")
}

#[test]
fn file_is_read_once_from_any_position() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.jsonl");
    let text: String = (0..10).map(|n| if n == 4 { "oops\n".into() } else { line(n) }).collect();
    fs::write(&path, text).unwrap();
    for from in 0..=10 {
        let mut partition = partition(&path, Format::Json, false, from);
        let (seen, next) = drain(&mut *partition, 3).unwrap();
        assert_eq!((next, seen.len() as u64, partition.end()), (NextPoll::EndOfLog, 10 - from, 10));
        for (position, seen) in seen {
            let expected = if position == 4 { Err(b"oops".to_vec()) } else { Ok(position.to_string()) };
            assert_eq!(seen, expected);
        }
    }
    let short = drain(&mut *partition(&path, Format::Json, false, 11), 3).unwrap_err();
    assert!(short.to_string().contains("has 10 records, but 11 were read"), "{short}");
}

#[test]
fn followed_file_yields_complete_lines_as_it_grows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.csv");
    let mut file = File::create(&path).unwrap();
    let mut partition = partition(&path, Format::Csv, true, 0);
    let long = "x".repeat(200_000);
    let rows = [
        "a,2025-01-01T00:00:00Z,70,50\n",
        "\"b\nb\",2025-01-01T00:00:00Z,70,50\n",
        &long,
        "\n",
        "c,2025-01-01T00:00:00Z,70,50\r\n",
    ];
    let text = format!("city,reading_at,temperature,humidity\n{}", rows.concat());
    let mut all = Vec::new();
    for piece in
        text.as_bytes().chunks(11).flat_map(|piece| [&piece[..piece.len() / 2], &piece[piece.len() / 2..]])
    {
        file.write_all(piece).unwrap();
        let (seen, next) = drain(&mut *partition, 5).unwrap();
        assert!(matches!(next, NextPoll::At(_)));
        all.extend(seen);
    }
    let positions: Vec<u64> = all.iter().map(|(position, _)| *position).collect();
    assert_eq!(positions, [0, 1, 2, 3, 4]);
    assert_eq!(all[0].1, Ok("a".into()));
    // A record ends with its line, even within quotes.
    assert_eq!(all[1].1, Err(b"\"b".to_vec()));
    assert_eq!(all[2].1, Ok("b\"".into()));
    assert_eq!(all[3].1.as_ref().map_err(Vec::len), Err(crate::codec::MAX_RECORD_BYTES));
    assert_eq!((&all[4].1, partition.end()), (&Ok("c".into()), 5));
}

/// Reads a followed file that is written in pieces.
fn followed(path: &Path, text: &str, piece: usize) -> Vec<Seen> {
    fs::write(path, "").unwrap();
    let mut file = File::options().append(true).open(path).unwrap();
    let mut partition = partition(path, Format::Csv, true, 0);
    let mut all = Vec::new();
    for bytes in text.as_bytes().chunks(piece) {
        file.write_all(bytes).unwrap();
        all.extend(drain(&mut *partition, 5).unwrap().0);
    }
    all
}

#[test]
fn followed_file_yields_same_records_however_it_grew_and_on_replay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.csv");
    let line = |city: &str| format!("{city},2025-01-01T00:00:00Z,70,50\n");
    let text =
        ["city,reading_at,temperature,humidity\n", &line("a"), &line("\"oops"), &line("b"), &line("\"c\"")];
    let text = [&text.concat(), "\"d\"\",T,\"\n", &line("e"), "\n\"\n", &line("\"f\"\"\"")].concat();
    let whole = followed(&path, &text, text.len());
    let cities: Vec<_> = whole.iter().map(|(_, seen)| seen.as_deref().unwrap_or("-")).collect();
    assert_eq!(cities, ["a", "-", "b", "c", "-", "e", "-", "f\""]);
    // The line with the stray quote is delivered as soon as its line ends.
    let early = text.find("b,").unwrap();
    assert_eq!(followed(&path, &text[..early], early).last(), Some(&whole[1]));
    for piece in [1, 2, 7, 30, 50] {
        assert_eq!(followed(&path, &text, piece), whole, "in pieces of {piece}");
    }
    for from in 0..whole.len() as u64 {
        let seen = drain(&mut *partition(&path, Format::Csv, true, from), 3).unwrap().0;
        assert_eq!(seen, whole[from as usize..], "replayed from {from}");
    }
    // The rotated and compressed file has the same framing.
    let rotated = dir.path().join("f.csv.1.gz");
    let mut writer =
        crate::codec::compressing_writer(Box::new(File::create(rotated).unwrap()), Compression::Gzip)
            .unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    writer.finish().unwrap();
    let input = InputFile { path: Some(path.clone()), format: Format::Csv, compression: Compression::None };
    let folder = dir.path().join("kept");
    let open =
        || FileSource::new("f", vec![input.clone()], true, ReadOptions::default(), Some(&folder)).unwrap();
    let first = drain(&mut *open().open_partition(0, 0, thread::current()).unwrap(), 100).unwrap().0;
    assert_eq!(first, whole);
    fs::write(&path, ["city,reading_at,temperature,humidity\n", &line("g")].concat()).unwrap();
    let mut replayed = open().open_partition(0, 0, thread::current()).unwrap();
    let mut seen = Vec::new();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while seen.len() <= whole.len() && std::time::Instant::now() < deadline {
        seen.extend(drain(&mut *replayed, 3).unwrap().0);
    }
    assert_eq!(seen[..whole.len()], whole);
    assert_eq!(seen[whole.len()].1, Ok("g".into()));
}

#[test]
fn truncated_or_rewritten_followed_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.jsonl");
    let fatal = |partition: &mut dyn Partition, what: &str| {
        let error = drain(partition, 5).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    fs::write(&path, line(0)).unwrap();
    let mut truncated = partition(&path, Format::Json, true, 0);
    assert_eq!(drain(&mut *truncated, 5).unwrap().0.len(), 1);
    File::options().write(true).open(&path).unwrap().set_len(3).unwrap();
    fatal(&mut *truncated, "was truncated");
    let written_anew = |before: &str, after: &str| {
        fs::write(&path, before).unwrap();
        let mut written_anew = partition(&path, Format::Json, true, 0);
        drain(&mut *written_anew, 5).unwrap();
        fs::write(&path, after).unwrap();
        fatal(&mut *written_anew, "was rewritten");
    };
    written_anew(&line(0), &(line(1) + &line(2)));
    written_anew(&line(10), &line(11));
    written_anew(&line(10)[..20], &line(11));
    // Replaced by a file that begins the same, as an editor does.
    fs::write(&path, line(0) + &line(1)).unwrap();
    let mut replaced = partition(&path, Format::Json, true, 0);
    assert_eq!(drain(&mut *replaced, 5).unwrap().0.len(), 2);
    fs::write(dir.path().join("new"), line(0) + &line(2) + &line(3)).unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    fatal(&mut *replaced, "was replaced by a file with other records");
    fs::write(&path, line(0)).unwrap();
    fatal(&mut *partition(&path, Format::Json, true, 2), "has 1 records, but 2 were read");
    let input = |compression| InputFile { path: Some(path.clone()), format: Format::Json, compression };
    assert!(
        FileSource::new("f", vec![input(Compression::Gzip)], true, ReadOptions::default(), None).is_err()
    );
}

#[test]
fn endless_line_is_read_over_several_polls() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.jsonl");
    let mut seen = Seer::default();
    // A hole, left by a writer whose file was truncated: as the first record, between others, and
    // at the end.
    for (number, (before, follow)) in [(0, true), (3, true), (3, false)].into_iter().enumerate() {
        let path = path.with_file_name(format!("{number}.jsonl"));
        fs::write(&path, (0..before).map(line).collect::<String>()).unwrap();
        let mut file = File::options().append(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() + (40 << 20)).unwrap();
        file.write_all(format!("\n{}", line(9)).as_bytes()).unwrap();
        let mut partition = partition(&path, Format::Json, follow, 0);
        let mut polls = 0;
        loop {
            let polled = partition.poll(100, u64::MAX, &mut seen).unwrap();
            if polled.next != NextPoll::Now {
                break;
            }
            polls += 1;
        }
        assert!((5..50).contains(&polls), "40 MiB took {polls} polls");
        assert_eq!(partition.end(), before as u64 + 2);
        let seen = std::mem::take(&mut seen.0);
        assert_eq!(seen.len(), before + 2);
        assert_eq!(seen[before].1.as_ref().map_err(Vec::len), Err(crate::codec::MAX_RECORD_BYTES));
        assert_eq!(seen[before + 1], (before as u64 + 1, Ok("9".into())));
        // The digest equals that of a reader without pauses.
        let at = crate::model::LogPosition { position: before as u64 + 1, before: None };
        let input = InputFile { path: Some(path), format: Format::Json, compression: Compression::None };
        let source = FileSource::new("f", vec![input], follow, ReadOptions::default(), None).unwrap();
        source.check_position(0, at).unwrap();
        let mut uninterrupted = source.open_partition(0, at.position, thread::current()).unwrap();
        drain(&mut *uninterrupted, 5).unwrap();
        assert_eq!(uninterrupted.fingerprint(), partition.fingerprint());
    }
}

#[test]
fn blank_lines_are_read_over_several_polls() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.jsonl");
    fs::write(&path, line(0) + &"\n".repeat(20 << 20) + &line(1)).unwrap();
    let mut partition = partition(&path, Format::Json, false, 0);
    let (mut seen, mut polls) = (Seer::default(), 0);
    while partition.poll(100, u64::MAX, &mut seen).unwrap().next == NextPoll::Now {
        polls += 1;
    }
    assert!(polls >= 4, "20 MiB took {polls} polls");
    assert_eq!(seen.0, [(0, Ok("0".into())), (1, Ok("1".into()))]);
}

#[test]
fn endless_header_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.csv");
    // Reading all of it would take hours.
    File::create(&path).unwrap().set_len(1 << 42).unwrap();
    for follow in [true, false] {
        let error = drain(&mut *partition(&path, Format::Csv, follow, 0), 5).unwrap_err().to_string();
        assert!(error.contains("cannot be a header (the line is longer than"), "{error}");
    }
}

#[test]
fn non_regular_file_is_refused_without_blocking() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.jsonl");
    let refused = |partition: &mut dyn Partition| {
        let error = drain(partition, 5).unwrap_err().to_string();
        assert!(error.contains("is a pipe, a device or a socket") && error.contains("post it"), "{error}");
    };
    let pipe = dir.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let socket = dir.path().join("socket");
    let _listens = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for other in [&pipe, &socket, Path::new("/dev/zero")] {
        for follow in [true, false] {
            refused(&mut *partition(other, Format::Json, follow, 0));
        }
        // In place of a followed file.
        fs::write(&path, line(0)).unwrap();
        let mut followed = partition(&path, Format::Json, true, 0);
        assert_eq!(drain(&mut *followed, 5).unwrap().0.len(), 1);
        fs::rename(&path, dir.path().join("f.jsonl.1")).unwrap();
        std::os::unix::fs::symlink(other, &path).unwrap();
        refused(&mut *followed);
        fs::remove_file(&path).unwrap();
    }
}
