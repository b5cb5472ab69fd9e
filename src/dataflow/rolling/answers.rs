//! Answers to queries, made in slices between epochs: readings come before readers.
//!
//! What a query takes is counted when it comes, and no row is made that was not granted. An answer is of the epoch of its query,
//! however late its last row is made: its city's blocks are pinned when its first slice is made, or before an arrival touches
//! the city.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Rolling;
use super::pinned::{PinnedRows, RowRange};
use super::told::{Processes, Told, process_bit};
use crate::model::{Answer, Arrival, CityId, EventTime, PINNED_BYTES, Query, Question, Rest, Row};

/// How much of the answers is made at a time, and how much is held for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerLimits {
    /// What is made at most before anything else gets its turn.
    pub slice_rows: usize,
    pub slice_time: Duration,
    /// Bytes that are pinned for all answers of a worker. A query that goes beyond is refused, unless nothing else is held.
    pub pinned_bytes: usize,
}

impl Default for AnswerLimits {
    fn default() -> AnswerLimits {
        let slice_time = Duration::from_micros(300);
        AnswerLimits { slice_rows: 16_384, slice_time, pinned_bytes: PINNED_BYTES }
    }
}

/// Rows of a piece at most: between two pieces it looks at the clock.
const PIECE_ROWS: usize = 512;

/// Process and id of a query.
type Key = (u8, u64);

/// The answers of a worker that are not complete yet.
pub struct Answers {
    limits: AnswerLimits,
    open: HashMap<Key, Open, foldhash::fast::RandomState>,
    /// Those with granted rows, each once; the first gets its turn next.
    ready: VecDeque<Key>,
    /// By city: those that are not pinned.
    unpinned: HashMap<u32, Vec<Key>, foldhash::fast::RandomState>,
    /// Those of the epoch at hand that nothing was said of yet.
    unsaid: Vec<Key>,
    pinned_bytes: usize,
}

struct Open {
    epoch: u64,
    name: Arc<str>,
    city: u32,
    range: RowRange,
    /// Once the range is pinned.
    rows: Option<Box<PinnedRows>>,
    /// A bound of the rows that are still to be made.
    at_most: usize,
    made: u64,
    granted: usize,
    is_ready: bool,
    bytes: usize,
}

/// What may still be made before anything else gets its turn.
pub struct Slice {
    rows: usize,
    due: Option<Instant>,
}

impl Answers {
    pub fn new(limits: AnswerLimits) -> Answers {
        Answers {
            limits,
            open: HashMap::default(),
            ready: VecDeque::new(),
            unpinned: HashMap::default(),
            unsaid: Vec::new(),
            pinned_bytes: 0,
        }
    }

    /// A slice that begins with the first row.
    pub fn slice(&self) -> Slice {
        Slice { rows: self.limits.slice_rows, due: None }
    }

    /// Whether an answer has rows that may be made.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes a query of `epoch`, which has been applied.
    pub fn take(
        &mut self,
        epoch: u64,
        query: Query,
        rolling: &mut Rolling,
        told: &mut Vec<(Processes, Told)>,
    ) {
        let key = (query.process, query.id);
        let (from, to, limit) = match query.question {
            Question::Unwatch => return,
            Question::Grant { rows } => return self.grant(key, rows),
            Question::Cancel => return self.cancel(key),
            Question::Watch => (EventTime::MIN, Some(EventTime::MAX), usize::MAX),
            Question::History { from, to, limit } => {
                (from, EventTime::from_millis(to.millis() - 1), limit as usize)
            }
        };
        let city = rolling.city(&query.city);
        let mut rest = Rest::Nothing;
        if let Some((city, to)) = city.zip(to) {
            let range = RowRange { from: from.millis(), to: to.millis(), limit };
            rest = self.begin(key, epoch, &query.city, city, range, rolling);
        }
        if !matches!(rest, Rest::AtMost { .. }) {
            let (query, city, known) = (query.id, query.city, city.is_some());
            let answer = Answer { query, epoch, city, known, first: 0, rows: Vec::new(), more: false, rest };
            told.push((process_bit(key.0), Told::Answer(answer)));
        }
    }

    /// Opens an answer where there is anything to say and room to hold it.
    fn begin(
        &mut self,
        key: Key,
        epoch: u64,
        name: &Arc<str>,
        CityId(city): CityId,
        range: RowRange,
        rolling: &mut Rolling,
    ) -> Rest {
        let store = &mut rolling.store;
        store.seal(city);
        let oldest = store.retention.oldest_servable(store.heads[city as usize].high);
        let range = RowRange { from: range.from.max(oldest), ..range };
        if range.from > range.to {
            return Rest::Nothing;
        }
        let size = store.measure(city, range);
        if size.rows == 0 {
            return Rest::Nothing;
        }
        // The queries of a call that is larger than all that may be held have it alone.
        let of_same_call = |(asker, open): (&Key, &Open)| asker.0 == key.0 && open.epoch == epoch;
        if self.pinned_bytes + size.bytes > self.limits.pinned_bytes && !self.open.iter().all(of_same_call) {
            return Rest::Refused;
        }
        self.pinned_bytes += size.bytes;
        let open = Open {
            epoch,
            name: Arc::clone(name),
            city,
            range,
            rows: None,
            at_most: size.rows,
            made: 0,
            granted: 0,
            is_ready: false,
            bytes: size.bytes,
        };
        self.open.insert(key, open);
        self.unpinned.entry(city).or_default().push(key);
        self.unsaid.push(key);
        Rest::AtMost { rows: size.rows as u64, pinned_bytes: size.bytes as u64 }
    }

