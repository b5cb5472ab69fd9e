//! Limits the new cities that one client may post. Admission remembers each city of a partition for
//! ever, and decides by the log alone, so a client's share of the room for cities is checked before
//! its readings are appended to the log.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::problem::{Problem, ProblemCode};
use super::service_info::IngestLog;
use super::telemetry;
use super::view::View;
use crate::model::{ClientId, NewRecord};
use crate::panics::locks::SharedMutex;

/// Time in which a used share is refilled.
const REFILL_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// Shares that are counted separately, by client and partition; further clients have one share
/// together in each partition.
const MAX_CLIENT_ENTRIES: usize = 100_000;
/// Names that one of two tables remembers: names that were posted and are not in the results yet,
/// so that each counts once.
const MAX_REMEMBERED_NAMES: usize = 458_752;
/// If no new name is posted to a partition for this time, its posted names that are not among its
/// cities are no longer expected.
const PENDING_CITIES_TIMEOUT: Duration = Duration::from_secs(60);
/// Names that are looked up while the view is locked once.
const NAMES_PER_LOOKUP: usize = 1_024;

/// Bytes that shares and remembered names take at most: a table is filled to 7/8, and an entry of
/// it takes its own bytes and one more.
#[cfg(any(test, feature = "internals"))]
pub const NEW_CITIES_BYTES: usize = 2 * 9 * (MAX_REMEMBERED_NAMES / 7 * 8) + (1 << 18) * 48;

/// Checks posted readings for new cities before they are appended to the log.
pub(super) struct NewCityLimiter {
    view: Arc<View>,
    log: IngestLog,
    /// The part of a partition's remaining room that one client may use.
    client_percent: u32,
    hasher: RandomState,
    usage: SharedMutex<NewCityUsage>,
}

#[derive(Debug, Default)]
struct NewCityUsage {
    usage_by_client: HashMap<(Option<ClientId>, u32), ClientUsage>,
    pending_by_partition: HashMap<u32, PendingCities>,
    posted_names: HashSet<u64>,
    previously_posted_names: HashSet<u64>,
}

/// The part of its share that a client has used, as of a time.
#[derive(Clone, Copy, Debug)]
struct ClientUsage {
    used_cities: f64,
    updated_at: Instant,
}

/// New cities that were posted to a partition and are not in the results yet.
#[derive(Clone, Copy, Debug)]
struct PendingCities {
    /// Cities that the partition had in the results.
    cities: u32,
    posted_names: u32,
    updated_at: Instant,
}

/// A post has more new cities than the client's share allows.
#[derive(Debug, PartialEq)]
struct NewCityQuotaExhausted {
    allowed: u32,
    retry_after: Duration,
}

impl NewCityLimiter {
    /// `None` if there is nothing to limit: no ingest, or one client may use all room.
    pub(super) fn new(
        view: &Arc<View>,
        log: Option<IngestLog>,
        client_percent: u32,
    ) -> Option<NewCityLimiter> {
        Some(NewCityLimiter {
            log: log.filter(|_| client_percent < 100)?,
            view: view.clone(),
            client_percent,
            hasher: RandomState::new(),
            usage: SharedMutex::default(),
        })
    }

    /// Charges the client's share with the cities of `records` that are not in the results: with
    /// all, or with none if the share of one partition does not suffice. While the logs are
    /// replayed the new cities are not known, and nothing is charged.
    pub(super) fn charge_new_cities(
        &self,
        client: Option<ClientId>,
        records: &[NewRecord],
    ) -> Result<(), Problem> {
        if !self.view.is_ready() {
            return Ok(());
        }
        let names = records.iter().filter_map(|record| record.city.as_deref());
        let mut names: Vec<&str> = names.collect();
        names.dedup();
        let mut new_names: HashSet<&str> = HashSet::new();
        for names in names.chunks(NAMES_PER_LOOKUP) {
            self.view.collect_unknown_cities(names, &mut new_names);
        }
        if new_names.is_empty() {
            return Ok(());
        }
        let partition_cities = self.partition_cities();
        if partition_cities.is_empty() {
            return Ok(());
        }
        let mut hashes: HashMap<u32, Vec<u64>> = HashMap::new();
        for name in new_names {
            let partition = (self.log.partition_of)(name, partition_cities.len() as u32);
            hashes.entry(partition).or_default().push(self.hasher.hash_one(name));
        }
        let capacity = |partition| self.partition_capacity(&partition_cities, partition);
        let charged = self.usage.lock().charge_client(client, hashes, capacity, Instant::now());
        charged.map_err(|exhausted| {
            telemetry::record_refused_new_cities();
            let NewCityQuotaExhausted { allowed, retry_after } = exhausted;
            let detail = format!(
                "the new cities of this post are more than this client may still add: one client may add {} percent of the \
                 cities that a partition may still have in a day, {allowed} here; check the names, send readings of \
                 known cities alone, or raise results.max_cities or serve.limits.new_cities_percent",
                self.client_percent
            );
            Problem::new(ProblemCode::TooManyNewCities, detail)
                .with_header(warp::http::header::RETRY_AFTER, retry_after.as_secs().max(1).into())
        })
    }

