//! Where logs come from, and readings that are made up.
//!
//! A live [`Source`] has a fixed number of partitions. Each is read by one worker, never waits, and
//! can be opened again behind any position that it has given out: from there on it gives the same
//! records again.

pub mod file;
pub mod generator;
pub mod journal;
pub mod kafka;
pub mod weather;

use std::thread::Thread;
use std::time::Instant;

use crate::model::{EventTime, Fingerprint, LogPosition, RawRecord, Refusal, Upsert};

/// A log of partitions.
pub trait Source: Send + Sync {
    /// As it is called in the configuration, in positions and in dead letters.
    fn name(&self) -> &str;

    /// How many there are by now. Some logs can be given more; none loses any.
    fn partitions(&self) -> u32;

    /// Whether every process of a cluster can read it, not the first one alone.
    fn is_shared(&self) -> bool {
        false
    }

    /// Where a partition is read from that was never read before; `first_start` is false where the
    /// partition came later, and all of it is to be read.
    fn start_position(&self, _partition: u32, _first_start: bool) -> Result<u64, SourceError> {
        Ok(0)
    }

    /// What the log is known by beside its name: another one after it was deleted and made again,
    /// or copied. Logs that have no id are known by their records alone.
    fn log_id(&self) -> Result<Option<String>, SourceError> {
        Ok(None)
    }

    /// Whether the log still reaches a position that was read up to before, and still has the
    /// record before it.
    ///
    /// # Errors
    ///
    /// [`SourceError::EndsBefore`] if it ends before, [`SourceError::RecordDiffers`] if the record is another
    /// one, [`SourceError::Fatal`] if it does not go on there for another reason; each with what to
    /// do.
    fn check_position(&self, _partition: u32, _at: LogPosition) -> Result<(), SourceError> {
        Ok(())
    }

    /// Opens a partition at a position: the number of the first record that it will give, if
    /// [`Source::check_position`] allows. `worker` is unparked when there is something to poll after a poll
    /// has found nothing.
    fn open_partition(
        &self,
        partition: u32,
        position: u64,
        worker: Thread,
    ) -> Result<Box<dyn Partition>, SourceError>;
}

/// A partition that a worker reads.
pub trait Partition {
    /// Gives what is there to `take`, at most `limit` records and none from position `upto` on,
    /// while it is not full; without waiting.
    fn poll(
        &mut self,
        limit: usize,
        until: u64,
        handler: &mut dyn RecordHandler,
    ) -> Result<PollResult, SourceError>;

    /// The position behind the last record that is known to be in the log; grows while it is
    /// written. [`u64::MAX`] where it is not known, as long as there is more to poll at once.
    fn end(&self) -> u64;

    /// The position that all records before have been given of, where it may lie behind the last
    /// one: not every position holds a record.
    fn position(&self) -> Option<u64> {
        None
    }

    /// How many positions from [`Partition::end`] on are in the log and wait for the end of a
    /// transaction.
    fn withheld(&self) -> u64 {
        0
    }

    /// Of the last record that was given, if one was; logs that cannot be compared have none.
    fn fingerprint(&self) -> Option<Fingerprint> {
        None
    }
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPosition {
    /// The record's number in its partition.
    pub position: u64,
    /// When the log took it, where the log knows.
    pub arrived: Option<EventTime>,
}

/// Who takes what a partition gives.
pub trait RecordHandler {
    /// Takes a record, or says why not; then [`RecordHandler::handle_refusal`] gets it, before the next record.
    fn handle_upsert(&mut self, position: RecordPosition, upsert: &Upsert<'_>) -> Result<(), Refusal>;

    /// It takes no more for now: the poll is to end.
    fn is_full(&self) -> bool {
        false
    }

    /// Takes the exact bytes of a record that could not be decoded or was not taken.
    fn handle_refusal(&mut self, position: RecordPosition, refusal: &Refusal, raw: &RawRecord<'_>);
}

/// What a poll has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollResult {
    /// Records given, taken or refused.
    pub records: usize,
    pub next: NextPoll,
}

/// When to poll again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextPoll {
    /// At once: there is more.
    Now,
    /// Then, and not before.
    At(Instant),
    /// When the worker is unparked.
    OnUnpark,
    /// At once, with a later `upto`: nothing is left before this one, though the last record may be
    /// further back.
    UntilReached,
    /// Never: the log has ended.
    EndOfLog,
}

/// Why a partition cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It will not get better by itself. The text says what to do.
    #[error("{0}")]
    Fatal(String),
    /// It may: poll again later.
    #[error("{0}")]
    Transient(String),
    /// The log ends before a position that was read up to. It will not get better by itself.
    #[error("{0}")]
    EndsBefore(String),
    /// A record before a position that was read up to is another one. It will not get better by
    /// itself.
    #[error("{0}")]
    RecordDiffers(String),
}

/// Mixes the bits of a word: the output step of SplitMix64 (Steele, Lea, Flood 2014). What is made
/// up is made of hashes of what it is for, not of a generator's running state, so that it does not
/// depend on the order of asking.
fn mix64(word: u64) -> u64 {
    let z = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A hash as a number in `[0, 1)`.
fn unit_interval(hash: u64) -> f64 {
    (hash >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}
