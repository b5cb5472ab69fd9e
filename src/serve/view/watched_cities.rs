//! The recent changes of all rows of watched cities.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::current_table::ChangesExpired;
use crate::model::{AnswerPiece, EventTime, Row, WatchedRow};

/// How the rows of watched cities differ from those of an epoch, each row once.
#[derive(Debug)]
pub struct WindowChanges {
    pub as_of: u64,
    /// By city and time; without a row if it was removed.
    pub rows: Vec<(Arc<str>, EventTime, Option<Row>)>,
}

impl WindowChanges {
    pub const ROW_BYTES: usize = size_of::<(Arc<str>, EventTime, Option<Row>)>();

    pub fn bytes(&self) -> usize {
        self.rows.len() * Self::ROW_BYTES
    }
}

/// A ring of changes for each watched city. All rings together are limited by time and by bytes:
/// the oldest changes are evicted first.
pub(super) struct WatchedCities {
    as_of: u64,
    rings: HashMap<Arc<str>, ChangeRing, foldhash::fast::RandomState>,
    /// The epoch, the city and the ring's first query of every change, oldest first.
    entries: VecDeque<(u64, Arc<str>, u64)>,
    max_entries: usize,
    ring_ms: u64,
    ring_time: Duration,
    /// Rings that may have no holder, each once, and the earliest time at which it may end.
    released: VecDeque<(Instant, Arc<str>)>,
}

struct ChangeRing {
    /// The query that began the ring: differs from that of an earlier ring of the city.
    first_query: u64,
    /// The queries that watch the city, until one of them is answered. Queries of clients that have
    /// disconnected may never be.
    unanswered_queries: Vec<u64>,
    /// The epoch of the first response to one of them: the ring has all changes after it.
    first_response_epoch: Option<u64>,
    /// Changes up to this epoch may be evicted.
    evicted_epoch: u64,
    changes: VecDeque<(u64, EventTime, Option<Row>)>,
    holders: usize,
    /// When the ring ends, if it has no holder until then.
    expires_at: Option<Instant>,
}

/// Cities that may have a ring at one time.
pub const MAX_WATCHED_CITIES: usize = 100_000;

type RingEntry = ((u64, EventTime, Option<Row>), (u64, Arc<str>, u64));

impl WatchedCities {
    pub(super) fn new(ring_time: Duration, ring_bytes: usize) -> WatchedCities {
        WatchedCities {
            as_of: 0,
            rings: HashMap::default(),
            entries: VecDeque::new(),
            max_entries: ring_bytes / size_of::<RingEntry>(),
            ring_ms: u64::try_from(ring_time.as_millis()).unwrap_or(u64::MAX),
            ring_time,
            released: VecDeque::new(),
        }
    }

    pub(super) fn as_of(&self) -> u64 {
        self.as_of
    }

    /// Makes room for the rings of `cities`, which are sorted: if there would be too many rings,
    /// released ones end early, the oldest first. False if that is not enough, or if `unwatch`
    /// returns false because it must be tried again later.
    pub(super) fn evict_released_for(
        &mut self,
        cities: &[Arc<str>],
        unwatch: impl Fn(&Arc<str>) -> bool,
    ) -> bool {
        let new = cities.iter().filter(|city| !self.rings.contains_key(*city)).count();
        let mut excess = (self.rings.len() + new).saturating_sub(MAX_WATCHED_CITIES);
        let mut spared = Vec::new();
        while excess > 0 {
            let Some((end, city)) = self.released.pop_front() else { break };
            let Some(ring) = self.rings.get_mut(&city) else { continue };
            if ring.holders > 0 {
                ring.expires_at = None;
            } else if let Some(later) = ring.expires_at.filter(|later| *later > end) {
                self.released.push_back((later, city));
            } else if cities.binary_search(&city).is_ok() {
                spared.push((end, city));
            } else if unwatch(&city) {
                self.rings.remove(&city);
                excess -= 1;
            } else {
                spared.push((end, city));
                break;
            }
        }
        for released in spared.into_iter().rev() {
            self.released.push_front(released);
        }
        excess == 0
    }

    /// Begins the rings that are missing, and holds all. Cities and queries correspond: the first
    /// city is that of query `first_query`, and so on.
    pub(super) fn begin_rings(&mut self, cities: &[Arc<str>], first_query: u64) {
        for (city, query) in cities.iter().zip(first_query..) {
            let ring = self.rings.entry(city.clone()).or_insert_with(|| ChangeRing {
                first_query: query,
                unanswered_queries: Vec::new(),
                first_response_epoch: None,
                evicted_epoch: 0,
                changes: VecDeque::new(),
                holders: 0,
                expires_at: None,
            });
            if ring.first_response_epoch.is_none() {
                ring.unanswered_queries.push(query);
            }
        }
        self.hold_rings(cities);
    }

