//! The partition of a key, as Kafka's default partitioner computes it: so the records of a city by
//! Java clients and by swelter are in one partition.

/// How the partition of a city's records is computed, by librdkafka's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partitioner {
    /// As Java clients do.
    #[default]
    Murmur2,
    /// As librdkafka does by default: CRC32.
    Consistent,
    /// As Sarama, a client for Go, does by default.
    Fnv1a,
}

impl Partitioner {
    pub const ALL: [Partitioner; 3] = [Partitioner::Murmur2, Partitioner::Consistent, Partitioner::Fnv1a];

    pub fn name(self) -> &'static str {
        match self {
            Partitioner::Murmur2 => "murmur2_random",
            Partitioner::Consistent => "consistent_random",
            Partitioner::Fnv1a => "fnv1a_random",
        }
    }

    pub fn from_name(name: &str) -> Option<Partitioner> {
        Partitioner::ALL.into_iter().find(|partitioner| partitioner.name() == name)
    }
}

/// The partition of a key: murmur2 without its sign, modulo the number of partitions. librdkafka
/// calls it `murmur2`.
pub fn partition_for_key(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7FFF_FFFF) % partitions.max(1)
}

/// MurmurHash2 (Austin Appleby), 32 bits, with the seed that Kafka uses.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5BD1_E995;
    const SEED: u32 = 0x9747_B28C;
    let mut hash = SEED ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    for (at, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * at);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_hashes_match_kafka() {
        // From the tests of Kafka's own Utils.murmur2.
        for (key, hash) in [
            ("21", -973_932_308i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
        assert_eq!(partition_for_key(b"21", 1000), (-973_932_308i32 as u32 & 0x7FFF_FFFF) % 1000);
    }
}
