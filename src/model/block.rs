//! Readings of a city as they are held and kept: bit-packed.
//!
//! A block is four columns, each a run of differences: times from a constant stride, heat indexes, categories and revisions
//! from the one before. A difference takes as many bits as the widest of its column. Where few differ from zero, as with a
//! sensor that mostly repeats itself, a bitmap says which do and the others take no bits. Regular times, one category and no
//! revisions take nothing.

use std::sync::Arc;

use super::{Category, EventTime, HeatIndex, Revision};

/// Readings in a full block.
pub const BLOCK_READINGS: usize = 128;

/// What is held of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldReading {
    pub reading_at: EventTime,
    pub heat_index: HeatIndex,
    pub category: Category,
    pub revision: Option<Revision>,
}

/// Up to [`BLOCK_READINGS`] consecutive readings of a city, by time. Never changed, and shared by cloning it.
///
/// The bytes mean something only to the version that made them: files hold readings, not blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    bytes: Arc<[u8]>,
}

// Where the header has what. The columns follow it in this order, each from a whole byte on.
const LEN: usize = 0;
const FLAGS: usize = 1;
const TIMES: usize = 2;
const VALUES: usize = 3;
const CATEGORIES: usize = 4;
const PRESENT: usize = 5;
const REVISIONS: usize = 6;
const FIRST_CATEGORY: usize = 7;
const FIRST: usize = 8;
const LAST: usize = 16;
const FIRST_VALUE: usize = 24;
const SUM: usize = 32;
const PEAK: usize = 40;
const STRIDE: usize = 48;
const HEADER: usize = 52;
/// Only where there are revisions.
const FIRST_REVISION: usize = 52;
const REVISION_STRIDE: usize = 60;
const HEADER_WITH_REVISIONS: usize = 68;

/// Flags: offsets from the first time are in seconds; there are revisions; the first reading has one.
const SECONDS: u8 = 1;
const HAS_REVISIONS: u8 = 2;
const FIRST_PRESENT: u8 = 4;

/// So that eight bytes can be read wherever a difference begins, or would.
const PAD: usize = 8;

impl Block {
    /// Packs readings in order of time, at most [`BLOCK_READINGS`].
    pub fn pack(readings: &[HeldReading]) -> Block {
        let revisions = readings.iter().any(|reading| reading.revision.is_some());
        Block::build(
            readings.len(),
            |i| readings[i].reading_at.millis(),
            |i| (readings[i].heat_index.micros(), readings[i].category),
            revisions.then_some(|i: usize| readings[i].revision),
        )
    }

    /// [`Block::pack`] of readings that are held some other way: by index their times, heat indexes with categories, and, where
    /// there are any, revisions.
    #[inline]
    pub fn build(
        len: usize,
        millis: impl Fn(usize) -> i64,
        value: impl Fn(usize) -> (i64, Category),
        revision: Option<impl Fn(usize) -> Option<Revision>>,
    ) -> Block {
        assert!(len <= BLOCK_READINGS, "a block holds at most {BLOCK_READINGS} readings");
        let mut header = [0; HEADER_WITH_REVISIONS];
        header[LEN] = len as u8;
        let mut columns = Writer { bytes: [0; Writer::ROOM], len: 0 };
        if len > 0 {
            pack_times(len, millis, &mut header, &mut columns);
            pack_values(len, value, &mut header, &mut columns);
        } else {
            header[PEAK..PEAK + 8].copy_from_slice(&i64::MIN.to_le_bytes());
        }
        let header = match revision.filter(|_| len > 0) {
            None => &header[..HEADER],
            Some(revision) => {
                pack_revisions(len, revision, &mut header, &mut columns);
                &header[..]
            }
        };
        let parts = [header, &columns.bytes[..columns.len], &[0; PAD]];
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
        self.long(FIRST)
    }

    /// The time of the last reading, ms since 1970.
    pub fn last_millis(&self) -> i64 {
        self.long(LAST)
    }

    /// The time of the first reading, if there is any.
    pub fn first(&self) -> Option<EventTime> {
        EventTime::from_millis(self.first_millis()).filter(|_| !self.is_empty())
    }

