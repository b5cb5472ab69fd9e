//! A reader of one partition: from memory if it keeps up with the writer, else from disk, block by
//! block.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::Thread;

use super::block::{BlockDecoder, JournalBlock};
use super::shared::JournalShared;
use super::store_error::StoreError;
use super::tail::TailLookup;
use crate::codec::JsonRecordDecoder;
use crate::model::{Fingerprint, RawRecord, Upsert};
use crate::sources::{NextPoll, Partition, PollResult, RecordHandler, RecordPosition, SourceError};

pub(super) struct JournalReader {
    shared: Arc<JournalShared>,
    partition: u32,
    /// The position of the next record.
    position: u64,
    worker: Thread,
    record_decoder: JsonRecordDecoder,
    block_decoder: BlockDecoder,
    current: Option<BlockReadCursor>,
    read_ahead: VecDeque<Arc<JournalBlock>>,
    /// The fingerprint of the last delivered record.
    last_fingerprint: Option<Fingerprint>,
}

/// The offset of the next record in a block.
struct BlockReadCursor {
    block: Arc<JournalBlock>,
    offset: usize,
}

impl JournalReader {
    pub(super) fn open(
        shared: Arc<JournalShared>,
        partition: u32,
        position: u64,
        worker: Thread,
    ) -> Result<JournalReader, SourceError> {
        let end = shared.tail_of(partition)?.log_end();
        if position > end {
            return Err(SourceError::Fatal(format!(
                "partition {partition} of the journal in {} ends at position {end}, and reading starts at position {position}: restore the journal from a backup, or move it away together with its checkpoints and outputs",
                shared.dir.display()
            )));
        }
        shared.check_not_trimmed(partition, position)?;
        let blocks = BlockDecoder::new().map_err(|error| SourceError::Fatal(error.to_string()))?;
        let records = JsonRecordDecoder::for_source(shared.decode);
        let (current, ahead, last) = (None, VecDeque::new(), None);
        Ok(JournalReader {
            shared,
            partition,
            position,
            worker,
            record_decoder: records,
            block_decoder: blocks,
            current,
            read_ahead: ahead,
            last_fingerprint: last,
        })
    }

    /// Opens the block that contains the position; false if there is none yet.
    fn open_next_block(&mut self) -> Result<bool, SourceError> {
        let block = match self.read_ahead.pop_front() {
            Some(block) => block,
            None => match self.shared.tail_of(self.partition)?.find_block(self.position, &self.worker) {
                TailLookup::Block(block) => block,
                TailLookup::OnDisk => {
                    let read =
                        self.shared.store.read_blocks(self.partition, self.position, &mut self.block_decoder);
                    self.read_ahead = read.map_err(|failure| {
                        // The block may have been trimmed in the meantime.
                        let removed = self.shared.check_not_trimmed(self.partition, self.position).err();
                        removed.unwrap_or_else(|| self.shared.unreadable_error(&failure))
                    })?;
                    let first = self.read_ahead.pop_front();
                    first.ok_or_else(|| self.damaged_error())?
                }
                TailLookup::NotYet => {
                    return match self.shared.failure.get() {
                        Some(failed) => Err(SourceError::Fatal(failed.to_string())),
                        None => Ok(false),
                    };
                }
            },
        };
        let mut offset = 0;
        for _ in block.first..self.position {
            offset = block.record_at(offset).ok_or_else(|| self.damaged_error())?.end;
        }
        self.current = Some(BlockReadCursor { block, offset });
        Ok(true)
    }

    #[cold]
    fn damaged_error(&self) -> SourceError {
        self.shared.unreadable_error(&StoreError::damaged_block(self.partition, self.position))
    }
}

impl Partition for JournalReader {
    fn poll(
        &mut self,
        limit: usize,
        until: u64,
        handler: &mut dyn RecordHandler,
    ) -> Result<PollResult, SourceError> {
        let mut handled = 0;
        let limit = limit.min(until.saturating_sub(self.position) as usize);
        while handled < limit && !handler.is_full() {
            let Some(cursor) = &mut self.current else {
                match self.open_next_block()? {
                    true => continue,
                    false => return Ok(PollResult { records: handled, next: NextPoll::OnUnpark }),
                }
            };
            let block = &*cursor.block;
            let position_of = |position| RecordPosition { position, arrived: Some(block.arrived) };
            let block_until = block.end().min(self.position.saturating_add((limit - handled) as u64));
            let mut last = None;
            while self.position < block_until && !handler.is_full() {
                let Some(range) = block.record_at(cursor.offset) else { return Err(self.damaged_error()) };
                cursor.offset = range.end;
                last = Some(range.clone());
                let (retried, raw) = match block.is_retried {
                    false => (None, block.record_bytes(range)),
                    true => match block.split_retried(range) {
                        Some((retried, raw)) => (Some(retried), raw),
                        None => return Err(self.damaged_error()),
                    },
                };
                let decoded = self.record_decoder.decode(raw);
                let decoded =
                    if retried.is_some() { decoded.and_then(Upsert::into_retried) } else { decoded };
                let outcome =
                    decoded.and_then(|upsert| handler.handle_upsert(position_of(self.position), &upsert));
                if let Err(refusal) = outcome {
                    let client = block.client_at(self.position);
                    let raw = RawRecord { retry: retried.as_ref(), client, ..RawRecord::from_value(raw) };
                    handler.handle_refusal(position_of(self.position), &refusal, &raw);
                }
                self.position += 1;
                handled += 1;
            }
            if let Some(range) = last {
                let position = self.position - 1;
                let digest = block.record_digest_of(self.partition, position, range);
                self.last_fingerprint = Some(Fingerprint { position, digest, leader_epoch: None });
            }
            if self.position == block.end() {
                self.current = None;
            }
        }
        Ok(PollResult { records: handled, next: NextPoll::Now })
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        self.last_fingerprint
    }

    fn end(&self) -> u64 {
        self.shared.tails[self.partition as usize].log_end()
    }
}
