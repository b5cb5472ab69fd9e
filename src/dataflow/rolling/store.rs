//! The readings of every city of a worker, and the running window of each: what makes an in-order append cheap.
//!
//! A city's newest readings are in its tail chunk; older ones are packed, but for what the epoch at hand edits. The end of
//! the running window moves through one more chunk: the tail, or a copy of the block that it has come to.

use std::collections::{BTreeMap, VecDeque};

use super::arena::Arena;
use super::chunk::{CHUNK_ROWS, Chunk, Frame, Held, NO_CHUNK, PackedRow};
use super::edit::Place;
use super::part::{self, Part};
use super::revisions::Revisions;
use crate::model::{Block, Duration, Revision};

/// A time before every event time.
pub const NEVER: i64 = i64::MIN;

/// How far back results and state reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The span of a rolling mean; both ends belong to it.
    pub window: Duration,
    /// How much older than its city's newest reading an arrival may be.
    pub lateness: Duration,
    /// How far back rows are servable, if lateness does not reach further.
    pub history: Duration,
}

impl Retention {
    /// The oldest time at which an arrival is taken.
    #[inline(always)]
    pub fn oldest_accepted(&self, high: i64) -> i64 {
        high.saturating_sub(self.lateness.millis())
    }

    /// The oldest time whose row is servable.
    pub fn oldest_servable(&self, high: i64) -> i64 {
        high.saturating_sub(self.lateness.max(self.history).millis())
    }

    /// The oldest reading that a servable row is made of.
    pub fn oldest_held(&self, high: i64) -> i64 {
        self.oldest_servable(high).saturating_sub(self.window.millis())
    }
}

/// What an in-order append reads and writes: one cache line a city.
///
/// Where the city holds readings, `run_sum` and `run_count` cover `[t - window, t]` of its newest reading `t`, and
/// `lo`/`lo_row` is the first row of that span. The tail's length is here, its chunk's header follows at `seal`.
#[derive(Debug)]
#[repr(align(64))]
pub struct Head {
    pub run_sum: i64,
    /// The time of the newest reading: one that is newer is an append, unless it was withdrawn before.
    pub newest: i64,
    /// The newest `reading_at` that was ever accepted: it never falls, and retention is counted from it.
    pub high: i64,
    pub tail_frame: Frame,
    pub lo_frame: Frame,
    pub run_count: u32,
    pub tail: u32,
    pub lo: u32,
    pub tail_len: u16,
    pub lo_row: u16,
    pub lo_len: u16,
    /// The tail holds revisions.
    pub tail_revisions: bool,
    /// Keys newer than the newest reading may have been withdrawn.
    pub marks_ahead: bool,
    pub edits: Edits,
}

const _: () = assert!(size_of::<Head>() == 64);

/// Whether the epoch at hand does more to a city than append to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edits {
    None,
    /// It will: its readings must not go the way of appends.
    Expected,
    /// It is sealed for edits, and its head is stale.
    Begun,
}

/// What only new chunks, corrections and snapshots need.
#[derive(Debug)]
pub struct CityIndex {
    /// Oldest first; between epochs the last is the tail's chunk and all before it are packed, and none is empty.
    pub parts: VecDeque<Part>,
    /// Keys that hold no reading because they were withdrawn, with the revision of the withdrawal.
    pub withdrawn: BTreeMap<i64, Option<Revision>>,
    /// A reading was ever accepted: known in log order, where the head's `high` is that of the whole epoch.
    pub has_read: bool,
    /// The part in which the running window begins, by index.
    pub lo_part: u32,
    /// Parts that have left: the number of a part, of all that there were, is this and its index.
    pub gone: u64,
    /// The first part that the epoch at hand may have opened, by index.
    pub opened: u32,
    /// The first part that was edited since the current row was looked at, by number.
    pub changed_part: u64,
    /// What the head's `lo` is a copy of, unless it is the tail.
    pub lo_block: Option<Block>,
    /// Where the running window begins, while the city is edited.
    pub floor: i64,
    /// The oldest time that was edited since the last snapshot, [`END`] for none.
    pub edited_from: i64,
    /// The newest reading and `high` as the last snapshot had them.
    pub marked: (i64, i64),
}

/// A time behind every event time.
pub const END: i64 = i64::MAX;
/// No part.
pub const NO_PART: u32 = u32::MAX;

impl Default for CityIndex {
    fn default() -> CityIndex {
        CityIndex {
            parts: VecDeque::new(),
            withdrawn: BTreeMap::new(),
            has_read: false,
            lo_part: 0,
            gone: 0,
            opened: NO_PART,
            changed_part: u64::MAX,
            lo_block: None,
            floor: NEVER,
            edited_from: END,
            marked: (NEVER, NEVER),
        }
    }
}

