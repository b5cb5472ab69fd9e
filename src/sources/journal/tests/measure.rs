//! Measurements of the journal's cost. Run by hand: `cargo test --release --lib
//! journal::tests::measure -- --ignored --nocapture`.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const CITIES: i64 = 15_000;

struct Counter(u64);

impl RecordHandler for Counter {
    fn handle_upsert(&mut self, _: RecordPosition, _: &Upsert<'_>) -> Result<(), Refusal> {
        self.0 += 1;
        Ok(())
    }

    fn handle_refusal(&mut self, _: RecordPosition, _: &Refusal, _: &RawRecord<'_>) {}
}

/// Realistic readings: city after city, each with its own weather.
fn weather(number: i64) -> NewRecord {
    let city = format!("{}", 5_000_000 + number % CITIES * 37);
    let mix = number.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64) as u64;
    let temperature = 50.0 + (mix >> 54) as f64 / 20.0;
    let humidity = 30.0 + (mix >> 40 & 0x1FF) as f64 / 10.0;
    let event = ReadingEvent::Reading(
        Measurement::new(temperature, humidity, Some((mix & 0xFF) as f64 / 10.0)).unwrap(),
    );
    let at = EventTime::from_millis(1_764_000_000_000 + number / CITIES * 60_000).unwrap();
    let mut bytes = Vec::new();
    push_json_record(&RecordFields::from_event(&city, at, &event), &mut bytes);
    NewRecord::new(Some(&city), bytes)
}

fn report(what: &str, records: u64, elapsed: Duration) {
    let rate = records as f64 / elapsed.as_secs_f64();
    writeln!(std::io::stderr(), "{what}: {records} in {elapsed:.2?}, {rate:.0}/s").unwrap();
}

/// Appends for some seconds from a number of threads, each of which waits for its own appends;
/// returns the number of records.
fn run(journal: &Journal, threads: usize, batch: i64, span: Duration) -> (u64, Duration) {
    let next = AtomicU64::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let appender = journal.appender();
                while start.elapsed() < span {
                    let first = next.fetch_add(batch as u64, Ordering::Relaxed) as i64;
                    acknowledged(&*appender, (first..first + batch).map(weather).collect());
                }
            });
        }
    });
    (next.into_inner(), start.elapsed())
}

fn replay(journal: &Journal) -> u64 {
    let mut counter = Counter(0);
    for partition in 0..journal.partitions() {
        let mut reader = Source::open_partition(journal, partition, 0, thread::current()).unwrap();
        while reader.poll(4096, u64::MAX, &mut counter).unwrap().next == NextPoll::Now {}
    }
    counter.0
}

#[test]
#[ignore = "measures: run it alone, in release"]
fn measure_append_and_replay() {
    for (what, threads, batch) in [
        ("one by one, 1 appender", 1, 1),
        ("one by one, 64 appenders", 64, 1),
        ("batches of 1,000, 4 appenders", 4, 1000),
    ] {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let journal = Journal::open(dir.path(), JournalPlan { tail_bytes: 0, ..plan(16) }).unwrap();
        let (records, elapsed) = run(&journal, threads, batch, Duration::from_secs(8));
        report(what, records, elapsed);
        journal.shared.store.flush();
        let bytes = (0..records as i64).map(|number| weather(number).bytes.len()).sum::<usize>();
        let disk = journal.shared.store.disk_bytes() as f64;
        let per_record = |bytes: f64| bytes / records as f64;
        let (json, stored) = (per_record(bytes as f64), per_record(disk));
        writeln!(std::io::stderr(), "  {json:.0} bytes of JSON, {stored:.1} on disk").unwrap();
        let start = Instant::now();
        let read = replay(&journal);
        assert_eq!(read, records);
        report("  replay", read, start.elapsed());
    }
}
