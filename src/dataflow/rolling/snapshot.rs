//! The state of cities as checkpoints keep it: taken while the flow goes on, and resumed.
//!
//! A snapshot is of one epoch. It gives a slice of cities at a time between the epochs that follow, and a city that one of
//! them touches is given before: so what it gives is copied city by city, when it changes or when its turn comes.

use std::sync::Arc;
use std::time::{Duration as Span, Instant};

use super::part::Part;
use super::store::{END, NEVER};
use super::{Changed, Rolling};
use crate::model::{Arrival, Block, CityId, CityState, EventTime, Mark, Slot, Snapshots};

/// The state that a graph begins with: what is current there is told at `epoch`.
#[derive(Clone, Debug, Default)]
pub struct Resumed {
    pub epoch: u64,
    /// Of each city that [is this worker's](crate::model::state_shard), all that checkpoints have.
    pub cities: Vec<CityState>,
}

/// For how long cities are given before anything else gets its turn.
const SLICE: Span = Span::from_millis(1);
/// Cities between two looks at the clock.
const CITIES: usize = 16;
/// For how long a taker that is full is left alone.
const PAUSE: Span = Span::from_millis(5);

/// Gives snapshots to their taker.
pub struct Snapshooter {
    taker: Box<dyn Snapshots>,
    running: Option<Running>,
}

struct Running {
    mark: Mark,
    /// Which cities were given or have not changed; there are no others.
    given: Vec<bool>,
    /// The first that may not be.
    next: usize,
}

impl Snapshooter {
    pub fn new(taker: Box<dyn Snapshots>) -> Snapshooter {
        Snapshooter { taker, running: None }
    }

    /// Begins a snapshot of the state as it is, which is that after `epoch`; one that is going on is finished.
    pub fn begin(&mut self, mark: Mark, epoch: u64, rolling: &mut Rolling) {
        self.look_if_wanted();
        if self.taker.has_given_up(mark) {
            return;
        }
        while let Some(running) = &mut self.running {
            running.give_next(rolling, &mut *self.taker);
            self.end_if_all_are_given();
        }
        self.taker.begin(mark, epoch);
        let given = vec![false; rolling.store.heads.len()];
        self.running = Some(Running { mark, given, next: 0 });
        self.end_if_all_are_given();
    }

    /// Gives the cities that an epoch is about to touch.
    pub fn make_way(&mut self, arrivals: &[Vec<Arrival>], rolling: &mut Rolling) {
        self.look_if_wanted();
        let Some(running) = &mut self.running else { return };
        for arrival in arrivals.iter().flatten() {
            let city = rolling.cities.get(arrival.city) as usize;
            if running.given.get(city) == Some(&false) {
                running.give(city, rolling, &mut *self.taker);
            }
        }
    }

    /// Gives the next slice; returns after how long it wants to go on, unless nothing is left to give.
    pub fn go_on(&mut self, rolling: &mut Rolling) -> Option<Span> {
        let start = Instant::now();
        self.look_if_wanted();
        while let Some(running) = &mut self.running {
            if self.taker.is_full() {
                return Some(PAUSE);
            }
            for _ in 0..CITIES {
                running.give_next(rolling, &mut *self.taker);
            }
            self.end_if_all_are_given();
            if start.elapsed() >= SLICE {
                break;
            }
        }
        self.running.is_some().then_some(Span::ZERO)
    }

    /// Gives up a snapshot that is going on.
    pub fn stop(&mut self) {
        self.running = None;
    }

    fn look_if_wanted(&mut self) {
        self.running.take_if(|running| self.taker.has_given_up(running.mark));
    }

    fn end_if_all_are_given(&mut self) {
        if self.running.take_if(|running| running.next == running.given.len()).is_some() {
            self.taker.end();
        }
    }
}

impl Running {
    fn give_next(&mut self, rolling: &mut Rolling, taker: &mut dyn Snapshots) {
        while self.given.get(self.next) == Some(&true) {
            self.next += 1;
        }
        if self.next < self.given.len() {
            self.give(self.next, rolling, taker);
            self.next += 1;
        }
    }

    fn give(&mut self, city: usize, rolling: &mut Rolling, taker: &mut dyn Snapshots) {
        self.given[city] = true;
        if let Some(state) = rolling.take_state(city as u32, self.mark.full) {
            taker.city(state);
        }
    }
}

impl Rolling {
    /// The city's state: all of it, or what has changed since it was last taken, if anything has.
    fn take_state(&mut self, city: u32, full: bool) -> Option<CityState> {
        self.store.seal(city);
        self.store.trim(city);
        let (newest, high) = (self.store.last_millis(city), self.store.heads[city as usize].high);
        let now = (newest.unwrap_or(NEVER), high);
        let index = &mut self.store.index[city as usize];
        let edited_from = std::mem::replace(&mut index.edited_from, END);
        let before = std::mem::replace(&mut index.marked, now);
        if !full && edited_from == END && before == now {
            return None;
        }
        let since = if full { NEVER } else { edited_from.min(before.0.saturating_add(1)) };
        let since = since.clamp(EventTime::MIN.millis(), EventTime::MAX.millis());
        let index = &self.store.index[city as usize];
        let withdrawn = index.withdrawn.iter().filter_map(|(at, revision)| Some((time(*at)?, *revision)));
        let measured = self.current.as_ref().map_or(&[][..], |current| current.measured(city));
        Some(CityState {
            name: self.cities.names.get(CityId(city)),
            slot: self.cities.slot(city),
            high: time(high),
            since: time(since)?,
            blocks: self.blocks(city, since),
            withdrawn: withdrawn.collect(),
            measured: measured
                .iter()
                .filter_map(|(at, measurement)| Some((time(*at)?, *measurement)))
                .collect(),
        })
    }

