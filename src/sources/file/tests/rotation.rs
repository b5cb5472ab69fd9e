//! Rotated files are read in order, whatever their names and wherever reading begins.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::codec::compressing_writer;
use crate::model::{Fingerprint, LogPosition};

const HEADER: &str = "city,reading_at,temperature,humidity\n";

/// Files, and the records written to them.
struct Logs {
    dir: tempfile::TempDir,
    format: Format,
    kept: bool,
    /// All cities in the log, and the begin and the path of each file.
    cities: Vec<String>,
    files: Vec<(usize, PathBuf)>,
}

impl Logs {
    fn new(format: Format, kept: bool) -> Logs {
        let dir = tempfile::tempdir().unwrap();
        let mut logs = Logs { dir, format, kept, cities: Vec::new(), files: Vec::new() };
        logs.create();
        logs
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(if self.format == Format::Csv { "r.csv" } else { "r.jsonl" })
    }

    fn create(&mut self) {
        let path = self.path();
        fs::write(&path, if self.format == Format::Csv { HEADER } else { "" }).unwrap();
        self.files.push((self.cities.len(), path));
    }

    fn append(&mut self, count: usize) {
        let mut file = File::options().append(true).open(self.path()).unwrap();
        for _ in 0..count {
            let city = self.cities.len();
            let line = match self.format {
                Format::Csv => format!("{city},2025-01-01T00:00:00Z,70,50\n"),
                _ => line(city),
            };
            file.write_all(line.as_bytes()).unwrap();
            self.cities.push(city.to_string());
        }
    }

    /// Renames the files as logrotate does; compresses them from the second one on.
    fn rotate(&mut self, is_dated: bool, compress: bool) {
        let last = self.files.len() - 1;
        let name = self.path();
        // The oldest first, so that its name is free.
        for (at, (_, path)) in self.files.iter_mut().enumerate() {
            let number = last + 1 - at;
            let suffix = match is_dated {
                true if number == 1 => format!("-{}", 20_260_000 + last),
                true => continue,
                false => format!(".{number}"),
            };
            let from = path.to_str().unwrap().to_owned();
            if !path.exists() {
                continue;
            }
            let kind = [".gz", ".zst"].into_iter().find(|kind| from.ends_with(kind)).unwrap_or("");
            let mut to = PathBuf::from(format!("{}{suffix}{kind}", name.display()));
            fs::rename(&from, &to).unwrap();
            // The last write was a while ago.
            let before = SystemTime::now() - Duration::from_secs(60);
            File::options().write(true).open(&to).unwrap().set_modified(before).unwrap();
            if compress && number == 2 && kind.is_empty() {
                let (kind, compression) = if last.is_multiple_of(2) {
                    (".gz", Compression::Gzip)
                } else {
                    (".zst", Compression::Zstd)
                };
                let packed = PathBuf::from(format!("{}{kind}", to.display()));
                let mut writer =
                    compressing_writer(Box::new(File::create(&packed).unwrap()), compression).unwrap();
                writer.write_all(&fs::read(&to).unwrap()).unwrap();
                writer.finish().unwrap();
                fs::remove_file(&to).unwrap();
                to = packed;
            }
            *path = to;
        }
        self.create();
    }

    fn source(&self) -> FileSource {
        let input =
            InputFile { path: Some(self.path()), format: self.format, compression: Compression::None };
        let folder = self.dir.path().join("data").join("files");
        let folder = self.kept.then_some(&*folder);
        FileSource::new("f", vec![input], true, ReadOptions::default(), folder).unwrap()
    }

    fn open(&self, at: LogPosition) -> Result<Box<dyn Partition>, SourceError> {
        let source = self.source();
        source.check_position(0, at)?;
        source.open_partition(0, at.position, thread::current())
    }

