//! The one thread that writes: all that waits becomes one commit.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use super::block::{self, Block, Encoder};
use super::marks::Marks;
use super::queue::{Append, Queue};
use super::stamps::Stamps;
use super::store::{Failure, caught};
use super::{NAME, Shared};
use crate::fault::{self, Retries};
use crate::model::{
    self, AppendError, AppendReport, Appended, EventTime, NewRecord, PartitionName, Reason, RecordPlace,
    Refusal,
};

/// Where a partition's records of one commit go on in a further block, so that no reader must hold much.
const BLOCK_BYTES: usize = 256 * 1024;
const SIZE_CHECK: Duration = Duration::from_secs(10);
/// The clock is looked at so often, also where nothing is appended.
const CLOCK_CHECK: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub queue: Arc<Queue>,
    pub marks: Marks,
    pub encoder: Encoder,
    pub stamps: Stamps,
    /// How far a posted reading may be dated after its stamp.
    pub max_ahead: model::Duration,
    pub size: SizeWarning,
}

impl Writer {
    /// Writes until the queue is closed and empty, or something fails.
    pub(super) fn run(mut self) {
        let mut next_check = Instant::now();
        while let Some(appends) = self.queue.take(CLOCK_CHECK) {
            let now = match self.stamps.now() {
                Ok(now) => now,
                Err(held) => {
                    appends.into_iter().for_each(|append| (append.done)(Err(held.clone())));
                    continue;
                }
            };
            let (appends, refused) = refuse_future(appends, now, self.max_ahead);
            if appends.is_empty() {
                continue;
            }
            let ends_before = self.marks.ends.clone();
            let written = caught(|| self.write(&appends, now));
            match written {
                Ok(blocks) => self.publish(blocks, appends, refused, ends_before),
                Err(failure) => return self.fail(&failure, appends),
            }
            if Instant::now() >= next_check {
                self.size.check(self.shared.store.disk_bytes(), &self.shared.dir);
                next_check = Instant::now() + SIZE_CHECK;
            }
        }
        if let Err(error) = self.marks.sync() {
            tracing::warn!("{}: {error}", self.shared.dir.display());
        }
    }

    fn write(&mut self, appends: &[Append], now: EventTime) -> Result<Vec<(u32, Block)>, Failure> {
        let mut parts: BTreeMap<u32, Vec<Block>> = BTreeMap::new();
        for record in appends.iter().flat_map(|append| &append.records) {
            let partition = partition_of(record, self.marks.partitions());
            let blocks = parts.entry(partition).or_default();
            let retried = record.retried.as_deref();
            let fits = |block: &Block| block.len() < BLOCK_BYTES && block.retried == retried.is_some();
            if !blocks.last().is_some_and(fits) {
                let first = blocks.last().map_or(self.marks.ends[partition as usize], Block::end);
                blocks.push(Block::new(first, now, retried.is_some()));
            }
            if let Some(block) = blocks.last_mut() {
                block.push(&record.bytes, retried);
                block.note_client(record.client);
            }
        }
        let mut stored = Vec::with_capacity(parts.len());
        let mut written = Vec::with_capacity(parts.len());
        for (partition, block) in
            parts.into_iter().flat_map(|(p, blocks)| blocks.into_iter().map(move |b| (p, b)))
        {
            let key = block::key(partition, block.first);
            let value = self.encoder.encode(&key, &block)?;
            stored.push((key, value));
            written.push((partition, block));
        }
        self.shared.store.commit(stored)?;
        for (partition, block) in &written {
            self.marks.ends[*partition as usize] = block.end();
        }
        self.write_marks()?;
        Ok(written)
    }

