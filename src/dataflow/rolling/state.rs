//! The state of the cities of one worker, and how an epoch's arrivals change it.

use std::sync::atomic::{AtomicBool, Ordering};

use super::chunk::PackedHeat;
use super::city_table::{CityTable, IntroducedCity};
use super::current_rows::CurrentRows;
use super::edit::ReadingDelta;
use super::epoch_changes::{CHANGES_PER_PIECE, EpochChanges, RollingOutputs};
use super::outcomes::{ArrivalEffect, OutcomeRecorder};
use super::period_summaries::{PeriodChange, PeriodSummaries};
use super::retention::Retention;
use super::store::{EditState, ReadingStore};
use crate::dataflow::heat_index::Formula;
use crate::directory::Directory;
use crate::model::time::IanaZone;
use crate::model::{
    Arrival, CityId, CityIntroduction, CityNames, EventTime, Measurement, OutcomeCounts, OutcomeKind, Row,
    RowChange,
};

/// The state of the cities of one worker.
#[derive(Debug)]
pub struct Rolling {
    formula: Formula,
    pub(super) outputs: RollingOutputs,
    pub(super) store: ReadingStore,
    pub(super) cities: CityTable,
    pub(super) current: Option<CurrentRows>,
    days: Option<PeriodSummaries>,
    pub(super) sink_periods: Option<PeriodSummaries>,
    /// Whether either of them is wanted.
    summarizes_periods: bool,
    /// Has the time zones of cities.
    directory: Option<&'static Directory<'static>>,
    outcomes: Option<OutcomeRecorder>,
    /// Buffers of the current epoch: the city of each arrival, or [`TOO_LATE`]; the edited cities;
    /// the edits.
    arrival_cities: Vec<u32>,
    edited_cities: Vec<u32>,
    deltas: Vec<(u32, ReadingDelta)>,
    city_deltas: Vec<ReadingDelta>,
}

/// Stands for the city of an arrival that is older than the lateness allows.
const TOO_LATE: u32 = u32::MAX;

/// Warns, once in the process, of readings outside the range of the formula.
fn warn_unsuitable_formula_once(formula: Formula, measurement: &Measurement) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.load(Ordering::Relaxed) && !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(formula = formula.name(), "{}", formula.warning(measurement));
    }
}

/// The number of appends whose memory is prefetched together.
const PREFETCH_APPENDS: usize = 64;

impl Rolling {
    /// A state without cities. Each city that is introduced adds its key to `names`.
    pub fn new(formula: Formula, retention: Retention, wanted: RollingOutputs, names: CityNames) -> Rolling {
        let summarizes_periods = wanted.days || wanted.computes_sink_periods();
        Rolling {
            formula,
            outputs: wanted,
            store: ReadingStore::new(retention, summarizes_periods),
            cities: CityTable { names, ..CityTable::default() },
            current: wanted.computes_current().then(|| CurrentRows::new(wanted.sinks.highs)),
            days: wanted.days.then(|| PeriodSummaries::of_days(wanted.day_zone)),
            sink_periods: wanted.computes_sink_periods().then(PeriodSummaries::of_hours_and_days),
            summarizes_periods,
            directory: None,
            outcomes: wanted.computes_outcomes().then(OutcomeRecorder::default),
            arrival_cities: Vec::new(),
            edited_cities: Vec::new(),
            deltas: Vec::new(),
            city_deltas: Vec::new(),
        }
    }

    /// The state with a directory that has the time zones of cities, for summaries of local days.
    pub fn with_directory(self, directory: Option<&'static Directory<'static>>) -> Rolling {
        Rolling { directory, ..self }
    }

    /// The time zone of a city whose state does not say yet which one it has.
    pub(super) fn find_time_zone(&self, name: &str) -> Option<IanaZone> {
        let time_zone = self.directory?.find_by_key(name)?.time_zone?;
        // The directory has only names that are known.
        IanaZone::from_name(time_zone).ok()
    }

    /// Introduces a city by the key of a source, before the first arrival with that key.
    pub fn introduce_city(&mut self, city: &CityIntroduction) {
        match self.cities.introduce_key(city) {
            IntroducedCity::New => {
                let zone = self.sink_periods.as_ref().and_then(|_| self.find_time_zone(&city.name));
                self.add_city(false, zone);
            }
            // The mark is part of the city's state.
            IntroducedCity::NewlySplit(city) => self.store.note_change_without_readings(city),
            IntroducedCity::Known => {}
        }
    }

    /// Adds the state of a city that was added to the table of cities. Its local days are of `zone`
    /// from now on.
    pub(super) fn add_city(&mut self, is_restored: bool, zone: Option<IanaZone>) {
        let city = self.store.add_city();
        if let Some(zone) = zone {
            self.cities.names.set_time_zone(CityId(city), zone);
        }
        if let Some(current) = &mut self.current {
            current.add_city();
        }
        for periods in self.days.iter_mut().chain(&mut self.sink_periods) {
            periods.add_city(zone);
        }
        if let Some(outcomes) = &mut self.outcomes {
            outcomes.add_city(is_restored);
        }
    }

