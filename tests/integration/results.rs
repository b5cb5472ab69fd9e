//! The dataflow against the oracle: random logs, any epochs, 1, 2 and 4 workers; integers equal
//! after every epoch.

mod outcomes;
mod serving_state;
mod sinks;
mod strategies;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::ControlFlow;

use proptest::prelude::*;
use swelter::internals::admission::{Admission, AdmissionRules};
use swelter::internals::dataflow::rolling::{EpochChanges, Rolling, RollingOutputs};
use swelter::internals::model::{
    CheckpointBarrier, CityId, CityNames, CitySnapshot, EventTime, Measurement, OutcomeKind, PartitionIndex,
    ReadingEvent, RenderWants,
};

use self::outcomes::{expected_outcomes, outcomes_by_city};
use self::serving_state::{ServingState, accumulate_diffs, check_rankings};
use self::sinks::{CLOCK_CHANGES, SINK_WANTS, check_sink, check_sink_outputs, millis, shift_log};
use self::strategies::{any_case, sensor_cases, withdrawal_cases};
use crate::support::dataflow_runner::{self, EpochOutput, RunLeg};
use crate::support::{LogEntry, Oracle, PROPERTY_TEST_FORMULA, RunSettings, city_name, city_number};

/// Applies an epoch's changes: each must begin with what is held, and change it, and no key may
/// change twice.
fn accumulate<K: Ord + Copy + Debug, V: PartialEq + Copy + Debug>(
    held: &mut BTreeMap<K, V>,
    changes: &[(K, Option<V>, Option<V>)],
) {
    let mut seen = std::collections::BTreeSet::new();
    for &(key, before, after) in changes {
        assert!(seen.insert(key), "{key:?} changes twice in one epoch");
        assert_ne!(before, after, "{key:?} does not change");
        assert_eq!(held.get(&key).copied(), before, "{key:?}: the retraction is not what was emitted");
        match after {
            Some(row) => held.insert(key, row),
            None => held.remove(&key),
        };
    }
}

fn check_log(log: &[LogEntry], settings: RunSettings, workers: usize, cuts: &[usize]) {
    check_sliced(log, settings, workers, cuts, None);
}

/// Answers are computed so many rows at a time.
fn check_sliced(
    log: &[LogEntry],
    settings: RunSettings,
    workers: usize,
    cuts: &[usize],
    slice_rows: Option<usize>,
) {
    let outputs = dataflow_runner::run_log(log, settings, workers, cuts, slice_rows);
    check_outputs((log, settings, cuts), workers, &outputs, None);
}

/// Checks all epochs, or those from a resumed one on.
fn check_outputs(
    (log, settings, cuts): (&[LogEntry], RunSettings, &[usize]),
    workers: usize,
    outputs: &[EpochOutput],
    resumed: Option<usize>,
) {
    let mut oracle = Oracle::new(settings);
    let (mut rows, mut days) = (BTreeMap::new(), BTreeMap::new());
    let (mut current, mut hottest, mut categories) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let first = resumed.unwrap_or(0);
    let (mut told, mut next) = (ServingState::at(first), 0);
    for (epoch, (&cut, output)) in cuts.iter().zip(outputs).enumerate() {
        let mut expected = expected_outcomes(&mut oracle, log, next..cut, workers);
        next = cut;
        if epoch < first {
            continue;
        }
        if resumed == Some(epoch) {
            // The rows before are the resumed state, and are sent as current.
            expected.clear();
            rows = oracle.rows();
        }
        assert_eq!(outcomes_by_city(output.outcomes.iter().copied()), expected, "outcomes");
        accumulate(&mut rows, &output.rows);
        assert_eq!(rows, oracle.rows(), "rows");
        accumulate(&mut days, &output.days);
        if resumed.is_none() {
            assert_eq!(days, oracle.days(), "days");
        }
        accumulate_diffs(&mut current, output.current.iter().map(|(city, row, diff)| ((*city, *row), *diff)));
        let expected = oracle.current();
        assert_eq!(
            current.keys().copied().collect::<Vec<_>>(),
            expected.clone().into_iter().collect::<Vec<_>>()
        );
        check_rankings(&mut hottest, &mut categories, output, &oracle);
        told.check_epoch(output, &oracle, dataflow_runner::explained_key(log, cuts, epoch));
    }
    assert_eq!(told.counts.split_city, 0);
}

