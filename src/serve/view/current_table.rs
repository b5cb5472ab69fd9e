//! The current row of every city, and what changed since an epoch.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::city_filter::CityFilter;
use crate::directory::{Coordinates, Directory};
use crate::model::{
    CurrentRow, CurrentRowUpdate, EventTime, OutcomeCounts, PartitionIndex, PartitionProgress, Reason,
};
use crate::serve::freshness::Freshness;

/// A city that has ever had a reading.
#[derive(Clone, Debug, PartialEq)]
pub struct ServedCity {
    pub key: Arc<str>,
    pub current: Option<CurrentRow>,
    /// The epoch of its last change.
    pub changed_epoch: u64,
}

/// What an update did to a city's current row.
pub struct CurrentRowChange {
    pub city: Arc<str>,
    pub location: Option<Coordinates>,
    /// The time of the row before the update; `None` if there was none.
    pub previous_reading_at: Option<EventTime>,
    pub current_row: Option<CurrentRow>,
}

/// The changes since an epoch are no longer in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangesExpired;

/// How current rows differ from those of an epoch, each city at most once.
#[derive(Debug)]
pub struct LatestChanges {
    pub as_of: u64,
    pub upserts: Vec<(Arc<str>, CurrentRow)>,
    pub removals: Vec<(Arc<str>, EventTime)>,
}

impl LatestChanges {
    /// Memory of a change at most; removals take less.
    pub const ROW_BYTES: usize = size_of::<(Arc<str>, CurrentRow)>();

    pub fn bytes(&self) -> usize {
        (self.upserts.len() + self.removals.len()) * Self::ROW_BYTES
    }
}

/// How many current rows are stale or ahead of the clock.
#[derive(Debug, Default, PartialEq)]
pub struct ClockComparison {
    /// Cities with a current row.
    pub with_current_row: usize,
    /// Cities whose current row is stale.
    pub stale: usize,
    /// Cities whose newest reading is ahead of the clock.
    pub ahead: usize,
    /// The furthest ahead first, at most [`ClockComparison::LISTED`].
    pub furthest_ahead: Vec<(Arc<str>, EventTime)>,
}

impl ClockComparison {
    pub const LISTED: usize = 100;
}

#[derive(Default)]
pub(super) struct ViewTotals {
    pub(super) progress: BTreeMap<PartitionIndex, PartitionProgress>,
    pub(super) counts: OutcomeCounts,
    pub(super) refused: BTreeMap<Reason, u64>,
}

/// The current row of every city. Cities have dense numbers, and form a list in the order of their
/// last change, so that finding the changes since an epoch costs no more than there are changes.
pub(super) struct CurrentTable {
    directory: &'static Directory<'static>,
    as_of: u64,
    city_indexes: HashMap<Arc<str>, u32, foldhash::fast::RandomState>,
    cities: Vec<TableCity>,
    newest_city: u32,
    removals: VecDeque<Removal>,
    max_removals: usize,
    ring_ms: u64,
    /// Removals up to this epoch have expired.
    expired_epoch: u64,
    /// How many updates were applied.
    updates: u64,
}

struct TableCity {
    state: ServedCity,
    location: Option<Coordinates>,
    /// The epoch since which it has a current row, if it has one.
    current_since: u64,
    newer: u32,
    older: u32,
    /// The last update that has changed it, and the position among that update's changes.
    last_update: (u64, u32),
}

/// A city lost its current row at `removed_epoch`, which it had had since `current_since`.
struct Removal {
    removed_epoch: u64,
    current_since: u64,
    city: u32,
    reading_at: EventTime,
}

/// The end of the list.
const END_OF_LIST: u32 = u32::MAX;

impl CurrentTable {
    pub(super) fn new(
        directory: &'static Directory<'static>,
        ring_ms: u64,
        ring_bytes: usize,
    ) -> CurrentTable {
        CurrentTable {
            directory,
            as_of: 0,
            city_indexes: HashMap::default(),
            cities: Vec::new(),
            newest_city: END_OF_LIST,
            removals: VecDeque::new(),
            max_removals: ring_bytes / size_of::<Removal>(),
            ring_ms,
            expired_epoch: 0,
            updates: 0,
        }
    }

    pub(super) fn as_of(&self) -> u64 {
        self.as_of
    }

    pub(super) fn city(&self, key: &str) -> Option<&ServedCity> {
        self.city_indexes.get(key).map(|&number| &self.cities[number as usize].state)
    }

    pub(super) fn cities(&self) -> impl ExactSizeIterator<Item = &ServedCity> {
        self.cities.iter().map(|city| &city.state)
    }

