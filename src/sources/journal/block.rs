//! Records of one partition that were committed together, and how they are stored.
//!
//! ```text
//! kind u8 | records, arrival ms, length of the records' bytes: varints | those bytes, plain or zstd | checksum u32
//! ```
//!
//! Each record is its length as a varint and its bytes. The checksum is of the key and all before it.

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use crate::model::EventTime;

/// From here on a block is compressed by itself. Below, the storage's own compression of neighbouring blocks does as well.
const COMPRESS_BYTES: usize = 2 * 1024;
const ZSTD_LEVEL: i32 = 1;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// A block's place: partition, then first position, both big endian, so that keys sort as the log runs.
pub(super) type Key = [u8; 12];

pub(super) fn key(partition: u32, first: u64) -> Key {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&partition.to_be_bytes());
    key[4..].copy_from_slice(&first.to_be_bytes());
    key
}

/// The partition and the first position that a key names.
pub(super) fn parse_key(key: &[u8]) -> Option<(u32, u64)> {
    let (partition, first) = key.split_at_checked(4)?;
    Some((u32::from_be_bytes(partition.try_into().ok()?), u64::from_be_bytes(first.try_into().ok()?)))
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub first: u64,
    pub count: u32,
    pub arrived: EventTime,
    records: Vec<u8>,
}

impl Block {
    pub(super) fn new(first: u64, arrived: EventTime) -> Block {
        Block { first, count: 0, arrived, records: Vec::new() }
    }

    pub(super) fn push(&mut self, record: &[u8]) {
        push_varint(record.len() as u64, &mut self.records);
        self.records.extend_from_slice(record);
        self.count += 1;
    }

    /// One past the last position.
    pub(super) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Bytes of the records.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Where the record lies that begins at the offset; its end is the offset of the next.
    #[inline]
    pub(super) fn record_at(&self, offset: usize) -> Option<Range<usize>> {
        let mut rest = self.records.get(offset..)?;
        let length = usize::try_from(take_varint(&mut rest)?).ok()?;
        let start = self.records.len() - rest.len();
        (length <= rest.len()).then(|| start..start + length)
    }

    #[inline]
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.records[range]
    }
}

/// Stores blocks.
pub(super) struct Encoder(zstd::bulk::Compressor<'static>);

impl Encoder {
    pub(super) fn new() -> std::io::Result<Encoder> {
        zstd::bulk::Compressor::new(ZSTD_LEVEL).map(Encoder)
    }

    pub(super) fn encode(&mut self, key: &Key, block: &Block) -> std::io::Result<Vec<u8>> {
        let compressed = match block.records.len() {
            0..COMPRESS_BYTES => None,
            length => Some(self.0.compress(&block.records)?).filter(|compressed| compressed.len() < length),
        };
        let kind = if compressed.is_some() { ZSTD } else { PLAIN };
        let payload = compressed.as_ref().unwrap_or(&block.records);
        let mut stored = Vec::with_capacity(payload.len() + 32);
        stored.push(kind);
        push_varint(u64::from(block.count), &mut stored);
        push_varint(block.arrived.millis().max(0) as u64, &mut stored);
        push_varint(block.records.len() as u64, &mut stored);
        stored.extend_from_slice(payload);
        let sum = checksum(key, &stored);
        stored.extend_from_slice(&sum.to_le_bytes());
        Ok(stored)
    }
}

/// Reads stored blocks.
pub(super) struct Decoder(zstd::bulk::Decompressor<'static>);

impl Decoder {
    pub(super) fn new() -> std::io::Result<Decoder> {
        zstd::bulk::Decompressor::new().map(Decoder)
    }

    /// The block, or nothing where it is damaged.
    pub(super) fn decode(&mut self, key: &[u8], stored: &[u8]) -> Option<Block> {
        let (_, first) = parse_key(key)?;
        let (content, sum) = stored.split_last_chunk::<4>()?;
        if checksum(key, content) != u32::from_le_bytes(*sum) {
            return None;
        }
        let (&kind, mut rest) = content.split_first()?;
        let count = u32::try_from(take_varint(&mut rest)?).ok().filter(|count| *count > 0)?;
        let arrived = EventTime::from_millis(i64::try_from(take_varint(&mut rest)?).ok()?)?;
        let length = usize::try_from(take_varint(&mut rest)?).ok()?;
        let records = match kind {
            PLAIN => rest.to_vec(),
            // The checksum holds, so the length is what the writer had in memory.
            ZSTD => self.0.decompress(rest, length).ok()?,
            _ => return None,
        };
        first.checked_add(u64::from(count))?;
        (records.len() == length).then_some(Block { first, count, arrived, records })
    }
}

fn checksum(key: &[u8], content: &[u8]) -> u32 {
    let mut hasher = Xxh3::new();
    hasher.update(key);
    hasher.update(content);
    hasher.digest() as u32
}

fn push_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[inline]
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}
