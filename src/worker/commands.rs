//! What workers are told to do, and what they report: each worker has one queue of commands, and acts on it at one point of its loop.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;

use serde::{Deserialize, Serialize};

use super::reader::LogPartition;
use super::replay::InstalledSinks;
use crate::model::{CheckpointBarrier, LogPosition, PartitionIndex};

/// A command of a process to its workers. All of them get the same commands in the same order.
#[derive(Clone)]
pub enum WorkerCommand {
    /// Read partitions up to these positions, which the generation that is followed has made durable.
    ReadUntil(Vec<(PartitionIndex, u64)>),
    /// The sinks are this run's: give them what is new behind these points. Nothing more is read before the release.
    InstallResumePoints(Arc<InstalledSinks>),
    /// Every worker of every process knows the resume points: read on.
    Release(Release),
    /// Epochs below this one may be used.
    ReserveEpochs { until: u64 },
    /// Read a partition that was added after the start.
    ReadPartition(LogPartition),
    /// Send this barrier with the next epoch. Worker 0 of process 0 does it, for all.
    Barrier(CheckpointBarrier),
    /// Send what was read, then end.
    Stop,
}

/// From when on the results are this run's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// No epoch below may be used.
    pub floor: u64,
    /// Epochs below are durably reserved.
    pub reserved_until: u64,
}

/// A checkpoint is of the state after this epoch, which is complete up to these positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlignedBarrier {
    pub barrier: CheckpointBarrier,
    pub epoch: u64,
    pub positions: BTreeMap<PartitionIndex, LogPosition>,
}

/// What a worker reports to its process.
pub enum WorkerEvent {
    /// One more worker knows the resume points.
    ResumePointsInstalled,
    /// The epoch of a checkpoint is complete.
    BarrierAligned(AlignedBarrier),
    /// Serving or the sinks take results too slowly, or no longer do.
    Congested(bool),
    /// Nothing can be done about it: the run ends with this line.
    Failed(String),
}

/// Where workers report. It must not wait.
pub type ReportWorkerEvent = Arc<dyn Fn(WorkerEvent) + Send + Sync>;

/// Sends commands to all workers of a process.
#[derive(Clone)]
pub struct WorkerCommandSender(Arc<Vec<WorkerQueue>>);

struct WorkerQueue {
    commands: Sender<WorkerCommand>,
    /// Taken by the worker when it starts.
    receiver: Mutex<Option<Receiver<WorkerCommand>>>,
    thread: OnceLock<Thread>,
}

impl WorkerCommandSender {
    pub fn new(workers: usize) -> WorkerCommandSender {
        let queue = |_| {
            let (commands, receiver) = mpsc::channel();
            WorkerQueue { commands, receiver: Mutex::new(Some(receiver)), thread: OnceLock::new() }
        };
        WorkerCommandSender(Arc::new((0..workers).map(queue).collect()))
    }

    /// Appends a command to the queue of each worker, and wakes them.
    pub fn send(&self, command: &WorkerCommand) {
        for queue in self.0.iter() {
            // A worker that has ended takes no more commands.
            let _ = queue.commands.send(command.clone());
            if let Some(thread) = queue.thread.get() {
                thread.unpark();
            }
        }
    }

    /// The commands of a worker, numbered within its process, which the calling thread runs. Each can be taken once.
    pub fn subscribe(&self, worker: usize) -> Option<Receiver<WorkerCommand>> {
        let queue = self.0.get(worker)?;
        let _ = queue.thread.set(std::thread::current());
        queue.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
