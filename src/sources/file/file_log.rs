//! The files of a log in order: finds the file of a position, and the file that follows it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::history::{FileEnd, FileHistory, KnownFile};
use super::log_files::{LogFile, log_files};
use super::reader::{FileReader, ReadPlan, would_block};
use crate::codec::{Compression, DecodeError};
use crate::model::LogPosition;
use crate::sources::SourceError;

pub(super) struct FileLog {
    pub path: PathBuf,
    compression: Compression,
    plan: ReadPlan,
    pub history: FileHistory,
    /// A verified reader, at the lowest position that was checked.
    compared_reader: Option<FileReader>,
    /// A partition reader is open and does its own checks.
    is_open: bool,
}

/// The result of a search for a position in a file.
enum SeekOutcome {
    Found(Box<FileReader>),
    /// The file has fewer records: it ends at this position.
    EndsBefore(u64),
    Differs,
    /// The file cannot be read up to the position.
    Unreadable(String),
}

impl FileLog {
    pub(super) fn new(
        path: PathBuf,
        compression: Compression,
        plan: ReadPlan,
        history: FileHistory,
    ) -> FileLog {
        FileLog { path, compression, plan, history, compared_reader: None, is_open: false }
    }

    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    pub(super) fn is_followed(&self) -> bool {
        self.plan.follow
    }

    /// Compares the whole file of the record before a position, up to that record.
    pub(super) fn check_position(&mut self, at: LogPosition) -> Result<(), SourceError> {
        if self.is_open || at.position == 0 {
            return Ok(());
        }
        let reader = self.find_position(at)?;
        if self.compared_reader.as_ref().is_none_or(|compared| reader.position() < compared.position()) {
            self.compared_reader = Some(reader);
        }
        Ok(())
    }

    /// Opens a reader whose next record is at a position; `None` while a followed file does not
    /// have its header yet.
    pub(super) fn open_reader(&mut self, position: u64) -> Result<Option<FileReader>, SourceError> {
        self.is_open = true;
        if let Some(reader) = self.compared_reader.take().filter(|compared| compared.position() == position) {
            return Ok(Some(reader));
        }
        match position {
            0 => self.open_first_file(),
            position => self.find_position(position.into()).map(Some),
        }
    }

    /// Opens the file of the first record.
    fn open_first_file(&mut self) -> Result<Option<FileReader>, SourceError> {
        while let Some(first) = self.history.first_file().filter(|first| first.begin > 0) {
            self.add_file_before(first)?;
        }
        if let Some(first) = self.history.file_beginning_at(0) {
            return self.open_known_file(&first).map(Some);
        }
        match FileReader::open(&LogFile::current(&self.path, self.compression), &self.plan, 0) {
            Err(error) if would_block(&error) => Ok(None),
            opened => opened.map(Some).map_err(|error| self.unreadable_error(&error)),
        }
    }

    /// Opens a reader after the records before a position: in their file, or at the beginning of
    /// the next one.
    fn find_position(&mut self, at: LogPosition) -> Result<FileReader, SourceError> {
        let LogPosition { position, before } = at;
        let holding_file = self.history.file_holding_record_before(position);
        if let (Some(holding_file), Some(next)) = (holding_file, self.history.file_beginning_at(position))
            && let Some(FileEnd { digest, .. }) = holding_file.end
        {
            // The position is the end of a known file: its recorded digest is enough.
            return match before.is_none_or(|before| before.digest == digest) {
                true => self.open_known_file(&next),
                false => Err(self.record_differs_error(position)),
            };
        }
        let mut ends = None;
        for file in self.newest_first()? {
            let begin = holding_file.map_or(0, |holding_file| holding_file.begin);
            if holding_file.is_none() && !file.is_current() {
                continue;
            }
            let Some(reader) =
                self.open_candidate(&file, begin, holding_file.map(|holding_file| holding_file.head))?
            else {
                continue;
            };
            match seek_to(reader, &file, at) {
                SeekOutcome::Found(reader) => return Ok(*reader),
                SeekOutcome::EndsBefore(end) => ends = Some(end),
                SeekOutcome::Differs => {}
                SeekOutcome::Unreadable(why) => {
                    tracing::warn!(file = %file.path.display(), "the file is skipped in the search for the next one of the log, because it cannot be read: {why}")
                }
            }
        }
        if let Some(before) = before
            && let Some(reader) = self.find_by_digest(position, before.digest)?
        {
            return Ok(reader);
        }
        match ends {
            Some(end) => Err(self.ends_before_error(end, position)),
            None => Err(self.record_differs_error(position)),
        }
    }

