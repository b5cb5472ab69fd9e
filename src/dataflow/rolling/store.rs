//! The readings of all cities of a worker, and the running window of each city, which makes an
//! in-order append cheap.
//!
//! The newest readings of a city are in its tail chunk. Older readings are packed, except those
//! that the current epoch edits. The start of the running window moves through one more chunk: the
//! tail, or a copy of the block that it is in.

use std::collections::{BTreeMap, VecDeque};

use super::arena::Arena;
use super::chunk::{CHUNK_ROWS, Chunk, NO_CHUNK, PackedHeat, PackedRow, TimeFrame};
use super::part::{self, ReadingsPart, RowPosition};
use super::retention::Retention;
use super::revisions::Revisions;
use crate::model::{Block, Revision};

/// A time before every event time.
pub const BEFORE_ALL_TIMES: i64 = i64::MIN;

/// What an in-order append reads and writes: one cache line for each city.
///
/// If the city has readings, `window_sum` and `window_count` cover `[t - window, t]` of its newest
/// reading `t`, and `window_chunk`/`window_row` is the first row of that window. `tail_len` is the
/// length of the tail; the header of its chunk is updated when the tail is sealed.
#[derive(Debug)]
#[repr(align(64))]
pub struct CityHead {
    pub window_sum: i64,
    /// The time of the newest reading. A newer arrival is an append, unless its key has a
    /// tombstone.
    pub newest: i64,
    /// The newest `reading_at` that was ever accepted. It never decreases, and retention counts
    /// from it.
    pub high: i64,
    pub tail_frame: TimeFrame,
    pub window_chunk_frame: TimeFrame,
    pub window_count: u32,
    pub tail: u32,
    pub window_chunk: u32,
    pub tail_len: u16,
    pub window_row: u16,
    pub window_chunk_len: u16,
    /// The tail has revisions.
    pub tail_revisions: bool,
    /// There may be tombstones newer than the newest reading.
    pub tombstones_ahead: bool,
    pub edit_state: EditState,
}

const _: () = assert!(size_of::<CityHead>() == 64);

/// Whether the current epoch edits a city instead of only appending to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditState {
    None,
    /// Its arrivals must be applied as edits.
    Expected,
    /// The city is sealed for edits, and its head is stale.
    Begun,
}

/// The state that only new chunks, edits and snapshots need.
#[derive(Debug)]
pub struct CityIndex {
    /// Oldest first. Between epochs the last part is the tail's chunk and all others are packed.
    /// None is empty.
    pub parts: VecDeque<ReadingsPart>,
    /// Withdrawn keys without a reading, with the revision of the withdrawal.
    pub tombstones: BTreeMap<i64, Option<Revision>>,
    /// A reading was ever accepted. It is set in log order, whereas the head's `high` is advanced
    /// for a whole epoch at once.
    pub has_accepted_reading: bool,
    /// The index of the part in which the running window begins.
    pub window_part: u32,
    /// How many parts were removed. The number of a part is its index plus this.
    pub removed_parts: u64,
    /// The index of the first part that the current epoch may have opened.
    pub first_opened_part: u32,
    /// The number of the first part that was edited since the current row was last computed.
    pub first_changed_part: u64,
    /// The block of which the head's `window_chunk` is a copy; `None` if that is the tail.
    pub window_block: Option<Block>,
    /// The start of the running window while the city is edited.
    pub window_floor: i64,
    /// The oldest time that was edited since the last snapshot; [`AFTER_ALL_TIMES`] if there is
    /// none.
    pub edited_from: i64,
    /// The newest reading and `high` in the last snapshot.
    pub last_snapshot_times: (i64, i64),
}

/// A time after every event time.
pub const AFTER_ALL_TIMES: i64 = i64::MAX;
/// Stands for no part.
pub const NO_PART: u32 = u32::MAX;