    pub(super) fn hold_rings(&mut self, cities: &[Arc<str>]) {
        for city in cities {
            if let Some(ring) = self.rings.get_mut(city) {
                ring.holders += 1;
            }
        }
    }

    pub(super) fn release_rings(&mut self, cities: &[Arc<str>]) {
        let end = Instant::now() + self.ring_time;
        for city in cities {
            let Some(ring) = self.rings.get_mut(city) else { continue };
            ring.holders = ring.holders.saturating_sub(1);
            if ring.holders == 0 && ring.expires_at.replace(end).is_none() {
                self.released.push_back((end, city.clone()));
            }
        }
    }

    /// Ends rings that had no holder for long enough. If `unwatch` returns false, the ring stays
    /// and is tried again later.
    pub(super) fn expire_rings(&mut self, unwatch: impl Fn(&Arc<str>) -> bool) {
        if self.released.is_empty() {
            return;
        }
        let now = Instant::now();
        while self.released.front().is_some_and(|(end, _)| *end <= now) {
            let Some((end, city)) = self.released.pop_front() else { return };
            let Some(ring) = self.rings.get_mut(&city) else { continue };
            let later = ring.expires_at.filter(|end| *end > now);
            if ring.holders > 0 {
                ring.expires_at = None;
            } else if let Some(later) = later {
                self.released.push_back((later, city));
            } else if unwatch(&city) {
                self.rings.remove(&city);
            } else {
                return self.released.push_front((end, city));
            }
        }
    }

    pub(super) fn apply_update(&mut self, as_of: u64, rows: &[WatchedRow], answers: &[AnswerPiece]) {
        self.as_of = as_of;
        for answer in answers {
            let ring = self.rings.get_mut(&answer.city);
            if let Some(ring) = ring.filter(|ring| ring.unanswered_queries.contains(&answer.query_id)) {
                ring.first_response_epoch = Some(answer.epoch);
                ring.unanswered_queries = Vec::new();
            }
        }
        for row in rows {
            if let Some(ring) = self.rings.get_mut(&row.city) {
                ring.changes.push_back((row.epoch, row.reading_at, row.row));
                self.entries.push_back((row.epoch, row.city.clone(), ring.first_query));
            }
        }
        let horizon = as_of.saturating_sub(self.ring_ms);
        while let Some((epoch, city, query)) = self.entries.front() {
            if *epoch > horizon && self.entries.len() <= self.max_entries {
                break;
            }
            if let Some(ring) = self.rings.get_mut(city).filter(|ring| ring.first_query == *query) {
                ring.changes.pop_front();
                ring.evicted_epoch = *epoch;
            }
            self.entries.pop_front();
        }
    }

    /// How many changes the rings of `cities` hold.
    pub(super) fn count_changes(&self, cities: &[Arc<str>]) -> usize {
        cities.iter().filter_map(|city| self.rings.get(city)).map(|ring| ring.changes.len()).sum()
    }

    /// Whether the rings of `cities` hold all changes after epoch `since`.
    pub(super) fn reaches_back_to(&self, cities: &[Arc<str>], since: u64) -> bool {
        cities.iter().all(|city| {
            let ring = self.rings.get(city).filter(|ring| ring.evicted_epoch <= since);
            ring.and_then(|ring| ring.first_response_epoch).is_some_and(|answered| answered <= since)
        })
    }

