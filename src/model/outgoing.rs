//! Records on their way out of the dataflow to durable sinks.

use serde::{Deserialize, Serialize};

use super::{Change, CityId, CityNames, CurrentRow};

/// A part of the output that is written by itself, in transactions of its own: numbered over all sinks of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Shard(pub u16);

/// Records of one epoch for one shard, in their order, written out one behind the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Parcel {
    pub shard: Shard,
    pub epoch: u64,
    pub records: u32,
    bytes: Vec<u8>,
}

/// A record of a parcel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParcelRecord<'a> {
    /// Which of the shard's topics, and which partition of it.
    pub topic: u8,
    pub partition: u32,
    pub key: Option<&'a [u8]>,
    /// A tombstone has none.
    pub value: Option<&'a [u8]>,
    pub headers: Headers<'a>,
}

/// The headers of a record: names and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers<'a> {
    left: u8,
    bytes: &'a [u8],
}

/// Topic, partition, lengths of key and value, number of headers.
const FIXED: usize = 1 + 4 + 4 + 4 + 1;
/// The length of what is not there.
const ABSENT: u32 = u32::MAX;
/// Parcels are about this long, so that no epoch makes one too long to move.
const PARCEL_BYTES: usize = 64 * 1024;

impl Parcel {
    /// Bytes of its records.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn records(&self) -> impl Iterator<Item = ParcelRecord<'_>> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || take_record(&mut rest))
    }
}

fn take_record<'a>(rest: &mut &'a [u8]) -> Option<ParcelRecord<'a>> {
    let fixed = take(rest, FIXED)?;
    let number = |at: usize| fixed[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
    let mut part = |length: u32| match length {
        ABSENT => Some(None),
        length => take(rest, length as usize).map(Some),
    };
    let (key, value) = (part(number(5))?, part(number(9))?);
    let headers = Headers { left: fixed[13], bytes: rest };
    let length = headers.clone().map(|(name, value)| 5 + name.len() + value.len()).sum();
    take(rest, length)?;
    Some(ParcelRecord { topic: fixed[0], partition: number(1), key, value, headers })
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let fixed = take(&mut self.bytes, 5)?;
        let name = std::str::from_utf8(take(&mut self.bytes, usize::from(fixed[0]))?).ok()?;
        let length = u32::from_le_bytes(fixed[1..].try_into().ok()?);
        Some((name, take(&mut self.bytes, length as usize)?))
    }
}

/// Collects records into parcels.
#[derive(Debug, Default)]
pub struct Parcels {
    /// The last one of each shard, while it is filled.
    open: Vec<Option<Parcel>>,
    full: Vec<Parcel>,
    /// How long the parcels of each shard become: so none grows step by step.
    lengths: Vec<usize>,
}

impl Parcels {
    /// Begins a record behind the others of its epoch and shard. Epochs come in their order.
    #[inline]
    pub fn begin(&mut self, epoch: u64, shard: Shard, topic: u8, partition: u32) -> Draft<'_> {
        let at = usize::from(shard.0);
        if self.open.len() <= at {
            self.open.resize(at + 1, None);
            self.lengths.resize(at + 1, 0);
        }
        let open = &mut self.open[at];
        let full = |parcel: &mut Parcel| parcel.epoch != epoch || parcel.bytes.len() >= PARCEL_BYTES;
        if let Some(parcel) = open.take_if(full) {
            self.lengths[at] = parcel.bytes.len();
            self.full.push(parcel);
        }
        let length = self.lengths[at] + self.lengths[at] / 8;
        let parcel = open.get_or_insert_with(|| Parcel {
            shard,
            epoch,
            records: 0,
            bytes: Vec::with_capacity(length),
        });
        parcel.records += 1;
        let bytes = &mut parcel.bytes;
        let start = bytes.len();
        bytes.push(topic);
        bytes.extend_from_slice(&partition.to_le_bytes());
        bytes.extend_from_slice(&ABSENT.to_le_bytes());
        bytes.extend_from_slice(&ABSENT.to_le_bytes());
        bytes.push(0);
        let part = bytes.len();
        Draft { start, part, bytes }
    }

    /// All that was collected.
    pub fn take_all(&mut self) -> Vec<Parcel> {
        let mut all = std::mem::take(&mut self.full);
        for (open, length) in self.open.iter_mut().zip(&mut self.lengths) {
            if let Some(parcel) = open.take() {
                // What is left over may be short; the next is not.
                *length = parcel.bytes.len().max(*length / 2);
                all.push(parcel);
            }
        }
        all
    }
}