/// Checks the serving updates of a run in which no sink wants rows.
fn check_serving_updates(log: &[LogEntry], settings: RunSettings, workers: usize, cuts: &[usize]) {
    let leg = RunLeg { workers, serving_only: true, ..RunLeg::default() };
    let (outputs, _) = dataflow_runner::run_leg(log, settings, cuts, leg);
    let (mut oracle, mut told, mut next) = (Oracle::new(settings), ServingState::default(), 0);
    for (epoch, (&cut, output)) in cuts.iter().zip(&outputs).enumerate() {
        for entry in &log[next..cut] {
            oracle.apply_arrival(entry);
        }
        next = cut;
        told.check_epoch(output, &oracle, dataflow_runner::explained_key(log, cuts, epoch));
    }
}

/// Several runs, each resumed from a snapshot that the previous one took while it ran.
fn check_resumed(log: &[LogEntry], settings: RunSettings, cuts: &[usize], legs: &[PlannedLeg]) {
    check_resumed_run((log, settings, cuts), legs, None);
}

/// The same, perhaps with a sink instead of all other outputs.
fn check_resumed_run(
    (log, settings, cuts): (&[LogEntry], RunSettings, &[usize]),
    legs: &[PlannedLeg],
    sink: Option<RenderWants>,
) {
    let mut kept: BTreeMap<String, CitySnapshot> = BTreeMap::new();
    let mut at = None;
    for planned in legs {
        let workers = planned.workers;
        let first = at.map_or(0, |at: usize| at + 1);
        let marks: BTreeMap<usize, (CheckpointBarrier, u32)> = planned
            .barriers
            .iter()
            .enumerate()
            .map(|(i, (after, full, busy))| {
                (first + after.index(cuts.len() - first), (i as u64, *full, *busy))
            })
            .map(|(epoch, (checkpoint, full, busy))| (epoch, (CheckpointBarrier { checkpoint, full }, busy)))
            .collect();
        let last = *marks.last_key_value().expect("each leg has marks").0;
        let leg = RunLeg { workers, barriers: marks, sink, ..RunLeg::default() };
        check_leg((log, settings, cuts), leg, at, &mut kept);
        if last + 1 == cuts.len() {
            break;
        }
        at = Some(last);
    }
}

/// A run that is resumed from the kept state of an epoch, if there is one, and adds its snapshots
/// to that state.
fn check_leg(
    (log, settings, cuts): (&[LogEntry], RunSettings, &[usize]),
    leg: RunLeg,
    at: Option<usize>,
    kept: &mut BTreeMap<String, CitySnapshot>,
) {
    let workers = leg.workers;
    let translated = kept.values().cloned().map(|city| {
        // Worker `n` reads partition `n`.
        let slot = PartitionIndex((city_number(&city.name) as usize % workers) as u16);
        CitySnapshot { partition: slot, ..city }
    });
    let resumed = at.map(|at| (at, translated.collect()));
    let (sink, leg) = (leg.sink, RunLeg { days: at.is_none(), resumed, ..leg });
    let (outputs, mut taken) = dataflow_runner::run_leg(log, settings, cuts, leg);
    match sink {
        Some(_) => check_sink_outputs((log, settings, cuts), workers, &outputs, at),
        None => check_outputs((log, settings, cuts), workers, &outputs, at),
    }
    taken.sort_by_key(|taken| taken.epoch);
    for part in taken.chunk_by(|a, b| a.epoch == b.epoch) {
        if part[0].barrier.full {
            kept.clear();
        }
        for city in part.iter().flat_map(|taken| taken.cities.iter().cloned()) {
            match kept.get_mut(&*city.name) {
                Some(base) => base.apply_increment(city),
                None => drop(kept.insert(city.name.to_string(), city)),
            }
        }
    }
}

