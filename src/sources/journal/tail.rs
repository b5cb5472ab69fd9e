//! The newest blocks of a partition, in memory: shared by the writer and the readers.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::thread::Thread;

use parking_lot::{Mutex, MutexGuard};

use super::block::JournalBlock;

/// The newest blocks of a partition, up to a number of bytes.
pub(super) struct Tail {
    max_bytes: usize,
    state: Mutex<TailState>,
}

struct TailState {
    blocks: VecDeque<Arc<JournalBlock>>,
    bytes: usize,
    end: u64,
    /// Readers that have found nothing, to be unparked.
    waiting_readers: Vec<Thread>,
}

/// The result of a lookup by position.
pub(super) enum TailLookup {
    Block(Arc<JournalBlock>),
    /// The block is no longer in memory.
    OnDisk,
    /// There is no record yet. The reader is unparked if one is added.
    NotYet,
}

impl Tail {
    pub(super) fn new(end: u64, max_bytes: usize) -> Tail {
        let state = TailState { blocks: VecDeque::new(), bytes: 0, end, waiting_readers: Vec::new() };
        Tail { max_bytes, state: Mutex::new(state) }
    }

    pub(super) fn log_end(&self) -> u64 {
        self.lock().end
    }

    /// Looks up the block that contains the position.
    pub(super) fn find_block(&self, position: u64, reader: &Thread) -> TailLookup {
        let mut state = self.lock();
        if position >= state.end {
            if state.waiting_readers.iter().all(|waiting| waiting.id() != reader.id()) {
                state.waiting_readers.push(reader.clone());
            }
            return TailLookup::NotYet;
        }
        let after = state.blocks.partition_point(|block| block.first <= position);
        match after.checked_sub(1).and_then(|at| state.blocks.get(at)) {
            Some(block) => TailLookup::Block(block.clone()),
            None => TailLookup::OnDisk,
        }
    }

    /// Adds a durable block.
    pub(super) fn push_block(&self, block: JournalBlock) {
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
    pub(super) fn wake_readers(&self) {
        mem::take(&mut self.lock().waiting_readers).iter().for_each(Thread::unpark);
    }

    fn lock(&self) -> MutexGuard<'_, TailState> {
        self.state.lock()
    }
}
