//! The messages between the processes of a run.
//!
//! # Control
//!
//! Process 0 is the sequencer. It alone appends [`ControlCommand`]s to one ordered log. Every
//! process, process 0 included, applies them in that order and reports [`ControlEvent`]s to process
//! 0. Processes agree in no other way: a start, a takeover and a stop are commands. So no two
//! processes can be at different steps, and no process executes a command behind a `Stop`.
//!
//! A command that every process must execute before the next one has an answer: process 0 waits
//! until each process has sent it.
//!
//! | phase | command | answer of each process |
//! |---|---|---|
//! | [`Phase::Inspecting`] | [`OpenSinks`] | |
//! | inspecting, hydrating | [`FenceSink`], one by one, the authority first | [`SinkFenced`] |
//! | inspecting, hydrating | [`ClaimSinks`], once all are fenced | |
//! | inspecting | [`LoadCheckpoint`], the newest candidate first | [`CheckpointLoaded`] |
//! | inspecting, ends it | [`Start`]: workers are connected, and do not run yet | [`Started`] |
//! | [`Phase::Hydrating`] | [`RunWorkers`]: they run, and read nothing yet | |
//! | hydrating | [`ReadUntil`], while another generation is followed | |
//! | hydrating | [`InstallResumePoints`] | [`ResumePointsInstalled`] |
//! | hydrating, ends it | [`Release`]: this run owns the results | |
//! | [`Phase::Owning`] | [`ReserveEpochs`] | |
//! | owning | [`AddPartition`], for each `PartitionFound` | [`PartitionKnown`] |
//! | owning | [`ReadPartition`], once all processes know it | |
//! | owning | [`StartCheckpoint`] | `BarrierAligned`, of process 0 |
//! | owning | [`SealCheckpoint`], [`CancelCheckpoint`] | [`CheckpointPart`] |
//! | hydrating, owning, stopping | [`Pause`], [`SetRefused`], for `Congested`, `Refused` | |
//! | any, ends all | [`Stop`], for the first `StopRequested` | |
//! | [`Phase::Stopping`] | [`ReserveEpochs`]: results are still written | |
//!
//! A plain start and a takeover are the same from `InstallResumePoints` on. A process that fails
//! reports it with its last message on the link ([`PeerEnd`](crate::cluster::PeerEnd)), which also
//! works before all processes are connected.
//!
//! # Requests
//!
//! In addition, a process asks process 0 to append posted readings to its log, and for responses of
//! schema registries.
//!
//! The format is postcard and belongs to one version of the program: the handshake refuses a
//! process with another [`CONTROL_VERSION`].
//!
//! [`OpenSinks`]: ControlCommand::OpenSinks
//! [`FenceSink`]: ControlCommand::FenceSink
//! [`ClaimSinks`]: ControlCommand::ClaimSinks
//! [`LoadCheckpoint`]: ControlCommand::LoadCheckpoint
//! [`Start`]: ControlCommand::Start
//! [`RunWorkers`]: ControlCommand::RunWorkers
//! [`ReadUntil`]: ControlCommand::ReadUntil
//! [`InstallResumePoints`]: ControlCommand::InstallResumePoints
//! [`Release`]: ControlCommand::Release
//! [`ReserveEpochs`]: ControlCommand::ReserveEpochs
//! [`AddPartition`]: ControlCommand::AddPartition
//! [`ReadPartition`]: ControlCommand::ReadPartition
//! [`StartCheckpoint`]: ControlCommand::StartCheckpoint
//! [`SealCheckpoint`]: ControlCommand::SealCheckpoint
//! [`CancelCheckpoint`]: ControlCommand::CancelCheckpoint
//! [`Pause`]: ControlCommand::Pause
//! [`SetRefused`]: ControlCommand::SetRefused
//! [`Stop`]: ControlCommand::Stop
//! [`SinkFenced`]: ControlEvent::SinkFenced
//! [`CheckpointLoaded`]: ControlEvent::CheckpointLoaded
//! [`Started`]: ControlEvent::Started
//! [`ResumePointsInstalled`]: ControlEvent::ResumePointsInstalled
//! [`PartitionKnown`]: ControlEvent::PartitionKnown
//! [`CheckpointPart`]: ControlEvent::CheckpointPart

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::durable_sinks::SinkFacts;
use crate::model::{AppendError, CheckpointBarrier, LogPosition, NewRecord, PartitionIndex, PartitionName};
use crate::sinks::progress::{Positions, ProgressSnapshot, SinkClaim};
use crate::worker::{AlignedBarrier, Release, ResumePoints};

/// The version of the message format. The processes of a run must have the same one.
pub const CONTROL_VERSION: u32 = 3;

