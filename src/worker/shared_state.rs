//! What the workers of a process and the rest of its run have in common.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;

use super::{AlignedBarrier, LogPartition, Refusals, ingest_clock_ms};
use crate::model::{CheckpointBarrier, PartitionIndex, Queries, Query};

/// Calls of [`Ask::ask`] that may wait.
pub const MAX_QUEUED_QUERIES: usize = 1024;

type OnCongestion = Box<dyn Fn(bool) + Send + Sync>;

/// What the workers and the rest of the run have in common.
pub struct SharedState {
    pub(super) stop: AtomicBool,
    /// What is told to the server or given to the sinks is not taken fast enough: here, or at another process.
    congested: AtomicBool,
    congested_elsewhere: AtomicBool,
    /// Hears when that of this process changes.
    on_congestion: OnceLock<OnCongestion>,
    /// Epochs below this one are durably taken for this run; none above it is used.
    reserved: AtomicU64,
    /// The greatest epoch in use: ahead of the clock, where that was put back.
    pub(super) used: AtomicU64,
    failed: Mutex<Option<String>>,
    taken_over: AtomicBool,
    pub refusals: Refusals,
    /// Partitions that came after the start, and how many they are.
    pub(super) added: Mutex<Vec<LogPartition>>,
    pub(super) added_count: AtomicUsize,
    sender: SyncSender<Vec<Query>>,
    pub(super) questions: Mutex<Receiver<Vec<Query>>>,
    /// Checkpoints that are asked for, and those whose epoch is complete.
    pub(super) marks: Mutex<(Vec<CheckpointBarrier>, Vec<AlignedBarrier>)>,
    /// Partitions were read since somebody asked.
    moved: AtomicBool,
    positions: Mutex<HashMap<PartitionIndex, u64>>,
    /// The worker that takes the questions.
    pub(super) asked: OnceLock<Thread>,
}

impl SharedState {
    /// Epochs below `reserved` may be used.
    pub fn new(refusals: Refusals, reserved: u64) -> SharedState {
        let (sender, questions) = mpsc::sync_channel(MAX_QUEUED_QUERIES);
        SharedState {
            stop: AtomicBool::new(false),
            congested: AtomicBool::new(false),
            congested_elsewhere: AtomicBool::new(false),
            on_congestion: OnceLock::new(),
            reserved: AtomicU64::new(reserved),
            used: AtomicU64::new(0),
            failed: Mutex::new(None),
            taken_over: AtomicBool::new(false),
            refusals,
            added: Mutex::new(Vec::new()),
            added_count: AtomicUsize::new(0),
            sender,
            questions: Mutex::new(questions),
            marks: Mutex::default(),
            moved: AtomicBool::new(false),
            positions: Mutex::default(),
            asked: OnceLock::new(),
        }
    }

    /// Asks the workers to end, once what they have read is told.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The greatest epoch in use, or the clock's, where that is greater.
    pub fn newest_epoch(&self) -> u64 {
        self.used.load(Ordering::Relaxed).max(ingest_clock_ms())
    }

    /// Has a partition read that came after the start.
    pub fn add(&self, partition: LogPartition) {
        self.added.lock().unwrap_or_else(PoisonError::into_inner).push(partition);
        self.added_count.fetch_add(1, Ordering::Release);
    }

    /// Asks for a checkpoint, at process 0.
    pub fn mark(&self, mark: CheckpointBarrier) {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).0.push(mark);
        if let Some(worker) = self.asked.get() {
            worker.unpark();
        }
    }

    /// The checkpoints whose epochs are complete, since the last call.
    pub fn marked_since(&self) -> Vec<AlignedBarrier> {
        std::mem::take(&mut self.marks.lock().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// Whether partitions were read since the last call.
    pub fn has_moved(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    pub(super) fn marked(&self, marked: AlignedBarrier) {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).1.push(marked);
    }

    /// How far partitions were read, as far as they have moved.
    pub fn positions(&self) -> HashMap<PartitionIndex, u64> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn note_moved(&self, positions: impl Iterator<Item = (PartitionIndex, u64)>) {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner).extend(positions);
        self.moved.store(true, Ordering::Relaxed);
    }

    /// From now on, epochs are durably taken: those below this one are.
    pub fn begin_reserving(&self, upto: u64) {
        self.reserved.store(upto, Ordering::Relaxed);
    }

    /// More epochs may be used.
    pub fn reserve(&self, upto: u64) {
        self.reserved.fetch_max(upto, Ordering::Relaxed);
    }

    /// Whether an epoch may be used.
    pub fn reserved(&self, epoch: u64) -> bool {
        epoch < self.reserved.load(Ordering::Relaxed)
    }

    /// `hear` is told from workers, which it must not hold up.
    pub fn on_congestion(&self, hear: OnCongestion) {
        let _ = self.on_congestion.set(hear);
    }

    /// Whether this process does not take its results fast enough.
    pub fn is_congested(&self) -> bool {
        self.congested.load(Ordering::Relaxed)
    }

    pub fn set_congested_elsewhere(&self, is_congested: bool) {
        self.congested_elsewhere.store(is_congested, Ordering::Relaxed);
    }

    pub fn set_congested(&self, is_congested: bool) {
        if self.congested.swap(is_congested, Ordering::Relaxed) != is_congested
            && let Some(hear) = self.on_congestion.get()
        {
            hear(is_congested);
        }
    }

    /// Whether sources wait: a process that is slow holds up all, since its results would pile up in it.
    pub fn must_wait(&self) -> bool {
        self.congested.load(Ordering::Relaxed) || self.congested_elsewhere.load(Ordering::Relaxed)
    }

    /// The first thing that nobody can do anything about.
    pub fn failed(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the run, since another generation has taken over.
    pub fn hand_over(&self, why: String) {
        self.taken_over.store(true, Ordering::Relaxed);
        self.fail(why);
    }

    /// Whether that is why it has failed.
    pub fn is_taken_over(&self) -> bool {
        self.taken_over.load(Ordering::Relaxed)
    }

    /// Ends the run with this line, unless there is one already.
    pub fn fail(&self, why: String) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.stop();
    }
}

impl Queries for SharedState {
    fn submit_queries(&self, queries: Vec<Query>) -> bool {
        let queued = self.sender.try_send(queries).is_ok();
        if let Some(worker) = self.asked.get() {
            worker.unpark();
        }
        queued
    }
}
