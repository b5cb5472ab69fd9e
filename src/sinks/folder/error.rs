//! Errors of writing a folder.

use std::io;
use std::path::{Path, PathBuf};

use crate::fault::{is_transient, remedy_for};
use crate::model::rules_version::RulesVersionMismatch;
use crate::sinks::error::SinkError;
use crate::sinks::progress::IdentityDifference;

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{}: {source}: {}", .path.display(), remedy_for(source, path))]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: {source}: data that was to be durable may be lost, so the process ends; the next start continues from the last durable transaction: {}",
        .path.display(), remedy_for(source, path)
    )]
    Sync { path: PathBuf, source: io::Error },
    #[error(
        "{}: {problem}: restore it from a copy, or, to begin anew, name another folder or move this one away",
        .path.display()
    )]
    Damaged { path: PathBuf, problem: String },
    #[error(
        "{} holds files that no folder sink has written: name an empty folder, or one that does not exist yet",
        .0.display()
    )]
    NotOurs(PathBuf),
    #[error(
        "generation {generation} of the same results has taken over (folder {}): this process ends; run one at a time, or give each a folder of \
         its own",
        .path.display()
    )]
    Fenced { path: PathBuf, generation: u64 },
    #[error(
        "the folder {} was claimed by another start with the same generation, {generation}: this process ends, and the next start claims it again",
        .path.display()
    )]
    SameGeneration { path: PathBuf, generation: u64 },
    #[error(
        "the folder {} was last written by generation {recorded}, and this is generation {own}: {authority} counts generations, and was lost, or is not the one that the folder was written with: restore it, or name another folder",
        .path.display()
    )]
    GenerationLost { path: PathBuf, recorded: u64, own: u64, authority: String },
    #[error(
        "the folder {} does not hold the claim of process 0 as this process sees it: give all processes the same folder, on one host or on a file system that they share",
        .0.display()
    )]
    AnotherFolder(PathBuf),
    #[error(
        "the results in folder {} were made with {difference}: set it back, or name another folder to begin anew{}",
        .path.display(), .difference.rebuild_hint()
    )]
    Identity { path: PathBuf, difference: IdentityDifference },
    #[error(transparent)]
    Rules(#[from] RulesVersionMismatch),
}

impl FolderError {
    /// Wraps an I/O error of the file or folder at `path`.
    pub fn at(path: &Path) -> impl Fn(io::Error) -> FolderError + '_ {
        move |source| FolderError::Io { path: path.to_path_buf(), source }
    }

    /// Wraps an I/O error of syncing `path`.
    pub fn sync_at(path: &Path) -> impl Fn(io::Error) -> FolderError + '_ {
        move |source| FolderError::Sync { path: path.to_path_buf(), source }
    }

    /// Whether a retry may help. Before the retry, what was written of the transaction is cut off.
    pub fn is_transient(&self) -> bool {
        let FolderError::Io { source, .. } = self else { return false };
        // A read-only file system may become writable again, and nothing was lost until then.
        is_transient(source) || source.kind() == io::ErrorKind::ReadOnlyFilesystem
    }
}

impl From<FolderError> for SinkError {
    fn from(error: FolderError) -> SinkError {
        let text = error.to_string();
        match error {
            FolderError::Fenced { .. } => SinkError::Fenced(text),
            error if error.is_transient() => SinkError::Unavailable(text),
            _ => SinkError::Fatal(text),
        }
    }
}