    /// The time of the last reading, if there is any.
    pub fn last(&self) -> Option<EventTime> {
        EventTime::from_millis(self.last_millis()).filter(|_| !self.is_empty())
    }

    /// Of all heat indexes, 1e-6 °F.
    pub fn sum(&self) -> i64 {
        self.long(SUM)
    }

    /// The greatest heat index, 1e-6 °F; `i64::MIN` of none.
    pub fn peak(&self) -> i64 {
        self.long(PEAK)
    }

    /// Whether any reading has a revision.
    pub fn has_revisions(&self) -> bool {
        self.bytes[FLAGS] & HAS_REVISIONS != 0
    }

    /// Whether all times are whole seconds.
    pub fn whole_seconds(&self) -> bool {
        self.unit() == 1000 && self.first_millis() % 1000 == 0
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        // Before the bytes are the counters of an Arc.
        2 * size_of::<usize>() + self.bytes.len()
    }

    /// Whether this is the same block in the same place of memory.
    pub fn is(&self, other: &Block) -> bool {
        Arc::ptr_eq(&self.bytes, &other.bytes)
    }

    /// Appends the readings to `out`.
    pub fn unpack(&self, out: &mut Vec<HeldReading>) {
        let from = out.len();
        let base = self.first_millis();
        self.offsets(|_, offset| {
            // Times come from event times.
            let reading_at = EventTime::from_millis(base + offset).unwrap_or_default();
            let (heat_index, category) = (HeatIndex::default(), Category::None);
            out.push(HeldReading { reading_at, heat_index, category, revision: None });
        });
        let unpacked = &mut out[from..];
        self.values(unpacked.len(), |i, micros| unpacked[i].heat_index = HeatIndex::from_micros(micros));
        self.categories(|i, category| unpacked[i].category = category);
        self.revisions(|i, revision| unpacked[i].revision = revision);
    }

    pub fn iter(&self) -> impl Iterator<Item = HeldReading> + use<> {
        let mut readings = Vec::with_capacity(self.len());
        self.unpack(&mut readings);
        readings.into_iter()
    }

    /// Gives `each` index and time of every reading, in ms behind the first.
    #[inline(always)]
    pub fn offsets(&self, mut each: impl FnMut(usize, i64)) {
        let (unit, stride) = (self.unit(), i64::from(self.stride()));
        let mut offset = 0;
        if !self.is_empty() {
            each(0, 0);
        }
        self.column(TIMES, self.len(), |i, code| {
            offset += (stride + unzigzag(code)) * unit;
            each(i, offset);
        });
    }

    /// Gives `each` index and heat index (1e-6 °F) of the first `count` readings.
    #[inline(always)]
    pub fn values(&self, count: usize, mut each: impl FnMut(usize, i64)) {
        let mut micros = self.long(FIRST_VALUE);
        if count > 0 && !self.is_empty() {
            each(0, micros);
        }
        self.column(VALUES, count, |i, code| {
            micros = micros.wrapping_add(unzigzag(code));
            each(i, micros);
        });
    }

    /// Gives `each` index and category of every reading.
    #[inline(always)]
    pub fn categories(&self, mut each: impl FnMut(usize, Category)) {
        let mut code = i64::from(self.bytes[FIRST_CATEGORY]);
        if !self.is_empty() {
            each(0, category(code));
        }
        self.column(CATEGORIES, self.len(), |i, by| {
            code += unzigzag(by);
            each(i, category(code));
        });
    }

    /// Gives `each` index and revision of every reading, if any has one.
    #[inline]
    pub fn revisions(&self, mut each: impl FnMut(usize, Option<Revision>)) {
        if !self.has_revisions() {
            return;
        }
        let mut present = [false; BLOCK_READINGS];
        present[0] = self.bytes[FLAGS] & FIRST_PRESENT != 0;
        let mut before = i64::from(present[0]);
        self.column(PRESENT, self.len(), |i, by| {
            before += unzigzag(by);
            present[i] = before != 0;
        });
        let (mut number, stride) = (self.long(FIRST_REVISION), self.long(REVISION_STRIDE));
        each(0, present[0].then(|| Revision::new(number)).flatten());
        self.column(REVISIONS, self.len(), |i, code| {
            number = number.wrapping_add(stride).wrapping_add(unzigzag(code));
            each(i, present[i].then(|| Revision::new(number)).flatten());
        });
    }

