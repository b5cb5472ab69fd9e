//! The current row of every city, and what changed since an epoch.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::{Place, Select};
use crate::directory::{Coordinates, Directory};
use crate::model::{Counts, CurrentAt, CurrentRow, EventTime, Progress, Reason, Slot};
use crate::serve::freshness::Freshness;

/// A city that has ever had a reading.
#[derive(Clone, Debug, PartialEq)]
pub struct CityState {
    pub key: Arc<str>,
    pub current: Option<CurrentRow>,
    /// The epoch of the last change.
    pub changed: u64,
}

/// A change of a city's current row.
pub struct Changed {
    pub city: Arc<str>,
    pub place: Option<Place>,
    /// Of the row before.
    pub was: Option<EventTime>,
    pub now: Option<CurrentRow>,
}

/// What has changed since an epoch is not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired;

/// What has changed in current rows, each city at most once.
#[derive(Debug)]
pub struct Since {
    pub as_of: u64,
    pub upserts: Vec<(Arc<str>, CurrentRow)>,
    pub removals: Vec<(Arc<str>, EventTime)>,
}

impl Since {
    /// Removals take less.
    pub const ROW_BYTES: usize = size_of::<(Arc<str>, CurrentRow)>();

    pub fn bytes(&self) -> usize {
        (self.upserts.len() + self.removals.len()) * Self::ROW_BYTES
    }
}

/// How current rows stand against the clock.
#[derive(Debug, Default, PartialEq)]
pub struct AgainstClock {
    /// Cities with a current row.
    pub current: usize,
    /// Those of them whose row is stale.
    pub stale: usize,
    /// Those whose newest reading is ahead of the clock.
    pub ahead: usize,
    /// The furthest ahead first, at most [`AgainstClock::LISTED`].
    pub furthest_ahead: Vec<(Arc<str>, EventTime)>,
}

impl AgainstClock {
    pub const LISTED: usize = 100;
}

#[derive(Default)]
pub(super) struct Tally {
    pub(super) progress: BTreeMap<Slot, Progress>,
    pub(super) counts: Counts,
    pub(super) refused: BTreeMap<Reason, u64>,
}

/// Cities have dense numbers. They are also a list in the order of their last change, so that what changed since an epoch
/// costs no more than that.
pub(super) struct Table {
    directory: &'static Directory<'static>,
    as_of: u64,
    numbers: HashMap<Arc<str>, u32, foldhash::fast::RandomState>,
    cities: Vec<City>,
    newest: u32,
    removals: VecDeque<Removal>,
    max_removals: usize,
    ring_ms: u64,
    /// Removals up to this epoch are forgotten.
    forgotten: u64,
    /// Counts the updates.
    updates: u64,
}

struct City {
    state: CityState,
    place: Option<Place>,
    /// The epoch since which it has a current row, where it has one.
    since: u64,
    newer: u32,
    older: u32,
    /// The last update that has changed it, and which of that update's changes it is.
    update: (u64, u32),
}

/// The city had a current row from epoch `since` until it lost it at epoch `at`.
struct Removal {
    at: u64,
    since: u64,
    city: u32,
    reading_at: EventTime,
}

/// The end of the list.
const NONE: u32 = u32::MAX;

impl Table {
    pub(super) fn new(directory: &'static Directory<'static>, ring_ms: u64, ring_bytes: usize) -> Table {
        Table {
            directory,
            as_of: 0,
            numbers: HashMap::default(),
            cities: Vec::new(),
            newest: NONE,
            removals: VecDeque::new(),
            max_removals: ring_bytes / size_of::<Removal>(),
            ring_ms,
            forgotten: 0,
            updates: 0,
        }
    }

    pub(super) fn as_of(&self) -> u64 {
        self.as_of
    }

    pub(super) fn city(&self, key: &str) -> Option<&CityState> {
        self.numbers.get(key).map(|&number| &self.cities[number as usize].state)
    }

    pub(super) fn cities(&self) -> impl ExactSizeIterator<Item = &CityState> {
        self.cities.iter().map(|city| &city.state)
    }

    /// Every process keeps the same of each epoch, however the epochs come in updates, so that a token of one continues at another.
    /// What comes back is of the whole update: each city at most once.
    pub(super) fn apply(&mut self, as_of: u64, current: Vec<CurrentAt>) -> Vec<Changed> {
        self.as_of = as_of;
        self.updates += 1;
        let mut changes: Vec<Changed> = Vec::with_capacity(current.len());
        for CurrentAt { epoch, city: key, row: now } in current {
            let number = match self.numbers.get(&key) {
                Some(&number) => number,
                None if now.is_none() => continue,
                None => self.add(key, epoch),
            };
            let city = &mut self.cities[number as usize];
            if city.state.current == now {
                continue;
            }
            let was = city.state.current.map(|row| row.reading_at);
            city.state.current = now;
            city.state.changed = epoch;
            match (was, now) {
                (None, _) => city.since = epoch,
                (Some(reading_at), None) => {
                    let removal = Removal { at: epoch, since: city.since, city: number, reading_at };
                    self.removals.push_back(removal);
                }
                _ => {}
            }
            if city.update.0 == self.updates {
                changes[city.update.1 as usize].now = now;
            } else {
                city.update = (self.updates, changes.len() as u32);
                changes.push(Changed { city: city.state.key.clone(), place: city.place, was, now });
            }
            self.move_to_front(number);
        }
        self.forget();
        changes.retain(|change| change.was.is_some() || change.now.is_some());
        changes
    }

