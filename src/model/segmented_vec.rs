//! A list that grows without moving its values.

use serde::{Deserialize, Serialize};

const FIRST_SEGMENT_LEN: usize = 16;
const MAX_SEGMENT_LEN: usize = 1024;

/// Values in segments that are filled and never moved: for very many lists at once, each of a few
/// or of millions of values. A `Vec` would copy itself with every doubling, and leave holes that
/// the next one does not fit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SegmentedVec<T> {
    full: Vec<Vec<T>>,
    last: Vec<T>,
    len: usize,
}

impl<T> Default for SegmentedVec<T> {
    fn default() -> SegmentedVec<T> {
        SegmentedVec { full: Vec::new(), last: Vec::new(), len: 0 }
    }
}

impl<T> SegmentedVec<T> {
    #[inline]
    pub fn push(&mut self, value: T) {
        if self.last.len() == self.last.capacity() {
            self.start_segment();
        }
        self.last.push(value);
        self.len += 1;
    }

    #[cold]
    fn start_segment(&mut self) {
        let next = Vec::with_capacity(self.len.clamp(FIRST_SEGMENT_LEN, MAX_SEGMENT_LEN));
        let full = std::mem::replace(&mut self.last, next);
        if !full.is_empty() {
            self.full.push(full);
        }
    }

    #[allow(clippy::len_without_is_empty)] // Nobody asks.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn last(&self) -> Option<&T> {
        self.last.last()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.full.iter().flatten().chain(&self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segmented_vec_keeps_pushed_values_in_order() {
        let mut values = SegmentedVec::default();
        (0..5000).for_each(|i| values.push(i));
        assert_eq!((values.len(), values.last()), (5000, Some(&4999)));
        assert!(values.iter().copied().eq(0..5000));
    }
}
