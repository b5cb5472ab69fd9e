//! The readings of every city of a worker, and the running window of each: what makes an in-order append cheap.

use std::collections::{BTreeMap, VecDeque};

use super::arena::Arena;
use super::chunk::{CHUNK_ROWS, Chunk, Frame, Held, NO_CHUNK};
use super::revisions::Revisions;
use crate::model::{Duration, Revision};

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
    /// The newest time the city knows of, held or withdrawn: what is newer is an append.
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

/// What only chunk changes and corrections need.
#[derive(Debug, Default)]
pub struct CityIndex {
    /// The city's chunks, oldest first; none is empty between epochs.
    pub chunks: VecDeque<u32>,
    /// Since the last epoch, a chunk has come or gone other than at the ends, so that `next` is not right everywhere.
    pub relink: bool,
    /// Keys that hold no reading because they were withdrawn, with the revision of the withdrawal.
    pub withdrawn: BTreeMap<i64, Option<Revision>>,
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
        let Store { arena, heads, retention, .. } = self;
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
        advance_window(head, arena, millis - retention.window.millis());
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
    fn make_room(&mut self, city: u32, millis: i64, held: Held) -> super::chunk::PackedRow {
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

    /// Gives the city a new, empty tail; what no servable row needs leaves memory.
    fn roll(&mut self, city: u32, millis: i64) {
        self.seal(city);
        // An edited city may still be corrected where its older chunks are; it is trimmed when that is done.
        if self.heads[city as usize].edits == Edits::None {
            self.trim(city);
        }
        let fresh = self.arena.allocate();
        let frame = Frame::starting_at(millis);
        self.arena.get_mut(fresh).frame = frame;
        let Store { arena, heads, index, .. } = self;
        let (head, index) = (&mut heads[city as usize], &mut index[city as usize]);
        match index.chunks.back() {
            Some(&tail) => {
                let tail = arena.get_mut(tail);
                tail.next = fresh;
                if let Some(revisions) = &mut tail.revisions {
                    revisions.shrink();
                }
            }
            None => (head.lo, head.lo_row, head.lo_len, head.lo_frame) = (fresh, 0, 0, frame),
        }
        index.chunks.push_back(fresh);
        (head.tail, head.tail_len, head.tail_frame, head.tail_revisions) = (fresh, 0, frame, false);
    }

    /// Writes into the tail's header what its head knows.
    pub fn seal(&mut self, city: u32) {
        let head = &mut self.heads[city as usize];
        if head.tail == NO_CHUNK {
            return;
        }
        let tail = self.arena.get_mut(head.tail);
        if tail.len != head.tail_len {
            tail.len = head.tail_len;
            tail.summarize();
        }
        if head.lo == head.tail {
            head.lo_len = head.tail_len;
        }
    }

    /// Frees the chunks that lie before all that a servable row or the running window needs, and forgets withdrawals that
    /// nothing can contradict any more.
    pub fn trim(&mut self, city: u32) {
        let Store { arena, heads, index, retention, departed } = self;
        let (head, index) = (&heads[city as usize], &mut index[city as usize]);
        let oldest_held = retention.oldest_held(head.high);
        while let (Some(&first), true) = (index.chunks.front(), index.chunks.len() > 1) {
            let chunk = arena.get(first);
            if first == head.lo || chunk.last_millis() >= oldest_held {
                break;
            }
            if let Some(departed) = departed {
                departed.extend(chunk.rows().iter().map(|row| (city, chunk.frame.millis(*row), row.held())));
            }
            arena.free(first);
            index.chunks.pop_front();
        }
        let oldest_accepted = retention.oldest_accepted(head.high);
        while index.withdrawn.first_key_value().is_some_and(|(&millis, _)| millis < oldest_accepted) {
            index.withdrawn.pop_first();
        }
    }

    /// Sets the head anew from the chunks, after edits.
    pub fn refresh(&mut self, city: u32) {
        let last = self.last_millis(city);
        let lo = last.map(|last| self.seek(city, last - self.retention.window.millis()));
        let window = lo.map_or((0, 0), |lo| self.span(city, lo, self.end(city)));
        let Store { arena, heads, index, .. } = self;
        let (head, index) = (&mut heads[city as usize], &index[city as usize]);
        let newest_withdrawn = index.withdrawn.last_key_value().map_or(NEVER, |(&millis, _)| millis);
        head.newest = last.unwrap_or(NEVER).max(newest_withdrawn);
        (head.run_sum, head.run_count) = window;
        let (Some(lo), Some(&tail_id)) = (lo, index.chunks.back()) else {
            (head.tail, head.tail_len, head.lo, head.lo_row, head.lo_len) = (NO_CHUNK, 0, NO_CHUNK, 0, 0);
            return;
        };
        let lo_id = index.chunks[lo.chunk];
        let (tail, lo_chunk) = (arena.get(tail_id), arena.get(lo_id));
        (head.tail, head.tail_len, head.tail_frame) = (tail_id, tail.len, tail.frame);
        head.tail_revisions = tail.revisions.is_some();
        (head.lo, head.lo_row, head.lo_len, head.lo_frame) =
            (lo_id, lo.row as u16, lo_chunk.len, lo_chunk.frame);
    }

    /// Bytes of memory in use for readings and their revisions.
    pub fn bytes(&self) -> usize {
        let chunks = self.index.iter().flat_map(|index| &index.chunks).map(|&chunk| self.arena.get(chunk));
        let revisions: usize = chunks.filter_map(|chunk| chunk.revisions.as_ref()).map(|r| r.bytes()).sum();
        let cities = self.heads.len() * (size_of::<Head>() + size_of::<CityIndex>());
        self.arena.len() * size_of::<Chunk>() + cities + revisions
    }
}

/// Takes what is older than `floor` out of the running window.
#[inline(always)]
fn advance_window(head: &mut Head, arena: &Arena, floor: i64) {
    loop {
        let len = if head.lo == head.tail { head.tail_len } else { head.lo_len };
        if head.lo_row >= len {
            next_chunk(head, arena);
            continue;
        }
        let row = arena.get(head.lo).rows[usize::from(head.lo_row)];
        if head.lo_frame.millis(row) >= floor {
            return;
        }
        head.run_sum -= row.held().micros();
        head.run_count -= 1;
        head.lo_row += 1;
    }
}

#[cold]
fn next_chunk(head: &mut Head, arena: &Arena) {
    let next = arena.get(head.lo).next;
    let chunk = arena.get(next);
    (head.lo, head.lo_row, head.lo_len, head.lo_frame) = (next, 0, chunk.len, chunk.frame);
}

#[cold]
fn note_revision(tail: &mut Chunk, row: u16, revision: Option<Revision>) {
    let revisions = tail.revisions.get_or_insert_with(|| Box::new(Revisions::none(usize::from(row))));
    revisions.insert(usize::from(row));
    revisions.set(usize::from(row), revision);
}
