//! What the renderer of a sink is given, against the oracle.

use std::collections::{BTreeMap, BTreeSet};

use swelter::internals::model::time::{Day, DayZone, IanaZone};
use swelter::internals::model::{
    ArrivalOutcome, CheckpointBarrier, CityId, CurrentRow, DayChange, EventTime, HourChange, Measurement,
    PeriodSummary, ReadingEvent, RenderWants,
};

use super::outcomes::{expected_outcomes, outcomes_by_city};
use crate::support::dataflow_runner::{self, CITY_ZONES, EpochOutput, RunLeg};
use crate::support::recording_sink::SinkChange;
use crate::support::{LogEntry, Oracle, PROPERTY_TEST_FORMULA, PeriodRow, RunSettings};

/// All that a sink can want but the rows.
pub const SINK_WANTS: RenderWants =
    RenderWants { rows: false, current: true, highs: true, outcomes: true, hours: true, days: true };

const HOUR_MS: i64 = 3_600_000;

/// A run whose only output is a sink.
pub fn check_sink(log: &[LogEntry], settings: RunSettings, workers: usize, cuts: &[usize]) {
    let leg = RunLeg { workers, sink: Some(SINK_WANTS), ..RunLeg::default() };
    let (outputs, _) = dataflow_runner::run_leg(log, settings, cuts, leg);
    check_sink_outputs((log, settings, cuts), workers, &outputs, None);
}

/// Checks the changes of all epochs, or of those after a resumed one, whose own the sink has.
pub fn check_sink_outputs(
    (log, settings, cuts): (&[LogEntry], RunSettings, &[usize]),
    workers: usize,
    outputs: &[EpochOutput],
    resumed: Option<usize>,
) {
    let (mut oracle, mut next) = (Oracle::new(settings), 0);
    let mut tables = SinkTables::default();
    for (epoch, (&cut, output)) in cuts.iter().zip(outputs).enumerate() {
        let expected = expected_outcomes(&mut oracle, log, next..cut, workers);
        next = cut;
        if resumed.is_some_and(|resumed| epoch <= resumed) {
            assert!(output.sink_changes.is_empty(), "restored state is not rendered");
            tables = SinkTables::of(&oracle);
            continue;
        }
        let found = tables.apply_epoch(&output.sink_changes);
        assert_eq!(outcomes_by_city(found.into_iter()), expected, "outcomes");
        assert_eq!(tables, SinkTables::of(&oracle), "tables");
    }
}

/// An hour or a day: the city, the zone of a day, and the first instant.
type PeriodKey = (u32, Option<&'static str>, i64);

/// What a sink keeps of the changes.
#[derive(Debug, Default, PartialEq)]
struct SinkTables {
    highs: BTreeMap<u32, EventTime>,
    current: BTreeMap<u32, CurrentRow>,
    periods: BTreeMap<PeriodKey, PeriodRow>,
}

fn local_zone(city: u32) -> Option<DayZone> {
    let (_, name) = CITY_ZONES.iter().find(|(zoned, _)| *zoned == city)?;
    Some(DayZone::Zone(IanaZone::from_name(name).unwrap()))
}

fn utc_hour(millis: i64) -> Day {
    let number = millis.div_euclid(HOUR_MS);
    Day { number: number as i32, instants: number * HOUR_MS..(number + 1) * HOUR_MS }
}

fn zone_name(zone: DayZone) -> Option<&'static str> {
    match zone {
        DayZone::Utc => Some("UTC"),
        DayZone::Zone(zone) => Some(zone.name()),
    }
}

impl SinkTables {
    fn of(oracle: &Oracle) -> SinkTables {
        let highs = (0..4).filter_map(|city| Some((city, oracle.high(city)?))).collect();
        let hours = oracle.periods(|_, millis| Some(utc_hour(millis)));
        let days = oracle.periods(|_, millis| Some(DayZone::Utc.day_of(millis)));
        let local_days = oracle.periods(|city, millis| Some(local_zone(city)?.day_of(millis)));
        let keyed = |(city, starts), row, zone: fn(u32) -> Option<DayZone>| {
            ((city, zone(city).and_then(zone_name), starts), row)
        };
        let hours = hours.into_iter().map(|(key, row)| keyed(key, row, |_| None));
        let days = days.into_iter().map(|(key, row)| keyed(key, row, |_| Some(DayZone::Utc)));
        let local_days = local_days.into_iter().map(|(key, row)| keyed(key, row, local_zone));
        SinkTables {
            highs,
            current: oracle.current(),
            periods: hours.chain(days).chain(local_days).collect(),
        }
    }

