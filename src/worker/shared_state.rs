//! State that the workers of a process share with the serving threads and the rest of the run:
//! flags and counters. Instructions come as [`WorkerCommand`](super::commands::WorkerCommand)s.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::Thread;

use parking_lot::Mutex;

use super::commands::{ReportWorkerEvent, WorkerEvent};
use super::refusals::Refusals;
use crate::model::clock::wall_clock_ms;
use crate::model::{PartitionIndex, Queries, Query};

/// Calls of [`Queries::submit_queries`] that may wait.
pub const MAX_QUEUED_QUERIES: usize = 1024;

/// Flags, counters and queues shared by all workers of a process.
pub struct SharedState {
    /// Serving or the sinks take results too slowly, at this process or another one.
    is_congested: AtomicBool,
    is_congested_elsewhere: AtomicBool,
    /// The greatest epoch in use. It is ahead of the clock if the clock was set back.
    newest_epoch: AtomicU64,
    pub refusals: Refusals,
    query_sender: SyncSender<Vec<Query>>,
    queries: Mutex<Receiver<Vec<Query>>>,
    /// Partitions were read since the last call of `take_moved`.
    has_moved: AtomicBool,
    positions: Mutex<HashMap<PartitionIndex, u64>>,
    /// The worker that takes the queries.
    serving_worker: OnceLock<Thread>,
    reporter: ReportWorkerEvent,
}

impl SharedState {
    /// `reporter` receives the events of workers, and must not block.
    pub fn new(refusals: Refusals, reporter: ReportWorkerEvent) -> SharedState {
        let (query_sender, queries) = mpsc::sync_channel(MAX_QUEUED_QUERIES);
        SharedState {
            is_congested: AtomicBool::new(false),
            is_congested_elsewhere: AtomicBool::new(false),
            newest_epoch: AtomicU64::new(0),
            refusals,
            query_sender,
            queries: Mutex::new(queries),
            has_moved: AtomicBool::new(false),
            positions: Mutex::default(),
            serving_worker: OnceLock::new(),
            reporter,
        }
    }

    pub fn report(&self, event: WorkerEvent) {
        (self.reporter)(event);
    }

    /// Ends the run with this text, unless another failure was first.
    pub fn fail(&self, why: String) {
        self.report(WorkerEvent::Failed(why));
    }

    /// The greatest epoch in use, or the clock's if that is greater.
    pub fn newest_epoch(&self) -> u64 {
        self.newest_epoch.load(Ordering::Relaxed).max(ingest_clock_ms())
    }

    pub(super) fn use_epoch(&self, epoch: u64) {
        self.newest_epoch.fetch_max(epoch, Ordering::Relaxed);
    }

    /// Whether partitions were read since the last call.
    pub fn take_moved(&self) -> bool {
        self.has_moved.swap(false, Ordering::Relaxed)
    }

    /// The current positions of the partitions that were read.
    pub fn positions(&self) -> HashMap<PartitionIndex, u64> {
        self.positions.lock().clone()
    }

    pub(super) fn set_positions(&self, positions: impl Iterator<Item = (PartitionIndex, u64)>) {
        self.positions.lock().extend(positions);
        self.has_moved.store(true, Ordering::Relaxed);
    }

    pub fn set_congested_elsewhere(&self, is_congested: bool) {
        self.is_congested_elsewhere.store(is_congested, Ordering::Relaxed);
    }

    /// Sets whether this process is congested, and reports a change.
    pub fn set_congested(&self, is_congested: bool) {
        if self.is_congested.swap(is_congested, Ordering::Relaxed) != is_congested {
            self.report(WorkerEvent::Congested(is_congested));
        }
    }

    /// Whether sources must wait: one slow process holds up all, since its results would accumulate
    /// in it.
    pub fn must_wait(&self) -> bool {
        self.is_congested.load(Ordering::Relaxed) || self.is_congested_elsewhere.load(Ordering::Relaxed)
    }

    /// Registers the calling thread as the worker that takes the queries.
    pub(super) fn subscribe_to_queries(&self) {
        let _ = self.serving_worker.set(std::thread::current());
    }

    pub(super) fn take_queries(&self, queries: &mut Vec<Query>, process: u8) {
        let queued = self.queries.lock();
        let queued = queued.try_iter().take(MAX_QUEUED_QUERIES).flatten();
        queries.extend(queued.map(|query| Query { process, ..query }));
    }
}

impl Queries for SharedState {
    fn submit_queries(&self, queries: Vec<Query>) -> bool {
        let is_queued = self.query_sender.try_send(queries).is_ok();
        if let Some(worker) = self.serving_worker.get() {
            worker.unpark();
        }
        is_queued
    }
}

/// The ingest clock, ms since 1970-01-01T00:00:00Z.
pub fn ingest_clock_ms() -> u64 {
    wall_clock_ms()
}
