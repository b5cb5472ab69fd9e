//! Computes rolling results from stored readings: for one time, for a range, and for all rows that
//! edits have changed.

use super::chunk::{PackedHeat, PackedRow, TimeFrame};
use super::edit::ReadingDelta;
use super::part::{PartRows, PartView, ReadingsPart, RowPosition};
use super::store::{AFTER_ALL_TIMES, EditState, ReadingStore};
use crate::model::Row;

impl ReadingStore {
    #[inline(always)]
    pub fn part_view(&self, city: u32, part: usize) -> PartView<'_> {
        let index = &self.index[city as usize];
        match &index.parts[part] {
            ReadingsPart::Packed(block) if index.window_block.as_ref().is_some_and(|lo| lo.ptr_eq(block)) => {
                PartView::Copied(block, self.arena.get(self.heads[city as usize].window_chunk))
            }
            part => part.view(&self.arena),
        }
    }

    /// The position of the first row at `millis` or later. The city must be sealed.
    pub fn seek_row(&self, city: u32, millis: i64) -> RowPosition {
        let chunk = self.seek_part(city, millis);
        let row = if chunk < self.end_position(city).part {
            self.part_view(city, chunk).seek_row(millis)
        } else {
            0
        };
        RowPosition { part: chunk, row }
    }

    /// The first part that ends at `millis` or later. The search starts at the newest part and at
    /// the start of the running window, because most searched times are near one of them, and the
    /// headers of other parts are mostly not in any cache.
    fn seek_part(&self, city: u32, millis: i64) -> usize {
        let index = &self.index[city as usize];
        let is_before = |part: usize| index.parts[part].view(&self.arena).last_millis() < millis;
        let (lo, end) = (index.window_part as usize, index.parts.len());
        if end > 0 && is_before(end - 1) {
            return end;
        }
        if lo + 1 < end && !(end - 2 > lo && is_before(end - 2)) && !is_before(lo) {
            return gallop_back(0, lo, is_before);
        }
        gallop_back(0, end.saturating_sub(1), is_before)
    }

    /// The position after the last row.
    pub fn end_position(&self, city: u32) -> RowPosition {
        RowPosition { part: self.index[city as usize].parts.len(), row: 0 }
    }

    /// The reading at `millis`, if there is one. `place` is the position that
    /// [`ReadingStore::seek_row`] returned for `millis`.
    pub fn reading_at(&self, city: u32, position: RowPosition, millis: i64) -> Option<PackedHeat> {
        let part = (position != self.end_position(city)).then(|| self.part_view(city, position.part))?;
        (part.millis(position.row) == millis).then(|| part.packed_heat(position.row))
    }

    /// The time of the city's newest reading. The city must be sealed.
    pub fn last_millis(&self, city: u32) -> Option<i64> {
        self.index[city as usize].parts.back().map(|part| part.view(&self.arena).last_millis())
    }

    /// Time and value of the city's newest reading. The city must be sealed.
    pub fn newest_reading(&self, city: u32) -> Option<(i64, PackedHeat)> {
        let last = self.end_position(city).part.checked_sub(1)?;
        let (part, row) = (self.part_view(city, last), self.part_view(city, last).len() - 1);
        Some((part.last_millis(), part.packed_heat(row)))
    }

    /// The time of the row before `place`.
    pub fn millis_before(&self, city: u32, position: RowPosition) -> Option<i64> {
        match position.row.checked_sub(1) {
            Some(row) => Some(self.part_view(city, position.part).millis(row)),
            None => Some(self.part_view(city, position.part.checked_sub(1)?).last_millis()),
        }
    }

    /// Sum and count of the readings in `from..to`.
    pub fn sum_range(&self, city: u32, from: RowPosition, to: RowPosition) -> (i64, u32) {
        let (mut sum, mut count) = (0, 0);
        for chunk in from.part..(to.part + 1).min(self.end_position(city).part) {
            let part = self.part_view(city, chunk);
            let first = if chunk == from.part { from.row } else { 0 };
            let last = if chunk == to.part { to.row } else { part.len() };
            sum += part.heat_sum_between(first, last);
            count += last.saturating_sub(first) as u32;
        }
        (sum, count)
    }

    /// [`ReadingStore::sum_range`] for a window. If the window has more parts than its difference
    /// from the running window, only the difference is summed.
    pub fn sum_window(&self, city: u32, from: RowPosition, to: RowPosition) -> (i64, u32) {
        let (head, end) = (&self.heads[city as usize], self.end_position(city));
        let lo = self.window_start(city);
        let beside = from.part.abs_diff(lo.part) + (end.part - to.part);
        if to.part.saturating_sub(from.part) <= beside {
            return self.sum_range(city, from, to);
        }
        let (behind, behind_count) = self.sum_range(city, to, end);
        if from <= lo {
            let (more, more_count) = self.sum_range(city, from, lo);
            (head.window_sum + more - behind, head.window_count + more_count - behind_count)
        } else {
            let (less, less_count) = self.sum_range(city, lo, from);
            (head.window_sum - less - behind, head.window_count - less_count - behind_count)
        }
    }

    /// The first row of the running window.
    fn window_start(&self, city: u32) -> RowPosition {
        let (head, index) = (&self.heads[city as usize], &self.index[city as usize]);
        match head.edit_state {
            EditState::Begun => self.seek_row(city, index.window_floor),
            _ => RowPosition { part: index.window_part as usize, row: usize::from(head.window_row) },
        }
    }

    /// The greatest heat index in `from..=to`, and its first time. The city must be sealed.
    pub fn peak_in_range(&self, city: u32, from: i64, to: i64) -> Option<(i64, i64)> {
        let (low, high) = (self.seek_row(city, from), self.seek_row(city, to + 1));
        let mut peak: Option<(i64, i64)> = None;
        for chunk in low.part..(high.part + 1).min(self.end_position(city).part) {
            let part = self.part_view(city, chunk);
            if peak.is_some_and(|(micros, _)| micros >= part.max_heat()) {
                continue;
            }
            part.for_each_reading(|millis, held| {
                if (from..=to).contains(&millis) && peak.is_none_or(|(micros, _)| held.micros() > micros) {
                    peak = Some((held.micros(), millis));
                }
            });
        }
        peak
    }

    /// Calls `each` with the row of every reading in `from..=to`, by time, until it returns
    /// `Break`. The city must be sealed.
    #[cfg(any(test, feature = "internals"))]
    pub fn for_each_row(
        &self,
        city: u32,
        from: i64,
        to: i64,
        mut each: impl FnMut(i64, Row) -> std::ops::ControlFlow<()>,
    ) {
        let window = self.retention.window.millis();
        let mut window_rows = WindowCursor::at(self, city, from.saturating_sub(window), from);
        while let Some((millis, held)) = window_rows.high.peek().filter(|(millis, _)| *millis <= to) {
            window_rows.take_row();
            window_rows.drop_before(millis - window);
            if each(millis, window_rows.row(held)).is_break() {
                return;
            }
        }
    }

    /// Calls `emit` with every row that `deltas` have changed, with its result before and after.
    /// The deltas are sorted by time, at most one for each key, and are applied to the store
    /// already. The city must be sealed. With `all`, rows in their windows that did not change in
    /// the end are emitted, too.
    pub fn sweep_deltas(
        &self,
        city: u32,
        deltas: &[ReadingDelta],
        all: bool,
        mut emit: impl FnMut(i64, Option<Row>, Option<Row>),
    ) {
        let window = self.retention.window.millis();
        // Deltas before `entered` are behind the sweep; those before `left`, with their whole
        // windows.
        let (mut entered, mut left) = (0, 0);
        while let Some(next) = deltas.get(entered) {
            let mut rows = WindowCursor::at(self, city, next.millis - window, next.millis);
            // The change of the window's sum and count by the deltas in the window.
            let (mut sum_by, mut count_by) = (0, 0);
            loop {
                if let Some(own) = deltas.get(entered)
                    && rows.high.peek().is_none_or(|(millis, _)| own.millis <= millis)
                {
                    while left < entered && deltas[left].millis < own.millis - window {
                        sum_by -= deltas[left].sum_change();
                        count_by -= deltas[left].count_change();
                        left += 1;
                    }
                    sum_by += own.sum_change();
                    count_by += own.count_change();
                    entered += 1;
                    if own.after.is_some() {
                        rows.take_row();
                    }
                    rows.drop_before(own.millis - window);
                    let after = own.after.map(|held| rows.row(held));
                    let before = own.before.map(|held| rows.row_before(held, sum_by, count_by));
                    if all || before != after {
                        emit(own.millis, before, after);
                    }
                }
                // Rows without a delta: up to the next delta, or to the end of the window of the
                // oldest one.
                let until = deltas.get(entered).map_or(i64::MAX, |delta| delta.millis);
                let until = until.min(deltas[left].millis + window + 1);
                let changed = all || sum_by != 0 || count_by != 0;
                while rows.high.millis < until {
                    let (millis, held) = (rows.high.millis, rows.high.held);
                    rows.take_row();
                    rows.drop_before(millis - window);
                    if changed {
                        let after = rows.row(held);
                        emit(millis, Some(rows.row_before(held, sum_by, count_by)), Some(after));
                    }
                }
                if deltas.get(entered).is_some_and(|delta| delta.millis == until) {
                    continue;
                }
                // The window of the oldest delta ends here.
                sum_by -= deltas[left].sum_change();
                count_by -= deltas[left].count_change();
                left += 1;
                if left == entered {
                    break;
                }
            }
        }
    }
}

