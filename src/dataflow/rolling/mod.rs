//! The rolling operator: readings in, exact changes of rolling results out.
//!
//! One [`Rolling`] holds the cities of a worker. It takes an epoch's arrivals in log order and says what they change.
//! Most arrivals are newer than all that their city knows: each of those is one append to the city's tail chunk and one
//! step of its running window ([`store`]). A city that an epoch does anything else to is edited instead (`edit`): its
//! arrivals are applied one by one in log order, and then one sweep over the rows they have changed gives each row's
//! result before and after (`sweep`). So nothing depends on where epochs are cut, and no key is changed twice in one.

mod arena;
#[cfg(debug_assertions)]
mod check;
pub mod chunk;
mod current_rows;
mod day_summaries;
mod edit;
mod hour_ago;
mod operator;
mod part;
mod pinned;
pub mod query_responder;
mod revisions;
pub mod serving;
mod sink_renderer;
pub mod snapshot;
pub mod store;
mod sweep;

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::chunk::PackedHeat;
use self::current_rows::CurrentRows;
use self::day_summaries::DaySummaries;
use self::edit::ReadingDelta;
use self::store::{EditState, ReadingStore};
use super::heat_index::Formula;
use crate::model::time::DayZone;
use crate::model::{
    Arrival, ArrivalOutcome, CityId, CityIntroduction, CityKey, CityNames, CurrentRow, DayChange, EventTime,
    Measurement, OutcomeCounts, OutcomeKind, ReadingEvent, Row, RowChange,
};

pub use self::edit::MAX_TOMBSTONES_WITHOUT_READING;
pub use self::operator::{RollingInputs, RollingStreams, build_rolling};
pub use self::sink_renderer::SinkRenderer;
pub use self::store::Retention;

/// What a run wants to know besides row changes; what it does not ask for costs it nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RollingOutputs {
    /// Every change of a row.
    pub rows: bool,
    /// The current row of each city.
    pub current: bool,
    /// The summary of each city and UTC day.
    pub days: bool,
    /// Whose days they are.
    pub day_zone: DayZone,
    /// What became of each arrival.
    pub outcomes: bool,
    /// What serving is told: the changes of current rows and of watched cities, answers, and counts.
    pub serving: bool,
    /// Also rows and current rows that an epoch has touched and left as they were: a sink that may have written what they were
    /// within a longer epoch must write what they are.
    pub touched_unchanged: bool,
}

/// What an epoch has changed. The vectors are filled anew by each epoch.
#[derive(Debug, Default)]
pub struct EpochChanges {
    /// In pieces, since one vector of many rows would be copied whenever it grows.
    pub rows: Vec<Vec<RowChange>>,
    pub current: Vec<(CityId, CurrentRow, isize)>,
    /// Cities that were touched, had no current row, and have none, where they are wanted.
    pub cities_without_row: Vec<CityId>,
    pub days: Vec<DayChange>,
    pub outcomes: Vec<ArrivalOutcome>,
    /// What became of the arrivals.
    pub counts: OutcomeCounts,
    /// For how many rows the first piece has room at first.
    first_piece_capacity: usize,
}

/// Row changes in a piece.
const CHANGES_PER_PIECE: usize = 1024;

impl EpochChanges {
    fn clear(&mut self) {
        self.rows.clear();
        self.current.clear();
        self.cities_without_row.clear();
        self.days.clear();
        self.outcomes.clear();
        self.counts = OutcomeCounts::default();
    }

    /// A piece with room for a change.
    #[inline(always)]
    fn last_piece(&mut self) -> &mut Vec<RowChange> {
        if self.rows.last().is_none_or(|piece| piece.len() == CHANGES_PER_PIECE) {
            // Most epochs have a row of each arrival.
            let room = if self.rows.is_empty() { self.first_piece_capacity } else { CHANGES_PER_PIECE };
            self.rows.push(Vec::with_capacity(room));
        }
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }
}

/// A city's current row before and after an epoch.
struct CurrentChange<'a> {
    city: CityId,
    before: Option<&'a CurrentRow>,
    after: Option<&'a CurrentRow>,
}

impl EpochChanges {
    /// The cities whose current row the epoch has changed, or touched, each once.
    fn current_changes(&self) -> impl Iterator<Item = CurrentChange<'_>> {
        let mut changes = self.current.iter().peekable();
        std::iter::from_fn(move || {
            let (city, row, diff) = changes.next()?;
            if *diff > 0 {
                return Some(CurrentChange { city: *city, before: None, after: Some(row) });
            }
            // A retraction is followed by the row that takes its place, if there is one.
            let next = changes.next_if(|(next, _, diff)| next == city && *diff > 0);
            Some(CurrentChange { city: *city, before: Some(row), after: next.map(|(_, row, _)| row) })
        })
    }
}

