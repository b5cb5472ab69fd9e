//! Appends to a log: what is reported of one, and why a log takes no records.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{NewRecord, PartitionName};
use crate::model::Refusal;

/// Where the records of an append are in one partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AppendedRange {
    #[serde(flatten)]
    pub partition: PartitionName,
    /// The position of the first of them; records of others may lie between it and `end`.
    pub first: u64,
    /// One past the last of them: results include them all once the partition is applied up to there.
    pub end: u64,
}

/// What became of an append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppendReport {
    pub ranges: Vec<AppendedRange>,
    /// What the log has not taken, by its number in the append. It is in no log, and no dead letter.
    pub refusals: Vec<(u32, Refusal)>,
}

/// Why records are not in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AppendError {
    /// Nothing was appended; it may be tried again.
    #[error("the log is busy: try again in a moment")]
    Busy,
    #[error("the service is stopping")]
    Stopping,
    /// Nothing was appended, and nothing will be until what is named has passed.
    #[error("{}", .0.detail)]
    OnHold(AppendHold),
    /// The log has failed. Whether the records are in it is not known.
    #[error("the log cannot be written: {0}")]
    Failed(Arc<str>),
}

/// Why records are not taken for now, though nothing has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendHold {
    pub cause: HoldCause,
    /// For people: what it is, and what to do.
    pub detail: Arc<str>,
    /// When it may be tried again.
    pub retry_after_s: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldCause {
    /// The clock of the host is ahead of what it should say.
    ClockAhead,
    /// There is no more room for dead letters.
    DeadLettersFull,
    /// Too many dead letters came of what this client sent.
    DeadLetterShare,
}

/// Knows whether records are taken.
pub trait HoldCheck: Send + Sync {
    /// Why none is, whoever sends it.
    fn current_hold(&self) -> Option<AppendHold>;
}

/// Hears what became of an append: once, from a thread of the log's that it must not hold up.
pub type AppendCallback = Box<dyn FnOnce(Result<AppendReport, AppendError>) + Send>;

/// The end of a log that takes new records.
pub trait Appender: Send + Sync {
    /// Queues records, which keep their order, and returns at once. They are durable when `done` hears so; where they cannot
    /// even be queued, it hears that before this returns.
    fn append(&self, records: Vec<NewRecord>, done: AppendCallback);
}