/// The first index from `start` on for which `is_before` is false, or `end`. `is_before` must be
/// true for all indexes before it. The search goes backwards from `end` in steps that double, then
/// bisects.
fn gallop_back(start: usize, end: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high, mut step) = (start, end, 1);
    while low < high {
        let probe = if step > 0 { high.saturating_sub(step).max(low) } else { low + (high - low) / 2 };
        if is_before(probe) {
            // Bisect from here on.
            (low, step) = (probe + 1, 0);
        } else {
            (high, step) = (probe, step * 2);
        }
    }
    low
}

impl ReadingDelta {
    pub fn sum_change(&self) -> i64 {
        self.after.map_or(0, PackedHeat::micros) - self.before.map_or(0, PackedHeat::micros)
    }

    pub fn count_change(&self) -> i64 {
        i64::from(self.after.is_some()) - i64::from(self.before.is_some())
    }
}

/// A window that moves forward over a city's rows: the readings from `low` up to, but without,
/// `high`.
struct WindowCursor<'a> {
    low: RowCursor<'a>,
    high: RowCursor<'a>,
    sum: i64,
    count: u32,
}

impl<'a> WindowCursor<'a> {
    fn at(store: &'a ReadingStore, city: u32, low: i64, high: i64) -> WindowCursor<'a> {
        let (low, high) = (store.seek_row(city, low), store.seek_row(city, high));
        let (sum, count) = store.sum_window(city, low, high);
        WindowCursor {
            low: RowCursor::at(store, city, low),
            high: RowCursor::at(store, city, high),
            sum,
            count,
        }
    }

    /// Adds the row at `high`, which must exist, to the window.
    #[inline(always)]
    fn take_row(&mut self) {
        self.sum += self.high.held.micros();
        self.count += 1;
        self.high.step_row();
    }

    /// The result of a reading with this window.
    #[inline(always)]
    fn row(&self, held: PackedHeat) -> Row {
        Row::new(held.heat_index(), held.category(), self.sum, self.count)
    }

    /// [`WindowCursor::row`] before edits changed the window's sum and count by `sum_by` and
    /// `count_by`.
    #[inline(always)]
    fn row_before(&self, held: PackedHeat, sum_by: i64, count_by: i64) -> Row {
        let count = (i64::from(self.count) - count_by) as u32;
        Row::new(held.heat_index(), held.category(), self.sum - sum_by, count)
    }

    #[inline(always)]
    fn drop_before(&mut self, floor: i64) {
        while self.low.millis < floor && self.count > 0 {
            self.sum -= self.low.held.micros();
            self.count -= 1;
            self.low.step_row();
        }
    }
}

/// A position in a city's rows, with the row unpacked.
struct RowCursor<'a> {
    store: &'a ReadingStore,
    city: u32,
    next_part: usize,
    frame: TimeFrame,
    rows: PartRows<'a>,
    /// The unpacked rows, if the part is packed.
    buffer: Vec<PackedRow>,
    /// The index in the part of the row after this one.
    next_row: usize,
    /// The row's time, or [`AFTER_ALL_TIMES`] after the last row.
    millis: i64,
    held: PackedHeat,
}

