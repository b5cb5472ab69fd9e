//! A list that grows without moving what it holds.

use serde::{Deserialize, Serialize};

const FIRST_BLOCK: usize = 16;
const LAST_BLOCK: usize = 1024;

/// Values in blocks that are filled and never moved: for very many lists at once, each of them a few or millions of values
/// long. A vector would copy itself with every doubling, and leave holes behind that the next one does not fit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Blocks<T> {
    full: Vec<Vec<T>>,
    last: Vec<T>,
    len: usize,
}

impl<T> Default for Blocks<T> {
    fn default() -> Blocks<T> {
        Blocks { full: Vec::new(), last: Vec::new(), len: 0 }
    }
}

impl<T> Blocks<T> {
    #[inline]
    pub fn push(&mut self, value: T) {
        if self.last.len() == self.last.capacity() {
            self.next_block();
        }
        self.last.push(value);
        self.len += 1;
    }

    #[cold]
    fn next_block(&mut self) {
        let next = Vec::with_capacity(self.len.clamp(FIRST_BLOCK, LAST_BLOCK));
        let full = std::mem::replace(&mut self.last, next);
        if !full.is_empty() {
            self.full.push(full);
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn last(&self) -> Option<&T> {
        self.last.last()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.full.iter().flatten().chain(&self.last)
    }

    /// Where the next pushed value will be found by [`Blocks::get`].
    pub fn next_place(&self) -> u64 {
        let (block, row) = match self.last.len() == self.last.capacity() {
            true => (self.full.len() + usize::from(!self.last.is_empty()), 0),
            false => (self.full.len(), self.last.len()),
        };
        (block as u64) << 32 | row as u64
    }

    pub fn get(&self, place: u64) -> Option<&T> {
        let (block, row) = ((place >> 32) as usize, place as u32 as usize);
        self.full.get(block).or((block == self.full.len()).then_some(&self.last))?.get(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_pushed_where_it_said() {
        let mut blocks = Blocks::default();
        let places: Vec<u64> = (0..5000)
            .map(|i| {
                let place = blocks.next_place();
                blocks.push(i);
                place
            })
            .collect();
        assert_eq!((blocks.len(), blocks.last()), (5000, Some(&4999)));
        assert!(blocks.iter().copied().eq(0..5000));
        assert!(places.iter().zip(0..).all(|(place, i)| blocks.get(*place) == Some(&i)));
        assert_eq!(blocks.get(blocks.next_place()), None);
    }
}
