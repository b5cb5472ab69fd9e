//! What outcomes say of a city beside its readings: how many arrivals it had in the epoch, and its
//! newest time after each.

use super::chunk::PackedHeat;
use super::edit::ReadingDelta;
use crate::model::{
    Arrival, ArrivalOutcome, CityId, CityNames, EventTime, HeldHeat, OutcomeKind, PartitionIndex,
};

/// The effect of an arrival on the reading of its key.
#[derive(Clone, Copy, Debug)]
pub(super) struct ArrivalEffect {
    pub kind: OutcomeKind,
    pub before: Option<PackedHeat>,
    pub after: Option<PackedHeat>,
}

impl ArrivalEffect {
    /// Of an arrival that was dropped without a look at its key.
    pub(super) const TOO_LATE: ArrivalEffect =
        ArrivalEffect { kind: OutcomeKind::TooLate, before: None, after: None };

    /// The effect of an edit.
    pub(super) fn of_edit(kind: OutcomeKind, delta: ReadingDelta) -> ArrivalEffect {
        ArrivalEffect { kind, before: delta.before, after: delta.after }
    }
}

/// Makes the outcomes of a worker's arrivals.
#[derive(Debug, Default)]
pub(super) struct OutcomeRecorder {
    cities: Vec<CityArrivals>,
    /// The number of the current epoch, counted from 1.
    epoch: u64,
    /// The newest time of the city after each arrival of the epoch.
    highs: Vec<i64>,
}

/// The arrivals of a city.
#[derive(Debug, Default)]
struct CityArrivals {
    /// The number of the last epoch with an arrival.
    last_epoch: u64,
    /// The arrivals in that epoch.
    arrivals: u32,
    has_arrived: bool,
}

impl OutcomeRecorder {
    /// Adds a city. A restored city had arrivals.
    pub(super) fn add_city(&mut self, is_restored: bool) {
        self.cities.push(CityArrivals { has_arrived: is_restored, ..CityArrivals::default() });
    }

    pub(super) fn begin_epoch(&mut self) {
        self.epoch += 1;
        self.highs.clear();
    }

    /// Notes the newest time of the next arrival's city.
    pub(super) fn push_high(&mut self, high: i64) {
        self.highs.push(high);
    }

    /// The outcome of the epoch's arrival at index `at`.
    pub(super) fn outcome_of(
        &mut self,
        at: usize,
        city: CityId,
        arrival: &Arrival,
        effect: ArrivalEffect,
        names: &CityNames,
    ) -> ArrivalOutcome {
        let state = &mut self.cities[city.0 as usize];
        if state.last_epoch != self.epoch {
            (state.last_epoch, state.arrivals) = (self.epoch, 0);
        }
        let seq = state.arrivals;
        state.arrivals += 1;
        let held_heat = |held: PackedHeat| HeldHeat::new(held.heat_index(), held.category());
        ArrivalOutcome {
            city,
            reading_at: arrival.reading_at,
            partition: PartitionIndex(arrival.city.source),
            position: arrival.position,
            arrived_at: arrival.arrived_at(),
            event: arrival.event(),
            revision: arrival.revision,
            kind: effect.kind,
            seq,
            before: effect.before.map(held_heat),
            after: effect.after.map(held_heat),
            is_first_of_city: !std::mem::replace(&mut state.has_arrived, true),
            is_split: names.is_split(city),
            high: EventTime::from_millis(self.highs[at]),
        }
    }
}
