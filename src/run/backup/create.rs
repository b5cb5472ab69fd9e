//! Creates a backup.
//!
//! The order makes it consistent. Checkpoints are chosen first. Then dead letters are copied, which
//! include all those of the checkpoints. Then the journal is copied up to its ends, which include
//! all records that either refers to. Nothing is trimmed meanwhile.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::BackupError;
use super::archive::{
    ArchiveEntry, ArchiveReader, ArchiveWriter, BackupManifest, BackupSummary, CHUNK_BYTES, FORMAT,
    FilePiece, JournalPart,
};
use super::archive::{push_block, verify_archive};
use super::backup_source::BackupSource;
use super::files::OpenFiles;
use crate::checkpoint::{
    self, CheckpointError, CheckpointLocation, CheckpointName, Checkpoints, DEFAULT_FOLDER,
};
use crate::model::{EventTime, random_u64};
use crate::sources::journal;

/// A backup that was created.
#[derive(Clone, Debug, Serialize)]
pub struct BackupReport {
    #[serde(flatten)]
    pub checked: BackupSummary,
    /// A service was running.
    pub online: bool,
    pub seconds: f64,
    /// Checkpoints that were left out, and why.
    pub left_out: Vec<String>,
}

/// Copies a data directory and its checkpoints below a location, and verifies the copy by reading
/// it. `checkpoints` is their location, used if no service has the directory open.
pub fn create_backup(
    data_dir: &Path,
    checkpoints: Option<String>,
    to: &CheckpointLocation,
) -> Result<BackupReport, BackupError> {
    let began = Instant::now();
    check_destination(data_dir, to)?;
    let mut origin = BackupSource::open(data_dir, checkpoints)?;
    let location = to.join(&fresh_name());
    let mut archive = ArchiveWriter::create(&location)?;
    let copied = copy_all(data_dir, &mut origin, &mut archive);
    let published = copied.and_then(|(manifest, left_out)| archive.publish(&manifest).map(|()| left_out));
    let online = origin.is_running();
    drop(origin);
    let checked =
        published.and_then(|left_out| Ok((verify_archive(&ArchiveReader::open(&location)?)?, left_out)));
    let (checked, left_out) = checked.inspect_err(|_| archive.discard())?;
    Ok(BackupReport { checked, online, seconds: began.elapsed().as_secs_f64(), left_out })
}

/// Refuses a backup inside the directory that it copies: it would be lost together with it, and
/// would be among the files of its journal or checkpoints.
fn check_destination(data_dir: &Path, to: &CheckpointLocation) -> Result<(), BackupError> {
    let (CheckpointLocation::Folder(folder), Ok(data_dir)) = (to, data_dir.canonicalize()) else {
        return Ok(());
    };
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
    let existing = folder.ancestors().find_map(|above| above.canonicalize().ok());
    if existing.is_some_and(|existing| existing.starts_with(&data_dir)) {
        let folder = folder.display();
        return Err(BackupError::Refused(format!(
            "{folder} is in the data directory, so the backup would be lost with it: name a folder outside of it, best on another disk"
        )));
    }
    Ok(())
}

/// A name made of the time and a random number, so that no two backups have the same.
fn fresh_name() -> String {
    let time = current_time().to_string();
    let digits: String = time.chars().filter(|c| c.is_ascii_digit() || *c == 'T').collect();
    let chance = random_u64() as u16;
    format!("{}Z-{chance:04x}", digits.get(..15).unwrap_or(&digits))
}

fn current_time() -> EventTime {
    let ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    EventTime::from_millis(ms).unwrap_or(EventTime::MAX)
}

fn copy_all(
    data_dir: &Path,
    origin: &mut BackupSource,
    archive: &mut ArchiveWriter,
) -> Result<(BackupManifest, Vec<String>), BackupError> {
    let chosen = ChosenCheckpoints::choose(origin)?;
    let mut files = Vec::new();
    let open = OpenFiles::open(data_dir).map_err(BackupError::io(data_dir))?;
    open.each_piece(|name, piece| {
        let object = archive.write_object(format!("files/{:06}", files.len()), piece.into())?;
        files.push(FilePiece { file: name.to_owned(), object });
        Ok::<(), PieceError>(())
    })
    .map_err(|error| error.at(data_dir))?;
    let journal = copy_journal(origin, archive)?;
    let CopiedCheckpoints { names: checkpoints, objects: checkpoint_objects, left_out } =
        chosen.copy(archive)?;
    if checkpoints.is_empty() && journal.begins.iter().any(|begin| *begin > 0) {
        return Err(BackupError::Refused(format!(
            "no checkpoint is complete, and the journal does not reach back to its beginning, so the backup could not be restored ({}): repair the checkpoints first",
            left_out.join("; ")
        )));
    }
    let program = env!("CARGO_PKG_VERSION").to_owned();
    let created_at = current_time().to_string();
    let manifest = BackupManifest {
        format: FORMAT,
        program,
        created_at,
        journal,
        checkpoints,
        checkpoint_objects,
        files,
    };
    Ok((manifest, left_out))
}

/// An error of reading a file or of writing an object.
enum PieceError {
    Read(std::io::Error),
    Put(BackupError),
}

impl PieceError {
    fn at(self, data_dir: &Path) -> BackupError {
        match self {
            PieceError::Read(error) => BackupError::io(data_dir)(error),
            PieceError::Put(error) => error,
        }
    }
}

impl From<std::io::Error> for PieceError {
    fn from(error: std::io::Error) -> PieceError {
        PieceError::Read(error)
    }
}

impl From<BackupError> for PieceError {
    fn from(error: BackupError) -> PieceError {
        PieceError::Put(error)
    }
}

