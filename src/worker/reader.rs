//! A partition of a log as a worker reads it: decoded records in, admitted arrivals out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration as Wait, Instant};

use crate::admission::{Admission, AdmissionRules};
use crate::dataflow::rolling::told::Read;
use crate::kafka::letter;
use crate::model::{
    Arrival, CityName, ClientId, Fingerprint, Hold, HoldCause, LogPosition, Parcels, PartitionName, Progress,
    Raw, Reason, Refusal, Shard, Slot, Upsert,
};
use crate::sinks::dead_letters::{ClientShares, DeadLetters, DeadLettersError};
use crate::sources::{Next, Partition, Place, Polled, Source, SourceError, Take};

/// How long after a fault a partition is polled again, at first and at most.
pub const RETRY: Wait = Wait::from_millis(100);
pub const LONGEST_RETRY: Wait = Wait::from_secs(10);
/// Until there may be room for dead letters: when a reader looks again, and when a client may.
const ROOM_RETRY: Wait = Wait::from_millis(100);
const ROOM_RETRY_S: u32 = 30;

/// One partition of one source.
#[derive(Clone)]
pub struct LogPartition {
    pub slot: Slot,
    pub name: PartitionName,
    pub source: Arc<dyn Source>,
    /// Where it is read from.
    pub start: LogPosition,
    /// Every process can read it, not the first one alone.
    pub shared: bool,
    /// The topics of its dead letters; without them they are written to the file, where there is one.
    pub letters: Option<LetterPlaces>,
}

/// Where in an outlet the dead letters of a partition go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterPlaces {
    /// As positions call the topic that it is a partition of.
    pub topic: Arc<str>,
    /// The progress topic that knows of them.
    pub progress: Arc<str>,
    /// Shard, number of the topic, and partition: of letters that come for the first time, and of those that came again.
    pub places: [(Shard, u8, u32); 2],
}

/// What a poll adds to.
pub struct Gathered<'a> {
    pub cities: &'a mut Vec<CityName>,
    pub arrivals: &'a mut Vec<Arrival>,
    pub letters: &'a mut Parcels,
    /// About how many rows the arrivals may change.
    pub rows: &'a mut usize,
    pub refusals: &'a Refusals,
}

/// What becomes of records that are refused.
pub struct Refusals {
    /// In the order of [`Reason::ALL`].
    counts: [AtomicU64; Reason::ALL.len()],
    /// Those of the other processes.
    others: [AtomicU64; Reason::ALL.len()],
    letters: Option<Mutex<DeadLetters>>,
    /// Letters could not be written: partitions are not read until they are.
    waits: AtomicBool,
    /// There is no room for more letters.
    is_full: AtomicBool,
    /// What there is to do about that, and what clients may cause: known without waiting for who writes letters.
    full: Arc<str>,
    shares: Option<ClientShares>,
}

impl Refusals {
    /// Without a place for dead letters they are only counted.
    pub fn new(letters: Option<DeadLetters>) -> Refusals {
        let [counts, others] = [(), ()].map(|()| std::array::from_fn(|_| AtomicU64::new(0)));
        let full = letters.as_ref().map(DeadLetters::why_full).unwrap_or_default().into();
        Refusals {
            counts,
            others,
            shares: letters.as_ref().map(DeadLetters::shares),
            letters: letters.map(Mutex::new),
            is_full: AtomicBool::new(false),
            full,
            waits: AtomicBool::new(false),
        }
    }

