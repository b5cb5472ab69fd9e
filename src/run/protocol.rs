//! What the processes of a run tell each other.
//!
//! # Control
//!
//! Process 0 is the sequencer. It alone appends [`ControlCommand`]s to one ordered log; every process, process 0 included, applies them in
//! that order, and reports [`ControlEvent`]s to process 0. There are no other ways to agree on anything: a start, a takeover and a stop are
//! commands. So no two processes can be at different steps, and whatever is behind a `Stop` in the log is done by nobody.
//!
//! A command that must be done everywhere before the next one has an answer: process 0 waits until each process has sent it.
//!
//! | phase | command | answer of each process |
//! |---|---|---|
//! | [`Phase::Inspecting`] | [`OpenSinks`](ControlCommand::OpenSinks) | |
//! | inspecting, hydrating | [`FenceSink`](ControlCommand::FenceSink), a sink at a time, the authority first | [`SinkFenced`](ControlEvent::SinkFenced) |
//! | inspecting, hydrating | [`ClaimSinks`](ControlCommand::ClaimSinks), once all are fenced | |
//! | inspecting | [`LoadCheckpoint`](ControlCommand::LoadCheckpoint), the newest candidate first | [`CheckpointLoaded`](ControlEvent::CheckpointLoaded) |
//! | inspecting, ends it | [`Start`](ControlCommand::Start): workers are connected, and do not run yet | [`Started`](ControlEvent::Started) |
//! | [`Phase::Hydrating`] | [`RunWorkers`](ControlCommand::RunWorkers): they run, and read nothing yet | |
//! | hydrating | [`ReadUntil`](ControlCommand::ReadUntil), while another generation is followed | |
//! | hydrating | [`InstallResumePoints`](ControlCommand::InstallResumePoints) | [`ResumePointsInstalled`](ControlEvent::ResumePointsInstalled) |
//! | hydrating, ends it | [`Release`](ControlCommand::Release): the results are this run's | |
//! | [`Phase::Owning`] | [`ReserveEpochs`](ControlCommand::ReserveEpochs) | |
//! | owning | [`AddPartition`](ControlCommand::AddPartition), for each `PartitionFound` | [`PartitionKnown`](ControlEvent::PartitionKnown) |
//! | owning | [`ReadPartition`](ControlCommand::ReadPartition), once all know it | |
//! | owning | [`StartCheckpoint`](ControlCommand::StartCheckpoint) | `BarrierAligned`, of process 0 |
//! | owning | [`SealCheckpoint`](ControlCommand::SealCheckpoint), [`CancelCheckpoint`](ControlCommand::CancelCheckpoint) | [`CheckpointPart`](ControlEvent::CheckpointPart) |
//! | hydrating, owning, stopping | [`Pause`](ControlCommand::Pause), [`SetRefused`](ControlCommand::SetRefused), for `Congested`, `Refused` | |
//! | any, ends all | [`Stop`](ControlCommand::Stop), for the first `StopRequested` | |
//! | [`Phase::Stopping`] | [`ReserveEpochs`](ControlCommand::ReserveEpochs): results are still written | |
//!
//! A plain start and a takeover are the same from `InstallResumePoints` on. A process that fails says so with its last message on the link
//! ([`PeerEnd`](crate::cluster::PeerEnd)), which also works before all processes are connected.
//!
//! # Requests
//!
//! Beside control, a process asks process 0 to append posted readings to its log, and for the answers of schema registries.
//!
//! The format is postcard, and of one version of the program: the handshake refuses others, by [`CONTROL_VERSION`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::durable_sinks::SinkFacts;
use crate::model::{AppendError, CheckpointBarrier, LogPosition, NewRecord, PartitionIndex, PartitionName};
use crate::sinks::progress::{Positions, ProgressSnapshot, SinkClaim};
use crate::worker::{AlignedBarrier, Release, ResumePoints};

/// Counts the changes of the format. The processes of a run must agree on it.
pub const CONTROL_VERSION: u32 = 3;

/// A message on the link between process 0 and another one.
#[derive(Debug, Serialize, Deserialize)]
pub enum PeerMessage {
    /// From process 0.
    Command(ControlCommand),
    /// To process 0.
    Event(ControlEvent),
    /// To process 0: append this; the number is the caller's own.
    Append { call: u64, records: Vec<NewRecord> },
    /// From process 0.
    Appended { call: u64, result: Result<AppendedParts, AppendError> },
    /// To process 0: what does the registry of this source say of an id?
    AskSchema { call: u64, source: String, id: u32 },
    /// From process 0: the answer as JSON.
    SchemaAnswer { call: u64, answer: Result<String, String> },
}

/// An entry of the command log. The module says which may come when.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ControlCommand {
    /// What process 0 has found out about the sinks and their topics.
    OpenSinks(SinkFacts),
    /// Fence every earlier writer of the shards that the process writes.
    FenceSink(FenceOrder),
    /// All sinks are fenced, and hold this, by sink: they are this run's.
    ClaimSinks(Vec<ProgressSnapshot>),
    LoadCheckpoint(CheckpointRequest),
    /// Connect the workers of all processes, and serve.
    Start(StartPlan),
    /// All are connected. Let the workers run; they read nothing beyond the start of each partition. Behind a stop none is started, and from
    /// here on a stop ends them together: a worker that loses the others cannot end in order.
    RunWorkers,
    /// Partitions may be read up to here: the generation that is followed has made it durable.
    ReadUntil(Vec<(PartitionIndex, u64)>),
    /// Start the writers of the sinks' shards, and have every worker know where a replay stops for them.
    InstallResumePoints(ResumePoints),
    /// All workers of all processes know the resume points: read on, and write.
    Release(Release),
    /// Epochs below this one are durably reserved.
    ReserveEpochs {
        until: u64,
    },
    /// A partition was added after the start; it gets this index everywhere.
    AddPartition {
        index: PartitionIndex,
        name: PartitionName,
        start: u64,
    },
    /// All processes know the partition. None reads it before: what any process writes says of each partition how far it was read.
    ReadPartition {
        index: PartitionIndex,
    },
    /// Process 0 sends the barrier with its next epoch; the dataflow carries it to all workers.
    StartCheckpoint(CheckpointBarrier),
    /// The epoch of a checkpoint is complete, and includes the logs up to these positions: report the part once the shards have come as far.
    SealCheckpoint {
        checkpoint: u64,
        positions: Positions,
    },
    /// Nothing more is wanted of this checkpoint, nor of any before.
    CancelCheckpoint {
        checkpoint: u64,
    },
    /// Sources wait while any other process is congested: a bit for each.
    Pause {
        congested: u64,
    },
    /// Records refused since the start, by process.
    SetRefused(BTreeMap<usize, RefusedCounts>),
    Stop,
}

