//! Pins the rows of a city as of an epoch, so that they can be read while later epochs are applied:
//! its blocks are shared, and its tail is packed into another block.

use std::collections::VecDeque;

use super::chunk::{CHUNK_ROWS, Chunk, PackedHeat, PackedRow, TimeFrame};
use super::part::{PartView, ReadingsPart};
use super::store::{AFTER_ALL_TIMES, ReadingStore};
use crate::model::{Block, Row};

/// A range of a city's rows: from one time to another, both included, oldest first, at most
/// `limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRange {
    pub from: i64,
    pub to: i64,
    pub limit: usize,
}

/// The cost of reading a range, known before any row is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeSize {
    /// Exact for short ranges, otherwise an upper bound.
    pub rows: usize,
    /// The memory of the pinned blocks, including those that the city still shares.
    pub bytes: usize,
}

/// The most parts whose lengths are read, each a cache miss. In a longer range every part counts as
/// full.
const MAX_COUNTED_PARTS: usize = 16;

impl ReadingStore {
    /// The size of a range. The city must be sealed. Blocks are not unpacked.
    pub fn measure_range(&self, city: u32, range: RowRange) -> RangeSize {
        let window = self.retention.window.millis();
        let low = self.seek_row(city, range.from.saturating_sub(window));
        let high = self.seek_row(city, range.from);
        let end = self.seek_row(city, range.to.saturating_add(1)).max(high);
        let parts = end.part - high.part;
        let rows = if parts > MAX_COUNTED_PARTS {
            (parts + 1) * CHUNK_ROWS
        } else {
            let row_count: usize = (high.part..end.part).map(|part| self.part_view(city, part).len()).sum();
            row_count + end.row - high.row
        };
        let rows = rows.min(range.limit);
        let behind = (high.part + rows / CHUNK_ROWS + 2).min(end.part + 1);
        let parts = &self.index[city as usize].parts;
        let pinned = parts.range(low.part.min(parts.len())..behind.clamp(low.part, parts.len()));
        RangeSize { rows, bytes: pinned.map(pinned_bytes).sum() }
    }

    /// Pins a range in its present state. The city must be sealed.
    pub fn pin_range(&self, city: u32, range: RowRange) -> PinnedRows {
        let window = self.retention.window.millis();
        let low = self.seek_row(city, range.from.saturating_sub(window));
        let high = self.seek_row(city, range.from);
        let (sum, count) = self.sum_window(city, low, high);
        let (mut blocks, mut bytes, mut rows) = (VecDeque::new(), 0, 0);
        let parts = &self.index[city as usize].parts;
        for (at, part) in parts.iter().enumerate().skip(low.part) {
            let last = blocks.back().map_or(i64::MIN, Block::last_millis);
            // One row after the limit shows whether there are more.
            if at > high.part && (rows > range.limit || last > range.to) {
                break;
            }
            let block = match part {
                ReadingsPart::Open(chunk) => self.arena.get(*chunk).pack_block(0),
                ReadingsPart::Packed(block) => block.clone(),
            };
            if at >= high.part {
                rows += block.len() - if at == high.part { high.row } else { 0 };
            }
            bytes += pinned_bytes(part);
            blocks.push_back(block);
        }
        let mut pinned = PinnedRows {
            blocks,
            released_blocks: 0,
            low: BlockCursor::default(),
            high: BlockCursor { next_block: high.part - low.part, ..BlockCursor::default() },
            sum,
            count,
            window,
            to: range.to,
            bytes,
        };
        pinned.low.enter_block(&pinned.blocks, 0, low.row);
        pinned.high.enter_block(&pinned.blocks, 0, high.row);
        pinned
    }
}

fn pinned_bytes(part: &ReadingsPart) -> usize {
    size_of::<Block>()
        + match part {
            ReadingsPart::Packed(block) => block.memory_bytes(),
            // An upper bound, because it takes less when it is packed.
            ReadingsPart::Open(_) => size_of::<Chunk>(),
        }
}

/// The pinned rows of a range. Later edits of the city do not affect them.
#[derive(Debug)]
pub struct PinnedRows {
    /// The blocks from that of `low` on.
    blocks: VecDeque<Block>,
    /// How many blocks were released at the front.
    released_blocks: usize,
    low: BlockCursor,
    high: BlockCursor,
    /// Sum and count of the readings from `low` up to, but without, `high`.
    sum: i64,
    count: u32,
    window: i64,
    to: i64,
    bytes: usize,
}

impl PinnedRows {
    /// The memory of the blocks when they were pinned.
    pub fn initial_bytes(&self) -> usize {
        self.bytes
    }

    pub fn has_next(&self) -> bool {
        self.high.millis <= self.to && self.high.millis != AFTER_ALL_TIMES
    }

    /// The next row with its time.
    pub fn next_row(&mut self) -> Option<(i64, Row)> {
        if !self.has_next() {
            return None;
        }
        let (millis, held) = (self.high.millis, self.high.held);
        self.sum += held.micros();
        self.count += 1;
        self.high.step_row(&self.blocks, self.released_blocks);
        let floor = millis.saturating_sub(self.window);
        while self.low.millis < floor && self.count > 0 {
            self.sum -= self.low.held.micros();
            self.count -= 1;
            self.low.step_row(&self.blocks, self.released_blocks);
        }
        // Release the blocks that both cursors have unpacked.
        while self.released_blocks < self.low.next_block && self.blocks.pop_front().is_some() {
            self.released_blocks += 1;
        }
        Some((millis, Row::new(held.heat_index(), held.category(), self.sum, self.count)))
    }
}

/// A position in pinned blocks, with the rows of its block unpacked.
#[derive(Debug)]
struct BlockCursor {
    /// The index of the next block, counted from the first pinned one.
    next_block: usize,
    frame: TimeFrame,
    rows: Vec<PackedRow>,
    next_row: usize,
    /// The row's time, or [`AFTER_ALL_TIMES`] after the last row.
    millis: i64,
    held: PackedHeat,
}

impl Default for BlockCursor {
    fn default() -> BlockCursor {
        let (frame, held) = (TimeFrame::default(), PackedRow::default().packed_heat());
        BlockCursor { next_block: 0, frame, rows: Vec::new(), next_row: 0, millis: AFTER_ALL_TIMES, held }
    }
}

impl BlockCursor {
    /// Moves to row `row` of the next block; if the block is shorter, to the first row of the block
    /// after it. `left` is the number of released blocks.
    #[cold]
    fn enter_block(&mut self, blocks: &VecDeque<Block>, released_blocks: usize, mut row: usize) {
        self.millis = AFTER_ALL_TIMES;
        while let Some(block) = blocks.get(self.next_block - released_blocks) {
            (self.frame, _) = PartView::Packed(block).rows(&mut self.rows);
            self.next_block += 1;
            if let Some(packed) = self.rows.get(row) {
                (self.millis, self.held) = (self.frame.millis(*packed), packed.packed_heat());
                self.next_row = row + 1;
                return;
            }
            row = 0;
        }
    }

    #[inline(always)]
    fn step_row(&mut self, blocks: &VecDeque<Block>, released_blocks: usize) {
        match self.rows.get(self.next_row) {
            Some(row) => {
                (self.millis, self.held) = (self.frame.millis(*row), row.packed_heat());
                self.next_row += 1;
            }
            None => self.enter_block(blocks, released_blocks, 0),
        }
    }
}