    /// The first reading at `millis` or later, [`Block::len`] where there is none.
    pub fn seek(&self, millis: i64) -> usize {
        let behind = millis.saturating_sub(self.first_millis());
        if behind <= 0 || self.is_empty() {
            return 0;
        }
        if self.bytes[TIMES] == 0 {
            let step = i64::from(self.stride()) * self.unit();
            let at = if step == 0 { 1 } else { (behind / step + i64::from(behind % step != 0)).max(1) };
            return at.min(self.len() as i64) as usize;
        }
        let mut before = 0;
        self.offsets(|_, offset| before += usize::from(offset < behind));
        before
    }

    /// The time of a reading, ms since 1970.
    pub fn millis(&self, reading: usize) -> i64 {
        if self.bytes[TIMES] == 0 {
            return self.first_millis() + reading as i64 * i64::from(self.stride()) * self.unit();
        }
        let mut millis = self.first_millis();
        self.offsets(|i, offset| {
            if i == reading {
                millis = self.first_millis() + offset;
            }
        });
        millis
    }

    /// Heat index and category of a reading; there must be so many.
    pub fn value(&self, reading: usize) -> (HeatIndex, Category) {
        let (mut micros, mut category) = (0, Category::None);
        self.values(reading + 1, |_, value| micros = value);
        self.categories(|i, value| category = if i == reading { value } else { category });
        (HeatIndex::from_micros(micros), category)
    }

    fn unit(&self) -> i64 {
        if self.bytes[FLAGS] & SECONDS != 0 { 1000 } else { 1 }
    }

    fn stride(&self) -> u32 {
        u32::from_le_bytes(self.array(STRIDE))
    }

    #[inline(always)]
    fn long(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.array(at))
    }

    #[inline(always)]
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[at..at + N]);
        array
    }

    /// Gives `each` the codes of a column, for the readings 1 to before `count`.
    #[inline(always)]
    fn column(&self, column: usize, count: usize, mut each: impl FnMut(usize, u64)) {
        let len = self.len();
        let count = count.min(len);
        let mut start = if self.has_revisions() { HEADER_WITH_REVISIONS } else { HEADER };
        // No block has more bits set in a bitmap than it has differences: `bytes` tells the size of a column.
        for before in TIMES..column {
            start += self.column_bytes(before, start);
        }
        let layout = Layout(self.bytes[column]);
        let (width, mask) = (layout.width(), layout.mask());
        if width == 0 {
            (1..count).for_each(|i| each(i, 0));
        } else if !layout.is_sparse() {
            let packed = &self.bytes[start..];
            for i in 1..count {
                each(i, bits_at(packed, (i - 1) * width) & mask);
            }
        } else {
            let mut map = self.bitmap(start);
            let packed = &self.bytes[start + bitmap_bytes(len)..];
            let mut at = 0;
            for i in 1..count {
                let set = map as u64 & 1;
                each(i, bits_at(packed, at) & mask & set.wrapping_neg());
                at += width & (set as usize).wrapping_neg();
                map >>= 1;
            }
        }
    }

    fn column_bytes(&self, column: usize, start: usize) -> usize {
        let (layout, len) = (Layout(self.bytes[column]), self.len());
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

/// How a column is packed: the width of its codes in bits, 0 to 57 or 64, and whether it has a bitmap.
#[derive(Clone, Copy)]
struct Layout(u8);

const SPARSE: u8 = 0x80;

impl Layout {
    /// The smaller layout of `len` codes of which so many are not zero.
    fn of(len: usize, all_bits: u64, nonzero: usize) -> Layout {
        let width = match 64 - all_bits.leading_zeros() as usize {
            // Such a code is read from eight bytes only where it begins with a byte.
            58.. => 64,
            width => width,
        };
        let sparse = len + nonzero * width < len * width;
        Layout(width as u8 | if sparse { SPARSE } else { 0 })
    }

    #[inline(always)]
    fn width(self) -> usize {
        usize::from(self.0 & !SPARSE)
    }

    #[inline(always)]
    fn is_sparse(self) -> bool {
        self.0 & SPARSE != 0
    }

    #[inline(always)]
    fn mask(self) -> u64 {
        u64::MAX.checked_shr(64 - self.width() as u32).unwrap_or(0)
    }
}

fn bitmap_bytes(len: usize) -> usize {
    (len - 1).div_ceil(8)
}

/// The eight bytes that begin with a bit.
#[inline(always)]
fn bits_at(bytes: &[u8], bit: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[bit / 8..bit / 8 + 8]);
    u64::from_le_bytes(word) >> (bit % 8)
}

