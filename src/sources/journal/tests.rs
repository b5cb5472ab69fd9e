//! Tests of the journal: the records read are the records acknowledged.

mod clock;
mod copy;
mod damage;
mod identity;
mod kill;
mod measure;
mod trim;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::acked_ends::AckedEnds;
use super::append_queue::AppendQueue;
use super::arrival_clock::{ArrivalClock, HostClock};
use super::block::BlockEncoder;
use super::block_store::StoredBlock;
use super::writer::{JournalWriter, SizeWarning};
use super::*;
use crate::codec::{RecordFields, push_json_record};
use crate::model::{
    AppendCallback, AppendError, AppendReport, AppendedRange, Appender, EventTime, HoldCheck, Measurement,
    NewRecord, RawRecord, ReadingEvent, Refusal, RetryInfo, Upsert,
};
use crate::sources::{NextPoll, RecordHandler, RecordPosition, Source, SourceError};

/// A record as it was read: position, arrival, and bytes or the decoded event.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    position: u64,
    arrived: Option<EventTime>,
    city: Option<String>,
    reading_at: Option<EventTime>,
    raw: Option<Vec<u8>>,
}

#[derive(Default)]
struct Seer(Vec<Seen>);

impl RecordHandler for Seer {
    fn handle_upsert(&mut self, place: RecordPosition, upsert: &Upsert<'_>) -> Result<(), Refusal> {
        let (city, reading_at) = (Some(upsert.city.to_string()), Some(upsert.reading_at));
        self.0.push(Seen { position: place.position, arrived: place.arrived, city, reading_at, raw: None });
        Ok(())
    }

    fn handle_refusal(&mut self, place: RecordPosition, _: &Refusal, raw: &RawRecord<'_>) {
        let raw = raw.value.map(<[u8]>::to_vec);
        let RecordPosition { position, arrived } = place;
        self.0.push(Seen { position, arrived, city: None, reading_at: None, raw });
    }
}

fn plan(partitions: u32) -> JournalPlan {
    JournalPlan { partitions, ..JournalPlan::default() }
}

/// A reading whose time is its number.
fn reading(city: &str, number: i64) -> NewRecord {
    let event = ReadingEvent::Reading(Measurement::new(80.5, 60.0, Some(7.0)).unwrap());
    let mut bytes = Vec::new();
    push_json_record(
        &RecordFields::from_event(city, EventTime::from_millis(number).unwrap(), &event),
        &mut bytes,
    );
    NewRecord::new(Some(city), bytes)
}

fn append(
    appender: &dyn Appender,
    records: Vec<NewRecord>,
) -> mpsc::Receiver<Result<AppendReport, AppendError>> {
    let (sender, receiver) = mpsc::channel();
    let done: AppendCallback = Box::new(move |result| drop(sender.send(result)));
    appender.append(records, done);
    receiver
}

fn acknowledged(appender: &dyn Appender, records: Vec<NewRecord>) -> Vec<AppendedRange> {
    append(appender, records).recv_timeout(Duration::from_secs(60)).unwrap().unwrap().ranges
}

/// Reads all records of a partition from a position on.
fn read_from(
    journal: &Journal,
    partition: u32,
    position: u64,
    limit: usize,
) -> Result<Vec<Seen>, SourceError> {
    let mut reader = Source::open_partition(journal, partition, position, thread::current())?;
    let mut seen = Seer::default();
    loop {
        let polled = reader.poll(limit, u64::MAX, &mut seen)?;
        assert!(polled.records <= limit);
        if polled.next != NextPoll::Now {
            assert_eq!(reader.end(), position + seen.0.len() as u64);
            return Ok(seen.0);
        }
    }
}

fn read_all(journal: &Journal) -> Result<Vec<Vec<Seen>>, SourceError> {
    (0..journal.partitions()).map(|partition| read_from(journal, partition, 0, 1000)).collect()
}