    /// Applies the arrivals of one epoch, in log order, and collects the changes in `changed`. Row
    /// changes are collected only for cities that `wants_rows` accepts.
    pub fn apply_arrivals(
        &mut self,
        arrivals: &[Vec<Arrival>],
        wants_rows: impl Fn(CityId) -> bool,
        changed: &mut EpochChanges,
    ) {
        changed.clear();
        changed.counts = OutcomeCounts {
            split_city: std::mem::take(&mut self.cities.new_split_cities),
            ..OutcomeCounts::default()
        };
        changed.first_piece_capacity = arrivals.iter().map(Vec::len).sum::<usize>().min(CHANGES_PER_PIECE);
        self.classify_arrivals(arrivals);
        let mut cities = std::mem::take(&mut self.arrival_cities);
        let mut next = 0;
        for (at, (arrival, &city)) in arrivals.iter().flatten().zip(&cities).enumerate() {
            if at == next {
                next = (at + PREFETCH_APPENDS).min(cities.len());
                self.store.prefetch_appends(&cities[at..next]);
            }
            let effect = match city {
                TOO_LATE => ArrivalEffect::TOO_LATE,
                _ => self.apply_arrival(city, arrival, &wants_rows, changed),
            };
            changed.counts.count_outcome(effect.kind);
            if let Some(outcomes) = &mut self.outcomes {
                let city = CityId(self.cities.city_of_key(arrival.city));
                changed.outcomes.push(outcomes.outcome_of(at, city, arrival, effect, &self.cities.names));
            }
        }
        cities.clear();
        self.arrival_cities = cities;
        self.finish_edits(changed);
        self.finish_epoch(changed);
    }

    /// Looks up the city of each arrival, advances `high`, and flags the cities that need edits.
    /// Lateness is decided here, while the arrivals are in log order.
    fn classify_arrivals(&mut self, arrivals: &[Vec<Arrival>]) {
        let retention = self.store.retention;
        if let Some(outcomes) = &mut self.outcomes {
            outcomes.begin_epoch();
        }
        for arrival in arrivals.iter().flatten() {
            let city = self.cities.city_of_key(arrival.city);
            let head = &mut self.store.heads[city as usize];
            let millis = arrival.reading_at.millis();
            let is_too_late = millis < retention.oldest_accepted(head.high);
            let reading = !is_too_late && arrival.measurement().is_some();
            if reading {
                head.high = head.high.max(millis);
            }
            if let Some(outcomes) = &mut self.outcomes {
                outcomes.push_high(head.high);
            }
            if is_too_late {
                self.arrival_cities.push(TOO_LATE);
                continue;
            }
            // Whether a retried reading counts is decided with the other readings of its key.
            let retried = arrival.is_retried();
            let withdrawn =
                head.tombstones_ahead && self.store.index[city as usize].tombstones.contains_key(&millis);
            if reading && !retried && !withdrawn && millis > head.newest {
                head.newest = millis;
            } else if head.edit_state == EditState::None {
                head.edit_state = EditState::Expected;
            }
            self.arrival_cities.push(city);
        }
    }

    #[inline]
    fn apply_arrival(
        &mut self,
        city: u32,
        arrival: &Arrival,
        wants_rows: impl Fn(CityId) -> bool,
        changed: &mut EpochChanges,
    ) -> ArrivalEffect {
        let millis = arrival.reading_at.millis();
        let measurement = arrival.measurement().copied();
        let held = measurement.map(|measurement| {
            if !self.formula.is_made_for(&measurement) {
                warn_unsuitable_formula_once(self.formula, &measurement);
            }
            let (heat_index, category) = self.formula.evaluate(&measurement);
            PackedHeat::new(heat_index, category)
        });
        let effect = match (self.store.heads[city as usize].edit_state, held) {
            (EditState::None, Some(held)) => {
                let (sum, count) = self.store.append_reading(city, millis, held, arrival.revision);
                if wants_rows(CityId(city)) {
                    let after = Some(Row::new(held.heat_index(), held.category(), sum, count));
                    let reading_at = arrival.reading_at;
                    changed.last_piece().push(RowChange {
                        city: CityId(city),
                        reading_at,
                        before: None,
                        after,
                    });
                }
                ArrivalEffect { kind: OutcomeKind::Inserted, before: None, after: Some(held) }
            }
            _ => self.edit_reading(city, arrival, held, wants_rows),
        };
        if self.summarizes_periods {
            self.change_periods(city, millis, effect);
        }
        if let Some(current) = &mut self.current {
            // A reading advances `high` even if it is superseded, so the city's current row may
            // become unservable.
            current.touch_city(city);
            if !matches!(effect.kind, OutcomeKind::OldRevision | OutcomeKind::Superseded) {
                current.record_measurement(city, millis, measurement);
            }
        }
        effect
    }