impl Default for CityIndex {
    fn default() -> CityIndex {
        CityIndex {
            parts: VecDeque::new(),
            tombstones: BTreeMap::new(),
            has_accepted_reading: false,
            window_part: 0,
            removed_parts: 0,
            first_opened_part: NO_PART,
            first_changed_part: u64::MAX,
            window_block: None,
            window_floor: BEFORE_ALL_TIMES,
            edited_from: AFTER_ALL_TIMES,
            last_snapshot_times: (BEFORE_ALL_TIMES, BEFORE_ALL_TIMES),
        }
    }
}

#[derive(Debug)]
pub struct ReadingStore {
    pub arena: Arena,
    pub heads: Vec<CityHead>,
    pub index: Vec<CityIndex>,
    pub retention: Retention,
    /// Readings that were removed from memory, as `(city, time, value)`; `None` if no output needs
    /// them.
    pub retired_readings: Option<Vec<(u32, i64, PackedHeat)>>,
}

impl ReadingStore {
    pub fn new(retention: Retention, keep_departed: bool) -> ReadingStore {
        let departed = keep_departed.then(Vec::new);
        ReadingStore {
            arena: Arena::default(),
            heads: Vec::new(),
            index: Vec::new(),
            retention,
            retired_readings: departed,
        }
    }

    /// Adds a city without readings.
    pub fn add_city(&mut self) -> u32 {
        self.heads.push(CityHead {
            window_sum: 0,
            newest: BEFORE_ALL_TIMES,
            high: BEFORE_ALL_TIMES,
            tail_frame: TimeFrame::default(),
            window_chunk_frame: TimeFrame::default(),
            window_count: 0,
            tail: NO_CHUNK,
            window_chunk: NO_CHUNK,
            tail_len: 0,
            window_row: 0,
            window_chunk_len: 0,
            tail_revisions: false,
            tombstones_ahead: false,
            edit_state: EditState::None,
        });
        self.index.push(CityIndex::default());
        self.heads.len() as u32 - 1
    }

    /// Appends a reading that is newer than all readings and tombstones of the city. Returns sum
    /// and count of its window.
    #[inline]
    pub fn append_reading(
        &mut self,
        city: u32,
        millis: i64,
        held: PackedHeat,
        revision: Option<Revision>,
    ) -> (i64, u32) {
        let head = &self.heads[city as usize];
        let packed = match head.tail_frame.pack_row(millis, held) {
            Some(packed) if usize::from(head.tail_len) < CHUNK_ROWS && head.tail != NO_CHUNK => packed,
            _ => self.make_tail_room(city, millis, held),
        };
        let ReadingStore { arena, heads, index, retention, .. } = self;
        let head = &mut heads[city as usize];
        let tail = arena.get_mut(head.tail);
        tail.rows[usize::from(head.tail_len)] = packed;
        if revision.is_some() || head.tail_revisions {
            record_revision(tail, head.tail_len, revision);
            head.tail_revisions = true;
        }
        head.tail_len += 1;
        head.window_sum += held.micros();
        head.window_count += 1;
        let floor = millis - retention.window.millis();
        while !advance_window(head, arena, floor) {
            move_window_to_next_part(head, &mut index[city as usize], arena);
        }
        (head.window_sum, head.window_count)
    }

    /// Reads the memory that appends to these cities will need. These reads do not depend on each
    /// other, so the processor fetches the memory for all of them at once; the appends themselves
    /// would wait for each fetch.
    pub fn prefetch_appends(&self, cities: &[u32]) {
        let mut checksum = 0;
        for head in cities.iter().filter_map(|&city| self.heads.get(city as usize)) {
            if head.tail != NO_CHUNK {
                let tail = self.arena.get(head.tail).rows[usize::from(head.tail_len).min(CHUNK_ROWS - 1)];
                let lo =
                    self.arena.get(head.window_chunk).rows[usize::from(head.window_row).min(CHUNK_ROWS - 1)];
                checksum ^= tail.packed_heat().micros() ^ lo.packed_heat().micros();
            }
        }
        std::hint::black_box(checksum);
    }

