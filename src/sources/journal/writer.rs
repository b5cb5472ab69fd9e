//! The writer thread of a journal: each commit has all appends that wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use super::acked_ends::AckedEnds;
use super::append_queue::{AppendQueue, QueuedAppend};
use super::arrival_clock::ArrivalClock;
use super::block::{self, BlockEncoder, JournalBlock};
use super::block_store::catch_store_panics;
use super::plan::SOURCE_NAME;
use super::shared::JournalShared;
use super::store_error::StoreError;
use crate::fault::{self, RetryBackoff};
use crate::model::{
    self, AppendError, AppendReport, AppendedRange, EventTime, NewRecord, PartitionName, Reason,
    RecordAddress, Refusal,
};

/// The size at which the records of a commit continue in a further block, so that readers need
/// little memory.
const MAX_BLOCK_BYTES: usize = 256 * 1024;
const SIZE_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How often the clock is checked, even if nothing is appended.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct JournalWriter {
    pub shared: Arc<JournalShared>,
    pub queue: Arc<AppendQueue>,
    pub acked_ends: AckedEnds,
    pub encoder: BlockEncoder,
    pub arrival_clock: ArrivalClock,
    /// How far the time of a posted reading may be after its stamp.
    pub max_ahead: model::Millis,
    pub size_warning: SizeWarning,
}

impl JournalWriter {
    /// Writes until the queue is closed and empty, or a write fails.
    pub(super) fn run(mut self) {
        let mut next_check = Instant::now();
        while let Some(appends) = self.queue.take_appends(CLOCK_CHECK_INTERVAL) {
            let now = match self.arrival_clock.stamp_now() {
                Ok(now) => now,
                Err(held) => {
                    appends.into_iter().for_each(|append| (append.acknowledge)(Err(held.clone())));
                    continue;
                }
            };
            let (appends, refused) = refuse_future(appends, now, self.max_ahead);
            if appends.is_empty() {
                continue;
            }
            let ends_before = self.acked_ends.ends.clone();
            let written = catch_store_panics(|| self.write_appends(&appends, now));
            match written {
                Ok(blocks) => self.publish_blocks(blocks, appends, refused, ends_before),
                Err(failure) => return self.fail_all(&failure, appends),
            }
            if Instant::now() >= next_check {
                self.size_warning.warn_if_large(self.shared.store.disk_bytes(), &self.shared.dir);
                next_check = Instant::now() + SIZE_CHECK_INTERVAL;
            }
        }
        if let Err(error) = self.acked_ends.sync_file() {
            tracing::warn!("{}: {error}", self.shared.dir.display());
        }
    }

    fn write_appends(
        &mut self,
        appends: &[QueuedAppend],
        now: EventTime,
    ) -> Result<Vec<(u32, JournalBlock)>, StoreError> {
        let mut parts: BTreeMap<u32, Vec<JournalBlock>> = BTreeMap::new();
        for record in appends.iter().flat_map(|append| &append.records) {
            let partition = partition_of(record, self.acked_ends.partition_count());
            let blocks = parts.entry(partition).or_default();
            let retried = record.retry.as_deref();
            let fits =
                |block: &JournalBlock| block.len() < MAX_BLOCK_BYTES && block.is_retried == retried.is_some();
            if !blocks.last().is_some_and(fits) {
                let first = blocks.last().map_or(self.acked_ends.ends[partition as usize], JournalBlock::end);
                blocks.push(JournalBlock::new(first, now, retried.is_some()));
            }
            if let Some(block) = blocks.last_mut() {
                block.push(&record.bytes, retried);
                block.push_client(record.client);
            }
        }
        let mut stored = Vec::with_capacity(parts.len());
        let mut written = Vec::with_capacity(parts.len());
        for (partition, block) in
            parts.into_iter().flat_map(|(p, blocks)| blocks.into_iter().map(move |b| (p, b)))
        {
            let key = block::block_key(partition, block.first);
            let value = self.encoder.encode(&key, &block)?;
            stored.push((key, value));
            written.push((partition, block));
        }
        self.shared.store.commit_blocks(stored)?;
        for (partition, block) in &written {
            self.acked_ends.ends[*partition as usize] = block.end();
        }
        self.write_acked_ends()?;
        Ok(written)
    }