/// The state of the cities of one worker.
#[derive(Debug)]
pub struct Rolling {
    formula: Formula,
    outputs: RollingOutputs,
    store: ReadingStore,
    cities: CityTable,
    current: Option<CurrentRows>,
    days: Option<DaySummaries>,
    /// Of the epoch at hand: each arrival's city, [`TOO_LATE`] for none; the cities it edits; what the edits do.
    arrival_cities: Vec<u32>,
    edited_cities: Vec<u32>,
    deltas: Vec<(u32, ReadingDelta)>,
    city_deltas: Vec<ReadingDelta>,
}

/// The city of an arrival that is older than the lateness allows.
const TOO_LATE: u32 = u32::MAX;

/// Says once in the process that there are readings which the formula was not made for.
fn warn_unsuitable_formula_once(formula: Formula, measurement: &Measurement) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.load(Ordering::Relaxed) && !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(formula = formula.name(), "{}", formula.warning(measurement));
    }
}

/// Appends whose memory is fetched together.
const PREFETCH_APPENDS: usize = 64;

impl Rolling {
    /// No cities; `names` learns each city's key as it comes.
    pub fn new(formula: Formula, retention: Retention, wanted: RollingOutputs, names: CityNames) -> Rolling {
        Rolling {
            formula,
            outputs: wanted,
            store: ReadingStore::new(retention, wanted.days),
            cities: CityTable { names, ..CityTable::default() },
            current: (wanted.current || wanted.serving).then(CurrentRows::default),
            days: wanted.days.then(|| DaySummaries::new(wanted.day_zone)),
            arrival_cities: Vec::new(),
            edited_cities: Vec::new(),
            deltas: Vec::new(),
            city_deltas: Vec::new(),
        }
    }

    /// Learns which city a source means by a key, before the first arrival with that key.
    pub fn introduce_city(&mut self, city: &CityIntroduction) {
        if self.cities.introduce_key(city) {
            self.add_city();
        }
    }

    fn add_city(&mut self) {
        self.store.add_city();
        if let Some(current) = &mut self.current {
            current.add_city();
        }
        if let Some(days) = &mut self.days {
            days.add_city();
        }
    }

    /// Applies the arrivals of one epoch, in log order, and says in `changed` what they change: rows only of cities that
    /// `wants_rows` of.
    pub fn apply_arrivals(
        &mut self,
        arrivals: &[Vec<Arrival>],
        wants_rows: impl Fn(CityId) -> bool,
        changed: &mut EpochChanges,
    ) {
        changed.clear();
        changed.counts = OutcomeCounts {
            split_city: std::mem::take(&mut self.cities.new_multi_source_cities),
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
            let kind = match city {
                TOO_LATE => OutcomeKind::TooLate,
                _ => self.apply_arrival(city, arrival, &wants_rows, changed),
            };
            changed.counts.count_outcome(kind);
            if self.outputs.outcomes {
                let Arrival { reading_at, position, event, .. } = *arrival;
                changed.outcomes.push(ArrivalOutcome {
                    city: CityId(city),
                    reading_at,
                    position,
                    event,
                    kind,
                });
            }
        }
        cities.clear();
        self.arrival_cities = cities;
        self.finish_edits(changed);
        self.finish_epoch(changed);
    }

    /// Finds each arrival's city, moves `high`, and marks the cities that are not only appended to. Lateness is decided
    /// here, where the arrivals still are in log order.
    fn classify_arrivals(&mut self, arrivals: &[Vec<Arrival>]) {
        let retention = self.store.retention;
        for arrival in arrivals.iter().flatten() {
            let city = self.cities.city_of_key(arrival.city);
            let head = &mut self.store.heads[city as usize];
            let millis = arrival.reading_at.millis();
            if millis < retention.oldest_accepted(head.high) {
                self.arrival_cities.push(TOO_LATE);
                continue;
            }
            let reading = arrival.event != ReadingEvent::Withdrawal;
            if reading {
                head.high = head.high.max(millis);
            }
            // Whether a retried one counts is decided where all of its key is known.
            let retried = matches!(arrival.event, ReadingEvent::RetriedReading(_));
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
    ) -> OutcomeKind {
        let millis = arrival.reading_at.millis();
        let measurement = arrival.event.measurement().copied();
        let held = measurement.map(|measurement| {
            if !self.formula.is_made_for(&measurement) {
                warn_unsuitable_formula_once(self.formula, &measurement);
            }
            let (heat_index, category) = self.formula.evaluate(&measurement);
            PackedHeat::new(heat_index, category)
        });
        let kind = match (self.store.heads[city as usize].edit_state, held) {
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
                if let Some(days) = &mut self.days {
                    days.replace_reading(city, millis, None, Some(held));
                }
                OutcomeKind::Inserted
            }
            _ => self.edit_reading(city, arrival, held, wants_rows),
        };
        if let Some(current) = &mut self.current {
            // A reading moves `high` even where it loses, so the city's current row may turn unservable.
            current.touch_city(city);
            if !matches!(kind, OutcomeKind::OldRevision | OutcomeKind::Superseded) {
                current.record_measurement(city, millis, measurement);
            }
        }
        kind
    }

