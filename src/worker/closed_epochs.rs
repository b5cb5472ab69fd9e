//! Buffers the closed epochs of one output of the dataflow.

use std::collections::VecDeque;

use crate::dataflow::Closed;
use crate::model::Batch;

/// The closed epochs of one output of the dataflow that were not sent on yet.
pub struct ClosedEpochs<T> {
    closed: Closed<T>,
    waiting: VecDeque<(u64, Vec<T>)>,
    /// Epochs below this one are closed.
    upper: u64,
}

impl<T> ClosedEpochs<T> {
    pub fn new(closed: Closed<T>) -> ClosedEpochs<T> {
        ClosedEpochs { closed, waiting: VecDeque::new(), upper: 0 }
    }

    /// Collects the epochs that the dataflow has closed. Returns the upper bound of all closed
    /// epochs.
    pub fn collect(&mut self) -> u64 {
        while let Some(Batch { upper, changes, .. }) = self.closed.next_batch() {
            self.upper = upper;
            self.waiting.extend(changes);
        }
        self.upper
    }

    /// The next piece of an epoch before `upper`.
    pub fn next_before(&mut self, upper: u64) -> Option<(u64, Vec<T>)> {
        if self.waiting.front().is_some_and(|(epoch, _)| *epoch < upper) {
            self.waiting.pop_front()
        } else {
            None
        }
    }

    /// Drops all closed epochs.
    pub fn discard(&mut self) {
        while self.closed.next_batch().is_some() {}
    }
}