    /// Saves the acknowledged ends. Appends are acknowledged only after that, so this waits while
    /// the disk is full, unless the journal is closing.
    fn write_acked_ends(&mut self) -> Result<(), StoreError> {
        let mut retries =
            RetryBackoff::new("journal", "record the ends of the journal", "posted readings wait");
        loop {
            match self.acked_ends.write_ends() {
                Ok(()) => {
                    retries.record_success();
                    return Ok(());
                }
                Err(error) if fault::is_transient(&error) && !self.queue.is_closed() => {
                    let dir = &self.shared.dir;
                    let remedy = fault::remedy_for(&error, dir);
                    retries.record_failure(&format_args!("{}: {error}: {remedy}", dir.display()));
                    thread::sleep(retries.remaining_delay());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Publishes durable blocks to the readers, then calls back those who have appended them.
    fn publish_blocks(
        &self,
        blocks: Vec<(u32, JournalBlock)>,
        appends: Vec<QueuedAppend>,
        refused: Vec<RefusedRecords>,
        mut ends: Vec<u64>,
    ) {
        let partitions: Vec<u32> = blocks.iter().map(|(partition, _)| *partition).collect();
        let whole = self.shared.publish_lock.lock();
        for (partition, block) in blocks {
            self.shared.tails[partition as usize].push_block(block);
        }
        drop(whole);
        for partition in partitions {
            self.shared.tails[partition as usize].wake_readers();
        }
        for (QueuedAppend { records, acknowledge: done }, refused) in appends.into_iter().zip(refused) {
            done(Ok(AppendReport { ranges: append_ranges(&records, &mut ends), refusals: refused }));
        }
    }

    /// Fails all appends. After a failed write the state of the file is unknown, so nothing may be
    /// acknowledged any more.
    #[cold]
    fn fail_all(&mut self, failure: &StoreError, appends: Vec<QueuedAppend>) {
        let dir = self.shared.dir.display();
        let line: Arc<str> = format!(
            "the journal in {dir} cannot be written ({failure}): {}, then start again; acknowledged readings are durable",
            failure.remedy(&self.shared.dir)
        )
        .into();
        let reason = AppendError::Failed(self.shared.failure.get_or_init(|| line).clone());
        self.queue.close(reason.clone());
        self.shared.tails.iter().for_each(|tail| tail.wake_readers());
        let queued = std::iter::from_fn(|| self.queue.take_appends(Duration::ZERO)).flatten();
        for append in appends.into_iter().chain(queued) {
            (append.acknowledge)(Err(reason.clone()));
        }
    }
}

impl Drop for JournalWriter {
    fn drop(&mut self) {
        if thread::panicking() {
            self.fail_all(&StoreError::Damaged("its writer has panicked".into()), Vec::new());
        }
    }
}

/// Returns the range of an append in each of its partitions. Advances `ends` from before the append
/// to behind it.
fn append_ranges(records: &[NewRecord], ends: &mut [u64]) -> Vec<AppendedRange> {
    let mut touched: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    for record in records {
        let partition = partition_of(record, ends.len() as u32);
        let end = &mut ends[partition as usize];
        touched.entry(partition).or_insert((*end, *end)).1 = *end + 1;
        *end += 1;
    }
    let source: Arc<str> = SOURCE_NAME.into();
    let name = |partition| PartitionName { source: source.clone(), partition };
    touched
        .into_iter()
        .map(|(partition, (first, end))| AppendedRange { partition: name(partition), first, end })
        .collect()
}

/// The records of one append that are not written, by their number in it.
type RefusedRecords = Vec<(u32, Refusal)>;

/// Removes posted readings that are dated too far after their stamp: admission would refuse them.
/// Acknowledges the appends that are then empty.
fn refuse_future(
    appends: Vec<QueuedAppend>,
    now: EventTime,
    max_ahead: model::Millis,
) -> (Vec<QueuedAppend>, Vec<RefusedRecords>) {
    let is_of_future = |record: &NewRecord| {
        record
            .reading_at
            .filter(|at| record.retry.is_none() && at.millis() - now.millis() > max_ahead.millis())
    };
    let (mut remaining, mut all_refused) =
        (Vec::with_capacity(appends.len()), Vec::with_capacity(appends.len()));
    for QueuedAppend { mut records, acknowledge: done } in appends {
        let (mut refused, mut number) = (RefusedRecords::new(), 0);
        records.retain(|record| {
            let at = is_of_future(record);
            refused.extend(at.map(|at| (number, future_refusal(at, now, max_ahead))));
            number += 1;
            at.is_none()
        });
        if records.is_empty() {
            done(Ok(AppendReport { ranges: Vec::new(), refusals: refused }));
        } else {
            remaining.push(QueuedAppend { records, acknowledge: done });
            all_refused.push(refused);
        }
    }
    (remaining, all_refused)
}

#[cold]
fn future_refusal(at: EventTime, now: EventTime, max_ahead: model::Millis) -> Refusal {
    let detail = format!("reading_at {at} is more than {max_ahead} after its arrival at {now}");
    Refusal::new(Reason::InTheFuture, detail)
}

fn partition_of(record: &NewRecord, partitions: u32) -> u32 {
    // A retried dead letter returns to its original partition: a record that cannot be decoded has
    // no city.
    let origin = record.retry.as_ref().and_then(|retried| retried.origin.parse::<RecordAddress>().ok());
    if let Some(origin) =
        origin.filter(|origin| &*origin.source == SOURCE_NAME && origin.partition < partitions)
    {
        return origin.partition;
    }
    record.city.as_ref().map_or(0, |city| partition_of_city(city, partitions))
}

/// The partition of a city's records.
pub fn partition_of_city(city: &str, partitions: u32) -> u32 {
    (xxh3_64(city.as_bytes()) % u64::from(partitions)) as u32
}

/// Logs a warning when the journal has become large, and again each time it has doubled.
pub(super) struct SizeWarning {
    pub next_warn_bytes: u64,
}

impl SizeWarning {
    pub(super) fn warn_if_large(&mut self, bytes: u64, dir: &std::path::Path) {
        if bytes < self.next_warn_bytes || self.next_warn_bytes == 0 {
            return;
        }
        tracing::warn!(
            bytes,
            "the journal in {} holds {} MB: without checkpoints it keeps every reading, and each start replays all of it; set checkpoints.url",
            dir.display(),
            bytes / 1_000_000,
        );
        self.next_warn_bytes = bytes.saturating_mul(2);
    }
}
