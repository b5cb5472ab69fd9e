//! Positions in a log, and fingerprints by which a log is told from another one of the same name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The last record before a position. It shows later whether a log of the same name is still the
/// same log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The position of that record. Positions between it and the fingerprint's own may hold no
    /// record, as do transaction markers in Kafka.
    pub position: u64,
    /// The xxh3 digest of the record, or of a file up to there: each kind of log says which.
    #[serde(serialize_with = "write_digest", deserialize_with = "read_digest")]
    pub digest: u64,
    /// In Kafka, the epoch of the leader that appended the record (KIP-320), if the broker says so.
    pub leader_epoch: Option<i32>,
}

/// As 16 hexadecimal digits, since some readers of JSON round integers of 64 bits.
fn write_digest<S: serde::Serializer>(digest: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{digest:016x}"))
}

fn read_digest<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
}

/// A position, and the record before it if that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// The number of the next record: all before it are included.
    pub position: u64,
    pub before: Option<Fingerprint>,
}

impl From<u64> for LogPosition {
    /// A position without a known record before it.
    fn from(position: u64) -> LogPosition {
        LogPosition { position, before: None }
    }
}

/// What a run records about a log besides the positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIdentity {
    /// The log's own id, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// For each partition, the last record before its position.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub before: BTreeMap<u32, Fingerprint>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_serializes_as_hex() {
        let fingerprint = Fingerprint { position: 7, digest: u64::MAX - 1, leader_epoch: Some(3) };
        let json = r#"{"position":7,"digest":"fffffffffffffffe","leader_epoch":3}"#;
        assert_eq!(serde_json::to_string(&fingerprint).unwrap(), json);
        assert_eq!(serde_json::from_str::<Fingerprint>(json).unwrap(), fingerprint);
        assert!(serde_json::from_str::<Fingerprint>(&json.replace("ffff", "zz")).is_err());
    }
}
