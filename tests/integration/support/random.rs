//! A seeded generator of random numbers, and what is made of them: the same seed gives the same bytes.

use std::ops::Range;

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub fn within(&mut self, range: Range<usize>) -> usize {
        range.start + self.below(range.end - range.start)
    }

    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    pub fn random_bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most + 1);
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// One of the good ones, or in some of a hundred cases one of the odd ones.
    pub fn pick_mostly<'a>(&mut self, good: &[&'a str], odd_percent: usize, odd: &[&'a str]) -> &'a str {
        if self.percent(odd_percent) { self.pick(odd) } else { self.pick(good) }
    }

    /// Changes some bytes: flipped, inserted, removed, doubled, cut off.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.within(1..4) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(6) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.next() as u8,
                2 => bytes.insert(at, *b"\r\n\0 :%/\"{[,\xff*#?@"[self.below(16)..].first().unwrap_or(&b' ')),
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
