//! Records of a log: as they are read, as they are appended, and their addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::EventTime;

/// A record as it is in its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawRecord<'a> {
    /// The key, if the log's records have keys.
    pub key: Option<&'a [u8]>,
    /// `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    /// Set if the record is a retried dead letter.
    pub retry: Option<&'a RetryInfo>,
    /// The client that posted the record, if the log still remembers it.
    pub client: Option<ClientId>,
}

impl<'a> RawRecord<'a> {
    /// A new record without a key.
    pub fn from_value(value: &'a [u8]) -> RawRecord<'a> {
        RawRecord { value: Some(value), ..RawRecord::default() }
    }
}

/// The retry of a dead letter, in the record that is retried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryInfo {
    /// The address that the record had first, as `readings/3/1017`: source or topic, partition,
    /// position.
    pub origin: Box<str>,
    /// How often the record was retried, from 1.
    pub attempt: u32,
    /// When a log first had the record, if known.
    pub first_seen: Option<EventTime>,
}

/// The address of a record, as people write it: `readings/3/1017` is source or topic, partition,
/// position.
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

/// A client that posts records, as a number from which neither its token nor its address can be
/// found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId(pub u64);

/// A record to append.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRecord {
    /// The city, which decides the partition; `None` if the record cannot be decoded.
    pub city: Option<Box<str>>,
    /// The time of a posted reading: a log with its own clock refuses a reading of the future by
    /// it. `None` for other records.
    pub reading_at: Option<EventTime>,
    /// The bytes of a reading or withdrawal as one JSON object, unchanged.
    pub bytes: Box<[u8]>,
    /// Set for a retried dead letter, which goes to the partition that it came from.
    pub retry: Option<Box<RetryInfo>>,
    /// The client that posted the record. The log does not store it.
    pub client: Option<ClientId>,
}

impl NewRecord {
    /// A record that was in no log before.
    pub fn new(city: Option<&str>, bytes: impl Into<Box<[u8]>>) -> NewRecord {
        let (city, bytes) = (city.map(Into::into), bytes.into());
        NewRecord { city, reading_at: None, bytes, retry: None, client: None }
    }
}
