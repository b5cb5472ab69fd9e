//! The contract of a record log that workers read, and the logs that implement it.
//!
//! A live [`Source`] has a fixed number of partitions. Each partition is read by one worker, never
//! blocks, and can be reopened at any position that it has delivered. It then delivers the same
//! records again.

pub mod file;
pub mod generator;
pub mod journal;
pub mod kafka;
pub mod weather;

use std::thread::Thread;
use std::time::Instant;

use crate::model::{EventTime, Fingerprint, LogPosition, RawRecord, Refusal, Upsert};

/// A partitioned record log.
pub trait Source: Send + Sync {
    /// The name of the source in the configuration, in positions and in dead letters.
    fn name(&self) -> &str;

    /// The current number of partitions. Some logs can gain partitions; none loses any.
    fn partitions(&self) -> u32;

    /// Whether every process of a cluster can read this log, not only the first process.
    fn is_shared(&self) -> bool {
        false
    }

    /// The first position to read of a partition that was never read before. `first_start` is false
    /// if the partition was added after the first start: then it is read from its beginning.
    fn start_position(&self, _partition: u32, _first_start: bool) -> Result<u64, SourceError> {
        Ok(0)
    }

    /// The id of the log beside its name. It differs after the log was deleted and recreated, or
    /// copied. A log without an id is identified by its records alone.
    fn log_id(&self) -> Result<Option<String>, SourceError> {
        Ok(None)
    }

    /// Checks that the log still reaches a position that was read before, and still has the same
    /// record before it.
    ///
    /// # Errors
    ///
    /// [`SourceError::EndsBefore`] if the log ends before the position,
    /// [`SourceError::RecordDiffers`] if another record is before it, and [`SourceError::Fatal`] if
    /// reading cannot continue there for another reason. Each says what to do.
    fn check_position(&self, _partition: u32, _at: LogPosition) -> Result<(), SourceError> {
        Ok(())
    }

    /// Opens a partition at the position of the first record to deliver. [`Source::check_position`]
    /// must accept this position. After a poll that found nothing, `worker` is unparked if there is
    /// something to poll.
    fn open_partition(
        &self,
        partition: u32,
        position: u64,
        worker: Thread,
    ) -> Result<Box<dyn Partition>, SourceError>;
}

/// An open partition, read by one worker.
pub trait Partition {
    /// Passes available records to the handler without waiting: at most `limit`, none at or after
    /// position `until`, and none once the handler is full.
    fn poll(
        &mut self,
        limit: usize,
        until: u64,
        handler: &mut dyn RecordHandler,
    ) -> Result<PollResult, SourceError>;

    /// The position behind the last record known to be in the log; it grows as the log is written.
    /// [`u64::MAX`] if it is unknown, as long as more can be polled at once.
    fn end(&self) -> u64;

    /// The position before which all records were delivered, if it may be later than the one behind
    /// the last record: not every position holds a record.
    fn position(&self) -> Option<u64> {
        None
    }

    /// The number of positions from [`Partition::end`] on that are in the log but wait for the end
    /// of a transaction.
    fn withheld(&self) -> u64 {
        0
    }

    /// The fingerprint of the last delivered record, if there is one. Logs that cannot be compared
    /// have none.
    fn fingerprint(&self) -> Option<Fingerprint> {
        None
    }
}

/// The position and the arrival time of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPosition {
    /// The number of the record in its partition.
    pub position: u64,
    /// When the record was appended to the log, if the log knows.
    pub arrived: Option<EventTime>,
}

/// Receives the records of a partition.
pub trait RecordHandler {
    /// Handles a record. If it returns a refusal, [`RecordHandler::handle_refusal`] is called
    /// before the next record.
    fn handle_upsert(&mut self, position: RecordPosition, upsert: &Upsert<'_>) -> Result<(), Refusal>;

    /// If true, the handler accepts no more for now, and the poll must end.
    fn is_full(&self) -> bool {
        false
    }

    /// Handles the exact bytes of a record that could not be decoded or was refused.
    fn handle_refusal(&mut self, position: RecordPosition, refusal: &Refusal, raw: &RawRecord<'_>);
}

/// The result of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollResult {
    /// The number of records that were handled, accepted or refused.
    pub records: usize,
    pub next: NextPoll,
}

/// When to poll again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextPoll {
    /// Poll again at once: more can be read.
    Now,
    /// Poll again at this time, not before.
    At(Instant),
    /// Poll again if the worker is unparked.
    OnUnpark,
    /// Poll again at once with a later `until`: no record is left before this one, though the last
    /// delivered record may be further back.
    UntilReached,
    /// Do not poll again: the log has ended.
    EndOfLog,
}

/// Why a partition cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// A permanent error. The text says what to do.
    #[error("{0}")]
    Fatal(String),
    /// A transient error: poll again later.
    #[error("{0}")]
    Transient(String),
    /// The log ends before a position that was read. Permanent.
    #[error("{0}")]
    EndsBefore(String),
    /// The record before a position that was read is another one. Permanent.
    #[error("{0}")]
    RecordDiffers(String),
}

/// Mixes the bits of a word: the output step of SplitMix64 (Steele, Lea, Flood 2014). Generated
/// values are hashes of their keys, not outputs of a stateful generator, so they do not depend on
/// the order of the draws.
fn mix64(word: u64) -> u64 {
    let z = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Converts a hash to a number in `[0, 1)`.
fn unit_interval(hash: u64) -> f64 {
    (hash >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}
