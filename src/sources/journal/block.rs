//! Blocks: records of one partition that were committed together, and their encoding.
//!
//! ```text
//! kind u8 | records, arrival ms, length of the records' bytes: varints | those bytes, plain or zstd | checksum u32
//! ```
//!
//! Each record is its length as a varint, then its bytes. The checksum covers the key and
//! everything before the checksum. The kind says whether a block has retried dead letters. In such
//! a block, the bytes of each record begin with its origin:
//!
//! ```text
//! attempt, first seen ms + 1 or 0, length of the origin: varints | origin | bytes of the record
//! ```

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use crate::model::{ClientId, EventTime, RetryInfo};

/// The minimum size of a block that is compressed by itself. The store's own compression of
/// neighbouring blocks handles smaller ones as well.
const MIN_COMPRESSED_BYTES: usize = 2 * 1024;
const ZSTD_LEVEL: i32 = 1;
const KIND_PLAIN: u8 = 0;
const KIND_ZSTD: u8 = 1;
/// The flag in the kind of a block of retried dead letters.
const KIND_RETRIED: u8 = 2;

/// The key of a block: partition, then first position, both big endian, so that keys sort in log
/// order.
pub(super) type BlockKey = [u8; 12];

pub(super) fn block_key(partition: u32, first: u64) -> BlockKey {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&partition.to_be_bytes());
    key[4..].copy_from_slice(&first.to_be_bytes());
    key
}