    /// Applies an update, and returns what it did, each city at most once.
    ///
    /// All processes record the same changes for each epoch, however epochs are batched to updates,
    /// so that a resume token of one process is valid at another.
    pub(super) fn apply_current_rows(
        &mut self,
        as_of: u64,
        updates: Vec<CurrentRowUpdate>,
    ) -> Vec<CurrentRowChange> {
        self.as_of = as_of;
        self.updates += 1;
        let mut changes: Vec<CurrentRowChange> = Vec::with_capacity(updates.len());
        for CurrentRowUpdate { epoch, city: key, row } in updates {
            let number = match self.city_indexes.get(&key) {
                Some(&number) => number,
                None if row.is_none() => continue,
                None => self.add_city(key, epoch),
            };
            let city = &mut self.cities[number as usize];
            if city.state.current == row {
                continue;
            }
            let previous_reading_at = city.state.current.map(|row| row.reading_at);
            city.state.current = row;
            city.state.changed_epoch = epoch;
            match (previous_reading_at, row) {
                (None, _) => city.current_since = epoch,
                (Some(reading_at), None) => {
                    let removal = Removal {
                        removed_epoch: epoch,
                        current_since: city.current_since,
                        city: number,
                        reading_at,
                    };
                    self.removals.push_back(removal);
                }
                _ => {}
            }
            if city.last_update.0 == self.updates {
                changes[city.last_update.1 as usize].current_row = row;
            } else {
                city.last_update = (self.updates, changes.len() as u32);
                changes.push(CurrentRowChange {
                    city: city.state.key.clone(),
                    location: city.location,
                    previous_reading_at,
                    current_row: row,
                });
            }
            self.move_to_front(number);
        }
        self.expire_removals();
        changes.retain(|change| change.previous_reading_at.is_some() || change.current_row.is_some());
        changes
    }

    fn add_city(&mut self, key: Arc<str>, epoch: u64) -> u32 {
        let number = self.cities.len() as u32;
        let location = self.directory.find_by_key(&key).and_then(|city| city.coordinates);
        let state = ServedCity { key: key.clone(), current: None, changed_epoch: epoch };
        self.cities.push(TableCity {
            state,
            location,
            current_since: epoch,
            newer: END_OF_LIST,
            older: END_OF_LIST,
            last_update: (0, 0),
        });
        self.city_indexes.insert(key, number);
        number
    }

    pub(super) fn compare_with_clock(&self, freshness: Freshness) -> ClockComparison {
        let now = i64::try_from(freshness.now_ms()).unwrap_or(i64::MAX);
        let (mut comparison, mut ahead) = (ClockComparison::default(), Vec::new());
        for city in &self.cities {
            let Some(CurrentRow { reading_at, .. }) = city.state.current else { continue };
            comparison.with_current_row += 1;
            comparison.stale += usize::from(freshness.is_stale(reading_at));
            if reading_at.millis() > now {
                ahead.push((city, reading_at));
            }
        }
        comparison.ahead = ahead.len();
        let by_time = |(_, at): &(&TableCity, EventTime)| std::cmp::Reverse(*at);
        if ahead.len() > ClockComparison::LISTED {
            ahead.select_nth_unstable_by_key(ClockComparison::LISTED, by_time);
            ahead.truncate(ClockComparison::LISTED);
        }
        ahead.sort_by_key(by_time);
        comparison.furthest_ahead =
            ahead.into_iter().map(|(city, at)| (city.state.key.clone(), at)).collect();
        comparison
    }

    fn move_to_front(&mut self, number: u32) {
        if self.newest_city == number {
            return;
        }
        let TableCity { newer, older, .. } = self.cities[number as usize];
        if newer != END_OF_LIST {
            self.cities[newer as usize].older = older;
        }
        if older != END_OF_LIST {
            self.cities[older as usize].newer = newer;
        }
        let second = std::mem::replace(&mut self.newest_city, number);
        if second != END_OF_LIST {
            self.cities[second as usize].newer = number;
        }
        let city = &mut self.cities[number as usize];
        (city.newer, city.older) = (END_OF_LIST, second);
    }

    fn expire_removals(&mut self) {
        let horizon = self.as_of.saturating_sub(self.ring_ms);
        while let Some(first) = self.removals.front() {
            if first.removed_epoch > horizon && self.removals.len() <= self.max_removals {
                break;
            }
            self.expired_epoch = first.removed_epoch;
            self.removals.pop_front();
        }
    }

    pub(super) fn changes_since(
        &self,
        filter: &CityFilter<'_>,
        since: Option<u64>,
    ) -> Result<LatestChanges, ChangesExpired> {
        let mut changes = LatestChanges { as_of: self.as_of, upserts: Vec::new(), removals: Vec::new() };
        let Some(since) = since else {
            self.for_each_changed(filter, 0, &mut |city| changes.upserts.extend(keyed_current_row(city)));
            return Ok(changes);
        };
        if since < self.expired_epoch || since < self.as_of.saturating_sub(self.ring_ms) {
            return Err(ChangesExpired);
        }
        self.for_each_changed(filter, since + 1, &mut |city| changes.upserts.extend(keyed_current_row(city)));
        let first = self.removals.partition_point(|removal| removal.removed_epoch <= since);
        for removal in self.removals.range(first..).filter(|removal| removal.current_since <= since) {
            let city = &self.cities[removal.city as usize];
            if city.state.current.is_none() && filter.matches(&city.state.key, city.location) {
                changes.removals.push((city.state.key.clone(), removal.reading_at));
            }
        }
        Ok(changes)
    }

