//! Reads one partition of a log for a worker: decodes records, and admits arrivals.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::refusals::Refusals;
use crate::admission::{Admission, AdmissionRules};
use crate::dataflow::rolling::serving::ProgressReport;
use crate::kafka::dead_letter_headers;
use crate::model::{
    Arrival, BatchBuilder, CityIntroduction, Fingerprint, LogPosition, PartitionIndex, PartitionName,
    PartitionProgress, RawRecord, Refusal, Shard, Upsert,
};
use crate::sinks::postgres::dead_letter_row::{RefusedRecord, render_dead_letter};
use crate::sources::{NextPoll, Partition, PollResult, RecordHandler, RecordPosition, Source, SourceError};

/// The first and the longest delay before a partition is polled again after an error.
pub const FIRST_RETRY: Duration = Duration::from_millis(100);
pub const MAX_RETRY: Duration = Duration::from_secs(10);
/// The delay before a reader is polled again while there is no space for dead letters.
const DLQ_FULL_RETRY: Duration = Duration::from_millis(100);

/// One partition of one source.
#[derive(Clone)]
pub struct LogPartition {
    pub index: PartitionIndex,
    pub name: PartitionName,
    pub source: Arc<dyn Source>,
    pub start: LogPosition,
    /// Whether every process can read it, not only process 0.
    pub shared: bool,
    /// The topics of its dead letters. Without them they are written to a file, if there is one.
    pub dead_letters: Option<DeadLetterTargets>,
    /// The shards of PostgreSQL that have its dead letters as rows, too.
    pub dead_letter_rows: Vec<Shard>,
}

/// The destination of a partition's dead letters in a durable sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterTargets {
    /// The topic of the partition, by its name in positions.
    pub topic: Arc<str>,
    /// The progress topic that records them.
    pub progress: Arc<str>,
    /// Shard, number of the topic, and partition: for records refused for the first time, and for
    /// retried ones.
    pub targets: [(Shard, u8, u32); 2],
}

/// The epoch that a poll adds to.
pub struct EpochInput<'a> {
    pub cities: &'a mut Vec<CityIntroduction>,
    pub arrivals: &'a mut Vec<Arrival>,
    pub dead_letters: &'a mut BatchBuilder,
    /// Whether arrivals have the times at which their log appended them.
    pub with_arrival_times: bool,
    /// Approximate number of rows that the arrivals may change.
    pub rows: &'a mut usize,
    pub refusals: &'a Refusals,
}

impl EpochInput<'_> {
    fn is_full(&self) -> bool {
        self.arrivals.len() >= MAX_EPOCH_ARRIVALS || *self.rows >= MAX_EPOCH_ROWS
    }
}

/// The progress of a reader, before its epoch is known.
#[derive(Clone, Copy, Debug)]
pub struct ReaderProgress {
    progress: Option<PartitionProgress>,
    caught_up: bool,
}

impl ReaderProgress {
    /// A report without a partition: it only marks the epoch as in use.
    pub fn none() -> ReaderProgress {
        ReaderProgress { progress: None, caught_up: false }
    }

    pub fn at(self, epoch: u64) -> ProgressReport {
        let ReaderProgress { progress, caught_up } = self;
        ProgressReport { epoch, progress, caught_up }
    }
}

/// When a reader is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PollTime {
    Next(NextPoll),
    /// After this many consecutive errors.
    Retry {
        at: Instant,
        faults: u32,
    },
}

/// The number of arrivals, or of rows that they may change, at which an epoch is sent at once. An
/// epoch is the smallest unit that a sink writes, and old corrections change very many rows.
pub const MAX_EPOCH_ARRIVALS: usize = 32 * 1024;
pub const MAX_EPOCH_ROWS: usize = 256 * 1024;

pub struct PartitionReader {
    index: PartitionIndex,
    name: PartitionName,
    partition: Box<dyn Partition>,
    start: u64,
    dead_letters: Option<DeadLetterTargets>,
    dead_letter_rows: Vec<Shard>,
    admission: Admission,
    position: u64,
    /// Fingerprint of the last record before the position, read by this run or recorded by an
    /// earlier one.
    before: Option<Fingerprint>,
    /// The position that it must not read beyond now.
    held_at: u64,
    /// The log end at the start.
    first_end: u64,
    caught_up: bool,
    due: PollTime,
    /// The last report.
    last_report: Option<(u64, bool, u64)>,
}

