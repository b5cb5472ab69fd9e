//! One file of a log, read from its beginning.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::growing_file::{FileBytes, GrowingFile, GrowingFileReader};
use super::log_files::LogFile;
use crate::codec::{Compression, DecodeError, FileDecoder, Format, Framing, ReadOptions, ReadStatistics};
use crate::fault::{NotRegularFile, open_regular_file};
use crate::model::{Fingerprint, Refusal, Upsert};

/// Decompressed bytes that a poll reads at most: a line may be endless, and blank lines are no
/// records.
const MAX_POLL_BYTES: u64 = 4 << 20;
/// The same limit for finding the first record of another file of the log.
const MAX_HEAD_BYTES: u64 = 16 << 20;

/// After this many records it is clear whether the format options fit.
const WARN_AFTER_RECORDS: u64 = 1_000;

/// How the files of a log are read.
#[derive(Clone, Debug)]
pub(super) struct ReadPlan {
    pub format: Format,
    pub options: ReadOptions,
    pub follow: bool,
}

impl ReadPlan {
    /// The same for all files of the log, even for rotated ones that no longer grow.
    fn framing(&self) -> Framing {
        if self.follow { Framing::Line } else { Framing::Quotes }
    }
}

/// Device and inode of the file.
pub(super) type FileId = (u64, u64);

pub(super) struct FileReader {
    /// The path at which it was opened.
    pub path: PathBuf,
    file: Arc<File>,
    pub file_id: FileId,
    plan: ReadPlan,
    compression: Compression,
    decoder: FileDecoder,
    growing_file: Option<Arc<GrowingFile>>,
    /// The position in the log of its first record.
    pub begin: u64,
    /// The number of records that were read or skipped.
    pub records: u64,
    /// The digest up to the end of the first record, once it is known.
    pub head: Option<u64>,
    /// A search for that digest over several polls, and whether its file may grow.
    head_search: Option<(bool, FileDecoder)>,
    read_statistics: ReadStatistics,
    is_warned: bool,
}

impl FileReader {
    /// Opens the file and reads its header.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if a followed file does not have its header yet.
    pub(super) fn open(file: &LogFile, plan: &ReadPlan, begin: u64) -> Result<FileReader, DecodeError> {
        let LogFile { path, compression, .. } = file.clone();
        let file = Arc::new(open_regular_file(&path).map_err(|error| {
            match NotRegularFile::is_cause_of(&error) {
                true => DecodeError::NotAFile,
                false => DecodeError::Io(error),
            }
        })?);
        let metadata = file.metadata()?;
        let number = (metadata.dev(), metadata.ino());
        let is_followed = plan.follow && compression == Compression::None;
        let followed = is_followed.then(|| Arc::new(GrowingFile::new(Arc::clone(&file))));
        let reader: Box<dyn Read + Send> = match &followed {
            Some(followed) => Box::new(GrowingFileReader(Arc::clone(followed))),
            None => Box::new(FileBytes { file: Arc::clone(&file), offset: 0, may_grow: false }),
        };
        let framing = plan.framing();
        let decoder = FileDecoder::with_digest(reader, plan.format, compression, &plan.options, framing)?;
        let (records, head) = (0, None);
        Ok(FileReader {
            path,
            file,
            file_id: number,
            plan: plan.clone(),
            compression,
            decoder,
            growing_file: followed,
            begin,
            records,
            head,
            head_search: None,
            read_statistics: ReadStatistics::default(),
            is_warned: false,
        })
    }

    /// The position of the next record.
    pub(super) fn position(&self) -> u64 {
        self.begin + self.records
    }

