//! A reader of a log of files.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, MutexGuard};

use super::file_log::FileLog;
use super::growing_file::RewriteError;
use super::history::{FileEnd, KnownFile};
use super::reader::{FileId, FileReader, would_block};
use crate::codec::DecodeError;
use crate::model::{Fingerprint, RawRecord};
use crate::sources::{NextPoll, Partition, PollResult, RecordHandler, RecordPosition, SourceError};

/// How often a followed file is polled.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);
/// A rotated file is read until it has been quiet for this long and the next file has a record: the
/// writer may still have it open.
const QUIET_PERIOD: Duration = Duration::from_secs(1);
/// How long a removed file may be missing: a rotation creates a new one shortly after.
const MISSING_FILE_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct FilePartition {
    log: Arc<Mutex<FileLog>>,
    reader: Option<FileReader>,
    /// The entry of the current file in the history, once it is saved.
    known_file: Option<KnownFile>,
    /// The position at which reading began.
    start_position: u64,
    /// The fingerprint of the last delivered record.
    last_fingerprint: Option<Fingerprint>,
    /// The end of the previous file, until a record of the next one is delivered.
    previous_end: Option<(u64, FileEnd)>,
    /// The previous file and its length, to detect that it still grows.
    previous_file: Option<(Arc<File>, u64)>,
    rotation: RotationWatch,
    has_ended: bool,
    /// The reader is at the end of the log, which may grow.
    is_at_end: bool,
}

/// The observed state of a rotation.
#[derive(Default)]
struct RotationWatch {
    /// Since when the log's name has belonged to another file or to none, and no more records have
    /// come.
    quiet_since: Option<Instant>,
    missing_since: Option<Instant>,
    /// The file under the log's name that was found to have other records.
    differing_file: Option<FileId>,
    is_warned: bool,
}

/// The result of reading one record.
enum ReadOutcome {
    Handled,
    /// No record is available for now.
    NoneYet,
    EndOfFile,
}

impl FilePartition {
    pub(super) fn new(log: Arc<Mutex<FileLog>>, from: u64) -> FilePartition {
        FilePartition {
            log,
            reader: None,
            known_file: None,
            start_position: from,
            last_fingerprint: None,
            previous_end: None,
            previous_file: None,
            rotation: RotationWatch::default(),
            has_ended: false,
            is_at_end: false,
        }
    }

    fn position(&self) -> u64 {
        self.reader.as_ref().map_or(self.start_position, FileReader::position)
    }

    /// Reads one record and passes it to the handler.
    fn read_record(&mut self, handler: &mut dyn RecordHandler) -> Result<ReadOutcome, SourceError> {
        if self.reader.is_none() {
            self.reader = lock_log(&self.log).open_reader(self.start_position)?;
            self.begin_poll();
        }
        let Some(reader) = &mut self.reader else { return Ok(ReadOutcome::NoneYet) };
        if self.known_file.is_none() {
            self.known_file = begin_file(reader, &mut lock_log(&self.log), &mut self.previous_end)?;
            if self.known_file.is_none() {
                let may_have_record = reader.may_grow() || reader.is_poll_over();
                return Ok(if may_have_record { ReadOutcome::NoneYet } else { ReadOutcome::EndOfFile });
            }
            reader.head = self.known_file.map(|file| file.head);
        }
        if let Some(file) = &self.known_file
            && is_at_known_end(reader, file)
                .ok_or_else(|| lock_log(&self.log).record_differs_error(reader.position()))?
        {
            return Ok(ReadOutcome::EndOfFile);
        }
        let record_position = RecordPosition { position: reader.position(), arrived: None };
        let decoded = match reader.next() {
            Ok(Some(decoded)) => decoded,
            Ok(None) => return Ok(ReadOutcome::EndOfFile),
            Err(error) if would_block(&error) => return Ok(ReadOutcome::NoneYet),
            Err(error) => return Err(read_error(&lock_log(&self.log), error)),
        };
        let outcome = decoded.and_then(|upsert| handler.handle_upsert(record_position, &upsert));
        if let Err(refusal) = outcome {
            handler.handle_refusal(record_position, &refusal, &RawRecord::from_value(&reader.raw_record()));
        }
        self.rotation.quiet_since = None;
        Ok(ReadOutcome::Handled)
    }