    /// Visits the cities of `filter` that changed at epoch `from` or later.
    fn for_each_changed(&self, filter: &CityFilter<'_>, from: u64, visit: &mut dyn FnMut(&TableCity)) {
        if let CityFilter::Listed(keys) = filter {
            let numbers = keys.iter().filter_map(|key| self.city_indexes.get(key));
            let listed = numbers.map(|&number| &self.cities[number as usize]);
            listed.filter(|city| city.state.changed_epoch >= from).for_each(visit);
            return;
        }
        let mut next = self.newest_city;
        while let Some(city) = self.cities.get(next as usize).filter(|city| city.state.changed_epoch >= from)
        {
            if filter.matches(&city.state.key, city.location) {
                visit(city);
            }
            next = city.older;
        }
    }
}

fn keyed_current_row(city: &TableCity) -> Option<(Arc<str>, CurrentRow)> {
    Some((city.state.key.clone(), city.state.current?))
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

    fn apply(
        table: &mut CurrentTable,
        epoch: u64,
        rows: Vec<(Arc<str>, Option<CurrentRow>)>,
    ) -> Vec<CurrentRowChange> {
        let current = rows.into_iter().map(|(city, row)| CurrentRowUpdate { epoch, city, row });
        table.apply_current_rows(epoch, current.collect())
    }

    fn since(table: &CurrentTable, since: u64) -> Option<(usize, usize)> {
        let found = table.changes_since(&CityFilter::All, Some(since)).ok()?;
        Some((found.upserts.len(), found.removals.len()))
    }

    #[test]
    fn only_existing_rows_are_removed() {
        let mut table = CurrentTable::new(Directory::shipped(), 1000, 2 * size_of::<Removal>());
        let city = || Arc::<str>::from("a");
        assert_eq!(apply(&mut table, 1, vec![(city(), None)]).len(), 0);
        assert!(table.city("a").is_none(), "the city has never had a reading");
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
        assert_eq!(
            [3, 4].map(|epoch| since(&table, epoch)),
            [None, Some((0, 1))],
            "the oldest removal has expired"
        );
        apply(&mut table, 1500, Vec::new());
        assert_eq!([499, 500].map(|epoch| since(&table, epoch)), [None, Some((0, 0))]);
    }

    #[test]
    fn rows_ahead_of_clock_are_counted_and_furthest_listed() {
        let mut table = CurrentTable::new(Directory::shipped(), 1000, 1 << 20);
        let listed = ClockComparison::LISTED as i64;
        let rows = (0..listed + 20).map(|minute| (minute.to_string().into(), row(minute)));
        apply(&mut table, 1, rows.chain([("withdrawn".into(), None)]).collect());
        // Ten are not ahead: the clock says minute 9. Four of those are older than five minutes.
        let stale_after = "5m".parse().unwrap();
        let found = table.compare_with_clock(Freshness::at(9 * 60_000, stale_after));
        assert_eq!((found.ahead as i64, found.furthest_ahead.len() as i64), (listed + 10, listed));
        assert_eq!((found.with_current_row as i64, found.stale), (listed + 20, 4));
        let first = &found.furthest_ahead[0];
        assert_eq!((&*first.0, first.1.millis()), (&*(listed + 19).to_string(), (listed + 19) * 60_000));
        assert!(found.furthest_ahead.is_sorted_by(|a, b| a.1 > b.1));
        let found = table.compare_with_clock(Freshness::at(u64::MAX, stale_after));
        assert_eq!((found.ahead, found.stale), (0, found.with_current_row));
    }

    #[test]
    fn changes_since_epoch_do_not_depend_on_update_batching() {
        let city = || Arc::<str>::from("a");
        let rows: Vec<_> = [row(1), row(2), None, row(3), row(4), None, None, row(5)].into();
        let updates: Vec<CurrentRowUpdate> =
            (1..).zip(rows).map(|(epoch, row)| CurrentRowUpdate { epoch, city: city(), row }).collect();
        let tables = [1, 2, 3, 8].map(|size| {
            let mut table = CurrentTable::new(Directory::shipped(), 1000, 1 << 20);
            for update in updates.chunks(size) {
                let changes = table.apply_current_rows(update[update.len() - 1].epoch, update.to_vec());
                assert!(changes.len() <= 1);
                assert!(
                    changes
                        .iter()
                        .all(|change| change.previous_reading_at.is_some() || change.current_row.is_some())
                );
            }
            table
        });
        for token in 0..=8 {
            let all = tables.each_ref().map(|table| since(table, token));
            assert!(all.iter().all(|found| *found == all[0]), "since {token}: {all:?}");
        }
    }
}