/// A sensor's clock was ahead, and its reading is withdrawn between two snapshots: the next
/// readings are older than the newest of the first snapshot.
#[test]
fn increment_contains_readings_older_than_withdrawn_newest() {
    let day = 86_400_000;
    let settings = RunSettings { formula: PROPERTY_TEST_FORMULA, window: day, lateness: day, history: 0 };
    let entry = |minute: i64, event| LogEntry { city: 0, millis: minute * 60_000, event, revision: None };
    let reading = |minute: i64| {
        entry(minute, ReadingEvent::Reading(Measurement::new(60.0 + minute as f64, 50.0, None).unwrap()))
    };
    let log = [
        reading(0),
        reading(9),
        entry(9, ReadingEvent::Withdrawal),
        reading(1),
        reading(2),
        reading(3),
        reading(1),
    ];
    let (cuts, mut kept) = ([2, 5, 6, 7], BTreeMap::new());
    let mark = |checkpoint, full| (CheckpointBarrier { checkpoint, full }, 0);
    let marks = BTreeMap::from([(0, mark(0, true)), (1, mark(1, false))]);
    let leg = |barriers| RunLeg { workers: 1, barriers, ..RunLeg::default() };
    check_leg((&log, settings, &cuts), leg(marks), None, &mut kept);
    let marks = BTreeMap::from([(2, mark(0, true))]);
    check_leg((&log, settings, &cuts), leg(marks), Some(1), &mut kept);
}

/// A sensor that was silent for a while has no row of the last hour.
#[test]
fn trend_is_from_the_newest_row_of_one_to_two_hours_before() {
    const HOUR: i64 = 3_600_000;
    let settings =
        RunSettings { formula: PROPERTY_TEST_FORMULA, window: 0, lateness: 48 * HOUR, history: 48 * HOUR };
    let entry = |millis: i64, event| LogEntry { city: 0, millis, event, revision: None };
    let reading = |millis: i64, temperature: f64| {
        entry(millis, ReadingEvent::Reading(Measurement::new(temperature, 50.0, None).unwrap()))
    };
    let now = 40 * HOUR;
    for (before, expected) in [
        (vec![HOUR - 1], None),
        (vec![HOUR], Some(HOUR)),
        (vec![2 * HOUR], Some(2 * HOUR)),
        (vec![2 * HOUR + 1], None),
        (vec![21 * HOUR], None),
        (vec![21 * HOUR, 2 * HOUR, HOUR + 1, HOUR - 1, 1], Some(HOUR + 1)),
        (vec![2 * HOUR + 1, HOUR - 1], None),
    ] {
        let temperature = |before: i64| 50.0 + before as f64 / HOUR as f64;
        let mut log: Vec<LogEntry> =
            before.iter().map(|before| reading(now - before, temperature(*before))).collect();
        log.push(reading(now, 70.0));
        let of = |before: i64| {
            let (heat_index, _) =
                PROPERTY_TEST_FORMULA.evaluate(&Measurement::new(temperature(before), 50.0, None).unwrap());
            (heat_index.micros(), 1)
        };
        let cuts: Vec<usize> = (1..=log.len()).collect();
        let outputs = dataflow_runner::run_log(&log, settings, 1, &cuts, None);
        let newest = outputs.last().unwrap().current.iter().rfind(|(_, _, diff)| *diff == 1).unwrap().1;
        assert_eq!((newest.reading_at.millis(), newest.hour_ago), (now, expected.map(of)), "{before:?}");
        check_log(&log, settings, 1, &cuts);
        // In any order of arrival.
        log.reverse();
        check_log(&log, settings, 1, &cuts);
    }
    // The row is withdrawn, then corrected back.
    let log = [reading(0, 60.0), reading(HOUR, 80.0), entry(0, ReadingEvent::Withdrawal), reading(0, 65.0)];
    check_log(&log, settings, 1, &[2, 3, 4]);
}

#[derive(Clone, Debug)]
struct PlannedLeg {
    workers: usize,
    /// The epoch of each barrier, whether the snapshot is full, and how often the sink then reports
    /// that its buffer is full.
    barriers: Vec<(prop::sample::Index, bool, u32)>,
}

