//! A file that is read while it grows. The bytes already read must not change: that is checked
//! before more records are delivered.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
use xxhash_rust::xxh3::xxh3_64;

/// How many bytes at the beginning and the end of what was read are compared each time the file has
/// changed. A start compares all of it.
const COMPARED_HEAD_BYTES: usize = 4 * 1024;
const COMPARED_TAIL_BYTES: usize = 64 * 1024;

/// How the bytes already read have changed; inside an [`io::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RewriteError {
    #[error("was truncated")]
    Truncated,
    #[error("was rewritten")]
    Rewritten,
}

impl RewriteError {
    /// Extracts such an error from an I/O error.
    pub(super) fn from_io_error(error: &io::Error) -> Option<RewriteError> {
        error.get_ref().and_then(|inner| inner.downcast_ref()).copied()
    }
}

impl From<RewriteError> for io::Error {
    fn from(rewritten: RewriteError) -> io::Error {
        // This kind of error is not used for damage or for transient faults.
        io::Error::new(io::ErrorKind::StaleNetworkFileHandle, rewritten)
    }
}

pub(super) struct GrowingFile {
    file: Arc<File>,
    extent: Mutex<ComparedExtent>,
    /// The file no longer grows: its end is the end of the log.
    is_complete: AtomicBool,
}

/// The part of the file that was read.
#[derive(Default)]
struct ComparedExtent {
    offset: u64,
    /// Digests of its first and of its last bytes.
    head_digest: u64,
    tail_digest: u64,
    /// Size and times of the file at the last comparison.
    file_stamp: Option<FileStamp>,
}

type FileStamp = (u64, (i64, i64), (i64, i64));

fn file_stamp(metadata: &Metadata) -> FileStamp {
    let (modified, changed) =
        ((metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec()));
    (metadata.len(), modified, changed)
}

impl GrowingFile {
    pub(super) fn new(file: Arc<File>) -> GrowingFile {
        GrowingFile { file, extent: Mutex::default(), is_complete: AtomicBool::new(false) }
    }

    /// Treats the end of the file as the end of its records from now on.
    pub(super) fn stop_following(&self) {
        self.is_complete.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Relaxed)
    }

    /// The number of bytes that were read.
    pub(super) fn offset(&self) -> u64 {
        self.lock().offset
    }

    /// Checks that the bytes already read are unchanged, if the file has changed at all.
    pub(super) fn check_unchanged(&self) -> io::Result<()> {
        let mut extent = self.lock();
        let metadata = self.file.metadata()?;
        if metadata.len() < extent.offset {
            return Err(RewriteError::Truncated.into());
        }
        if extent.file_stamp != Some(file_stamp(&metadata)) {
            self.compare_tail(&extent)?;
            extent.file_stamp = Some(file_stamp(&metadata));
        }
        Ok(())
    }

    fn read_more(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut extent = self.lock();
        let read = self.file.read_at(buffer, extent.offset)?;
        if read == 0 {
            return if self.is_complete() || buffer.is_empty() {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        // Compare after the new bytes were read, so that they are known to follow the compared
        // ones.
        let last = self.compare_tail(&extent)?;
        let (before, new) = (last.len(), &buffer[..read]);
        let kept_bytes = before.min(COMPARED_TAIL_BYTES.saturating_sub(read));
        let mut bytes = last;
        if extent.offset < COMPARED_HEAD_BYTES as u64 {
            // All of it is still within the last bytes.
            let first = new.len().min(COMPARED_HEAD_BYTES - before);
            extent.head_digest = xxh3_64(&[&bytes[..], &new[..first]].concat());
        }
        bytes.drain(..before - kept_bytes);
        bytes.extend_from_slice(&new[read - read.min(COMPARED_TAIL_BYTES)..]);
        extent.tail_digest = xxh3_64(&bytes);
        extent.offset += read as u64;
        Ok(read)
    }

    /// Reads the last bytes of the read part again, and checks that they are unchanged.
    fn compare_tail(&self, extent: &ComparedExtent) -> io::Result<Vec<u8>> {
        let bytes = |from: u64, length: u64| {
            let mut bytes = vec![0; length as usize];
            match self.file.read_exact_at(&mut bytes, from) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Err(RewriteError::Truncated.into())
                }
                read => read.map(|()| bytes),
            }
        };
        let length = extent.offset.min(COMPARED_TAIL_BYTES as u64);
        let last = bytes(extent.offset - length, length)?;
        let first_fits =
            || Ok::<_, io::Error>(xxh3_64(&bytes(0, COMPARED_HEAD_BYTES as u64)?) == extent.head_digest);
        if extent.offset > 0
            && (xxh3_64(&last) != extent.tail_digest || (extent.offset > length && !first_fits()?))
        {
            return Err(RewriteError::Rewritten.into());
        }
        Ok(last)
    }

    fn lock(&self) -> MutexGuard<'_, ComparedExtent> {
        self.extent.lock()
    }
}