fn zigzag(difference: i64) -> u64 {
    (difference << 1 ^ difference >> 63) as u64
}

#[inline(always)]
fn unzigzag(code: u64) -> i64 {
    (code >> 1) as i64 ^ -((code & 1) as i64)
}

#[inline(always)]
fn category(code: i64) -> Category {
    match code {
        0 => Category::None,
        1 => Category::Caution,
        2 => Category::ExtremeCaution,
        3 => Category::Danger,
        _ => Category::ExtremeDanger,
    }
}

fn pack_times(len: usize, millis: impl Fn(usize) -> i64, header: &mut [u8], columns: &mut Writer) {
    let mut steps = [0; BLOCK_READINGS];
    let (first, mut last, mut seconds) = (millis(0), millis(0), true);
    for i in 1..len {
        let at = millis(i);
        steps[i - 1] = at - last;
        seconds &= steps[i - 1] % 1000 == 0;
        last = at;
    }
    let steps = &mut steps[..len - 1];
    if seconds {
        header[FLAGS] |= SECONDS;
        steps.iter_mut().for_each(|step| *step /= 1000);
    }
    let stride = u32::try_from(majority(steps)).unwrap_or(0);
    header[STRIDE..STRIDE + 4].copy_from_slice(&stride.to_le_bytes());
    put(header, FIRST, first);
    put(header, LAST, last);
    header[TIMES] = columns.column(steps, i64::from(stride));
}

fn pack_values(
    len: usize,
    value: impl Fn(usize) -> (i64, Category),
    header: &mut [u8],
    columns: &mut Writer,
) {
    let (mut steps, mut categories) = ([0; BLOCK_READINGS], [0; BLOCK_READINGS]);
    let (first, first_category) = value(0);
    let (mut sum, mut peak) = (first, first);
    let (mut before, mut category_before) = (first, first_category as i64);
    for i in 1..len {
        let (micros, category) = value(i);
        steps[i - 1] = micros.wrapping_sub(before);
        categories[i - 1] = category as i64 - category_before;
        (before, category_before) = (micros, category as i64);
        sum = sum.wrapping_add(micros);
        peak = peak.max(micros);
    }
    put(header, FIRST_VALUE, first);
    put(header, SUM, sum);
    put(header, PEAK, peak);
    header[VALUES] = columns.column(&steps[..len - 1], 0);
    header[FIRST_CATEGORY] = first_category as u8;
    header[CATEGORIES] = columns.column(&categories[..len - 1], 0);
}

fn pack_revisions(
    len: usize,
    revision: impl Fn(usize) -> Option<Revision>,
    header: &mut [u8],
    columns: &mut Writer,
) {
    let (mut steps, mut present) = ([0; BLOCK_READINGS], [0; BLOCK_READINGS]);
    let first = revision(0);
    let mut before = first.map_or(0, Revision::number);
    put(header, FIRST_REVISION, before);
    let mut present_before = i64::from(first.is_some());
    for i in 1..len {
        let number = revision(i).map(Revision::number);
        present[i - 1] = i64::from(number.is_some()) - present_before;
        present_before = i64::from(number.is_some());
        // One that is none takes what its stride says.
        steps[i - 1] = number.map_or(0, |number| number.wrapping_sub(before));
        before = number.unwrap_or(before);
    }
    let stride = majority(&steps[..len - 1]);
    // The numbers of those that are none drift by the stride, and the next one makes up for it.
    let mut drift: i64 = 0;
    for (step, present) in steps[..len - 1].iter_mut().zip(1..) {
        if revision(present).is_some() {
            *step = step.wrapping_sub(drift);
            drift = 0;
        } else {
            *step = stride;
            drift = drift.wrapping_add(stride);
        }
    }
    header[FLAGS] |= HAS_REVISIONS | if first.is_some() { FIRST_PRESENT } else { 0 };
    put(header, REVISION_STRIDE, stride);
    header[PRESENT] = columns.column(&present[..len - 1], 0);
    header[REVISIONS] = columns.column(&steps[..len - 1], stride);
}