fn planned_legs() -> impl Strategy<Value = Vec<PlannedLeg>> {
    let mark = (any::<prop::sample::Index>(), prop::bool::weighted(0.3), 0..12u32);
    let leg = (prop::sample::select(&[1usize, 2, 4]), prop::collection::vec(mark, 1..5));
    prop::collection::vec(leg.prop_map(|(workers, marks)| PlannedLeg { workers, barriers: marks }), 2..5)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Many epochs of few entries.
    #[test]
    fn outputs_equal_recomputation_after_every_epoch(
        (log, settings, cuts) in any_case(0..90, 30),
        workers in prop::sample::select(&[1usize, 2, 4]),
    ) {
        check_log(&log, settings, workers, &cuts);
    }

    /// Answers of one epoch are made while many others follow, a row at a time.
    #[test]
    fn responses_in_slices_of_one_row_match_their_epoch(
        (log, settings, cuts) in prop_oneof![any_case(0..90, 30).boxed(), sensor_cases().boxed()],
        workers in prop::sample::select(&[1usize, 2, 4]),
    ) {
        check_sliced(&log, settings, workers, &cuts, Some(1));
    }

    /// The same where chunks fill, split and leave while they are pinned.
    #[test]
    fn responses_in_slices_of_long_logs_match_their_epoch(
        (log, settings, cuts) in any_case(300..900, 12),
        workers in prop::sample::select(&[1usize, 2]),
    ) {
        check_sliced(&log, settings, workers, &cuts, Some(16));
    }

    /// Few epochs of many entries: chunks fill, split and leave.
    #[test]
    fn outputs_equal_recomputation_of_long_logs(
        (log, settings, cuts) in any_case(300..900, 5),
        workers in prop::sample::select(&[1usize, 2]),
    ) {
        check_log(&log, settings, workers, &cuts);
    }

    #[test]
    fn outputs_equal_recomputation_of_ordered_sensors(
        (log, settings, cuts) in sensor_cases(),
        workers in prop::sample::select(&[1usize, 2]),
    ) {
        check_log(&log, settings, workers, &cuts);
    }

    #[test]
    fn outputs_equal_recomputation_if_withdrawals_come_first(
        (log, settings, cuts) in withdrawal_cases(),
        workers in prop::sample::select(&[1usize, 2]),
    ) {
        check_log(&log, settings, workers, &cuts);
    }

    #[test]
    fn resumed_state_of_withdrawals_continues_identically(
        (log, settings, cuts) in withdrawal_cases(),
        legs in planned_legs(),
    ) {
        check_resumed(&log, settings, &cuts, &legs);
    }

    /// Rows that no sink wants are not computed.
    #[test]
    fn serving_updates_equal_recomputation_without_row_sinks(
        (log, settings, cuts) in prop_oneof![any_case(0..90, 30).boxed(), sensor_cases().boxed()],
        workers in prop::sample::select(&[1usize, 2]),
    ) {
        check_serving_updates(&log, settings, workers, &cuts);
    }

    #[test]
    fn resumed_state_of_sensors_continues_identically(
        (log, settings, cuts) in sensor_cases(),
        legs in planned_legs(),
    ) {
        check_resumed(&log, settings, &cuts, &legs);
    }

    /// A resumed run has the outputs of an uninterrupted one, at any epoch and with any number of
    /// workers.
    #[test]
    fn resumed_state_continues_identically(
        (log, settings, cuts) in any_case(1..120, 30),
        legs in planned_legs(),
    ) {
        check_resumed(&log, settings, &cuts, &legs);
    }

    #[test]
    fn resumed_state_of_long_logs_continues_identically(
        (log, settings, cuts) in any_case(300..900, 12),
        legs in planned_legs(),
    ) {
        check_resumed(&log, settings, &cuts, &legs);
    }

    /// What a sink of outcomes and current rows is given.
    #[test]
    fn sink_changes_equal_recomputation_after_every_epoch(
        (log, settings, cuts) in any_case(0..90, 30),
        workers in prop::sample::select(&[1usize, 2, 4]),
    ) {
        check_sink(&log, settings, workers, &cuts);
    }

    /// While the clocks of their cities change.
    #[test]
    fn sink_changes_equal_recomputation_of_ordered_sensors(
        (log, settings, cuts) in sensor_cases(),
        start in prop::sample::select(&CLOCK_CHANGES[..]),
        workers in prop::sample::select(&[1usize, 2]),
    ) {
        check_sink(&shift_log(&log, millis(start)), settings, workers, &cuts);
    }

    #[test]
    fn sink_changes_continue_identically_from_a_checkpoint(
        (log, settings, cuts) in prop_oneof![
            any_case(1..120, 30).boxed(), any_case(300..600, 12).boxed(), sensor_cases().boxed(),
            withdrawal_cases().boxed(),
        ],
        start in prop::sample::select(&CLOCK_CHANGES[..]),
        legs in planned_legs(),
    ) {
        // Some logs are at an end of time.
        let by = if log.iter().all(|entry| entry.millis.abs() < millis(start)) { millis(start) } else { 0 };
        check_resumed_run((&shift_log(&log, by), settings, &cuts), &legs, Some(SINK_WANTS));
    }

    /// The servable rows of a city, read from the state.
    #[test]
    fn servable_rows_equal_the_recomputation((log, settings, cuts) in any_case(0..400, 6), enough in 1..400usize) {
        let mut oracle = Oracle::new(settings);
        let names = CityNames::default();
        let mut rolling = Rolling::new(PROPERTY_TEST_FORMULA, settings.retention(), RollingOutputs::default(), names.clone());
        let rules = AdmissionRules::new(settings.retention().lateness);
        let (mut admission, mut changed, mut next) = (Admission::new(0, rules), EpochChanges::default(), 0);
        for cut in cuts {
            let mut arrivals = Vec::new();
            for entry in &log[next..cut] {
                oracle.apply_arrival(entry);
                let name = city_name(entry.city);
                let upsert = entry.upsert(&name);
                let Ok(admitted) = admission.admit(&upsert, None) else { continue };
                if admitted.is_new {
                    rolling.introduce_city(&admitted.introduction(&name));
                }
                arrivals.push(admitted.arrival(&upsert, 0));
            }
            next = cut;
            rolling.apply_arrivals(&[arrivals], |_| false, &mut changed);
            for id in 0..names.len() as u32 {
                let mut rows = Vec::new();
                rolling.for_each_servable_row(CityId(id), EventTime::MIN, EventTime::MAX, |at, row| {
                    rows.push((at, row));
                    ControlFlow::Continue(())
                });
                prop_assert_eq!(&rows, &oracle.servable_rows(city_number(&names.get(CityId(id)))));
                if let [_, first, .., last, _] = &rows[..] {
                    let (from, to) = (EventTime::from_millis(first.0).unwrap(), EventTime::from_millis(last.0).unwrap());
                    let mut part = Vec::new();
                    rolling.for_each_servable_row(CityId(id), from, to, |at, row| {
                        part.push((at, row));
                        if part.len() < enough { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                    });
                    prop_assert_eq!(&part, &rows[1..(1 + enough).min(rows.len() - 1)]);
                }
            }
        }
    }

    /// A city in two partitions is served in the order in which the operator sees it; a final row
    /// never changes.
    #[test]
    fn city_in_two_partitions_keeps_final_rows((log, settings, _) in any_case(0..90, 1)) {
        let rules = AdmissionRules::new(settings.retention().lateness);
        let mut oracle = Oracle::new(settings);
        let wanted = RollingOutputs { outcomes: true, ..RollingOutputs::default() };
        let mut rolling = Rolling::new(PROPERTY_TEST_FORMULA, settings.retention(), wanted, CityNames::default());
        let mut partitions = [Admission::new(0, rules), Admission::new(1, rules)];
        let mut seen = std::collections::BTreeSet::new();
        let (mut rows, mut changed) = (BTreeMap::new(), EpochChanges::default());
        for (i, entry) in log.iter().map(|entry| LogEntry { city: 0, ..*entry }).enumerate() {
            let (expected, partition) = (oracle.apply_with_effect(&entry), i * 7 % 3 % 2);
            let upsert = entry.upsert("split");
            let admitted = partitions[partition].admit(&upsert, None);
            let Ok(admitted) = admitted else {
                prop_assert_eq!(expected, None);
                continue;
            };
            seen.insert(partition);
            if admitted.is_new {
                rolling.introduce_city(&admitted.introduction("split"));
            }
            rolling.apply_arrivals(&[vec![admitted.arrival(&upsert, 0)]], |_| true, &mut changed);
            let outcome = changed.outcomes[0];
            prop_assert_eq!(outcome.kind, expected.map_or(OutcomeKind::TooLate, |expected| expected.kind));
            prop_assert_eq!((outcome.partition, outcome.is_split), (PartitionIndex(partition as u16), seen.len() == 2));
            prop_assert_eq!(outcome.high, oracle.high(0));
            prop_assert_eq!(
                (outcome.before, outcome.after),
                expected.map_or((None, None), |expected| (expected.before, expected.after))
            );
            let changes: Vec<_> =
                changed.rows.iter().flatten().map(|c| ((0, c.reading_at.millis()), c.before, c.after)).collect();
            accumulate(&mut rows, &changes);
            prop_assert_eq!(&rows, &oracle.rows());
        }
    }
}
