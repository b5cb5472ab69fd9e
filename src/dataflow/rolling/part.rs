//! A part of a city's readings: a chunk while it is edited or appended to, otherwise a packed
//! block.

use super::arena::Arena;
use super::chunk::{CHUNK_ROWS, Chunk, PackedHeat, PackedRow, TimeFrame};
use super::revisions::Revisions;
use crate::model::{BLOCK_READINGS, Block, Revision, StoredReading};

/// The position of a row in its city: the index of its part, and its index in the part. A position
/// after the last row of a part means the first row of the next part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowPosition {
    pub part: usize,
    pub row: usize,
}

const _: () = assert!(CHUNK_ROWS == BLOCK_READINGS);

/// The storage of a part.
#[derive(Clone, Debug)]
pub enum ReadingsPart {
    /// The number of a chunk in the arena.
    Open(u32),
    Packed(Block),
}

const _: () = assert!(size_of::<ReadingsPart>() == 16);

impl ReadingsPart {
    #[inline(always)]
    pub fn view<'a>(&'a self, arena: &'a Arena) -> PartView<'a> {
        match self {
            ReadingsPart::Open(chunk) => PartView::Open(arena.get(*chunk)),
            ReadingsPart::Packed(block) => PartView::Packed(block),
        }
    }
}

/// A read-only view of a part.
#[derive(Clone, Copy, Debug)]
pub enum PartView<'a> {
    Open(&'a Chunk),
    Packed(&'a Block),
    /// A block with a chunk that holds a copy of its rows. The sums in the chunk's header may be
    /// wrong.
    Copied(&'a Block, &'a Chunk),
}

impl<'a> PartView<'a> {
    #[inline(always)]
    pub fn len(self) -> usize {
        match self {
            PartView::Open(chunk) => usize::from(chunk.len),
            PartView::Packed(block) | PartView::Copied(block, _) => block.len(),
        }
    }

    /// The time of the last reading. No part in use is empty.
    #[inline(always)]
    pub fn last_millis(self) -> i64 {
        match self {
            PartView::Open(chunk) => chunk.last_millis(),
            PartView::Packed(block) | PartView::Copied(block, _) => block.last_millis(),
        }
    }

    pub fn millis(self, row: usize) -> i64 {
        match self {
            PartView::Open(chunk) | PartView::Copied(_, chunk) => chunk.millis(row),
            PartView::Packed(block) => block.millis_at(row),
        }
    }

    pub fn packed_heat(self, row: usize) -> PackedHeat {
        match self {
            PartView::Open(chunk) | PartView::Copied(_, chunk) => chunk.rows[row].packed_heat(),
            PartView::Packed(block) => {
                let (heat_index, category) = block.value_at(row);
                PackedHeat::new(heat_index, category)
            }
        }
    }

    pub fn revision(self, row: usize) -> Option<Revision> {
        match self {
            PartView::Open(chunk) => chunk.revisions.as_ref().and_then(|revisions| revisions.get(row)),
            PartView::Packed(block) | PartView::Copied(block, _) => {
                let mut position = None;
                block.for_each_revision(|i, revision| position = if i == row { revision } else { position });
                position
            }
        }
    }

    pub fn heat_sum(self) -> i64 {
        match self {
            PartView::Open(chunk) => chunk.sum,
            PartView::Packed(block) | PartView::Copied(block, _) => block.sum(),
        }
    }

    /// The sum of the readings from index `first` up to, but without, `last`.
    pub fn heat_sum_between(self, first: usize, last: usize) -> i64 {
        match self {
            _ if first >= last => 0,
            _ if first == 0 && last == self.len() => self.heat_sum(),
            PartView::Open(chunk) | PartView::Copied(_, chunk) => {
                chunk.rows()[first..last].iter().map(|row| row.packed_heat().micros()).sum()
            }
            // Values are packed as differences, so the values before `first` are unpacked in any
            // case.
            PartView::Packed(block) if last == block.len() => block.sum() - self.heat_sum_between(0, first),
            PartView::Packed(block) => {
                let mut sum = 0;
                block.for_each_value(last, |i, micros| sum += if i >= first { micros } else { 0 });
                sum
            }
        }
    }

    pub fn max_heat(self) -> i64 {
        match self {
            PartView::Open(chunk) => chunk.peak,
            PartView::Packed(block) | PartView::Copied(block, _) => block.peak(),
        }
    }

    /// The first row at `millis` or later; the number of rows if there is none.
    pub fn seek_row(self, millis: i64) -> usize {
        match self {
            PartView::Open(chunk) | PartView::Copied(_, chunk) => chunk.seek_row(millis),
            PartView::Packed(block) => block.seek(millis),
        }
    }

    /// The rows in order. The rows of a block are unpacked into `buffer`.
    pub fn rows(self, buffer: &mut Vec<PackedRow>) -> (TimeFrame, PartRows<'a>) {
        match self {
            PartView::Open(chunk) | PartView::Copied(_, chunk) => {
                (chunk.frame, PartRows::Chunk(chunk.rows()))
            }
            PartView::Packed(block) => {
                buffer.resize(block.len(), PackedRow::default());
                (unpack_block(block, buffer), PartRows::Buffer)
            }
        }
    }

    /// Writes times and heat indexes of the rows from index `first` on, until `out` is full.
    /// Returns the number of rows.
    pub fn read_rows(self, first: usize, out: &mut [(i64, i64)]) -> usize {
        let count = out.len().min(self.len().saturating_sub(first));
        let out = &mut out[..count];
        match self {
            PartView::Open(chunk) | PartView::Copied(_, chunk) => {
                for (out, row) in out.iter_mut().zip(&chunk.rows()[first..]) {
                    *out = (chunk.frame.millis(*row), row.packed_heat().micros());
                }
            }
            PartView::Packed(block) => {
                let index = |i: usize| i.wrapping_sub(first);
                let base = block.first_millis();
                block.for_each_offset(|i, offset| {
                    out.get_mut(index(i)).into_iter().for_each(|out| out.0 = base + offset)
                });
                block.for_each_value(first + count, |i, micros| {
                    out.get_mut(index(i)).into_iter().for_each(|out| out.1 = micros);
                });
            }
        }
        count
    }

    /// Calls `each` with the time and value of every reading.
    pub fn for_each_reading(self, mut each: impl FnMut(i64, PackedHeat)) {
        let mut buffer = Vec::new();
        let (frame, rows) = self.rows(&mut buffer);
        rows.get(&buffer).iter().for_each(|row| each(frame.millis(*row), row.packed_heat()));
    }
}

/// The rows of a part: in a chunk, or unpacked into a buffer.
#[derive(Clone, Copy, Debug)]
pub enum PartRows<'a> {
    Chunk(&'a [PackedRow]),
    Buffer,
}

impl<'a> PartRows<'a> {
    #[inline(always)]
    pub fn get<'b>(self, buffer: &'b [PackedRow]) -> &'b [PackedRow]
    where
        'a: 'b,
    {
        match self {
            PartRows::Chunk(rows) => rows,
            PartRows::Buffer => buffer,
        }
    }
}