/// A record that is being written: first its key, then its value, then its headers; each where it has one.
#[derive(Debug)]
pub struct Draft<'a> {
    start: usize,
    /// Where the part at hand begins.
    part: usize,
    bytes: &'a mut Vec<u8>,
}

impl Draft<'_> {
    /// Where the part at hand is appended to.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        self.bytes
    }

    /// What was appended is the key.
    pub fn end_key(&mut self) {
        self.end(5);
    }

    /// What was appended since is the value.
    pub fn end_value(&mut self) {
        self.end(9);
    }

    fn end(&mut self, field: usize) {
        let length = (self.bytes.len() - self.part) as u32;
        let at = self.start + field;
        self.bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
        self.part = self.bytes.len();
    }

    /// A header, of a name of at most 255 bytes.
    pub fn header(&mut self, name: &str, value: &[u8]) {
        debug_assert!(name.len() < 256);
        self.bytes[self.start + 13] += 1;
        self.bytes.push(name.len() as u8);
        self.bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(value);
    }
}

/// Writes what an epoch changes as the records of a sink.
pub trait Render {
    fn row(&mut self, epoch: u64, names: &CityNames, change: &Change, out: &mut Parcels);

    /// The current row of a city from this epoch on.
    fn current(
        &mut self,
        epoch: u64,
        names: &CityNames,
        city: CityId,
        row: Option<&CurrentRow>,
        out: &mut Parcels,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Written = (u64, u16, u8, u32, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Vec<u8>)>);

    fn written() -> impl Strategy<Value = Written> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
        let part = || proptest::option::of(bytes());
        let headers = proptest::collection::vec(("[a-z]{1,12}", bytes()), 0..4);
        (0..3u64, 0..3u16, any::<u8>(), any::<u32>(), part(), part(), headers)
    }

    proptest! {
        #[test]
        fn records_come_back_in_the_order_of_their_shard(mut records in proptest::collection::vec(written(), 0..200)) {
            records.sort_by_key(|record| record.0);
            let mut parcels = Parcels::default();
            for (epoch, shard, topic, partition, key, value, headers) in &records {
                let mut draft = parcels.begin(*epoch, Shard(*shard), *topic, *partition);
                if let Some(key) = key {
                    draft.bytes().extend_from_slice(key);
                    draft.end_key();
                }
                if let Some(value) = value {
                    draft.bytes().extend_from_slice(value);
                    draft.end_value();
                }
                headers.iter().for_each(|(name, value)| draft.header(name, value));
            }
            let parcels = parcels.take_all();
            for shard in 0..3 {
                let mut back: Vec<Written> = Vec::new();
                for parcel in parcels.iter().filter(|parcel| parcel.shard == Shard(shard)) {
                    prop_assert_eq!(parcel.records().count(), parcel.records as usize);
                    back.extend(parcel.records().map(|r| {
                        let headers = r.headers.map(|(name, value)| (name.to_owned(), value.to_vec()));
                        let (key, value) = (r.key.map(<[u8]>::to_vec), r.value.map(<[u8]>::to_vec));
                        (parcel.epoch, shard, r.topic, r.partition, key, value, headers.collect())
                    }));
                }
                let expected: Vec<Written> = records.iter().filter(|r| r.1 == shard).cloned().collect();
                prop_assert_eq!(back, expected);
            }
        }
    }
}
