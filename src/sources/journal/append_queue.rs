//! The bounded queue of appends that wait for the writer thread.

use std::mem;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::model::{AppendCallback, AppendError, AppendReport, Appender, NewRecord};

/// Approximate memory of a queued record beside its bytes.
const RECORD_OVERHEAD_BYTES: usize = 64;

pub(super) struct QueuedAppend {
    pub records: Vec<NewRecord>,
    pub acknowledge: AppendCallback,
}

/// A queue with a limit on records and bytes. A single append may exceed it if nothing else waits.
pub(super) struct AppendQueue {
    max_records: usize,
    max_bytes: usize,
    state: Mutex<QueueState>,
    not_empty: Condvar,
}

#[derive(Default)]
struct QueueState {
    appends: Vec<QueuedAppend>,
    records: usize,
    bytes: usize,
    close_reason: Option<AppendError>,
}

impl AppendQueue {
    pub(super) fn new(max_records: usize, max_bytes: usize) -> AppendQueue {
        AppendQueue { max_records, max_bytes, state: Mutex::default(), not_empty: Condvar::new() }
    }

    /// Waits for appends and returns all that are queued. Returns an empty list after the timeout,
    /// and `None` if the queue is closed and empty.
    pub(super) fn take_appends(&self, timeout: Duration) -> Option<Vec<QueuedAppend>> {
        let mut waiting = self.lock();
        let mut is_late = false;
        loop {
            if !waiting.appends.is_empty() {
                (waiting.records, waiting.bytes) = (0, 0);
                return Some(mem::take(&mut waiting.appends));
            }
            if waiting.close_reason.is_some() {
                return None;
            }
            if is_late {
                return Some(Vec::new());
            }
            is_late = self.not_empty.wait_for(&mut waiting, timeout).timed_out();
        }
    }

    /// Closes the queue to new appends with this reason; only the first reason counts. Appends that
    /// already wait are still returned by [`AppendQueue::take_appends`].
    pub(super) fn close(&self, reason: AppendError) {
        self.lock().close_reason.get_or_insert(reason);
        self.not_empty.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().close_reason.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }

    fn push_append(
        &self,
        records: Vec<NewRecord>,
        acknowledge: AppendCallback,
    ) -> Result<(), (AppendCallback, AppendError)> {
        let bytes = records.iter().map(|record| record.bytes.len() + RECORD_OVERHEAD_BYTES).sum::<usize>();
        let mut waiting = self.lock();
        if let Some(reason) = &waiting.close_reason {
            return Err((acknowledge, reason.clone()));
        }
        let fits =
            waiting.records + records.len() <= self.max_records && waiting.bytes + bytes <= self.max_bytes;
        if !fits && !waiting.appends.is_empty() {
            return Err((acknowledge, AppendError::Busy));
        }
        waiting.records += records.len();
        waiting.bytes += bytes;
        waiting.appends.push(QueuedAppend { records, acknowledge });
        if waiting.appends.len() == 1 {
            self.not_empty.notify_one();
        }
        Ok(())
    }
}

impl Appender for AppendQueue {
    fn append(&self, records: Vec<NewRecord>, acknowledge: AppendCallback) {
        if records.is_empty() {
            return acknowledge(Ok(AppendReport::default()));
        }
        if let Err((acknowledge, reason)) = self.push_append(records, acknowledge) {
            acknowledge(Err(reason));
        }
    }
}