#[derive(Debug)]
pub struct Store {
    pub arena: Arena,
    pub heads: Vec<Head>,
    pub index: Vec<CityIndex>,
    pub retention: Retention,
    /// Readings that have left memory, where somebody wants to know: `(city, time, value)`.
    pub departed: Option<Vec<(u32, i64, Held)>>,
}

impl Store {
    pub fn new(retention: Retention, keep_departed: bool) -> Store {
        let departed = keep_departed.then(Vec::new);
        Store { arena: Arena::default(), heads: Vec::new(), index: Vec::new(), retention, departed }
    }

    /// A city without readings.
    pub fn add_city(&mut self) -> u32 {
        self.heads.push(Head {
            run_sum: 0,
            newest: NEVER,
            high: NEVER,
            tail_frame: Frame::default(),
            lo_frame: Frame::default(),
            run_count: 0,
            tail: NO_CHUNK,
            lo: NO_CHUNK,
            tail_len: 0,
            lo_row: 0,
            lo_len: 0,
            tail_revisions: false,
            marks_ahead: false,
            edits: Edits::None,
        });
        self.index.push(CityIndex::default());
        self.heads.len() as u32 - 1
    }

    /// Adds a reading that is newer than all that the city knows of; returns sum and count of its window.
    #[inline]
    pub fn append(&mut self, city: u32, millis: i64, held: Held, revision: Option<Revision>) -> (i64, u32) {
        let head = &self.heads[city as usize];
        let packed = match head.tail_frame.pack(millis, held) {
            Some(packed) if usize::from(head.tail_len) < CHUNK_ROWS && head.tail != NO_CHUNK => packed,
            _ => self.make_room(city, millis, held),
        };
        let Store { arena, heads, index, retention, .. } = self;
        let head = &mut heads[city as usize];
        let tail = arena.get_mut(head.tail);
        tail.rows[usize::from(head.tail_len)] = packed;
        if revision.is_some() || head.tail_revisions {
            note_revision(tail, head.tail_len, revision);
            head.tail_revisions = true;
        }
        head.tail_len += 1;
        head.run_sum += held.micros();
        head.run_count += 1;
        let floor = millis - retention.window.millis();
        while !advance_window(head, arena, floor) {
            next_lo(head, &mut index[city as usize], arena);
        }
        (head.run_sum, head.run_count)
    }

    /// Reads what appends to these cities will need, one after the other without waiting: the processor then fetches it for all
    /// of them at once, where the appends themselves would wait for each.
    pub fn warm(&self, cities: &[u32]) {
        let mut seen = 0;
        for head in cities.iter().filter_map(|&city| self.heads.get(city as usize)) {
            if head.tail != NO_CHUNK {
                let tail = self.arena.get(head.tail).rows[usize::from(head.tail_len).min(CHUNK_ROWS - 1)];
                let lo = self.arena.get(head.lo).rows[usize::from(head.lo_row).min(CHUNK_ROWS - 1)];
                seen ^= tail.held().micros() ^ lo.held().micros();
            }
        }
        std::hint::black_box(seen);
    }

    /// Sees to it that the tail has room for a row at `millis`, by a wider frame or a new tail.
    #[cold]
    #[inline(never)]
    fn make_room(&mut self, city: u32, millis: i64, held: Held) -> PackedRow {
        let head = &self.heads[city as usize];
        let room = head.tail != NO_CHUNK && usize::from(head.tail_len) < CHUNK_ROWS;
        if room {
            self.seal(city);
        }
        let tail = self.heads[city as usize].tail;
        if room && self.arena.get_mut(tail).reframe(millis) {
            let frame = self.arena.get(tail).frame;
            let head = &mut self.heads[city as usize];
            head.tail_frame = frame;
            if head.lo == tail {
                head.lo_frame = frame;
            }
        } else {
            self.roll(city, millis);
        }
        let frame = self.heads[city as usize].tail_frame;
        frame.pack(millis, held).unwrap_or_else(|| unreachable!("the frame was chosen for this time"))
    }

    /// Packs the city's tail and gives it a new, empty one; what no servable row needs leaves memory.
    fn roll(&mut self, city: u32, millis: i64) {
        let head = &self.heads[city as usize];
        if head.tail != NO_CHUNK {
            // Its sums are those of its block.
            self.arena.get_mut(head.tail).len = head.tail_len;
        }
        self.trim(city);
        self.index[city as usize].has_read = true;
        let fresh = self.arena.allocate();
        let frame = Frame::starting_at(millis);
        self.arena.get_mut(fresh).frame = frame;
        let Store { arena, heads, index, .. } = self;
        let (head, index) = (&mut heads[city as usize], &mut index[city as usize]);
        if let Some(tail) = index.parts.back_mut() {
            let block = arena.get(head.tail).pack(0);
            if head.lo == head.tail {
                // What was the tail goes on as the copy of its block.
                index.lo_block = Some(block.clone());
                head.lo_len = head.tail_len;
                arena.get_mut(head.tail).revisions = None;
            } else {
                arena.free(head.tail);
            }
            *tail = Part::Packed(block);
        } else {
            (head.lo, head.lo_row, head.lo_len, head.lo_frame) = (fresh, 0, 0, frame);
            index.lo_part = 0;
        }
        index.parts.push_back(Part::Open(fresh));
        (head.tail, head.tail_len, head.tail_frame, head.tail_revisions) = (fresh, 0, frame, false);
    }

