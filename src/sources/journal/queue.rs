//! Appends that wait for the writer.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::{Acknowledge, AppendError, AppendReport, Appender, NewRecord};

/// What a waiting record takes beside its bytes, about.
const RECORD_BYTES: usize = 64;

pub(super) struct Append {
    pub records: Vec<NewRecord>,
    pub done: Acknowledge,
}

/// Holds at most so many records and bytes; a single append may be larger where nothing else waits.
pub(super) struct Queue {
    max_records: usize,
    max_bytes: usize,
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

#[derive(Default)]
struct Waiting {
    appends: Vec<Append>,
    records: usize,
    bytes: usize,
    closed: Option<AppendError>,
}

impl Queue {
    pub(super) fn new(max_records: usize, max_bytes: usize) -> Queue {
        Queue { max_records, max_bytes, waiting: Mutex::default(), filled: Condvar::new() }
    }

    /// All that waits, once there is some, and none after a while without; nothing when the queue is closed and empty.
    pub(super) fn take(&self, patience: Duration) -> Option<Vec<Append>> {
        let mut waiting = self.lock();
        let mut is_late = false;
        loop {
            if !waiting.appends.is_empty() {
                (waiting.records, waiting.bytes) = (0, 0);
                return Some(mem::take(&mut waiting.appends));
            }
            if waiting.closed.is_some() {
                return None;
            }
            if is_late {
                return Some(Vec::new());
            }
            let waited = self.filled.wait_timeout(waiting, patience).unwrap_or_else(PoisonError::into_inner);
            (waiting, is_late) = (waited.0, waited.1.timed_out());
        }
    }

    /// Takes nothing more, for this reason; the first one counts. What waits is still taken by [`Queue::take`].
    pub(super) fn close(&self, reason: AppendError) {
        self.lock().closed.get_or_insert(reason);
        self.filled.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, records: Vec<NewRecord>, done: Acknowledge) -> Result<(), (Acknowledge, AppendError)> {
        let bytes = records.iter().map(|record| record.bytes.len() + RECORD_BYTES).sum::<usize>();
        let mut waiting = self.lock();
        if let Some(reason) = &waiting.closed {
            return Err((done, reason.clone()));
        }
        let fits =
            waiting.records + records.len() <= self.max_records && waiting.bytes + bytes <= self.max_bytes;
        if !fits && !waiting.appends.is_empty() {
            return Err((done, AppendError::Busy));
        }
        waiting.records += records.len();
        waiting.bytes += bytes;
        waiting.appends.push(Append { records, done });
        if waiting.appends.len() == 1 {
            self.filled.notify_one();
        }
        Ok(())
    }
}

impl Appender for Queue {
    fn append(&self, records: Vec<NewRecord>, done: Acknowledge) {
        if records.is_empty() {
            return done(Ok(AppendReport::default()));
        }
        if let Err((done, reason)) = self.push(records, done) {
            done(Err(reason));
        }
    }
}
