//! A log of files as a worker reads it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::growing::RewriteError;
use super::history::{FileEnd, KnownFile};
use super::log::FileLog;
use super::reader::{FileNumber, FileReader, would_block};
use crate::codec::DecodeError;
use crate::model::{Fingerprint, Raw};
use crate::sources::{Next, Partition, Place, Polled, SourceError, Take};

/// How often a file that is followed is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);
/// A file that was rotated is read until nothing has come for so long and the next one has something: who writes may still have it open.
const QUIET_TIME: Duration = Duration::from_secs(1);
/// How long a file that is removed may be away: whoever rotates makes a new one in a moment.
const MISSING_PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct FilePartition {
    log: Arc<Mutex<FileLog>>,
    reader: Option<FileReader>,
    /// What is known of the file at hand, once it is kept that it is read.
    known: Option<KnownFile>,
    /// Where reading was to begin.
    from: u64,
    /// Of the last record that was given.
    last: Option<Fingerprint>,
    /// How the file before has ended, until a record of the next one is given.
    ended_file: Option<(u64, FileEnd)>,
    /// The file before, and how long it was: it is not to grow.
    before: Option<(Arc<File>, u64)>,
    rotation: Rotation,
    has_ended: bool,
    /// Its end has been seen, though it may grow.
    found_end: bool,
}

/// What is seen of a rotation.
#[derive(Default)]
struct Rotation {
    /// Since when another file stands under the name, or none, and nothing more has come.
    quiet_since: Option<Instant>,
    missing_since: Option<Instant>,
    /// The file under the name that was found to have other records.
    other: Option<FileNumber>,
    is_said: bool,
}

/// What reading one record came to.
enum ReadStep {
    Given,
    /// There is no more for now.
    Waits,
    FileEnds,
}

impl FilePartition {
    pub(super) fn new(log: Arc<Mutex<FileLog>>, from: u64) -> FilePartition {
        FilePartition {
            log,
            reader: None,
            known: None,
            from,
            last: None,
            ended_file: None,
            before: None,
            rotation: Rotation::default(),
            has_ended: false,
            found_end: false,
        }
    }

    fn position(&self) -> u64 {
        self.reader.as_ref().map_or(self.from, FileReader::position)
    }

    /// Gives one record.
    fn give(&mut self, take: &mut dyn Take) -> Result<ReadStep, SourceError> {
        if self.reader.is_none() {
            self.reader = lock(&self.log).open(self.from)?;
            self.begin_poll();
        }
        let Some(reader) = &mut self.reader else { return Ok(ReadStep::Waits) };
        if self.known.is_none() {
            self.known = begin_file(reader, &mut lock(&self.log), &mut self.ended_file)?;
            if self.known.is_none() {
                let may_have_record = reader.may_grow() || reader.is_poll_over();
                return Ok(if may_have_record { ReadStep::Waits } else { ReadStep::FileEnds });
            }
            reader.head = self.known.map(|known| known.head);
        }
        if let Some(known) = &self.known
            && is_at_known_end(reader, known).ok_or_else(|| lock(&self.log).differs(reader.position()))?
        {
            return Ok(ReadStep::FileEnds);
        }
        let place = Place { position: reader.position(), arrived: None };
        let decoded = match reader.next() {
            Ok(Some(decoded)) => decoded,
            Ok(None) => return Ok(ReadStep::FileEnds),
            Err(error) if would_block(&error) => return Ok(ReadStep::Waits),
            Err(error) => return Err(failed(&lock(&self.log), error)),
        };
        let taken = decoded.and_then(|upsert| take.upsert(place, &upsert));
        if let Err(refusal) = taken {
            take.refused(place, &refusal, &Raw::value(&reader.raw()));
        }
        self.rotation.quiet_since = None;
        Ok(ReadStep::Given)
    }

    /// Goes on with the file that follows: false where there is none, or not yet.
    fn open_next(&mut self) -> Result<bool, SourceError> {
        let Some(reader) = &mut self.reader else { return Ok(false) };
        let log = lock(&self.log);
        if let Some((known, end)) = self.known.and_then(|known| Some((known, known.end?)))
            && reader.records < end.records
        {
            return Err(log.ends_before(reader.position(), known.begin + end.records));
        }
        let next = match log.history.beginning_at(reader.position()).filter(|next| next.begin > reader.begin)
        {
            Some(known) => Some(log.find_known(&known)?),
            None => match log.find_next(reader)? {
                Some(file) => log.open_next(&file, reader.position())?,
                None => None,
            },
        };
        let Some(next) = next else { return Ok(false) };
        if reader.records > 0 {
            self.last = reader.fingerprint();
            self.ended_file =
                Some((reader.begin, FileEnd { records: reader.records, digest: reader.digest() }));
        }
        let length = reader.followed().map(|followed| followed.offset());
        self.before = length.map(|length| (Arc::clone(reader.file()), length));
        tracing::info!(file = %next.path.display(), position = next.begin, "the next file of the log is read");
        drop(log);
        (self.reader, self.known, self.rotation) = (Some(next), None, Rotation::default());
        self.begin_poll();
        Ok(true)
    }

