//! Records of a log: as it holds them, as they are appended, and how people name one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::EventTime;

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
