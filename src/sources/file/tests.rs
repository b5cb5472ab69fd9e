//! Files as a live source.

use std::fs::{self, File};
use std::io::Write;
use std::thread;

use super::*;
use crate::model::{Raw, Refusal, Upsert};
use crate::sources::{Next, Place, Take};

mod rotation;

/// A position, and the city or the bytes of what was refused.
type Seen = (u64, Result<String, Vec<u8>>);

#[derive(Default)]
struct Seer(Vec<Seen>);

impl Take for Seer {
    fn upsert(&mut self, place: Place, upsert: &Upsert<'_>) -> Result<(), Refusal> {
        self.0.push((place.position, Ok(upsert.city.into())));
        Ok(())
    }

    fn refused(&mut self, place: Place, _: &Refusal, raw: &Raw<'_>) {
        self.0.push((place.position, Err(raw.value.unwrap().to_vec())));
    }
}

fn partition(path: &Path, format: Format, follow: bool, position: u64) -> Box<dyn Partition> {
    let input = Input { path: Some(path.into()), format, compression: Compression::None };
    let source = FileSource::new("files", vec![input], follow, DecodeSettings::default(), None).unwrap();
    source.open(0, position, thread::current()).unwrap()
}

/// Polls until there is nothing more for now.
fn drain(partition: &mut dyn Partition, limit: usize) -> Result<(Vec<Seen>, Next), SourceError> {
    let mut seen = Seer::default();
    loop {
        let polled = partition.poll(limit, u64::MAX, &mut seen)?;
        if polled.next != Next::Now {
            return Ok((seen.0, polled.next));
        }
    }
}

fn line(city: usize) -> String {
    format!("{{\"city\":\"{city}\",\"reading_at\":\"2025-01-01T00:00:00Z\",\"deleted\":true}}\n")
}

#[test]
fn a_file_is_read_once_from_any_position() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.jsonl");
    let text: String = (0..10).map(|n| if n == 4 { "oops\n".into() } else { line(n) }).collect();
    fs::write(&path, text).unwrap();
    for from in 0..=10 {
        let mut partition = partition(&path, Format::Json, false, from);
        let (seen, next) = drain(&mut *partition, 3).unwrap();
        assert_eq!((next, seen.len() as u64, partition.end()), (Next::Never, 10 - from, 10));
        for (position, seen) in seen {
            let expected = if position == 4 { Err(b"oops".to_vec()) } else { Ok(position.to_string()) };
            assert_eq!(seen, expected);
        }
    }
    let short = drain(&mut *partition(&path, Format::Json, false, 11), 3).unwrap_err();
    assert!(short.to_string().contains("has 10 records, but 11 were read"), "{short}");
}

#[test]
fn a_followed_file_gives_whole_lines_as_it_grows() {
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
        assert!(matches!(next, Next::At(_)));
        all.extend(seen);
    }
    let positions: Vec<u64> = all.iter().map(|(position, _)| *position).collect();
    assert_eq!(positions, [0, 1, 2, 3]);
    assert_eq!(all[0].1, Ok("a".into()));
    // A city with a line end is refused, as one record.
    assert_eq!(all[1].1, Err(b"\"b\nb\",2025-01-01T00:00:00Z,70,50".to_vec()));
    assert_eq!(all[2].1.as_ref().map_err(Vec::len), Err(crate::codec::MAX_RECORD_BYTES));
    assert_eq!((&all[3].1, partition.end()), (&Ok("c".into()), 4));
}

#[test]
fn a_followed_file_only_grows() {
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
        fatal(&mut *written_anew, "was written anew");
    };
    written_anew(&line(0), &(line(1) + &line(2)));
    written_anew(&line(10), &line(11));
    written_anew(&line(10)[..20], &line(11));
    // By one that begins alike, as an editor does it.
    fs::write(&path, line(0) + &line(1)).unwrap();
    let mut replaced = partition(&path, Format::Json, true, 0);
    assert_eq!(drain(&mut *replaced, 5).unwrap().0.len(), 2);
    fs::write(dir.path().join("new"), line(0) + &line(2) + &line(3)).unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    fatal(&mut *replaced, "was replaced by one with other records");
    fs::write(&path, line(0)).unwrap();
    fatal(&mut *partition(&path, Format::Json, true, 2), "has 1 records, but 2 were read");
    let input = |compression| Input { path: Some(path.clone()), format: Format::Json, compression };
    assert!(
        FileSource::new("f", vec![input(Compression::Gzip)], true, DecodeSettings::default(), None).is_err()
    );
}