impl<'a> RowCursor<'a> {
    fn at(store: &'a ReadingStore, city: u32, position: RowPosition) -> RowCursor<'a> {
        let (frame, held) = (TimeFrame::default(), PackedRow::default().packed_heat());
        let (rows, buffer, next_row) = (PartRows::Buffer, Vec::new(), 0);
        let next_part = position.part;
        let mut cursor = RowCursor {
            store,
            city,
            next_part,
            frame,
            rows,
            buffer,
            next_row,
            millis: AFTER_ALL_TIMES,
            held,
        };
        cursor.enter_part(position.row);
        cursor
    }

    /// Moves to row `row` of the next part; if the part is shorter, to the first row of the part
    /// after it.
    #[cold]
    fn enter_part(&mut self, mut row: usize) {
        self.millis = AFTER_ALL_TIMES;
        while self.next_part < self.store.end_position(self.city).part {
            let part = self.store.part_view(self.city, self.next_part);
            (self.frame, self.rows) = part.rows(&mut self.buffer);
            self.next_part += 1;
            if let Some(packed) = self.rows.get(&self.buffer).get(row) {
                (self.millis, self.held) = (self.frame.millis(*packed), packed.packed_heat());
                self.next_row = row + 1;
                return;
            }
            row = 0;
        }
    }

    #[inline(always)]
    fn peek(&self) -> Option<(i64, PackedHeat)> {
        (self.millis != AFTER_ALL_TIMES).then_some((self.millis, self.held))
    }

    #[inline(always)]
    fn step_row(&mut self) {
        match self.rows.get(&self.buffer).get(self.next_row) {
            Some(row) => {
                (self.millis, self.held) = (self.frame.millis(*row), row.packed_heat());
                self.next_row += 1;
            }
            None => self.enter_part(0),
        }
    }
}
