//! Random logs, with their settings and the ends of their epochs.

use proptest::prelude::*;
use swelter::internals::model::{EventTime, Measurement, ReadingEvent};

use crate::support::{LogEntry, PROPERTY_TEST_FORMULA, RunSettings};

const SECOND_MS: i64 = 1_000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

fn any_settings() -> impl Strategy<Value = RunSettings> {
    let span = || {
        prop_oneof![
            Just(0),
            Just(1),
            Just(90 * SECOND_MS),
            Just(HOUR_MS),
            Just(DAY_MS),
            Just(400 * DAY_MS),
            0..3 * DAY_MS
        ]
    };
    let lateness = prop_oneof![1 => Just(swelter::internals::model::Millis::MAX.millis()), 3 => span()];
    (span(), lateness, span()).prop_map(|(window, lateness, history)| RunSettings {
        formula: PROPERTY_TEST_FORMULA,
        window,
        lateness,
        history,
    })
}

fn any_event() -> impl Strategy<Value = ReadingEvent> {
    let edges = |values: &'static [f64]| prop::sample::select(values);
    let temperature = prop_oneof![edges(&[-130.0, 40.0, 70.0, 95.0, 140.0]), -130.0..=140.0];
    let humidity = prop_oneof![edges(&[0.0, 50.0, 100.0, 105.0]), 0.0..=105.0];
    let wind = prop_oneof![Just(None), Just(Some(0.0)), Just(Some(260.0))];
    let measurement = (temperature, humidity, wind)
        .prop_map(|(temperature, humidity, wind)| Measurement::new(temperature, humidity, wind).unwrap());
    prop_oneof![
        5 => measurement.clone().prop_map(ReadingEvent::Reading),
        1 => measurement.prop_map(ReadingEvent::RetriedReading),
        1 => Just(ReadingEvent::Withdrawal),
    ]
}

/// Steps of time from one entry to the next: mostly forward, often back to what was before, rarely
/// to an end of time.
fn any_time_step() -> impl Strategy<Value = TimeStep> {
    prop_oneof![
        8 => Just(TimeStep::Forward(MINUTE_MS)),
        2 => (0..5i64).prop_map(|n| TimeStep::Forward(n * 20 * MINUTE_MS)),
        1 => (0..2 * DAY_MS).prop_map(TimeStep::Forward),
        1 => prop::sample::select(&[HOUR_MS - 1, HOUR_MS, 2 * HOUR_MS, 2 * HOUR_MS + 1]).prop_map(TimeStep::Forward),
        4 => (1..20usize).prop_map(TimeStep::Again),
        3 => (1..90i64).prop_map(|n| TimeStep::Back(n * MINUTE_MS)),
        1 => (1..2 * DAY_MS).prop_map(TimeStep::Back),
        1 => prop::sample::select(&[HOUR_MS, DAY_MS, 90 * SECOND_MS, HOUR_MS + 1, DAY_MS - 1]).prop_map(TimeStep::Back),
    ]
}

#[derive(Clone, Copy, Debug)]
enum TimeStep {
    Forward(i64),
    /// Beside the newest time, which stays.
    Back(i64),
    /// The key of the entry so many before.
    Again(usize),
}

fn any_log(entries: std::ops::Range<usize>) -> impl Strategy<Value = Vec<LogEntry>> {
    let revision =
        prop_oneof![3 => Just(None), 2 => (0..4i64).prop_map(Some), 1 => any::<i64>().prop_map(Some)];
    let entry = (0..3u32, any_time_step(), any_event(), revision);
    let start = prop_oneof![
        4 => Just(1_764_000_000_000i64),
        1 => Just(EventTime::MIN.millis() + 500 * DAY_MS),
        1 => Just(EventTime::MAX.millis() - 2000 * DAY_MS),
        1 => Just(-DAY_MS + 1),
    ];
    // Few cities fill chunks and split them; more cities cross workers.
    let cities = prop_oneof![2 => Just(1u32), 3 => Just(3)];
    (start, cities, prop::collection::vec(entry, entries)).prop_map(|(start, cities, steps)| {
        let mut now = [start; 3];
        let mut log: Vec<LogEntry> = Vec::new();
        for (city, step, event, revision) in steps {
            let city = city % cities;
            let again = |n: usize| log.len().checked_sub(n).map(|i| (log[i].city, log[i].millis));
            let (city, millis) = match step {
                TimeStep::Forward(by) => {
                    now[city as usize] += by;
                    (city, now[city as usize])
                }
                TimeStep::Back(by) => (city, now[city as usize] - by),
                TimeStep::Again(n) => again(n).unwrap_or((city, now[city as usize])),
            };
            log.push(LogEntry { city, millis, event, revision });
        }
        log
    })
}

