//! What the renderer of a sink is given, against the oracle.

use std::collections::BTreeMap;

use swelter::internals::model::{ArrivalOutcome, CityId, CurrentRow, EventTime, RenderWants};

use super::outcomes::{expected_outcomes, outcomes_by_city};
use crate::support::dataflow_runner::{self, EpochOutput, RunLeg};
use crate::support::recording_sink::SinkChange;
use crate::support::{LogEntry, Oracle, RunSettings};

/// All that a sink can want but the rows.
pub const SINK_WANTS: RenderWants =
    RenderWants { rows: false, current: true, highs: true, outcomes: true, hours: false, days: false };

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

/// What a sink keeps of the changes.
#[derive(Debug, Default, PartialEq)]
struct SinkTables {
    highs: BTreeMap<u32, EventTime>,
    current: BTreeMap<u32, CurrentRow>,
}

impl SinkTables {
    fn of(oracle: &Oracle) -> SinkTables {
        let highs = (0..4).filter_map(|city| Some((city, oracle.high(city)?))).collect();
        SinkTables { highs, current: oracle.current() }
    }

    /// Applies the changes of an epoch, each of which must begin with what is held, and returns its
    /// outcomes.
    fn apply_epoch(&mut self, changes: &[(u32, SinkChange)]) -> Vec<ArrivalOutcome> {
        let (mut outcomes, mut seen) = (Vec::new(), Vec::new());
        for (city, change) in changes {
            match *change {
                SinkChange::Outcome(outcome) => {
                    outcomes.push(ArrivalOutcome { city: CityId(*city), ..outcome });
                }
                SinkChange::Current { before, after, high_before, high } => {
                    assert!(!seen.contains(city), "{city} changes twice in one epoch");
                    seen.push(*city);
                    assert!((before, high_before) != (after, high), "{city} does not change");
                    let held = (self.current.get(city).copied(), self.highs.get(city).copied());
                    assert_eq!((before, high_before), held, "{city}");
                    match after {
                        Some(row) => drop(self.current.insert(*city, row)),
                        None => drop(self.current.remove(city)),
                    }
                    self.highs.extend(high.map(|high| (*city, high)));
                }
                SinkChange::Row(_) | SinkChange::Hour(_) | SinkChange::Day(_) => {
                    panic!("{change:?} is not wanted")
                }
            }
        }
        outcomes
    }
}
