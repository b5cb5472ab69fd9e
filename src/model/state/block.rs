//! Bit-packed blocks of a city's readings.
//!
//! A block is four columns of differences: times from a constant stride; heat indexes, categories
//! and revisions each from the one before. A difference takes as many bits as the widest of its
//! column. If few differ from zero, as with a sensor that mostly repeats itself, a bitmap says
//! which do, and the others take no bits. Regular times, a single category and no revisions take no
//! space.

mod layout;
mod pack;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::layout::BLOCK_READINGS;
use self::layout::{
    CATEGORIES, ColumnLayout, FIRST_CATEGORY, FIRST_HAS_REVISION, FIRST_MILLIS, FIRST_REVISION, FIRST_VALUE,
    FLAGS, HAS_REVISIONS, HEADER_BYTES, HEADER_WITH_REVISIONS_BYTES, LAST_MILLIS, LEN, PADDING_BYTES, PEAK,
    REVISION_PRESENCE, REVISION_STRIDE, REVISIONS, STRIDE, SUM, TIMES, TIMES_IN_SECONDS, VALUES,
    bitmap_bytes, unzigzag, word_at_bit,
};
use self::pack::{ColumnWriter, pack_revisions, pack_times, pack_values};
use crate::model::{Category, EventTime, HeatIndex, Revision};

/// A reading as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredReading {
    pub reading_at: EventTime,
    pub heat_index: HeatIndex,
    pub category: Category,
    pub revision: Option<Revision>,
}

/// Up to [`BLOCK_READINGS`] consecutive readings of a city, by time. A block never changes, and
/// clones share its bytes.
///
/// The bytes mean something only to the version that packed them: files hold readings, not blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    bytes: Arc<[u8]>,
}

impl Block {
    /// Packs readings in order of time, at most [`BLOCK_READINGS`].
    pub fn pack(readings: &[StoredReading]) -> Block {
        let revisions = readings.iter().any(|reading| reading.revision.is_some());
        Block::pack_with(
            readings.len(),
            |i| readings[i].reading_at.millis(),
            |i| (readings[i].heat_index.micros(), readings[i].category),
            revisions.then_some(|i: usize| readings[i].revision),
        )
    }

    /// [`Block::pack`] from other storage: by index, the time, the heat index with its category,
    /// and, if any reading has one, the revision.
    #[inline]
    pub fn pack_with(
        len: usize,
        millis: impl Fn(usize) -> i64,
        value: impl Fn(usize) -> (i64, Category),
        revision: Option<impl Fn(usize) -> Option<Revision>>,
    ) -> Block {
        assert!(len <= BLOCK_READINGS, "a block holds at most {BLOCK_READINGS} readings");
        let mut header = [0; HEADER_WITH_REVISIONS_BYTES];
        header[LEN] = len as u8;
        let mut columns = ColumnWriter::new();
        if len > 0 {
            pack_times(len, millis, &mut header, &mut columns);
            pack_values(len, value, &mut header, &mut columns);
        } else {
            header[PEAK..PEAK + 8].copy_from_slice(&i64::MIN.to_le_bytes());
        }
        let header = match revision.filter(|_| len > 0) {
            None => &header[..HEADER_BYTES],
            Some(revision) => {
                pack_revisions(len, revision, &mut header, &mut columns);
                &header[..]
            }
        };
        let parts = [header, columns.written_bytes(), &[0; PADDING_BYTES]];
        Block { bytes: parts.concat().into() }
    }