    /// Makes room in the tail for a row at `millis`, by a wider frame or a new tail.
    #[cold]
    #[inline(never)]
    fn make_tail_room(&mut self, city: u32, millis: i64, held: PackedHeat) -> PackedRow {
        let head = &self.heads[city as usize];
        let has_space = head.tail != NO_CHUNK && usize::from(head.tail_len) < CHUNK_ROWS;
        if has_space {
            self.seal_tail(city);
        }
        let tail = self.heads[city as usize].tail;
        if has_space && self.arena.get_mut(tail).reframe(millis) {
            let frame = self.arena.get(tail).frame;
            let head = &mut self.heads[city as usize];
            head.tail_frame = frame;
            if head.window_chunk == tail {
                head.window_chunk_frame = frame;
            }
        } else {
            self.roll_tail(city, millis);
        }
        let frame = self.heads[city as usize].tail_frame;
        frame.pack_row(millis, held).unwrap_or_else(|| unreachable!("the frame was chosen for this time"))
    }

    /// Packs the city's tail and gives the city a new, empty tail. Readings that no servable row
    /// needs are removed.
    fn roll_tail(&mut self, city: u32, millis: i64) {
        let head = &self.heads[city as usize];
        if head.tail != NO_CHUNK {
            // Its sums become those of its block.
            self.arena.get_mut(head.tail).len = head.tail_len;
        }
        self.trim_city(city);
        self.index[city as usize].has_accepted_reading = true;
        let new_chunk = self.arena.allocate_chunk();
        let frame = TimeFrame::starting_at(millis);
        self.arena.get_mut(new_chunk).frame = frame;
        let ReadingStore { arena, heads, index, .. } = self;
        let (head, index) = (&mut heads[city as usize], &mut index[city as usize]);
        if let Some(tail) = index.parts.back_mut() {
            let block = arena.get(head.tail).pack_block(0);
            if head.window_chunk == head.tail {
                // The former tail becomes the copy of its block.
                index.window_block = Some(block.clone());
                head.window_chunk_len = head.tail_len;
                arena.get_mut(head.tail).revisions = None;
            } else {
                arena.free_chunk(head.tail);
            }
            *tail = ReadingsPart::Packed(block);
        } else {
            (head.window_chunk, head.window_row, head.window_chunk_len, head.window_chunk_frame) =
                (new_chunk, 0, 0, frame);
            index.window_part = 0;
        }
        index.parts.push_back(ReadingsPart::Open(new_chunk));
        (head.tail, head.tail_len, head.tail_frame, head.tail_revisions) = (new_chunk, 0, frame, false);
    }

    /// Updates the header of the tail's chunk from the city's head.
    pub fn seal_tail(&mut self, city: u32) {
        let head = &mut self.heads[city as usize];
        if head.tail == NO_CHUNK {
            return;
        }
        self.arena.get_mut(head.tail).extend_to(head.tail_len);
        if head.window_chunk == head.tail {
            head.window_chunk_len = head.tail_len;
        }
    }

    /// Removes the parts that neither a servable row nor the running window needs, and the
    /// tombstones that no accepted arrival can have the key of any more.
    pub fn trim_city(&mut self, city: u32) {
        let ReadingStore { arena, heads, index, retention, retired_readings: departed } = self;
        let (head, index) = (&heads[city as usize], &mut index[city as usize]);
        let oldest_held = retention.oldest_held(head.high);
        let is_old = |first: &ReadingsPart, arena: &Arena| first.view(arena).last_millis() < oldest_held;
        while index.window_part > 0
            && index.parts.front().is_some_and(|first| is_old(first, arena))
            && let Some(first) = index.parts.pop_front()
        {
            (index.window_part, index.removed_parts) = (index.window_part - 1, index.removed_parts + 1);
            if let Some(departed) = departed {
                first.view(arena).for_each_reading(|millis, held| departed.push((city, millis, held)));
            }
        }
        let oldest_accepted = retention.oldest_accepted(head.high);
        while index.tombstones.first_key_value().is_some_and(|(&millis, _)| millis < oldest_accepted) {
            index.tombstones.pop_first();
        }
    }

    /// Prepares the city for edits: until [`ReadingStore::finish_edits`], only its running sums are
    /// updated.
    pub fn begin_edits(&mut self, city: u32) {
        self.seal_tail(city);
        let window = self.retention.window.millis();
        self.index[city as usize].window_floor =
            self.last_millis(city).map_or(BEFORE_ALL_TIMES, |last| last - window);
    }

