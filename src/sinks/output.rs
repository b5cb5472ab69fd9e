//! Files that appear under their name only once they are whole.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempPath;

/// A file being written. It is beside its final place under a temporary name, which goes away if it is dropped; what is not a
/// regular file, such as a pipe or `/dev/null`, is written in place.
#[derive(Debug)]
pub struct OutputFile {
    file: File,
    place: Option<(TempPath, PathBuf)>,
}

impl OutputFile {
    pub fn create(path: &Path) -> io::Result<OutputFile> {
        if path.exists() && !path.is_file() {
            let file = File::options().write(true).open(path)?;
            return Ok(OutputFile { file, place: None });
        }
        // A link stays a link: what it points to is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut temporary = tempfile::Builder::new();
        temporary.prefix(".swelter-").permissions(Permissions::from_mode(0o666));
        let (file, temporary) = temporary.tempfile_in(folder)?.into_parts();
        Ok(OutputFile { file, place: Some((temporary, path)) })
    }

    /// Where the bytes go.
    pub fn writer(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(Box::new(self.file.try_clone()?))
    }

    /// Gives the file its name, with all that was written on disk.
    pub fn commit(self) -> io::Result<()> {
        let Some((temporary, path)) = self.place else { return Ok(()) };
        self.file.sync_all()?;
        temporary.persist(path).map_err(|error| error.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
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
    fn what_is_not_a_file_is_written_in_place() {
        let output = OutputFile::create(Path::new("/dev/null")).unwrap();
        output.writer().unwrap().write_all(b"gone").unwrap();
        output.commit().unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