    fn grant(&mut self, key: Key, rows: u32) {
        if let Some(open) = self.open.get_mut(&key)
            && rows > 0
        {
            open.granted = open.granted.saturating_add(rows as usize);
            if !std::mem::replace(&mut open.is_ready, true) {
                self.ready.push_back(key);
            }
        }
    }

    fn cancel(&mut self, key: Key) {
        if let Some(open) = self.close(key)
            && open.is_ready
        {
            self.ready.retain(|ready| *ready != key);
        }
    }

    fn close(&mut self, key: Key) -> Option<Open> {
        let open = self.open.remove(&key)?;
        self.pinned_bytes -= open.bytes;
        if open.rows.is_none()
            && let Some(keys) = self.unpinned.get_mut(&open.city)
        {
            keys.retain(|unpinned| *unpinned != key);
            if keys.is_empty() {
                self.unpinned.remove(&open.city);
            }
        }
        Some(open)
    }

    /// Pins what the answers need of the cities that an epoch is about to touch.
    pub fn make_way(&mut self, arrivals: &[Vec<Arrival>], rolling: &mut Rolling) {
        if self.unpinned.is_empty() {
            return;
        }
        for arrival in arrivals.iter().flatten() {
            let city = rolling.cities.get(arrival.city);
            for key in self.unpinned.get(&city).cloned().unwrap_or_default() {
                self.pin(key, rolling);
            }
        }
    }

    fn pin(&mut self, key: Key, rolling: &mut Rolling) {
        let Some(open) = self.open.get_mut(&key).filter(|open| open.rows.is_none()) else { return };
        rolling.store.seal(open.city);
        let rows = Box::new(rolling.store.pin(open.city, open.range));
        self.pinned_bytes = self.pinned_bytes - open.bytes + rows.bytes();
        open.bytes = rows.bytes();
        open.rows = Some(rows);
        if let Some(keys) = self.unpinned.get_mut(&open.city) {
            keys.retain(|unpinned| *unpinned != key);
            if keys.is_empty() {
                self.unpinned.remove(&open.city);
            }
        }
    }

    /// Makes granted rows, of one answer after the other, until the slice ends.
    pub fn work(&mut self, rolling: &mut Rolling, slice: &mut Slice, told: &mut Vec<(Processes, Told)>) {
        while self.has_ready() && slice.goes_on(self.limits.slice_time) {
            let Some(key) = self.ready.pop_front() else { return };
            self.pin(key, rolling);
            let most = PIECE_ROWS.min(slice.rows);
            let Some(open) = self.open.get_mut(&key) else { continue };
            let answer = open.piece(key.1, most);
            slice.rows = slice.rows.saturating_sub(answer.rows.len().max(1));
            if answer.rest == Rest::Nothing {
                self.close(key);
            } else if open.granted > 0 {
                self.ready.push_back(key);
            } else {
                open.is_ready = false;
            }
            told.push((process_bit(key.0), Told::Answer(answer)));
        }
    }

    /// Says how much there is to the queries of an epoch that nothing else was said of.
    pub fn say_begun(&mut self, told: &mut Vec<(Processes, Told)>) {
        for key in self.unsaid.drain(..) {
            // One that is closed was answered.
            let Some(open) = self.open.get(&key).filter(|open| open.is_untouched()) else { continue };
            let answer = open.answer(key.1, Vec::new(), false, open.rest());
            told.push((process_bit(key.0), Told::Answer(answer)));
        }
    }
}

impl Slice {
    fn goes_on(&mut self, time: Duration) -> bool {
        let due = *self.due.get_or_insert_with(|| Instant::now() + time);
        self.rows > 0 && Instant::now() < due
    }
}

impl Open {
    /// Makes the next rows: those that were granted, but no more than `most`.
    fn piece(&mut self, query: u64, most: usize) -> Answer {
        let Some(pinned) = &mut self.rows else {
            return self.answer(query, Vec::new(), false, self.rest());
        };
        let most = most.min(self.granted).min(self.range.limit);
        let mut rows = Vec::with_capacity(most.min(self.at_most));
        while rows.len() < most
            && let Some((millis, row)) = pinned.next_row()
        {
            // Held times come from event times.
            rows.extend(EventTime::from_millis(millis).map(|reading_at| (reading_at, row)));
        }
        debug_assert!(rows.len() <= self.at_most, "{} rows of at most {}", rows.len(), self.at_most);
        self.granted -= rows.len();
        self.range.limit -= rows.len();
        self.at_most = self.at_most.saturating_sub(rows.len());
        self.made += rows.len() as u64;
        let more = pinned.has_next();
        let rest = if !more || self.range.limit == 0 { Rest::Nothing } else { self.rest() };
        self.answer(query, rows, more && rest == Rest::Nothing, rest)
    }

    fn rest(&self) -> Rest {
        Rest::AtMost { rows: self.at_most as u64, pinned_bytes: self.bytes as u64 }
    }

    /// Whether no piece was made of it.
    fn is_untouched(&self) -> bool {
        self.rows.is_none()
    }

    fn answer(&self, query: u64, rows: Vec<(EventTime, Row)>, more: bool, rest: Rest) -> Answer {
        let (epoch, city, first) = (self.epoch, Arc::clone(&self.name), self.made - rows.len() as u64);
        Answer { query, epoch, city, known: true, first, rows, more, rest }
    }
}
