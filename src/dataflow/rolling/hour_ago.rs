//! The newest row an hour or more before each city's newest: it moves on with every append, so that a trend costs no search.
//! Whether it is recent enough for a trend is asked at the end.

use super::part::RowPosition;
use super::store::{BEFORE_ALL_TIMES, ReadingStore};

/// Rows that are unpacked together.
const READ_AHEAD_ROWS: usize = 16;

/// The newest row at or before a limit that mostly moves forward, and its window.
#[derive(Debug)]
pub struct HourAgo {
    /// The row's time, [`NEVER`] where there is none.
    millis: i64,
    /// Of its window.
    sum: i64,
    count: u32,
    /// The first row behind it, and the first of its window.
    next_row: RowWalker,
    window_start: RowWalker,
}

impl HourAgo {
    /// Searches for it; the city must be sealed, with a row behind `limit`.
    pub fn find(store: &ReadingStore, city: u32, limit: i64) -> HourAgo {
        let next = store.seek_row(city, limit + 1);
        let at = store.millis_before(city, next);
        let lo = at.map_or(next, |at| store.seek_row(city, at - store.retention.window.millis()));
        let (sum, count) = store.sum_window(city, lo, next);
        let walker = |place| RowWalker::at(store, city, place);
        HourAgo {
            millis: at.unwrap_or(BEFORE_ALL_TIMES),
            sum,
            count,
            next_row: walker(next),
            window_start: walker(lo),
        }
    }

    /// Whether it can move on to `limit`: its rows are where they were.
    pub fn can_advance_to(&self, store: &ReadingStore, city: u32, limit: i64) -> bool {
        let index = &store.index[city as usize];
        self.millis <= limit
            && self.window_start.part >= index.removed_parts
            && self.next_row.part < index.first_changed_part
    }

    /// Moves on to `limit`; the city must be sealed, with a row behind it.
    pub fn advance_to(&mut self, store: &ReadingStore, city: u32, limit: i64) {
        while let Some((millis, micros)) = self.next_row.peek(store, city).filter(|(at, _)| *at <= limit) {
            self.next_row.step();
            (self.millis, self.sum, self.count) = (millis, self.sum + micros, self.count + 1);
        }
        while self.count > 0
            && let Some((millis, micros)) = self.window_start.peek(store, city)
            && millis < self.millis - store.retention.window.millis()
        {
            self.window_start.step();
            (self.sum, self.count) = (self.sum - micros, self.count - 1);
        }
    }

    /// Sum and count of its window, if the row is not before `oldest`.
    pub fn window(&self, oldest: i64) -> Option<(i64, u32)> {
        (self.count > 0 && self.millis >= oldest).then_some((self.sum, self.count))
    }
}

/// A place that moves forward over a city's rows, with some of them unpacked.
#[derive(Debug)]
struct RowWalker {
    /// The number of its part, of all that the city has had.
    part: u64,
    /// In the part, of the first row that is unpacked.
    row: usize,
    /// Times and heat indexes.
    rows: [(i64, i64); READ_AHEAD_ROWS],
    filled_rows: usize,
    /// Those that it has passed.
    passed_rows: usize,
}

impl RowWalker {
    fn at(store: &ReadingStore, city: u32, place: RowPosition) -> RowWalker {
        let part = store.index[city as usize].removed_parts + place.part as u64;
        RowWalker { part, row: place.row, rows: [(0, 0); READ_AHEAD_ROWS], filled_rows: 0, passed_rows: 0 }
    }

    #[inline]
    fn peek(&mut self, store: &ReadingStore, city: u32) -> Option<(i64, i64)> {
        if self.passed_rows == self.filled_rows {
            self.fill(store, city);
        }
        (self.passed_rows < self.filled_rows).then(|| self.rows[self.passed_rows])
    }

    fn step(&mut self) {
        self.passed_rows += 1;
    }

    #[cold]
    fn fill(&mut self, store: &ReadingStore, city: u32) {
        self.row += self.filled_rows;
        (self.filled_rows, self.passed_rows) = (0, 0);
        let end = store.end_position(city).part;
        let mut part = (self.part - store.index[city as usize].removed_parts) as usize;
        if part + 1 < end && self.row == store.part_view(city, part).len() {
            (part, self.part, self.row) = (part + 1, self.part + 1, 0);
        }
        if part < end {
            self.filled_rows = store.part_view(city, part).read_rows(self.row, &mut self.rows);
        }
    }
}
