//! Encoded records on their way from the dataflow to durable sinks.

use serde::{Deserialize, Serialize};

/// A part of the output with transactions of its own, numbered over all sinks of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Shard(pub u16);

/// The records of one epoch for one shard, in order, encoded one behind the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EncodedBatch {
    pub shard: Shard,
    pub epoch: u64,
    pub record_count: u32,
    pub(super) bytes: Vec<u8>,
}

/// A record of an encoded batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedRecord<'a> {
    /// The topic's number within the shard.
    pub topic: u8,
    pub partition: u32,
    pub key: Option<&'a [u8]>,
    /// `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    pub headers: EncodedHeaders<'a>,
}

/// The headers of a record: names and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedHeaders<'a> {
    headers_left: u8,
    bytes: &'a [u8],
}

/// Topic, partition, lengths of key and value, number of headers.
const FIXED_FIELDS_BYTES: usize = 1 + 4 + 4 + 4 + 1;
/// The length of an absent key or value.
pub(super) const ABSENT_LENGTH: u32 = u32::MAX;
/// The length at which a batch is full, so that none grows too long to move.
pub(super) const TARGET_BATCH_BYTES: usize = 64 * 1024;

impl EncodedBatch {
    /// The bytes of all records.
    pub fn encoded_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn records(&self) -> impl Iterator<Item = EncodedRecord<'_>> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || read_record(&mut rest))
    }
}

fn read_record<'a>(rest: &mut &'a [u8]) -> Option<EncodedRecord<'a>> {
    let fixed = take_bytes(rest, FIXED_FIELDS_BYTES)?;
    let number = |at: usize| fixed[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    let mut part = |length: u32| match length {
        ABSENT_LENGTH => Some(None),
        length => take_bytes(rest, length as usize).map(Some),
    };
    let (key, value) = (part(number(5))?, part(number(9))?);
    let headers = EncodedHeaders { headers_left: fixed[13], bytes: rest };
    let length = headers.clone().map(|(name, value)| 5 + name.len() + value.len()).sum();
    take_bytes(rest, length)?;
    Some(EncodedRecord { topic: fixed[0], partition: number(1), key, value, headers })
}

fn take_bytes<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

impl<'a> Iterator for EncodedHeaders<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.headers_left = self.headers_left.checked_sub(1)?;
        let fixed = take_bytes(&mut self.bytes, 5)?;
        let name = std::str::from_utf8(take_bytes(&mut self.bytes, usize::from(fixed[0]))?).ok()?;
        let length = u32::from_le_bytes(fixed[1..].try_into().ok()?);
        Some((name, take_bytes(&mut self.bytes, length as usize)?))
    }
}
