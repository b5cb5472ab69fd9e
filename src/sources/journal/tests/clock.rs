//! Arrival stamps under a clock that steps forward and back.

use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::admission::{Admission, AdmissionRules};
use crate::model;
use crate::model::{HoldCause, Reason};
use crate::sources::journal::arrival_clock::{ArrivalClock, Clock, format_span};

const MINUTE: i64 = 60_000;
const DAY: i64 = 86_400_000;
/// 2026-11-30T00:00:00Z.
const START: i64 = 1_796_428_800_000;

/// A host whose clocks a test controls.
#[derive(Clone, Default)]
struct Host(Arc<HostState>);

#[derive(Default)]
struct HostState {
    uptime: AtomicI64,
    offset: AtomicI64,
    boot: AtomicI64,
}

impl Host {
    fn new() -> Host {
        let host = Host::default();
        host.0.offset.store(START, Ordering::Relaxed);
        host
    }

    fn pass(&self, ms: i64) {
        self.0.uptime.fetch_add(ms, Ordering::Relaxed);
    }

    /// Steps the wall clock forward or back.
    fn step(&self, ms: i64) {
        self.0.offset.fetch_add(ms, Ordering::Relaxed);
    }

    /// Reboots after a downtime.
    fn boot_after(&self, off_ms: i64) {
        let uptime = self.0.uptime.swap(0, Ordering::Relaxed);
        self.step(uptime + off_ms);
        self.0.boot.fetch_add(1, Ordering::Relaxed);
    }
}

impl Clock for Host {
    fn wall_ms(&self) -> i64 {
        self.0.offset.load(Ordering::Relaxed) + self.uptime_ms()
    }

    fn uptime_ms(&self) -> i64 {
        self.0.uptime.load(Ordering::Relaxed)
    }

    fn boot_id(&self) -> String {
        format!("boot-{}", self.0.boot.load(Ordering::Relaxed))
    }
}

fn stamps(dir: &Path, host: &Host, last: Option<EventTime>) -> ArrivalClock {
    ArrivalClock::open(dir, model::Millis::from_millis(10 * MINUTE).unwrap(), last, Box::new(host.clone()))
}

fn is_held(stamps: &mut ArrivalClock) -> bool {
    let held = stamps.shared_hold();
    match stamps.stamp_now() {
        Ok(_) => {
            assert_eq!(*held.lock(), None);
            false
        }
        Err(AppendError::OnHold(hold)) => {
            assert_eq!(hold.cause, HoldCause::ClockAhead);
            assert!((1..=61).contains(&hold.retry_after_s), "{hold:?}");
            assert_eq!(held.lock().as_ref(), Some(&hold));
            true
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn clock_ahead_for_one_check_holds_records_back() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new();
    let mut stamps = stamps(dir.path(), &host, None);
    host.pass(DAY);
    assert!(!is_held(&mut stamps), "a day without a record is no step");
    host.step(30 * DAY);
    assert!(is_held(&mut stamps));
    host.step(-30 * DAY);
    host.pass(1_000);
    assert_eq!(stamps.stamp_now().unwrap().millis(), START + DAY + 1_000);
}

#[test]
fn clock_ahead_is_accepted_after_two_agreeing_checks_a_minute_apart() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new();
    let mut stamps = stamps(dir.path(), &host, None);
    host.step(DAY);
    assert!(is_held(&mut stamps));
    host.pass(40_000);
    // A different time: the minute starts again.
    host.step(DAY);
    assert!(is_held(&mut stamps));
    host.pass(59_000);
    assert!(is_held(&mut stamps));
    host.pass(1_000);
    assert_eq!(stamps.stamp_now().unwrap().millis(), START + 2 * DAY + 100_000);
    // The clock is right again: stamps decrease at once, and the next step forward must be
    // confirmed again.
    host.step(-2 * DAY);
    assert_eq!(stamps.stamp_now().unwrap().millis(), START + 100_000);
    host.step(2 * DAY);
    assert!(is_held(&mut stamps));
}

#[test]
fn clock_steps_within_the_bound_do_not_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new();
    let mut stamps = stamps(dir.path(), &host, None);
    host.step(9 * MINUTE);
    assert!(!is_held(&mut stamps));
    host.pass(1_000);
    host.step(9 * MINUTE);
    assert!(is_held(&mut stamps));
}

#[test]
fn clock_of_same_boot_is_trusted_after_restart() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new();
    drop(stamps(dir.path(), &host, None));
    host.pass(7 * DAY);
    let last = EventTime::from_millis(START);
    assert!(!is_held(&mut stamps(dir.path(), &host, last)), "a week off");
    host.step(30 * DAY);
    assert!(is_held(&mut stamps(dir.path(), &host, last)));
    host.step(-30 * DAY);
    assert!(!is_held(&mut stamps(dir.path(), &host, last)));
}

#[test]
fn clock_of_another_boot_waits_a_minute_only_after_a_long_gap() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new();
    drop(stamps(dir.path(), &host, None));
    host.boot_after(5 * MINUTE);
    assert!(!is_held(&mut stamps(dir.path(), &host, None)));
    host.boot_after(7 * DAY);
    let mut stamps = stamps(dir.path(), &host, None);
    assert!(is_held(&mut stamps));
    host.pass(MINUTE);
    assert!(!is_held(&mut stamps));
}