    /// Those that there are, since the start, at all processes.
    pub fn counts(&self) -> Vec<(Reason, u64)> {
        let all = self.counts.iter().zip(&self.others);
        let counts = all.map(|(own, others)| own.load(Ordering::Relaxed) + others.load(Ordering::Relaxed));
        Reason::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// Those of this process, by number of the reason.
    pub fn own(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Takes those of the other processes.
    pub fn set_others(&self, counts: &[u64]) {
        self.others.iter().zip(counts).for_each(|(others, count)| others.store(*count, Ordering::Relaxed));
    }

    /// Whether letters wait in memory that could not be written, so that no more of them may come.
    pub fn must_wait(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Makes the letters durable, those included that could not be written before. Where it fails, no partition is read
    /// until it has succeeded.
    pub fn sync(&self) -> Result<(), DeadLettersError> {
        let synced = self.sync_all();
        self.waits.store(synced.is_err(), Ordering::Relaxed);
        synced
    }

    fn sync_all(&self) -> Result<(), DeadLettersError> {
        let Some(letters) = &self.letters else { return Ok(()) };
        let mut locked = letters.lock().unwrap_or_else(PoisonError::into_inner);
        let flushed = locked.flushed()?;
        self.is_full.store(locked.is_full(), Ordering::Relaxed);
        drop(locked);
        // Without the lock: workers must not wait for the disk.
        for (path, file) in flushed {
            file.sync_data().map_err(|source| DeadLettersError::Sync { path, source })?;
        }
        Ok(())
    }

    /// Whether there is no room for more letters in files.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Why a client may not send now, or none may.
    pub fn hold(&self, client: Option<ClientId>) -> Option<Hold> {
        if self.is_full() {
            let (cause, detail) = (HoldCause::DeadLettersFull, self.full.clone());
            return Some(Hold { cause, detail, retry_after_s: ROOM_RETRY_S });
        }
        let wait = self.shares.as_ref()?.wait(client?)?;
        let detail = "too many of the readings that you have sent within a day were refused after they were taken (dead letters): send \
                      readings of the present, dated right";
        let retry_after_s = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX);
        Some(Hold { cause: HoldCause::DeadLetterShare, detail: detail.into(), retry_after_s })
    }

    fn count(&self, refusal: &Refusal) {
        if let Some(place) = Reason::ALL.iter().position(|reason| *reason == refusal.reason) {
            self.counts[place].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write(&self, name: &PartitionName, place: Place, refusal: &Refusal, raw: &Raw<'_>) {
        if let Some(letters) = &self.letters {
            let Place { position, arrived } = place;
            let mut letters = letters.lock().unwrap_or_else(PoisonError::into_inner);
            let written = letters.write(name, position, arrived, refusal, raw);
            self.is_full.store(letters.is_full(), Ordering::Relaxed);
            if written.is_err() {
                // It is in memory; the next sync tries again, and says what is wrong.
                self.waits.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Gathered<'_> {
    fn is_full(&self) -> bool {
        self.arrivals.len() >= FULL || *self.rows >= FULL_ROWS
    }
}

/// When a reader is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Next(Next),
    /// After a fault, which has come so often in a row.
    Retry {
        at: Instant,
        faults: u32,
    },
}

/// Arrivals, or rows that they may change, after which an epoch is sent at once: one epoch is the least that a sink writes at a
/// time, and old corrections change very many rows.
pub const FULL: usize = 32 * 1024;
pub const FULL_ROWS: usize = 256 * 1024;

pub struct Reader {
    slot: Slot,
    name: PartitionName,
    partition: Box<dyn Partition>,
    start: u64,
    letters: Option<LetterPlaces>,
    admission: Admission,
    position: u64,
    /// The last record before it, of this run or as it was recorded.
    before: Option<Fingerprint>,
    /// It waits for the others there.
    held_at: u64,
    /// The log's end at the start.
    first_end: u64,
    caught_up: bool,
    due: Due,
    /// What was said last.
    said: Option<(u64, bool, u64)>,
}

impl Reader {
    /// Opens the partition for the calling thread, with the admission that `resume` makes of a new one.
    pub fn open(
        log: &LogPartition,
        rules: AdmissionRules,
        resume: impl FnOnce(&mut Admission),
    ) -> Result<Reader, SourceError> {
        let LogPartition { slot, name, source, start, letters, .. } = log;
        let partition = source.open(name.partition, start.position, thread::current())?;
        let first_end = partition.end();
        let mut admission = Admission::new(slot.0, rules);
        resume(&mut admission);
        Ok(Reader {
            slot: *slot,
            name: name.clone(),
            partition,
            admission,
            start: start.position,
            letters: letters.clone(),
            position: start.position,
            before: start.before,
            held_at: u64::MAX,
            first_end,
            caught_up: first_end <= start.position,
            due: Due::Next(Next::Now),
            said: None,
        })
    }

    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// Where it was opened.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Takes what is there, at most `limit` records and none from `upto` on, if it is time to.
    pub fn poll(&mut self, now: Instant, limit: usize, upto: u64, into: Gathered<'_>) -> Result<(), String> {
        self.held_at = upto;
        if self.position >= upto {
            return Ok(());
        }
        if !matches!(self.due, Due::Next(Next::Woken)) && self.due(now).is_none_or(|due| due > now) {
            return Ok(());
        }
        if self.letters.is_none() && into.refusals.is_full() {
            self.due = Due::Next(Next::At(now + ROOM_RETRY));
            return Ok(());
        }
        let Reader { admission, name, letters, position, .. } = self;
        let mut admitting = Admitting { admission, name, letters: letters.as_ref(), into, position };
        match self.partition.poll(limit, upto, &mut admitting) {
            Ok(Polled { next: Next::Reached, .. }) => {
                self.position = upto;
                self.due = Due::Next(Next::Now);
            }
            Ok(polled) => self.due = Due::Next(polled.next),
            Err(SourceError::Transient(error)) => {
                let faults = if let Due::Retry { faults, .. } = self.due { faults + 1 } else { 0 };
                if faults == 0 {
                    let Reader { name, position, .. } = self;
                    tracing::warn!(source = %name.source, partition = name.partition, position, error, "a partition cannot be read; it is tried again");
                }
                self.due =
                    Due::Retry { at: now + (RETRY * 2u32.pow(faults.min(10))).min(LONGEST_RETRY), faults };
            }
            Err(error) => return Err(failed(&self.name, &error)),
        }
        if let Some(position) = self.partition.position() {
            self.position = self.position.max(position.min(upto));
        }
        self.caught_up |= self.position >= self.first_end || self.position >= self.partition.end();
        Ok(())
    }

    /// When it is to be polled without being woken.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        if self.position >= self.held_at {
            return None;
        }
        match self.due {
            Due::Next(Next::Now | Next::Reached) => Some(now),
            Due::Next(Next::At(at)) | Due::Retry { at, .. } => Some(at),
            Due::Next(Next::Woken | Next::Never) => None,
        }
    }

    pub fn caught_up(&self) -> bool {
        self.caught_up
    }

    /// How far it has read, where that has changed since the last call. Whoever sends it gives it its epoch.
    pub fn moved(&mut self) -> Option<Read> {
        let withheld = self.partition.withheld();
        let news = Some((self.position, self.caught_up, withheld));
        if self.said == news {
            return None;
        }
        self.said = news;
        let end = self.partition.end();
        // A generator's end is not known.
        let end = if end == u64::MAX { self.position } else { end.saturating_add(withheld) };
        self.before = self.partition.fingerprint().or(self.before);
        let (slot, applied, before) = (self.slot, self.position, self.before);
        let cities = self.admission.cities() as u32;
        let progress = Progress { slot, applied, end, withheld, before, cities };
        Some(Read { epoch: 0, progress: Some(progress), caught_up: self.caught_up })
    }
}

pub fn failed(name: &PartitionName, error: &SourceError) -> String {
    format!("source {}, partition {}: {error}", name.source, name.partition)
}

/// Admits what a partition gives.
struct Admitting<'a> {
    admission: &'a mut Admission,
    name: &'a PartitionName,
    letters: Option<&'a LetterPlaces>,
    into: Gathered<'a>,
    /// Behind the last record.
    position: &'a mut u64,
}

impl Take for Admitting<'_> {
    #[inline]
    fn upsert(&mut self, place: Place, upsert: &Upsert<'_>) -> Result<(), Refusal> {
        *self.position = place.position + 1;
        let admitted = self.admission.admit(upsert, place.arrived)?;
        *self.into.rows += admitted.rows as usize;
        if admitted.is_new {
            self.into.cities.push(admitted.introduction(upsert.city));
        }
        let Upsert { reading_at, event, revision, .. } = *upsert;
        let Place { position, .. } = place;
        self.into.arrivals.push(Arrival { city: admitted.city, reading_at, event, revision, position });
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.into.is_full() || self.letters.is_none() && self.into.refusals.is_full()
    }

    fn refused(&mut self, place: Place, refusal: &Refusal, raw: &Raw<'_>) {
        *self.position = place.position + 1;
        self.into.refusals.count(refusal);
        match self.letters {
            Some(places) => self.write_letter(places, place, refusal, raw),
            None => self.into.refusals.write(self.name, place, refusal, raw),
        }
    }
}

impl Admitting<'_> {
    /// Writes a dead letter as a record of its topic: the exact bytes, and in headers what is known of it.
    #[cold]
    fn write_letter(&mut self, letters: &LetterPlaces, place: Place, refusal: &Refusal, raw: &Raw<'_>) {
        let position = format!("{}/{}/{}", letters.topic, self.name.partition, place.position);
        let (shard, topic, partition) = letters.places[usize::from(raw.retried.is_some())];
        let mut draft = self.into.letters.begin(0, shard, topic, partition);
        if let Some(key) = raw.key {
            draft.bytes().extend_from_slice(key);
            draft.end_key();
        }
        if let Some(value) = raw.value {
            draft.bytes().extend_from_slice(value);
            draft.end_value();
        }
        let (origin, attempt, first_seen) = match raw.retried {
            Some(retried) => (&*retried.origin, retried.attempt, retried.first_seen),
            None => (&*position, 0, place.arrived),
        };
        draft.header(letter::POSITION, position.as_bytes());
        draft.header(letter::REASON, refusal.reason.code().as_bytes());
        draft.header(letter::DETAIL, refusal.detail.as_bytes());
        draft.header(letter::PROGRESS, letters.progress.as_bytes());
        draft.header(letter::ORIGIN, origin.as_bytes());
        draft.header(letter::ATTEMPT, attempt.to_string().as_bytes());
        if let Some(first_seen) = first_seen {
            draft.header(letter::FIRST_SEEN, first_seen.to_string().as_bytes());
        }
    }
}