    /// Continues with the next file; false if there is none yet.
    fn open_next_file(&mut self) -> Result<bool, SourceError> {
        let Some(reader) = &mut self.reader else { return Ok(false) };
        let log = lock_log(&self.log);
        if let Some((known, end)) = self.known_file.and_then(|known| Some((known, known.end?)))
            && reader.records < end.records
        {
            return Err(log.ends_before_error(reader.position(), known.begin + end.records));
        }
        let next =
            match log.history.file_beginning_at(reader.position()).filter(|next| next.begin > reader.begin) {
                Some(known) => Some(log.open_known_file(&known)?),
                None => match log.find_next_file(reader)? {
                    Some(file) => log.open_next_file(&file, reader.position())?,
                    None => None,
                },
            };
        let Some(next) = next else { return Ok(false) };
        if reader.records > 0 {
            self.last_fingerprint = reader.fingerprint();
            self.previous_end =
                Some((reader.begin, FileEnd { records: reader.records, digest: reader.digest() }));
        }
        let length = reader.growing_file().map(|followed| followed.offset());
        self.previous_file = length.map(|length| (Arc::clone(reader.shared_file()), length));
        tracing::info!(file = %next.path.display(), position = next.begin, "the next file of the log is read");
        drop(log);
        (self.reader, self.known_file, self.rotation) = (Some(next), None, RotationWatch::default());
        self.begin_poll();
        Ok(true)
    }

