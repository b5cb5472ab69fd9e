//! A chunk: up to 128 readings of one city in time order, 8 bytes each.

use super::revisions::Revisions;
use crate::model::{Category, HeatIndex};

/// The number of readings in a full chunk.
pub const CHUNK_ROWS: usize = 128;
/// The number that stands for no chunk.
pub const NO_CHUNK: u32 = u32::MAX;

const CATEGORY_BITS: u32 = 3;
const VALUE_BITS: u32 = 32;
const PAYLOAD_BITS: u32 = CATEGORY_BITS + VALUE_BITS;
/// The most ticks between a chunk's base and a reading: 29 bits.
const MAX_TICKS: i64 = (1 << (64 - PAYLOAD_BITS)) - 1;

/// A heat index and its category, packed into 35 bits. Values of one category sort by heat index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedHeat(u64);

impl PackedHeat {
    #[inline(always)]
    pub fn new(heat_index: HeatIndex, category: Category) -> PackedHeat {
        debug_assert!((HeatIndex::MIN..=HeatIndex::MAX).contains(&heat_index), "{heat_index:?}");
        PackedHeat(u64::from(heat_index.to_compact()) << CATEGORY_BITS | category as u64)
    }

    #[inline(always)]
    pub fn micros(self) -> i64 {
        self.heat_index().micros()
    }

    #[inline(always)]
    pub fn heat_index(self) -> HeatIndex {
        HeatIndex::from_compact((self.0 >> CATEGORY_BITS) as u32)
    }

    #[inline(always)]
    pub fn category(self) -> Category {
        match self.0 & ((1 << CATEGORY_BITS) - 1) {
            0 => Category::None,
            1 => Category::Caution,
            2 => Category::ExtremeCaution,
            3 => Category::Danger,
            _ => Category::ExtremeDanger,
        }
    }
}

/// The time frame of a chunk: a base and a unit of ticks, a second if all times are whole seconds,
/// otherwise a millisecond. So 29 bits span 17 years or 6 days. Packed into one word: the base, and
/// in the lowest bit whether ticks are seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeFrame(i64);

impl TimeFrame {
    #[inline(always)]
    fn new(base: i64, seconds: bool) -> TimeFrame {
        TimeFrame(base << 1 | i64::from(seconds))
    }

    /// The frame of a chunk that begins with a reading at `millis`.
    #[inline(always)]
    pub fn starting_at(millis: i64) -> TimeFrame {
        TimeFrame::new(millis, millis % 1000 == 0)
    }

    /// The frame that spans `first` to `last` in ticks of a second or a millisecond; `None` if they
    /// are too far apart.
    pub fn spanning(first: i64, last: i64, seconds: bool) -> Option<TimeFrame> {
        let ticks = if seconds { (last - first) / 1000 } else { last - first };
        (ticks <= MAX_TICKS).then_some(TimeFrame::new(first, seconds))
    }

    #[inline(always)]
    fn seconds(self) -> bool {
        self.0 & 1 == 1
    }

    /// `millis` in ticks, if the frame has an exact tick for it.
    #[inline(always)]
    fn ticks(self, millis: i64) -> Option<u64> {
        let behind = millis - (self.0 >> 1);
        let ticks = if self.seconds() { behind / 1000 } else { behind };
        let exact = !self.seconds() || ticks * 1000 == behind;
        (behind >= 0 && ticks <= MAX_TICKS && exact).then_some(ticks as u64)
    }

    #[inline(always)]
    pub fn millis(self, row: PackedRow) -> i64 {
        let ticks = (row.0 >> PAYLOAD_BITS) as i64;
        (self.0 >> 1) + if self.seconds() { ticks * 1000 } else { ticks }
    }

    /// The row at `millis` in this frame, if the frame has a tick for it.
    #[inline(always)]
    pub fn pack_row(self, millis: i64, held: PackedHeat) -> Option<PackedRow> {
        Some(PackedRow(self.ticks(millis)? << PAYLOAD_BITS | held.0))
    }
}

/// A packed reading of a chunk: its ticks in the high bits, its [`PackedHeat`] in the low bits, so
/// the rows of a chunk sort by time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedRow(u64);