/// Reads a growing file; at its end it reports that more may come.
pub(super) struct GrowingFileReader(pub Arc<GrowingFile>);

impl Read for GrowingFileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_more(buffer)
    }
}

/// Reads a file from its beginning, independently of other readers.
pub(super) struct FileBytes {
    pub file: Arc<File>,
    pub offset: u64,
    /// At the end, report that more may come.
    pub may_grow: bool,
}

impl Read for FileBytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        if read == 0 && self.may_grow && !buffer.is_empty() {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(read)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn followed(path: &std::path::Path) -> GrowingFileReader {
        GrowingFileReader(Arc::new(GrowingFile::new(Arc::new(File::open(path).unwrap()))))
    }

    /// Reads everything that is available now.
    fn read(reader: &mut GrowingFileReader, size: usize) -> io::Result<Vec<u8>> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; size]);
        loop {
            match reader.read(&mut buffer) {
                Ok(read) => all.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(all),
                Err(error) => return Err(error),
            }
        }
    }

    #[test]
    fn followed_file_is_verified_before_new_bytes_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let text: Vec<u8> = (0..900_000u32).map(|at| (at / 7) as u8 ^ (at % 251) as u8).collect();
        for (size, piece) in [(7, 900), (1000, 5), (4096, 3000), (100_000, 70_000), (700_000, 200_000)] {
            for changed in [None, Some(0), Some(COMPARED_HEAD_BYTES - 1), Some(usize::MAX)] {
                fs::write(&path, "").unwrap();
                let mut reader = followed(&path);
                let mut length = 0;
                for _ in 0..4 {
                    length += piece;
                    fs::write(&path, &text[..length]).unwrap();
                    assert_eq!(read(&mut reader, size).unwrap(), text[length - piece..length]);
                    reader.0.check_unchanged().unwrap();
                }
                let mut longer = text[..length + 1].to_vec();
                if let Some(at) = changed {
                    longer[at.min(length - 1)] ^= 1;
                }
                fs::write(&path, longer).unwrap();
                let result = read(&mut reader, size);
                match changed {
                    None => assert_eq!(result.unwrap(), text[length..=length]),
                    Some(_) => {
                        assert_eq!(
                            RewriteError::from_io_error(&result.unwrap_err()),
                            Some(RewriteError::Rewritten)
                        );
                        assert_eq!(
                            RewriteError::from_io_error(&reader.0.check_unchanged().unwrap_err()),
                            Some(RewriteError::Rewritten)
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn truncated_followed_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "abc").unwrap();
        let mut reader = followed(&path);
        assert_eq!(read(&mut reader, 10).unwrap(), b"abc");
        fs::write(&path, "ab").unwrap();
        assert_eq!(
            RewriteError::from_io_error(&reader.0.check_unchanged().unwrap_err()),
            Some(RewriteError::Truncated)
        );
        // A file rewritten with the same bytes counts as unchanged.
        fs::write(&path, "abc").unwrap();
        reader.0.check_unchanged().unwrap();
        reader.0.stop_following();
        assert_eq!((reader.read(&mut [0; 9]).unwrap(), reader.0.offset()), (0, 3));
    }
}