    /// Applies the changes of an epoch, each of which must begin with what is held, and returns its
    /// outcomes.
    fn apply_epoch(&mut self, changes: &[(u32, SinkChange)]) -> Vec<ArrivalOutcome> {
        let (mut outcomes, mut cities, mut periods) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for (city, change) in changes {
            match *change {
                SinkChange::Outcome(outcome) => {
                    outcomes.push(ArrivalOutcome { city: CityId(*city), ..outcome });
                }
                SinkChange::Current { before, after, high_before, high } => {
                    assert!(cities.insert(city), "{city} changes twice in one epoch");
                    assert!((before, high_before) != (after, high), "{city} does not change");
                    let held = (self.current.get(city).copied(), self.highs.get(city).copied());
                    assert_eq!((before, high_before), held, "{city}");
                    match after {
                        Some(row) => drop(self.current.insert(*city, row)),
                        None => drop(self.current.remove(city)),
                    }
                    self.highs.extend(high.map(|high| (*city, high)));
                }
                SinkChange::Hour(HourChange { starts, before, after, is_final, .. }) => {
                    let (key, Day { number, instants }) = ((*city, None, starts), utc_hour(starts));
                    assert!(periods.insert(key), "{key:?} changes twice in one epoch");
                    self.change_period(key, before, (number, instants.end, after, is_final));
                }
                SinkChange::Day(DayChange { zone, day, starts, ends, before, after, is_final, .. }) => {
                    let key = (*city, zone_name(zone), starts);
                    assert!(periods.insert(key), "{key:?} changes twice in one epoch");
                    self.change_period(key, before, (day, ends, after, is_final));
                }
                SinkChange::Row(_) => panic!("{change:?} is not wanted"),
            }
        }
        outcomes
    }

    fn change_period(
        &mut self,
        key: PeriodKey,
        before: Option<PeriodSummary>,
        (number, ends, after, is_final): (i32, i64, Option<PeriodSummary>, bool),
    ) {
        let held = self.periods.get(&key);
        assert_eq!(before, held.map(|row| row.summary), "{key:?}");
        assert!(held.is_none_or(|row| !row.is_final), "{key:?} was final");
        assert!(before != after || is_final, "{key:?} does not change");
        match after {
            Some(summary) => drop(self.periods.insert(key, PeriodRow { number, ends, summary, is_final })),
            None => drop(self.periods.remove(&key)),
        }
    }
}

/// A checkpoint of a run without a sink has no hours and days: they are counted from the readings
/// that it holds.
#[test]
fn periods_are_restored_from_held_readings_of_a_checkpoint_without_them() {
    let settings = RunSettings {
        formula: PROPERTY_TEST_FORMULA,
        window: 25 * HOUR_MS,
        lateness: 20 * HOUR_MS,
        history: 0,
    };
    let reading = |n: i64| {
        let event = ReadingEvent::Reading(Measurement::new(60.0 + (n * 7 % 31) as f64, 50.0, None).unwrap());
        // Every third reading is late.
        let millis = millis(CLOCK_CHANGES[0]) + (n - n % 3 / 2 * 40) * HOUR_MS / 4;
        LogEntry { city: n as u32 % 2, millis, event, revision: None }
    };
    let log: Vec<LogEntry> = (0..600).map(reading).collect();
    let cuts: Vec<usize> = (1..=60).map(|epoch| epoch * 10).collect();
    let barriers = BTreeMap::from([(30, (CheckpointBarrier { checkpoint: 0, full: true }, 0))]);
    let without_sink = RunLeg { workers: 1, barriers, ..RunLeg::default() };
    let (_, mut taken) = dataflow_runner::run_leg(&log, settings, &cuts, without_sink);
    let cities = taken.remove(0).cities;
    assert!(cities.iter().all(|city| city.periods.is_none()));
    let leg = RunLeg { workers: 1, sink: Some(SINK_WANTS), resumed: Some((30, cities)), ..RunLeg::default() };
    let (outputs, _) = dataflow_runner::run_leg(&log, settings, &cuts, leg);
    let changed = |change: fn(&SinkChange) -> bool| {
        outputs.iter().flat_map(|output| &output.sink_changes).any(|(_, found)| change(found))
    };
    assert!(changed(|change| matches!(change, SinkChange::Day(day) if day.is_final)));
    assert!(changed(|change| matches!(change, SinkChange::Hour(hour) if hour.is_final)));
    check_sink_outputs((&log, settings, &cuts), 1, &outputs, Some(30));
}

