//! Mutations of inputs.

use crate::support::Random;

impl Random {
    /// One of `good`, or in so many of a hundred cases one of `odd`.
    pub fn pick_mostly<'a>(&mut self, good: &[&'a str], odd_percent: u64, odd: &[&'a str]) -> &'a str {
        if self.percent(odd_percent) { self.pick(odd) } else { self.pick(good) }
    }

    /// Changes some bytes: flipped, inserted, removed, doubled, cut off.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.within(1..4) {
            if bytes.is_empty() {
                return;
            }
            let at = self.index(bytes.len());
            match self.index(6) {
                0 => bytes[at] ^= 1 << self.index(8),
                1 => bytes[at] = self.next() as u8,
                2 => bytes.insert(at, *b"\r\n\0 :%/\"{[,\xff*#?@"[self.index(16)..].first().unwrap_or(&b' ')),
                3 => drop(bytes.remove(at)),
                4 => {
                    let end = (at + self.within(1..20)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => bytes.truncate(at.max(1)),
            }
        }
    }
}