/// The value that more than half of all are, if there is one.
fn majority(values: &[i64]) -> i64 {
    let (mut candidate, mut lead) = (0, 0);
    for &value in values {
        if lead == 0 {
            candidate = value;
        }
        lead += if value == candidate { 1 } else { -1 };
    }
    candidate
}

fn put(header: &mut [u8], at: usize, value: i64) {
    header[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Columns, one behind the other.
struct Writer {
    bytes: [u8; Writer::ROOM],
    len: usize,
}

impl Writer {
    /// Four columns of 64 bits and one of 2 with their bitmaps, and what a code may write behind itself.
    const ROOM: usize = 5 * (8 * BLOCK_READINGS + 16) + 8;

    /// Packs what steps are beside the stride; returns the layout.
    #[inline]
    fn column(&mut self, steps: &[i64], stride: i64) -> u8 {
        let mut codes = [0; BLOCK_READINGS];
        let (mut all_bits, mut map) = (0, 0u128);
        for (i, (code, step)) in codes.iter_mut().zip(steps).enumerate() {
            *code = zigzag(step.wrapping_sub(stride));
            all_bits |= *code;
            map |= u128::from(*code != 0) << i;
        }
        let layout = Layout::of(steps.len(), all_bits, map.count_ones() as usize);
        let width = layout.width();
        if width == 0 {
            return layout.0;
        }
        if layout.is_sparse() {
            let bytes = steps.len().div_ceil(8);
            self.bytes[self.len..self.len + bytes].copy_from_slice(&map.to_le_bytes()[..bytes]);
            self.len += bytes;
        }
        let mut bit = 8 * self.len;
        for &code in &codes[..steps.len()] {
            if code != 0 {
                let word = bits_at(&self.bytes, bit / 8 * 8) | code << (bit % 8);
                self.bytes[bit / 8..bit / 8 + 8].copy_from_slice(&word.to_le_bytes());
            }
            bit += if code != 0 || !layout.is_sparse() { width } else { 0 };
        }
        self.len = bit.div_ceil(8);
        layout.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn readings() -> impl Strategy<Value = Vec<HeldReading>> {
        let step = prop_oneof![
            Just(vec![60_000]),
            Just(vec![1_000]),
            Just(vec![1_000, 1_000, 1_000, 2_000]),
            Just(vec![1, 999]),
            Just(vec![1_001, 7_000_000_000, 1]),
            prop::collection::vec(1..100_000i64, 128),
            Just(vec![1_700_000_000_000]),
        ];
        let first = prop_oneof![
            Just(EventTime::MIN.millis()),
            Just(1_764_000_000_000),
            Just(-1_500),
            EventTime::MIN.millis()..=EventTime::MAX.millis(),
        ];
        let micros = prop_oneof![
            4 => Just(None),
            2 => (70_000_000..71_000_000i64).prop_map(Some),
            1 => (HeatIndex::MIN.micros()..=HeatIndex::MAX.micros()).prop_map(Some),
        ];
        let wide = any::<i64>().prop_map(Some);
        let number = prop_oneof![Just(None), (0..9i64).prop_map(Some), any::<i64>().prop_map(Some)];
        let values = prop_oneof![
            3 => prop::collection::vec(micros, 0..=128),
            1 => prop::collection::vec(wide, 0..=128),
        ];
        let categories = prop_oneof![Just(vec![2usize]), prop::collection::vec(0..5usize, 1..129)];
        let revisions = prop_oneof![
            Just(vec![None]),
            Just(vec![Some(i64::MIN + 1), Some(i64::MAX)]),
            Just((0..128).map(|i| Some(1_764_000_000_000 + i * 1000)).collect()),
            Just((0..128).map(|i| (i % 3 != 0).then_some(1_764_000_000_000 + i * 1000)).collect()),
            prop::collection::vec(number, 1..129),
        ];
        (first, step, values, categories, revisions).prop_map(
            |(first, steps, values, categories, revisions)| {
                let (mut millis, mut micros) = (first, 80_000_000);
                let mut readings = Vec::new();
                for (i, value) in values.into_iter().enumerate() {
                    micros = value.unwrap_or(micros);
                    let Some(reading_at) = EventTime::from_millis(millis) else { break };
                    readings.push(HeldReading {
                        reading_at,
                        heat_index: HeatIndex::from_micros(micros),
                        category: Category::ALL[categories[i % categories.len()]],
                        revision: revisions[i % revisions.len()].and_then(Revision::new),
                    });
                    millis += steps[i % steps.len()];
                }
                readings
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

        #[test]
        fn equals_a_vector(readings in readings(), probe in any::<prop::sample::Index>(), off in -1..=1i64) {
            let block = Block::pack(&readings);
            prop_assert_eq!(block.len(), readings.len());
            prop_assert_eq!(block.iter().collect::<Vec<_>>(), readings.clone());
            prop_assert_eq!(block.first(), readings.first().map(|reading| reading.reading_at));
            prop_assert_eq!(block.last(), readings.last().map(|reading| reading.reading_at));
            let micros = || readings.iter().map(|reading| reading.heat_index.micros());
            prop_assert_eq!(block.sum(), micros().fold(0, i64::wrapping_add));
            prop_assert_eq!(block.peak(), micros().max().unwrap_or(i64::MIN));
            prop_assert_eq!(block.has_revisions(), readings.iter().any(|reading| reading.revision.is_some()));
            let seconds = readings.iter().all(|reading| reading.reading_at.millis() % 1000 == 0);
            prop_assert_eq!(block.whole_seconds(), seconds && !readings.is_empty());
            if !readings.is_empty() {
                let i = probe.index(readings.len());
                let millis = readings[i].reading_at.millis();
                prop_assert_eq!(block.millis(i), millis);
                prop_assert_eq!(block.value(i), (readings[i].heat_index, readings[i].category));
                let place = readings.partition_point(|reading| reading.reading_at.millis() < millis + off);
                prop_assert_eq!(block.seek(millis + off), place);
                prop_assert_eq!((block.seek(i64::MIN), block.seek(i64::MAX)), (0, readings.len()));
                let mut some = Vec::new();
                block.values(i, |_, micros| some.push(micros));
                prop_assert_eq!(some, micros().take(i).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn what_repeats_takes_little() {
        let readings = |value: fn(i64) -> i64, number: fn(i64) -> Option<Revision>| -> Vec<HeldReading> {
            let reading = |i: i64| HeldReading {
                reading_at: EventTime::from_millis(1_764_000_000_000 + i * 1000).unwrap(),
                heat_index: HeatIndex::from_micros(80_000_000 + value(i)),
                category: Category::Caution,
                revision: number(i),
            };
            (0..128).map(reading).collect()
        };
        let bytes = |readings: &[HeldReading]| Block::pack(readings).bytes();
        let constant = bytes(&readings(|_| 0, |_| None));
        assert!(constant <= 80, "{constant} bytes of 128 equal readings");
        let stamped = bytes(&readings(|_| 0, |i| Revision::new(1_764_000_000_000 + i * 1000)));
        assert!(stamped <= constant + 16, "regular stamps as revisions take {stamped} bytes");
        let steps = bytes(&readings(|i| i / 4 * 100_000 % 700_000, |_| None));
        assert!(steps <= constant + 16 + 32 * 3, "a step at every fourth reading takes {steps} bytes");
        let noise = bytes(&readings(|i| i * 7_919_777 % 1_000_003, |_| None));
        assert!(noise <= constant + 128 * 3, "noise within 1 °F takes {noise} bytes");
    }
}