impl PartitionReader {
    /// Opens the partition for the calling thread. `resume` restores a new admission.
    pub fn open(
        log: &LogPartition,
        rules: AdmissionRules,
        resume: impl FnOnce(&mut Admission),
    ) -> Result<PartitionReader, SourceError> {
        let LogPartition { index, name, source, start, dead_letters, dead_letter_rows, .. } = log;
        let partition = source.open_partition(name.partition, start.position, thread::current())?;
        let first_end = partition.end();
        let mut admission = Admission::new(index.0, rules);
        resume(&mut admission);
        Ok(PartitionReader {
            index: *index,
            name: name.clone(),
            partition,
            admission,
            start: start.position,
            dead_letters: dead_letters.clone(),
            dead_letter_rows: dead_letter_rows.clone(),
            position: start.position,
            before: start.before,
            held_at: u64::MAX,
            first_end,
            caught_up: first_end <= start.position,
            due: PollTime::Next(NextPoll::Now),
            last_report: None,
        })
    }

    pub fn index(&self) -> PartitionIndex {
        self.index
    }

    pub fn start(&self) -> u64 {
        self.start
    }

    /// Reads at most `limit` records before the position `until`, if a poll is due.
    pub fn poll(
        &mut self,
        now: Instant,
        limit: usize,
        until: u64,
        into: EpochInput<'_>,
    ) -> Result<(), String> {
        self.held_at = until;
        if self.position >= until {
            return Ok(());
        }
        if !matches!(self.due, PollTime::Next(NextPoll::OnUnpark))
            && self.due(now).is_none_or(|due| due > now)
        {
            return Ok(());
        }
        if self.dead_letters.is_none() && into.refusals.is_full() {
            self.due = PollTime::Next(NextPoll::At(now + DLQ_FULL_RETRY));
            return Ok(());
        }
        let PartitionReader { admission, name, dead_letters, dead_letter_rows, position, .. } = self;
        let dead_letters = dead_letters.as_ref();
        let mut admitting =
            AdmissionHandler { admission, name, dead_letters, dead_letter_rows, into, position };
        match self.partition.poll(limit, until, &mut admitting) {
            Ok(PollResult { next: NextPoll::UntilReached, .. }) => {
                self.position = until;
                self.due = PollTime::Next(NextPoll::Now);
            }
            Ok(polled) => self.due = PollTime::Next(polled.next),
            Err(SourceError::Transient(error)) => {
                let faults = if let PollTime::Retry { faults, .. } = self.due { faults + 1 } else { 0 };
                if faults == 0 {
                    let PartitionReader { name, position, .. } = self;
                    tracing::warn!(source = %name.source, partition = name.partition, position, error, "a partition cannot be read; it is retried");
                }
                self.due = PollTime::Retry {
                    at: now + (FIRST_RETRY * 2u32.pow(faults.min(10))).min(MAX_RETRY),
                    faults,
                };
            }
            Err(error) => return Err(read_failure(&self.name, &error)),
        }
        if let Some(position) = self.partition.position() {
            self.position = self.position.max(position.min(until));
        }
        self.caught_up |= self.position >= self.first_end || self.position >= self.partition.end();
        Ok(())
    }

    /// When the next poll is due if nothing wakes the reader.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        if self.position >= self.held_at {
            return None;
        }
        match self.due {
            PollTime::Next(NextPoll::Now | NextPoll::UntilReached) => Some(now),
            PollTime::Next(NextPoll::At(at)) | PollTime::Retry { at, .. } => Some(at),
            PollTime::Next(NextPoll::OnUnpark | NextPoll::EndOfLog) => None,
        }
    }

    pub fn caught_up(&self) -> bool {
        self.caught_up
    }

    /// The progress of the reader, if it has changed since the last call.
    pub fn take_progress(&mut self) -> Option<ReaderProgress> {
        let withheld = self.partition.withheld();
        let news = Some((self.position, self.caught_up, withheld));
        if self.last_report == news {
            return None;
        }
        self.last_report = news;
        let end = self.partition.end();
        // A generator's end is not known.
        let end = if end == u64::MAX { self.position } else { end.saturating_add(withheld) };
        self.before = self.partition.fingerprint().or(self.before);
        let before = self.before;
        let progress = PartitionProgress {
            partition: self.index,
            applied_until: self.position,
            log_end: end,
            withheld,
            before,
            city_count: self.admission.city_count() as u32,
        };
        Some(ReaderProgress { progress: Some(progress), caught_up: self.caught_up })
    }
}

