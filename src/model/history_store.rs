//! A store of results that reaches further back than the dataflow, and the questions that it
//! answers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::{EventTime, HeatIndex, Measurement, Row};

/// An answer of a store, once it is there.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, HistoryError>> + Send + 'a>>;

/// A store of results, such as the replicas of a database. Every answer is of one snapshot.
pub trait HistoryStore: Send + Sync {
    /// The final rows of a range: those that no later reading can change.
    fn final_rows(&self, range: HistoryRange) -> StoreFuture<'_, FinalRows>;

    /// The rows of a range as they were at an epoch.
    fn rows_as_of(&self, range: HistoryRange, epoch: u64) -> StoreFuture<'_, PastRows>;

    /// The readings of the final row at a time, from `from` on, at most `limit`.
    fn explain_final_row(
        &self,
        city: Arc<str>,
        reading_at: EventTime,
        from: EventTime,
        limit: u32,
    ) -> StoreFuture<'_, FinalExplanation>;

    /// What arrived for the keys of a city from `from` to `to`, both included, until an epoch.
    fn arrivals(
        &self,
        city: Arc<str>,
        from: EventTime,
        to: EventTime,
        epoch: u64,
    ) -> StoreFuture<'_, StoredArrivals>;
}

/// The rows of a city with `reading_at` in `from..to`, oldest first, at most `limit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryRange {
    pub city: Arc<str>,
    pub from: EventTime,
    pub to: EventTime,
    pub limit: u32,
}

/// Final rows of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FinalRows {
    pub rows: Vec<(EventTime, Row)>,
    /// The limit left out further rows.
    pub has_more: bool,
    /// Rows before this time are final; `None` if the store has no reading of the city.
    pub final_until: Option<EventTime>,
}

/// Rows as they were at an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PastRows {
    pub rows: Vec<(EventTime, Row)>,
    /// The limit left out further rows.
    pub has_more: bool,
    /// Whether the store has an arrival of the city.
    pub is_city_known: bool,
    /// The newest epoch of the city that is complete in the store.
    pub complete_until: Option<u64>,
}

/// The readings of the window of a final row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FinalExplanation {
    /// `None` if there is no such row, or if it is not final yet.
    pub row: Option<Row>,
    pub readings: Vec<FinalReading>,
    /// The limit left out further readings.
    pub has_more: bool,
    /// Rows before this time are final; `None` if the store has no reading of the city.
    pub final_until: Option<EventTime>,
}

/// A reading as it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalReading {
    pub reading_at: EventTime,
    /// The row of a window that holds nothing else.
    pub row: Row,
    /// `None` if only the heat index is known.
    pub measurement: Option<Measurement>,
}

/// A row with the measurement that it came with, if that is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExportedRow {
    pub reading_at: EventTime,
    pub measurement: Option<Measurement>,
    pub row: Row,
}

/// What arrived for keys of a city.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredArrivals {
    /// By time; of one time in the order of the log.
    pub arrivals: Vec<StoredArrival>,
    /// The newest epoch of the city that is complete in the store; `None` if it has no arrival.
    pub complete_until: Option<u64>,
}

/// A reading or a withdrawal, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredArrival {
    pub reading_at: EventTime,
    /// The epoch at which it became part of the store.
    pub as_of: u64,
    pub source: Arc<str>,
    pub partition: u32,
    pub position: u64,
    pub arrived_at: Option<EventTime>,
    pub measurement: Option<Measurement>,
    pub revision: Option<i64>,
    /// The name of the outcome.
    pub outcome: Arc<str>,
    /// The heat index of the key after the arrival; `None` if it then had no reading.
    pub heat_index_after: Option<HeatIndex>,
    /// Earlier arrivals of the key that are left out.
    pub omitted_before: u64,
}

/// Why a store does not answer. Texts go to clients.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// It may answer later.
    #[error("{detail}")]
    Unavailable { detail: String, retry_after: Duration },
}
