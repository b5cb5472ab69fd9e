//! The view: the current row of every city and the recent changes of watched ones, built from updates.

mod current_table;
mod pending_queries;
pub mod query_scheduler;
mod watched_cities;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, RwLockReadGuard};
use std::time::{Duration, Instant};

pub use self::current_table::{ChangesExpired, ClockComparison, CurrentRowChange, LatestChanges, ServedCity};
use self::current_table::{CurrentTable, ViewTotals};
use self::pending_queries::PendingQueries;
pub use self::pending_queries::{MAX_PENDING_QUERIES, QueryError, QueryResponse};
#[cfg(any(test, feature = "internals"))]
pub use self::watched_cities::MAX_WATCHED_CITIES;
use self::watched_cities::WatchedCities;
pub use self::watched_cities::WindowChanges;
use super::budget::{MemoryBudget, Permit};
use super::encoding_turns::EncodingTurns;
use super::freshness::Freshness;
use super::{ServeLimits, ServiceInfo};
use crate::model::clock::wall_clock_ms;
use crate::model::{
    EventTime, OutcomeCounts, PartitionIndex, PartitionProgress, Queries, QueryKind, Reason, ViewUpdate,
    WatchedRow,
};
use crate::panics::locks::{SharedLockGuard, SharedMutex, SharedRwLock};
use crate::panics::panic_point;

/// How long a client that comes from another process waits for this one to come as far, and how often it looks.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(5);
const CATCH_UP_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Between two comparisons of all current rows with the clock.
const CLOCK_COMPARISON_INTERVAL: Duration = Duration::from_secs(1);

/// What clients have subscribed to or have missed, and have not taken yet.
pub const SNAPSHOTS_BYTES: usize = 256 << 20;
const SNAPSHOT_PERMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is served. Readers share it; one publisher thread applies the updates.
pub struct View {
    service_info: ServiceInfo,
    as_of: AtomicU64,
    ready: AtomicBool,
    table: SharedRwLock<CurrentTable>,
    totals: SharedMutex<ViewTotals>,
    watched_cities: SharedMutex<WatchedCities>,
    pending_queries: Arc<PendingQueries>,
    snapshot_budget: Arc<MemoryBudget>,
    encoding_turns: EncodingTurns,
    updated_at: SharedMutex<Instant>,
    clock_comparison: SharedMutex<Option<(Instant, Arc<ClockComparison>)>>,
}

/// What an update did to the view.
pub struct AppliedUpdate {
    pub as_of: u64,
    /// Each city at most once.
    pub current: Vec<CurrentRowChange>,
    pub rows: Vec<WatchedRow>,
}

impl View {
    pub fn new(facts: ServiceInfo, limits: &ServeLimits, ask: Arc<dyn Queries>) -> Arc<View> {
        let ring_ms = u64::try_from(limits.ring_time.as_millis()).unwrap_or(u64::MAX);
        let (room, workers) = (MemoryBudget::new(SNAPSHOTS_BYTES, SNAPSHOT_PERMIT_TIMEOUT), facts.workers);
        Arc::new(View {
            table: SharedRwLock::new(CurrentTable::new(facts.directory, ring_ms, limits.ring_bytes)),
            service_info: facts,
            as_of: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            totals: SharedMutex::default(),
            watched_cities: SharedMutex::new(WatchedCities::new(limits.ring_time, limits.ring_bytes)),
            pending_queries: Arc::new(PendingQueries::new(ask, workers)),
            snapshot_budget: room,
            encoding_turns: EncodingTurns::default(),
            updated_at: SharedMutex::new(Instant::now()),
            clock_comparison: SharedMutex::default(),
        })
    }

    /// Whose turn it is to encode a piece of a long answer.
    pub fn encoding_turns(&self) -> &EncodingTurns {
        &self.encoding_turns
    }

    pub fn service_info(&self) -> &ServiceInfo {
        &self.service_info
    }

    /// The newest epoch that is included completely.
    pub fn as_of(&self) -> u64 {
        self.as_of.load(Ordering::Acquire)
    }

    /// The newest epoch that a subscription can have been told of: of an update that is being taken in, it may be ahead of
    /// [`View::as_of`].
    pub fn newest_watched_epoch(&self) -> u64 {
        lock_mutex(&self.watched_cities).as_of()
    }

    /// Waits, not long, until [`View::newest`] has come to an epoch that another process has come to.
    pub async fn wait_for_epoch(&self, epoch: u64) -> bool {
        let deadline = tokio::time::Instant::now() + CATCH_UP_TIMEOUT;
        while self.newest_watched_epoch() < epoch {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(CATCH_UP_POLL_INTERVAL).await;
        }
        true
    }

