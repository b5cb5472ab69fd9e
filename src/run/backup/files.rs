//! The small files of a data directory that a backup includes: generations, dead letters, positions
//! of generators, and the record of the files that a log was read from.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path};

/// Bytes of a file in one object.
const PIECE_BYTES: u64 = 32 << 20;
/// How often files may be renamed while they are opened.
const OPEN_ATTEMPTS: usize = 20;
const FOLDERS: [&str; 2] = ["feeds", "files"];

/// Open files, by their names in the data directory. A file that is renamed afterwards can still be
/// read.
pub(super) struct OpenFiles(BTreeMap<String, File>);

/// Whether a backup includes a file.
fn is_wanted(name: &str) -> bool {
    name.starts_with("generation-") && !name.ends_with(".new") || name.starts_with("dead-letters")
}

/// Whether a name in a backup is one that a backup may include, so that nothing is written
/// elsewhere.
pub(super) fn is_allowed(name: &str) -> bool {
    let parts: Vec<_> = Path::new(name).components().collect();
    match &parts[..] {
        [Component::Normal(file)] => file.to_str().is_some_and(is_wanted),
        [Component::Normal(folder), Component::Normal(_)] => FOLDERS.iter().any(|known| folder == known),
        _ => false,
    }
}

impl OpenFiles {
    pub(super) fn open(data_dir: &Path) -> io::Result<OpenFiles> {
        let mut names = file_names(data_dir)?;
        for _ in 0..OPEN_ATTEMPTS {
            let mut files = BTreeMap::new();
            for name in &names {
                match File::open(data_dir.join(name)) {
                    Ok(file) => drop(files.insert(name.clone(), file)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            let again = self::file_names(data_dir)?;
            if again == names && files.len() == names.len() {
                return Ok(OpenFiles(files));
            }
            names = again;
        }
        Err(io::Error::other("its files were renamed during each of several attempts: try again"))
    }

    /// Passes the files to `each` in pieces. A line file's last line is left out if it is
    /// incomplete.
    pub(super) fn each_piece<E: From<io::Error>>(
        self,
        mut each: impl FnMut(&str, Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (name, file) in self.0 {
            let length = match holds_lines(&name) {
                true => length_of_complete_lines(&file)?,
                false => file.metadata()?.len(),
            };
            let mut bytes = file.take(length);
            loop {
                let mut piece = Vec::new();
                bytes.by_ref().take(PIECE_BYTES).read_to_end(&mut piece)?;
                let is_last = (piece.len() as u64) < PIECE_BYTES;
                each(&name, piece)?;
                if is_last {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn file_names(data_dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let root = [(data_dir.to_path_buf(), String::new())];
    let folders = FOLDERS.map(|folder| (data_dir.join(folder), format!("{folder}/")));
    for (folder, prefix) in root.into_iter().chain(folders) {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else {
                continue;
            };
            let is_file = entry.file_type()?.is_file();
            // Temporary files of generators have other names and are left out.
            if is_file
                && is_allowed(&name)
                && (prefix.is_empty() || name.ends_with(".json") || name.ends_with(".jsonl"))
            {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

fn holds_lines(name: &str) -> bool {
    name.ends_with(".jsonl") || name.ends_with(".sent")
}

/// The length of a file up to the end of its last complete line.
fn length_of_complete_lines(file: &File) -> io::Result<u64> {
    use std::os::unix::fs::FileExt as _;
    let mut end = file.metadata()?.len();
    let mut buffer = [0; 8192];
    while end > 0 {
        let from = end.saturating_sub(buffer.len() as u64);
        let part = &mut buffer[..(end - from) as usize];
        file.read_exact_at(part, from)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(from + at as u64 + 1);
        }
        end = from;
    }
    Ok(0)
}