    /// The number of cities of each partition of the log.
    fn partition_cities(&self) -> Vec<u32> {
        let names = self.view.service_info().partitions.names();
        let mut cities = Vec::new();
        for (index, name) in names.iter().enumerate().filter(|(_, name)| name.source == self.log.source) {
            let partition = name.partition as usize;
            cities.resize(cities.len().max(partition + 1), 0);
            cities[partition] = self.view.cities_in_partition(index);
        }
        cities
    }

    fn partition_capacity(&self, partition_cities: &[u32], partition: u32) -> PartitionCapacity {
        let cities = partition_cities.get(partition as usize).copied().unwrap_or_default();
        PartitionCapacity { cities, max_cities: self.log.max_cities, client_percent: self.client_percent }
    }
}

/// The cities of a partition, how many it may have, and the part of the remaining room for one
/// client.
#[derive(Clone, Copy, Debug)]
struct PartitionCapacity {
    cities: u32,
    max_cities: u32,
    client_percent: u32,
}

impl PartitionCapacity {
    /// The share of a client that has used a part of it. The share counts from the room that was
    /// left before the client used any.
    fn client_allowance(self, pending: u32, used: f64) -> f64 {
        let free_cities = f64::from(self.max_cities.saturating_sub(self.cities).saturating_sub(pending));
        let allowed = ((free_cities + used) * f64::from(self.client_percent) / 100.0).floor();
        // One city at least, so that the last of the room can be used.
        if self.client_percent > 0 && free_cities > 0.0 { allowed.max(1.0) } else { allowed }
    }
}

impl ClientUsage {
    fn used_cities(self, now: Instant) -> f64 {
        let age = now.duration_since(self.updated_at).as_secs_f64() / REFILL_PERIOD.as_secs_f64();
        self.used_cities * (1.0 - age).max(0.0)
    }
}

impl NewCityUsage {
    fn charge_client(
        &mut self,
        client: Option<ClientId>,
        mut hashes: HashMap<u32, Vec<u64>>,
        capacity: impl Fn(u32) -> PartitionCapacity,
        now: Instant,
    ) -> Result<(), NewCityQuotaExhausted> {
        let mut charges = Vec::new();
        for (&partition, names) in &mut hashes {
            names.retain(|name| {
                !self.posted_names.contains(name) && !self.previously_posted_names.contains(name)
            });
            let capacity = capacity(partition);
            let key = self.usage_key(client, partition, now);
            let pending = self.pending_cities(partition, capacity.cities, now);
            // In a full partition, readings of new cities become dead letters, which can be sent
            // again later.
            if names.is_empty() || capacity.cities >= capacity.max_cities {
                continue;
            }
            let used = self.usage_by_client.get(&key).map_or(0.0, |usage| usage.used_cities(now));
            let allowed = capacity.client_allowance(pending.posted_names, used);
            let wanted_cities = used + names.len() as f64;
            if wanted_cities > allowed {
                let days = ((wanted_cities - allowed) / used.max(1.0)).clamp(0.0, 1.0);
                return Err(NewCityQuotaExhausted {
                    allowed: allowed as u32,
                    retry_after: REFILL_PERIOD.mul_f64(days),
                });
            }
            let pending = PendingCities {
                posted_names: pending.posted_names + names.len() as u32,
                updated_at: now,
                ..pending
            };
            charges.push((key, ClientUsage { used_cities: wanted_cities, updated_at: now }, pending));
        }
        for (key, usage, pending) in charges {
            self.usage_by_client.insert(key, usage);
            self.pending_by_partition.insert(key.1, pending);
        }
        hashes.into_values().flatten().for_each(|name| self.remember_name(name));
        Ok(())
    }

    fn pending_cities(&self, partition: u32, cities: u32, now: Instant) -> PendingCities {
        match self.pending_by_partition.get(&partition) {
            Some(pending) if now.duration_since(pending.updated_at) < PENDING_CITIES_TIMEOUT => {
                let names = pending.posted_names.saturating_sub(cities.saturating_sub(pending.cities));
                PendingCities { cities, posted_names: names, updated_at: pending.updated_at }
            }
            _ => PendingCities { cities, posted_names: 0, updated_at: now },
        }
    }

    fn usage_key(
        &mut self,
        client: Option<ClientId>,
        partition: u32,
        now: Instant,
    ) -> (Option<ClientId>, u32) {
        let key = (client, partition);
        if self.usage_by_client.len() < MAX_CLIENT_ENTRIES || self.usage_by_client.contains_key(&key) {
            return key;
        }
        self.usage_by_client.retain(|_, usage| now.duration_since(usage.updated_at) < REFILL_PERIOD);
        if self.usage_by_client.len() < MAX_CLIENT_ENTRIES { key } else { (None, partition) }
    }

