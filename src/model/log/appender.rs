//! Appends to a log: their results, and why a log takes no records.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{NewRecord, PartitionName};
use crate::model::Refusal;

/// The positions of an append's records in one partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AppendedRange {
    #[serde(flatten)]
    pub partition: PartitionName,
    /// The position of the first record; records of other appends may lie between it and `end`.
    pub first: u64,
    /// One past the last record: results include them all once the partition is applied up to it.
    pub end: u64,
}

/// The result of an append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppendReport {
    pub ranges: Vec<AppendedRange>,
    /// Records that the log has refused, by their number in the append. They are in no log, and are
    /// no dead letters.
    pub refusals: Vec<(u32, Refusal)>,
}

/// Why the records of an append are not in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AppendError {
    /// Nothing was appended; a retry may succeed.
    #[error("the log is busy: try again in a moment")]
    Busy,
    #[error("the service is stopping")]
    Stopping,
    /// Nothing was appended, and nothing will be until the cause of the hold has passed.
    #[error("{}", .0.detail)]
    OnHold(AppendHold),
    /// The log has failed. It is unknown whether the records are in it.
    #[error("the log cannot be written: {0}")]
    Failed(Arc<str>),
}

/// Why records are not taken for now, though nothing has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendHold {
    pub cause: HoldCause,
    /// For people: the cause, and what to do.
    pub detail: Arc<str>,
    /// When to retry, in seconds.
    pub retry_after_s: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldCause {
    /// The clock of the host is ahead.
    ClockAhead,
    /// The limit of dead letters is reached.
    DeadLettersFull,
    /// This client has reached its share of the dead letters.
    DeadLetterShare,
}

/// Says whether a log takes records.
pub trait HoldCheck: Send + Sync {
    /// Why the log takes no records of any client, if it takes none.
    fn current_hold(&self) -> Option<AppendHold>;
}

/// Called once with the result of an append, on a thread of the log that it must not block.
pub type AppendCallback = Box<dyn FnOnce(Result<AppendReport, AppendError>) + Send>;

/// Appends records to a log.
pub trait Appender: Send + Sync {
    /// Queues records, whose order is kept, and returns at once. They are durable once `done` is
    /// called with a report. If they cannot be queued, `done` is called before this returns.
    fn append(&self, records: Vec<NewRecord>, acknowledge: AppendCallback);
}
