//! Rolling results from held readings: for one place, for a range, and for all rows that edits have changed.

use std::ops::ControlFlow;

use super::chunk::{Frame, Held, PackedRow};
use super::edit::{Delta, Place};
use super::part::{Part, Rows, View};
use super::store::{END, Edits, Store};
use crate::model::Row;

impl Store {
    #[inline(always)]
    pub fn part(&self, city: u32, part: usize) -> View<'_> {
        let index = &self.index[city as usize];
        match &index.parts[part] {
            Part::Packed(block) if index.lo_block.as_ref().is_some_and(|lo| lo.is(block)) => {
                View::Copied(block, self.arena.get(self.heads[city as usize].lo))
            }
            part => part.view(&self.arena),
        }
    }

    /// The first place at `millis` or later; the city must be sealed.
    pub fn seek(&self, city: u32, millis: i64) -> Place {
        let chunk = self.seek_part(city, millis);
        let row = if chunk < self.end(city).chunk { self.part(city, chunk).seek(millis) } else { 0 };
        Place { chunk, row }
    }

    /// The first part that ends at `millis` or later. Most searches are for what is near the newest reading, or near the end of
    /// its window; headers of other parts are mostly not in any cache.
    fn seek_part(&self, city: u32, millis: i64) -> usize {
        let index = &self.index[city as usize];
        let is_before = |part: usize| index.parts[part].view(&self.arena).last_millis() < millis;
        let (lo, end) = (index.lo_part as usize, index.parts.len());
        if end > 0 && is_before(end - 1) {
            return end;
        }
        if lo + 1 < end && !(end - 2 > lo && is_before(end - 2)) && !is_before(lo) {
            return gallop_back(0, lo, is_before);
        }
        gallop_back(0, end.saturating_sub(1), is_before)
    }

    /// The place behind the last row.
    pub fn end(&self, city: u32) -> Place {
        Place { chunk: self.index[city as usize].parts.len(), row: 0 }
    }

    /// The reading at `millis`, which [`Store::seek`] found to be at `place` if anywhere.
    pub fn get(&self, city: u32, place: Place, millis: i64) -> Option<Held> {
        let part = (place != self.end(city)).then(|| self.part(city, place.chunk))?;
        (part.millis(place.row) == millis).then(|| part.held(place.row))
    }

    /// The time of the city's newest reading; the city must be sealed.
    pub fn last_millis(&self, city: u32) -> Option<i64> {
        self.index[city as usize].parts.back().map(|part| part.view(&self.arena).last_millis())
    }

    /// Time and value of the city's newest reading; the city must be sealed.
    pub fn newest(&self, city: u32) -> Option<(i64, Held)> {
        let last = self.end(city).chunk.checked_sub(1)?;
        let (part, row) = (self.part(city, last), self.part(city, last).len() - 1);
        Some((part.last_millis(), part.held(row)))
    }

    /// The time of the row before `place`.
    pub fn millis_before(&self, city: u32, place: Place) -> Option<i64> {
        match place.row.checked_sub(1) {
            Some(row) => Some(self.part(city, place.chunk).millis(row)),
            None => Some(self.part(city, place.chunk.checked_sub(1)?).last_millis()),
        }
    }

    /// Sum and count of the readings in `from..to`.
    pub fn span(&self, city: u32, from: Place, to: Place) -> (i64, u32) {
        let (mut sum, mut count) = (0, 0);
        for chunk in from.chunk..(to.chunk + 1).min(self.end(city).chunk) {
            let part = self.part(city, chunk);
            let first = if chunk == from.chunk { from.row } else { 0 };
            let last = if chunk == to.chunk { to.row } else { part.len() };
            sum += part.sum_between(first, last);
            count += last.saturating_sub(first) as u32;
        }
        (sum, count)
    }

    /// [`Store::span`] of a window, by what it has that the running one has not, and the other way around, where that is less.
    pub fn window(&self, city: u32, from: Place, to: Place) -> (i64, u32) {
        let (head, end) = (&self.heads[city as usize], self.end(city));
        let lo = self.run_lo(city);
        let beside = from.chunk.abs_diff(lo.chunk) + (end.chunk - to.chunk);
        if to.chunk.saturating_sub(from.chunk) <= beside {
            return self.span(city, from, to);
        }
        let (behind, behind_count) = self.span(city, to, end);
        if from <= lo {
            let (more, more_count) = self.span(city, from, lo);
            (head.run_sum + more - behind, head.run_count + more_count - behind_count)
        } else {
            let (less, less_count) = self.span(city, lo, from);
            (head.run_sum - less - behind, head.run_count - less_count - behind_count)
        }
    }

    /// Where the running window begins.
    fn run_lo(&self, city: u32) -> Place {
        let (head, index) = (&self.heads[city as usize], &self.index[city as usize]);
        match head.edits {
            Edits::Begun => self.seek(city, index.floor),
            _ => Place { chunk: index.lo_part as usize, row: usize::from(head.lo_row) },
        }
    }

    /// The greatest heat index in `from..=to` and when it was first; the city must be sealed.
    pub fn peak(&self, city: u32, from: i64, to: i64) -> Option<(i64, i64)> {
        let (low, high) = (self.seek(city, from), self.seek(city, to + 1));
        let mut peak: Option<(i64, i64)> = None;
        for chunk in low.chunk..(high.chunk + 1).min(self.end(city).chunk) {
            let part = self.part(city, chunk);
            if peak.is_some_and(|(micros, _)| micros >= part.peak()) {
                continue;
            }
            part.for_each(|millis, held| {
                if (from..=to).contains(&millis) && peak.is_none_or(|(micros, _)| held.micros() > micros) {
                    peak = Some((held.micros(), millis));
                }
            });
        }
        peak
    }

    /// Gives `each` the row of every reading in `from..=to`, by time, until it has enough; the city must be sealed.
    pub fn rows(&self, city: u32, from: i64, to: i64, mut each: impl FnMut(i64, Row) -> ControlFlow<()>) {
        let window = self.retention.window.millis();
        let mut window_rows = WindowCursor::at(self, city, from.saturating_sub(window), from);
        while let Some((millis, held)) = window_rows.high.peek().filter(|(millis, _)| *millis <= to) {
            window_rows.take();
            window_rows.drop_before(millis - window);
            if each(millis, window_rows.row(held)).is_break() {
                return;
            }
        }
    }

    /// Gives `emit` every row that `deltas` have changed, with its result before and after. The deltas are in order of time,
    /// one a key, and the store has them applied; the city must be sealed. With `all`, rows that they have not changed in the end
    /// as well.
    pub fn sweep(
        &self,
        city: u32,
        deltas: &[Delta],
        all: bool,
        mut emit: impl FnMut(i64, Option<Row>, Option<Row>),
    ) {
        let window = self.retention.window.millis();
        // Deltas before `entered` lie behind the sweep, those before `left` with their whole window.
        let (mut entered, mut left) = (0, 0);
        while let Some(next) = deltas.get(entered) {
            let mut rows = WindowCursor::at(self, city, next.millis - window, next.millis);
            // What the deltas in the window have added to its sum and count.
            let (mut sum_by, mut count_by) = (0, 0);
            loop {
                if let Some(own) = deltas.get(entered)
                    && rows.high.peek().is_none_or(|(millis, _)| own.millis <= millis)
                {
                    while left < entered && deltas[left].millis < own.millis - window {
                        sum_by -= deltas[left].sum();
                        count_by -= deltas[left].count();
                        left += 1;
                    }
                    sum_by += own.sum();
                    count_by += own.count();
                    entered += 1;
                    if own.after.is_some() {
                        rows.take();
                    }
                    rows.drop_before(own.millis - window);
                    let after = own.after.map(|held| rows.row(held));
                    let before = own.before.map(|held| rows.row_before(held, sum_by, count_by));
                    if all || before != after {
                        emit(own.millis, before, after);
                    }
                }
                // Rows that have no delta of their own, up to the next that has, or to the end of the oldest delta's window.
                let until = deltas.get(entered).map_or(i64::MAX, |delta| delta.millis);
                let until = until.min(deltas[left].millis + window + 1);
                let changed = all || sum_by != 0 || count_by != 0;
                while rows.high.millis < until {
                    let (millis, held) = (rows.high.millis, rows.high.held);
                    rows.take();
                    rows.drop_before(millis - window);
                    if changed {
                        let after = rows.row(held);
                        emit(millis, Some(rows.row_before(held, sum_by, count_by)), Some(after));
                    }
                }
                if deltas.get(entered).is_some_and(|delta| delta.millis == until) {
                    continue;
                }
                // The oldest delta's window ends here.
                sum_by -= deltas[left].sum();
                count_by -= deltas[left].count();
                left += 1;
                if left == entered {
                    break;
                }
            }
        }
    }
}

