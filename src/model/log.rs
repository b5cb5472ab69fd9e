//! Logs: partitions of records with positions, what is appended to them, and how far they have been applied.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{EventTime, Refusal};
use crate::panics::locks::SharedRwLock;

/// A partition of one of a run's logs: dense numbers over all sources, in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionIndex(pub u16);

/// A partition as people name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionName {
    /// The source, such as `journal`.
    pub source: Arc<str>,
    pub partition: u32,
}

/// The partitions of a run, by slot. More can come while it runs, none goes.
#[derive(Clone, Debug, Default)]
pub struct PartitionTable(Arc<SharedRwLock<Vec<PartitionName>>>);

impl PartitionTable {
    pub fn new(names: Vec<PartitionName>) -> PartitionTable {
        PartitionTable(Arc::new(SharedRwLock::new(names)))
    }

    pub fn push(&self, name: PartitionName) -> PartitionIndex {
        let mut names = self.0.write();
        names.push(name);
        PartitionIndex((names.len() - 1) as u16)
    }

    pub fn name(&self, partition: PartitionIndex) -> Option<PartitionName> {
        self.0.read().get(usize::from(partition.0)).cloned()
    }

    pub fn names(&self) -> Vec<PartitionName> {
        self.0.read().clone()
    }
}

/// The last record before a position: what tells later whether a log of the same name is still the same log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The position of that record. Positions between it and the fingerprint's own may hold no record, such as the marks of
    /// transactions in Kafka.
    pub position: u64,
    /// The xxh3 digest of what the log says it is of: the record, the file up to there.
    #[serde(serialize_with = "write_digest", deserialize_with = "read_digest")]
    pub digest: u64,
    /// In Kafka, the epoch of the partition's leader that took the record (KIP-320), if the broker says.
    pub leader_epoch: Option<i32>,
}

/// As 16 hexadecimal digits: not every reader of JSON keeps integers of 64 bits.
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
    /// Without a known record before it.
    fn from(position: u64) -> LogPosition {
        LogPosition { position, before: None }
    }
}

/// What a run recorded about a log beside the positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIdentity {
    /// The log's own id, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// By partition, the record before its position.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub before: BTreeMap<u32, Fingerprint>,
}

/// How far a partition has come. A position is the number of the next record: all before it are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionProgress {
    pub partition: PartitionIndex,
    /// Results include every record before this one.
    pub applied_until: u64,
    /// The log's end, as far as the reader knows it.
    pub log_end: u64,
    /// Of the positions before it, those that wait for the end of an open transaction.
    pub withheld: u64,
    /// The last record before `applied`, if there is one that is known.
    pub before: Option<Fingerprint>,
    /// How many cities admission knows of the partition.
    pub city_count: u32,
}

/// A record as its log has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawRecord<'a> {
    /// Of logs whose records have keys.
    pub key: Option<&'a [u8]>,
    /// A tombstone has none.
    pub value: Option<&'a [u8]>,
    /// Where it is a dead letter that was sent again.
    pub retry: Option<&'a RetryInfo>,
    /// Who has posted it, where that is not so long ago that it is forgotten.
    pub client: Option<ClientId>,
}

impl<'a> RawRecord<'a> {
    /// A new record without a key.
    pub fn from_value(value: &'a [u8]) -> RawRecord<'a> {
        RawRecord { value: Some(value), ..RawRecord::default() }
    }
}

/// What a dead letter that is sent again says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryInfo {
    /// Where the record first stood, as `readings/3/1017`: source or topic, partition, position.
    pub origin: Box<str>,
    /// How often it was sent again: from 1.
    pub attempt: u32,
    /// When the log first took it, where that is known.
    pub first_seen: Option<EventTime>,
}

/// Where a record stands, as people write it: `readings/3/1017` is source or topic, partition, position.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordAddress {
    pub source: Box<str>,
    pub partition: u32,
    pub position: u64,
}

impl fmt::Display for RecordAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.source, self.partition, self.position)
    }
}

impl FromStr for RecordAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<RecordAddress, String> {
        let mut parts = text.rsplitn(3, '/');
        let position = parts.next().and_then(|part| part.parse().ok());
        let partition = parts.next().and_then(|part| part.parse().ok());
        let source = parts.next().filter(|source| !source.is_empty());
        match (source, partition, position) {
            (Some(source), Some(partition), Some(position)) => {
                Ok(RecordAddress { source: source.into(), partition, position })
            }
            _ => Err(format!("{text:?} is not a position: write it as in readings/3/1017")),
        }
    }
}

/// Who sends records, as a number that says nothing of a token or an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId(pub u64);

/// A record for the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRecord {
    /// What decides the partition; nothing where the record cannot be decoded.
    pub city: Option<Box<str>>,
    /// Of a posted reading: a log that stamps records itself refuses one of the future by it. Of others nothing is said here.
    pub reading_at: Option<EventTime>,
    /// A reading or withdrawal as one JSON object, just as it came.
    pub bytes: Box<[u8]>,
    /// Where it is a dead letter that is sent again: it goes to the partition that it came from.
    pub retry: Option<Box<RetryInfo>>,
    /// Who has posted it. The log does not keep that.
    pub client: Option<ClientId>,
}

impl NewRecord {
    /// One that was in no log before.
    pub fn new(city: Option<&str>, bytes: impl Into<Box<[u8]>>) -> NewRecord {
        let (city, bytes) = (city.map(Into::into), bytes.into());
        NewRecord { city, reading_at: None, bytes, retry: None, client: None }
    }
}

/// Where the records of an append are in one partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AppendedRange {
    #[serde(flatten)]
    pub partition: PartitionName,
    /// The position of the first of them; records of others may lie between it and `end`.
    pub first: u64,
    /// One past the last of them: results include them all once the partition is applied up to there.
    pub end: u64,
}

/// What became of an append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppendReport {
    pub ranges: Vec<AppendedRange>,
    /// What the log has not taken, by its number in the append. It is in no log, and no dead letter.
    pub refusals: Vec<(u32, Refusal)>,
}

/// Why records are not in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AppendError {
    /// Nothing was appended; it may be tried again.
    #[error("the log is busy: try again in a moment")]
    Busy,
    #[error("the service is stopping")]
    Stopping,
    /// Nothing was appended, and nothing will be until what is named has passed.
    #[error("{}", .0.detail)]
    OnHold(AppendHold),
    /// The log has failed. Whether the records are in it is not known.
    #[error("the log cannot be written: {0}")]
    Failed(Arc<str>),
}

/// Why records are not taken for now, though nothing has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendHold {
    pub cause: HoldCause,
    /// For people: what it is, and what to do.
    pub detail: Arc<str>,
    /// When it may be tried again.
    pub retry_after_s: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldCause {
    /// The clock of the host is ahead of what it should say.
    ClockAhead,
    /// There is no more room for dead letters.
    DeadLettersFull,
    /// Too many dead letters came of what this client sent.
    DeadLetterShare,
}

/// Knows whether records are taken.
pub trait HoldCheck: Send + Sync {
    /// Why none is, whoever sends it.
    fn current_hold(&self) -> Option<AppendHold>;
}

/// Hears what became of an append: once, from a thread of the log's that it must not hold up.
pub type AppendCallback = Box<dyn FnOnce(Result<AppendReport, AppendError>) + Send>;

/// The end of a log that takes new records.
pub trait Appender: Send + Sync {
    /// Queues records, which keep their order, and returns at once. They are durable when `done` hears so; where they cannot
    /// even be queued, it hears that before this returns.
    fn append(&self, records: Vec<NewRecord>, done: AppendCallback);
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