    pub fn len(&self) -> usize {
        usize::from(self.bytes[LEN])
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The time of the first reading, ms since 1970.
    pub fn first_millis(&self) -> i64 {
        self.read_i64(FIRST_MILLIS)
    }

    /// The time of the last reading, ms since 1970.
    pub fn last_millis(&self) -> i64 {
        self.read_i64(LAST_MILLIS)
    }

    /// The time of the first reading, if there is any.
    #[cfg(any(test, feature = "internals"))]
    #[cfg(any(test, feature = "internals"))]
    pub fn first_reading_at(&self) -> Option<EventTime> {
        EventTime::from_millis(self.first_millis()).filter(|_| !self.is_empty())
    }

    /// The time of the last reading, if there is any.
    #[cfg(any(test, feature = "internals"))]
    #[cfg(any(test, feature = "internals"))]
    pub fn last_reading_at(&self) -> Option<EventTime> {
        EventTime::from_millis(self.last_millis()).filter(|_| !self.is_empty())
    }

    /// The sum of all heat indexes, 1e-6 °F.
    pub fn sum(&self) -> i64 {
        self.read_i64(SUM)
    }

    /// The greatest heat index, 1e-6 °F; `i64::MIN` if the block is empty.
    pub fn peak(&self) -> i64 {
        self.read_i64(PEAK)
    }

    /// Whether any reading has a revision.
    pub fn has_revisions(&self) -> bool {
        self.bytes[FLAGS] & HAS_REVISIONS != 0
    }

    /// Whether all times are whole seconds.
    pub fn has_whole_seconds(&self) -> bool {
        self.tick_ms() == 1000 && self.first_millis() % 1000 == 0
    }

    /// The memory that the block takes.
    pub fn memory_bytes(&self) -> usize {
        // An `Arc` has two counters before the bytes.
        2 * size_of::<usize>() + self.bytes.len()
    }

    /// Whether both share the same bytes in memory.
    pub fn ptr_eq(&self, other: &Block) -> bool {
        Arc::ptr_eq(&self.bytes, &other.bytes)
    }

    /// Appends the readings to `out`.
    pub fn unpack(&self, out: &mut Vec<StoredReading>) {
        let from = out.len();
        let base = self.first_millis();
        self.for_each_offset(|_, offset| {
            // Every packed time was an event time.
            let reading_at = EventTime::from_millis(base + offset).unwrap_or_default();
            let (heat_index, category) = (HeatIndex::default(), Category::None);
            out.push(StoredReading { reading_at, heat_index, category, revision: None });
        });
        let unpacked = &mut out[from..];
        self.for_each_value(unpacked.len(), |i, micros| {
            unpacked[i].heat_index = HeatIndex::from_micros(micros)
        });
        self.for_each_category(|i, category| unpacked[i].category = category);
        self.for_each_revision(|i, revision| unpacked[i].revision = revision);
    }

    pub fn iter(&self) -> impl Iterator<Item = StoredReading> + use<> {
        let mut readings = Vec::with_capacity(self.len());
        self.unpack(&mut readings);
        readings.into_iter()
    }

    /// Calls `each` with the index and time of every reading, in ms behind the first.
    #[inline(always)]
    pub fn for_each_offset(&self, mut each: impl FnMut(usize, i64)) {
        let (unit, stride) = (self.tick_ms(), i64::from(self.stride()));
        let mut offset = 0;
        if !self.is_empty() {
            each(0, 0);
        }
        self.for_each_code(TIMES, self.len(), |i, code| {
            offset += (stride + unzigzag(code)) * unit;
            each(i, offset);
        });
    }

    /// Calls `each` with the index and heat index (1e-6 °F) of the first `count` readings.
    #[inline(always)]
    pub fn for_each_value(&self, count: usize, mut each: impl FnMut(usize, i64)) {
        let mut micros = self.read_i64(FIRST_VALUE);
        if count > 0 && !self.is_empty() {
            each(0, micros);
        }
        self.for_each_code(VALUES, count, |i, code| {
            micros = micros.wrapping_add(unzigzag(code));
            each(i, micros);
        });
    }

    /// Calls `each` with the index and category of every reading.
    #[inline(always)]
    pub fn for_each_category(&self, mut each: impl FnMut(usize, Category)) {
        let mut code = i64::from(self.bytes[FIRST_CATEGORY]);
        if !self.is_empty() {
            each(0, category_from_code(code));
        }
        self.for_each_code(CATEGORIES, self.len(), |i, by| {
            code += unzigzag(by);
            each(i, category_from_code(code));
        });
    }

    /// Calls `each` with the index and revision of every reading, if any has one.
    #[inline]
    pub fn for_each_revision(&self, mut each: impl FnMut(usize, Option<Revision>)) {
        if !self.has_revisions() {
            return;
        }
        let mut present = [false; BLOCK_READINGS];
        present[0] = self.bytes[FLAGS] & FIRST_HAS_REVISION != 0;
        let mut before = i64::from(present[0]);
        self.for_each_code(REVISION_PRESENCE, self.len(), |i, by| {
            before += unzigzag(by);
            present[i] = before != 0;
        });
        let (mut number, stride) = (self.read_i64(FIRST_REVISION), self.read_i64(REVISION_STRIDE));
        each(0, present[0].then(|| Revision::new(number)).flatten());
        self.for_each_code(REVISIONS, self.len(), |i, code| {
            number = number.wrapping_add(stride).wrapping_add(unzigzag(code));
            each(i, present[i].then(|| Revision::new(number)).flatten());
        });
    }

    /// The index of the first reading at `millis` or later; [`Block::len`] if there is none.
    pub fn seek(&self, millis: i64) -> usize {
        let behind = millis.saturating_sub(self.first_millis());
        if behind <= 0 || self.is_empty() {
            return 0;
        }
        if self.bytes[TIMES] == 0 {
            let step = i64::from(self.stride()) * self.tick_ms();
            let at = if step == 0 { 1 } else { (behind / step + i64::from(behind % step != 0)).max(1) };
            return at.min(self.len() as i64) as usize;
        }
        let mut before = 0;
        self.for_each_offset(|_, offset| before += usize::from(offset < behind));
        before
    }

    /// The time of a reading, ms since 1970.
    pub fn millis_at(&self, reading: usize) -> i64 {
        if self.bytes[TIMES] == 0 {
            return self.first_millis() + reading as i64 * i64::from(self.stride()) * self.tick_ms();
        }
        let mut millis = self.first_millis();
        self.for_each_offset(|i, offset| {
            if i == reading {
                millis = self.first_millis() + offset;
            }
        });
        millis
    }

    /// The heat index and category of a reading, whose index must be below [`Block::len`].
    pub fn value_at(&self, reading: usize) -> (HeatIndex, Category) {
        let (mut micros, mut category) = (0, Category::None);
        self.for_each_value(reading + 1, |_, value| micros = value);
        self.for_each_category(|i, value| category = if i == reading { value } else { category });
        (HeatIndex::from_micros(micros), category)
    }

    fn tick_ms(&self) -> i64 {
        if self.bytes[FLAGS] & TIMES_IN_SECONDS != 0 { 1000 } else { 1 }
    }

    fn stride(&self) -> u32 {
        u32::from_le_bytes(self.read_array(STRIDE))
    }

    #[inline(always)]
    fn read_i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.read_array(at))
    }

    #[inline(always)]
    fn read_array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[at..at + N]);
        array
    }

    /// Calls `each` with the codes of a column, for the readings from 1 to before `count`.
    #[inline(always)]
    fn for_each_code(&self, column: usize, count: usize, mut each: impl FnMut(usize, u64)) {
        let len = self.len();
        let count = count.min(len);
        let mut start = if self.has_revisions() { HEADER_WITH_REVISIONS_BYTES } else { HEADER_BYTES };
        // `column_bytes` computes a column's size from its layout and its bitmap.
        for before in TIMES..column {
            start += self.column_bytes(before, start);
        }
        let layout = ColumnLayout(self.bytes[column]);
        let (width, mask) = (layout.width(), layout.mask());
        if width == 0 {
            (1..count).for_each(|i| each(i, 0));
        } else if !layout.is_sparse() {
            let packed = &self.bytes[start..];
            for i in 1..count {
                each(i, word_at_bit(packed, (i - 1) * width) & mask);
            }
        } else {
            let mut map = self.bitmap(start);
            let packed = &self.bytes[start + bitmap_bytes(len)..];
            let mut at = 0;
            for i in 1..count {
                let set = map as u64 & 1;
                each(i, word_at_bit(packed, at) & mask & set.wrapping_neg());
                at += width & (set as usize).wrapping_neg();
                map >>= 1;
            }
        }
    }

    fn column_bytes(&self, column: usize, start: usize) -> usize {
        let (layout, len) = (ColumnLayout(self.bytes[column]), self.len());
        match layout.is_sparse() {
            _ if layout.width() == 0 => 0,
            false => ((len - 1) * layout.width()).div_ceil(8),
            true => {
                let set = self.bitmap(start).count_ones() as usize;
                bitmap_bytes(len) + (set * layout.width()).div_ceil(8)
            }
        }
    }

    fn bitmap(&self, start: usize) -> u128 {
        let bytes = bitmap_bytes(self.len());
        let mut map = [0; 16];
        map[..bytes].copy_from_slice(&self.bytes[start..start + bytes]);
        u128::from_le_bytes(map)
    }
}

#[inline(always)]
fn category_from_code(code: i64) -> Category {
    match code {
        0 => Category::None,
        1 => Category::Caution,
        2 => Category::ExtremeCaution,
        3 => Category::Danger,
        _ => Category::ExtremeDanger,
    }
}