    /// The readings at `since` and later; the city must be sealed.
    fn blocks(&self, city: u32, since: i64) -> Vec<Block> {
        let place = self.store.seek(city, since);
        let parts = &self.store.index[city as usize].parts;
        let blocks = parts.range(place.chunk.min(parts.len())..).enumerate().map(|(i, part)| {
            let from = if i == 0 { place.row } else { 0 };
            match part {
                Part::Open(chunk) => self.store.arena.get(*chunk).pack(from),
                Part::Packed(block) if from == 0 => block.clone(),
                Part::Packed(block) => Block::pack(&block.iter().skip(from).collect::<Vec<_>>()),
            }
        });
        blocks.collect()
    }

    /// Takes over cities that no arrival has come for; `changed` then says what is current there.
    pub fn resume(&mut self, cities: Vec<CityState>, changed: &mut Changed) {
        for CityState { name, slot, high, since: _, blocks, withdrawn, measured } in cities {
            let Some(city) = self.cities.resume(name, slot) else { continue };
            self.add_city();
            let withdrawn = withdrawn.into_iter().map(|(at, revision)| (at.millis(), revision));
            self.store.resume(city, blocks, withdrawn, high.map_or(NEVER, EventTime::millis));
            #[cfg(debug_assertions)]
            self.store.check(city);
            if let Some(current) = &mut self.current {
                let measured = measured.into_iter().map(|(at, measurement)| (at.millis(), measurement));
                current.resume(city, measured.collect());
            }
        }
        changed.clear();
        if let Some(current) = &mut self.current {
            current.finish_epoch(&mut self.store, false, changed);
        }
    }
}

/// A held time, which came from an event time; nothing of [`NEVER`].
fn time(millis: i64) -> Option<EventTime> {
    EventTime::from_millis(millis)
}

impl super::Cities {
    /// The partition that the city came from first.
    fn slot(&self, city: u32) -> Slot {
        Slot(self.sources[city as usize])
    }

    /// A city that no source has introduced in this run; nothing where there already is one of the name.
    fn resume(&mut self, name: Arc<str>, slot: Slot) -> Option<u32> {
        (!self.by_name.contains_key(&name)).then(|| self.push(name, slot.0))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::*;
    use crate::dataflow::heat_index::Formula;
    use crate::dataflow::rolling::{Retention, Wanted};
    use crate::model::{Category, CityNames, Duration, HeatIndex, HeldReading};

    #[derive(Clone, Default)]
    struct Taker {
        given_up: Rc<Cell<u64>>,
        full: Rc<Cell<bool>>,
        begun: Rc<RefCell<Vec<u64>>>,
        given: Rc<Cell<usize>>,
        ended: Rc<Cell<usize>>,
    }

    impl Snapshots for Taker {
        fn begin(&mut self, mark: Mark, _: u64) {
            self.begun.borrow_mut().push(mark.checkpoint);
        }

        fn city(&mut self, _: CityState) {
            self.given.set(self.given.get() + 1);
        }

        fn end(&mut self) {
            self.ended.set(self.ended.get() + 1);
        }

        fn is_full(&self) -> bool {
            self.full.get()
        }

        fn has_given_up(&self, mark: Mark) -> bool {
            mark.checkpoint <= self.given_up.get()
        }
    }

    fn city(number: i64) -> CityState {
        let reading = HeldReading {
            reading_at: EventTime::from_millis(60_000 * number).unwrap(),
            heat_index: HeatIndex::from_micros(70_000_000),
            category: Category::ALL[0],
            revision: None,
        };
        CityState {
            name: format!("city {number}").into(),
            slot: Slot(0),
            high: Some(reading.reading_at),
            since: EventTime::MIN,
            blocks: vec![Block::pack(&[reading])],
            withdrawn: Vec::new(),
            measured: Vec::new(),
        }
    }

    #[test]
    fn what_is_given_up_is_given_no_further() {
        let day = Duration::from_millis(86_400_000).unwrap();
        let retention = Retention { window: day, lateness: day, history: day };
        let mut rolling = Rolling::new(Formula::Nws, retention, Wanted::default(), CityNames::default());
        rolling.resume((0..40).map(city).collect(), &mut Changed::default());
        let taker = Taker::default();
        let mut snapshots = Snapshooter::new(Box::new(taker.clone()));
        let mark = |checkpoint: u64| Mark { checkpoint, full: true };
        taker.full.set(true);
        snapshots.begin(mark(1), 1, &mut rolling);
        assert!(snapshots.go_on(&mut rolling).is_some());
        taker.given_up.set(2);
        assert!(snapshots.go_on(&mut rolling).is_none());
        // One whose mark comes after it was given up does not begin.
        snapshots.begin(mark(2), 2, &mut rolling);
        taker.full.set(false);
        assert!(snapshots.go_on(&mut rolling).is_none());
        assert_eq!((taker.given.get(), taker.ended.get()), (0, 0));
        snapshots.begin(mark(3), 3, &mut rolling);
        while snapshots.go_on(&mut rolling).is_some() {}
        assert_eq!((taker.given.get(), taker.ended.get()), (40, 1));
        assert_eq!(*taker.begun.borrow(), [1, 3]);
    }
}