    /// How far results are behind the clock, in ms. Epochs never fall, so those after one of a clock that was ahead do not tell: then it is
    /// the time since the last update.
    pub fn lag_ms(&self) -> u64 {
        let updated_at = *lock_mutex(&self.updated_at);
        let since = u64::try_from(updated_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        wall_clock_ms().saturating_sub(self.as_of()).max(since)
    }

    /// How all current rows stand against the clock. They are compared once a second at most.
    pub fn compare_with_clock(&self) -> Arc<ClockComparison> {
        let mut last = lock_mutex(&self.clock_comparison);
        match &*last {
            Some((at, found)) if at.elapsed() < CLOCK_COMPARISON_INTERVAL => found.clone(),
            _ => {
                let found = Arc::new(self.read_table().compare_with_clock(self.freshness()));
                last.insert((Instant::now(), found)).1.clone()
            }
        }
    }

    /// What is fresh as of now.
    pub fn freshness(&self) -> Freshness {
        Freshness::now(self.service_info.stale_after)
    }

    /// Replay has passed the ends that the logs had at the start.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// A city that has ever had a reading.
    pub fn city(&self, key: &str) -> Option<ServedCity> {
        self.read_table().city(key).cloned()
    }

    /// When a city's newest reading was made, of those that are shown.
    pub fn newest_reading_at(&self, key: &str) -> Option<EventTime> {
        Some(self.read_table().city(key)?.current.as_ref()?.reading_at)
    }

    /// Calls `each` for every city that has ever had a reading, all as of one epoch, which is returned. Updates wait
    /// meanwhile.
    pub fn for_each_city(&self, each: &mut dyn FnMut(&ServedCity)) -> u64 {
        let table = self.read_table();
        table.cities().for_each(each);
        table.as_of()
    }

    /// Cities that have ever had a reading.
    pub fn city_count(&self) -> usize {
        self.read_table().cities().len()
    }

    /// Adds those names that are no city that has ever had a reading.
    pub fn collect_unknown_cities<'a>(&self, names: &[&'a str], unknown: &mut HashSet<&'a str>) {
        let table = self.read_table();
        unknown.extend(names.iter().filter(|name| table.city(name).is_none()));
    }

    /// How many cities a partition has.
    pub fn cities_in_partition(&self, partition: usize) -> u32 {
        let slot = u16::try_from(partition).map(PartitionIndex);
        let tally = lock_mutex(&self.totals);
        slot.ok().and_then(|slot| tally.progress.get(&slot)).map_or(0, |progress| progress.city_count)
    }

    /// By slot.
    pub fn partition_progress(&self) -> Vec<PartitionProgress> {
        lock_mutex(&self.totals).progress.values().copied().collect()
    }

    pub fn counts(&self) -> OutcomeCounts {
        lock_mutex(&self.totals).counts
    }

    /// Readings refused since the start, by whoever refuses them: the dataflow does what is too late of a city of two partitions.
    pub fn refusal_counts(&self) -> Vec<(Reason, u64)> {
        let tally = lock_mutex(&self.totals);
        let mut refused = tally.refused.clone();
        if tally.counts.too_late > 0 {
            *refused.entry(Reason::TooLate).or_default() += tally.counts.too_late;
        }
        refused.into_iter().collect()
    }

    /// Asks the dataflow; the answer comes in pieces.
    pub fn query_city(&self, city: Arc<str>, question: QueryKind) -> Result<QueryResponse, QueryError> {
        self.pending_queries.submit_queries(vec![(city, question)])
    }

    /// The rows that `select` takes and the removals of cities that it had taken: what has changed after epoch `since`, or all
    /// current rows where there is none.
    pub fn latest_since(
        &self,
        select: &CityFilter<'_>,
        since: Option<u64>,
    ) -> Result<LatestChanges, ChangesExpired> {
        self.read_table().changes_since(select, since)
    }

    /// Asks for all rows of cities (sorted), at one epoch, and watches them until [`View::unwatch`] is called as often.
    pub fn watch_cities(&self, cities: &[Arc<str>]) -> Result<QueryResponse, QueryError> {
        // Questions are queued under the lock, so that the dataflow gets a watch and the end of one in the order of the rings.
        let mut watches = lock_mutex(&self.watched_cities);
        if !watches
            .evict_released_for(cities, |city| self.pending_queries.send_unanswered(city, QueryKind::Unwatch))
        {
            return Err(QueryError::TooManyWatchedCities);
        }
        let waiting = self
            .pending_queries
            .submit_queries(cities.iter().map(|city| (city.clone(), QueryKind::Watch)).collect())?;
        watches.begin_rings(cities, waiting.first_id());
        Ok(waiting)
    }

    /// Holds the rings of cities that are all complete after epoch `since`, as [`View::watch`] does without asking.
    pub fn resume_watch(&self, cities: &[Arc<str>], since: u64) -> Result<(), ChangesExpired> {
        let mut watches = lock_mutex(&self.watched_cities);
        if !watches.reaches_back_to(cities, since) {
            return Err(ChangesExpired);
        }
        watches.hold_rings(cities);
        Ok(())
    }

    pub fn unwatch_cities(&self, cities: &[Arc<str>]) {
        lock_mutex(&self.watched_cities).release_rings(cities);
    }

    /// What has changed in the rows of watched cities after epoch `since`.
    pub fn window_since(&self, cities: &[Arc<str>], since: u64) -> Result<WindowChanges, ChangesExpired> {
        lock_mutex(&self.watched_cities).changes_since(cities, since)
    }

    /// Takes room for what [`View::latest`] answers, before it is collected.
    pub async fn acquire_latest_permit(&self, select: &CityFilter<'_>) -> Result<Permit, QueryError> {
        let cities = if let CityFilter::Listed(keys) = select { keys.len() } else { self.city_count() };
        self.snapshot_budget
            .acquire(cities * LatestChanges::ROW_BYTES)
            .await
            .ok_or(QueryError::TooManySnapshots)
    }

    /// Takes room for what [`View::window`] answers, before it is collected.
    pub async fn acquire_window_permit(&self, cities: &[Arc<str>]) -> Result<Permit, QueryError> {
        let changes = lock_mutex(&self.watched_cities).count_changes(cities);
        self.snapshot_budget
            .acquire(changes * WindowChanges::ROW_BYTES)
            .await
            .ok_or(QueryError::TooManySnapshots)
    }

    /// What snapshots and merged changes are held in.
    pub fn snapshot_budget(&self) -> &Arc<MemoryBudget> {
        &self.snapshot_budget
    }

    /// Takes in the next update. Whoever reads the view once this has returned finds the update in it.
    pub fn apply_update(&self, update: ViewUpdate) -> AppliedUpdate {
        let as_of = update.upper.saturating_sub(1);
        let mut tally = lock_mutex(&self.totals);
        tally.progress.extend(update.progress.into_iter().map(|progress| (progress.partition, progress)));
        tally.refused.extend(update.refusal_counts);
        tally.counts = update.counts.unwrap_or(tally.counts);
        drop(tally);

        let mut watches = lock_mutex(&self.watched_cities);
        watches.apply_update(as_of, &update.watched_rows, &update.answers);
        watches.expire_rings(|city| self.pending_queries.send_unanswered(city, QueryKind::Unwatch));
        drop(watches);

        let mut table = self.table.write();
        let current = table.apply_current_rows(as_of, update.current_rows);
        drop(table);

        self.as_of.store(as_of, Ordering::Release);
        *lock_mutex(&self.updated_at) = Instant::now();
        self.ready.fetch_or(update.is_ready, Ordering::AcqRel);
        self.pending_queries.on_responses(update.answers);
        AppliedUpdate { as_of, current, rows: update.watched_rows }
    }

    fn read_table(&self) -> SharedLockGuard<RwLockReadGuard<'_, CurrentTable>> {
        let table = self.table.read();
        panic_point("view");
        table
    }
}