    fn add(&mut self, key: Arc<str>, epoch: u64) -> u32 {
        let number = self.cities.len() as u32;
        let place = self
            .directory
            .find(&key)
            .and_then(|city| city.coordinates)
            .map(|Coordinates { latitude, longitude }| Place { latitude, longitude });
        let state = CityState { key: key.clone(), current: None, changed: epoch };
        self.cities.push(City { state, place, since: epoch, newer: NONE, older: NONE, update: (0, 0) });
        self.numbers.insert(key, number);
        number
    }

    pub(super) fn against_clock(&self, freshness: Freshness) -> AgainstClock {
        let now = i64::try_from(freshness.now_ms()).unwrap_or(i64::MAX);
        let (mut found, mut ahead) = (AgainstClock::default(), Vec::new());
        for city in &self.cities {
            let Some(CurrentRow { reading_at, .. }) = city.state.current else { continue };
            found.current += 1;
            found.stale += usize::from(freshness.is_stale(reading_at));
            if reading_at.millis() > now {
                ahead.push((city, reading_at));
            }
        }
        found.ahead = ahead.len();
        let by_time = |(_, at): &(&City, EventTime)| std::cmp::Reverse(*at);
        if ahead.len() > AgainstClock::LISTED {
            ahead.select_nth_unstable_by_key(AgainstClock::LISTED, by_time);
            ahead.truncate(AgainstClock::LISTED);
        }
        ahead.sort_by_key(by_time);
        found.furthest_ahead = ahead.into_iter().map(|(city, at)| (city.state.key.clone(), at)).collect();
        found
    }

    fn move_to_front(&mut self, number: u32) {
        if self.newest == number {
            return;
        }
        let City { newer, older, .. } = self.cities[number as usize];
        if newer != NONE {
            self.cities[newer as usize].older = older;
        }
        if older != NONE {
            self.cities[older as usize].newer = newer;
        }
        let second = std::mem::replace(&mut self.newest, number);
        if second != NONE {
            self.cities[second as usize].newer = number;
        }
        let city = &mut self.cities[number as usize];
        (city.newer, city.older) = (NONE, second);
    }

    fn forget(&mut self) {
        let horizon = self.as_of.saturating_sub(self.ring_ms);
        while let Some(first) = self.removals.front() {
            if first.at > horizon && self.removals.len() <= self.max_removals {
                break;
            }
            self.forgotten = first.at;
            self.removals.pop_front();
        }
    }

    pub(super) fn since(&self, select: &Select<'_>, since: Option<u64>) -> Result<Since, Expired> {
        let mut found = Since { as_of: self.as_of, upserts: Vec::new(), removals: Vec::new() };
        let Some(since) = since else {
            self.each(select, 0, &mut |city| found.upserts.extend(row_of(city)));
            return Ok(found);
        };
        if since < self.forgotten || since < self.as_of.saturating_sub(self.ring_ms) {
            return Err(Expired);
        }
        self.each(select, since + 1, &mut |city| found.upserts.extend(row_of(city)));
        let first = self.removals.partition_point(|removal| removal.at <= since);
        for removal in self.removals.range(first..).filter(|removal| removal.since <= since) {
            let city = &self.cities[removal.city as usize];
            if city.state.current.is_none() && select.takes(&city.state.key, city.place) {
                found.removals.push((city.state.key.clone(), removal.reading_at));
            }
        }
        Ok(found)
    }

    /// The selected cities that changed at epoch `from` or later.
    fn each(&self, select: &Select<'_>, from: u64, each: &mut dyn FnMut(&City)) {
        if let Select::Listed(keys) = select {
            let numbers = keys.iter().filter_map(|key| self.numbers.get(key));
            let listed = numbers.map(|&number| &self.cities[number as usize]);
            listed.filter(|city| city.state.changed >= from).for_each(each);
            return;
        }
        let mut next = self.newest;
        while let Some(city) = self.cities.get(next as usize).filter(|city| city.state.changed >= from) {
            if select.takes(&city.state.key, city.place) {
                each(city);
            }
            next = city.older;
        }
    }
}

fn row_of(city: &City) -> Option<(Arc<str>, CurrentRow)> {
    Some((city.state.key.clone(), city.state.current?))
}

