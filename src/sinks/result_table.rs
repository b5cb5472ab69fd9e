//! The accumulated results of a finite run: the final value of each key when the log has ended.

use std::sync::Arc;

use crate::model::{
    ArrivalOutcome, Batch, Category, CityId, CityNames, DayChange, EventTime, HeatIndex, Measurement,
    OutcomeCounts, OutcomeKind, PeriodSummary, ReadingEvent, ResultRow, Row, RowChange, SegmentedVec,
};

/// The last value of each time, after sets and removals in any order of time. A set in order is a
/// push. A set out of order waits in `pending`, which is merged when it has grown as long as the
/// rest, so each costs O(log n) amortised.
#[derive(Clone, Debug)]
struct Timeline<V> {
    sorted: SegmentedVec<(i64, V)>,
    pending: Vec<(i64, Option<V>)>,
}

const MIN_PENDING: usize = 1024;

impl<V: Copy> Timeline<V> {
    fn new() -> Timeline<V> {
        Timeline { sorted: SegmentedVec::default(), pending: Vec::new() }
    }

    #[inline]
    fn set_value(&mut self, at: i64, value: Option<V>) {
        match value {
            Some(value)
                if self.pending.is_empty() && self.sorted.last().is_none_or(|(last, _)| *last < at) =>
            {
                self.sorted.push((at, value));
            }
            _ => {
                self.pending.push((at, value));
                if self.pending.len() >= self.sorted.len().max(MIN_PENDING) {
                    self.merge_pending();
                }
            }
        }
    }

    fn merge_pending(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        // The sort is stable, so the last set of a time stays the last.
        self.pending.sort_by_key(|(at, _)| *at);
        let held = std::mem::take(&mut self.sorted);
        let mut held = held.iter().peekable();
        for sets in self.pending.chunk_by(|a, b| a.0 == b.0) {
            let (at, value) = sets[sets.len() - 1];
            while let Some(before) = held.next_if(|(time, _)| *time < at) {
                self.sorted.push(*before);
            }
            held.next_if(|(time, _)| *time == at);
            if let Some(value) = value {
                self.sorted.push((at, value));
            }
        }
        held.for_each(|rest| self.sorted.push(*rest));
        self.pending.clear();
    }

    fn into_sorted(mut self) -> SegmentedVec<(i64, V)> {
        self.merge_pending();
        self.sorted
    }
}

/// A row without its time and category, which the result files do not have.
#[derive(Clone, Copy, Debug)]
struct CompactRow {
    sum: i64,
    heat_index: u32,
    count: u32,
}

/// The results of one city.
#[derive(Debug)]
struct CityTimelines {
    row_timeline: Timeline<CompactRow>,
    /// The measurements of the arrivals that won.
    measurement_timeline: Timeline<Measurement>,
    day_timeline: Timeline<PeriodSummary>,
}

/// The results of the cities of one worker.
#[derive(Debug, Default)]
pub struct ResultTable {
    cities: Vec<CityTimelines>,
    pub counts: OutcomeCounts,
}

impl ResultTable {
    pub fn apply_row_changes(&mut self, batch: &Batch<RowChange>) {
        for change in batch.changes.iter().flat_map(|(_, changes)| changes) {
            let compact = |row: Row| CompactRow {
                sum: row.sum(),
                heat_index: row.heat_index().to_compact(),
                count: row.count(),
            };
            self.city_timelines(change.city)
                .row_timeline
                .set_value(change.reading_at.millis(), change.after.map(compact));
        }
    }

    pub fn apply_outcomes(&mut self, batch: &Batch<ArrivalOutcome>) {
        for outcome in batch.changes.iter().flat_map(|(_, outcomes)| outcomes) {
            let at = outcome.reading_at.millis();
            self.counts.count_outcome(outcome.kind);
            match (outcome.kind, outcome.event) {
                (
                    OutcomeKind::Inserted | OutcomeKind::Corrected,
                    ReadingEvent::Reading(measurement) | ReadingEvent::RetriedReading(measurement),
                ) => {
                    self.city_timelines(outcome.city).measurement_timeline.set_value(at, Some(measurement));
                }
                (OutcomeKind::Withdrawn, _) => {
                    self.city_timelines(outcome.city).measurement_timeline.set_value(at, None)
                }
                _ => {}
            }
        }
    }

    pub fn apply_day_changes(&mut self, batch: &Batch<DayChange>) {
        for change in batch.changes.iter().flat_map(|(_, changes)| changes) {
            self.city_timelines(change.city).day_timeline.set_value(i64::from(change.day), change.after);
        }
    }

    #[inline]
    fn city_timelines(&mut self, CityId(id): CityId) -> &mut CityTimelines {
        let id = id as usize;
        if id >= self.cities.len() {
            let empty = || CityTimelines {
                row_timeline: Timeline::new(),
                measurement_timeline: Timeline::new(),
                day_timeline: Timeline::new(),
            };
            self.cities.resize_with(id + 1, empty);
        }
        &mut self.cities[id]
    }

    /// Ends the accumulation. `names` are the city names of the worker.
    pub fn into_city_results(self, names: &CityNames) -> Vec<CityResults> {
        let cities = self.cities.into_iter().enumerate();
        cities.map(|(id, city)| CityResults { name: names.get(CityId(id as u32)), timelines: city }).collect()
    }
}

/// The complete results of one city.
#[derive(Debug)]
pub struct CityResults {
    pub name: Arc<str>,
    timelines: CityTimelines,
}

impl CityResults {
    /// Moves the city's rows into `rows`, by time, each with the measurement of the arrival that
    /// won. `category` returns the category of a heat index and its measurement.
    pub fn take_rows(
        &mut self,
        rows: &mut Vec<ResultRow>,
        category: impl Fn(HeatIndex, &Measurement) -> Category,
    ) {
        let held = std::mem::replace(&mut self.timelines.row_timeline, Timeline::new()).into_sorted();
        let winners =
            std::mem::replace(&mut self.timelines.measurement_timeline, Timeline::new()).into_sorted();
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
    pub fn take_days(&mut self) -> Vec<(i32, PeriodSummary)> {
        let days = std::mem::replace(&mut self.timelines.day_timeline, Timeline::new()).into_sorted();
        days.iter().map(|(day, summary)| (*day as i32, *summary)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn timeline_equals_btree_map(sets in prop::collection::vec((0..2000i64, prop::option::weighted(0.8, any::<u32>())), 0..6000)) {
            let mut timeline = Timeline::new();
            let mut map = std::collections::BTreeMap::new();
            for (at, value) in sets {
                timeline.set_value(at, value);
                match value {
                    Some(value) => map.insert(at, value),
                    None => map.remove(&at),
                };
            }
            prop_assert_eq!(timeline.into_sorted().iter().copied().collect::<Vec<_>>(), map.into_iter().collect::<Vec<_>>());
        }
    }
}
