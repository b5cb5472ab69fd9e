//! What processes say to each other beside the dataflow.

use serde::{Deserialize, Serialize};

use crate::model::{AppendError, NewRecord, PartitionIndex, PartitionName};
use crate::sinks::kafka::progress::Positions;

/// Between process 0 and another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// A part of the start: what all or one have to know.
    Value(Value),
    /// There is nothing to say.
    Alive,
    /// To process 0: append this; the number is the caller's own.
    Append { call: u64, records: Vec<NewRecord> },
    /// What became of that.
    Appended { call: u64, result: Result<AppendedParts, AppendError> },
    /// Results are not taken fast enough: to process 0 of one process, from it of any, so that all sources wait.
    Congested(bool),
    /// To process 0: the greatest epoch in use, or wanted by a clock that is ahead.
    Newest { epoch: u64 },
    /// From process 0: epochs below may be used.
    Reserved { upto: u64 },
    /// Records refused since the start, by number of the reason: to process 0 those of one process, from it those of all.
    Refused(Vec<(u8, u64)>),
    /// To process 0: what does the registry of this source say of an id?
    AskSchema { call: u64, source: String, id: u32 },
    /// The answer as JSON.
    Schema { call: u64, answer: Result<String, String> },
    /// From process 0: a partition has come. Nobody reads it before all know of it.
    Partition { slot: PartitionIndex, name: PartitionName, start: u64 },
    /// To process 0: this process does.
    PartitionKnown { slot: PartitionIndex },
    /// From process 0: all do.
    ReadPartition { slot: PartitionIndex },
    /// From process 0: the epoch of a checkpoint is complete, and includes the logs up to these positions.
    Sealed { checkpoint: u64, positions: Positions },
    /// From process 0: nothing more is wanted of this checkpoint, nor of any before.
    GivenUp { checkpoint: u64 },
    /// To process 0: a process's part of a checkpoint, as the checkpoints have it, or why there is none.
    Checkpoint { checkpoint: u64, part: Result<Vec<u8>, String> },
    /// From process 0: so far the generation that is followed has come, for certain.
    Follow(Vec<(PartitionIndex, u64)>),
    /// From process 0: it is time to take over.
    TakeOver,
    /// It is time to stop: to process 0 a wish, from it an order.
    Stop,
    /// The sender ends, for this reason; perhaps because another generation has taken over.
    Failed { why: String, taken_over: bool },
    /// The sender has done all that it had to do, and nothing more comes.
    Bye,
}

/// What a value of the start is, as both ends call it.
///
/// These texts are on the wire. They are the paths that the types had in the first version, and stay as they are, whatever the types
/// are called and wherever they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueName(pub(super) &'static str);

impl ValueName {
    /// Only that its step was reached.
    pub const NOTHING: ValueName = ValueName("()");
    /// Whether all go on, or whether a checkpoint is good.
    pub const FLAG: ValueName = ValueName("bool");
    /// Generation of a run's checkpoints.
    pub const TEXT: ValueName = ValueName("alloc::string::String");
    /// Where checkpoints are, or the name of one.
    pub const OPTIONAL_TEXT: ValueName = ValueName("core::option::Option<alloc::string::String>");
    /// Why a process has not loaded a checkpoint.
    pub const LOAD_FAILURE: ValueName =
        ValueName(concat!("core::option::Option<swelter::", "pipeline::checkpoints::Failure>"));
    /// What was found of topics before a start.
    pub const TOPICS: ValueName = ValueName(concat!("swelter::", "pipeline::outlets::Found"));
    /// A claim of results, and what was there before it.
    pub const CLAIM: ValueName = ValueName(concat!("swelter::", "sinks::kafka::outlet::Claimed"));
    /// What a progress topic holds.
    pub const PROGRESS: ValueName = ValueName(concat!("swelter::", "sinks::kafka::progress::Kept"));
    /// What all progress topics hold.
    pub const ALL_PROGRESS: ValueName =
        ValueName(concat!("alloc::vec::Vec<swelter::", "sinks::kafka::progress::Kept>"));
    /// Generation, partitions and first epoch of a start.
    pub const START: ValueName = ValueName(concat!("swelter::", "pipeline::live::start::Start"));
    /// Where shards go on, and the epochs that may be used.
    pub const OPENING: ValueName = ValueName(concat!("swelter::", "pipeline::live::active_run::Opening"));
}

/// What became of an append.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendedParts {
    /// Partition, position of the first record, and behind the last one.
    pub positions: Vec<(PartitionName, u64, u64)>,
    /// Number of the record in the append, number of the reason in `Reason::ALL`, and why.
    pub refused: Vec<(u32, u8, String)>,
}

/// A value of the start. Both ends must be at the same step of it, and mean the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    pub step: u64,
    /// What it is: a [`ValueName`].
    pub of: String,
    pub bytes: Vec<u8>,
}

#[cfg(test)]
mod tests;