    pub(super) fn changes_since(
        &self,
        cities: &[Arc<str>],
        since: u64,
    ) -> Result<WindowChanges, ChangesExpired> {
        if !self.reaches_back_to(cities, since) {
            return Err(ChangesExpired);
        }
        let mut rows = Vec::new();
        for city in cities {
            let Some(ring) = self.rings.get(city) else { continue };
            let first = ring.changes.partition_point(|(epoch, ..)| *epoch <= since);
            let changes = ring.changes.range(first..).map(|&(_, reading_at, row)| (reading_at, row));
            let newest: BTreeMap<EventTime, Option<Row>> = changes.collect();
            rows.extend(newest.into_iter().map(|(reading_at, row)| (city.clone(), reading_at, row)));
        }
        Ok(WindowChanges { as_of: self.as_of, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RemainingRows;

    fn change(epoch: u64, city: &Arc<str>) -> WatchedRow {
        WatchedRow { epoch, city: city.clone(), reading_at: EventTime::default(), row: None }
    }

    fn answer_without_rows(query: u64, epoch: u64, city: &Arc<str>) -> AnswerPiece {
        let (city, rows) = (city.clone(), Vec::new());
        AnswerPiece {
            query_id: query,
            epoch,
            city,
            is_city_known: true,
            first_row: 0,
            rows,
            high: None,
            explained_row: None,
            has_more: false,
            remaining: RemainingRows::Nothing,
        }
    }

    #[test]
    fn rings_drop_oldest_changes_first_and_report_it() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let cities = [a.clone(), b.clone()];
        let mut watched = WatchedCities::new(Duration::from_millis(100), 3 * size_of::<RingEntry>());
        watched.begin_rings(&cities, 7);
        let answer = |query, city: &Arc<str>| answer_without_rows(query, 1, city);
        watched.apply_update(1, &[], &[answer(6, &a), answer(9, &b)]);
        assert!(!watched.reaches_back_to(&cities, 9), "no ring is complete before the answer to its query");
        watched.apply_update(
            5,
            &[change(2, &a), change(3, &b), change(4, &b), change(5, &b)],
            &[answer(7, &a), answer(8, &b)],
        );
        assert!(!watched.reaches_back_to(&cities[..1], 1) && watched.reaches_back_to(&cities[..1], 2));
        assert_eq!(
            watched.changes_since(&cities, 3).unwrap().rows,
            [(b.clone(), EventTime::default(), None)]
        );
        assert_eq!(watched.changes_since(&cities, 1).unwrap_err(), ChangesExpired);
        watched.apply_update(104, &[], &[]);
        assert!(
            !watched.reaches_back_to(&cities, 3) && watched.reaches_back_to(&cities, 4),
            "changes older than the ring's time are evicted"
        );
    }

    #[test]
    fn ring_of_disconnected_client_is_complete_from_next_answer() {
        let city: Arc<str> = "a".into();
        let cities = [city.clone()];
        let mut watched = WatchedCities::new(Duration::from_secs(600), 1000);
        for query in [7, 8, 9] {
            watched.begin_rings(&cities, query);
        }
        let answer = |query, epoch| answer_without_rows(query, epoch, &city);
        // The clients of queries 7 and 9 have disconnected.
        watched.apply_update(5, &[], &[answer(8, 4)]);
        assert!(watched.reaches_back_to(&cities, 4) && !watched.reaches_back_to(&cities, 3));
        watched.begin_rings(&cities, 10);
        watched.apply_update(6, &[], &[answer(10, 6)]);
        assert!(watched.reaches_back_to(&cities, 4), "the ring was complete before");
    }

    #[test]
    fn watched_city_outlives_last_holder_by_ring_retention() {
        let cities = ["a".into()];
        let mut watched = WatchedCities::new(Duration::ZERO, 1000);
        watched.begin_rings(&cities, 0);
        watched.release_rings(&cities);
        watched.hold_rings(&cities);
        watched.expire_rings(|_| unreachable!("the ring has a holder"));
        watched.release_rings(&cities);
        watched.expire_rings(|_| false);
        assert_eq!(
            watched.rings.len(),
            1,
            "the ring stays until the dataflow has accepted the end of the watch"
        );
        watched.expire_rings(|_| true);
        assert!(watched.rings.is_empty() && watched.released.is_empty());
    }

    #[test]
    fn released_rings_are_evicted_for_new_ones() {
        let cities: Vec<Arc<str>> = (0..=MAX_WATCHED_CITIES).map(|n| format!("{n:06}").into()).collect();
        let (first, last) = (&cities[..1], &cities[MAX_WATCHED_CITIES..]);
        let mut watched = WatchedCities::new(Duration::from_secs(600), 1000);
        watched.begin_rings(&cities[..MAX_WATCHED_CITIES], 0);
        assert!(watched.evict_released_for(first, |_| unreachable!("the city has a ring")));
        assert!(!watched.evict_released_for(last, |_| unreachable!("all rings have a holder")));
        watched.release_rings(&cities[..3]);
        watched.hold_rings(first);
        assert!(!watched.evict_released_for(last, |_| false));
        let both = [cities[1].clone(), cities[MAX_WATCHED_CITIES].clone()];
        assert!(
            watched.evict_released_for(&both, |city| *city == cities[2]),
            "a ring that is needed itself is not evicted"
        );
        watched.begin_rings(&both, 0);
        assert_eq!(watched.rings.len(), MAX_WATCHED_CITIES);
        assert!(watched.rings.contains_key(&cities[1]) && !watched.rings.contains_key(&cities[2]));
    }
}
