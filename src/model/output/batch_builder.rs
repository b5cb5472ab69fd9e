//! Builders of encoded batches and their records, and the trait of what renders an epoch's changes
//! with them.

use super::encoded_batch::{ABSENT_LENGTH, EncodedBatch, Shard, TARGET_BATCH_BYTES};

/// Collects records into encoded batches.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    /// The last batch of each shard, while it is filled.
    open_batches: Vec<Option<EncodedBatch>>,
    full_batches: Vec<EncodedBatch>,
    /// The typical length of each shard's batches, so that their buffers need not grow.
    batch_lengths: Vec<usize>,
}

impl BatchBuilder {
    /// Begins a record behind the others of its epoch and shard. Epochs must come in order.
    #[inline]
    pub fn begin_record(&mut self, epoch: u64, shard: Shard, topic: u8, partition: u32) -> RecordBuilder<'_> {
        let at = usize::from(shard.0);
        if self.open_batches.len() <= at {
            self.open_batches.resize(at + 1, None);
            self.batch_lengths.resize(at + 1, 0);
        }
        let open = &mut self.open_batches[at];
        let full = |batch: &mut EncodedBatch| batch.epoch != epoch || batch.bytes.len() >= TARGET_BATCH_BYTES;
        if let Some(batch) = open.take_if(full) {
            self.batch_lengths[at] = batch.bytes.len();
            self.full_batches.push(batch);
        }
        let length = self.batch_lengths[at] + self.batch_lengths[at] / 8;
        let batch = open.get_or_insert_with(|| EncodedBatch {
            shard,
            epoch,
            record_count: 0,
            bytes: Vec::with_capacity(length),
        });
        batch.record_count += 1;
        let bytes = &mut batch.bytes;
        let start = bytes.len();
        bytes.push(topic);
        bytes.extend_from_slice(&partition.to_le_bytes());
        bytes.extend_from_slice(&ABSENT_LENGTH.to_le_bytes());
        bytes.extend_from_slice(&ABSENT_LENGTH.to_le_bytes());
        bytes.push(0);
        let part = bytes.len();
        RecordBuilder { start, part_start: part, bytes }
    }

    /// Begins a record whose epoch is not known yet: see [`BatchBuilder::take_batches_at`].
    pub fn begin_undated_record(&mut self, shard: Shard, topic: u8, partition: u32) -> RecordBuilder<'_> {
        self.begin_record(u64::MAX, shard, topic, partition)
    }

    /// Takes all batches of undated records, as of one epoch.
    pub fn take_batches_at(&mut self, epoch: u64) -> Vec<EncodedBatch> {
        self.take_batches().into_iter().map(|batch| EncodedBatch { epoch, ..batch }).collect()
    }

    /// Takes all batches so far.
    pub fn take_batches(&mut self) -> Vec<EncodedBatch> {
        let mut all = std::mem::take(&mut self.full_batches);
        for (open, length) in self.open_batches.iter_mut().zip(&mut self.batch_lengths) {
            if let Some(batch) = open.take() {
                // The last batch of an epoch may be short, though the next will not be.
                *length = batch.bytes.len().max(*length / 2);
                all.push(batch);
            }
        }
        all
    }
}

/// A record while it is written: its key, its value, then its headers, each if it has one.
#[derive(Debug)]
pub struct RecordBuilder<'a> {
    start: usize,
    /// The start of the field that is being written.
    part_start: usize,
    bytes: &'a mut Vec<u8>,
}

impl RecordBuilder<'_> {
    /// The buffer to which the field that is being written is appended.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.bytes
    }

    /// Ends the key: all that was appended so far.
    pub fn end_key(&mut self) {
        self.write_part_length(5);
    }

    /// Ends the value: all that was appended since the key.
    pub fn end_value(&mut self) {
        self.write_part_length(9);
    }

    fn write_part_length(&mut self, field: usize) {
        let length = (self.bytes.len() - self.part_start) as u32;
        let at = self.start + field;
        self.bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
        self.part_start = self.bytes.len();
    }

    /// Adds a header, whose name has at most 255 bytes.
    pub fn push_header(&mut self, name: &str, value: &[u8]) {
        debug_assert!(name.len() < 256);
        self.bytes[self.start + 13] += 1;
        self.bytes.push(name.len() as u8);
        self.bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type RecordParts = (u64, u16, u8, u32, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Vec<u8>)>);

    fn record_strategy() -> impl Strategy<Value = RecordParts> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
        let part = || proptest::option::of(bytes());
        let headers = proptest::collection::vec(("[a-z]{1,12}", bytes()), 0..4);
        (0..3u64, 0..3u16, any::<u8>(), any::<u32>(), part(), part(), headers)
    }

    proptest! {
        #[test]
        fn encoded_records_keep_shard_order(mut records in proptest::collection::vec(record_strategy(), 0..200)) {
            records.sort_by_key(|record| record.0);
            let mut batchs = BatchBuilder::default();
            for (epoch, shard, topic, partition, key, value, headers) in &records {
                let mut record = batchs.begin_record(*epoch, Shard(*shard), *topic, *partition);
                if let Some(key) = key {
                    record.buffer().extend_from_slice(key);
                    record.end_key();
                }
                if let Some(value) = value {
                    record.buffer().extend_from_slice(value);
                    record.end_value();
                }
                headers.iter().for_each(|(name, value)| record.push_header(name, value));
            }
            let batchs = batchs.take_batches();
            for shard in 0..3 {
                let mut back: Vec<RecordParts> = Vec::new();
                for batch in batchs.iter().filter(|batch| batch.shard == Shard(shard)) {
                    prop_assert_eq!(batch.records().count(), batch.record_count as usize);
                    back.extend(batch.records().map(|r| {
                        let headers = r.headers.map(|(name, value)| (name.to_owned(), value.to_vec()));
                        let (key, value) = (r.key.map(<[u8]>::to_vec), r.value.map(<[u8]>::to_vec));
                        (batch.epoch, shard, r.topic, r.partition, key, value, headers.collect())
                    }));
                }
                let expected: Vec<RecordParts> = records.iter().filter(|r| r.1 == shard).cloned().collect();
                prop_assert_eq!(back, expected);
            }
        }
    }
}
