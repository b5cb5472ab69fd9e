//! Records of one partition that were committed together, and how they are stored.
//!
//! ```text
//! kind u8 | records, arrival ms, length of the records' bytes: varints | those bytes, plain or zstd | checksum u32
//! ```
//!
//! Each record is its length as a varint and its bytes. The checksum is of the key and all before
//! it. A block of dead letters that were sent again says so in its kind; the bytes of each of its
//! records begin with where it comes from:
//!
//! ```text
//! attempt, first seen ms + 1 or 0, length of the origin: varints | origin | bytes of the record
//! ```

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use crate::model::{ClientId, EventTime, RetryInfo};

/// From here on a block is compressed by itself. Below, the storage's own compression of
/// neighbouring blocks does as well.
const MIN_COMPRESSED_BYTES: usize = 2 * 1024;
const ZSTD_LEVEL: i32 = 1;
const KIND_PLAIN: u8 = 0;
const KIND_ZSTD: u8 = 1;
/// Added to the kind.
const KIND_RETRIED: u8 = 2;

/// A block's place: partition, then first position, both big endian, so that keys sort as the log
/// runs.
pub(super) type BlockKey = [u8; 12];

pub(super) fn block_key(partition: u32, first: u64) -> BlockKey {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&partition.to_be_bytes());
    key[4..].copy_from_slice(&first.to_be_bytes());
    key
}

/// The partition and the first position that a key names.
pub(super) fn parse_block_key(key: &[u8]) -> Option<(u32, u64)> {
    let (partition, first) = key.split_at_checked(4)?;
    Some((u32::from_be_bytes(partition.try_into().ok()?), u64::from_be_bytes(first.try_into().ok()?)))
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct JournalBlock {
    pub first: u64,
    pub count: u32,
    pub arrived: EventTime,
    /// All of its records are dead letters that were sent again; otherwise none is.
    pub is_retried: bool,
    records: Vec<u8>,
    /// Who has posted them, and how many in a row; only of blocks that were written since the
    /// start.
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

    /// Adds a record, of the block's kind.
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

    /// Notes who has posted the record that was added last.
    pub(super) fn push_client(&mut self, client: Option<ClientId>) {
        match self.clients.last_mut() {
            Some((last, count)) if *last == client => *count += 1,
            _ => self.clients.push((client, 1)),
        }
    }

    /// Who has posted the record at a position, where that is known.
    pub(super) fn client_at(&self, position: u64) -> Option<ClientId> {
        let mut left = position.checked_sub(self.first)?;
        for (client, count) in &self.clients {
            if left < u64::from(*count) {
                return *client;
            }
            left -= u64::from(*count);
        }
        None
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
        let length = usize::try_from(read_varint(&mut rest)?).ok()?;
        let start = self.records.len() - rest.len();
        (length <= rest.len()).then(|| start..start + length)
    }

    /// Of the record at a position, as the block has it, and of its place and arrival.
    pub(super) fn record_digest(&self, partition: u32, position: u64) -> Option<u64> {
        let mut range = 0..0;
        for _ in self.first..=position {
            range = self.record_at(range.end)?;
        }
        Some(self.record_digest_of(partition, position, range))
    }

    /// [`JournalBlock::record_digest`] of a record whose bytes are known.
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

    /// Where a dead letter that was sent again comes from, and the bytes of the record; nothing
    /// where it is damaged.
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

/// Stores blocks.
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

/// Reads stored blocks.
pub(super) struct BlockDecoder(zstd::bulk::Decompressor<'static>);

impl BlockDecoder {
    pub(super) fn new() -> std::io::Result<BlockDecoder> {
        zstd::bulk::Decompressor::new().map(BlockDecoder)
    }

    /// The block, or nothing where it is damaged.
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
            // The checksum holds, so the length is what the writer had in memory.
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
