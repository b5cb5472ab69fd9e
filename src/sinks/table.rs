//! The results of a finite run, accumulated: what each key holds when the log has ended.

use std::sync::Arc;

use crate::model::{
    Batch, Blocks, Category, Change, CityId, CityNames, Counts, DayChange, DaySummary, Event, EventTime,
    HeatIndex, Measurement, Outcome, OutcomeKind, ResultRow, Row,
};

/// What each time holds after sets and removals in any order of time: the last one of a time counts. In order a set is a push;
/// out of order it waits in `pending`, which is merged in when it has grown as long as the rest, so that each costs
/// O(log n) amortised.
#[derive(Clone, Debug)]
struct Timeline<V> {
    held: Blocks<(i64, V)>,
    pending: Vec<(i64, Option<V>)>,
}

const LEAST_PENDING: usize = 1024;

impl<V: Copy> Timeline<V> {
    fn new() -> Timeline<V> {
        Timeline { held: Blocks::default(), pending: Vec::new() }
    }

    #[inline]
    fn set(&mut self, at: i64, value: Option<V>) {
        match value {
            Some(value) if self.pending.is_empty() && self.held.last().is_none_or(|(last, _)| *last < at) => {
                self.held.push((at, value));
            }
            _ => {
                self.pending.push((at, value));
                if self.pending.len() >= self.held.len().max(LEAST_PENDING) {
                    self.merge();
                }
            }
        }
    }

    fn merge(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        // Stable: the last set of a time stays the last.
        self.pending.sort_by_key(|(at, _)| *at);
        let held = std::mem::take(&mut self.held);
        let mut held = held.iter().peekable();
        for sets in self.pending.chunk_by(|a, b| a.0 == b.0) {
            let (at, value) = sets[sets.len() - 1];
            while let Some(before) = held.next_if(|(time, _)| *time < at) {
                self.held.push(*before);
            }
            held.next_if(|(time, _)| *time == at);
            if let Some(value) = value {
                self.held.push((at, value));
            }
        }
        held.for_each(|rest| self.held.push(*rest));
        self.pending.clear();
    }

    fn into_sorted(mut self) -> Blocks<(i64, V)> {
        self.merge();
        self.held
    }
}

/// A row without its time and category, which the result files do not have.
#[derive(Clone, Copy, Debug)]
struct CompactRow {
    sum: i64,
    heat_index: u32,
    count: u32,
}

/// One city's results.
#[derive(Debug)]
struct City {
    rows: Timeline<CompactRow>,
    /// What the arrivals that won have measured.
    winners: Timeline<Measurement>,
    days: Timeline<DaySummary>,
}

/// The results of the cities of one worker.
#[derive(Debug, Default)]
pub struct Table {
    cities: Vec<City>,
    pub counts: Counts,
}

impl Table {
    pub fn take_rows(&mut self, batch: &Batch<Change>) {
        for change in batch.changes.iter().flat_map(|(_, changes)| changes) {
            let compact = |row: Row| CompactRow {
                sum: row.sum(),
                heat_index: row.heat_index().to_compact(),
                count: row.count(),
            };
            self.city(change.city).rows.set(change.reading_at.millis(), change.after.map(compact));
        }
    }

    pub fn take_outcomes(&mut self, batch: &Batch<Outcome>) {
        for outcome in batch.changes.iter().flat_map(|(_, outcomes)| outcomes) {
            let at = outcome.reading_at.millis();
            self.counts.count(outcome.kind);
            match (outcome.kind, outcome.event) {
                (
                    OutcomeKind::Inserted | OutcomeKind::Corrected,
                    Event::Reading(measurement) | Event::Retried(measurement),
                ) => {
                    self.city(outcome.city).winners.set(at, Some(measurement));
                }
                (OutcomeKind::Withdrawn, _) => self.city(outcome.city).winners.set(at, None),
                _ => {}
            }
        }
    }

    pub fn take_days(&mut self, batch: &Batch<DayChange>) {
        for change in batch.changes.iter().flat_map(|(_, changes)| changes) {
            self.city(change.city).days.set(i64::from(change.day), change.after);
        }
    }

    #[inline]
    fn city(&mut self, CityId(id): CityId) -> &mut City {
        let id = id as usize;
        if id >= self.cities.len() {
            let empty = || City { rows: Timeline::new(), winners: Timeline::new(), days: Timeline::new() };
            self.cities.resize_with(id + 1, empty);
        }
        &mut self.cities[id]
    }

    /// Ends the accumulation; `names` are those of the worker.
    pub fn finish(self, names: &CityNames) -> Vec<CityResults> {
        let cities = self.cities.into_iter().enumerate();
        cities.map(|(id, city)| CityResults { name: names.get(CityId(id as u32)), city }).collect()
    }
}

/// The results of one city, complete.
#[derive(Debug)]
pub struct CityResults {
    pub name: Arc<str>,
    city: City,
}

impl CityResults {
    /// Moves the city's rows into `rows`, by time, each with the measurement of the arrival that won. The category of a heat index
    /// and its measurement is what `category` says.
    pub fn take_rows(
        &mut self,
        rows: &mut Vec<ResultRow>,
        category: impl Fn(HeatIndex, &Measurement) -> Category,
    ) {
        let held = std::mem::replace(&mut self.city.rows, Timeline::new()).into_sorted();
        let winners = std::mem::replace(&mut self.city.winners, Timeline::new()).into_sorted();
        debug_assert_eq!(held.len(), winners.len(), "a key has a row just where an arrival won");
        rows.clear();
        rows.reserve(held.len());
        rows.extend(held.iter().zip(winners.iter()).filter_map(|((millis, row), (won_at, measurement))| {
            debug_assert_eq!(millis, won_at);
            let heat_index = HeatIndex::from_compact(row.heat_index);
            Some(ResultRow {
                reading_at: EventTime::from_millis(*millis)?,
                measurement: *measurement,
                heat_index,
                category: category(heat_index, measurement),
                sum: row.sum,
                count: row.count,
            })
        }));
    }

    /// The city's day summaries, by day.
    pub fn take_days(&mut self) -> Vec<(i32, DaySummary)> {
        let days = std::mem::replace(&mut self.city.days, Timeline::new()).into_sorted();
        days.iter().map(|(day, summary)| (*day as i32, *summary)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_timeline_equals_a_map(sets in prop::collection::vec((0..2000i64, prop::option::weighted(0.8, any::<u32>())), 0..6000)) {
            let mut timeline = Timeline::new();
            let mut map = std::collections::BTreeMap::new();
            for (at, value) in sets {
                timeline.set(at, value);
                match value {
                    Some(value) => map.insert(at, value),
                    None => map.remove(&at),
                };
            }
            prop_assert_eq!(timeline.into_sorted().iter().copied().collect::<Vec<_>>(), map.into_iter().collect::<Vec<_>>());
        }
    }
}
