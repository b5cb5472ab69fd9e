//! Errors that end a run.

use std::io;

use super::data_dir::DataDirError;
use crate::checkpoint::CheckpointError;
use crate::cluster::ClusterError;
use crate::fault::start_failure_text;
use crate::kafka::topic_admin::TopicAdminError;
use crate::panics::bug_text;
use crate::registry::RegistryError;
use crate::serve::ServeError;
use crate::sinks::dead_letters::DlqFileError;
use crate::sinks::error::SinkError;
use crate::sources::generator::PlanError;
use crate::sources::generator::feed::FeedError;
use crate::sources::journal::JournalError;

/// Why the service has ended without a request to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    DeadLetters(#[from] DlqFileError),
    #[error(transparent)]
    Topics(#[from] TopicAdminError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("source {name}: {error}")]
    Feed { name: String, error: FeedError },
    #[error("source {name}: {error}")]
    Generator { name: String, error: PlanError },
    #[error("source {name}: {error}")]
    Source { name: String, error: crate::sources::SourceError },
    #[error("{}", start_failure_text(.0))]
    Threads(io::Error),
    #[error("the workers cannot be started: {0}")]
    Workers(String),
    /// A source or the log has failed permanently.
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    TakenOver(String),
}

impl RunError {
    /// An error that only a bug of this program can cause.
    pub fn bug(problem: impl AsRef<str>) -> RunError {
        RunError::Failed(bug_text(problem.as_ref()))
    }

    /// Whether another generation has taken over, so that this run should not be restarted.
    pub fn is_takeover(&self) -> bool {
        matches!(self, RunError::TakenOver(_) | RunError::Sink(SinkError::Fenced(_)))
    }

    /// Whether a stop was requested before the run had started.
    pub fn is_stop_request(&self) -> bool {
        matches!(self, RunError::Cluster(ClusterError::Stopped))
    }

    /// Converts the error of a claim that was to follow another one. A run that loses this race has
    /// lost no results, so it may be restarted to follow.
    pub fn into_lost_race(self) -> RunError {
        match self {
            RunError::Sink(error @ SinkError::Fenced(_)) => RunError::Failed(error.to_string()),
            error => error,
        }
    }
}

/// The first permanent error during a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub why: String,
    /// Another generation has taken over.
    pub is_takeover: bool,
}

impl Failure {
    pub fn new(why: impl Into<String>) -> Failure {
        Failure { why: why.into(), is_takeover: false }
    }
}

impl From<Failure> for RunError {
    fn from(failure: Failure) -> RunError {
        let Failure { why, is_takeover } = failure;
        if is_takeover { RunError::TakenOver(why) } else { RunError::Failed(why) }
    }
}
