//! The view that all readers share, and that one publisher thread applies updates to.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::city_filter::CityFilter;
use super::current_table::{
    ChangesExpired, ClockComparison, CurrentRowChange, CurrentTable, LatestChanges, ServedCity, ViewTotals,
};
use super::pending_queries::{PendingQueries, QueryResponse};
use super::query_error::QueryError;
use super::watched_cities::{WatchedCities, WindowChanges};
use crate::model::clock::wall_clock_ms;
use crate::model::{
    EventTime, OutcomeCounts, PartitionIndex, PartitionProgress, Queries, QueryKind, Reason, ViewUpdate,
    WatchedRow,
};
use crate::panics::locks::{SharedMutex, SharedReadGuard, SharedRwLock};
use crate::panics::panic_point;
use crate::serve::budget::{MemoryBudget, Permit};
use crate::serve::encoding_turns::EncodingTurns;
use crate::serve::freshness::Freshness;
use crate::serve::plan::ServeLimits;
use crate::serve::service_info::ServiceInfo;

/// How long a subscription that another process served waits until this one has reached its epoch.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(5);
const CATCH_UP_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Time between two comparisons of all current rows with the clock.
const CLOCK_COMPARISON_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of all snapshots and merged changes that clients have not read yet.
pub const SNAPSHOTS_BYTES: usize = 256 << 20;
const SNAPSHOT_PERMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is served now.
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
    pub fn new(info: ServiceInfo, limits: &ServeLimits, queries: Arc<dyn Queries>) -> Arc<View> {
        let ring_ms = u64::try_from(limits.ring_time.as_millis()).unwrap_or(u64::MAX);
        let workers = info.workers;
        Arc::new(View {
            table: SharedRwLock::new(CurrentTable::new(info.directory, ring_ms, limits.ring_bytes)),
            service_info: info,
            as_of: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            totals: SharedMutex::default(),
            watched_cities: SharedMutex::new(WatchedCities::new(limits.ring_time, limits.ring_bytes)),
            pending_queries: Arc::new(PendingQueries::new(queries, workers)),
            snapshot_budget: MemoryBudget::new(SNAPSHOTS_BYTES, SNAPSHOT_PERMIT_TIMEOUT),
            encoding_turns: EncodingTurns::default(),
            updated_at: SharedMutex::new(Instant::now()),
            clock_comparison: SharedMutex::default(),
        })
    }

    /// Turns to encode a piece of a long response.
    pub fn encoding_turns(&self) -> &EncodingTurns {
        &self.encoding_turns
    }

    pub fn service_info(&self) -> &ServiceInfo {
        &self.service_info
    }

    /// The newest epoch that the view includes completely.
    pub fn as_of(&self) -> u64 {
        self.as_of.load(Ordering::Acquire)
    }

    /// The newest epoch that a subscription may have received. While an update is being applied, it
    /// may be ahead of [`View::as_of`].
    pub fn newest_watched_epoch(&self) -> u64 {
        self.watched_cities.lock().as_of()
    }

    /// Waits until [`View::newest_watched_epoch`] has reached `epoch`, which another process has
    /// reached; false if that takes too long.
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

    /// How far results are behind the clock, in ms. If epochs are ahead of the clock, because it
    /// was put back, this is the time since the last update.
    pub fn lag_ms(&self) -> u64 {
        let updated_at = *self.updated_at.lock();
        let since = u64::try_from(updated_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        wall_clock_ms().saturating_sub(self.as_of()).max(since)
    }

    /// How many current rows are stale or ahead of the clock. They are compared at most once a
    /// second.
    pub fn compare_with_clock(&self) -> Arc<ClockComparison> {
        let mut last = self.clock_comparison.lock();
        match &*last {
            Some((at, comparison)) if at.elapsed() < CLOCK_COMPARISON_INTERVAL => comparison.clone(),
            _ => {
                let comparison = Arc::new(self.read_table().compare_with_clock(self.freshness()));
                last.insert((Instant::now(), comparison)).1.clone()
            }
        }
    }

    /// By the clock as it is now.
    pub fn freshness(&self) -> Freshness {
        Freshness::now(self.service_info.stale_after)
    }

    /// Whether replay has passed the ends that the logs had at the start.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// The city of a key, if it has ever had a reading.
    pub fn city(&self, key: &str) -> Option<ServedCity> {
        self.read_table().city(key).cloned()
    }

    /// The time of a city's current row.
    pub fn newest_reading_at(&self, key: &str) -> Option<EventTime> {
        Some(self.read_table().city(key)?.current.as_ref()?.reading_at)
    }

    /// Calls `visit` for every city that has ever had a reading, and returns the one epoch of all
    /// of them. Updates wait meanwhile.
    pub fn for_each_city(&self, visit: &mut dyn FnMut(&ServedCity)) -> u64 {
        let table = self.read_table();
        table.cities().for_each(visit);
        table.as_of()
    }

    /// How many cities have ever had a reading.
    pub fn city_count(&self) -> usize {
        self.read_table().cities().len()
    }

    /// Adds to `unknown` the names of cities that have never had a reading.
    pub fn collect_unknown_cities<'a>(&self, names: &[&'a str], unknown: &mut HashSet<&'a str>) {
        let table = self.read_table();
        unknown.extend(names.iter().filter(|name| table.city(name).is_none()));
    }

    /// How many cities the partition of an index has.
    pub fn cities_in_partition(&self, partition: usize) -> u32 {
        let Ok(index) = u16::try_from(partition).map(PartitionIndex) else { return 0 };
        self.totals.lock().progress.get(&index).map_or(0, |progress| progress.city_count)
    }

    /// In the order of partition indexes.
    pub fn partition_progress(&self) -> Vec<PartitionProgress> {
        self.totals.lock().progress.values().copied().collect()
    }

    pub fn counts(&self) -> OutcomeCounts {
        self.totals.lock().counts
    }

    /// Readings refused since the start, by reason. Admission refuses them, and the dataflow: a
    /// city of two partitions may have readings that only the dataflow knows to be too late.
    pub fn refusal_counts(&self) -> Vec<(Reason, u64)> {
        let totals = self.totals.lock();
        let mut refused = totals.refused.clone();
        if totals.counts.too_late > 0 {
            *refused.entry(Reason::TooLate).or_default() += totals.counts.too_late;
        }
        refused.into_iter().collect()
    }

    /// Sends the dataflow a query about a city; the response arrives in pieces.
    pub fn query_city(&self, city: Arc<str>, query: QueryKind) -> Result<QueryResponse, QueryError> {
        self.pending_queries.submit_queries(vec![(city, query)])
    }

    /// The current rows of the cities of `filter` that have changed after epoch `since`, and the
    /// rows that were removed; without `since` all current rows.
    ///
    /// # Errors
    ///
    /// If changes after `since` have expired.
    pub fn latest_since(
        &self,
        filter: &CityFilter<'_>,
        since: Option<u64>,
    ) -> Result<LatestChanges, ChangesExpired> {
        self.read_table().changes_since(filter, since)
    }

    /// Queries all rows of cities (sorted) at one epoch, and watches the cities from then on, until
    /// [`View::unwatch_cities`] has been called as often.
    pub fn watch_cities(&self, cities: &[Arc<str>]) -> Result<QueryResponse, QueryError> {
        // Queue the queries while holding the lock, so that the dataflow gets the beginning and the
        // end of a watch in the order of the rings.
        let mut watched = self.watched_cities.lock();
        let unwatch = |city: &_| self.pending_queries.send_unanswered(city, QueryKind::Unwatch);
        if !watched.evict_released_for(cities, unwatch) {
            return Err(QueryError::TooManyWatchedCities);
        }
        let queries = cities.iter().map(|city| (city.clone(), QueryKind::Watch)).collect();
        let response = self.pending_queries.submit_queries(queries)?;
        watched.begin_rings(cities, response.first_id());
        Ok(response)
    }

    /// Watches cities whose rings are all complete after epoch `since`, as [`View::watch_cities`]
    /// does, but without a query.
    ///
    /// # Errors
    ///
    /// If changes after `since` have expired.
    pub fn resume_watch(&self, cities: &[Arc<str>], since: u64) -> Result<(), ChangesExpired> {
        let mut watched = self.watched_cities.lock();
        if !watched.reaches_back_to(cities, since) {
            return Err(ChangesExpired);
        }
        watched.hold_rings(cities);
        Ok(())
    }

    pub fn unwatch_cities(&self, cities: &[Arc<str>]) {
        self.watched_cities.lock().release_rings(cities);
    }

    /// What has changed in the rows of watched cities after epoch `since`.
    pub fn window_since(&self, cities: &[Arc<str>], since: u64) -> Result<WindowChanges, ChangesExpired> {
        self.watched_cities.lock().changes_since(cities, since)
    }

    /// Acquires the memory that the result of [`View::latest_since`] takes at most.
    pub async fn acquire_latest_permit(&self, filter: &CityFilter<'_>) -> Result<Permit, QueryError> {
        let cities = if let CityFilter::Listed(keys) = filter { keys.len() } else { self.city_count() };
        self.snapshot_budget
            .acquire(cities * LatestChanges::ROW_BYTES)
            .await
            .ok_or(QueryError::TooManySnapshots)
    }

    /// Acquires the memory that the result of [`View::window_since`] takes at most.
    pub async fn acquire_window_permit(&self, cities: &[Arc<str>]) -> Result<Permit, QueryError> {
        let changes = self.watched_cities.lock().count_changes(cities);
        self.snapshot_budget
            .acquire(changes * WindowChanges::ROW_BYTES)
            .await
            .ok_or(QueryError::TooManySnapshots)
    }

    /// Memory of snapshots and merged changes.
    pub fn snapshot_budget(&self) -> &Arc<MemoryBudget> {
        &self.snapshot_budget
    }

    /// Applies the next update. Once this has returned, readers of the view find the update in it.
    pub fn apply_update(&self, update: ViewUpdate) -> AppliedUpdate {
        let as_of = update.upper.saturating_sub(1);
        let mut totals = self.totals.lock();
        totals.progress.extend(update.progress.into_iter().map(|progress| (progress.partition, progress)));
        totals.refused.extend(update.refusal_counts);
        totals.counts = update.counts.unwrap_or(totals.counts);
        drop(totals);

        let mut watched = self.watched_cities.lock();
        watched.apply_update(as_of, &update.watched_rows, &update.answers);
        watched.expire_rings(|city| self.pending_queries.send_unanswered(city, QueryKind::Unwatch));
        drop(watched);

        let mut table = self.table.write();
        let current = table.apply_current_rows(as_of, update.current_rows);
        drop(table);

        self.as_of.store(as_of, Ordering::Release);
        *self.updated_at.lock() = Instant::now();
        self.ready.fetch_or(update.is_ready, Ordering::AcqRel);
        self.pending_queries.on_responses(update.answers);
        AppliedUpdate { as_of, current, rows: update.watched_rows }
    }

    fn read_table(&self) -> SharedReadGuard<'_, CurrentTable> {
        let table = self.table.read();
        panic_point("view");
        table
    }
}