pub fn read_failure(name: &PartitionName, error: &SourceError) -> String {
    format!("source {}, partition {}: {error}", name.source, name.partition)
}

/// Admits the records of a partition.
struct AdmissionHandler<'a> {
    admission: &'a mut Admission,
    name: &'a PartitionName,
    dead_letters: Option<&'a DeadLetterTargets>,
    dead_letter_rows: &'a [Shard],
    into: EpochInput<'a>,
    /// The position behind the last record.
    position: &'a mut u64,
}

impl RecordHandler for AdmissionHandler<'_> {
    #[inline]
    fn handle_upsert(&mut self, record_position: RecordPosition, upsert: &Upsert<'_>) -> Result<(), Refusal> {
        *self.position = record_position.position + 1;
        let admitted = self.admission.admit(upsert, record_position.arrived)?;
        *self.into.rows += admitted.estimated_rows as usize;
        if admitted.is_new {
            self.into.cities.push(admitted.introduction(upsert.city));
        }
        let RecordPosition { position, arrived } = record_position;
        let arrived = arrived.filter(|_| self.into.with_arrival_times);
        self.into.arrivals.push(admitted.arrival(upsert, position).with_arrival_time(arrived));
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.into.is_full() || self.dead_letters.is_none() && self.into.refusals.is_full()
    }

    fn handle_refusal(&mut self, record_position: RecordPosition, refusal: &Refusal, raw: &RawRecord<'_>) {
        *self.position = record_position.position + 1;
        self.into.refusals.count(refusal);
        for shard in self.dead_letter_rows {
            let RecordPosition { position, arrived } = record_position;
            let partition = self.name;
            let record = RefusedRecord { partition, position, arrived_at: arrived, refusal, raw: *raw };
            render_dead_letter(&record, *shard, self.into.dead_letters);
        }
        match self.dead_letters {
            Some(targets) => self.write_dead_letter(targets, record_position, refusal, raw),
            None => self.into.refusals.write(self.name, record_position, refusal, raw),
        }
    }
}

impl AdmissionHandler<'_> {
    /// Writes a dead letter as a record of its topic: the exact bytes, with metadata in headers.
    #[cold]
    fn write_dead_letter(
        &mut self,
        targets: &DeadLetterTargets,
        record_position: RecordPosition,
        refusal: &Refusal,
        raw: &RawRecord<'_>,
    ) {
        let position = format!("{}/{}/{}", targets.topic, self.name.partition, record_position.position);
        let (shard, topic, partition) = targets.targets[usize::from(raw.retry.is_some())];
        let mut draft = self.into.dead_letters.begin_undated_record(shard, topic, partition);
        if let Some(key) = raw.key {
            draft.buffer().extend_from_slice(key);
            draft.end_key();
        }
        if let Some(value) = raw.value {
            draft.buffer().extend_from_slice(value);
            draft.end_value();
        }
        let (origin, attempt, first_seen) = match raw.retry {
            Some(retried) => (&*retried.origin, retried.attempt, retried.first_seen),
            None => (&*position, 0, record_position.arrived),
        };
        draft.push_header(dead_letter_headers::POSITION, position.as_bytes());
        draft.push_header(dead_letter_headers::REASON, refusal.reason.code().as_bytes());
        draft.push_header(dead_letter_headers::DETAIL, refusal.detail.as_bytes());
        draft.push_header(dead_letter_headers::PROGRESS, targets.progress.as_bytes());
        draft.push_header(dead_letter_headers::ORIGIN, origin.as_bytes());
        draft.push_header(dead_letter_headers::ATTEMPT, attempt.to_string().as_bytes());
        if let Some(first_seen) = first_seen {
            draft.push_header(dead_letter_headers::FIRST_SEEN, first_seen.to_string().as_bytes());
        }
    }
}