impl PackedRow {
    #[inline(always)]
    pub fn packed_heat(self) -> PackedHeat {
        PackedHeat(self.0 & ((1 << PAYLOAD_BITS) - 1))
    }

    /// A row with the lowest heat index and no category, to be filled by the setters.
    #[inline(always)]
    pub fn without_heat(ticks: u64) -> PackedRow {
        PackedRow(ticks << PAYLOAD_BITS)
    }

    #[inline(always)]
    pub fn set_micros(&mut self, micros: i64) {
        self.0 |= u64::from(HeatIndex::from_micros(micros).to_compact()) << CATEGORY_BITS;
    }

    #[inline(always)]
    pub fn set_category(&mut self, category: Category) {
        self.0 |= category as u64;
    }
}

/// Consecutive readings of a city. The rows of a tail chunk are ahead of its header while the
/// city's head appends to it (see `ReadingStore::seal_tail`).
#[derive(Debug)]
pub struct Chunk {
    pub rows: [PackedRow; CHUNK_ROWS],
    pub frame: TimeFrame,
    /// The sum of all heat indexes, in 1e-6 °F.
    pub sum: i64,
    /// The greatest heat index, in 1e-6 °F.
    pub peak: i64,
    pub len: u16,
    /// `None` if no reading has a revision.
    pub revisions: Option<Box<Revisions>>,
}

impl Chunk {
    pub fn empty() -> Chunk {
        Chunk {
            rows: [PackedRow::default(); CHUNK_ROWS],
            frame: TimeFrame::default(),
            sum: 0,
            peak: i64::MIN,
            len: 0,
            revisions: None,
        }
    }

    pub fn clear(&mut self) {
        (self.sum, self.peak, self.len, self.revisions) = (0, i64::MIN, 0, None);
    }

    #[inline(always)]
    pub fn rows(&self) -> &[PackedRow] {
        &self.rows[..usize::from(self.len)]
    }

    #[inline(always)]
    pub fn millis(&self, row: usize) -> i64 {
        self.frame.millis(self.rows[row])
    }

    /// The time of the last reading. A chunk in use has at least one.
    #[inline(always)]
    pub fn last_millis(&self) -> i64 {
        self.millis(usize::from(self.len) - 1)
    }

    /// The first row at `millis` or later; `len` if there is none.
    pub fn seek_row(&self, millis: i64) -> usize {
        self.rows().partition_point(|row| self.frame.millis(*row) < millis)
    }

    /// Changes the frame to one that also spans `millis`. Returns false if there is none.
    pub fn reframe(&mut self, millis: i64) -> bool {
        let (first, last) = match self.len {
            0 => (millis, millis),
            _ => (self.millis(0).min(millis), self.last_millis().max(millis)),
        };
        let whole = |t: i64| t % 1000 == 0;
        let seconds = whole(millis) && self.rows().iter().all(|row| whole(self.frame.millis(*row)));
        let Some(frame) = TimeFrame::spanning(first, last, seconds) else { return false };
        let old = std::mem::replace(&mut self.frame, frame);
        for row in &mut self.rows[..usize::from(self.len)] {
            *row = frame
                .pack_row(old.millis(*row), row.packed_heat())
                .unwrap_or_else(|| unreachable!("the frame spans all rows"));
        }
        true
    }

    /// Inserts a row at index `at`. The chunk must not be full.
    pub fn insert_row(&mut self, index: usize, row: PackedRow) {
        let len = usize::from(self.len);
        self.rows.copy_within(index..len, index + 1);
        self.rows[index] = row;
        self.len += 1;
        self.sum += row.packed_heat().micros();
        self.peak = self.peak.max(row.packed_heat().micros());
        if let Some(revisions) = &mut self.revisions {
            revisions.insert(index);
        }
    }

    pub fn replace_row(&mut self, index: usize, held: PackedHeat) {
        let old = self.rows[index].packed_heat();
        self.rows[index] = PackedRow(self.rows[index].0 >> PAYLOAD_BITS << PAYLOAD_BITS | held.0);
        self.sum += held.micros() - old.micros();
        self.update_peak(old, held.micros());
    }

