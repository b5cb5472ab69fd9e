//! The outcomes of arrivals against the oracle.

use std::collections::BTreeMap;
use std::ops::Range;

use swelter::internals::model::{ArrivalOutcome, CityId, EventTime, PartitionIndex, Revision};

use crate::support::dataflow_runner::arrival_time;
use crate::support::{ExpectedEffect, LogEntry, Oracle};

/// The outcomes of each city, in the order in which they came.
pub type OutcomesByCity = BTreeMap<u32, Vec<ArrivalOutcome>>;

pub fn outcomes_by_city(outcomes: impl Iterator<Item = ArrivalOutcome>) -> OutcomesByCity {
    let mut by_city = OutcomesByCity::new();
    for outcome in outcomes {
        by_city.entry(outcome.city.0).or_default().push(outcome);
    }
    by_city
}

/// The outcomes of the entries at these indexes of the log, which are one epoch. Worker `n` reads
/// partition `n`.
pub fn expected_outcomes(
    oracle: &mut Oracle,
    log: &[LogEntry],
    epoch: Range<usize>,
    workers: usize,
) -> OutcomesByCity {
    let mut by_city = OutcomesByCity::new();
    for position in epoch {
        let entry = &log[position];
        let Some(effect) = oracle.apply_with_effect(entry) else { continue };
        let ExpectedEffect { kind, before, after, is_first_of_city, high } = effect;
        let outcomes = by_city.entry(entry.city).or_default();
        outcomes.push(ArrivalOutcome {
            city: CityId(entry.city),
            reading_at: EventTime::from_millis(entry.millis).unwrap(),
            partition: PartitionIndex((entry.city as usize % workers) as u16),
            position: position as u64,
            arrived_at: arrival_time(position),
            event: entry.event,
            revision: entry.revision.and_then(Revision::new),
            kind,
            seq: outcomes.len() as u32,
            before,
            after,
            is_first_of_city,
            is_split: false,
            high,
        });
    }
    by_city
}
