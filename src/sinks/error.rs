//! Why a sink cannot be written.

/// Why a sink cannot be claimed, read or written, by what follows from it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SinkError {
    /// Another generation has claimed the sink: this one ends, and is not started again.
    #[error("{0}")]
    Fenced(String),
    /// The sink does not answer, or has no room: the same may be tried again.
    #[error("{0}")]
    Unavailable(String),
    /// Trying again gives the same: the run ends with a line that says what to do.
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
    /// Nothing of it counts once it was rolled back; then it can be written again.
    RollBack(String),
    /// Its outcome is not known, or the writer is of no use any more: it must be opened anew.
    Reopen(String),
    /// Writing it again does not help.
    Final(SinkError),
}