    /// Prepares the city for appends again: packs all parts but the tail, and moves the running
    /// window to the newest reading.
    pub fn finish_edits(&mut self, city: u32) {
        let index = &mut self.index[city as usize];
        if index.first_opened_part != NO_PART {
            index.first_changed_part =
                index.first_changed_part.min(index.removed_parts + u64::from(index.first_opened_part));
        }
        if let Some(last) = index.parts.len().checked_sub(1) {
            self.open_part(city, last);
        }
        self.pack_opened_parts(city);
        self.refresh_head(city);
        self.trim_city(city);
        self.heads[city as usize].edit_state = EditState::None;
    }

    /// The chunk of a part, which is unpacked if it is not open.
    pub fn open_part(&mut self, city: u32, part: usize) -> u32 {
        let ReadingStore { arena, index, .. } = self;
        let index = &mut index[city as usize];
        index.first_opened_part = index.first_opened_part.min(part as u32);
        match &index.parts[part] {
            ReadingsPart::Open(chunk) => *chunk,
            ReadingsPart::Packed(block) => {
                let chunk = arena.allocate_chunk();
                arena.get_mut(chunk).unpack_block(block, true);
                index.parts[part] = ReadingsPart::Open(chunk);
                chunk
            }
        }
    }

    fn pack_opened_parts(&mut self, city: u32) {
        let ReadingStore { arena, index, .. } = self;
        let index = &mut index[city as usize];
        let last = index.parts.len().saturating_sub(1);
        let first = std::mem::replace(&mut index.first_opened_part, NO_PART) as usize;
        for part in index.parts.range_mut(first.min(last)..last) {
            if let &mut ReadingsPart::Open(chunk) = part {
                *part = ReadingsPart::Packed(arena.get(chunk).pack_block(0));
                arena.free_chunk(chunk);
            }
        }
    }

    /// Recomputes the head from the parts. Edits have updated the running window from `floor` on;
    /// it is moved to the window of the newest reading.
    fn refresh_head(&mut self, city: u32) {
        let last = self.last_millis(city);
        let window = self.retention.window.millis();
        let lo = last.map(|last| self.seek_row(city, last - window));
        let (sum, count) = match (last, lo) {
            (Some(last), Some(lo)) => {
                let old_floor = self.index[city as usize].window_floor;
                let head = &self.heads[city as usize];
                let (old, forward) = (self.seek_row(city, old_floor), old_floor <= last - window);
                let (sum, count) =
                    if forward { self.sum_range(city, old, lo) } else { self.sum_range(city, lo, old) };
                match forward {
                    true => (head.window_sum - sum, head.window_count - count),
                    false => (head.window_sum + sum, head.window_count + count),
                }
            }
            _ => (0, 0),
        };
        let ReadingStore { arena, heads, index, .. } = self;
        let (head, index) = (&mut heads[city as usize], &mut index[city as usize]);
        head.newest = last.unwrap_or(BEFORE_ALL_TIMES);
        // Appends do not update `edited_from`, so the snapshot must be older than all of them, even
        // if its newest reading was withdrawn.
        index.last_snapshot_times.0 = index.last_snapshot_times.0.min(head.newest);
        head.tombstones_ahead =
            index.tombstones.last_key_value().is_some_and(|(&millis, _)| millis > head.newest);
        (head.window_sum, head.window_count) = (sum, count);
        let (Some(lo), Some(&ReadingsPart::Open(tail_id))) = (lo, index.parts.back()) else {
            if index.window_block.take().is_some() {
                arena.free_chunk(head.window_chunk);
            }
            (head.tail, head.tail_len, head.window_chunk, head.window_row, head.window_chunk_len) =
                (NO_CHUNK, 0, NO_CHUNK, 0, 0);
            return;
        };
        let tail = arena.get(tail_id);
        (head.tail, head.tail_len, head.tail_frame) = (tail_id, tail.len, tail.frame);
        head.tail_revisions = tail.revisions.is_some();
        set_window_start(head, index, arena, lo);
    }

