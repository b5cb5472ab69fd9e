//! What tables must hold after a log: the oracle, and the outcome of every arrival.

use std::collections::BTreeMap;

use swelter::internals::model::{Category, HeatIndex, Measurement, OutcomeKind};

use crate::support::{LogEntry, Oracle, RunSettings};

/// An arrival, and what its key had before and after it.
pub struct AppliedArrival {
    pub entry: LogEntry,
    pub outcome: OutcomeKind,
    pub before: Option<(HeatIndex, Category)>,
    pub after: Option<(HeatIndex, Category)>,
    pub measurement_before: Option<Measurement>,
}

pub struct AppliedLog {
    pub oracle: Oracle,
    /// In the order of the log; those that admission refuses are not among them.
    pub arrivals: Vec<AppliedArrival>,
    /// The measurement and revision of each reading that counts.
    pub measured: BTreeMap<(u32, i64), (Measurement, Option<i64>)>,
    /// The newest reading of each city that was ever admitted.
    pub highs: BTreeMap<u32, i64>,
}

/// The summary of the readings of a period.
pub struct Summary {
    pub readings: i32,
    pub sum: i64,
    pub max: i64,
    pub max_at: i64,
    pub categories: [i32; 5],
}

impl AppliedLog {
    pub fn new(settings: RunSettings) -> AppliedLog {
        AppliedLog {
            oracle: Oracle::new(settings),
            arrivals: Vec::new(),
            measured: BTreeMap::new(),
            highs: BTreeMap::new(),
        }
    }

    /// Returns false if admission refuses the arrival.
    pub fn apply(&mut self, entry: LogEntry) -> bool {
        let key = (entry.city, entry.millis);
        let heat = |oracle: &Oracle| oracle.row(key.0, key.1).map(|row| (row.heat_index(), row.category()));
        let before = heat(&self.oracle);
        let Some(outcome) = self.oracle.apply_arrival(&entry) else { return false };
        let measurement_before = self.measured.get(&key).map(|(measurement, _)| *measurement);
        match (outcome, entry.event.measurement()) {
            (OutcomeKind::Inserted | OutcomeKind::Corrected, Some(measurement)) => {
                self.measured.insert(key, (*measurement, entry.revision));
            }
            (OutcomeKind::Withdrawn, _) => drop(self.measured.remove(&key)),
            _ => {}
        }
        if entry.event.measurement().is_some() {
            let high = self.highs.entry(entry.city).or_insert(entry.millis);
            *high = (*high).max(entry.millis);
        }
        let after = heat(&self.oracle);
        self.arrivals.push(AppliedArrival { entry, outcome, before, after, measurement_before });
        true
    }

    /// The summaries of all periods of this length with readings, by city and start.
    pub fn summaries(&self, length: i64) -> BTreeMap<(u32, i64), Summary> {
        let mut summaries: BTreeMap<(u32, i64), Summary> = BTreeMap::new();
        for ((city, millis), row) in self.oracle.rows() {
            let heat = row.heat_index().micros();
            let starts = millis.div_euclid(length) * length;
            let new = Summary { readings: 0, sum: 0, max: heat, max_at: millis, categories: [0; 5] };
            let summary = summaries.entry((city, starts)).or_insert(new);
            summary.readings += 1;
            summary.sum += heat;
            summary.categories[row.category() as usize] += 1;
            if heat > summary.max {
                (summary.max, summary.max_at) = (heat, millis);
            }
        }
        summaries
    }
}

/// The number of an outcome in the table `outcome`.
pub fn outcome_code(outcome: OutcomeKind) -> i16 {
    match outcome {
        OutcomeKind::Inserted => 1,
        OutcomeKind::Corrected => 2,
        OutcomeKind::Withdrawn => 3,
        OutcomeKind::NothingToWithdraw => 4,
        OutcomeKind::OldRevision => 5,
        OutcomeKind::Superseded => 6,
        OutcomeKind::TooLate => 7,
    }
}