#[test]
fn partition_count_is_fixed_and_cities_keep_partition() {
    let dir = tempfile::tempdir().unwrap();
    {
        let journal = Journal::open(dir.path(), plan(4)).unwrap();
        let nameless = NewRecord::new(None, &b"no record"[..]);
        let appended = acknowledged(&*journal.appender(), vec![nameless.clone(), nameless]);
        assert_eq!(
            (appended.len(), appended[0].partition.partition, appended[0].first, appended[0].end),
            (1, 0, 0, 2)
        );
        assert_eq!(&*appended[0].partition.source, "journal");
    }
    let refused = Journal::open(dir.path(), plan(5)).err().unwrap().to_string();
    assert!(refused.contains("has 4 partitions, not 5"), "{refused}");
    assert!(matches!(Journal::open(dir.path(), plan(0)), Err(JournalError::PartitionCount(0))));
    let journal = Journal::open(dir.path(), plan(4)).unwrap();
    let seen = read_from(&journal, 0, 0, 10).unwrap();
    assert_eq!(seen[1].raw.as_deref(), Some(&b"no record"[..]));
    assert!(matches!(Journal::open(dir.path(), plan(4)), Err(JournalError::InUse { .. })));
    assert!(matches!(read_from(&journal, 0, 3, 10), Err(SourceError::Fatal(_))));
    assert!(matches!(read_from(&journal, 4, 0, 10), Err(SourceError::Fatal(_))));
}

/// Collects retried records with their origin.
#[derive(Default)]
struct Again(Vec<(u64, Option<ReadingEvent>, Option<RetryInfo>)>);

impl RecordHandler for Again {
    fn handle_upsert(&mut self, place: RecordPosition, upsert: &Upsert<'_>) -> Result<(), Refusal> {
        self.0.push((place.position, Some(upsert.event), None));
        match upsert.city {
            "refused" => Err(Refusal::new(crate::model::Reason::TooLate, "")),
            _ => Ok(()),
        }
    }

    fn handle_refusal(&mut self, place: RecordPosition, _: &Refusal, raw: &RawRecord<'_>) {
        self.0.retain(|(position, ..)| *position != place.position);
        self.0.push((place.position, None, raw.retry.cloned()));
    }
}

#[test]
fn retried_record_is_marked_and_keeps_partition() {
    let dir = tempfile::tempdir().unwrap();
    let from = |origin: &str, first_seen: Option<i64>| RetryInfo {
        origin: origin.into(),
        attempt: 1,
        first_seen: first_seen.and_then(EventTime::from_millis),
    };
    let again = |record: NewRecord, retried: &RetryInfo| NewRecord {
        retry: Some(Box::new(retried.clone())),
        ..record
    };
    let (lost, refused) = (from("journal/3/9", None), from("journal/2/0", Some(1_764_000_000_001)));
    let nameless = || NewRecord::new(None, &b"no record"[..]);
    let withdrawal =
        NewRecord::new(Some("w"), &br#"{"city":"w","reading_at":"2025-01-01T00:00:00Z","deleted":true}"#[..]);
    let long = from(&format!("{}/2/7", "s".repeat(3_000)), Some(0));
    {
        let journal = Journal::open(dir.path(), plan(4)).unwrap();
        let records = vec![
            again(reading("refused", 1), &refused),
            nameless(),
            again(nameless(), &lost),
            again(nameless(), &long),
            again(reading("x", 1), &from("journal/2/1", None)),
            again(withdrawal, &from("journal/2/5", None)),
            reading("x", 2),
        ];
        acknowledged(&*journal.appender(), records.clone());
        let mut x = acknowledged(&*journal.appender(), vec![reading("x", 3)]);
        assert_eq!(x.pop().map(|appended| appended.partition.source), Some("journal".into()));
    }
    let journal = Journal::open(dir.path(), plan(4)).unwrap();
    let of = |partition| {
        let mut seen = Again::default();
        let mut reader = Source::open_partition(&journal, partition, 0, thread::current()).unwrap();
        while reader.poll(1, u64::MAX, &mut seen).unwrap().next == NextPoll::Now {}
        seen.0
    };
    assert_eq!(of(3).into_iter().find(|(.., from)| from.is_some()).unwrap().2, Some(lost));
    let first = of(0);
    assert!(first.contains(&(0, None, None)), "{first:?}");
    assert!(first.contains(&(1, None, Some(long))), "{first:?}");
    let second = of(2);
    let Some(ReadingEvent::RetriedReading(_)) = second[1].1 else { panic!("{second:?}") };
    assert_eq!(second[0], (0, None, Some(refused)));
    assert_eq!(second[2], (2, None, Some(from("journal/2/5", None))), "a withdrawal is refused");
    let ordinary =
        (0..4).flat_map(of).filter(|(_, event, _)| matches!(event, Some(ReadingEvent::Reading(_))));
    assert_eq!(ordinary.count(), 2);
}

#[test]
fn full_queue_is_busy_and_closed_journal_stops() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), JournalPlan { queue_records: 10, ..plan(1) }).unwrap();
    let appender = journal.appender();
    // The first callback blocks the writer, so the next appends wait in the queue.
    let (release, held) = mpsc::channel::<()>();
    let (entered, in_done) = mpsc::channel();
    appender.append(
        vec![reading("a", 0)],
        Box::new(move |_| {
            entered.send(()).unwrap();
            held.recv().unwrap();
        }),
    );
    in_done.recv().unwrap();
    // It exceeds the queue's limit, but nothing else waits.
    let first = append(&*appender, (0..11).map(|n| reading("a", n)).collect());
    let busy = append(&*appender, vec![reading("a", 0)]);
    assert_eq!(busy.try_recv().unwrap(), Err(AppendError::Busy));
    release.send(()).unwrap();
    assert_eq!(first.recv().unwrap().unwrap().ranges[0].end, 12);
    drop(journal);
    assert_eq!(append(&*appender, vec![reading("a", 0)]).try_recv().unwrap(), Err(AppendError::Stopping));
    assert_eq!(append(&*appender, Vec::new()).try_recv().unwrap(), Ok(AppendReport::default()));
}

