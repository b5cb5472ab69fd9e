//! Errors of the commands that handle dead letters.

use std::path::PathBuf;

use super::data_dir::DataDirError;
use crate::kafka::dead_letter_topic::DlqTopicError;
use crate::model::AppendError;
use crate::sinks::dead_letters::DlqFileError;
use crate::sources::SourceError;
use crate::sources::journal::JournalError;

/// Why a command on dead letters has failed.
#[derive(Debug, thiserror::Error)]
pub enum DlqCommandError {
    #[error(transparent)]
    Files(#[from] DlqFileError),
    #[error(transparent)]
    Topics(#[from] DlqTopicError),
    #[error("{0}; a running service retries dead letters itself if ingest.retry_after is set")]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error("the journal does not answer: check its disk, then try again")]
    Hangs,
    #[error("{}: {problem}", path.display())]
    Sent { path: PathBuf, problem: String },
    #[error(
        "{} is not the data directory of a service, since it has no folder journal: name the data directory with --data-dir or --config",
        .0.display()
    )]
    NoJournal(PathBuf),
    #[error("there is no source {asked:?} with dead letters: name one of {known}")]
    UnknownSource { asked: String, known: String },
    #[error("line {line}: {problem}; nothing was sent")]
    Line { line: u64, problem: String },
}
