//! What every durable sink implements: the module above says in which order it is called.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use serde::Serialize;

use super::error::SinkError;
use super::progress::{ClaimRequest, EPOCHS, ProgressSnapshot, SinkClaim};
use super::shard::FencedShards;
use super::stop::StopDeadline;

/// A durable sink as it is configured. Nothing is held of it between calls, and no call but [`claim`](DurableSink::claim),
/// [`fence`](DurableSink::fence) and [`read_progress`](DurableSink::read_progress) changes it.
pub trait DurableSink: Send + Sync {
    /// How many shards it has: fixed at its first start.
    fn shards(&self) -> u16;

    /// Between two commits of a shard.
    fn commit_interval(&self) -> Duration;

    /// By which label and value metrics name the sink.
    fn metric_label(&self) -> (&'static str, String);

    /// Reads what the sink holds, while others may be writing it; what is not committed does not count.
    ///
    /// # Errors
    ///
    /// If this run could not go on with it, with what to do. [`SinkError::Unavailable`] if it does not answer `within` the time.
    fn inspect(&self, within: Duration) -> Result<ProgressSnapshot, SinkError>;

    /// Claims the sink for this run.
    ///
    /// # Errors
    ///
    /// [`SinkError::Fenced`] if the request is to follow a claim, and anybody but that has the sink. The identity is compared again.
    fn claim(&self, request: &ClaimRequest<'_>) -> Result<SinkClaim, SinkError>;

    /// Whether a claim still holds.
    ///
    /// # Errors
    ///
    /// [`SinkError::Fenced`] if it does not.
    fn check_claim(&self, claim: &SinkClaim) -> Result<(), SinkError>;

    /// Lets standbys know that whoever made the claim lives, until the heartbeat is dropped. None if the sink has no such signs.
    fn prove_liveness(&self, claim: &SinkClaim) -> Result<Option<Heartbeat>, SinkError>;

    /// Fences every earlier writer of these shards, numbered within the sink.
    fn fence(&self, claim: &SinkClaim, shards: &[u16]) -> Result<FencedShards, SinkError>;

    /// Reads what is durable, once every process has fenced its shards, and records the identity.
    ///
    /// # Errors
    ///
    /// [`SinkError::Fenced`] if another start has claimed the sink meanwhile.
    fn read_progress(&self, claim: &SinkClaim) -> Result<ProgressSnapshot, SinkError>;

    /// Records what the run as a whole must keep, if the sink can be its authority.
    fn progress_writer(&self) -> Result<Option<ProgressWriter>, SinkError>;

    /// Waits until the run ends.
    ///
    /// # Errors
    ///
    /// [`SinkError::Fenced`] once another start has claimed the sink.
    fn watch_for_claims(&self, claim: &SinkClaim, stop: &Arc<StopDeadline>) -> Result<(), SinkError>;
}

/// A sign of life that goes on until this is dropped.
pub struct Heartbeat {
    /// Its end is the end.
    _ends: Sender<()>,
}

impl Heartbeat {
    /// Goes on until the other end of the channel hears that this end is gone.
    pub fn until_dropped(ends: Sender<()>) -> Heartbeat {
        Heartbeat { _ends: ends }
    }
}

/// Writes a record of the authority, and waits until it is durable.
pub trait RecordWriter: Send + Sync {
    /// `value` is JSON.
    fn write_record(&self, key: &str, value: &[u8]) -> Result<(), SinkError>;
}

/// Records what must outlive a restart of the run as a whole, at its authority.
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

    /// Makes durable that epochs below `until` may be in use. To be called ahead of their use.
    pub fn reserve_epochs(&self, until: u64) -> Result<(), SinkError> {
        self.write(EPOCHS, &until)
    }
}
