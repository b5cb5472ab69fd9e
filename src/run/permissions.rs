//! Who may read what a run writes to disk.

use std::fs::{self, Metadata};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use rustix::fs::Mode;

use crate::config::DataDirMode;

/// A look at what is there goes so deep, and over so many entries.
const MAX_DEPTH: usize = 6;
const MAX_ENTRIES: usize = 10_000;
const SHARE_INTERVAL: Duration = Duration::from_secs(10);

/// From now on, what this process makes is for whom the mode says: the storage of the journal and of checkpoints makes files of its own, so
/// the process is the only place to say so.
pub fn restrict_new_files(mode: DataDirMode) {
    rustix::process::umask(Mode::from_bits_retain(denied_bits(mode)));
}

/// Opens to the group what the storage of the journal makes for its user alone, whatever the process says of new files: now, and again every
/// few seconds, until what is returned is dropped, and then.
pub fn share_with_group(folder: &Path, mode: DataDirMode) -> SharedFolder {
    let (stop, stopped) = mpsc::channel::<()>();
    let folder = folder.to_path_buf();
    if mode == DataDirMode::Group {
        let sharing = folder.clone();
        let share = move || {
            while stopped.recv_timeout(SHARE_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                share_files(&sharing);
            }
        };
        // What it would do is done at the end.
        let _ = thread::Builder::new().name("permissions".into()).spawn(share);
    }
    SharedFolder { folder, mode, _stop: stop }
}

/// See [`share_with_group`].
pub struct SharedFolder {
    folder: PathBuf,
    mode: DataDirMode,
    _stop: Sender<()>,
}

impl Drop for SharedFolder {
    fn drop(&mut self) {
        if self.mode == DataDirMode::Group {
            share_files(&self.folder);
        }
    }
}

fn share_files(folder: &Path) {
    each_entry(folder, &mut |path, metadata| {
        let mode = metadata.permissions().mode();
        let wanted = if metadata.is_dir() { 0o050 } else { 0o040 };
        if mode & wanted != wanted && !metadata.is_symlink() {
            // It may be gone by now.
            let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode | wanted));
        }
    });
}

/// What nobody else may.
fn denied_bits(mode: DataDirMode) -> u32 {
    match mode {
        DataDirMode::Private => 0o077,
        DataDirMode::Group => 0o027,
    }
}

/// Warns where something in a folder may be read by more than the mode says: older versions made it so, or a person.
pub fn warn_where_open(folder: &Path, mode: DataDirMode) {
    if let Some((example, count)) = find_open(folder, denied_bits(mode)) {
        let (folder, others) = (folder.display(), if mode == DataDirMode::Private { "go" } else { "o" });
        tracing::warn!(
            entries = count, example = %example.display(),
            "others may read or change what is in {folder}: close it with `chmod -R {others}-rwx {folder}`, or see data_dir_mode"
        );
    }
}

/// The first entry that is open, the folder itself before what is in it, and how many are.
fn find_open(folder: &Path, closed: u32) -> Option<(PathBuf, usize)> {
    let mut found: Option<(PathBuf, usize)> = None;
    each_entry(folder, &mut |path, metadata| {
        if !metadata.is_symlink() && metadata.permissions().mode() & closed != 0 {
            found.get_or_insert_with(|| (path.to_path_buf(), 0)).1 += 1;
        }
    });
    found
}

fn each_entry(folder: &Path, each: &mut dyn FnMut(&Path, &Metadata)) {
    let mut waiting = vec![(folder.to_path_buf(), 0)];
    let mut seen = 0;
    while let Some((path, depth)) = waiting.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        seen += 1;
        each(&path, &metadata);
        if metadata.is_dir() && depth < MAX_DEPTH && seen < MAX_ENTRIES {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            waiting.extend(entries.take(MAX_ENTRIES).map(|entry| (entry.path(), depth + 1)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_accessible_to_others_are_found() {
        let root = tempfile::tempdir().unwrap();
        let (folder, file) = (root.path().join("journal"), root.path().join("journal/marks"));
        fs::create_dir(&folder).unwrap();
        fs::write(&file, "").unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let found = |mode| find_open(root.path(), denied_bits(mode));
        set(root.path(), 0o700);
        set(&folder, 0o700);
        set(&file, 0o600);
        assert_eq!(found(DataDirMode::Private), None);
        set(&file, 0o640);
        assert_eq!((found(DataDirMode::Private), found(DataDirMode::Group)), (Some((file.clone(), 1)), None));
        set(&folder, 0o755);
        set(&file, 0o644);
        assert_eq!(found(DataDirMode::Group), Some((folder, 2)));
    }
}