    /// Searches all files for the record before a position, by its digest. Returns the first match.
    fn find_by_digest(&mut self, position: u64, digest: u64) -> Result<Option<FileReader>, SourceError> {
        for file in self.newest_first()? {
            let Some(mut reader) = self.open_candidate(&file, 0, None)? else { continue };
            while reader.records < position && matches!(skip_record(&mut reader, &file), Ok(true)) {
                if reader.digest() == digest {
                    reader.begin = position - reader.records;
                    if let Some(head) = reader.head.filter(|_| self.history.first_file().is_none()) {
                        // In memory only, until one of its records is delivered.
                        let (begin, end, is_kept) = (reader.begin, None, false);
                        self.history.prepend_file(KnownFile { begin, head, end, is_persisted: is_kept });
                    }
                    return Ok(Some(reader));
                }
            }
        }
        Ok(None)
    }

    /// Adds the file before the first known one, according to the files' names.
    fn add_file_before(&mut self, first: KnownFile) -> Result<(), SourceError> {
        let files = self.list_files()?;
        let missing_files_error = || {
            SourceError::Fatal(format!(
                "{}: the files of the log from position 0 to {} are missing: restore them to its folder, or begin anew with another data directory",
                self.name(),
                first.begin
            ))
        };
        let mut own_index = None;
        for (at, file) in files.iter().enumerate() {
            if self.open_candidate(file, 0, Some(first.head))?.is_some() {
                own_index = Some(at);
            }
        }
        let before = own_index.map(|own_index| {
            files[..own_index].iter().rev().find(|file| file.rank < files[own_index].rank && file.is_ranked())
        });
        let Some(before) = before.flatten() else { return Err(missing_files_error()) };
        let mut reader =
            FileReader::open(before, &self.plan, 0).map_err(|error| self.unreadable_error(&error))?;
        while skip_record(&mut reader, before).map_err(|error| self.unreadable_error(&error))? {}
        let begin = first.begin.checked_sub(reader.records).ok_or_else(missing_files_error)?;
        let Some(head) = reader.head else { return Err(missing_files_error()) };
        let end = Some(FileEnd { records: reader.records, digest: reader.digest() });
        self.history.prepend_file(KnownFile { begin, head, end, is_persisted: false });
        Ok(())
    }

    /// Opens a known file at its beginning.
    pub(super) fn open_known_file(&self, known_file: &KnownFile) -> Result<FileReader, SourceError> {
        for file in self.newest_first()? {
            if let Some(reader) = self.open_candidate(&file, known_file.begin, Some(known_file.head))? {
                return Ok(reader);
            }
        }
        Err(SourceError::Fatal(format!(
            "{}: the file that held the log from position {} is missing, also under the names of rotated files: restore it, or begin anew with another data directory",
            self.name(),
            known_file.begin
        )))
    }

