//! The number of a city in the tables, and its shard.

use ring::digest::{SHA256, digest};
use xxhash_rust::xxh3::xxh3_64;

/// The id of a city: the first 63 bits of the SHA-256 of its name. It is the same in every
/// database, so any process can render it.
pub fn city_id(name: &str) -> i64 {
    let hash = digest(&SHA256, name.as_bytes());
    let first = hash.as_ref().first_chunk::<8>().copied().unwrap_or_default();
    (u64::from_be_bytes(first) >> 1) as i64
}

/// The shard of a city within the sink. It stays the same as long as the schema exists.
pub fn shard_of_city(name: &str, shards: u16) -> u16 {
    (xxh3_64(name.as_bytes()) % u64::from(shards)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_and_shard_of_a_city_never_change() {
        assert_eq!(["", "Oslo"].map(city_id), [0x71d8_6221_4c7e_0e0a, 0x218a_9664_bfa2_bf93]);
        assert_eq!(["Oslo", "Lima", "Perth"].map(|city| shard_of_city(city, 8)), [3, 1, 0]);
    }
}
