//! Random logs, with what decides their results and where their epochs end.

use proptest::prelude::*;
use swelter::model::{Event, EventTime, Measurement};

use crate::harness::Settings;
use crate::oracle::{Entry, FORMULA};

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

fn settings() -> impl Strategy<Value = Settings> {
    let span = || {
        prop_oneof![Just(0), Just(1), Just(90 * SECOND), Just(HOUR), Just(DAY), Just(400 * DAY), 0..3 * DAY]
    };
    let lateness = prop_oneof![1 => Just(swelter::model::Duration::MAX.millis()), 3 => span()];
    (span(), lateness, span()).prop_map(|(window, lateness, history)| Settings {
        formula: FORMULA,
        window,
        lateness,
        history,
    })
}

fn event() -> impl Strategy<Value = Event> {
    let edges = |values: &'static [f64]| prop::sample::select(values);
    let temperature = prop_oneof![edges(&[-130.0, 40.0, 70.0, 95.0, 140.0]), -130.0..=140.0];
    let humidity = prop_oneof![edges(&[0.0, 50.0, 100.0, 105.0]), 0.0..=105.0];
    let wind = prop_oneof![Just(None), Just(Some(0.0)), Just(Some(260.0))];
    let measurement = (temperature, humidity, wind)
        .prop_map(|(temperature, humidity, wind)| Measurement::new(temperature, humidity, wind).unwrap());
    prop_oneof![
        5 => measurement.clone().prop_map(Event::Reading),
        1 => measurement.prop_map(Event::Retried),
        1 => Just(Event::Withdrawal),
    ]
}

/// Steps of time from one entry to the next: mostly forward, often back to what was before, rarely to an end of time.
fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Forward(MINUTE)),
        2 => (0..5i64).prop_map(|n| Step::Forward(n * 20 * MINUTE)),
        1 => (0..2 * DAY).prop_map(Step::Forward),
        1 => prop::sample::select(&[HOUR - 1, HOUR, 2 * HOUR, 2 * HOUR + 1]).prop_map(Step::Forward),
        4 => (1..20usize).prop_map(Step::Again),
        3 => (1..90i64).prop_map(|n| Step::Back(n * MINUTE)),
        1 => (1..2 * DAY).prop_map(Step::Back),
        1 => prop::sample::select(&[HOUR, DAY, 90 * SECOND, HOUR + 1, DAY - 1]).prop_map(Step::Back),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Forward(i64),
    /// Beside the newest time, which stays.
    Back(i64),
    /// The key of the entry so many before.
    Again(usize),
}

fn log(entries: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Entry>> {
    let revision =
        prop_oneof![3 => Just(None), 2 => (0..4i64).prop_map(Some), 1 => any::<i64>().prop_map(Some)];
    let entry = (0..3u32, step(), event(), revision);
    let start = prop_oneof![
        4 => Just(1_764_000_000_000i64),
        1 => Just(EventTime::MIN.millis() + 500 * DAY),
        1 => Just(EventTime::MAX.millis() - 2000 * DAY),
        1 => Just(-DAY + 1),
    ];
    // Few cities fill chunks and split them; more cities cross workers.
    let cities = prop_oneof![2 => Just(1u32), 3 => Just(3)];
    (start, cities, prop::collection::vec(entry, entries)).prop_map(|(start, cities, steps)| {
        let mut now = [start; 3];
        let mut log: Vec<Entry> = Vec::new();
        for (city, step, event, revision) in steps {
            let city = city % cities;
            let again = |n: usize| log.len().checked_sub(n).map(|i| (log[i].city, log[i].millis));
            let (city, millis) = match step {
                Step::Forward(by) => {
                    now[city as usize] += by;
                    (city, now[city as usize])
                }
                Step::Back(by) => (city, now[city as usize] - by),
                Step::Again(n) => again(n).unwrap_or((city, now[city as usize])),
            };
            log.push(Entry { city, millis, event, revision });
        }
        log
    })
}

/// Ends of epochs: some empty, the last at the end of the log.
fn cuts(len: usize, most: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..=len, 0..most).prop_map(move |mut cuts| {
        cuts.push(len);
        cuts.sort_unstable();
        cuts
    })
}

pub fn case(
    entries: std::ops::Range<usize>,
    epochs: usize,
) -> impl Strategy<Value = (Vec<Entry>, Settings, Vec<usize>)> {
    (log(entries), settings()).prop_flat_map(move |(log, settings)| {
        let cuts = cuts(log.len(), epochs);
        (Just(log), Just(settings), cuts)
    })
}

/// A city or two as sensors have them: at a regular pace, a few readings corrected or withdrawn soon or later; windows of fewer readings than
/// a block, or of several blocks.
pub fn sensors() -> impl Strategy<Value = (Vec<Entry>, Settings, Vec<usize>)> {
    let back = prop_oneof![30 => Just(0), 1 => 1..5i64, 1 => 5..400i64];
    let entries = prop::collection::vec((0..2u32, back, event()), 200..700);
    let spans: &'static [i64] = &[10 * MINUTE, HOUR, 3 * HOUR, 5 * HOUR];
    let settings = (prop::sample::select(spans), prop::sample::select(spans), prop::sample::select(spans));
    let pace = (1..=2u32, prop::sample::select(&[MINUTE, 10 * SECOND]));
    (entries, pace, settings).prop_flat_map(|(entries, (cities, step), (window, lateness, history))| {
        let settings = Settings { formula: FORMULA, window, lateness, history };
        let mut now = [0, 0];
        let log: Vec<Entry> = entries
            .into_iter()
            .map(|(city, back, event)| {
                let city = city % cities;
                let now = &mut now[city as usize];
                *now += if back == 0 { step } else { 0 };
                // What is new is a reading.
                let reading = Measurement::new((*now / SECOND % 71) as f64, 50.0, None).map(Event::Reading);
                let event = if back == 0 { reading.unwrap_or(event) } else { event };
                Entry { city, millis: *now - back * step, event, revision: None }
            })
            .collect();
        let cuts = cuts(log.len(), 40);
        (Just(log), Just(settings), cuts)
    })
}

/// Withdrawals of cities without a reading, more of them than are remembered; then anything at the same times.
pub fn withdrawals() -> impl Strategy<Value = (Vec<Entry>, Settings, Vec<usize>)> {
    let revision = || prop::option::of(0..4i64);
    let early = (0..2u32, 0..500i64, Just(Event::Withdrawal), revision());
    let later = (0..2u32, 0..500i64, event(), revision());
    let entries = (prop::collection::vec(early, 0..300), prop::collection::vec(later, 0..60));
    let spans: &'static [i64] = &[0, 10 * MINUTE, HOUR, 5 * HOUR];
    let settings = (prop::sample::select(spans), prop::sample::select(spans), prop::sample::select(spans));
    (entries, settings).prop_flat_map(|((early, later), (window, lateness, history))| {
        let settings = Settings { formula: FORMULA, window, lateness, history };
        let entry =
            |(city, minute, event, revision)| Entry { city, millis: minute * MINUTE, event, revision };
        let log: Vec<Entry> = early.into_iter().chain(later).map(entry).collect();
        let cuts = cuts(log.len(), 40);
        (Just(log), Just(settings), cuts)
    })
}
