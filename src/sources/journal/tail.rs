//! The end of a partition, in memory: shared by the writer and those who read along.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use super::block::Block;

/// The newest blocks of a partition, up to a number of bytes.
pub(super) struct Tail {
    max_bytes: usize,
    state: Mutex<State>,
}

struct State {
    blocks: VecDeque<Arc<Block>>,
    bytes: usize,
    end: u64,
    /// Readers that have found nothing.
    waiting: Vec<Thread>,
}

/// What stands at a position.
pub(super) enum Found {
    Block(Arc<Block>),
    /// A block that is no longer in memory.
    OnDisk,
    /// Nothing yet: the reader is unparked when there is.
    Nothing,
}

impl Tail {
    pub(super) fn new(end: u64, max_bytes: usize) -> Tail {
        let state = State { blocks: VecDeque::new(), bytes: 0, end, waiting: Vec::new() };
        Tail { max_bytes, state: Mutex::new(state) }
    }

    pub(super) fn end(&self) -> u64 {
        self.lock().end
    }

    /// The block that holds the position.
    pub(super) fn find(&self, position: u64, reader: &Thread) -> Found {
        let mut state = self.lock();
        if position >= state.end {
            if state.waiting.iter().all(|waiting| waiting.id() != reader.id()) {
                state.waiting.push(reader.clone());
            }
            return Found::Nothing;
        }
        let after = state.blocks.partition_point(|block| block.first <= position);
        match after.checked_sub(1).and_then(|at| state.blocks.get(at)) {
            Some(block) => Found::Block(block.clone()),
            None => Found::OnDisk,
        }
    }

    /// Adds a durable block.
    pub(super) fn push(&self, block: Block) {
        let mut state = self.lock();
        state.end = block.end();
        state.bytes += block.len();
        state.blocks.push_back(Arc::new(block));
        while state.bytes > self.max_bytes && state.blocks.len() > 1 {
            let oldest = state.blocks.pop_front();
            state.bytes -= oldest.map_or(0, |oldest| oldest.len());
        }
    }

    /// Unparks the readers that have found nothing.
    pub(super) fn wake(&self) {
        mem::take(&mut self.lock().waiting).iter().for_each(Thread::unpark);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
