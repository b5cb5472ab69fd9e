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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_pushed_in_order() {
        let mut blocks = Blocks::default();
        (0..5000).for_each(|i| blocks.push(i));
        assert_eq!((blocks.len(), blocks.last()), (5000, Some(&4999)));
        assert!(blocks.iter().copied().eq(0..5000));
    }
}
