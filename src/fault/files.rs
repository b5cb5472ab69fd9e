//! Files that are opened and read without blocking, even if a pipe, a device or a socket has their
//! name.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// The most bytes that [`read_small_file`] reads: files of a data directory with a few lines have
/// far fewer.
const MAX_SMALL_FILE_BYTES: u64 = 16 << 20;

/// The cause inside the [`io::Error`] of a path that is not a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is a pipe, a device or a socket, not a file: move it away")]
pub struct NotRegularFile;

impl NotRegularFile {
    pub fn is_cause_of(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<NotRegularFile>())
    }
}

/// Opens a regular file for reading. Opening a pipe would wait for its writer, and reading a device
/// may never end, so both are errors.
pub fn open_regular_file(path: &Path) -> io::Result<File> {
    let without_waiting = OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = File::options().read(true).custom_flags(without_waiting.bits().cast_signed()).open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        // The error of opening a socket.
        Some(Errno::NXIO) => io::Error::other(NotRegularFile),
        _ => error,
    })?;
    check_regular_file(&file)?;
    Ok(file)
}

/// Refuses folders, pipes, devices and sockets.
pub fn check_regular_file(file: &File) -> io::Result<()> {
    let kind = file.metadata()?.file_type();
    match () {
        () if kind.is_file() => Ok(()),
        () if kind.is_dir() => Err(Errno::ISDIR.into()),
        () => Err(io::Error::other(NotRegularFile)),
    }
}

/// Reads a whole file of at most 16 MiB.
pub fn read_small_file(path: &Path) -> io::Result<Vec<u8>> {
    read_limited(path, MAX_SMALL_FILE_BYTES)
}

/// [`read_small_file`] of a file that holds UTF-8.
pub fn read_small_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_small_file(path)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular_file(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let line = format!("it is longer than {limit} bytes, so it is not the expected file");
        return Err(io::Error::new(io::ErrorKind::InvalidData, line));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_small_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _listens = UnixListener::bind(at("socket")).unwrap();
        for path in [at("pipe"), at("socket"), "/dev/zero".into(), "/dev/null".into()] {
            let error = read_small_file(&path).unwrap_err();
            assert!(NotRegularFile::is_cause_of(&error), "{}: {error}", path.display());
        }
        let errno = |path: &Path| Errno::from_io_error(&read_small_file(path).unwrap_err());
        assert_eq!(errno(dir.path()), Some(Errno::ISDIR));
        assert_eq!(errno(&at("missing")), Some(Errno::NOENT));
        fs::write(at("file"), "four").unwrap();
        assert_eq!(read_limited(&at("file"), 4).unwrap(), b"four");
        assert_eq!(read_limited(&at("file"), 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read_small_text(&at("file")).unwrap(), "four");
        // A sparse file takes no disk space, and would take all memory if it were read.
        File::options().write(true).open(at("file")).unwrap().set_len(1 << 40).unwrap();
        assert!(read_small_file(&at("file")).unwrap_err().to_string().contains("is longer than"));
    }
}