/// Decodes the partition and the first position from a key.
pub(super) fn parse_block_key(key: &[u8]) -> Option<(u32, u64)> {
    let (partition, first) = key.split_at_checked(4)?;
    Some((u32::from_be_bytes(partition.try_into().ok()?), u64::from_be_bytes(first.try_into().ok()?)))
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct JournalBlock {
    pub first: u64,
    pub count: u32,
    pub arrived: EventTime,
    /// Whether its records are retried dead letters; a block never mixes the two.
    pub is_retried: bool,
    records: Vec<u8>,
    /// Which client posted the records, as runs: client, count. Known only for blocks that were
    /// written since the start.
    clients: Vec<(Option<ClientId>, u32)>,
}

impl JournalBlock {
    pub(super) fn new(first: u64, arrived: EventTime, retried: bool) -> JournalBlock {
        JournalBlock {
            first,
            count: 0,
            arrived,
            is_retried: retried,
            records: Vec::new(),
            clients: Vec::new(),
        }
    }

    /// Adds a record. It must match the block's kind.
    pub(super) fn push(&mut self, record: &[u8], retried: Option<&RetryInfo>) {
        debug_assert_eq!(self.is_retried, retried.is_some());
        let mut from = Vec::new();
        if let Some(RetryInfo { origin, attempt, first_seen }) = retried {
            push_varint(u64::from(*attempt), &mut from);
            let first_seen = first_seen.map_or(0, |time| time.millis().max(0) as u64 + 1);
            push_varint(first_seen, &mut from);
            push_varint(origin.len() as u64, &mut from);
            from.extend_from_slice(origin.as_bytes());
        }
        push_varint((from.len() + record.len()) as u64, &mut self.records);
        self.records.extend_from_slice(&from);
        self.records.extend_from_slice(record);
        self.count += 1;
    }

    /// Records which client posted the last added record.
    pub(super) fn push_client(&mut self, client: Option<ClientId>) {
        match self.clients.last_mut() {
            Some((last, count)) if *last == client => *count += 1,
            _ => self.clients.push((client, 1)),
        }
    }

    /// The client that posted the record at a position, if it is known.
    pub(super) fn client_at(&self, position: u64) -> Option<ClientId> {
        let mut index = position.checked_sub(self.first)?;
        for (client, count) in &self.clients {
            if index < u64::from(*count) {
                return *client;
            }
            index -= u64::from(*count);
        }
        None
    }

    /// The position after the last record.
    pub(super) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// The size of the records in bytes.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The range of the record that begins at the offset; its end is the offset of the next record.
    #[inline]
    pub(super) fn record_at(&self, offset: usize) -> Option<Range<usize>> {
        let mut rest = self.records.get(offset..)?;
        let length = usize::try_from(read_varint(&mut rest)?).ok()?;
        let start = self.records.len() - rest.len();
        (length <= rest.len()).then(|| start..start + length)
    }

    /// The digest of the record at a position, with its partition, position and arrival.
    pub(super) fn record_digest(&self, partition: u32, position: u64) -> Option<u64> {
        let mut range = 0..0;
        for _ in self.first..=position {
            range = self.record_at(range.end)?;
        }
        Some(self.record_digest_of(partition, position, range))
    }

    /// [`JournalBlock::record_digest`] of a record whose byte range is known.
    pub(super) fn record_digest_of(&self, partition: u32, position: u64, range: Range<usize>) -> u64 {
        let mut hasher = Xxh3::new();
        hasher.update(&partition.to_le_bytes());
        hasher.update(&position.to_le_bytes());
        hasher.update(&self.arrived.millis().to_le_bytes());
        hasher.update(self.record_bytes(range));
        hasher.digest()
    }

    #[inline]
    pub(super) fn record_bytes(&self, range: Range<usize>) -> &[u8] {
        &self.records[range]
    }

    /// Splits a retried dead letter into its origin and the bytes of the record; `None` if it is
    /// damaged.
    pub(super) fn split_retried(&self, range: Range<usize>) -> Option<(RetryInfo, &[u8])> {
        let mut rest = self.record_bytes(range);
        let attempt = u32::try_from(read_varint(&mut rest)?).ok()?;
        let first_seen = match read_varint(&mut rest)? {
            0 => None,
            after => Some(EventTime::from_millis(i64::try_from(after - 1).ok()?)?),
        };
        let length = usize::try_from(read_varint(&mut rest)?).ok()?;
        let (origin, bytes) = rest.split_at_checked(length)?;
        let origin = std::str::from_utf8(origin).ok()?.into();
        Some((RetryInfo { origin, attempt, first_seen }, bytes))
    }
}

/// Encodes blocks for the store.
pub(super) struct BlockEncoder(zstd::bulk::Compressor<'static>);

impl BlockEncoder {
    pub(super) fn new() -> std::io::Result<BlockEncoder> {
        zstd::bulk::Compressor::new(ZSTD_LEVEL).map(BlockEncoder)
    }

    pub(super) fn encode(&mut self, key: &BlockKey, block: &JournalBlock) -> std::io::Result<Vec<u8>> {
        let compressed = match block.records.len() {
            0..MIN_COMPRESSED_BYTES => None,
            length => Some(self.0.compress(&block.records)?).filter(|compressed| compressed.len() < length),
        };
        let kind = if compressed.is_some() { KIND_ZSTD } else { KIND_PLAIN };
        let kind = if block.is_retried { kind + KIND_RETRIED } else { kind };
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

/// Decodes stored blocks.
pub(super) struct BlockDecoder(zstd::bulk::Decompressor<'static>);

impl BlockDecoder {
    pub(super) fn new() -> std::io::Result<BlockDecoder> {
        zstd::bulk::Decompressor::new().map(BlockDecoder)
    }

    /// Decodes a block; `None` if it is damaged.
    pub(super) fn decode(&mut self, key: &[u8], stored: &[u8]) -> Option<JournalBlock> {
        let (_, first) = parse_block_key(key)?;
        let (content, sum) = stored.split_last_chunk::<4>()?;
        if checksum(key, content) != u32::from_le_bytes(*sum) {
            return None;
        }
        let (&kind, mut rest) = content.split_first()?;
        let count = u32::try_from(read_varint(&mut rest)?).ok().filter(|count| *count > 0)?;
        let arrived = EventTime::from_millis(i64::try_from(read_varint(&mut rest)?).ok()?)?;
        let length = usize::try_from(read_varint(&mut rest)?).ok()?;
        let retried = kind & KIND_RETRIED != 0;
        let records = match kind & !KIND_RETRIED {
            KIND_PLAIN => rest.to_vec(),
            // The checksum holds, so the length is the size that the writer had in memory.
            KIND_ZSTD => self.0.decompress(rest, length).ok()?,
            _ => return None,
        };
        first.checked_add(u64::from(count))?;
        (records.len() == length).then_some(JournalBlock {
            first,
            count,
            arrived,
            is_retried: retried,
            records,
            clients: Vec::new(),
        })
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
fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
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