/// Unpacks a block that [fits](fits_chunk) into `rows`, which has the block's length.
fn unpack_block(block: &Block, rows: &mut [PackedRow]) -> TimeFrame {
    let frame = frame_of(block).unwrap_or_else(|| unreachable!("only blocks that fit are held"));
    let divisor = if block.has_whole_seconds() { 1000 } else { 1 };
    block.for_each_offset(|i, offset| rows[i] = PackedRow::without_heat((offset / divisor) as u64));
    block.for_each_value(rows.len(), |i, micros| rows[i].set_micros(micros));
    block.for_each_category(|i, category| rows[i].set_category(category));
    frame
}

fn frame_of(block: &Block) -> Option<TimeFrame> {
    TimeFrame::spanning(block.first_millis(), block.last_millis(), block.has_whole_seconds())
}

/// Whether a chunk can hold the block.
pub fn fits_chunk(block: &Block) -> bool {
    !block.is_empty() && frame_of(block).is_some()
}

/// Splits the block into blocks that [fit](fits_chunk).
pub fn split_to_fit_chunk(block: Block) -> Vec<Block> {
    if fits_chunk(&block) {
        return vec![block];
    }
    let readings: Vec<StoredReading> = block.iter().collect();
    let mut fitting = Vec::new();
    let mut rest = &readings[..];
    while let Some(first) = rest.first() {
        let first = first.reading_at.millis();
        let mut len = 0;
        // As in the tail of a chunk: whole seconds as long as all times are whole seconds, then
        // milliseconds.
        let mut seconds = true;
        for reading in rest {
            let millis = reading.reading_at.millis();
            let whole = seconds && first % 1000 == 0 && millis % 1000 == 0;
            if TimeFrame::spanning(first, millis, whole).is_none() {
                break;
            }
            (seconds, len) = (whole, len + 1);
        }
        fitting.push(Block::pack(&rest[..len]));
        rest = &rest[len..];
    }
    fitting
}

impl Chunk {
    /// Packs the readings from index `from` on; there must be at least one.
    pub fn pack_block(&self, from: usize) -> Block {
        let rows = &self.rows()[from..];
        let revisions = self.revisions.as_deref();
        Block::pack_with(
            rows.len(),
            |i| self.frame.millis(rows[i]),
            |i| (rows[i].packed_heat().micros(), rows[i].packed_heat().category()),
            revisions.map(|revisions| move |i: usize| revisions.get(from + i)),
        )
    }

    /// Fills the chunk from a block; `with_revisions` also unpacks the revisions.
    pub fn unpack_block(&mut self, block: &Block, with_revisions: bool) {
        self.frame = unpack_block(block, &mut self.rows[..block.len()]);
        (self.len, self.sum, self.peak) = (block.len() as u16, block.sum(), block.peak());
        self.revisions = None;
        if with_revisions && block.has_revisions() {
            let mut all = vec![None; block.len()];
            block.for_each_revision(|i, revision| all[i] = revision);
            self.revisions = Some(Box::new(Revisions::from_revisions(&all)));
        }
    }
}
