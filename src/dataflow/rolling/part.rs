//! A part of a city's readings: a chunk while it is edited or appended to, a packed block before and after.

use super::arena::Arena;
use super::chunk::{CHUNK_ROWS, Chunk, Frame, Held, PackedRow};
use super::revisions::Revisions;
use crate::model::{BLOCK_READINGS, Block, HeldReading, Revision};

const _: () = assert!(CHUNK_ROWS == BLOCK_READINGS);

/// Where a part is.
#[derive(Clone, Debug)]
pub enum Part {
    /// In a chunk of the arena.
    Open(u32),
    Packed(Block),
}

const _: () = assert!(size_of::<Part>() == 16);

impl Part {
    #[inline(always)]
    pub fn view<'a>(&'a self, arena: &'a Arena) -> View<'a> {
        match self {
            Part::Open(chunk) => View::Open(arena.get(*chunk)),
            Part::Packed(block) => View::Packed(block),
        }
    }
}

/// A part to read.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    Open(&'a Chunk),
    Packed(&'a Block),
    /// A block with a copy of its rows, whose header may not sum them up.
    Copied(&'a Block, &'a Chunk),
}

impl<'a> View<'a> {
    #[inline(always)]
    pub fn len(self) -> usize {
        match self {
            View::Open(chunk) => usize::from(chunk.len),
            View::Packed(block) | View::Copied(block, _) => block.len(),
        }
    }

    /// The time of the last reading; no part in use is empty.
    #[inline(always)]
    pub fn last_millis(self) -> i64 {
        match self {
            View::Open(chunk) => chunk.last_millis(),
            View::Packed(block) | View::Copied(block, _) => block.last_millis(),
        }
    }

    pub fn millis(self, row: usize) -> i64 {
        match self {
            View::Open(chunk) | View::Copied(_, chunk) => chunk.millis(row),
            View::Packed(block) => block.millis(row),
        }
    }

    pub fn held(self, row: usize) -> Held {
        match self {
            View::Open(chunk) | View::Copied(_, chunk) => chunk.rows[row].held(),
            View::Packed(block) => {
                let (heat_index, category) = block.value(row);
                Held::new(heat_index, category)
            }
        }
    }

    pub fn revision(self, row: usize) -> Option<Revision> {
        match self {
            View::Open(chunk) => chunk.revisions.as_ref().and_then(|revisions| revisions.get(row)),
            View::Packed(block) | View::Copied(block, _) => {
                let mut found = None;
                block.revisions(|i, revision| found = if i == row { revision } else { found });
                found
            }
        }
    }

    pub fn sum(self) -> i64 {
        match self {
            View::Open(chunk) => chunk.sum,
            View::Packed(block) | View::Copied(block, _) => block.sum(),
        }
    }

    /// The sum of the readings from index `first` to before `last`.
    pub fn sum_between(self, first: usize, last: usize) -> i64 {
        match self {
            _ if first >= last => 0,
            _ if first == 0 && last == self.len() => self.sum(),
            View::Open(chunk) | View::Copied(_, chunk) => {
                chunk.rows()[first..last].iter().map(|row| row.held().micros()).sum()
            }
            // Values are packed as differences: what lies before is unpacked in any case.
            View::Packed(block) if last == block.len() => block.sum() - self.sum_between(0, first),
            View::Packed(block) => {
                let mut sum = 0;
                block.values(last, |i, micros| sum += if i >= first { micros } else { 0 });
                sum
            }
        }
    }

    pub fn peak(self) -> i64 {
        match self {
            View::Open(chunk) => chunk.peak,
            View::Packed(block) | View::Copied(block, _) => block.peak(),
        }
    }

    /// The first row at `millis` or later, the number of rows where there is none.
    pub fn seek(self, millis: i64) -> usize {
        match self {
            View::Open(chunk) | View::Copied(_, chunk) => chunk.seek(millis),
            View::Packed(block) => block.seek(millis),
        }
    }

    /// The rows in order; those of a block are unpacked into `buffer`.
    pub fn rows(self, buffer: &mut Vec<PackedRow>) -> (Frame, Rows<'a>) {
        match self {
            View::Open(chunk) | View::Copied(_, chunk) => (chunk.frame, Rows::Chunk(chunk.rows())),
            View::Packed(block) => {
                buffer.resize(block.len(), PackedRow::default());
                (unpack(block, buffer), Rows::Buffer)
            }
        }
    }

