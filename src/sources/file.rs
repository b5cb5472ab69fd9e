//! Files, and standard input, as parts of one log; and files as a live source.

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::{Next, Partition, Place, Polled, Source, SourceError, Take};
use crate::codec::{Compression, DecodeError, DecodeSettings, Decoder, Format};
use crate::fault;
use crate::model::Raw;

/// One file of a log, or standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// `None` is standard input.
    pub path: Option<PathBuf>,
    pub format: Format,
    pub compression: Compression,
}

impl Input {
    /// As the user named it.
    pub fn name(&self) -> String {
        self.path.as_ref().map_or("-".into(), |path| path.display().to_string())
    }

    pub fn open(&self, settings: DecodeSettings) -> Result<Decoder, DecodeError> {
        match &self.path {
            Some(path) => Decoder::open(path, self.format, self.compression, settings),
            None => Decoder::from_reader(Box::new(io::stdin()), self.format, self.compression, settings),
        }
    }

    /// Whether it could be read at all, for an error before the work instead of after it. What can be read only once, such as
    /// a pipe, is left alone.
    pub fn check(&self, settings: DecodeSettings) -> Result<(), DecodeError> {
        match &self.path {
            Some(path) if !path.exists() || path.is_file() => self.open(settings).map(drop),
            _ => Ok(()),
        }
    }
}

/// How often a file that is followed is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// Files as a log of a partition each; a position is the number of a record.
#[derive(Clone, Debug)]
pub struct FileSource {
    name: Arc<str>,
    inputs: Vec<Input>,
    follow: bool,
    settings: DecodeSettings,
}

impl FileSource {
    /// Reads each file once, or follows it as it grows: then of whole lines, and it must not be compressed.
    ///
    /// # Errors
    ///
    /// Where an input cannot be read like that; the text says what to do.
    pub fn new(
        name: &str,
        inputs: Vec<Input>,
        follow: bool,
        settings: DecodeSettings,
    ) -> Result<FileSource, SourceError> {
        for input in &inputs {
            let name = input.name();
            if input.path.is_none() {
                let line =
                    "standard input cannot be read again after a restart: write it to a file, or post it";
                return Err(SourceError::Fatal(line.into()));
            }
            if follow && (input.format == Format::Parquet || input.compression != Compression::None) {
                let line =
                    format!("{name} cannot be followed: only plain CSV and JSON lines can, read it once");
                return Err(SourceError::Fatal(line));
            }
        }
        Ok(FileSource { name: name.into(), inputs, follow, settings })
    }
}

impl Source for FileSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn partitions(&self) -> u32 {
        self.inputs.len() as u32
    }

    fn open(&self, partition: u32, position: u64, _: Thread) -> Result<Box<dyn Partition>, SourceError> {
        let input = self.inputs.get(partition as usize).cloned();
        let input =
            input.ok_or_else(|| SourceError::Fatal(format!("{} has no partition {partition}", self.name)))?;
        let &FileSource { follow, settings, .. } = self;
        Ok(Box::new(FilePartition {
            input,
            follow,
            settings,
            open: None,
            read: 0,
            from: position,
            ended: false,
            found_end: false,
        }))
    }
}

struct FilePartition {
    input: Input,
    follow: bool,
    settings: DecodeSettings,
    open: Option<(Decoder, Option<Followed>)>,
    /// Records that were read, those that were skipped included.
    read: u64,
    /// The first that is given.
    from: u64,
    ended: bool,
    /// Its end has been seen, though it may grow.
    found_end: bool,
}

/// A file that is followed, beside the decoder that reads it.
struct Followed {
    file: File,
    offset: Arc<AtomicU64>,
}

/// Says at the end of the file that there may be more.
struct Following {
    file: File,
    offset: Arc<AtomicU64>,
}

impl Read for Following {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer)? {
            0 if !buffer.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            read => {
                self.offset.fetch_add(read as u64, Ordering::Relaxed);
                Ok(read)
            }
        }
    }
}