    /// There is nothing more for now: looks whether the file is what it was, and still has its name.
    fn wait(&mut self, records: usize) -> Result<Polled, SourceError> {
        self.warn_of_late_records();
        let look_again = Polled { records, next: Next::At(Instant::now() + FOLLOW_INTERVAL) };
        let Some(reader) = &mut self.reader else {
            self.found_end = true;
            return Ok(look_again);
        };
        let log = lock(&self.log);
        if let Some(followed) = reader.followed() {
            followed.check().map_err(|error| failed(&log, error.into()))?;
        }
        let current = match fs::metadata(&log.path) {
            Ok(metadata) => Some((metadata.dev(), metadata.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(SourceError::Transient(format!("{}: {error}", log.name()))),
        };
        if current == Some(reader.number) {
            self.rotation = Rotation::default();
            self.found_end = true;
            return Ok(look_again);
        }
        let rotated = self.rotation.look(reader, &log, current)?;
        drop(log);
        match rotated {
            RotationState::Wait => {
                self.found_end = true;
                Ok(look_again)
            }
            RotationState::Soon => Ok(look_again),
            RotationState::Same(same) => {
                self.reader = Some(*same);
                self.rotation = Rotation::default();
                Ok(Polled { records, next: Next::Now })
            }
            RotationState::Complete => {
                reader.complete();
                Ok(Polled { records, next: Next::Now })
            }
        }
    }

    /// Records that come to a file once the next one is read are in no place of the log.
    fn warn_of_late_records(&mut self) {
        let grown =
            self.before.take_if(|(file, length)| file.metadata().is_ok_and(|now| now.len() > *length));
        if let Some((_, length)) = grown {
            let log = lock(&self.log);
            tracing::error!(
                "{}: the file that was rotated has grown beyond its {length} bytes after the next one was begun: those records are not \
                 read; append them to {0}, and have whoever writes open it anew when it is rotated",
                log.name()
            );
        }
    }

    fn begin_poll(&mut self) {
        if let Some(reader) = &mut self.reader {
            reader.begin_poll();
        }
    }

    fn is_poll_over(&mut self) -> bool {
        self.reader.as_mut().is_some_and(FileReader::is_poll_over)
    }

    fn poll_records(&mut self, limit: usize, upto: u64, take: &mut dyn Take) -> Result<Polled, SourceError> {
        let mut records = 0;
        self.begin_poll();
        while records < limit && self.position() < upto && !take.is_full() {
            match self.give(take)? {
                ReadStep::Given => records += 1,
                ReadStep::Waits if self.is_poll_over() => return Ok(Polled { records, next: Next::Now }),
                ReadStep::Waits => return self.wait(records),
                ReadStep::FileEnds if self.open_next()? => {}
                ReadStep::FileEnds if lock(&self.log).follows() => {
                    return Ok(Polled { records, next: Next::At(Instant::now() + FOLLOW_INTERVAL) });
                }
                ReadStep::FileEnds => {
                    (self.has_ended, self.found_end) = (true, true);
                    return Ok(Polled { records, next: Next::Never });
                }
            }
        }
        Ok(Polled { records, next: Next::Now })
    }
}

/// Makes sure that it is kept which file is read from a position on, before its first record is given: nothing while it has none.
fn begin_file(
    reader: &mut FileReader,
    log: &mut FileLog,
    ended_file: &mut Option<(u64, FileEnd)>,
) -> Result<Option<KnownFile>, SourceError> {
    if !log.history.keeps(reader.begin) {
        let Some(head) = reader.find_head_in_poll().map_err(|error| log.unreadable(&error))? else {
            return Ok(None);
        };
        log.history.begin(*ended_file, reader.begin, head)?;
        *ended_file = None;
    }
    Ok(log.history.beginning_at(reader.begin))
}

/// Whether a file is at the end that it had when the next one was begun; nothing if it is not the file that is known.
fn is_at_known_end(reader: &mut FileReader, known: &KnownFile) -> Option<bool> {
    if reader.records == 1 && reader.digest() != known.head {
        return None;
    }
    match known.end.filter(|end| end.records == reader.records) {
        None => Some(false),
        Some(end) => (reader.digest() == end.digest).then_some(true),
    }
}

fn failed(log: &FileLog, error: DecodeError) -> SourceError {
    let rewritten = match &error {
        DecodeError::Io(error) => RewriteError::of(error),
        _ => None,
    };
    let Some(rewritten) = rewritten else { return log.unreadable(&error) };
    let line = format!(
        "{} {rewritten} while it was followed: restore it, or begin anew with another data directory",
        log.name()
    );
    match rewritten {
        RewriteError::Truncated => SourceError::Behind(line),
        RewriteError::WrittenAnew => SourceError::Differs(line),
    }
}

/// What is to be done about a file that does not have its name any more.
enum RotationState {
    /// The next one is not there yet.
    Wait,
    /// It is, but more may come to this one.
    Soon,
    /// What has the name now is the same.
    Same(Box<FileReader>),
    /// This one is read to its end.
    Complete,
}

impl Rotation {
    fn look(
        &mut self,
        reader: &mut FileReader,
        log: &FileLog,
        current: Option<FileNumber>,
    ) -> Result<RotationState, SourceError> {
        let changed = |how: &str| {
            format!(
                "{} {how} while it was followed: restore it, or begin anew with another data directory",
                log.name()
            )
        };
        if let Some(current) = current.filter(|current| reader.records > 0 && self.other != Some(*current)) {
            if let Some(same) = log.find_same(reader)? {
                tracing::info!("{} was replaced by a file with the same records: it is read on", log.name());
                return Ok(RotationState::Same(Box::new(same)));
            }
            if log.begins_alike(reader)? && !log.is_rotated(reader)? {
                return Err(SourceError::Differs(changed("was replaced by one with other records")));
            }
            // One that has no record yet may become the same.
            self.other = log.current_has_record()?.then_some(current);
        }
        if log.find_next(reader)?.is_none() {
            self.wait_for_next(reader, log, current.is_none())?;
            return Ok(RotationState::Wait);
        }
        let quiet_since = *self.quiet_since.get_or_insert_with(Instant::now);
        let modified = reader.file().metadata().and_then(|metadata| metadata.modified()).ok();
        let age = modified.and_then(|modified| SystemTime::now().duration_since(modified).ok());
        let is_quiet = quiet_since.elapsed() >= QUIET_TIME || age.is_some_and(|age| age >= QUIET_TIME);
        Ok(if is_quiet { RotationState::Complete } else { RotationState::Soon })
    }

    fn wait_for_next(
        &mut self,
        reader: &FileReader,
        log: &FileLog,
        is_missing: bool,
    ) -> Result<(), SourceError> {
        if !is_missing || log.is_rotated(reader)? {
            self.missing_since = None;
            return Ok(());
        }
        let since = *self.missing_since.get_or_insert_with(Instant::now);
        if since.elapsed() < MISSING_PATIENCE {
            return Ok(());
        }
        if reader.file().metadata().is_ok_and(|metadata| metadata.nlink() == 0) {
            return Err(SourceError::Fatal(format!(
                "{} was removed while it was followed: restore it, or begin anew with another data directory",
                log.name()
            )));
        }
        if !self.is_said {
            self.is_said = true;
            tracing::warn!(
                "{} was moved away while it is followed: it is read on, and so is what comes in its place",
                log.name()
            );
        }
        Ok(())
    }
}

fn lock(log: &Mutex<FileLog>) -> MutexGuard<'_, FileLog> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Partition for FilePartition {
    fn poll(&mut self, limit: usize, upto: u64, take: &mut dyn Take) -> Result<Polled, SourceError> {
        if self.has_ended {
            return Ok(Polled { records: 0, next: Next::Never });
        }
        self.found_end = false;
        let polled = self.poll_records(limit, upto, take)?;
        let is_at_end = self.found_end;
        if let Some(reader) = &mut self.reader
            && reader.records > 0
        {
            for warning in reader.warnings(is_at_end) {
                tracing::warn!(file = %reader.path.display(), "{warning}");
            }
        }
        if let Some(before) = self.reader.as_mut().and_then(FileReader::fingerprint) {
            self.last = Some(before);
        }
        Ok(polled)
    }

    fn end(&self) -> u64 {
        if self.found_end { self.position() } else { u64::MAX }
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        self.last
    }
}