/// The first index from `start` on that `is_before` does not hold for, `end` where it holds for all before; found by steps from `end`
/// backwards that double.
fn gallop_back(start: usize, end: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high, mut step) = (start, end, 1);
    while low < high {
        let probe = if step > 0 { high.saturating_sub(step).max(low) } else { low + (high - low) / 2 };
        if is_before(probe) {
            // From here on by halves.
            (low, step) = (probe + 1, 0);
        } else {
            (high, step) = (probe, step * 2);
        }
    }
    low
}

impl Delta {
    pub fn sum(&self) -> i64 {
        self.after.map_or(0, Held::micros) - self.before.map_or(0, Held::micros)
    }

    pub fn count(&self) -> i64 {
        i64::from(self.after.is_some()) - i64::from(self.before.is_some())
    }
}

/// A window that moves forward over a city's rows: the readings from `low` to before `high`.
struct WindowCursor<'a> {
    low: Cursor<'a>,
    high: Cursor<'a>,
    sum: i64,
    count: u32,
}

impl<'a> WindowCursor<'a> {
    fn at(store: &'a Store, city: u32, low: i64, high: i64) -> WindowCursor<'a> {
        let (low, high) = (store.seek(city, low), store.seek(city, high));
        let (sum, count) = store.window(city, low, high);
        WindowCursor { low: Cursor::at(store, city, low), high: Cursor::at(store, city, high), sum, count }
    }

    /// Takes in the row at `high`; there must be one.
    #[inline(always)]
    fn take(&mut self) {
        self.sum += self.high.held.micros();
        self.count += 1;
        self.high.step();
    }

    /// The result of a reading whose window this is.
    #[inline(always)]
    fn row(&self, held: Held) -> Row {
        Row::new(held.heat_index(), held.category(), self.sum, self.count)
    }

    /// [`WindowCursor::row`] before edits have added so much to the window.
    #[inline(always)]
    fn row_before(&self, held: Held, sum_by: i64, count_by: i64) -> Row {
        let count = (i64::from(self.count) - count_by) as u32;
        Row::new(held.heat_index(), held.category(), self.sum - sum_by, count)
    }

    #[inline(always)]
    fn drop_before(&mut self, floor: i64) {
        while self.low.millis < floor && self.count > 0 {
            self.sum -= self.low.held.micros();
            self.count -= 1;
            self.low.step();
        }
    }
}

/// A place in a city's rows, with its row unpacked.
struct Cursor<'a> {
    store: &'a Store,
    city: u32,
    next_part: usize,
    frame: Frame,
    rows: Rows<'a>,
    /// The rows of a part that is packed.
    buffer: Vec<PackedRow>,
    /// Of the row behind this one.
    next_row: usize,
    /// The row's time, or [`END`].
    millis: i64,
    held: Held,
}

