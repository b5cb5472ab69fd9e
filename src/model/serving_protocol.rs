//! What serving asks of the dataflow, and what it is told.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CurrentRow, EventTime, OutcomeKind, PartitionProgress, Reason, Row};

/// A question about one city, answered at the epoch at which it is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Query {
    /// The asker's own number; the answer carries it.
    pub id: u64,
    /// The process that asks, which is told.
    pub process: u8,
    pub city: Arc<str>,
    pub kind: QueryKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum QueryKind {
    /// The servable rows with `reading_at` in `from..to`, oldest first, at most `limit`.
    History { from: EventTime, to: EventTime, limit: u32 },
    /// All servable rows; and from the next epoch on every change of a row of the city is told, until [`Question::Unwatch`].
    Watch,
    /// Ends a watch. It has no answer.
    Unwatch,
    /// Allows so many further rows of the answer to the query of this id: none are made that were not granted. It has no
    /// answer of its own.
    GrantRows { rows: u32 },
    /// Ends the answer to the query of this id. It has no answer of its own.
    Cancel,
}

/// A piece of an answer. All pieces of one have the same epoch; those of different numbers of rows before them may come in any order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AnswerPiece {
    /// That of the query.
    pub query_id: u64,
    /// The rows are those after this epoch, and no later one.
    pub epoch: u64,
    pub city: Arc<str>,
    /// Whether there has ever been a reading or withdrawal of the city.
    pub is_city_known: bool,
    /// Rows of the answer before these.
    pub first_row: u64,
    /// Oldest first.
    pub rows: Vec<(EventTime, Row)>,
    /// The limit has cut off further rows; the last piece says so.
    pub has_more: bool,
    pub remaining: RemainingRows,
}

/// What follows a piece of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RemainingRows {
    /// It was the last piece.
    Nothing,
    /// No more than so many rows. Until the last of them is made, so many bytes are held for the answer.
    AtMost { rows: u64, pinned_bytes: u64 },
    /// Nothing, since too much is held for other answers.
    Refused,
}

/// Bytes that a worker holds for the answers that it is making, so that they are of the epoch of their query.
pub const MAX_PINNED_BYTES: usize = 128 << 20;

/// The queries of one call are answered at one epoch. Whoever takes them says which process asks.
pub trait Queries: Send + Sync {
    /// Queues the queries and returns at once; false where the queue is full and nothing was queued.
    fn submit_queries(&self, queries: Vec<Query>) -> bool;
}

/// What became of arrivals, as numbers since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeCounts {
    pub inserted: u64,
    pub corrected: u64,
    pub withdrawn: u64,
    pub nothing_to_withdraw: u64,
    pub old_revision: u64,
    /// Retried dead letters whose key held a reading or a withdrawal by then.
    pub superseded: u64,
    /// Refused by the operator: only of a city that came from more than one partition.
    pub too_late: u64,
    /// Cities that came from more than one partition: their results hold for this run only.
    pub split_city: u64,
}

impl OutcomeCounts {
    pub fn count_outcome(&mut self, kind: OutcomeKind) {
        *match kind {
            OutcomeKind::Inserted => &mut self.inserted,
            OutcomeKind::Corrected => &mut self.corrected,
            OutcomeKind::Withdrawn => &mut self.withdrawn,
            OutcomeKind::NothingToWithdraw => &mut self.nothing_to_withdraw,
            OutcomeKind::OldRevision => &mut self.old_revision,
            OutcomeKind::Superseded => &mut self.superseded,
            OutcomeKind::TooLate => &mut self.too_late,
        } += 1;
    }

    pub fn add(&mut self, other: &OutcomeCounts) {
        self.inserted += other.inserted;
        self.corrected += other.corrected;
        self.withdrawn += other.withdrawn;
        self.nothing_to_withdraw += other.nothing_to_withdraw;
        self.old_revision += other.old_revision;
        self.superseded += other.superseded;
        self.too_late += other.too_late;
        self.split_city += other.split_city;
    }
}

/// A row of a watched city that has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchedRow {
    pub epoch: u64,
    pub city: Arc<str>,
    pub reading_at: EventTime,
    pub row: Option<Row>,
}

/// A city's current row from an epoch on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurrentRowUpdate {
    pub epoch: u64,
    pub city: Arc<str>,
    pub row: Option<CurrentRow>,
}

/// All that the epochs from the last update's `upper` to this one's have changed. Updates are told in order, without a gap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ViewUpdate {
    /// The first epoch that is not included completely: the update is as of the one before.
    pub upper: u64,
    /// Replay has passed the ends that the logs had at the start: what is served is complete.
    pub is_ready: bool,
    /// In the order of epochs; a city at most once an epoch: its current row from then on, or nothing where none is servable any
    /// more. Between two rows of a city, only the epochs that have taken it away or brought it are told for sure.
    pub current_rows: Vec<CurrentRowUpdate>,
    /// In the order of epochs; a key at most once an epoch. A change of an epoch up to that of an answer about the city is
    /// in the answer.
    pub watched_rows: Vec<WatchedRow>,
    pub answers: Vec<AnswerPiece>,
    /// The partitions that have moved.
    pub progress: Vec<PartitionProgress>,
    /// Where they have changed.
    pub counts: Option<OutcomeCounts>,
    /// Readings refused since the start, by reason, where one was added.
    pub refusal_counts: Vec<(Reason, u64)>,
}