/// A message on the link between process 0 and another one.
#[derive(Debug, Serialize, Deserialize)]
pub enum PeerMessage {
    /// From process 0.
    Command(ControlCommand),
    /// To process 0.
    Event(ControlEvent),
    /// To process 0: append these records. The caller chooses the number of the call.
    Append { call: u64, records: Vec<NewRecord> },
    /// From process 0.
    Appended { call: u64, result: Result<AppendedParts, AppendError> },
    /// To process 0: get the registry's response for an id of this source.
    AskSchema { call: u64, source: String, id: u32 },
    /// From process 0: the response as JSON.
    SchemaAnswer { call: u64, answer: Result<String, String> },
}

/// An entry of the command log. The module documentation lists the phases that allow each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ControlCommand {
    /// The facts about the sinks and their topics that process 0 has collected.
    OpenSinks(SinkFacts),
    /// Fence every earlier writer of the shards that the process writes.
    FenceSink(FenceOrder),
    /// All sinks are fenced and belong to this run. Holds their progress, by sink.
    ClaimSinks(Vec<ProgressSnapshot>),
    LoadCheckpoint(CheckpointRequest),
    /// Connect the workers of all processes, and serve.
    Start(StartPlan),
    /// All workers are connected; start them. They read nothing beyond the start of each partition.
    /// No worker starts behind a stop. From here on a stop ends all workers together, because a
    /// worker that loses the others cannot end in order.
    RunWorkers,
    /// Partitions may be read until these positions, which the primary has made durable.
    ReadUntil(Vec<(PartitionIndex, u64)>),
    /// Start the writers of the sinks' shards, and give every worker the resume points of a replay.
    InstallResumePoints(ResumePoints),
    /// All workers of all processes have the resume points: continue reading, and write.
    Release(Release),
    /// Epochs below this one are durably reserved.
    ReserveEpochs {
        until: u64,
    },
    /// A partition was added after the start; it has this index in all processes.
    AddPartition {
        index: PartitionIndex,
        name: PartitionName,
        start: u64,
    },
    /// All processes know the partition. No process reads it earlier, because progress records name
    /// every partition that was read.
    ReadPartition {
        index: PartitionIndex,
    },
    /// Process 0 sends the barrier with its next epoch; the dataflow carries it to all workers.
    StartCheckpoint(CheckpointBarrier),
    /// The epoch of a checkpoint is complete, and includes the logs up to these positions. Report
    /// the part once the shards have reached them.
    SealCheckpoint {
        checkpoint: u64,
        positions: Positions,
    },
    /// Cancels this checkpoint and all earlier ones.
    CancelCheckpoint {
        checkpoint: u64,
    },
    /// Sources wait while any other process is congested: one bit for each process.
    Pause {
        congested: u64,
    },
    /// Records refused since the start, by process.
    SetRefused(BTreeMap<usize, RefusedCounts>),
    Stop,
}

/// What a process reports. The module documentation lists the commands that they answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ControlEvent {
    SinkFenced {
        sink: usize,
    },
    CheckpointLoaded(Result<(), LoadFailure>),
    Started,
    ResumePointsInstalled,
    /// The greatest epoch in use, or requested by a clock that is ahead.
    Progress {
        newest_epoch: u64,
    },
    /// Whether the process takes results too slowly.
    Congested(bool),
    /// Counts of records refused at the process since its start, sent if they have changed.
    Refused(RefusedCounts),
    /// At process 0: a source has a new partition.
    PartitionFound {
        name: PartitionName,
        start: u64,
    },
    PartitionKnown {
        index: PartitionIndex,
    },
    /// At process 0: the epoch of a checkpoint is complete.
    BarrierAligned(AlignedBarrier),
    /// The part of a process as JSON, as in a manifest, or why there is none.
    CheckpointPart {
        checkpoint: u64,
        part: Result<Vec<u8>, String>,
    },
    /// A signal, the supervisor or another process has requested a stop.
    StopRequested,
}

/// Nonzero counts, by the index of the reason in `Reason::ALL`.
pub type RefusedCounts = Vec<(u8, u64)>;

/// See [`ControlCommand::FenceSink`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FenceOrder {
    pub sink: usize,
    pub claim: SinkClaim,
    /// The claim follows the primary's. If the claim itself is fenced, this run has only lost a
    /// race.
    pub is_takeover: bool,
}

/// The location of a run's checkpoints, and the identity recorded in them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSettings {
    /// The location, as the configuration writes it.
    pub place: String,
    /// The generation in the names of this run's checkpoints.
    pub generation: String,
    /// Ids of the logs that have one, by source.
    pub log_ids: BTreeMap<String, String>,
}

/// See [`ControlCommand::LoadCheckpoint`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointRequest {
    pub settings: CheckpointSettings,
    /// Partitions by index.
    pub partitions: Vec<PartitionName>,
    pub name: String,
}

