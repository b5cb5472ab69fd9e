//! A partition as a worker reads it: out of memory where the worker keeps up, else from disk, block after block.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::Thread;

use super::Shared;
use super::block::{Block, Decoder};
use super::store::Failure;
use super::tail::Found;
use crate::codec::RecordDecoder;
use crate::model::{Fingerprint, Raw, Upsert};
use crate::sources::{Next, Partition, Place, Polled, SourceError, Take};

pub(super) struct Reader {
    shared: Arc<Shared>,
    partition: u32,
    /// Of the next record.
    position: u64,
    worker: Thread,
    records: RecordDecoder,
    blocks: Decoder,
    current: Option<Cursor>,
    ahead: VecDeque<Arc<Block>>,
    /// Of the last record that was given.
    last: Option<Fingerprint>,
}

/// Where in a block the next record begins.
struct Cursor {
    block: Arc<Block>,
    offset: usize,
}

impl Reader {
    pub(super) fn open(
        shared: Arc<Shared>,
        partition: u32,
        position: u64,
        worker: Thread,
    ) -> Result<Reader, SourceError> {
        let end = shared.tail(partition)?.end();
        if position > end {
            return Err(SourceError::Fatal(format!(
                "partition {partition} of the journal in {} ends at position {end}, before position {position}, from which it \
                 is to be read: restore the journal from a backup, or move it away together with what was made of it",
                shared.dir.display()
            )));
        }
        shared.check_begin(partition, position)?;
        let blocks = Decoder::new().map_err(|error| SourceError::Fatal(error.to_string()))?;
        let records = RecordDecoder::of_source(shared.decode);
        let (current, ahead, last) = (None, VecDeque::new(), None);
        Ok(Reader { shared, partition, position, worker, records, blocks, current, ahead, last })
    }

    /// Goes on to the block that holds the position: false where there is none yet.
    fn advance(&mut self) -> Result<bool, SourceError> {
        let block = match self.ahead.pop_front() {
            Some(block) => block,
            None => match self.shared.tail(self.partition)?.find(self.position, &self.worker) {
                Found::Block(block) => block,
                Found::OnDisk => {
                    let read = self.shared.store.read(self.partition, self.position, &mut self.blocks);
                    self.ahead = read.map_err(|failure| {
                        // It may have been removed just now.
                        let removed = self.shared.check_begin(self.partition, self.position).err();
                        removed.unwrap_or_else(|| self.shared.unreadable(&failure))
                    })?;
                    let first = self.ahead.pop_front();
                    first.ok_or_else(|| self.damaged())?
                }
                Found::Nothing => {
                    return match self.shared.failed.get() {
                        Some(failed) => Err(SourceError::Fatal(failed.to_string())),
                        None => Ok(false),
                    };
                }
            },
        };
        let mut offset = 0;
        for _ in block.first..self.position {
            offset = block.record_at(offset).ok_or_else(|| self.damaged())?.end;
        }
        self.current = Some(Cursor { block, offset });
        Ok(true)
    }

    #[cold]
    fn damaged(&self) -> SourceError {
        self.shared.unreadable(&Failure::damaged(self.partition, self.position))
    }
}

impl Partition for Reader {
    fn poll(&mut self, limit: usize, upto: u64, take: &mut dyn Take) -> Result<Polled, SourceError> {
        let mut given = 0;
        let limit = limit.min(upto.saturating_sub(self.position) as usize);
        while given < limit && !take.is_full() {
            let Some(cursor) = &mut self.current else {
                match self.advance()? {
                    true => continue,
                    false => return Ok(Polled { records: given, next: Next::Woken }),
                }
            };
            let block = &*cursor.block;
            let place = |position| Place { position, arrived: Some(block.arrived) };
            let upto = block.end().min(self.position.saturating_add((limit - given) as u64));
            let mut last = None;
            while self.position < upto && !take.is_full() {
                let Some(range) = block.record_at(cursor.offset) else { return Err(self.damaged()) };
                cursor.offset = range.end;
                last = Some(range.clone());
                let (retried, raw) = match block.retried {
                    false => (None, block.bytes(range)),
                    true => match block.split_retried(range) {
                        Some((retried, raw)) => (Some(retried), raw),
                        None => return Err(self.damaged()),
                    },
                };
                let decoded = self.records.decode(raw);
                let decoded = if retried.is_some() { decoded.and_then(Upsert::retried) } else { decoded };
                let taken = decoded.and_then(|upsert| take.upsert(place(self.position), &upsert));
                if let Err(refusal) = taken {
                    let client = block.client(self.position);
                    let raw = Raw { retried: retried.as_ref(), client, ..Raw::value(raw) };
                    take.refused(place(self.position), &refusal, &raw);
                }
                self.position += 1;
                given += 1;
            }
            if let Some(range) = last {
                let position = self.position - 1;
                let digest = block.digest_of(self.partition, position, range);
                self.last = Some(Fingerprint { position, digest, leader_epoch: None });
            }
            if self.position == block.end() {
                self.current = None;
            }
        }
        Ok(Polled { records: given, next: Next::Now })
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        self.last
    }

    fn end(&self) -> u64 {
        self.shared.tails[self.partition as usize].end()
    }
}
