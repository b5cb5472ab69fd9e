//! Query responses, made in slices between epochs, so that readings come before clients.
//!
//! The rows of a query are counted when it arrives, and only granted rows are made. A response is
//! of the epoch of its query, however late its last row is made: the blocks of its city are pinned
//! with its first slice, or before an arrival changes the city.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pinned::{PinnedRows, RowRange};
use super::serving::{ProcessSet, ServingUpdate, process_set_of};
use super::state::Rolling;
use crate::model::{
    AnswerPiece, Arrival, CityId, EventTime, MAX_PINNED_BYTES, Query, QueryKind, RemainingRows, Row,
};

/// Limits of a slice of query responses, and of the memory that they pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryLimits {
    /// The most rows of a slice, before other work gets its turn.
    pub slice_rows: usize,
    pub slice_time: Duration,
    /// Bytes that may be pinned for all responses of a worker. A query beyond that is refused,
    /// unless nothing else is pinned.
    pub pinned_bytes: usize,
}

impl Default for QueryLimits {
    fn default() -> QueryLimits {
        let slice_time = Duration::from_micros(300);
        QueryLimits { slice_rows: 16_384, slice_time, pinned_bytes: MAX_PINNED_BYTES }
    }
}

/// The most rows of a piece; the clock is read between two pieces.
const PIECE_ROWS: usize = 512;

/// Process and id of a query.
type QueryKey = (u8, u64);

/// The unfinished query responses of a worker.
pub struct QueryResponder {
    limits: QueryLimits,
    open: HashMap<QueryKey, OpenResponse, foldhash::fast::RandomState>,
    /// The responses with granted rows, each once; the first is served next.
    ready: VecDeque<QueryKey>,
    /// By city: the responses whose blocks are not pinned yet.
    unpinned: HashMap<u32, Vec<QueryKey>, foldhash::fast::RandomState>,
    /// The responses of the current epoch whose row count was not sent yet.
    unannounced: Vec<QueryKey>,
    pinned_bytes: usize,
}

struct OpenResponse {
    epoch: u64,
    city_name: Arc<str>,
    city: u32,
    range: RowRange,
    /// The pinned rows; `None` before the range is pinned.
    rows: Option<Box<PinnedRows>>,
    /// An upper bound of the rows that remain to be made.
    max_remaining_rows: usize,
    made_rows: u64,
    granted_rows: usize,
    is_ready: bool,
    pinned_bytes: usize,
}

/// The remaining work of a slice.
pub struct WorkSlice {
    rows: usize,
    deadline: Option<Instant>,
}

impl QueryResponder {
    pub fn new(limits: QueryLimits) -> QueryResponder {
        QueryResponder {
            limits,
            open: HashMap::default(),
            ready: VecDeque::new(),
            unpinned: HashMap::default(),
            unannounced: Vec::new(),
            pinned_bytes: 0,
        }
    }

    /// A slice that begins with the first row.
    pub fn new_slice(&self) -> WorkSlice {
        WorkSlice { rows: self.limits.slice_rows, deadline: None }
    }

    /// Whether any response has rows that may be made.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Starts on a query of `epoch`, which has been applied.
    pub fn accept_query(
        &mut self,
        epoch: u64,
        query: Query,
        rolling: &mut Rolling,
        updates: &mut Vec<(ProcessSet, ServingUpdate)>,
    ) {
        let key = (query.process, query.id);
        let (from, to, limit) = match query.kind {
            QueryKind::Unwatch => return,
            QueryKind::GrantRows { rows } => return self.grant_rows(key, rows),
            QueryKind::Cancel => return self.cancel_response(key),
            QueryKind::Watch => (EventTime::MIN, Some(EventTime::MAX), usize::MAX),
            QueryKind::History { from, to, limit } => {
                (from, EventTime::from_millis(to.millis() - 1), limit as usize)
            }
        };
        let city = rolling.find_city(&query.city);
        let mut rest = RemainingRows::Nothing;
        if let Some((city, to)) = city.zip(to) {
            let range = RowRange { from: from.millis(), to: to.millis(), limit };
            rest = self.open_response(key, epoch, &query.city, city, range, rolling);
        }
        if !matches!(rest, RemainingRows::AtMost { .. }) {
            let (query, city, is_known) = (query.id, query.city, city.is_some());
            let answer = AnswerPiece {
                query_id: query,
                epoch,
                city,
                is_city_known: is_known,
                first_row: 0,
                rows: Vec::new(),
                has_more: false,
                remaining: rest,
            };
            updates.push((process_set_of(key.0), ServingUpdate::AnswerPiece(answer)));
        }
    }