/// The log, as if its times were later by so much.
pub fn shift_log(log: &[LogEntry], by: i64) -> Vec<LogEntry> {
    log.iter().map(|entry| LogEntry { millis: entry.millis + by, ..*entry }).collect()
}

/// Times before which the clocks of a test city change within hours: set back and forward in New
/// York, and over a date that Apia skipped.
pub const CLOCK_CHANGES: [&str; 3] = ["2025-11-02T00:00:00Z", "2026-03-08T01:00:00Z", "2011-12-30T04:00:00Z"];

pub fn millis(text: &str) -> i64 {
    text.parse::<EventTime>().unwrap().millis()
}

/// The local days of a city with a reading every half hour: date as a day of UTC, first instant,
/// end, and readings.
fn local_days(city: u32, from: &str, to: &str) -> Vec<(String, String, String, u32)> {
    let settings =
        RunSettings { formula: PROPERTY_TEST_FORMULA, window: 0, lateness: 2 * HOUR_MS, history: 0 };
    let event = ReadingEvent::Reading(Measurement::new(70.0, 50.0, None).unwrap());
    let times = (millis(from)..millis(to)).step_by(HOUR_MS as usize / 2);
    let log: Vec<LogEntry> = times.map(|millis| LogEntry { city, millis, event, revision: None }).collect();
    let leg = RunLeg { workers: 1, sink: Some(SINK_WANTS), ..RunLeg::default() };
    let cuts: Vec<usize> = (1..=log.len()).collect();
    let (outputs, _) = dataflow_runner::run_leg(&log, settings, &cuts, leg);
    check_sink_outputs((&log, settings, &cuts), 1, &outputs, None);
    let time = |millis: i64| EventTime::from_millis(millis).unwrap().to_string();
    let mut days = Vec::new();
    for (_, change) in outputs.iter().flat_map(|output| &output.sink_changes) {
        if let SinkChange::Day(day) = change
            && day.zone != DayZone::Utc
            && day.is_final
        {
            let date = time(i64::from(day.day) * 24 * HOUR_MS)[..10].to_owned();
            days.push((date, time(day.starts), time(day.ends), day.after.unwrap().readings));
        }
    }
    days
}

#[test]
fn local_days_are_as_long_as_their_clocks_say() {
    let day = |date: &str, starts: &str, ends: &str, readings| {
        (date.to_owned(), format!("{starts}Z"), format!("{ends}Z"), readings)
    };
    // Clocks are set back at 06:00Z, and forward at 07:00Z.
    assert_eq!(
        local_days(0, "2025-11-01T04:00:00Z", "2025-11-03T08:00:00Z"),
        [
            day("2025-11-01", "2025-11-01T04:00:00", "2025-11-02T04:00:00", 48),
            day("2025-11-02", "2025-11-02T04:00:00", "2025-11-03T05:00:00", 50),
        ]
    );
    assert_eq!(
        local_days(0, "2026-03-08T05:00:00Z", "2026-03-09T07:00:00Z"),
        [day("2026-03-08", "2026-03-08T05:00:00", "2026-03-09T04:00:00", 46)]
    );
    // Midnight does not exist: the day begins at 01:00 by its clocks.
    assert_eq!(
        local_days(3, "2013-10-19T03:00:00Z", "2013-10-21T05:00:00Z"),
        [
            day("2013-10-19", "2013-10-19T03:00:00", "2013-10-20T03:00:00", 48),
            day("2013-10-20", "2013-10-20T03:00:00", "2013-10-21T02:00:00", 46),
        ]
    );
    // 30 December 2011 does not exist.
    assert_eq!(
        local_days(1, "2011-12-29T10:00:00Z", "2011-12-31T13:00:00Z"),
        [
            day("2011-12-29", "2011-12-29T10:00:00", "2011-12-30T10:00:00", 48),
            day("2011-12-31", "2011-12-30T10:00:00", "2011-12-31T10:00:00", 48),
        ]
    );
}