impl<'a> Cursor<'a> {
    fn at(store: &'a Store, city: u32, place: Place) -> Cursor<'a> {
        let (frame, held) = (Frame::default(), PackedRow::default().held());
        let (rows, buffer, next_row) = (Rows::Buffer, Vec::new(), 0);
        let next_part = place.chunk;
        let mut cursor = Cursor { store, city, next_part, frame, rows, buffer, next_row, millis: END, held };
        cursor.enter(place.row);
        cursor
    }

    /// Goes to a row of the next part, or of the first behind it that has rows from there on.
    #[cold]
    fn enter(&mut self, mut row: usize) {
        self.millis = END;
        while self.next_part < self.store.end(self.city).chunk {
            let part = self.store.part(self.city, self.next_part);
            (self.frame, self.rows) = part.rows(&mut self.buffer);
            self.next_part += 1;
            if let Some(packed) = self.rows.get(&self.buffer).get(row) {
                (self.millis, self.held) = (self.frame.millis(*packed), packed.held());
                self.next_row = row + 1;
                return;
            }
            row = 0;
        }
    }

    #[inline(always)]
    fn peek(&self) -> Option<(i64, Held)> {
        (self.millis != END).then_some((self.millis, self.held))
    }

    #[inline(always)]
    fn step(&mut self) {
        match self.rows.get(&self.buffer).get(self.next_row) {
            Some(row) => {
                (self.millis, self.held) = (self.frame.millis(*row), row.held());
                self.next_row += 1;
            }
            None => self.enter(0),
        }
    }
}