    /// Writes times and heat indexes of the rows from index `first` on, as many as there is room for; returns how many.
    pub fn read(self, first: usize, out: &mut [(i64, i64)]) -> usize {
        let count = out.len().min(self.len().saturating_sub(first));
        let out = &mut out[..count];
        match self {
            View::Open(chunk) | View::Copied(_, chunk) => {
                for (out, row) in out.iter_mut().zip(&chunk.rows()[first..]) {
                    *out = (chunk.frame.millis(*row), row.held().micros());
                }
            }
            View::Packed(block) => {
                let place = |i: usize| i.wrapping_sub(first);
                let base = block.first_millis();
                block.offsets(|i, offset| {
                    out.get_mut(place(i)).into_iter().for_each(|out| out.0 = base + offset)
                });
                block.values(first + count, |i, micros| {
                    out.get_mut(place(i)).into_iter().for_each(|out| out.1 = micros);
                });
            }
        }
        count
    }

    /// Gives `each` the time and value of every reading.
    pub fn for_each(self, mut each: impl FnMut(i64, Held)) {
        let mut buffer = Vec::new();
        let (frame, rows) = self.rows(&mut buffer);
        rows.get(&buffer).iter().for_each(|row| each(frame.millis(*row), row.held()));
    }
}

/// Rows that are in a chunk, or were unpacked into a buffer.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    Chunk(&'a [PackedRow]),
    Buffer,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub fn get<'b>(self, buffer: &'b [PackedRow]) -> &'b [PackedRow]
    where
        'a: 'b,
    {
        match self {
            Rows::Chunk(rows) => rows,
            Rows::Buffer => buffer,
        }
    }
}

/// Unpacks a block that [fits](fits) into as many rows.
fn unpack(block: &Block, rows: &mut [PackedRow]) -> Frame {
    let frame = frame_of(block).unwrap_or_else(|| unreachable!("only blocks that fit are held"));
    let divisor = if block.whole_seconds() { 1000 } else { 1 };
    block.offsets(|i, offset| rows[i] = PackedRow::at((offset / divisor) as u64));
    block.values(rows.len(), |i, micros| rows[i].set_micros(micros));
    block.categories(|i, category| rows[i].set_category(category));
    frame
}

fn frame_of(block: &Block) -> Option<Frame> {
    Frame::spanning(block.first_millis(), block.last_millis(), block.whole_seconds())
}

/// Whether a chunk can hold the block.
pub fn fits(block: &Block) -> bool {
    !block.is_empty() && frame_of(block).is_some()
}

/// The block as blocks that [fit](fits).
pub fn fitting(block: Block) -> Vec<Block> {
    if fits(&block) {
        return vec![block];
    }
    let readings: Vec<HeldReading> = block.iter().collect();
    let mut fitting = Vec::new();
    let mut rest = &readings[..];
    while let Some(first) = rest.first() {
        let first = first.reading_at.millis();
        let mut len = 0;
        // As in the tail of a chunk: whole seconds for as long as all are, then milliseconds.
        let mut seconds = true;
        for reading in rest {
            let millis = reading.reading_at.millis();
            let whole = seconds && first % 1000 == 0 && millis % 1000 == 0;
            if Frame::spanning(first, millis, whole).is_none() {
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
    /// Packs the readings from index `from` on; there must be some.
    pub fn pack(&self, from: usize) -> Block {
        let rows = &self.rows()[from..];
        let revisions = self.revisions.as_deref();
        Block::build(
            rows.len(),
            |i| self.frame.millis(rows[i]),
            |i| (rows[i].held().micros(), rows[i].held().category()),
            revisions.map(|revisions| move |i: usize| revisions.get(from + i)),
        )
    }

    /// Fills the chunk, `with_revisions` or just the values.
    pub fn unpack(&mut self, block: &Block, with_revisions: bool) {
        self.frame = unpack(block, &mut self.rows[..block.len()]);
        (self.len, self.sum, self.peak) = (block.len() as u16, block.sum(), block.peak());
        self.revisions = None;
        if with_revisions && block.has_revisions() {
            let mut all = vec![None; block.len()];
            block.revisions(|i, revision| all[i] = revision);
            self.revisions = Some(Box::new(Revisions::fitting(&all)));
        }
    }
}
