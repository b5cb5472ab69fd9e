//! Why the dataflow does not answer a query.

/// Why there is no response for now. Texts go to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("too many questions are waiting for an answer: try again in a moment")]
    TooManyQueries,
    #[error("too many cities are watched: try again in a moment")]
    TooManyWatchedCities,
    #[error("too many snapshots are being sent: try again in a moment")]
    TooManySnapshots,
    #[error("too much is held for other answers: try again in a moment")]
    TooMuchPinned,
    #[error("the answer was read too slowly while others waited: try again, or ask for less")]
    SlowReader,
    #[error("too many cities are named by all subscriptions: try again in a moment, or name fewer")]
    TooManyNames,
}