    /// Reads all records, and returns the position and fingerprint behind them.
    fn read(&self, partition: &mut dyn Partition, from: u64) -> Result<LogPosition, SourceError> {
        let mut seen = Seer::default();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            partition.poll(7, u64::MAX, &mut seen)?;
            let position = from + seen.0.len() as u64;
            if position >= self.cities.len() as u64 {
                let read: Vec<_> =
                    seen.0.iter().map(|(position, city)| (*position, city.clone().unwrap())).collect();
                let expected: Vec<_> = (from..).zip(self.cities[from as usize..].iter().cloned()).collect();
                assert_eq!(read, expected);
                return Ok(LogPosition { position, before: partition.fingerprint() });
            }
            assert!(Instant::now() < deadline, "only {position} of {} come", self.cities.len());
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Rotate {
        compress: bool,
    },
    Read,
    /// Reads again from an earlier position; files before it may be removed.
    Restart(prop::sample::Index, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..9usize).prop_map(Step::Append),
        3 => any::<bool>().prop_map(|compress| Step::Rotate { compress }),
        3 => Just(Step::Read),
        3 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(at, remove)| Step::Restart(at, remove)),
    ]
}

fn run(kept: bool, format: Format, dated: bool, steps: Vec<Step>) {
    let mut logs = Logs::new(format, kept);
    let mut known = vec![LogPosition::default()];
    let mut at = LogPosition::default();
    let mut partition = logs.open(at).unwrap();
    for step in steps {
        match step {
            Step::Append(count) => logs.append(count),
            // A log begins with the file that has its name at the first read.
            Step::Rotate { .. } if known.iter().all(|at| at.position == 0) => {}
            Step::Rotate { compress } => {
                // The same holds if no history is saved.
                known.retain(|at| kept || at.position > 0);
                logs.rotate(dated, compress);
            }
            Step::Read => {
                let before = at.before;
                at = logs.read(&mut *partition, at.position).unwrap();
                at.before = at.before.or(before);
                if at.position > 0 {
                    assert_eq!(at.before.map(|before| before.position + 1), Some(at.position));
                    known.push(at);
                }
            }
            Step::Restart(index, remove) => {
                at = *index.get(&known);
                if remove {
                    let ends: Vec<usize> = logs.files.iter().skip(1).map(|(begin, _)| *begin).collect();
                    let gone = logs.dir.path().join("gone");
                    for (end, (_, path)) in ends.into_iter().zip(&mut logs.files) {
                        // The file of the last record is needed if that record may not be its end.
                        if (end as u64) < at.position {
                            let _ = fs::remove_file(&*path);
                            // Other files will get its name.
                            *path = gone.clone();
                        }
                    }
                    known.retain(|known| known.position >= at.position);
                }
                partition = logs.open(at).unwrap();
                if at.position == 0 {
                    // Read before it gets another name.
                    at = logs.read(&mut *partition, 0).unwrap();
                }
            }
        }
    }
    logs.read(&mut *partition, at.position).unwrap();
}