fn copy_journal(origin: &mut BackupSource, archive: &mut ArchiveWriter) -> Result<JournalPart, BackupError> {
    let (mut chunk, mut chunks) = (Vec::new(), Vec::new());
    let ends = origin.copy_journal(&mut |key, stored| {
        push_block(&mut chunk, key, stored);
        if chunk.len() >= CHUNK_BYTES {
            chunks.push(archive.put_chunk(chunks.len(), &chunk)?);
            chunk.clear();
        }
        Ok(())
    })?;
    if !chunk.is_empty() {
        chunks.push(archive.put_chunk(chunks.len(), &chunk)?);
    }
    let (id, begins) = (origin.offer.journal_id.clone(), origin.offer.begins.clone());
    Ok(JournalPart { id, begins, ends, chunks })
}

/// The journal's checkpoints, oldest first.
struct ChosenCheckpoints {
    from: Option<Checkpoints>,
    manifests: Vec<Arc<checkpoint::Manifest>>,
    left_out: Vec<String>,
}

#[derive(Default)]
struct CopiedCheckpoints {
    /// Oldest first.
    names: Vec<String>,
    objects: Vec<ArchiveEntry>,
    /// Why other checkpoints cannot be used.
    left_out: Vec<String>,
}

impl ChosenCheckpoints {
    fn choose(origin: &BackupSource) -> Result<ChosenCheckpoints, BackupError> {
        let mut chosen = ChosenCheckpoints { from: None, manifests: Vec::new(), left_out: Vec::new() };
        let Some(location) = &origin.offer.checkpoints else { return Ok(chosen) };
        let location: CheckpointLocation =
            location.parse().map_err(|problem| BackupError::Refused(format!("checkpoints: {problem}")))?;
        if let CheckpointLocation::Folder(folder) = &location
            && !folder.is_dir()
        {
            return Ok(chosen);
        }
        let checkpoints = Checkpoints::open(&location)?;
        for (name, manifest) in checkpoints.read_manifests()? {
            match manifest {
                Ok(manifest) if is_of_backed_up_journal(&manifest, origin) => chosen.manifests.push(manifest),
                Ok(_) => chosen.left_out.push(format!("the checkpoint {name} was made of another journal")),
                Err(error) => chosen.left_out.push(error.to_string()),
            }
        }
        chosen.from = Some(checkpoints);
        Ok(chosen)
    }

    /// Copies the checkpoints. Returns their names and objects, and the unusable ones.
    fn copy(mut self, archive: &mut ArchiveWriter) -> Result<CopiedCheckpoints, BackupError> {
        let Some(checkpoints) = &self.from else {
            return Ok(CopiedCheckpoints { left_out: self.left_out, ..CopiedCheckpoints::default() });
        };
        let (mut good, mut entries) = (BTreeSet::<CheckpointName>::new(), Vec::new());
        for manifest in &self.manifests {
            let base = manifest.adds_to.as_ref().map(|base| base.parse::<CheckpointName>());
            if !base.is_none_or(|base| base.is_ok_and(|base| good.contains(&base))) {
                self.left_out.push(format!(
                    "the checkpoint {} is an increment, and its base is missing",
                    manifest.name()
                ));
                continue;
            }
            let mut entries_of_checkpoint = Vec::new();
            let mut failed = None;
            let result = checkpoints.for_each_object(manifest, &mut |path, content| {
                match archive.write_object(format!("{DEFAULT_FOLDER}/{path}"), content) {
                    Ok(entry) => entries_of_checkpoint.push(entry),
                    Err(error) => {
                        failed = Some(error);
                        return Err(CheckpointError::Cancelled);
                    }
                }
                Ok(())
            });
            match (result, failed) {
                (_, Some(error)) => return Err(error),
                (Ok(()), None) => {
                    good.insert(manifest.name());
                    entries.extend(entries_of_checkpoint);
                }
                (Err(error), None) if error.is_specific_to_checkpoint() => {
                    self.left_out.push(error.to_string())
                }
                (Err(error), None) => return Err(error.into()),
            }
        }
        let names = good.into_iter().map(|name| name.to_string()).collect();
        Ok(CopiedCheckpoints { names, objects: entries, left_out: self.left_out })
    }
}

/// Whether a checkpoint belongs to the journal that is copied, which continues at its positions.
fn is_of_backed_up_journal(manifest: &checkpoint::Manifest, origin: &BackupSource) -> bool {
    let recorded = manifest.logs.get(journal::SOURCE_NAME).and_then(|log| log.id.as_ref());
    let id = origin.offer.journal_id.as_ref();
    let begins = &origin.offer.begins;
    let goes_on =
        |(partition, at): (&u32, &u64)| begins.get(*partition as usize).is_some_and(|begin| at >= begin);
    let positions = manifest.positions.get(journal::SOURCE_NAME);
    (recorded.is_none() || id.is_none() || recorded == id)
        && positions.is_some_and(|of| of.iter().all(goes_on))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backup_into_its_own_data_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        std::fs::create_dir_all(data_dir.join("journal")).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&data_dir, &link).unwrap();
        let check = |folder: &Path| check_destination(&data_dir, &CheckpointLocation::Folder(folder.into()));
        for inside in
            [&data_dir, &data_dir.join("journal"), &data_dir.join("new/backups"), &link.join("backups")]
        {
            let refused = check(inside).unwrap_err().to_string();
            assert!(refused.contains("is in the data directory"), "{refused}");
        }
        for outside in [dir.path(), &dir.path().join("data-backups"), &dir.path().join("new/backups")] {
            check(outside).unwrap();
        }
        check_destination(&data_dir, &"s3://bucket".parse().unwrap()).unwrap();
    }
}