impl Select<'_> {
    pub fn takes(&self, key: &Arc<str>, place: Option<Place>) -> bool {
        match self {
            Select::All => true,
            Select::Listed(keys) => keys.binary_search(key).is_ok(),
            Select::Inside(bounds) => place.is_some_and(|place| bounds.hold(place)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Category, HeatIndex, Row};

    fn row(minute: i64) -> Option<CurrentRow> {
        let row = Row::new(HeatIndex::default(), Category::None, 0, 1);
        let reading_at = EventTime::from_millis(minute * 60_000)?;
        Some(CurrentRow { reading_at, row, hour_ago: None, measurement: None })
    }

    fn apply(table: &mut Table, epoch: u64, rows: Vec<(Arc<str>, Option<CurrentRow>)>) -> Vec<Changed> {
        let current = rows.into_iter().map(|(city, row)| CurrentAt { epoch, city, row });
        table.apply(epoch, current.collect())
    }

    fn since(table: &Table, since: u64) -> Option<(usize, usize)> {
        let found = table.since(&Select::All, Some(since)).ok()?;
        Some((found.upserts.len(), found.removals.len()))
    }

    #[test]
    fn only_what_was_there_is_removed() {
        let mut table = Table::new(Directory::shipped(), 1000, 2 * size_of::<Removal>());
        let city = || Arc::<str>::from("a");
        assert_eq!(apply(&mut table, 1, vec![(city(), None)]).len(), 0);
        assert!(table.city("a").is_none(), "it never had a reading");
        apply(&mut table, 2, vec![(city(), row(1)), ("b".into(), row(1))]);
        assert_eq!(apply(&mut table, 3, vec![(city(), row(1))]).len(), 0, "nothing has changed");
        apply(&mut table, 4, vec![(city(), None)]);
        let found = [1, 2, 3, 4].map(|epoch| since(&table, epoch));
        assert_eq!(found, [Some((1, 0)), Some((0, 1)), Some((0, 1)), Some((0, 0))]);
        apply(&mut table, 5, vec![(city(), row(2))]);
        assert_eq!([3, 4].map(|epoch| since(&table, epoch)), [Some((1, 0)), Some((1, 0))]);
        apply(&mut table, 6, vec![(city(), None)]);
        let found = [3, 4, 5].map(|epoch| since(&table, epoch));
        assert_eq!(found, [Some((0, 1)), Some((0, 0)), Some((0, 1))]);
        apply(&mut table, 7, vec![("b".into(), None)]);
        assert_eq!([3, 4].map(|epoch| since(&table, epoch)), [None, Some((0, 1))], "the oldest is forgotten");
        apply(&mut table, 1500, Vec::new());
        assert_eq!([499, 500].map(|epoch| since(&table, epoch)), [None, Some((0, 0))]);
    }

    #[test]
    fn rows_are_counted_against_the_clock_and_the_furthest_ahead_listed() {
        let mut table = Table::new(Directory::shipped(), 1000, 1 << 20);
        let listed = AgainstClock::LISTED as i64;
        let rows = (0..listed + 20).map(|minute| (minute.to_string().into(), row(minute)));
        apply(&mut table, 1, rows.chain([("withdrawn".into(), None)]).collect());
        // Ten are not ahead: the clock says minute 9. Four of those are older than five minutes.
        let stale_after = "5m".parse().unwrap();
        let found = table.against_clock(Freshness::at(9 * 60_000, stale_after));
        assert_eq!((found.ahead as i64, found.furthest_ahead.len() as i64), (listed + 10, listed));
        assert_eq!((found.current as i64, found.stale), (listed + 20, 4));
        let first = &found.furthest_ahead[0];
        assert_eq!((&*first.0, first.1.millis()), (&*(listed + 19).to_string(), (listed + 19) * 60_000));
        assert!(found.furthest_ahead.is_sorted_by(|a, b| a.1 > b.1));
        let found = table.against_clock(Freshness::at(u64::MAX, stale_after));
        assert_eq!((found.ahead, found.stale), (0, found.current));
    }

    /// However epochs are put together to updates.
    #[test]
    fn every_process_says_the_same_since_an_epoch() {
        let city = || Arc::<str>::from("a");
        let told: Vec<_> = [row(1), row(2), None, row(3), row(4), None, None, row(5)].into();
        let told: Vec<CurrentAt> =
            (1..).zip(told).map(|(epoch, row)| CurrentAt { epoch, city: city(), row }).collect();
        let tables = [1, 2, 3, 8].map(|size| {
            let mut table = Table::new(Directory::shipped(), 1000, 1 << 20);
            for update in told.chunks(size) {
                let changes = table.apply(update[update.len() - 1].epoch, update.to_vec());
                assert!(changes.len() <= 1);
                assert!(changes.iter().all(|change| change.was.is_some() || change.now.is_some()));
            }
            table
        });
        for token in 0..=8 {
            let all = tables.each_ref().map(|table| since(table, token));
            assert!(all.iter().all(|found| *found == all[0]), "since {token}: {all:?}");
        }
    }
}
