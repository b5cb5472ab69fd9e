//! File permissions of the data that a run writes.

use std::fs::{self, Metadata};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use rustix::fs::Mode;

use crate::config::DataDirMode;

/// The depth, and the number of entries, up to which existing files are checked.
const MAX_DEPTH: usize = 6;
const MAX_ENTRIES: usize = 10_000;
const SHARE_INTERVAL: Duration = Duration::from_secs(10);

/// Restricts the permissions of new files for the whole process: the storage engine of the journal
/// and of checkpoints creates files itself, so there is no other place to set them.
pub fn restrict_new_files(mode: DataDirMode) {
    rustix::process::umask(Mode::from_bits_retain(denied_bits(mode)));
}

/// Gives the group access to files that the journal's storage engine creates for its user only, in
/// spite of the umask: now, every few seconds until the returned value is dropped, and at that
/// moment.
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
        // Without the thread, permissions are set at the end only.
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
        let group_bits = if metadata.is_dir() { 0o050 } else { 0o040 };
        if mode & group_bits != group_bits && !metadata.is_symlink() {
            // The file may be gone by now.
            let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode | group_bits));
        }
    });
}

/// Permission bits that the mode denies.
fn denied_bits(mode: DataDirMode) -> u32 {
    match mode {
        DataDirMode::Private => 0o077,
        DataDirMode::Group => 0o027,
    }
}

/// Warns if an entry of a folder is more readable than the mode allows: older versions or a person
/// may have changed it.
pub fn warn_where_open(folder: &Path, mode: DataDirMode) {
    if let Some((example, count)) = find_open(folder, denied_bits(mode)) {
        let (folder, others) = (folder.display(), if mode == DataDirMode::Private { "go" } else { "o" });
        tracing::warn!(
            entries = count, example = %example.display(),
            "other users can read or change the files in {folder}: run `chmod -R {others}-rwx {folder}`, or see data_dir_mode"
        );
    }
}

/// The first entry that is too open, the folder itself before its content, and the number of such
/// entries.
fn find_open(folder: &Path, closed: u32) -> Option<(PathBuf, usize)> {
    let mut open_entries: Option<(PathBuf, usize)> = None;
    each_entry(folder, &mut |path, metadata| {
        if !metadata.is_symlink() && metadata.permissions().mode() & closed != 0 {
            open_entries.get_or_insert_with(|| (path.to_path_buf(), 0)).1 += 1;
        }
    });
    open_entries
}

fn each_entry(folder: &Path, each: &mut dyn FnMut(&Path, &Metadata)) {
    let mut waiting = vec![(folder.to_path_buf(), 0)];
    let mut count = 0;
    while let Some((path, depth)) = waiting.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        count += 1;
        each(&path, &metadata);
        if metadata.is_dir() && depth < MAX_DEPTH && count < MAX_ENTRIES {
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