    /// Opens a response, if there are rows and enough memory to pin them.
    fn open_response(
        &mut self,
        key: QueryKey,
        epoch: u64,
        name: &Arc<str>,
        CityId(city): CityId,
        range: RowRange,
        rolling: &mut Rolling,
    ) -> RemainingRows {
        let store = &mut rolling.store;
        store.seal_tail(city);
        let oldest = store.retention.oldest_servable(store.heads[city as usize].high);
        let range = RowRange { from: range.from.max(oldest), ..range };
        if range.from > range.to {
            return RemainingRows::Nothing;
        }
        let size = store.measure_range(city, range);
        if size.rows == 0 {
            return RemainingRows::Nothing;
        }
        // One call may exceed the limit by itself: its queries are refused only if another call has
        // open responses.
        let of_same_call =
            |(asker, open): (&QueryKey, &OpenResponse)| asker.0 == key.0 && open.epoch == epoch;
        if self.pinned_bytes + size.bytes > self.limits.pinned_bytes && !self.open.iter().all(of_same_call) {
            return RemainingRows::Refused;
        }
        self.pinned_bytes += size.bytes;
        let open = OpenResponse {
            epoch,
            city_name: Arc::clone(name),
            city,
            range,
            rows: None,
            max_remaining_rows: size.rows,
            made_rows: 0,
            granted_rows: 0,
            is_ready: false,
            pinned_bytes: size.bytes,
        };
        self.open.insert(key, open);
        self.unpinned.entry(city).or_default().push(key);
        self.unannounced.push(key);
        RemainingRows::AtMost { rows: size.rows as u64, pinned_bytes: size.bytes as u64 }
    }

    fn grant_rows(&mut self, key: QueryKey, rows: u32) {
        if let Some(open) = self.open.get_mut(&key)
            && rows > 0
        {
            open.granted_rows = open.granted_rows.saturating_add(rows as usize);
            if !std::mem::replace(&mut open.is_ready, true) {
                self.ready.push_back(key);
            }
        }
    }

    fn cancel_response(&mut self, key: QueryKey) {
        if let Some(open) = self.close_response(key)
            && open.is_ready
        {
            self.ready.retain(|ready| *ready != key);
        }
    }

