//! The newest row at least an hour before each city's newest row. It moves with every append, so a
//! trend costs no search. Whether the row is recent enough for a trend is checked at the end of an
//! epoch.

use super::part::RowPosition;
use super::store::{BEFORE_ALL_TIMES, ReadingStore};

/// Rows that are unpacked together.
const READ_AHEAD_ROWS: usize = 16;

/// The newest row at or before a limit that mostly moves forward, and its window.
#[derive(Debug)]
pub struct HourAgo {
    /// The time of the row; a bound before all times if there is none.
    millis: i64,
    /// The sum of its window.
    sum: i64,
    count: u32,
    /// The first row after it, and the first row of its window.
    next_row: RowWalker,
    window_start: RowWalker,
}

impl HourAgo {
    /// Searches for the row. The city must be sealed, with a row after `limit`.
    pub fn find(store: &ReadingStore, city: u32, limit: i64) -> HourAgo {
        let next = store.seek_row(city, limit + 1);
        let at = store.millis_before(city, next);
        let lo = at.map_or(next, |at| store.seek_row(city, at - store.retention.window.millis()));
        let (sum, count) = store.sum_window(city, lo, next);
        let walker = |position| RowWalker::at(store, city, position);
        HourAgo {
            millis: at.unwrap_or(BEFORE_ALL_TIMES),
            sum,
            count,
            next_row: walker(next),
            window_start: walker(lo),
        }
    }

    /// Whether it can move to `limit`: only if its rows have not moved.
    pub fn can_advance_to(&self, store: &ReadingStore, city: u32, limit: i64) -> bool {
        let index = &store.index[city as usize];
        self.millis <= limit
            && self.window_start.part >= index.removed_parts
            && self.next_row.part < index.first_changed_part
    }

    /// Moves to `limit`. The city must be sealed, with a row after `limit`.
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

    /// The sum and count of its window, if the row is not before `oldest`.
    pub fn window(&self, oldest: i64) -> Option<(i64, u32)> {
        (self.count > 0 && self.millis >= oldest).then_some((self.sum, self.count))
    }
}

/// A cursor that moves forward over a city's rows and unpacks some of them at a time.
#[derive(Debug)]
struct RowWalker {
    /// The number of its part, counted over all parts that the city has had.
    part: u64,
    /// The index in the part of the first unpacked row.
    row: usize,
    /// Times and heat indexes.
    rows: [(i64, i64); READ_AHEAD_ROWS],
    filled_rows: usize,
    /// How many unpacked rows it has passed.
    passed_rows: usize,
}

impl RowWalker {
    fn at(store: &ReadingStore, city: u32, position: RowPosition) -> RowWalker {
        let part = store.index[city as usize].removed_parts + position.part as u64;
        RowWalker { part, row: position.row, rows: [(0, 0); READ_AHEAD_ROWS], filled_rows: 0, passed_rows: 0 }
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