#[test]
fn rotated_files_are_read_in_sequence() {
    let steps = (any::<bool>(), any::<bool>(), any::<bool>(), proptest::collection::vec(step(), 1..25));
    let config = ProptestConfig {
        cases: 40,
        max_shrink_iters: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let ran = TestRunner::new(config).run(&steps, |(kept, csv, dated, steps)| {
        run(kept, if csv { Format::Csv } else { Format::Json }, dated, steps);
        Ok(())
    });
    ran.unwrap();
}

fn read_some(logs: &mut Logs) -> LogPosition {
    logs.append(5);
    let mut partition = logs.open(LogPosition::default()).unwrap();
    logs.read(&mut *partition, 0).unwrap()
}

/// The error of a refused position.
fn refused(logs: &Logs, at: LogPosition) -> SourceError {
    let result = logs.open(at).and_then(|mut partition| drain(&mut *partition, 5));
    result.map(|(seen, _)| seen).unwrap_err()
}

#[test]
fn changed_bytes_before_position_are_refused() {
    for (kept, format) in
        [(true, Format::Csv), (false, Format::Json), (true, Format::Json), (false, Format::Csv)]
    {
        let mut logs = Logs::new(format, kept);
        let at = read_some(&mut logs);
        let text = fs::read_to_string(logs.path()).unwrap();
        for at_byte in 0..text.len() - 1 {
            let mut other = text.clone().into_bytes();
            other[at_byte] = if other[at_byte] == b'x' { b'y' } else { b'x' };
            other.extend_from_slice(text.as_bytes());
            fs::write(logs.path(), other).unwrap();
            let error = refused(&logs, at);
            // An invalid header, or fewer lines.
            let is_clear = matches!(
                error,
                SourceError::RecordDiffers(_) | SourceError::EndsBefore(_) | SourceError::Fatal(_)
            );
            assert!(is_clear, "{error}");
        }
        // One more line at the beginning, the same number of records.
        let first = if format == Format::Csv { HEADER.len() } else { 0 };
        for inserted in ["\n", " \n", "\r\n"] {
            fs::write(logs.path(), format!("{}{inserted}{}", &text[..first], &text[first..])).unwrap();
            let error = refused(&logs, at);
            assert!(
                matches!(&error, SourceError::RecordDiffers(line) if line.contains("restore it")),
                "{error}"
            );
        }
        fs::write(logs.path(), &text[..text.len() - 10]).unwrap();
        let error = refused(&logs, at);
        assert!(
            matches!(&error, SourceError::EndsBefore(line) if line.contains("has 4 records, but 5 were read")),
            "{error}"
        );
        // The same bytes with another inode and another name, then more of them.
        fs::remove_file(logs.path()).unwrap();
        fs::write(logs.path(), &text).unwrap();
        logs.append(3);
        let mut partition = logs.open(at).unwrap();
        logs.read(&mut *partition, at.position).unwrap();
    }
}

#[test]
fn missing_file_is_refused() {
    let mut logs = Logs::new(Format::Json, true);
    let at = read_some(&mut logs);
    fs::remove_file(logs.path()).unwrap();
    logs.files.clear();
    logs.create();
    logs.append(9);
    for at in [at, LogPosition::default()] {
        let error = refused(&logs, at).to_string();
        assert!(error.contains("estore it, or begin anew"), "{error}");
    }
}

#[test]
fn lost_history_is_recovered_by_digests() {
    let mut logs = Logs::new(Format::Csv, true);
    let mut partition = logs.open(LogPosition::default()).unwrap();
    let mut at = LogPosition::default();
    for _ in 0..3 {
        logs.append(4);
        at = logs.read(&mut *partition, at.position).unwrap();
        logs.rotate(false, true);
    }
    logs.append(2);
    fs::remove_dir_all(logs.dir.path().join("data")).unwrap();
    let mut partition = logs.open(at).unwrap();
    logs.read(&mut *partition, at.position).unwrap();
    // From now on the history is saved again.
    let mut partition = logs.open(at).unwrap();
    logs.read(&mut *partition, at.position).unwrap();
    // The whole log, ordered by the names.
    let source = logs.source();
    source.check_position(0, at).unwrap();
    let mut partition = source.open_partition(0, 0, thread::current()).unwrap();
    logs.read(&mut *partition, 0).unwrap();
    // In the middle of a file.
    let digest = at.before.unwrap();
    assert_eq!(digest, Fingerprint { position: 11, ..digest });
    fs::remove_dir_all(logs.dir.path().join("data")).unwrap();
    let mut partition = logs.open(at).unwrap();
    logs.read(&mut *partition, at.position).unwrap();
}

#[test]
fn changed_rotated_file_is_refused() {
    let mut logs = Logs::new(Format::Json, true);
    let mut partition = logs.open(LogPosition::default()).unwrap();
    logs.append(4);
    let at = logs.read(&mut *partition, 0).unwrap();
    logs.rotate(false, false);
    logs.append(4);
    logs.read(&mut *partition, at.position).unwrap();
    let path = logs.files[0].1.clone();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for (changed, says) in [
        (lines[..3].concat(), "has 3 records, but 4 were read"),
        ([lines[0], lines[1], lines[1], lines[3]].concat(), "is not the file that was read"),
    ] {
        fs::write(&path, changed).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let mut partition = logs.open(LogPosition::default()).unwrap();
        let mut seen = Seer::default();
        let deadline = Instant::now() + Duration::from_secs(5);
        let error = loop {
            match partition.poll(9, u64::MAX, &mut seen) {
                Err(error) => break error.to_string(),
                Ok(_) => assert!(Instant::now() < deadline, "it is read"),
            }
        };
        assert!(error.contains(says) && seen.0.len() <= 4, "{error}");
        // A start behind it does not need the file.
        let mut partition = logs.open(at).unwrap();
        logs.read(&mut *partition, at.position).unwrap();
    }
}

#[test]
fn rotated_file_is_read_to_its_end_before_the_next() {
    let mut logs = Logs::new(Format::Json, true);
    let mut partition = logs.open(LogPosition::default()).unwrap();
    logs.append(3);
    let at = logs.read(&mut *partition, 0).unwrap();
    // The writer still has the old file open.
    let mut old = File::options().append(true).open(logs.path()).unwrap();
    logs.rotate(false, false);
    fs::write(logs.path(), line(5)).unwrap();
    old.write_all((line(3) + line(4).trim_end()).as_bytes()).unwrap();
    logs.cities.extend(["3", "4", "5"].map(String::from));
    // The last one has no line end: it counts once the next file is begun.
    logs.read(&mut *partition, at.position).unwrap();
    let mut partition = logs.open(at).unwrap();
    logs.read(&mut *partition, at.position).unwrap();
}

#[test]
fn replaced_file_with_same_records_continues() {
    let mut logs = Logs::new(Format::Csv, false);
    let mut partition = logs.open(LogPosition::default()).unwrap();
    logs.append(3);
    let at = logs.read(&mut *partition, 0).unwrap();
    fs::copy(logs.path(), logs.dir.path().join("copy")).unwrap();
    fs::rename(logs.dir.path().join("copy"), logs.path()).unwrap();
    logs.append(3);
    logs.read(&mut *partition, at.position).unwrap();
}

#[test]
fn removed_file_is_awaited() {
    let mut logs = Logs::new(Format::Csv, true);
    let mut partition = logs.open(LogPosition::default()).unwrap();
    logs.append(3);
    let at = logs.read(&mut *partition, 0).unwrap();
    fs::remove_file(logs.path()).unwrap();
    let (seen, next) = drain(&mut *partition, 5).unwrap();
    assert!(seen.is_empty() && matches!(next, NextPoll::At(_)));
    logs.create();
    logs.append(2);
    logs.read(&mut *partition, at.position).unwrap();
}

#[test]
fn unfollowed_files_may_be_rotated() {
    let mut logs = Logs::new(Format::Csv, true);
    logs.append(3);
    let read_once = |logs: &Logs, at: LogPosition| {
        let input =
            InputFile { path: Some(logs.path()), format: Format::Csv, compression: Compression::None };
        let folder = logs.dir.path().join("files");
        let source = FileSource::new("f", vec![input], false, ReadOptions::default(), Some(&folder)).unwrap();
        source.check_position(0, at).unwrap();
        let mut partition = source.open_partition(0, at.position, thread::current()).unwrap();
        let (seen, next) = drain(&mut *partition, 5).unwrap();
        assert_eq!(next, NextPoll::EndOfLog);
        let end = partition.end();
        assert_eq!(seen.len() as u64, end - at.position);
        LogPosition { position: end, before: partition.fingerprint() }
    };
    let at = read_once(&logs, LogPosition::default());
    logs.rotate(false, false);
    logs.append(4);
    assert_eq!((read_once(&logs, LogPosition::default()).position, read_once(&logs, at).position), (7, 7));
}

#[test]
fn unrelated_file_with_endless_line_is_not_read_whole() {
    let mut logs = Logs::new(Format::Json, true);
    let at = read_some(&mut logs);
    logs.rotate(false, false);
    logs.append(3);
    // It is checked first, as the newest.
    let beside = PathBuf::from(format!("{}.0", logs.path().display()));
    File::create(&beside).unwrap().set_len(8 << 30).unwrap();
    let started = Instant::now();
    let mut partition = logs.open(at).unwrap();
    logs.read(&mut *partition, at.position).unwrap();
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}