    fn close_response(&mut self, key: QueryKey) -> Option<OpenResponse> {
        let open = self.open.remove(&key)?;
        self.pinned_bytes -= open.pinned_bytes;
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

    /// Pins the blocks that responses need of the cities that an epoch is about to change.
    pub fn pin_before_write(&mut self, arrivals: &[Vec<Arrival>], rolling: &mut Rolling) {
        if self.unpinned.is_empty() {
            return;
        }
        for arrival in arrivals.iter().flatten() {
            let city = rolling.cities.city_of_key(arrival.city);
            for key in self.unpinned.get(&city).cloned().unwrap_or_default() {
                self.pin_response(key, rolling);
            }
        }
    }

    fn pin_response(&mut self, key: QueryKey, rolling: &mut Rolling) {
        let Some(open) = self.open.get_mut(&key).filter(|open| open.rows.is_none()) else { return };
        rolling.store.seal_tail(open.city);
        let rows = Box::new(rolling.store.pin_range(open.city, open.range));
        self.pinned_bytes = self.pinned_bytes - open.pinned_bytes + rows.initial_bytes();
        open.pinned_bytes = rows.initial_bytes();
        open.rows = Some(rows);
        if let Some(keys) = self.unpinned.get_mut(&open.city) {
            keys.retain(|unpinned| *unpinned != key);
            if keys.is_empty() {
                self.unpinned.remove(&open.city);
            }
        }
    }

    /// Makes granted rows, one response after the other, until the slice ends.
    pub fn continue_slice(
        &mut self,
        rolling: &mut Rolling,
        slice: &mut WorkSlice,
        updates: &mut Vec<(ProcessSet, ServingUpdate)>,
    ) {
        while self.has_ready() && slice.has_time_left(self.limits.slice_time) {
            let Some(key) = self.ready.pop_front() else { return };
            self.pin_response(key, rolling);
            let most = PIECE_ROWS.min(slice.rows);
            let Some(open) = self.open.get_mut(&key) else { continue };
            let answer = open.next_piece(key.1, most);
            slice.rows = slice.rows.saturating_sub(answer.rows.len().max(1));
            if answer.remaining == RemainingRows::Nothing {
                self.close_response(key);
            } else if open.granted_rows > 0 {
                self.ready.push_back(key);
            } else {
                open.is_ready = false;
            }
            updates.push((process_set_of(key.0), ServingUpdate::AnswerPiece(answer)));
        }
    }

    /// Sends the row counts of an epoch's responses, unless rows were sent already.
    pub fn announce_row_counts(&mut self, updates: &mut Vec<(ProcessSet, ServingUpdate)>) {
        for key in self.unannounced.drain(..) {
            // One that is closed was answered.
            let Some(open) = self.open.get(&key).filter(|open| open.has_no_piece()) else { continue };
            let answer = open.to_response(key.1, Vec::new(), false, open.remaining());
            updates.push((process_set_of(key.0), ServingUpdate::AnswerPiece(answer)));
        }
    }
}

impl WorkSlice {
    fn has_time_left(&mut self, time: Duration) -> bool {
        let due = *self.deadline.get_or_insert_with(|| Instant::now() + time);
        self.rows > 0 && Instant::now() < due
    }
}

impl OpenResponse {
    /// Makes the next granted rows, at most `most`.
    fn next_piece(&mut self, query: u64, most: usize) -> AnswerPiece {
        let Some(pinned) = &mut self.rows else {
            return self.to_response(query, Vec::new(), false, self.remaining());
        };
        let most = most.min(self.granted_rows).min(self.range.limit);
        let mut rows = Vec::with_capacity(most.min(self.max_remaining_rows));
        while rows.len() < most
            && let Some((millis, row)) = pinned.next_row()
        {
            // Stored times come from event times.
            rows.extend(EventTime::from_millis(millis).map(|reading_at| (reading_at, row)));
        }
        debug_assert!(
            rows.len() <= self.max_remaining_rows,
            "{} rows of at most {}",
            rows.len(),
            self.max_remaining_rows
        );
        self.granted_rows -= rows.len();
        self.range.limit -= rows.len();
        self.max_remaining_rows = self.max_remaining_rows.saturating_sub(rows.len());
        self.made_rows += rows.len() as u64;
        let more = pinned.has_next();
        let rest = if !more || self.range.limit == 0 { RemainingRows::Nothing } else { self.remaining() };
        self.to_response(query, rows, more && rest == RemainingRows::Nothing, rest)
    }

    fn remaining(&self) -> RemainingRows {
        RemainingRows::AtMost { rows: self.max_remaining_rows as u64, pinned_bytes: self.pinned_bytes as u64 }
    }

    /// Whether no piece of it was made yet.
    fn has_no_piece(&self) -> bool {
        self.rows.is_none()
    }

    fn to_response(
        &self,
        query: u64,
        rows: Vec<(EventTime, Row)>,
        more: bool,
        rest: RemainingRows,
    ) -> AnswerPiece {
        let (epoch, city, first) =
            (self.epoch, Arc::clone(&self.city_name), self.made_rows - rows.len() as u64);
        AnswerPiece {
            query_id: query,
            epoch,
            city,
            is_city_known: true,
            first_row: first,
            rows,
            has_more: more,
            remaining: rest,
        }
    }
}
