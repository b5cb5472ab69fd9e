//! The traits that every durable sink implements; the parent module describes the order of the
//! calls.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use serde::Serialize;

use super::error::SinkError;
use super::progress::{ClaimRequest, EPOCHS, ProgressSnapshot, SinkClaim};
use super::shard::FencedShards;
use super::stop::StopDeadline;

/// A durable sink as it is configured. It keeps no state between calls, and only
/// [`claim`](DurableSink::claim), [`fence`](DurableSink::fence) and
/// [`read_progress`](DurableSink::read_progress) change the sink.
pub trait DurableSink: Send + Sync {
    /// The number of shards, which is fixed at the first start.
    fn shards(&self) -> u16;

    /// The interval of a shard's commits.
    fn commit_interval(&self) -> Duration;

    /// The label and value that name the sink in metrics.
    fn metric_label(&self) -> (&'static str, String);

    /// Reads the sink's progress, while other processes may be writing it. Uncommitted progress
    /// does not count.
    ///
    /// # Errors
    ///
    /// If this run could not continue with the sink; the error says what to do.
    /// [`SinkError::Unavailable`] if the sink does not answer `within` the time.
    fn inspect(&self, within: Duration) -> Result<ProgressSnapshot, SinkError>;

    /// Claims the sink for this run. The identity is compared again.
    ///
    /// # Errors
    ///
    /// [`SinkError::Fenced`] if the request follows a claim, and another generation has the sink.
    fn claim(&self, request: &ClaimRequest<'_>) -> Result<SinkClaim, SinkError>;

    /// Checks that a claim still holds.
    ///
    /// # Errors
    ///
    /// [`SinkError::Fenced`] if it does not.
    fn check_claim(&self, claim: &SinkClaim) -> Result<(), SinkError>;

    /// Shows standbys that the owner of the claim is alive, until the heartbeat is dropped. `None`
    /// if the sink has no heartbeats.
    fn prove_liveness(&self, claim: &SinkClaim) -> Result<Option<Heartbeat>, SinkError>;

    /// Fences every earlier writer of these shards, which are numbered within the sink.
    fn fence(&self, claim: &SinkClaim, shards: &[u16]) -> Result<FencedShards, SinkError>;

    /// Reads the durable progress after every process has fenced its shards, and records the
    /// identity.
    ///
    /// # Errors
    ///
    /// [`SinkError::Fenced`] if another start has claimed the sink meanwhile.
    fn read_progress(&self, claim: &SinkClaim) -> Result<ProgressSnapshot, SinkError>;

    /// The writer of the records of the run as a whole; `None` if the sink cannot be its authority.
    fn progress_writer(&self) -> Result<Option<ProgressWriter>, SinkError>;

    /// Waits until the run ends.
    ///
    /// # Errors
    ///
    /// [`SinkError::Fenced`] once another start has claimed the sink.
    fn watch_for_claims(&self, claim: &SinkClaim, stop: &Arc<StopDeadline>) -> Result<(), SinkError>;
}

/// A heartbeat that runs until this is dropped.
pub struct Heartbeat {
    /// Dropping the sender stops the heartbeat.
    _ends: Sender<()>,
}

impl Heartbeat {
    /// A heartbeat that runs until the receiver of the channel finds the sender dropped.
    pub fn until_dropped(ends: Sender<()>) -> Heartbeat {
        Heartbeat { _ends: ends }
    }
}

/// Writes a record of the authority, and waits until it is durable.
pub trait RecordWriter: Send + Sync {
    /// `value` is JSON.
    fn write_record(&self, key: &str, value: &[u8]) -> Result<(), SinkError>;
}

/// Writes the records of the run as a whole, which must outlive a restart, to its authority.
#[derive(Clone)]
pub struct ProgressWriter(Arc<dyn RecordWriter>);

impl ProgressWriter {
    pub fn new(writer: Arc<dyn RecordWriter>) -> ProgressWriter {
        ProgressWriter(writer)
    }

    pub fn write(&self, key: &str, value: &impl Serialize) -> Result<(), SinkError> {
        let value = serde_json::to_vec(value).map_err(|error| SinkError::Fatal(error.to_string()))?;
        self.0.write_record(key, &value)
    }

    /// Makes durable that epochs below `until` may be in use. Call this before they are used.
    pub fn reserve_epochs(&self, until: u64) -> Result<(), SinkError> {
        self.write(EPOCHS, &until)
    }
}
