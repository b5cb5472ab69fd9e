//! The closed epochs of one output of the dataflow, buffered until they are handed on.

use std::collections::VecDeque;

use crate::dataflow::Closed;
use crate::model::Batch;

/// The closed epochs of one output of the dataflow that were not handed on yet.
pub struct ClosedEpochs<T> {
    closed: Closed<T>,
    waiting: VecDeque<(u64, Vec<T>)>,
    /// Epochs below are closed.
    upper: u64,
}

impl<T> ClosedEpochs<T> {
    pub fn new(closed: Closed<T>) -> ClosedEpochs<T> {
        ClosedEpochs { closed, waiting: VecDeque::new(), upper: 0 }
    }

    /// Collects what the dataflow has closed. Returns the upper bound of all that is closed.
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

    /// Drops what has closed.
    pub fn discard(&mut self) {
        while self.closed.next_batch().is_some() {}
    }
}