    /// Finds the first file after the one that is read, if it has a record.
    pub(super) fn find_next_file(&self, reader: &FileReader) -> Result<Option<LogFile>, SourceError> {
        let files = self.list_files()?;
        let own_rank = self.find_file_of_reader(&files, reader)?.map(|index| files[index].rank.clone());
        let modified = reader.shared_file().metadata().map_err(|error| self.transient_error(&error))?.mtime();
        let is_later = |file: &LogFile| match &own_rank {
            Some(own_rank) => file.rank > *own_rank,
            // The file itself was removed. Files that existed before it are older.
            None => file.is_current() || fs::metadata(&file.path).is_ok_and(|it| it.mtime() > modified),
        };
        for file in files.into_iter().filter(|file| file.is_ranked() && is_later(file)) {
            let opened = self.open_candidate(&file, 0, None)?;
            let head = opened.map_or(Ok(None), |opened| opened.find_head_digest());
            if head.map_err(|error| unreadable_error(&file.path.display().to_string(), &error))?.is_some() {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// Whether the file that is read exists under another name.
    pub(super) fn is_rotated(&self, reader: &FileReader) -> Result<bool, SourceError> {
        let files = self.list_files()?;
        Ok(self.find_file_of_reader(&files, reader)?.is_some_and(|index| !files[index].is_current()))
    }

    fn find_file_of_reader(
        &self,
        files: &[LogFile],
        reader: &FileReader,
    ) -> Result<Option<usize>, SourceError> {
        if let Some(index) = files.iter().position(|file| file_id(file) == Some(reader.file_id)) {
            return Ok(Some(index));
        }
        // It may have been compressed.
        let Some(head) = reader.head else { return Ok(None) };
        for (index, file) in
            files.iter().enumerate().rev().filter(|(_, file)| file.compression != Compression::None)
        {
            if self.open_candidate(file, 0, Some(head))?.is_some() {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Opens the file that has the log's name now, at the position of a reader, if it has the same
    /// records up to there.
    pub(super) fn open_replacement(
        &self,
        reader: &mut FileReader,
    ) -> Result<Option<FileReader>, SourceError> {
        let current = LogFile::current(&self.path, self.compression);
        let Some(other) = self.open_candidate(&current, reader.begin, reader.head)? else { return Ok(None) };
        let at = LogPosition { position: reader.position(), before: reader.fingerprint() };
        match seek_to(other, &current, at) {
            SeekOutcome::Found(same) => Ok(Some(*same)),
            _ => Ok(None),
        }
    }

    /// Whether the file that has the log's name now begins with the same record as a reader's file.
    pub(super) fn begins_with_same_record(&self, reader: &FileReader) -> Result<bool, SourceError> {
        let current = LogFile::current(&self.path, self.compression);
        Ok(reader.head.is_some() && self.open_candidate(&current, 0, reader.head)?.is_some())
    }

    /// Whether the file that has the log's name now has a record.
    pub(super) fn current_has_record(&self) -> Result<bool, SourceError> {
        let current = LogFile::current(&self.path, self.compression);
        let Some(reader) = self.open_candidate(&current, 0, None)? else { return Ok(false) };
        Ok(reader.find_head_digest().map_err(|error| self.unreadable_error(&error))?.is_some())
    }

    /// Opens the next file, if it already has its header.
    pub(super) fn open_next_file(
        &self,
        file: &LogFile,
        begin: u64,
    ) -> Result<Option<FileReader>, SourceError> {
        match FileReader::open(file, &self.plan, begin) {
            Err(error) if would_block(&error) => Ok(None),
            // It has been renamed in the meantime.
            Err(DecodeError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => {
                opened.map(Some).map_err(|error| unreadable_error(&file.path.display().to_string(), &error))
            }
        }
    }

    /// Opens a file, if it can be read and its first record has the digest `head`.
    fn open_candidate(
        &self,
        file: &LogFile,
        begin: u64,
        head: Option<u64>,
    ) -> Result<Option<FileReader>, SourceError> {
        let opened = FileReader::open(file, &self.plan, begin).and_then(|reader| {
            let fits = head.is_none() || reader.find_head_digest()? == head;
            Ok(fits.then_some(reader))
        });
        match opened {
            Ok(reader) => Ok(reader),
            // An unreadable file under another name is not the one that is searched for.
            Err(error) if !file.is_current() => {
                tracing::debug!(file = %file.path.display(), %error, "an unreadable file is not counted as part of the log");
                Ok(None)
            }
            Err(DecodeError::Io(error)) if is_missing(&error) => Ok(None),
            Err(error) => Err(self.unreadable_error(&error)),
        }
    }

    /// Lists all files, the newest first; of two with the same name, the uncompressed one first.
    fn newest_first(&self) -> Result<Vec<LogFile>, SourceError> {
        let mut files = self.list_files()?;
        files.sort_by(|a, b| b.rank.cmp(&a.rank).then_with(|| a.path.cmp(&b.path)));
        Ok(files)
    }

    fn list_files(&self) -> Result<Vec<LogFile>, SourceError> {
        log_files(&self.path, self.compression).map_err(|error| self.transient_error(&error))
    }

    fn transient_error(&self, error: &io::Error) -> SourceError {
        SourceError::Transient(format!("{}: {error}", self.name()))
    }

    pub(super) fn unreadable_error(&self, error: &DecodeError) -> SourceError {
        unreadable_error(&self.name(), error)
    }

    pub(super) fn ends_before_error(&self, end: u64, position: u64) -> SourceError {
        SourceError::EndsBefore(format!(
            "{} has {end} records, but {position} were read from it earlier: restore it, or begin anew with another data directory",
            self.name()
        ))
    }

    pub(super) fn record_differs_error(&self, position: u64) -> SourceError {
        SourceError::RecordDiffers(format!(
            "{} is not the file that was read: its content before record {position} differs, and no rotated file beside it has that content, so it was rewritten or replaced: restore it, or begin anew with another data directory",
            self.name()
        ))
    }
}

fn unreadable_error(name: &str, error: &DecodeError) -> SourceError {
    SourceError::Fatal(format!("{name} {error}"))
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock)
}

fn file_id(file: &LogFile) -> Option<(u64, u64)> {
    fs::metadata(&file.path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Skips a record. In a rotated file, the rest without a line end is a record, too.
fn skip_record(reader: &mut FileReader, file: &LogFile) -> Result<bool, DecodeError> {
    match reader.skip_record() {
        Err(error) if would_block(&error) && !file.is_current() => {
            reader.stop_following();
            reader.skip_record()
        }
        Err(error) if would_block(&error) => Ok(false),
        skipped => skipped,
    }
}

/// Skips to a position and compares the digest before it.
fn seek_to(mut reader: FileReader, file: &LogFile, at: LogPosition) -> SeekOutcome {
    while reader.position() < at.position {
        match skip_record(&mut reader, file) {
            Ok(true) => {}
            Ok(false) => return SeekOutcome::EndsBefore(reader.position()),
            Err(error) => return SeekOutcome::Unreadable(error.to_string()),
        }
    }
    match at.before.is_none_or(|before| reader.digest() == before.digest) {
        true => SeekOutcome::Found(Box::new(reader)),
        false => SeekOutcome::Differs,
    }
}