    /// Restores a city without its readings from a snapshot.
    pub fn restore_city(
        &mut self,
        city: u32,
        blocks: Vec<Block>,
        withdrawn: impl Iterator<Item = (i64, Option<Revision>)>,
        high: i64,
    ) {
        let index = &mut self.index[city as usize];
        index.parts =
            blocks.into_iter().flat_map(part::split_to_fit_chunk).map(ReadingsPart::Packed).collect();
        index.tombstones = withdrawn.collect();
        index.has_accepted_reading = high != BEFORE_ALL_TIMES;
        // An empty window after the last reading.
        index.window_floor =
            index.parts.back().map_or(BEFORE_ALL_TIMES, |last| last.view(&self.arena).last_millis() + 1);
        self.heads[city as usize].high = high;
        self.finish_edits(city);
        let last = self.last_millis(city).unwrap_or(BEFORE_ALL_TIMES);
        self.index[city as usize].last_snapshot_times = (last, high);
    }

    /// Memory in bytes of readings and their revisions.
    #[cfg(any(test, feature = "internals"))]
    pub fn memory_bytes(&self) -> usize {
        let parts = self.index.iter().flat_map(|index| &index.parts).map(|part| match part {
            ReadingsPart::Packed(block) => block.memory_bytes(),
            ReadingsPart::Open(chunk) => {
                self.arena.get(*chunk).revisions.as_ref().map_or(0, |r| r.memory_bytes())
            }
        });
        let parts: usize = parts.sum();
        let places: usize =
            self.index.iter().map(|index| index.parts.capacity() * size_of::<ReadingsPart>()).sum();
        let cities = self.heads.len() * (size_of::<CityHead>() + size_of::<CityIndex>());
        self.arena.len() * size_of::<Chunk>() + cities + parts + places
    }
}

/// Removes the rows before `floor` from the running window. Returns false at the end of the part.
#[inline(always)]
fn advance_window(head: &mut CityHead, arena: &Arena, floor: i64) -> bool {
    let len = if head.window_chunk == head.tail { head.tail_len } else { head.window_chunk_len };
    while head.window_row < len {
        let row = arena.get(head.window_chunk).rows[usize::from(head.window_row)];
        if head.window_chunk_frame.millis(row) >= floor {
            return true;
        }
        head.window_sum -= row.packed_heat().micros();
        head.window_count -= 1;
        head.window_row += 1;
    }
    false
}

/// Continues the running window in the next part.
#[cold]
fn move_window_to_next_part(head: &mut CityHead, index: &mut CityIndex, arena: &mut Arena) {
    let position = RowPosition { part: index.window_part as usize + 1, row: 0 };
    set_window_start(head, index, arena, position);
}

/// Sets the start of the running window to `place`.
fn set_window_start(head: &mut CityHead, index: &mut CityIndex, arena: &mut Arena, position: RowPosition) {
    index.window_part = position.part as u32;
    let old_block = index.window_block.take().map(|block| (block, head.window_chunk));
    match &index.parts[position.part] {
        ReadingsPart::Open(chunk) => {
            if let Some((_, copy)) = old_block {
                arena.free_chunk(copy);
            }
            head.window_chunk = *chunk;
        }
        ReadingsPart::Packed(block) => {
            head.window_chunk = match old_block {
                Some((old_block, copy)) if old_block.ptr_eq(block) => copy,
                old_block => {
                    let copy = old_block.map_or_else(|| arena.allocate_chunk(), |(_, copy)| copy);
                    arena.get_mut(copy).unpack_block(block, false);
                    copy
                }
            };
            index.window_block = Some(block.clone());
        }
    }
    let chunk = arena.get(head.window_chunk);
    (head.window_row, head.window_chunk_len, head.window_chunk_frame) =
        (position.row as u16, chunk.len, chunk.frame);
}

#[cold]
fn record_revision(tail: &mut Chunk, row: u16, revision: Option<Revision>) {
    let revisions =
        tail.revisions.get_or_insert_with(|| Box::new(Revisions::without_revisions(usize::from(row))));
    revisions.insert(usize::from(row));
    revisions.set(usize::from(row), revision);
}