/// Ends of epochs: some empty, the last at the end of the log.
fn any_epoch_ends(len: usize, most: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..=len, 0..most).prop_map(move |mut cuts| {
        cuts.push(len);
        cuts.sort_unstable();
        cuts
    })
}

pub fn any_case(
    entries: std::ops::Range<usize>,
    epochs: usize,
) -> impl Strategy<Value = (Vec<LogEntry>, RunSettings, Vec<usize>)> {
    (any_log(entries), any_settings()).prop_flat_map(move |(log, settings)| {
        let cuts = any_epoch_ends(log.len(), epochs);
        (Just(log), Just(settings), cuts)
    })
}

/// A city or two as sensors have them: at a regular pace, a few readings corrected or withdrawn
/// soon or later; windows of fewer readings than a block, or of several blocks.
pub fn sensor_cases() -> impl Strategy<Value = (Vec<LogEntry>, RunSettings, Vec<usize>)> {
    let back = prop_oneof![30 => Just(0), 1 => 1..5i64, 1 => 5..400i64];
    let entries = prop::collection::vec((0..2u32, back, any_event()), 200..700);
    let spans: &'static [i64] = &[10 * MINUTE_MS, HOUR_MS, 3 * HOUR_MS, 5 * HOUR_MS];
    let settings = (prop::sample::select(spans), prop::sample::select(spans), prop::sample::select(spans));
    let pace = (1..=2u32, prop::sample::select(&[MINUTE_MS, 10 * SECOND_MS]));
    (entries, pace, settings).prop_flat_map(|(entries, (cities, step), (window, lateness, history))| {
        let settings = RunSettings { formula: PROPERTY_TEST_FORMULA, window, lateness, history };
        let mut now = [0, 0];
        let log: Vec<LogEntry> = entries
            .into_iter()
            .map(|(city, back, event)| {
                let city = city % cities;
                let now = &mut now[city as usize];
                *now += if back == 0 { step } else { 0 };
                // What is new is a reading.
                let reading =
                    Measurement::new((*now / SECOND_MS % 71) as f64, 50.0, None).map(ReadingEvent::Reading);
                let event = if back == 0 { reading.unwrap_or(event) } else { event };
                LogEntry { city, millis: *now - back * step, event, revision: None }
            })
            .collect();
        let cuts = any_epoch_ends(log.len(), 40);
        (Just(log), Just(settings), cuts)
    })
}

/// Withdrawals of cities without a reading, more of them than are remembered; then anything at the
/// same times.
pub fn withdrawal_cases() -> impl Strategy<Value = (Vec<LogEntry>, RunSettings, Vec<usize>)> {
    let revision = || prop::option::of(0..4i64);
    let early = (0..2u32, 0..500i64, Just(ReadingEvent::Withdrawal), revision());
    let later = (0..2u32, 0..500i64, any_event(), revision());
    let entries = (prop::collection::vec(early, 0..300), prop::collection::vec(later, 0..60));
    let spans: &'static [i64] = &[0, 10 * MINUTE_MS, HOUR_MS, 5 * HOUR_MS];
    let settings = (prop::sample::select(spans), prop::sample::select(spans), prop::sample::select(spans));
    (entries, settings).prop_flat_map(|((early, later), (window, lateness, history))| {
        let settings = RunSettings { formula: PROPERTY_TEST_FORMULA, window, lateness, history };
        let entry =
            |(city, minute, event, revision)| LogEntry { city, millis: minute * MINUTE_MS, event, revision };
        let log: Vec<LogEntry> = early.into_iter().chain(later).map(entry).collect();
        let cuts = any_epoch_ends(log.len(), 40);
        (Just(log), Just(settings), cuts)
    })
}