/// What a process reports. The module says what it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ControlEvent {
    SinkFenced {
        sink: usize,
    },
    CheckpointLoaded(Result<(), LoadFailure>),
    Started,
    ResumePointsInstalled,
    /// The greatest epoch in use, or wanted by a clock that is ahead.
    Progress {
        newest_epoch: u64,
    },
    /// Whether the process takes results too slowly.
    Congested(bool),
    /// Refused at the process since its start, if that has changed.
    Refused(RefusedCounts),
    /// At process 0: a source has a partition that is not known yet.
    PartitionFound {
        name: PartitionName,
        start: u64,
    },
    PartitionKnown {
        index: PartitionIndex,
    },
    /// At process 0: the epoch of a checkpoint is complete.
    BarrierAligned(AlignedBarrier),
    /// The part of a process, as checkpoints have it (JSON), or why there is none.
    CheckpointPart {
        checkpoint: u64,
        part: Result<Vec<u8>, String>,
    },
    /// By a signal, the supervisor, or another process.
    StopRequested,
}

/// By number of the reason in `Reason::ALL`, if it is not zero.
pub type RefusedCounts = Vec<(u8, u64)>;

/// See [`ControlCommand::FenceSink`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FenceOrder {
    pub sink: usize,
    pub claim: SinkClaim,
    /// The claim follows the one of a generation that was followed: if it is fenced itself, this run has only lost a race.
    pub is_takeover: bool,
}

/// Where a run has its checkpoints, and what is recorded in them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSettings {
    /// As the configuration writes it.
    pub place: String,
    /// As checkpoints of this run are named.
    pub generation: String,
    /// By source: the ids of the logs that have one.
    pub log_ids: BTreeMap<String, String>,
}

/// See [`ControlCommand::LoadCheckpoint`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointRequest {
    pub settings: CheckpointSettings,
    /// By index.
    pub partitions: Vec<PartitionName>,
    pub name: String,
}

/// What all processes begin with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartPlan {
    pub generation: Arc<str>,
    /// By index: the partitions, and from where each is read.
    pub partitions: Vec<(PartitionName, LogPosition)>,
    pub first_epoch: u64,
    /// Epochs that may be used before the release. A generation that follows another one publishes nothing, so it may use any.
    pub reserved_until: u64,
    /// By sink: what it held.
    pub progress: Vec<ProgressSnapshot>,
    pub checkpoints: Option<CheckpointSettings>,
    /// The checkpoint whose state the workers begin with; all processes have loaded it.
    pub restore: Option<String>,
    /// Another generation runs, and this one hydrates beside it.
    pub follows: bool,
}

/// Why a process has not loaded a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadFailure {
    pub why: String,
    pub kind: LoadFailureKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadFailureKind {
    Damaged,
    Missing,
    /// It is whole, and not for this run.
    Unfit,
    /// It is the store that fails.
    Store,
}

/// The result of an append.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendedParts {
    /// Partition, position of the first record, and behind the last one.
    pub positions: Vec<(PartitionName, u64, u64)>,
    /// Number of the record in the append, number of the reason in `Reason::ALL`, and why.
    pub refused: Vec<(u32, u8, String)>,
}

/// How far a run has come, as the command log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing runs yet.
    Inspecting,
    /// Workers run, and the results are not this run's yet.
    Hydrating,
    /// The results are this run's.
    Owning,
    Stopping,
}

impl ControlCommand {
    /// Whether the command may come in a phase.
    pub fn is_allowed_in(&self, phase: Phase) -> bool {
        use ControlCommand as C;
        use Phase::{Hydrating, Inspecting, Owning, Stopping};
        match self {
            C::OpenSinks(_) | C::LoadCheckpoint(_) | C::Start(_) => phase == Inspecting,
            C::FenceSink(_) | C::ClaimSinks(_) => matches!(phase, Inspecting | Hydrating),
            C::RunWorkers | C::ReadUntil(_) | C::InstallResumePoints(_) | C::Release(_) => phase == Hydrating,
            C::AddPartition { .. } | C::ReadPartition { .. } | C::StartCheckpoint(_) => phase == Owning,
            C::SealCheckpoint { .. } | C::CancelCheckpoint { .. } => phase == Owning,
            C::ReserveEpochs { .. } => matches!(phase, Owning | Stopping),
            C::Pause { .. } | C::SetRefused(_) => phase != Inspecting,
            C::Stop => phase != Stopping,
        }
    }

    /// The phase behind the command.
    pub fn phase_after(&self, phase: Phase) -> Phase {
        match self {
            ControlCommand::Start(_) => Phase::Hydrating,
            ControlCommand::Release(_) => Phase::Owning,
            ControlCommand::Stop => Phase::Stopping,
            _ => phase,
        }
    }
}