    /// Writes into the tail's header what its head knows.
    pub fn seal(&mut self, city: u32) {
        let head = &mut self.heads[city as usize];
        if head.tail == NO_CHUNK {
            return;
        }
        self.arena.get_mut(head.tail).grow(head.tail_len);
        if head.lo == head.tail {
            head.lo_len = head.tail_len;
        }
    }

    /// Lets go of the parts that lie before all that a servable row or the running window needs, and forgets withdrawals that
    /// nothing can contradict any more.
    pub fn trim(&mut self, city: u32) {
        let Store { arena, heads, index, retention, departed } = self;
        let (head, index) = (&heads[city as usize], &mut index[city as usize]);
        let oldest_held = retention.oldest_held(head.high);
        let is_old = |first: &Part, arena: &Arena| first.view(arena).last_millis() < oldest_held;
        while index.lo_part > 0
            && index.parts.front().is_some_and(|first| is_old(first, arena))
            && let Some(first) = index.parts.pop_front()
        {
            (index.lo_part, index.gone) = (index.lo_part - 1, index.gone + 1);
            if let Some(departed) = departed {
                first.view(arena).for_each(|millis, held| departed.push((city, millis, held)));
            }
        }
        let oldest_accepted = retention.oldest_accepted(head.high);
        while index.withdrawn.first_key_value().is_some_and(|(&millis, _)| millis < oldest_accepted) {
            index.withdrawn.pop_first();
        }
    }

    /// Makes the city fit for edits: until [`Store::finish_edits`] only its running sums are kept up.
    pub fn begin_edits(&mut self, city: u32) {
        self.seal(city);
        let window = self.retention.window.millis();
        self.index[city as usize].floor = self.last_millis(city).map_or(NEVER, |last| last - window);
    }

    /// Makes the city fit for appends again: packs all but the tail, and moves the running window to the newest reading.
    pub fn finish_edits(&mut self, city: u32) {
        let index = &mut self.index[city as usize];
        if index.opened != NO_PART {
            index.changed_part = index.changed_part.min(index.gone + u64::from(index.opened));
        }
        if let Some(last) = index.parts.len().checked_sub(1) {
            self.open(city, last);
        }
        self.pack_opened(city);
        self.refresh(city);
        self.trim(city);
        self.heads[city as usize].edits = Edits::None;
    }

    /// The chunk of a part, which is unpacked where it is not open.
    pub fn open(&mut self, city: u32, part: usize) -> u32 {
        let Store { arena, index, .. } = self;
        let index = &mut index[city as usize];
        index.opened = index.opened.min(part as u32);
        match &index.parts[part] {
            Part::Open(chunk) => *chunk,
            Part::Packed(block) => {
                let chunk = arena.allocate();
                arena.get_mut(chunk).unpack(block, true);
                index.parts[part] = Part::Open(chunk);
                chunk
            }
        }
    }

    fn pack_opened(&mut self, city: u32) {
        let Store { arena, index, .. } = self;
        let index = &mut index[city as usize];
        let last = index.parts.len().saturating_sub(1);
        let first = std::mem::replace(&mut index.opened, NO_PART) as usize;
        for part in index.parts.range_mut(first.min(last)..last) {
            if let &mut Part::Open(chunk) = part {
                *part = Part::Packed(arena.get(chunk).pack(0));
                arena.free(chunk);
            }
        }
    }

