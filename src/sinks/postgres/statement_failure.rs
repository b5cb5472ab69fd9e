//! Why a transaction, or the work beside it, has failed.

use super::net_changes::RecordError;

/// A connection is not used again after any of these.
#[derive(Debug, thiserror::Error)]
pub enum StatementFailure {
    /// No row of the shard has this generation: another one has claimed it.
    #[error("another generation has claimed the shard")]
    Fenced,
    /// The shard's row has another epoch than the one that was committed last: an answer to a COMMIT
    /// was lost, or the database has lost commits.
    #[error("the last epoch of the shard in the database is {}, not {}", text_of(.found), text_of(.believed))]
    Moved { believed: Option<u64>, found: Option<u64> },
    /// The server or the connection.
    #[error("{0}")]
    Database(#[from] tokio_postgres::Error),
    /// Written again, this either succeeds or says why not.
    #[error("{0}")]
    Retry(String),
    /// No retry helps.
    #[error("{0}")]
    Unexpected(String),
}

impl From<RecordError> for StatementFailure {
    fn from(error: RecordError) -> StatementFailure {
        StatementFailure::Unexpected(error.to_string())
    }
}

fn text_of(epoch: &Option<u64>) -> String {
    epoch.map_or_else(|| "none".to_owned(), |epoch| epoch.to_string())
}