/// The initial state that all processes share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StartPlan {
    pub generation: Arc<str>,
    /// Partitions by index, and the position at which reading each one starts.
    pub partitions: Vec<(PartitionName, LogPosition)>,
    pub first_epoch: u64,
    /// Epochs that may be used before the release. A hydrating generation publishes nothing, so it
    /// may use any epoch.
    pub reserved_until: u64,
    /// Progress of each sink when it was claimed or inspected.
    pub progress: Vec<ProgressSnapshot>,
    pub checkpoints: Option<CheckpointSettings>,
    /// The checkpoint that the workers restore; all processes have loaded it.
    pub restore: Option<String>,
    /// This generation hydrates beside a running one.
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
    /// The checkpoint is complete, but not usable for this run.
    Unfit,
    /// The store fails.
    Store,
}

/// The result of an append.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendedParts {
    /// Partition, position of the first record, and position behind the last one.
    pub positions: Vec<(PartitionName, u64, u64)>,
    /// Index of the record in the append, index of the reason in `Reason::ALL`, and the
    /// explanation.
    pub refused: Vec<(u32, u8, String)>,
}

/// The phase of a run, according to the command log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No worker runs yet.
    Inspecting,
    /// Workers run, and this run does not own the results yet.
    Hydrating,
    /// This run owns the results.
    Owning,
    Stopping,
}

impl Phase {
    /// The name in error texts.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Inspecting => "inspecting",
            Phase::Hydrating => "hydrating",
            Phase::Owning => "owning",
            Phase::Stopping => "stopping",
        }
    }
}

impl ControlEvent {
    /// The name of the kind in error texts.
    pub fn kind(&self) -> &'static str {
        match self {
            ControlEvent::SinkFenced { .. } => "sink fenced",
            ControlEvent::CheckpointLoaded(_) => "checkpoint loaded",
            ControlEvent::Started => "started",
            ControlEvent::ResumePointsInstalled => "resume points installed",
            ControlEvent::Progress { .. } => "progress",
            ControlEvent::Congested(_) => "congested",
            ControlEvent::Refused(_) => "refused counts",
            ControlEvent::PartitionFound { .. } => "partition found",
            ControlEvent::PartitionKnown { .. } => "partition known",
            ControlEvent::BarrierAligned(_) => "barrier aligned",
            ControlEvent::CheckpointPart { .. } => "checkpoint part",
            ControlEvent::StopRequested => "stop requested",
        }
    }
}

impl ControlCommand {
    /// The name of the kind in error texts.
    pub fn kind(&self) -> &'static str {
        match self {
            ControlCommand::OpenSinks(_) => "open sinks",
            ControlCommand::FenceSink(_) => "fence sink",
            ControlCommand::ClaimSinks(_) => "claim sinks",
            ControlCommand::LoadCheckpoint(_) => "load checkpoint",
            ControlCommand::Start(_) => "start",
            ControlCommand::RunWorkers => "run workers",
            ControlCommand::ReadUntil(_) => "read until",
            ControlCommand::InstallResumePoints(_) => "install resume points",
            ControlCommand::Release(_) => "release",
            ControlCommand::ReserveEpochs { .. } => "reserve epochs",
            ControlCommand::AddPartition { .. } => "add partition",
            ControlCommand::ReadPartition { .. } => "read partition",
            ControlCommand::StartCheckpoint(_) => "start checkpoint",
            ControlCommand::SealCheckpoint { .. } => "seal checkpoint",
            ControlCommand::CancelCheckpoint { .. } => "cancel checkpoint",
            ControlCommand::Pause { .. } => "pause",
            ControlCommand::SetRefused(_) => "set refused counts",
            ControlCommand::Stop => "stop",
        }
    }

    /// Whether the command is allowed in a phase.
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

    /// The phase after the command.
    pub fn phase_after(&self, phase: Phase) -> Phase {
        match self {
            ControlCommand::Start(_) => Phase::Hydrating,
            ControlCommand::Release(_) => Phase::Owning,
            ControlCommand::Stop => Phase::Stopping,
            _ => phase,
        }
    }
}

/// A partition in tests of control.
#[cfg(test)]
pub fn partition_name(partition: u32) -> PartitionName {
    PartitionName { source: "readings".into(), partition }
}

/// The first start of a run with one partition, in tests of control.
#[cfg(test)]
pub fn start_command() -> ControlCommand {
    ControlCommand::Start(StartPlan {
        generation: "1-a".into(),
        partitions: vec![(partition_name(0), 0.into())],
        first_epoch: 1,
        reserved_until: 0,
        progress: Vec::new(),
        checkpoints: None,
        restore: None,
        follows: false,
    })
}
