//! Random logs for the built program.

use swelter::internals::model::{Measurement, ReadingEvent};

use super::entries::{LogEntry, MINUTE_MS, RUN_SETTINGS};
use super::oracle::Oracle;
use super::random::Random;

/// Cities of random entries.
pub const RANDOM_CITIES: u32 = 5;

/// An entry as of `now`, ms: mostly new, often a correction or a withdrawal, sometimes too late.
pub fn random_entry(random: &mut Random, now: i64) -> LogEntry {
    let back = match random.below(10) {
        0..5 => 0,
        5..9 => random.below(80) as i64,
        _ => random.below(200) as i64,
    };
    let event = match random.below(8) {
        0 => ReadingEvent::Withdrawal,
        _ => {
            let (t, h) = (60.0 + random.below(500) as f64 / 10.0, random.below(1000) as f64 / 10.0);
            ReadingEvent::Reading(Measurement::new(t, h, None).unwrap())
        }
    };
    let revision = (random.below(4) == 0).then(|| random.below(3) as i64);
    LogEntry {
        city: random.below(RANDOM_CITIES.into()) as u32,
        millis: now - back * MINUTE_MS,
        event,
        revision,
    }
}

/// The entries that a server accepts whatever it has applied so far: entries that are too late
/// already are refused in the response. Entries that become too late within one post are dead
/// letters, and some are added.
pub fn keep_accepted_entries(
    oracle: &Oracle,
    mut entries: Vec<LogEntry>,
    random: &mut Random,
    now: i64,
) -> Vec<LogEntry> {
    entries.retain(|entry| !oracle.is_too_late(entry));
    let event = ReadingEvent::Reading(Measurement::new(75.0, 50.0, None).unwrap());
    let city = random.below(RANDOM_CITIES.into()) as u32;
    let newest = LogEntry { city, millis: now, event, revision: None };
    let late = LogEntry { millis: now - RUN_SETTINGS.lateness - MINUTE_MS / 20, ..newest };
    if entries.is_empty() || random.below(3) == 0 {
        entries.push(newest);
        entries.extend(Some(late).filter(|late| !oracle.is_too_late(late)));
    }
    entries
}
