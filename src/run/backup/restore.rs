//! Restores a backup to a data directory.

use std::fs::{self, DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::archive::{ArchiveReader, BackupSummary, verify_archive};
use super::{BackupError, files};
use crate::checkpoint::{BlobStore, CheckpointLocation, DEFAULT_FOLDER};
use crate::sources::journal::{self, Journal, JournalCopy, JournalId, JournalPlan, ParentJournal};

/// A data directory that was restored.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreSummary {
    #[serde(flatten)]
    pub checked: BackupSummary,
    pub data_dir: String,
    pub journal_id: String,
    /// The id of the journal that was copied, if it had one.
    pub parent_id: Option<String>,
}

/// Restores a backup, or the newest one below a location, to a data directory that is empty or does
/// not exist: all of it or nothing. The restored journal has an id of its own, and its checkpoints
/// refer to that id.
pub fn restore_backup(from: &CheckpointLocation, data_dir: &Path) -> Result<RestoreSummary, BackupError> {
    refuse_existing_data(data_dir)?;
    let archive = ArchiveReader::open(from)?;
    let checked = verify_archive(&archive)?;
    let unfinished = UnfinishedMarker::begin(data_dir)?;
    let parent_id = archive.manifest.journal.id.clone();
    let journal_id = restore_journal(&archive, &unfinished.0.join("journal"))?;
    restore_files(&archive, &unfinished.0)?;
    restore_checkpoints(&archive, &unfinished.0.join(DEFAULT_FOLDER), &journal_id)?;
    unfinished.finish(data_dir)?;
    Ok(RestoreSummary { checked, data_dir: data_dir.display().to_string(), journal_id, parent_id })
}

fn refuse_existing_data(data_dir: &Path) -> Result<(), BackupError> {
    let refused = |what: &str| {
        Err(BackupError::Refused(format!(
            "{} {what}: name a folder that does not exist yet, or an empty one",
            data_dir.display()
        )))
    };
    let first = fs::read_dir(data_dir).map(|mut entries| entries.next());
    match first {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(_) => refused("is not a readable folder"),
        Ok(None) => Ok(()),
        Ok(Some(_)) => refused("is not empty"),
    }
}

/// The folder of an unfinished restore, beside its destination. Dropping it removes the folder
/// unless the restore has finished.
struct UnfinishedMarker(PathBuf);

impl UnfinishedMarker {
    fn begin(data_dir: &Path) -> Result<UnfinishedMarker, BackupError> {
        let absolute = std::path::absolute(data_dir).map_err(BackupError::io(data_dir))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(BackupError::Refused(format!(
                "{} is not the name of a folder: write the path of the data directory to make",
                data_dir.display()
            )));
        };
        fs::create_dir_all(parent).map_err(BackupError::io(parent))?;
        let path = parent.join(format!(".{}.restoring-{}", name.display(), std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).map_err(BackupError::io(&path))?;
        Ok(UnfinishedMarker(path))
    }

    fn finish(self, data_dir: &Path) -> Result<(), BackupError> {
        sync_folders(&self.0).map_err(BackupError::io(&self.0))?;
        fs::rename(&self.0, data_dir).map_err(BackupError::io(data_dir))?;
        let parent = self.0.parent().unwrap_or(Path::new("/"));
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(BackupError::io(parent))
    }
}

impl Drop for UnfinishedMarker {
    fn drop(&mut self) {
        // The folder is gone if the restore has finished.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sync_folders(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}

fn restore_journal(archive: &ArchiveReader, dir: &Path) -> Result<String, BackupError> {
    let part = &archive.manifest.journal;
    let mut copy = JournalCopy::create(dir, &part.begins)?;
    archive.each_block(&mut |key, stored| Ok(copy.push_block(key, stored)?))?;
    let parent = part.id.as_deref().and_then(JournalId::parse);
    let parent = parent.map(|id| ParentJournal { id, ends: part.ends.clone() });
    let id = copy.finish(&part.ends, parent)?;
    // Open the journal in the same way as a start does.
    let plan = JournalPlan { partitions: part.ends.len() as u32, ..JournalPlan::default() };
    drop(Journal::open(dir, plan)?);
    Ok(id)
}

fn restore_files(archive: &ArchiveReader, data_dir: &Path) -> Result<(), BackupError> {
    for piece in &archive.manifest.files {
        if !files::is_allowed(&piece.file) {
            return Err(archive
                .damaged(format!("its manifest names the file {:?}, which no backup holds", piece.file)));
        }
        let path = data_dir.join(&piece.file);
        if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
            DirBuilder::new().mode(0o700).create(folder).map_err(BackupError::io(folder))?;
        }
        let content = archive.read(&piece.object)?;
        let written =
            File::options().append(true).create(true).mode(0o600).open(&path).and_then(|mut file| {
                file.write_all(&content)?;
                file.sync_all()
            });
        written.map_err(BackupError::io(&path))?;
    }
    Ok(())
}

/// Restores the checkpoints. They refer to the copied journal, and the restored one has the same
/// records, so its id replaces the old one.
fn restore_checkpoints(archive: &ArchiveReader, folder: &Path, journal_id: &str) -> Result<(), BackupError> {
    let names = archive.checkpoint_names()?;
    let (from, to) = (archive.checkpoints()?, BlobStore::open(&CheckpointLocation::Folder(folder.into()))?);
    for name in names {
        let mut manifest = from.read_manifest(name)?;
        if let Some(log) = manifest.logs.get_mut(journal::SOURCE_NAME).filter(|log| log.id.is_some()) {
            log.id = Some(journal_id.to_owned());
        }
        from.for_each_object(&manifest, &mut |path, content| to.put_object(path.to_owned(), content))?;
    }
    Ok(())
}