    fn remember_name(&mut self, name: u64) {
        if self.posted_names.len() >= MAX_REMEMBERED_NAMES {
            self.previously_posted_names = std::mem::take(&mut self.posted_names);
        }
        self.posted_names.insert(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Option<ClientId> = Some(ClientId(7));
    const OTHER: Option<ClientId> = Some(ClientId(8));

    fn names(from: u64, count: u64) -> HashMap<u32, Vec<u64>> {
        [(0, (from..from + count).collect())].into()
    }

    fn half_of(most: u32, cities: u32) -> impl Fn(u32) -> PartitionCapacity {
        move |_| PartitionCapacity { cities, max_cities: most, client_percent: 50 }
    }

    #[test]
    fn new_cities_per_client_and_day_are_half_of_remaining() {
        let (mut usage, start) = (NewCityUsage::default(), Instant::now());
        assert_eq!(usage.charge_client(CLIENT, names(0, 400), half_of(1_000, 0), start), Ok(()));
        assert_eq!(
            usage.charge_client(CLIENT, names(0, 400), half_of(1_000, 0), start),
            Ok(()),
            "names that are charged already cost nothing"
        );
        let exhausted = usage.charge_client(CLIENT, names(400, 101), half_of(1_000, 400), start).unwrap_err();
        assert_eq!(exhausted.allowed, 500);
        assert_eq!(usage.charge_client(CLIENT, names(400, 100), half_of(1_000, 400), start), Ok(()));
        assert!(usage.charge_client(CLIENT, names(500, 1), half_of(1_000, 500), start).is_err());
        assert!(usage.charge_client(OTHER, names(500, 251), half_of(1_000, 500), start).is_err());
        assert_eq!(usage.charge_client(OTHER, names(500, 250), half_of(1_000, 500), start), Ok(()));
        // The share is refilled, from the room that is left by then.
        let next_day = start + REFILL_PERIOD;
        assert!(usage.charge_client(CLIENT, names(1_000, 126), half_of(1_000, 750), next_day).is_err());
        assert_eq!(usage.charge_client(CLIENT, names(1_000, 125), half_of(1_000, 750), next_day), Ok(()));
    }

    #[test]
    fn new_cities_count_before_they_are_logged() {
        let (mut usage, start) = (NewCityUsage::default(), Instant::now());
        for client in 0..40 {
            let mut from = client * 1_000;
            while usage
                .charge_client(Some(ClientId(client)), names(from, 1), half_of(1_000, 0), start)
                .is_ok()
            {
                from += 1;
            }
        }
        assert!(usage.posted_names.len() <= 1_000, "{}", usage.posted_names.len());
    }

    #[test]
    fn new_cities_of_a_full_partition_are_left_to_admission() {
        let (mut usage, start) = (NewCityUsage::default(), Instant::now());
        assert_eq!(usage.charge_client(CLIENT, names(0, 400), half_of(1_000, 1_000), start), Ok(()));
        assert_eq!(
            usage.charge_client(CLIENT, names(400, 1), half_of(1_000, 999), start),
            Ok(()),
            "the last city"
        );
        assert!(
            usage
                .charge_client(
                    CLIENT,
                    names(401, 1),
                    |_| PartitionCapacity { cities: 0, max_cities: 9, client_percent: 0 },
                    start
                )
                .is_err()
        );
    }

    #[test]
    fn shares_and_remembered_names_are_bounded() {
        let (mut usage, start) = (NewCityUsage::default(), Instant::now());
        for client in 0..MAX_CLIENT_ENTRIES as u64 + 10 {
            let charged =
                usage.charge_client(Some(ClientId(client)), names(client, 1), half_of(u32::MAX, 0), start);
            assert_eq!(charged, Ok(()));
        }
        assert!(usage.usage_by_client.len() <= MAX_CLIENT_ENTRIES + 1);
        (0..3 * MAX_REMEMBERED_NAMES as u64).for_each(|name| usage.remember_name(name));
        assert!(
            usage.posted_names.len() <= MAX_REMEMBERED_NAMES
                && usage.previously_posted_names.len() <= MAX_REMEMBERED_NAMES
        );
        let table = |capacity: usize, entry: usize| (capacity * 8 / 7).next_power_of_two() * (entry + 1);
        let names =
            table(usage.posted_names.capacity(), 8) + table(usage.previously_posted_names.capacity(), 8);
        let clients = table(MAX_CLIENT_ENTRIES + 1, size_of::<((Option<ClientId>, u32), ClientUsage)>());
        assert!(names + clients <= NEW_CITIES_BYTES, "{names} and {clients}");
    }
}