    pub fn remove_row(&mut self, index: usize) {
        let old = self.rows[index].packed_heat();
        self.rows.copy_within(index + 1..usize::from(self.len), index);
        self.len -= 1;
        self.sum -= old.micros();
        if let Some(revisions) = &mut self.revisions {
            revisions.remove(index);
        }
        self.update_peak(old, i64::MIN);
    }

    fn update_peak(&mut self, old_heat: PackedHeat, new_micros: i64) {
        if new_micros >= self.peak {
            self.peak = new_micros;
        } else if old_heat.micros() == self.peak {
            self.peak = peak_of(self.rows());
        }
    }

    /// Moves the rows from index `at` on into the empty chunk `upper`.
    pub fn split_into(&mut self, index: usize, upper: &mut Chunk) {
        let moved = usize::from(self.len) - index;
        upper.rows[..moved].copy_from_slice(&self.rows[index..usize::from(self.len)]);
        (upper.frame, upper.len) = (self.frame, moved as u16);
        upper.revisions = self.revisions.as_mut().map(|revisions| Box::new(revisions.split_off(index)));
        self.len = index as u16;
        self.summarize();
        upper.summarize();
    }

    /// Computes sum and peak from the rows.
    fn summarize(&mut self) {
        self.sum = self.rows().iter().map(|row| row.packed_heat().micros()).sum();
        self.peak = peak_of(self.rows());
    }

    /// Adds the rows that were written after the last one to the header; `len` is the new length.
    pub fn extend_to(&mut self, len: u16) {
        let grown = &self.rows[usize::from(self.len)..usize::from(len)];
        self.sum += grown.iter().map(|row| row.packed_heat().micros()).sum::<i64>();
        self.peak = self.peak.max(peak_of(grown));
        self.len = len;
    }
}

fn peak_of(rows: &[PackedRow]) -> i64 {
    rows.iter().map(|row| row.packed_heat().micros()).max().unwrap_or(i64::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::EventTime;

    #[test]
    fn packed_value_keeps_heat_index_and_category() {
        for heat_index in [HeatIndex::MIN, HeatIndex::from_micros(-1), HeatIndex::default(), HeatIndex::MAX] {
            for category in Category::ALL {
                let held = PackedHeat::new(heat_index, category);
                assert_eq!((held.heat_index(), held.category()), (heat_index, category));
            }
        }
    }

    fn chunk_with(times: &[i64]) -> Chunk {
        let mut chunk = Chunk::empty();
        for (at, &millis) in times.iter().enumerate() {
            let held = PackedHeat::new(HeatIndex::from_micros(millis % 7), Category::None);
            if chunk.frame.pack_row(millis, held).is_none() {
                assert!(chunk.reframe(millis), "{millis}");
            }
            let row = chunk.frame.pack_row(millis, held).unwrap();
            chunk.insert_row(at, row);
        }
        chunk
    }

    #[test]
    fn chunk_spans_years_of_seconds_or_days_of_milliseconds() {
        let year = 366 * 86_400_000;
        let mut chunk = chunk_with(&[-year, 0, 15 * year]);
        assert_eq!([chunk.millis(0), chunk.millis(1), chunk.millis(2)], [-year, 0, 15 * year]);
        assert!(!chunk.reframe(1), "an odd time fits only near the others");
        assert!(!chunk.reframe(17 * year));
        let day = 86_400_000;
        let mut chunk = chunk_with(&[0, 1, 5 * day]);
        assert!(chunk.reframe(-day));
        assert!(!chunk.reframe(7 * day));
        assert_eq!([chunk.millis(0), chunk.millis(1), chunk.millis(2)], [0, 1, 5 * day]);
    }

    #[test]
    fn frames_cover_whole_event_time_range() {
        for time in [EventTime::MIN, EventTime::MAX] {
            let mut chunk = chunk_with(&[time.millis()]);
            assert_eq!(chunk.last_millis(), time.millis());
            assert!(!chunk.reframe(0));
        }
    }
}
