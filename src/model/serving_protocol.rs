//! The messages between serving and the dataflow: queries, answers, and updates of the view.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CurrentRow, EventTime, Measurement, OutcomeKind, PartitionProgress, Reason, Row};

/// A query about one city, answered as of the epoch at which it enters the dataflow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Query {
    /// The number that the client gave the query; its answer has it too.
    pub id: u64,
    /// The process that sends the query and gets the answer.
    pub process: u8,
    pub city: Arc<str>,
    pub kind: QueryKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum QueryKind {
    /// The servable rows with `reading_at` in `from..to`, oldest first, at most `limit`.
    History { from: EventTime, to: EventTime, limit: u32 },
    /// All servable rows, and from the next epoch on every change of a row of the city, until
    /// [`QueryKind::Unwatch`].
    Watch,
    /// Ends a watch. It has no answer.
    Unwatch,
    /// Allows `rows` further rows of the answer to the query of this id: the dataflow sends no row
    /// without a grant. It has no answer of its own.
    GrantRows { rows: u32 },
    /// Ends the answer to the query of this id. It has no answer of its own.
    Cancel,
    /// The readings whose mean the row at `reading_at` holds, from `from` on, oldest first, at most
    /// `limit`, each as the row of a window that holds nothing else; and the row itself.
    Explain { reading_at: EventTime, from: EventTime, limit: u32 },
}

/// A piece of an answer. All pieces of an answer have the same epoch; pieces with different
/// `first_row` may come in any order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AnswerPiece {
    /// The id of the query.
    pub query_id: u64,
    /// The rows are as of the end of this epoch.
    pub epoch: u64,
    pub city: Arc<str>,
    /// Whether there was ever a reading or a withdrawal of the city.
    pub is_city_known: bool,
    /// The number of rows in earlier pieces of the answer.
    pub first_row: u64,
    /// Oldest first.
    pub rows: Vec<(EventTime, Row)>,
    /// The newest admitted `reading_at` of the city. It decides which rows are servable.
    pub high: Option<EventTime>,
    /// In the first piece of the answer to [`QueryKind::Explain`].
    pub explained_row: Option<Box<ExplainedRow>>,
    /// The limit left out further rows; the last piece says so.
    pub has_more: bool,
    pub remaining: RemainingRows,
}

/// The row that an answer explains.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExplainedRow {
    /// `None` if no servable row has the time.
    pub row: Option<Row>,
    /// The measurements of its window that the state holds: those of the newest readings.
    pub measurements: Vec<(EventTime, Measurement)>,
}

/// What follows a piece of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RemainingRows {
    /// Nothing: it is the last piece.
    Nothing,
    /// At most so many rows. Until the last one is sent, the answer pins so many bytes.
    AtMost { rows: u64, pinned_bytes: u64 },
    /// Nothing: other answers pin too many bytes.
    Refused,
}

/// The most bytes that a worker pins for open answers, so that their rows stay as of the epoch of
/// their query.
pub const MAX_PINNED_BYTES: usize = 128 << 20;

/// Takes queries for the dataflow. The queries of one call are answered as of one epoch. The
/// implementation sets the process.
pub trait Queries: Send + Sync {
    /// Queues the queries and returns at once. False if the queue is full; then none is queued.
    fn submit_queries(&self, queries: Vec<Query>) -> bool;
}

/// Arrivals by outcome, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeCounts {
    pub inserted: u64,
    pub corrected: u64,
    pub withdrawn: u64,
    pub nothing_to_withdraw: u64,
    pub old_revision: u64,
    /// Retried dead letters whose key had a reading or a withdrawal by then.
    pub superseded: u64,
    /// Refused by the operator; this happens only to a city that came from more than one partition.
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

/// A changed row of a watched city.
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

/// All changes of the epochs from the last update's `upper` to this one's. Updates come in order,
/// without a gap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ViewUpdate {
    /// The first epoch that is not complete: the update is as of the epoch before.
    pub upper: u64,
    /// Replay has passed the ends that the logs had at the start, so the view is complete.
    pub is_ready: bool,
    /// In the order of epochs; a city at most once an epoch: its current row from then on, or
    /// `None` if none is servable any more. Of several changes of a city's row between two updates,
    /// only those that remove the row or bring it back are certain to be listed.
    pub current_rows: Vec<CurrentRowUpdate>,
    /// In the order of epochs; a key at most once an epoch. An answer about a city includes the
    /// changes up to its own epoch.
    pub watched_rows: Vec<WatchedRow>,
    pub answers: Vec<AnswerPiece>,
    /// The partitions that have advanced.
    pub progress: Vec<PartitionProgress>,
    /// The counts, if they have changed.
    pub counts: Option<OutcomeCounts>,
    /// Readings refused since the start, for each reason whose number has changed.
    pub refusal_counts: Vec<(Reason, u64)>,
}