    pub(super) fn next(&mut self) -> Result<Option<Result<Upsert<'_>, Refusal>>, DecodeError> {
        let next = self.decoder.next()?;
        self.records += u64::from(next.is_some());
        if let Some(Ok(upsert)) = &next {
            self.read_statistics.humidities.count_reading(upsert);
        }
        Ok(next)
    }

    /// Resets the limit on the bytes that one poll reads.
    pub(super) fn begin_poll(&mut self) {
        self.decoder.allow_bytes(MAX_POLL_BYTES);
        if let Some((_, search)) = &mut self.head_search {
            search.allow_bytes(MAX_POLL_BYTES);
        }
    }

    /// Whether the poll has read as many bytes as it may.
    pub(super) fn is_poll_over(&mut self) -> bool {
        self.decoder.is_allowance_exhausted()
            || self.head_search.as_mut().is_some_and(|(_, search)| search.is_allowance_exhausted())
    }

    /// Returns warnings about format options that may be wrong, once: at the end, or after enough
    /// records.
    pub(super) fn warnings(&mut self, is_at_end: bool) -> Vec<String> {
        if self.is_warned || !(is_at_end || self.records >= WARN_AFTER_RECORDS) {
            return Vec::new();
        }
        let notes = ReadStatistics { local_times: self.decoder.local_times(), ..self.read_statistics };
        let warnings = notes.warnings(&self.plan.options);
        self.is_warned = !warnings.is_empty() || self.records >= WARN_AFTER_RECORDS;
        warnings
    }

    /// Skips the next record; false at the end.
    pub(super) fn skip_record(&mut self) -> Result<bool, DecodeError> {
        let skipped = self.decoder.skip()?;
        self.records += u64::from(skipped);
        if self.records == 1 && self.head.is_none() {
            self.head = self.decoder.digest();
        }
        Ok(skipped)
    }

    pub(super) fn raw_record(&mut self) -> Cow<'_, [u8]> {
        self.decoder.raw()
    }

    /// The digest of the file up to the end of the last record.
    pub(super) fn digest(&mut self) -> u64 {
        self.decoder.digest().unwrap_or_default()
    }

    /// The fingerprint before the position; `None` before the first record.
    pub(super) fn fingerprint(&mut self) -> Option<Fingerprint> {
        let position = self.position().checked_sub(1).filter(|_| self.records > 0)?;
        Some(Fingerprint { position, digest: self.digest(), leader_epoch: None })
    }

    /// Finds the digest up to the end of the first record, independently of the reader's position.
    /// `None` while there is no record, or if the first one does not end within the limit.
    pub(super) fn find_head_digest(&self) -> Result<Option<u64>, DecodeError> {
        if self.head.is_some() {
            return Ok(self.head);
        }
        let head = || {
            let mut decoder = self.begin_decoding(self.may_grow())?;
            decoder.allow_bytes(MAX_HEAD_BYTES);
            Ok(if decoder.skip()? { decoder.digest() } else { None })
        };
        match head() {
            Err(error) if would_block(&error) => Ok(None),
            head => head,
        }
    }

    /// The same within the limit of one poll; also `None` if that was not enough.
    pub(super) fn find_head_digest_in_poll(&mut self) -> Result<Option<u64>, DecodeError> {
        let may_grow = self.may_grow();
        let mut search = match self.head_search.take() {
            Some((grows, search)) if grows == may_grow => search,
            _ => match self.begin_decoding(may_grow) {
                Err(error) if would_block(&error) => return Ok(None),
                opened => opened?,
            },
        };
        search.allow_bytes(MAX_POLL_BYTES);
        match search.skip() {
            Ok(true) => Ok(search.digest()),
            Ok(false) => Ok(None),
            Err(error) if would_block(&error) => {
                self.head_search = Some((may_grow, search));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn begin_decoding(&self, may_grow: bool) -> Result<FileDecoder, DecodeError> {
        let bytes = Box::new(FileBytes { file: Arc::clone(&self.file), offset: 0, may_grow });
        let ReadPlan { format, options, .. } = &self.plan;
        FileDecoder::with_digest(bytes, *format, self.compression, options, self.plan.framing())
    }

    pub(super) fn may_grow(&self) -> bool {
        self.growing_file.as_ref().is_some_and(|followed| !followed.is_complete())
    }

    /// The growing file, if it may grow.
    pub(super) fn growing_file(&self) -> Option<&GrowingFile> {
        self.growing_file.as_deref()
    }

    /// Treats the file as complete: the rest without a line end is a record, too.
    pub(super) fn stop_following(&self) {
        if let Some(followed) = &self.growing_file {
            followed.stop_following();
        }
    }

    /// The open file, whatever its name is now.
    pub(super) fn shared_file(&self) -> &Arc<File> {
        &self.file
    }
}

pub(super) fn would_block(error: &DecodeError) -> bool {
    matches!(error, DecodeError::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}
