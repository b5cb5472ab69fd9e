//! Output files, which appear under their name only when they are complete.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempPath;

/// A file that is being written. It has a temporary name beside its destination, and is removed if
/// it is dropped. A destination that is no regular file, such as a pipe or `/dev/null`, is written
/// in place.
#[derive(Debug)]
pub struct OutputFile {
    file: File,
    destination: Option<(TempPath, PathBuf)>,
}

/// Whether the output to `path` is written in place: it is no regular file, or names an open file
/// (`/dev/fd/1`).
pub fn is_written_in_place(path: &Path) -> bool {
    path.starts_with("/dev") || path.starts_with("/proc") || (path.exists() && !path.is_file())
}

/// The file that `path` names, which need not exist. Symbolic links are followed, so that they
/// remain links.
pub fn resolve_destination(path: &Path) -> PathBuf {
    let linked = path.read_link().ok().map(|link| path.parent().unwrap_or(Path::new("")).join(link));
    let path = linked.unwrap_or_else(|| path.to_path_buf());
    path.canonicalize().unwrap_or_else(|_| match path.file_name() {
        Some(name) => parent_folder(&path)
            .canonicalize()
            .unwrap_or_else(|_| parent_folder(&path).to_path_buf())
            .join(name),
        None => path.clone(),
    })
}

fn parent_folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl OutputFile {
    pub fn create(path: &Path) -> io::Result<OutputFile> {
        if is_written_in_place(path) {
            let file = File::options().append(true).open(path)?;
            return Ok(OutputFile { file, destination: None });
        }
        if !parent_folder(path).is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its folder does not exist: make it first"));
        }
        let path = resolve_destination(path);
        let mut temporary = tempfile::Builder::new();
        temporary.prefix(".swelter-").permissions(Permissions::from_mode(0o666));
        let (file, temporary) = temporary.tempfile_in(parent_folder(&path))?.into_parts();
        if let Ok(replaced) = path.metadata() {
            file.set_permissions(replaced.permissions())?;
        }
        Ok(OutputFile { file, destination: Some((temporary, path)) })
    }

    /// A writer to the file.
    pub fn writer(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(Box::new(self.file.try_clone()?))
    }

    /// Syncs the file, and renames it to its destination.
    pub fn commit(self) -> io::Result<()> {
        let Some((temporary, path)) = self.destination else { return Ok(()) };
        self.file.sync_all()?;
        temporary.persist(path).map_err(|error| error.error)
    }
}

/// Standard output until its reader closes it. Later output is dropped, because the run has other
/// outputs to finish.
#[derive(Debug, Default)]
pub struct StandardOutput {
    is_closed: bool,
}

impl StandardOutput {
    fn until_closed<T>(&mut self, result: io::Result<T>, dropped: T) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(dropped)
            }
            result => result,
        }
    }
}

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.is_closed {
            true => Ok(bytes.len()),
            false => {
                let written = io::stdout().write(bytes);
                self.until_closed(written, bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.is_closed {
            true => Ok(()),
            false => {
                let flushed = io::stdout().flush();
                self.until_closed(flushed, ())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_file_appears_atomically() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.csv");
        let dropped = OutputFile::create(&path).unwrap();
        dropped.writer().unwrap().write_all(b"half").unwrap();
        drop(dropped);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let whole = OutputFile::create(&path).unwrap();
        whole.writer().unwrap().write_all(b"whole").unwrap();
        assert!(!path.exists());
        whole.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn symlinks_and_permissions_are_preserved() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        std::os::unix::fs::symlink("target", &link).unwrap();
        for mode in [None, Some(0o600)] {
            if let Some(mode) = mode {
                std::fs::set_permissions(&target, Permissions::from_mode(mode)).unwrap();
            }
            let output = OutputFile::create(&link).unwrap();
            output.writer().unwrap().write_all(b"whole").unwrap();
            output.commit().unwrap();
            assert!(link.is_symlink() && target.is_file());
            let now = target.metadata().unwrap().permissions().mode() & 0o777;
            assert!(mode.is_none_or(|mode| mode == now), "{now:o}");
        }
    }

    #[test]
    fn equal_paths_have_equal_destination() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["a", "./a", "b/../a"].map(|name| resolve_destination(&folder.path().join(name)));
        std::fs::create_dir(folder.path().join("b")).unwrap();
        assert_eq!(resolve_destination(&folder.path().join("b/../a")), names[0]);
        assert_eq!(names[0], names[1]);
    }

    #[test]
    fn non_regular_file_is_written_in_place() {
        let output = OutputFile::create(Path::new("/dev/null")).unwrap();
        output.writer().unwrap().write_all(b"gone").unwrap();
        output.commit().unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