    /// Handles the end of the available records: checks that the file is unchanged and still has
    /// its name.
    fn handle_end_of_file(&mut self, records: usize) -> Result<PollResult, SourceError> {
        self.warn_of_late_records();
        let poll_later = PollResult { records, next: NextPoll::At(Instant::now() + FOLLOW_INTERVAL) };
        let Some(reader) = &mut self.reader else {
            self.is_at_end = true;
            return Ok(poll_later);
        };
        let log = lock_log(&self.log);
        if let Some(followed) = reader.growing_file() {
            followed.check_unchanged().map_err(|error| read_error(&log, error.into()))?;
        }
        let current = match fs::metadata(&log.path) {
            Ok(metadata) => Some((metadata.dev(), metadata.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(SourceError::Transient(format!("{}: {error}", log.name()))),
        };
        if current == Some(reader.file_id) {
            self.rotation = RotationWatch::default();
            self.is_at_end = true;
            return Ok(poll_later);
        }
        let rotated = self.rotation.check_rotation(reader, &log, current)?;
        drop(log);
        match rotated {
            RotationStep::NoNextFile => {
                self.is_at_end = true;
                Ok(poll_later)
            }
            RotationStep::NotQuietYet => Ok(poll_later),
            RotationStep::Replaced(same) => {
                self.reader = Some(*same);
                self.rotation = RotationWatch::default();
                Ok(PollResult { records, next: NextPoll::Now })
            }
            RotationStep::ReadToEnd => {
                reader.stop_following();
                Ok(PollResult { records, next: NextPoll::Now })
            }
        }
    }

    /// Logs an error if the previous file has grown: those records have no position in the log.
    fn warn_of_late_records(&mut self) {
        let grown =
            self.previous_file.take_if(|(file, length)| file.metadata().is_ok_and(|now| now.len() > *length));
        if let Some((_, length)) = grown {
            let log = lock_log(&self.log);
            tracing::error!(
                "{}: the rotated file has grown beyond its {length} bytes after the next file was begun, and the added records are not read: append them to {0}, and configure the writer to reopen the file after a rotation",
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

    fn poll_records(
        &mut self,
        limit: usize,
        until: u64,
        handler: &mut dyn RecordHandler,
    ) -> Result<PollResult, SourceError> {
        let mut records = 0;
        self.begin_poll();
        while records < limit && self.position() < until && !handler.is_full() {
            match self.read_record(handler)? {
                ReadOutcome::Handled => records += 1,
                ReadOutcome::NoneYet if self.is_poll_over() => {
                    return Ok(PollResult { records, next: NextPoll::Now });
                }
                ReadOutcome::NoneYet => return self.handle_end_of_file(records),
                ReadOutcome::EndOfFile if self.open_next_file()? => {}
                ReadOutcome::EndOfFile if lock_log(&self.log).is_followed() => {
                    return Ok(PollResult { records, next: NextPoll::At(Instant::now() + FOLLOW_INTERVAL) });
                }
                ReadOutcome::EndOfFile => {
                    (self.has_ended, self.is_at_end) = (true, true);
                    return Ok(PollResult { records, next: NextPoll::EndOfLog });
                }
            }
        }
        Ok(PollResult { records, next: NextPoll::Now })
    }
}

/// Saves the file at the reader's position in the history before its first record is delivered;
/// `None` while it has no record.
fn begin_file(
    reader: &mut FileReader,
    log: &mut FileLog,
    ended_file: &mut Option<(u64, FileEnd)>,
) -> Result<Option<KnownFile>, SourceError> {
    if !log.history.is_persisted_at(reader.begin) {
        let Some(head) = reader.find_head_digest_in_poll().map_err(|error| log.unreadable_error(&error))?
        else {
            return Ok(None);
        };
        log.history.begin_file(*ended_file, reader.begin, head)?;
        *ended_file = None;
    }
    Ok(log.history.file_beginning_at(reader.begin))
}

/// Whether the reader is at the end that the file had when the next one was begun; `None` if the
/// content is not that of the known file.
fn is_at_known_end(reader: &mut FileReader, file: &KnownFile) -> Option<bool> {
    if reader.records == 1 && reader.digest() != file.head {
        return None;
    }
    match file.end.filter(|end| end.records == reader.records) {
        None => Some(false),
        Some(end) => (reader.digest() == end.digest).then_some(true),
    }
}

fn read_error(log: &FileLog, error: DecodeError) -> SourceError {
    let rewritten = match &error {
        DecodeError::Io(error) => RewriteError::from_io_error(error),
        _ => None,
    };
    let Some(rewritten) = rewritten else { return log.unreadable_error(&error) };
    let line = format!(
        "{} {rewritten} while it was followed: restore it, or begin anew with another data directory",
        log.name()
    );
    match rewritten {
        RewriteError::Truncated => SourceError::EndsBefore(line),
        RewriteError::Rewritten => SourceError::RecordDiffers(line),
    }
}

/// What to do with a file that no longer has its name.
enum RotationStep {
    /// The next file does not exist yet.
    NoNextFile,
    /// The next file exists, but this one may still grow.
    NotQuietYet,
    /// The file that has the name now has the same records.
    Replaced(Box<FileReader>),
    /// Read this file to its end, then continue with the next one.
    ReadToEnd,
}

impl RotationWatch {
    fn check_rotation(
        &mut self,
        reader: &mut FileReader,
        log: &FileLog,
        current: Option<FileId>,
    ) -> Result<RotationStep, SourceError> {
        let changed = |how: &str| {
            format!(
                "{} {how} while it was followed: restore it, or begin anew with another data directory",
                log.name()
            )
        };
        if let Some(current) =
            current.filter(|current| reader.records > 0 && self.differing_file != Some(*current))
        {
            if let Some(same) = log.open_replacement(reader)? {
                tracing::info!(
                    "{} was replaced by a file with the same records: reading continues in the new one",
                    log.name()
                );
                return Ok(RotationStep::Replaced(Box::new(same)));
            }
            if log.begins_with_same_record(reader)? && !log.is_rotated(reader)? {
                return Err(SourceError::RecordDiffers(changed("was replaced by a file with other records")));
            }
            // A file without a record may still become the same.
            self.differing_file = log.current_has_record()?.then_some(current);
        }
        if log.find_next_file(reader)?.is_none() {
            self.check_missing(reader, log, current.is_none())?;
            return Ok(RotationStep::NoNextFile);
        }
        let quiet_since = *self.quiet_since.get_or_insert_with(Instant::now);
        let modified = reader.shared_file().metadata().and_then(|metadata| metadata.modified()).ok();
        let age = modified.and_then(|modified| SystemTime::now().duration_since(modified).ok());
        let is_quiet = quiet_since.elapsed() >= QUIET_PERIOD || age.is_some_and(|age| age >= QUIET_PERIOD);
        Ok(if is_quiet { RotationStep::ReadToEnd } else { RotationStep::NotQuietYet })
    }

    fn check_missing(
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
        if since.elapsed() < MISSING_FILE_TIMEOUT {
            return Ok(());
        }
        if reader.shared_file().metadata().is_ok_and(|metadata| metadata.nlink() == 0) {
            return Err(SourceError::Fatal(format!(
                "{} was removed while it was followed: restore it, or begin anew with another data directory",
                log.name()
            )));
        }
        if !self.is_warned {
            self.is_warned = true;
            tracing::warn!(
                "{} was moved away while it is followed: reading continues in it, and then in the file that replaces it",
                log.name()
            );
        }
        Ok(())
    }
}

fn lock_log(log: &Mutex<FileLog>) -> MutexGuard<'_, FileLog> {
    log.lock()
}

impl Partition for FilePartition {
    fn poll(
        &mut self,
        limit: usize,
        until: u64,
        handler: &mut dyn RecordHandler,
    ) -> Result<PollResult, SourceError> {
        if self.has_ended {
            return Ok(PollResult { records: 0, next: NextPoll::EndOfLog });
        }
        self.is_at_end = false;
        let polled = self.poll_records(limit, until, handler)?;
        let is_at_end = self.is_at_end;
        if let Some(reader) = &mut self.reader
            && reader.records > 0
        {
            for warning in reader.warnings(is_at_end) {
                tracing::warn!(file = %reader.path.display(), "{warning}");
            }
        }
        if let Some(before) = self.reader.as_mut().and_then(FileReader::fingerprint) {
            self.last_fingerprint = Some(before);
        }
        Ok(polled)
    }

    fn end(&self) -> u64 {
        if self.is_at_end { self.position() } else { u64::MAX }
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        self.last_fingerprint
    }
}
