//! Where logs come from, and readings that are made up.

pub mod file;
pub mod generator;
pub mod weather;

/// Mixes the bits of a word: the output step of SplitMix64 (Steele, Lea, Flood 2014). What is made up is made of hashes
/// of what it is for, not of a generator's running state, so that it does not depend on the order of asking.
fn mix(word: u64) -> u64 {
    let z = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A hash as a number in `[0, 1)`.
fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}