    fn edit_reading(
        &mut self,
        city: u32,
        arrival: &Arrival,
        held: Option<PackedHeat>,
        wants_rows: impl Fn(CityId) -> bool,
    ) -> ArrivalEffect {
        let head = &mut self.store.heads[city as usize];
        if head.edit_state != EditState::Begun {
            head.edit_state = EditState::Begun;
            self.edited_cities.push(city);
            self.store.begin_edits(city);
        }
        let (millis, retried) = (arrival.reading_at.millis(), arrival.is_retried());
        let (kind, delta) = self.store.edit_reading(city, millis, held, arrival.revision, retried);
        if delta.before != delta.after && wants_rows(CityId(city)) {
            self.deltas.push((city, delta));
        }
        ArrivalEffect::of_edit(kind, delta)
    }

    /// Sweeps the rows that edits have changed, and prepares the edited cities for appends.
    fn finish_edits(&mut self, changed: &mut EpochChanges) {
        // Stable: the deltas of a key stay in log order.
        self.deltas.sort_by_key(|(city, delta)| (*city, delta.millis));
        for deltas in self.deltas.chunk_by(|(a, _), (b, _)| a == b) {
            let city = deltas[0].0;
            self.city_deltas.clear();
            for key in deltas.chunk_by(|(_, a), (_, b)| a.millis == b.millis) {
                let (first, last) = (key[0].1, key[key.len() - 1].1);
                if self.outputs.touched_unchanged || first.before != last.after {
                    self.city_deltas.push(ReadingDelta { after: last.after, ..first });
                }
            }
            self.store.sweep_deltas(
                city,
                &self.city_deltas,
                self.outputs.touched_unchanged,
                |millis, before, after| {
                    // Stored times come from event times.
                    let Some(reading_at) = EventTime::from_millis(millis) else { return };
                    changed.last_piece().push(RowChange { city: CityId(city), reading_at, before, after });
                },
            );
        }
        self.deltas.clear();
        for city in self.edited_cities.drain(..) {
            self.store.finish_edits(city);
            #[cfg(debug_assertions)]
            self.store.assert_city_invariants(city);
        }
    }

    fn finish_epoch(&mut self, changed: &mut EpochChanges) {
        self.retire_readings();
        if let Some(days) = &mut self.days {
            days.finish_epoch(&self.store, |change| match change {
                PeriodChange::Hour(_) => {}
                PeriodChange::Day(day) => changed.days.push(day),
            });
        }
        if let Some(periods) = &mut self.sink_periods {
            periods.finish_epoch(&self.store, |change| match change {
                PeriodChange::Hour(hour) => changed.sink_hours.push(hour),
                PeriodChange::Day(day) => changed.sink_days.push(day),
            });
        }
        if let Some(current) = &mut self.current {
            current.finish_epoch(&mut self.store, self.outputs.touched_unchanged, changed);
        }
    }

    fn change_periods(&mut self, city: u32, millis: i64, effect: ArrivalEffect) {
        let ArrivalEffect { before, after, .. } = effect;
        for periods in self.days.iter_mut().chain(&mut self.sink_periods) {
            periods.touch_city(city);
            if before != after {
                periods.replace_reading(city, millis, before, after);
            }
        }
    }

    /// Moves what the store has retired to the summaries.
    pub(super) fn retire_readings(&mut self) {
        let retired = self.store.retired_readings.iter_mut().flat_map(|retired| retired.drain(..));
        for (city, millis, held) in retired {
            for periods in self.days.iter_mut().chain(&mut self.sink_periods) {
                periods.retire_reading(city, millis, held);
            }
        }
    }

    /// Calls `each` with the servable rows of a city with `reading_at` in `from..=to`, by time,
    /// until it returns `Break`.
    #[cfg(any(test, feature = "internals"))]
    pub fn for_each_servable_row(
        &mut self,
        city: CityId,
        from: EventTime,
        to: EventTime,
        each: impl FnMut(i64, Row) -> std::ops::ControlFlow<()>,
    ) {
        self.store.seal_tail(city.0);
        let oldest = self.store.retention.oldest_servable(self.store.heads[city.0 as usize].high);
        self.store.for_each_row(city.0, from.millis().max(oldest), to.millis(), each);
    }

    /// The city of this name, if it was introduced.
    pub fn find_city(&self, name: &str) -> Option<CityId> {
        self.cities.by_name.get(name).copied().map(CityId)
    }

    /// Bytes of memory that hold readings.
    #[cfg(any(test, feature = "internals"))]
    pub fn memory_bytes(&self) -> usize {
        self.store.memory_bytes()
    }
}
