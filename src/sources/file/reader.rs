//! One file of a log, read from its beginning.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::growing::{FileBytes, GrowingFile, GrowingFileReader};
use super::names::LogFile;
use crate::codec::{Compression, DecodeError, DecodeSettings, Decoder, Format};
use crate::model::{Fingerprint, Refusal, Upsert};

/// How the files of a log are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadPlan {
    pub format: Format,
    pub settings: DecodeSettings,
    pub follow: bool,
}

/// Which file it is, on this system, at this time.
pub(super) type FileNumber = (u64, u64);

pub(super) struct FileReader {
    /// As it was called when it was opened.
    pub path: PathBuf,
    file: Arc<File>,
    pub number: FileNumber,
    /// What is no regular file, such as a pipe, is read once and cannot be compared.
    pub is_regular: bool,
    plan: ReadPlan,
    compression: Compression,
    decoder: Decoder,
    followed: Option<Arc<GrowingFile>>,
    /// The position in the log of its first record.
    pub begin: u64,
    /// Those that were read or skipped.
    pub records: u64,
    /// The digest up to the end of the first record, once that is known.
    pub head: Option<u64>,
}

impl FileReader {
    /// Opens it and reads what it says of its columns.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if a file that is followed does not say that yet.
    pub(super) fn open(file: &LogFile, plan: ReadPlan, begin: u64) -> Result<FileReader, DecodeError> {
        let LogFile { path, compression, .. } = file.clone();
        let file = Arc::new(File::open(&path)?);
        let metadata = file.metadata()?;
        let (number, is_regular) = ((metadata.dev(), metadata.ino()), metadata.is_file());
        let is_followed = plan.follow && is_regular && compression == Compression::None;
        let followed = is_followed.then(|| Arc::new(GrowingFile::new(Arc::clone(&file))));
        let reader: Box<dyn Read + Send> = match &followed {
            Some(followed) => Box::new(GrowingFileReader(Arc::clone(followed))),
            None if is_regular => Box::new(FileBytes { file: Arc::clone(&file), offset: 0, may_grow: false }),
            None => Box::new(file.try_clone()?),
        };
        let decoder = Decoder::with_digest(reader, plan.format, compression, plan.settings)?;
        let (records, head) = (0, None);
        Ok(FileReader {
            path,
            file,
            number,
            is_regular,
            plan,
            compression,
            decoder,
            followed,
            begin,
            records,
            head,
        })
    }

    /// Of the next record.
    pub(super) fn position(&self) -> u64 {
        self.begin + self.records
    }

    pub(super) fn next(&mut self) -> Result<Option<Result<Upsert<'_>, Refusal>>, DecodeError> {
        let next = self.decoder.next()?;
        self.records += u64::from(next.is_some());
        Ok(next)
    }

    /// Goes over the next record: false at the end.
    pub(super) fn skip(&mut self) -> Result<bool, DecodeError> {
        let skipped = self.decoder.skip()?;
        self.records += u64::from(skipped);
        if self.records == 1 && self.head.is_none() {
            self.head = self.decoder.digest();
        }
        Ok(skipped)
    }

    pub(super) fn raw(&mut self) -> Cow<'_, [u8]> {
        self.decoder.raw()
    }

    /// Of the file up to the end of the last record.
    pub(super) fn digest(&mut self) -> u64 {
        self.decoder.digest().unwrap_or_default()
    }

    /// What lies before the position; nothing before the first record.
    pub(super) fn fingerprint(&mut self) -> Option<Fingerprint> {
        let position = self.position().checked_sub(1).filter(|_| self.records > 0)?;
        Some(Fingerprint { position, digest: self.digest(), leader_epoch: None })
    }

    /// The digest up to the end of the first record, wherever this reader is; nothing while there is no record.
    pub(super) fn find_head(&self) -> Result<Option<u64>, DecodeError> {
        if self.head.is_some() || !self.is_regular {
            return Ok(self.head);
        }
        let may_grow = self.followed.as_ref().is_some_and(|followed| !followed.is_complete());
        let bytes = Box::new(FileBytes { file: Arc::clone(&self.file), offset: 0, may_grow });
        let head = || {
            let mut decoder =
                Decoder::with_digest(bytes, self.plan.format, self.compression, self.plan.settings)?;
            Ok(if decoder.skip()? { decoder.digest() } else { None })
        };
        match head() {
            Err(error) if would_block(&error) => Ok(None),
            head => head,
        }
    }

    /// Of a file that may grow.
    pub(super) fn followed(&self) -> Option<&GrowingFile> {
        self.followed.as_deref()
    }

    /// It does not grow any more: what stands at its end without a line end is a record, too.
    pub(super) fn complete(&self) {
        if let Some(followed) = &self.followed {
            followed.complete();
        }
    }

    /// The file itself, whatever its name is by now.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }
}

pub(super) fn would_block(error: &DecodeError) -> bool {
    matches!(error, DecodeError::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}