/// Which cities are meant.
pub enum CityFilter<'a> {
    All,
    /// Sorted.
    Listed(&'a [Arc<str>]),
    Inside(GeoBounds),
}

/// Degrees; west greater than east spans the antimeridian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GeoBounds {
    pub west: f64,
    pub south: f64,
    pub east: f64,
    pub north: f64,
}

/// Where a city is: degrees north and east.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GeoPoint {
    pub latitude: f64,
    pub longitude: f64,
}

impl GeoBounds {
    pub fn contains(&self, place: GeoPoint) -> bool {
        let east_of = place.longitude >= self.west;
        let west_of = place.longitude <= self.east;
        let between = if self.west <= self.east { east_of && west_of } else { east_of || west_of };
        between && (self.south..=self.north).contains(&place.latitude)
    }
}

fn lock_mutex<T>(mutex: &SharedMutex<T>) -> SharedLockGuard<MutexGuard<'_, T>> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounding_boxes_are_inclusive_and_may_span_antimeridian() {
        let place = |longitude, latitude| GeoPoint { latitude, longitude };
        let europe = GeoBounds { west: -10.0, south: 35.0, east: 30.0, north: 60.0 };
        assert!(europe.contains(place(-10.0, 35.0)) && europe.contains(place(30.0, 60.0)));
        assert!(!europe.contains(place(-10.1, 50.0)) && !europe.contains(place(0.0, 60.1)));
        let pacific = GeoBounds { west: 170.0, south: -50.0, east: -170.0, north: 0.0 };
        assert!(pacific.contains(place(175.0, -40.0)) && pacific.contains(place(-175.0, -10.0)));
        assert!(!pacific.contains(place(0.0, -10.0)));
    }
}