#[test]
fn append_wakes_reader() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), plan(1)).unwrap();
    let (found, nothing) = mpsc::channel();
    thread::scope(|scope| {
        let reading_along = scope.spawn(|| {
            let mut reader = Source::open_partition(&journal, 0, 0, thread::current()).unwrap();
            let mut seen = Seer::default();
            while seen.0.len() < 100 {
                if reader.poll(7, u64::MAX, &mut seen).unwrap().next == NextPoll::OnUnpark
                    && seen.0.len() < 100
                {
                    found.send(()).unwrap();
                    let parked = Instant::now();
                    thread::park_timeout(Duration::from_secs(20));
                    assert!(parked.elapsed() < Duration::from_secs(19), "nobody woke the reader");
                }
            }
            seen.0
        });
        for number in 0..100 {
            nothing.recv_timeout(Duration::from_secs(20)).unwrap();
            acknowledged(&*journal.appender(), vec![reading("a", number)]);
        }
        let seen = reading_along.join().unwrap();
        assert!(seen.iter().enumerate().all(|(at, seen)| seen.position == at as u64));
    });
}

#[test]
fn concurrent_appenders_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), plan(4)).unwrap();
    thread::scope(|scope| {
        for city in 0..8 {
            let appender = journal.appender();
            scope.spawn(move || {
                let city = format!("city {city}");
                let pending: Vec<_> =
                    (0..200).map(|number| append(&*appender, vec![reading(&city, number)])).collect();
                let ends: Vec<u64> =
                    pending.iter().map(|pending| pending.recv().unwrap().unwrap().ranges[0].end).collect();
                assert!(ends.is_sorted_by(|a, b| a < b));
            });
        }
    });
    let mut by_city: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for seen in read_all(&journal).unwrap() {
        assert!(seen.is_sorted_by_key(|seen| seen.arrived));
        for seen in seen {
            by_city.entry(seen.city.unwrap()).or_default().push(seen.reading_at.unwrap().millis());
        }
    }
    assert_eq!(by_city.len(), 8);
    assert!(by_city.values().all(|numbers| numbers.iter().copied().eq(0..200)));
}

/// Checks that the journal has failed with a reason, and that readers get it after all durable
/// records.
fn has_failed(journal: &Journal, durable: usize) {
    let line = journal.failure().unwrap();
    assert!(line.contains("cannot be written") && line.contains(", then start again"), "{line}");
    let mut reader = Source::open_partition(journal, 0, 0, thread::current()).unwrap();
    let mut seen = Seer::default();
    let failed = (0..=durable).find_map(|_| reader.poll(1, u64::MAX, &mut seen).err());
    assert_eq!((failed, seen.0.len()), (Some(SourceError::Fatal(line.to_string())), durable));
}