    /// Notes the ends. What is written is acknowledged only then, so a disk without room makes it wait, other than at the end.
    fn write_marks(&mut self) -> Result<(), Failure> {
        let mut retries = Retries::new("journal", "note the ends of the journal", "posted readings wait");
        loop {
            match self.marks.write() {
                Ok(()) => {
                    retries.succeeded();
                    return Ok(());
                }
                Err(error) if fault::is_passing(&error) && !self.queue.is_closed() => {
                    let dir = &self.shared.dir;
                    let remedy = fault::remedy(&error, dir);
                    retries.failed(&format_args!("{}: {error}: {remedy}", dir.display()));
                    thread::sleep(retries.delay());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Shows the readers what is durable now, then tells those who have appended it.
    fn publish(
        &self,
        blocks: Vec<(u32, Block)>,
        appends: Vec<Append>,
        refused: Vec<RefusedRecords>,
        mut ends: Vec<u64>,
    ) {
        let partitions: Vec<u32> = blocks.iter().map(|(partition, _)| *partition).collect();
        let whole = self.shared.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        for (partition, block) in blocks {
            self.shared.tails[partition as usize].push(block);
        }
        drop(whole);
        for partition in partitions {
            self.shared.tails[partition as usize].wake();
        }
        for (Append { records, done }, refused) in appends.into_iter().zip(refused) {
            done(Ok(AppendReport { positions: appended(&records, &mut ends), refused }));
        }
    }

    /// After a failed write nothing is known of the file: nothing may be acknowledged any more.
    #[cold]
    fn fail(&mut self, failure: &Failure, appends: Vec<Append>) {
        let dir = self.shared.dir.display();
        let line: Arc<str> = format!(
            "the journal in {dir} cannot be written ({failure}): {}, then start again; what was acknowledged is there",
            failure.remedy(&self.shared.dir)
        )
        .into();
        let reason = AppendError::Failed(self.shared.failed.get_or_init(|| line).clone());
        self.queue.close(reason.clone());
        self.shared.tails.iter().for_each(|tail| tail.wake());
        let left = std::iter::from_fn(|| self.queue.take(Duration::ZERO)).flatten();
        for append in appends.into_iter().chain(left) {
            (append.done)(Err(reason.clone()));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if thread::panicking() {
            self.fail(&Failure::Damaged("its writer has panicked".into()), Vec::new());
        }
    }
}

/// Where an append has ended in each of its partitions; `ends` are those before it, then those behind it.
fn appended(records: &[NewRecord], ends: &mut [u64]) -> Vec<Appended> {
    let mut touched: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    for record in records {
        let partition = partition_of(record, ends.len() as u32);
        let end = &mut ends[partition as usize];
        touched.entry(partition).or_insert((*end, *end)).1 = *end + 1;
        *end += 1;
    }
    let source: Arc<str> = NAME.into();
    let name = |partition| PartitionName { source: source.clone(), partition };
    touched
        .into_iter()
        .map(|(partition, (first, end))| Appended { partition: name(partition), first, end })
        .collect()
}

/// The records of one append that are not written.
type RefusedRecords = Vec<(u32, Refusal)>;

/// Takes posted readings out that are dated too far after the stamp that they would get: admission would refuse them. Appends of which
/// nothing is left are answered.
fn refuse_future(
    appends: Vec<Append>,
    now: EventTime,
    max_ahead: model::Duration,
) -> (Vec<Append>, Vec<RefusedRecords>) {
    let is_of_future = |record: &NewRecord| {
        record
            .reading_at
            .filter(|at| record.retried.is_none() && at.millis() - now.millis() > max_ahead.millis())
    };
    let (mut left, mut all_refused) = (Vec::with_capacity(appends.len()), Vec::with_capacity(appends.len()));
    for Append { mut records, done } in appends {
        let (mut refused, mut number) = (RefusedRecords::new(), 0);
        records.retain(|record| {
            let at = is_of_future(record);
            refused.extend(at.map(|at| (number, in_the_future(at, now, max_ahead))));
            number += 1;
            at.is_none()
        });
        if records.is_empty() {
            done(Ok(AppendReport { positions: Vec::new(), refused }));
        } else {
            left.push(Append { records, done });
            all_refused.push(refused);
        }
    }
    (left, all_refused)
}

#[cold]
fn in_the_future(at: EventTime, now: EventTime, max_ahead: model::Duration) -> Refusal {
    let detail = format!("reading_at {at} is more than {max_ahead} after its arrival at {now}");
    Refusal::new(Reason::InTheFuture, detail)
}

fn partition_of(record: &NewRecord, partitions: u32) -> u32 {
    // What cannot be decoded says no city: it goes back to where it was.
    let origin = record.retried.as_ref().and_then(|retried| retried.origin.parse::<RecordPlace>().ok());
    if let Some(origin) = origin.filter(|origin| &*origin.source == NAME && origin.partition < partitions) {
        return origin.partition;
    }
    record.city.as_ref().map_or(0, |city| partition_of_city(city, partitions))
}

/// The partition of a city's records.
pub fn partition_of_city(city: &str, partitions: u32) -> u32 {
    (xxh3_64(city.as_bytes()) % u64::from(partitions)) as u32
}

/// Says once that the journal has become large, and again each time it has doubled.
pub(super) struct SizeWarning {
    pub next: u64,
}

impl SizeWarning {
    pub(super) fn check(&mut self, bytes: u64, dir: &std::path::Path) {
        if bytes < self.next || self.next == 0 {
            return;
        }
        tracing::warn!(
            bytes,
            "the journal in {} holds {} MB: without checkpoints it keeps every reading, and takes as long to replay at a start",
            dir.display(),
            bytes / 1_000_000,
        );
        self.next = bytes.saturating_mul(2);
    }
}
