//! Errors of sinks.

/// Why a sink cannot be claimed, read or written, by its consequence for the run.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SinkError {
    /// Another generation has claimed the sink: this run ends, and is not restarted.
    #[error("{0}")]
    Fenced(String),
    /// The sink does not answer, or has no space: a retry may help.
    #[error("{0}")]
    Unavailable(String),
    /// A retry does not help: the run ends with an error that says what to do.
    #[error("{0}")]
    Fatal(String),
}

impl SinkError {
    pub fn is_fenced(&self) -> bool {
        matches!(self, SinkError::Fenced(_))
    }
}

/// Why a transaction has failed.
#[derive(Debug)]
pub enum WriteFailure {
    /// The transaction can be written again after a rollback.
    RollBack(String),
    /// The outcome is unknown, or the writer cannot be used any more: reopen it.
    Reopen(String),
    /// A retry does not help.
    Final(SinkError),
}
