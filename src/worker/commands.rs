//! Commands to workers, and their events. Each worker has one queue of commands, which it executes
//! at one point of its loop.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::reader::LogPartition;
use super::replay::InstalledSinks;
use crate::model::{CheckpointBarrier, LogPosition, PartitionIndex};

/// A command of a process to its workers. All of them get the same commands in the same order.
#[derive(Clone)]
pub enum WorkerCommand {
    /// Read partitions up to these positions, which the primary has made durable.
    ReadUntil(Vec<(PartitionIndex, u64)>),
    /// This run owns the sinks: send them everything new behind these resume points. Read nothing
    /// more before the release.
    InstallResumePoints(Arc<InstalledSinks>),
    /// Every worker of every process has the resume points: continue reading.
    Release(Release),
    /// Epochs below this one may be used.
    ReserveEpochs { until: u64 },
    /// Read a partition that was added after the start.
    ReadPartition(LogPartition),
    /// Send this barrier with the next epoch. Worker 0 of process 0 does it for all.
    Barrier(CheckpointBarrier),
    /// Send everything that was read, then end.
    Stop,
}

/// The epochs from which this run owns the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The lowest epoch that may be used.
    pub floor: u64,
    /// Epochs below this one are durably reserved.
    pub reserved_until: u64,
}

/// A barrier whose epoch is complete: its checkpoint is the state after this epoch, and includes
/// the logs up to these positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlignedBarrier {
    pub barrier: CheckpointBarrier,
    pub epoch: u64,
    pub positions: BTreeMap<PartitionIndex, LogPosition>,
}

/// An event that a worker reports to its process.
pub enum WorkerEvent {
    /// One more worker has the resume points.
    ResumePointsInstalled,
    /// The epoch of a checkpoint is complete.
    BarrierAligned(AlignedBarrier),
    /// Whether serving or the sinks take results too slowly.
    Congested(bool),
    /// A permanent failure: the run ends with this text.
    Failed(String),
}

/// Receives the events of workers. It must not block.
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
            // A worker that has ended receives no more commands.
            let _ = queue.commands.send(command.clone());
            if let Some(thread) = queue.thread.get() {
                thread.unpark();
            }
        }
    }

    /// The command queue of a worker, by its index in the process. The calling thread runs the
    /// worker. Each queue can be taken once.
    pub fn subscribe(&self, worker: usize) -> Option<Receiver<WorkerCommand>> {
        let queue = self.0.get(worker)?;
        let _ = queue.thread.set(std::thread::current());
        queue.receiver.lock().take()
    }
}
