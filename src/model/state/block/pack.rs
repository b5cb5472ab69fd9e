//! Packs the columns of a block.

use super::layout::{
    BLOCK_READINGS, CATEGORIES, ColumnLayout, FIRST_CATEGORY, FIRST_HAS_REVISION, FIRST_MILLIS,
    FIRST_REVISION, FIRST_VALUE, FLAGS, HAS_REVISIONS, LAST_MILLIS, PEAK, REVISION_PRESENCE, REVISION_STRIDE,
    REVISIONS, STRIDE, SUM, TIMES, TIMES_IN_SECONDS, VALUES, word_at_bit, zigzag,
};
use crate::model::{Category, Revision};

pub(super) fn pack_times(
    len: usize,
    millis: impl Fn(usize) -> i64,
    header: &mut [u8],
    columns: &mut ColumnWriter,
) {
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
        header[FLAGS] |= TIMES_IN_SECONDS;
        steps.iter_mut().for_each(|step| *step /= 1000);
    }
    let stride = u32::try_from(majority(steps)).unwrap_or(0);
    header[STRIDE..STRIDE + 4].copy_from_slice(&stride.to_le_bytes());
    put_i64(header, FIRST_MILLIS, first);
    put_i64(header, LAST_MILLIS, last);
    header[TIMES] = columns.write_column(steps, i64::from(stride));
}

pub(super) fn pack_values(
    len: usize,
    value: impl Fn(usize) -> (i64, Category),
    header: &mut [u8],
    columns: &mut ColumnWriter,
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
    put_i64(header, FIRST_VALUE, first);
    put_i64(header, SUM, sum);
    put_i64(header, PEAK, peak);
    header[VALUES] = columns.write_column(&steps[..len - 1], 0);
    header[FIRST_CATEGORY] = first_category as u8;
    header[CATEGORIES] = columns.write_column(&categories[..len - 1], 0);
}

pub(super) fn pack_revisions(
    len: usize,
    revision: impl Fn(usize) -> Option<Revision>,
    header: &mut [u8],
    columns: &mut ColumnWriter,
) {
    let (mut steps, mut present) = ([0; BLOCK_READINGS], [0; BLOCK_READINGS]);
    let first = revision(0);
    let mut before = first.map_or(0, Revision::number);
    put_i64(header, FIRST_REVISION, before);
    let mut present_before = i64::from(first.is_some());
    for i in 1..len {
        let number = revision(i).map(Revision::number);
        present[i - 1] = i64::from(number.is_some()) - present_before;
        present_before = i64::from(number.is_some());
        // A reading without a revision counts as if it followed the stride.
        steps[i - 1] = number.map_or(0, |number| number.wrapping_sub(before));
        before = number.unwrap_or(before);
    }
    let stride = majority(&steps[..len - 1]);
    // Readings without a revision drift by the stride, and the next revision makes up for it.
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
    header[FLAGS] |= HAS_REVISIONS | if first.is_some() { FIRST_HAS_REVISION } else { 0 };
    put_i64(header, REVISION_STRIDE, stride);
    header[REVISION_PRESENCE] = columns.write_column(&present[..len - 1], 0);
    header[REVISIONS] = columns.write_column(&steps[..len - 1], stride);
}

/// The value that more than half of all have, if there is one.
#[inline]
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

#[inline]
fn put_i64(header: &mut [u8], at: usize, value: i64) {
    header[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// The columns, one behind the other.
pub(super) struct ColumnWriter {
    bytes: [u8; ColumnWriter::CAPACITY],
    len: usize,
}

impl ColumnWriter {
    /// Four columns of 64 bits and one of 2 with their bitmaps, and the bytes that a code may write
    /// behind itself.
    const CAPACITY: usize = 5 * (8 * BLOCK_READINGS + 16) + 8;

    #[inline]
    pub(super) fn new() -> ColumnWriter {
        ColumnWriter { bytes: [0; ColumnWriter::CAPACITY], len: 0 }
    }

    #[inline]
    pub(super) fn written_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Packs the differences of the steps from the stride; returns the layout.
    #[inline]
    fn write_column(&mut self, steps: &[i64], stride: i64) -> u8 {
        let mut codes = [0; BLOCK_READINGS];
        let (mut all_bits, mut map) = (0, 0u128);
        for (i, (code, step)) in codes.iter_mut().zip(steps).enumerate() {
            *code = zigzag(step.wrapping_sub(stride));
            all_bits |= *code;
            map |= u128::from(*code != 0) << i;
        }
        let layout = ColumnLayout::smallest_for(steps.len(), all_bits, map.count_ones() as usize);
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
                let word = word_at_bit(&self.bytes, bit / 8 * 8) | code << (bit % 8);
                self.bytes[bit / 8..bit / 8 + 8].copy_from_slice(&word.to_le_bytes());
            }
            bit += if code != 0 || !layout.is_sparse() { width } else { 0 };
        }
        self.len = bit.div_ceil(8);
        layout.0
    }
}
