//! Random numbers of the operating system's generator.

use ring::rand::{SecureRandom as _, SystemRandom};

/// 64 random bits, for ids and nonces that no other process may have: unlike the keys of
/// `std::hash::RandomState`, which count up within a thread, each call draws anew.
///
/// # Panics
///
/// If the operating system has no generator. Every Linux on which swelter runs has one.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.expect("getrandom(2) fills 8 bytes without an error on every Linux since 3.17");
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn random_numbers_differ_in_all_bits() {
        let numbers: HashSet<u64> = (0..1000).map(|_| random_u64()).collect();
        assert_eq!(numbers.len(), 1000);
        let (any_set, all_set) =
            numbers.iter().fold((0, u64::MAX), |(any, all), number| (any | number, all & number));
        assert_eq!((any_set, all_set), (u64::MAX, 0), "a bit never changes");
    }
}
