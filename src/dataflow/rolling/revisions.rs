//! The packed revisions of a chunk's readings: one byte each for counters, three bytes for
//! millisecond timestamps of readings a minute apart.

use crate::model::Revision;

/// One optional revision for each row, as a code of `width` bytes: 0 for none, otherwise 1 plus the
/// distance from `base`.
#[derive(Clone, Debug)]
pub struct Revisions {
    base: i64,
    width: usize,
    codes: Vec<u8>,
}

impl Revisions {
    /// `rows` rows without revisions.
    pub fn without_revisions(rows: usize) -> Revisions {
        Revisions { base: 0, width: 1, codes: vec![0; rows] }
    }

    pub fn len(&self) -> usize {
        self.codes.len() / self.width
    }

    pub fn get(&self, row: usize) -> Option<Revision> {
        let mut code = [0; 8];
        code[..self.width].copy_from_slice(&self.codes[row * self.width..(row + 1) * self.width]);
        let code = u64::from_le_bytes(code);
        // Code 0 is no revision. Other codes wrap around as in `try_encode`.
        (code != 0).then(|| self.base.wrapping_add(code.wrapping_sub(1) as i64)).and_then(Revision::new)
    }

    pub fn set(&mut self, row: usize, revision: Option<Revision>) {
        if !self.try_encode(row, revision) {
            let mut all: Vec<_> = (0..self.len()).map(|row| self.get(row)).collect();
            all[row] = revision;
            *self = Revisions::from_revisions(&all);
        }
    }

    /// Inserts a row without a revision at index `row`.
    pub fn insert(&mut self, row: usize) {
        let at = row * self.width;
        self.codes.splice(at..at, std::iter::repeat_n(0, self.width));
    }

    pub fn remove(&mut self, row: usize) {
        self.codes.drain(row * self.width..(row + 1) * self.width);
    }

    pub fn split_off(&mut self, row: usize) -> Revisions {
        Revisions { codes: self.codes.split_off(row * self.width), ..*self }
    }

    /// Memory in bytes.
    #[cfg(any(test, feature = "internals"))]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Revisions>() + self.codes.capacity()
    }

    /// Writes the code. Returns false if it does not fit base and width.
    fn try_encode(&mut self, row: usize, revision: Option<Revision>) -> bool {
        let code = match revision {
            None => 0,
            // At most `u64::MAX`, because `i64::MIN` is no revision.
            Some(revision) if revision.number() >= self.base => {
                (revision.number().wrapping_sub(self.base) as u64).saturating_add(1)
            }
            Some(_) => return false,
        };
        if self.width < 8 && code >> (8 * self.width) != 0 {
            return false;
        }
        self.codes[row * self.width..(row + 1) * self.width]
            .copy_from_slice(&code.to_le_bytes()[..self.width]);
        true
    }

    pub fn from_revisions(all: &[Option<Revision>]) -> Revisions {
        let numbers = || all.iter().flatten().map(|revision| revision.number());
        let (base, last) = (numbers().min().unwrap_or(0), numbers().max().unwrap_or(0));
        let greatest = (last.wrapping_sub(base) as u64).saturating_add(1);
        let width = (64 - greatest.leading_zeros()).div_ceil(8).max(1) as usize;
        let mut fitting = Revisions { base, width, codes: vec![0; all.len() * width] };
        for (row, revision) in all.iter().enumerate() {
            let encoded = fitting.try_encode(row, *revision);
            debug_assert!(encoded, "base and width were chosen for all");
        }
        fitting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Set(usize, Option<i64>),
        Insert(usize),
        Remove(usize),
        Split(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let number =
            prop_oneof![0..3i64, -5..400i64, any::<u32>().prop_map(i64::from), (i64::MIN + 1)..=i64::MAX];
        prop_oneof![
            4 => (any::<usize>(), prop::option::of(number)).prop_map(|(row, number)| Step::Set(row, number)),
            2 => any::<usize>().prop_map(Step::Insert),
            1 => any::<usize>().prop_map(Step::Remove),
            1 => any::<usize>().prop_map(Step::Split),
        ]
    }

    proptest! {
        #[test]
        fn revisions_equal_vec_of_options(steps in prop::collection::vec(step(), 0..60)) {
            let (mut packed, mut plain) = (Revisions::without_revisions(3), vec![None; 3]);
            for step in steps {
                match step {
                    Step::Set(row, number) if !plain.is_empty() => {
                        let (row, revision) = (row % plain.len(), number.and_then(Revision::new));
                        packed.set(row, revision);
                        plain[row] = revision;
                    }
                    Step::Insert(row) => {
                        let row = row % (plain.len() + 1);
                        packed.insert(row);
                        plain.insert(row, None);
                    }
                    Step::Remove(row) if !plain.is_empty() => {
                        packed.remove(row % plain.len());
                        plain.remove(row % plain.len());
                    }
                    Step::Split(row) => {
                        let row = row % (plain.len() + 1);
                        let (upper, expected) = (packed.split_off(row), plain.split_off(row));
                        prop_assert_eq!((0..upper.len()).map(|row| upper.get(row)).collect::<Vec<_>>(), expected);
                    }
                    _ => {}
                }
                prop_assert_eq!((0..packed.len()).map(|row| packed.get(row)).collect::<Vec<_>>(), plain.clone());
            }
        }
    }

    #[test]
    fn small_revisions_take_one_byte_and_timestamps_three() {
        let stamps: Vec<_> = (0..128).map(|i| Revision::new(1_764_000_000_000 + i * 60_000)).collect();
        assert_eq!(Revisions::from_revisions(&stamps).width, 3);
        let counters: Vec<_> = (0..128).map(|i| Revision::new(i % 5)).collect();
        assert_eq!(Revisions::from_revisions(&counters).width, 1);
    }
}