#[test]
fn failed_write_is_fatal() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), plan(1)).unwrap();
    acknowledged(&*journal.appender(), vec![reading("a", 0)]);
    let mut marks = AckedEnds::open_file(dir.path()).unwrap();
    // Writes to a file that is open only for reading fail.
    marks.file = fs::File::open(dir.path().join(acked_ends::FILE_NAME)).unwrap();
    let queue = Arc::new(AppendQueue::new(10, 10_000));
    let pending = [append(&*queue, vec![reading("a", 1)]), append(&*queue, vec![reading("a", 2)])];
    let writer = JournalWriter {
        shared: journal.shared.clone(),
        queue: queue.clone(),
        acked_ends: marks,
        encoder: BlockEncoder::new().unwrap(),
        arrival_clock: ArrivalClock::open(dir.path(), plan(1).max_ahead, None, Box::new(HostClock)),
        max_ahead: plan(1).max_ahead,
        size_warning: SizeWarning { next_warn_bytes: 0 },
    };
    writer.run();
    for pending in pending.into_iter().chain([append(&*queue, vec![reading("a", 3)])]) {
        assert!(matches!(pending.try_recv().unwrap(), Err(AppendError::Failed(_))));
    }
    has_failed(&journal, 1);
}

#[test]
fn writer_panic_is_fatal() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), plan(1)).unwrap();
    let appender = journal.appender();
    appender.append(vec![reading("a", 0)], Box::new(|_| panic!("as the test wants")));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !matches!(append(&*appender, vec![reading("a", 1)]).recv(), Ok(Err(AppendError::Failed(_)))) {
        assert!(Instant::now() < deadline);
    }
    has_failed(&journal, journal.shared.tails[0].log_end() as usize);
}

#[test]
fn size_warning_is_logged_once_per_doubling() {
    let mut size = SizeWarning { next_warn_bytes: 100 };
    let mut nexts = Vec::new();
    for bytes in [99, 100, 150, 250, 499, 500] {
        size.warn_if_large(bytes, Path::new("x"));
        nexts.push(size.next_warn_bytes);
    }
    assert_eq!(nexts, [100, 200, 200, 500, 500, 1000]);
}

/// Few cases: each step syncs the disk.
#[test]
fn replay_equals_acknowledged_records() {
    let batch = proptest::collection::vec((0..20u8, 0..3000usize), 1..40);
    let run = proptest::collection::vec((batch, any::<bool>()), 1..6);
    let runs = proptest::collection::vec(run, 1..4);
    let tails = prop_oneof![Just(0usize), Just(10_000), Just(16 << 20)];
    let cases = (runs, tails, 1..200usize, any::<proptest::sample::Index>());
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    let ran = TestRunner::new(config).run(&cases, |(runs, tail_bytes, limit, from)| {
        let dir = tempfile::tempdir().unwrap();
        let mut oracle: Vec<Vec<Vec<u8>>> = vec![Vec::new(); 3];
        let check = |journal: &Journal, oracle: &[Vec<Vec<u8>>]| {
            for (partition, expected) in oracle.iter().enumerate() {
                let from = from.index(expected.len() + 1);
                let seen = read_from(journal, partition as u32, from as u64, limit).unwrap();
                assert!(seen.is_sorted_by_key(|seen| seen.arrived));
                let raw: Vec<_> = seen.iter().map(|seen| seen.raw.clone().unwrap()).collect();
                assert_eq!(raw, &expected[from..]);
            }
        };
        for run in runs {
            let journal = Journal::open(dir.path(), JournalPlan { tail_bytes, ..plan(3) }).unwrap();
            check(&journal, &oracle);
            for (batch, flush) in run {
                for (city, length) in batch {
                    let record = NewRecord::new(Some(&format!("{city}")), vec![city; length]);
                    let [at] = &acknowledged(&*journal.appender(), vec![record.clone()])[..] else {
                        panic!()
                    };
                    let expected = &mut oracle[at.partition.partition as usize];
                    expected.push(record.bytes.into());
                    prop_assert_eq!(at.end, expected.len() as u64);
                }
                if flush {
                    journal.shared.store.flush();
                }
            }
            check(&journal, &oracle);
        }
        check(&Journal::open(dir.path(), plan(3)).unwrap(), &oracle);
        Ok(())
    });
    ran.unwrap();
}
