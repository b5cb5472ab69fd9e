//! The newest row an hour or more before each city's newest: it moves on with every append, so that a trend costs no search.
//! Whether it is recent enough for a trend is asked at the end.

use super::edit::Place;
use super::store::{NEVER, Store};

/// Rows that are unpacked together.
const AHEAD: usize = 16;

/// The newest row at or before a limit that mostly moves forward, and its window.
#[derive(Debug)]
pub struct HourAgo {
    /// The row's time, [`NEVER`] where there is none.
    at: i64,
    /// Of its window.
    sum: i64,
    count: u32,
    /// The first row behind it, and the first of its window.
    next: Walker,
    lo: Walker,
}

impl HourAgo {
    /// Searches for it; the city must be sealed, with a row behind `limit`.
    pub fn find(store: &Store, city: u32, limit: i64) -> HourAgo {
        let next = store.seek(city, limit + 1);
        let at = store.millis_before(city, next);
        let lo = at.map_or(next, |at| store.seek(city, at - store.retention.window.millis()));
        let (sum, count) = store.window(city, lo, next);
        let walker = |place| Walker::at(store, city, place);
        HourAgo { at: at.unwrap_or(NEVER), sum, count, next: walker(next), lo: walker(lo) }
    }

    /// Whether it can move on to `limit`: its rows are where they were.
    pub fn holds(&self, store: &Store, city: u32, limit: i64) -> bool {
        let index = &store.index[city as usize];
        self.at <= limit && self.lo.part >= index.gone && self.next.part < index.changed_part
    }

    /// Moves on to `limit`; the city must be sealed, with a row behind it.
    pub fn advance(&mut self, store: &Store, city: u32, limit: i64) {
        while let Some((millis, micros)) = self.next.peek(store, city).filter(|(at, _)| *at <= limit) {
            self.next.step();
            (self.at, self.sum, self.count) = (millis, self.sum + micros, self.count + 1);
        }
        while self.count > 0
            && let Some((millis, micros)) = self.lo.peek(store, city)
            && millis < self.at - store.retention.window.millis()
        {
            self.lo.step();
            (self.sum, self.count) = (self.sum - micros, self.count - 1);
        }
    }

    /// Sum and count of its window, if the row is not before `oldest`.
    pub fn window(&self, oldest: i64) -> Option<(i64, u32)> {
        (self.count > 0 && self.at >= oldest).then_some((self.sum, self.count))
    }
}

/// A place that moves forward over a city's rows, with some of them unpacked.
#[derive(Debug)]
struct Walker {
    /// The number of its part, of all that the city has had.
    part: u64,
    /// In the part, of the first row that is unpacked.
    row: usize,
    /// Times and heat indexes.
    rows: [(i64, i64); AHEAD],
    filled: usize,
    /// Those that it has passed.
    passed: usize,
}

impl Walker {
    fn at(store: &Store, city: u32, place: Place) -> Walker {
        let part = store.index[city as usize].gone + place.chunk as u64;
        Walker { part, row: place.row, rows: [(0, 0); AHEAD], filled: 0, passed: 0 }
    }

    #[inline]
    fn peek(&mut self, store: &Store, city: u32) -> Option<(i64, i64)> {
        if self.passed == self.filled {
            self.fill(store, city);
        }
        (self.passed < self.filled).then(|| self.rows[self.passed])
    }

    fn step(&mut self) {
        self.passed += 1;
    }

    #[cold]
    fn fill(&mut self, store: &Store, city: u32) {
        self.row += self.filled;
        (self.filled, self.passed) = (0, 0);
        let end = store.end(city).chunk;
        let mut part = (self.part - store.index[city as usize].gone) as usize;
        if part + 1 < end && self.row == store.part(city, part).len() {
            (part, self.part, self.row) = (part + 1, self.part + 1, 0);
        }
        if part < end {
            self.filled = store.part(city, part).read(self.row, &mut self.rows);
        }
    }
}