    fn edit_reading(
        &mut self,
        city: u32,
        arrival: &Arrival,
        held: Option<PackedHeat>,
        wants_rows: impl Fn(CityId) -> bool,
    ) -> OutcomeKind {
        let head = &mut self.store.heads[city as usize];
        if head.edit_state != EditState::Begun {
            head.edit_state = EditState::Begun;
            self.edited_cities.push(city);
            self.store.begin_edits(city);
        }
        let retried = matches!(arrival.event, ReadingEvent::RetriedReading(_));
        let millis = arrival.reading_at.millis();
        let (kind, delta) = self.store.edit_reading(city, millis, held, arrival.revision, retried);
        if let Some(delta) = delta {
            if wants_rows(CityId(city)) {
                self.deltas.push((city, delta));
            }
            if let Some(days) = &mut self.days {
                days.replace_reading(city, delta.millis, delta.before, delta.after);
            }
        }
        kind
    }

    /// Sweeps the rows that edits have changed, and makes the edited cities fit for appends again.
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
                    // Held times come from event times.
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
        if let Some(days) = &mut self.days {
            for (city, millis, held) in
                self.store.retired_readings.iter_mut().flat_map(|departed| departed.drain(..))
            {
                days.retire_reading(city, millis, held);
            }
            days.finish_epoch(&self.store, |change| changed.days.push(change));
        }
        if let Some(current) = &mut self.current {
            current.finish_epoch(&mut self.store, self.outputs.touched_unchanged, changed);
        }
    }

    /// Gives `each` the servable rows of a city with `reading_at` in `from..=to`, by time, until it has enough.
    pub fn for_each_servable_row(
        &mut self,
        city: CityId,
        from: EventTime,
        to: EventTime,
        each: impl FnMut(i64, Row) -> ControlFlow<()>,
    ) {
        self.store.seal_tail(city.0);
        let oldest = self.store.retention.oldest_servable(self.store.heads[city.0 as usize].high);
        self.store.for_each_row(city.0, from.millis().max(oldest), to.millis(), each);
    }

    /// The city of a name, once it was introduced.
    pub fn find_city(&self, name: &str) -> Option<CityId> {
        self.cities.by_name.get(name).copied().map(CityId)
    }

    /// Bytes of memory that hold readings.
    pub fn memory_bytes(&self) -> usize {
        self.store.memory_bytes()
    }
}

/// Which city a source means by which number.
#[derive(Debug, Default)]
struct CityTable {
    names: CityNames,
    by_name: HashMap<Arc<str>, u32, foldhash::fast::RandomState>,
    /// By source and number.
    by_key: Vec<Vec<u32>>,
    /// By city: the source that was the first to introduce it, or did before this run.
    sources: Vec<u16>,
    /// Cities with keys of more than one source, and how many they have become since the last epoch.
    multi_source_cities: HashSet<u32, foldhash::fast::RandomState>,
    new_multi_source_cities: u64,
}

impl CityTable {
    /// True where the name is new.
    fn introduce_key(&mut self, city: &CityIntroduction) -> bool {
        let known = self.by_name.get(&*city.name).copied();
        let id = known.unwrap_or_else(|| self.push_city(city.name.as_ref().into(), city.key.source));
        let source = usize::from(city.key.source);
        if self.by_key.len() <= source {
            self.by_key.resize_with(source + 1, Vec::new);
        }
        let numbers = &mut self.by_key[source];
        if numbers.len() <= city.key.number as usize {
            numbers.resize(city.key.number as usize + 1, u32::MAX);
        }
        numbers[city.key.number as usize] = id;
        if self.sources[id as usize] != city.key.source && self.multi_source_cities.insert(id) {
            self.new_multi_source_cities += 1;
        }
        known.is_none()
    }

    fn push_city(&mut self, name: Arc<str>, source: u16) -> u32 {
        let CityId(id) = self.names.push(Arc::clone(&name));
        self.by_name.insert(name, id);
        self.sources.push(source);
        id
    }

    /// The city of a key that was introduced, as every key in an arrival was.
    #[inline(always)]
    fn city_of_key(&self, key: CityKey) -> u32 {
        self.by_key[usize::from(key.source)][key.number as usize]
    }
}