impl FilePartition {
    fn open(&self) -> Result<(Decoder, Option<Followed>), DecodeError> {
        let (true, Some(path)) = (self.follow, &self.input.path) else {
            return Ok((self.input.open(self.settings)?, None));
        };
        let file = File::open(path)?;
        let offset = Arc::<AtomicU64>::default();
        let following = Box::new(Following { file: file.try_clone()?, offset: offset.clone() });
        let decoder =
            Decoder::from_reader(following, self.input.format, self.input.compression, self.settings)?;
        Ok((decoder, Some(Followed { file, offset })))
    }

    /// A file that is followed only grows.
    fn check(&self, followed: &Followed) -> Result<(), SourceError> {
        let name = self.input.name();
        let changed = |how: &str| {
            SourceError::Fatal(format!(
                "{name} {how} while it was followed: restore it, or begin anew with another data directory"
            ))
        };
        let Some(path) = &self.input.path else { return Ok(()) };
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => changed("was removed"),
            _ => SourceError::Transient(format!("{name}: {error}")),
        };
        let (there, held) = (fs::metadata(path).map_err(failed)?, followed.file.metadata().map_err(failed)?);
        if (there.dev(), there.ino()) != (held.dev(), held.ino()) {
            return Err(changed("was replaced"));
        }
        if held.len() < followed.offset.load(Ordering::Relaxed) {
            return Err(changed("was truncated"));
        }
        Ok(())
    }

    fn unreadable(&self, error: &io::Error) -> String {
        let name = self.input.name();
        let remedy = fault::remedy_suffix(error, Path::new(&name));
        format!("{name} cannot be read: {error}{remedy}")
    }

    /// What has been read so far must reach the position that reading was to begin at.
    fn ends(&mut self, next: Next, records: usize) -> Result<Polled, SourceError> {
        if self.read < self.from {
            return Err(SourceError::Fatal(format!(
                "{} has {} records, but {} were read from it before: restore it, or begin anew with another data directory",
                self.input.name(),
                self.read,
                self.from
            )));
        }
        self.found_end = true;
        Ok(Polled { records, next })
    }

    fn idle(&mut self, records: usize) -> Result<Polled, SourceError> {
        if let Some((_, Some(followed))) = &self.open {
            self.check(followed)?;
        }
        self.ends(Next::At(Instant::now() + FOLLOW_INTERVAL), records)
    }

    /// Gives one record, or skips it: nothing at the end.
    fn give(&mut self, take: &mut dyn Take) -> Result<Option<bool>, DecodeError> {
        if self.open.is_none() {
            self.open = Some(self.open()?);
        }
        let Some((decoder, _)) = &mut self.open else { return Ok(None) };
        let Some(decoded) = decoder.next()? else { return Ok(None) };
        let place = Place { position: self.read, arrived: None };
        self.read += 1;
        if place.position < self.from {
            return Ok(Some(false));
        }
        let taken = decoded.and_then(|upsert| take.upsert(place, &upsert));
        if let Err(refusal) = taken {
            take.refused(place, &refusal, &Raw::value(&decoder.raw()));
        }
        Ok(Some(true))
    }
}

impl Partition for FilePartition {
    fn poll(&mut self, limit: usize, upto: u64, take: &mut dyn Take) -> Result<Polled, SourceError> {
        let mut records = 0;
        if self.ended {
            return Ok(Polled { records, next: Next::Never });
        }
        self.found_end = false;
        for _ in 0..limit {
            if self.read >= upto || take.is_full() {
                break;
            }
            match self.give(take) {
                Ok(Some(given)) => records += usize::from(given),
                Ok(None) => {
                    self.ended = true;
                    return self.ends(Next::Never, records);
                }
                Err(DecodeError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.idle(records);
                }
                Err(DecodeError::Io(error)) if self.open.is_none() && fault::is_passing(&error) => {
                    return Err(SourceError::Transient(self.unreadable(&error)));
                }
                Err(DecodeError::Io(error)) => return Err(SourceError::Fatal(self.unreadable(&error))),
                Err(error) => return Err(SourceError::Fatal(format!("{} {error}", self.input.name()))),
            }
        }
        Ok(Polled { records, next: Next::Now })
    }

    fn end(&self) -> u64 {
        if self.found_end { self.read.max(self.from) } else { u64::MAX }
    }
}