    /// Sets the head from the parts, and the running window, which edits have kept right from `floor` on, to that of the newest
    /// reading.
    fn refresh(&mut self, city: u32) {
        let last = self.last_millis(city);
        let window = self.retention.window.millis();
        let lo = last.map(|last| self.seek(city, last - window));
        let (sum, count) = match (last, lo) {
            (Some(last), Some(lo)) => {
                let was = self.index[city as usize].floor;
                let head = &self.heads[city as usize];
                let (old, forward) = (self.seek(city, was), was <= last - window);
                let (sum, count) = if forward { self.span(city, old, lo) } else { self.span(city, lo, old) };
                match forward {
                    true => (head.run_sum - sum, head.run_count - count),
                    false => (head.run_sum + sum, head.run_count + count),
                }
            }
            _ => (0, 0),
        };
        let Store { arena, heads, index, .. } = self;
        let (head, index) = (&mut heads[city as usize], &mut index[city as usize]);
        head.newest = last.unwrap_or(NEVER);
        // Appends keep no books: what a snapshot has taken must be older than all of them, also where its newest is no more.
        index.marked.0 = index.marked.0.min(head.newest);
        head.marks_ahead = index.withdrawn.last_key_value().is_some_and(|(&millis, _)| millis > head.newest);
        (head.run_sum, head.run_count) = (sum, count);
        let (Some(lo), Some(&Part::Open(tail_id))) = (lo, index.parts.back()) else {
            if index.lo_block.take().is_some() {
                arena.free(head.lo);
            }
            (head.tail, head.tail_len, head.lo, head.lo_row, head.lo_len) = (NO_CHUNK, 0, NO_CHUNK, 0, 0);
            return;
        };
        let tail = arena.get(tail_id);
        (head.tail, head.tail_len, head.tail_frame) = (tail_id, tail.len, tail.frame);
        head.tail_revisions = tail.revisions.is_some();
        set_lo(head, index, arena, lo);
    }

    /// Takes over what a snapshot has of a city without readings.
    pub fn resume(
        &mut self,
        city: u32,
        blocks: Vec<Block>,
        withdrawn: impl Iterator<Item = (i64, Option<Revision>)>,
        high: i64,
    ) {
        let index = &mut self.index[city as usize];
        index.parts = blocks.into_iter().flat_map(part::fitting).map(Part::Packed).collect();
        index.withdrawn = withdrawn.collect();
        index.has_read = high != NEVER;
        // An empty window behind the last reading.
        index.floor = index.parts.back().map_or(NEVER, |last| last.view(&self.arena).last_millis() + 1);
        self.heads[city as usize].high = high;
        self.finish_edits(city);
        let last = self.last_millis(city).unwrap_or(NEVER);
        self.index[city as usize].marked = (last, high);
    }

    /// Bytes of memory in use for readings and their revisions.
    pub fn bytes(&self) -> usize {
        let parts = self.index.iter().flat_map(|index| &index.parts).map(|part| match part {
            Part::Packed(block) => block.bytes(),
            Part::Open(chunk) => self.arena.get(*chunk).revisions.as_ref().map_or(0, |r| r.bytes()),
        });
        let parts: usize = parts.sum();
        let places: usize = self.index.iter().map(|index| index.parts.capacity() * size_of::<Part>()).sum();
        let cities = self.heads.len() * (size_of::<Head>() + size_of::<CityIndex>());
        self.arena.len() * size_of::<Chunk>() + cities + parts + places
    }
}

/// Takes what is older than `floor` out of the running window; false where it has come to the end of the part.
#[inline(always)]
fn advance_window(head: &mut Head, arena: &Arena, floor: i64) -> bool {
    let len = if head.lo == head.tail { head.tail_len } else { head.lo_len };
    while head.lo_row < len {
        let row = arena.get(head.lo).rows[usize::from(head.lo_row)];
        if head.lo_frame.millis(row) >= floor {
            return true;
        }
        head.run_sum -= row.held().micros();
        head.run_count -= 1;
        head.lo_row += 1;
    }
    false
}

/// The running window goes on in the next part.
#[cold]
fn next_lo(head: &mut Head, index: &mut CityIndex, arena: &mut Arena) {
    let place = Place { chunk: index.lo_part as usize + 1, row: 0 };
    set_lo(head, index, arena, place);
}

/// The running window begins at `place`.
fn set_lo(head: &mut Head, index: &mut CityIndex, arena: &mut Arena, place: Place) {
    index.lo_part = place.chunk as u32;
    let was = index.lo_block.take().map(|block| (block, head.lo));
    match &index.parts[place.chunk] {
        Part::Open(chunk) => {
            if let Some((_, copy)) = was {
                arena.free(copy);
            }
            head.lo = *chunk;
        }
        Part::Packed(block) => {
            head.lo = match was {
                Some((was, copy)) if was.is(block) => copy,
                was => {
                    let copy = was.map_or_else(|| arena.allocate(), |(_, copy)| copy);
                    arena.get_mut(copy).unpack(block, false);
                    copy
                }
            };
            index.lo_block = Some(block.clone());
        }
    }
    let chunk = arena.get(head.lo);
    (head.lo_row, head.lo_len, head.lo_frame) = (place.row as u16, chunk.len, chunk.frame);
}

#[cold]
fn note_revision(tail: &mut Chunk, row: u16, revision: Option<Revision>) {
    let revisions = tail.revisions.get_or_insert_with(|| Box::new(Revisions::none(usize::from(row))));
    revisions.insert(usize::from(row));
    revisions.set(usize::from(row), revision);
}