#[test]
fn clock_behind_last_record_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new();
    // The same for a journal whose last record is in the future.
    let mut stamps = stamps(dir.path(), &host, EventTime::from_millis(START + 30 * DAY));
    assert_eq!(stamps.stamp_now().unwrap().millis(), START);
}

/// The whole journal: stamps stay as they were written, and a reading of the future is refused once
/// the clock is right, also by a replay.
#[test]
fn clock_ahead_during_one_post_keeps_future_bound() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new();
    let open = || Journal::open_with_clock(dir.path(), plan(1), Box::new(host.clone())).unwrap();
    let journal = open();
    let post = |journal: &Journal, at: i64| {
        let posted = append(&*journal.appender(), vec![reading("a", at)]);
        posted.recv_timeout(std::time::Duration::from_secs(60)).unwrap()
    };
    post(&journal, START).unwrap();
    host.step(30 * DAY);
    let refused = post(&journal, START + 30 * DAY).unwrap_err();
    assert!(matches!(refused, AppendError::OnHold(_)), "{refused}");
    assert_eq!(journal.current_hold().map(|hold| hold.cause), Some(HoldCause::ClockAhead));
    host.step(-30 * DAY);
    post(&journal, START + 20 * DAY).unwrap();
    assert_eq!(journal.current_hold(), None);
    // A wrong clock is accepted after a minute; then it is corrected.
    host.step(30 * DAY);
    post(&journal, START).unwrap_err();
    host.pass(MINUTE);
    post(&journal, START + 30 * DAY).unwrap();
    host.step(-30 * DAY);
    post(&journal, START + 20 * DAY).unwrap();
    drop(journal);
    let journal = open();
    post(&journal, START + 20 * DAY).unwrap();

    let seen = read_from(&journal, 0, 0, 100).unwrap();
    let arrived: Vec<i64> = seen.iter().map(|seen| seen.arrived.unwrap().millis() - START).collect();
    assert_eq!(arrived, [0, 0, 30 * DAY + MINUTE, MINUTE, MINUTE]);
    let rules = AdmissionRules {
        max_ahead: model::Millis::from_millis(10 * MINUTE),
        ..AdmissionRules::new(model::Millis::DAY)
    };
    let mut admission = Admission::new(0, rules);
    let decided: Vec<Option<Reason>> = seen
        .iter()
        .map(|seen| {
            let upsert = Upsert {
                city: "a",
                reading_at: seen.reading_at.unwrap(),
                event: ReadingEvent::Reading(Measurement::new(80.5, 60.0, None).unwrap()),
                revision: None,
            };
            admission.admit(&upsert, seen.arrived).err().map(|refusal| refusal.reason)
        })
        .collect();
    let future = Some(Reason::InTheFuture);
    assert_eq!(decided, [None, future, None, future, future]);
}

#[test]
fn posted_reading_is_checked_against_its_future_stamp() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new();
    let plan = JournalPlan { max_ahead: model::Millis::from_millis(10 * MINUTE).unwrap(), ..plan(1) };
    let journal = Journal::open_with_clock(dir.path(), plan, Box::new(host.clone())).unwrap();
    let posted = |at: i64| {
        let reading_at = EventTime::from_millis(at);
        NewRecord { reading_at, ..NewRecord::new(Some("x"), at.to_string().as_bytes()) }
    };
    let future = posted(START + 10 * MINUTE + 1);
    let report = |records: Vec<NewRecord>| {
        append(&*journal.appender(), records).recv_timeout(Duration::from_secs(60)).unwrap().unwrap()
    };
    let mixed = report(vec![posted(START), future.clone(), posted(START + 10 * MINUTE), future.clone()]);
    let refused: Vec<_> = mixed.refusals.iter().map(|(number, refusal)| (*number, refusal.reason)).collect();
    assert_eq!(refused, [(1, Reason::InTheFuture), (3, Reason::InTheFuture)]);
    assert_eq!((mixed.ranges[0].first, mixed.ranges[0].end), (0, 2));
    let alone = report(vec![future.clone()]);
    assert_eq!((alone.ranges.len(), alone.refusals.len()), (0, 1));
    // Records without a time, and retried ones, are left to admission.
    let retried = Some(Box::new(RetryInfo { origin: "journal/0/0".into(), attempt: 1, first_seen: None }));
    let untimed = NewRecord { reading_at: None, ..future.clone() };
    let again = report(vec![untimed, NewRecord { retry: retried, ..future.clone() }]);
    assert_eq!((again.ranges[0].first, again.ranges[0].end, again.refusals.len()), (2, 4, 0));
    // It is accepted once its time has come.
    host.pass(1);
    assert_eq!(report(vec![future]).ranges[0].end, 5);
}

/// A clock that was put forward and back is a few milliseconds off by the time that it took.
#[test]
fn spans_are_rounded() {
    let spans = [30 * DAY - 8, 30 * DAY + 8, 90 * MINUTE, 1_999].map(format_span);
    assert_eq!(spans, ["30 d", "30 d", "90 m", "1999 ms"]);
}
