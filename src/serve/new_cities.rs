//! How many new cities one client may post. Admission keeps each city of a partition for ever, and decides by the log alone, so a client's
//! share of the cities that are left is looked at before its readings go to the log.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::problem::{Problem, ProblemCode};
use super::telemetry;
use super::view::View;
use crate::model::{ClientId, NewRecord};
use crate::panics::locks::SharedMutex;

/// In this time a client's share comes back.
const REFILL_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// Shares of clients in partitions that are told apart; further clients have one together in each partition.
const MAX_CLIENT_ENTRIES: usize = 100_000;
/// Names that were posted and are not in the results yet are remembered in two halves of so many, so that they count once.
const MAX_REMEMBERED_NAMES: usize = 458_752;
/// After this long without a new name, what is not among the cities of a partition does not come any more.
const PENDING_CITIES_TIMEOUT: Duration = Duration::from_secs(60);
/// Names that are looked up at once.
const NAMES_PER_LOOKUP: usize = 1_024;

/// What shares and remembered names take at most: tables that are filled to 7/8 have 8 bytes and a mark an entry.
#[cfg(any(test, feature = "internals"))]
pub const NEW_CITIES_BYTES: usize = 2 * 9 * (MAX_REMEMBERED_NAMES / 7 * 8) + (1 << 18) * 48;

/// The log that posted readings go to, as far as admission is concerned.
#[derive(Clone, Debug)]
pub struct IngestLog {
    pub source: Arc<str>,
    /// Of each partition.
    pub max_cities: u32,
    /// Of a city, where there are so many partitions.
    pub partition_of: fn(&str, u32) -> u32,
}

/// Looks at what is posted before it goes to the log.
pub(super) struct NewCityLimiter {
    view: Arc<View>,
    log: IngestLog,
    /// Of the cities that are left.
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

/// The new cities that a client has posted, as it was at a time.
#[derive(Clone, Copy, Debug)]
struct ClientUsage {
    used_cities: f64,
    updated_at: Instant,
}

/// New cities that a partition does not have yet.
#[derive(Clone, Copy, Debug)]
struct PendingCities {
    cities: u32,
    posted_names: u32,
    updated_at: Instant,
}

/// The client has used up its share.
#[derive(Debug, PartialEq)]
struct NewCityQuotaExhausted {
    allowed: u32,
    retry_after: Duration,
}

impl NewCityLimiter {
    /// None if there is nothing to share: no ingest, or all may go to one client.
    pub(super) fn new(view: &Arc<View>, log: Option<IngestLog>, percent: u32) -> Option<Arc<NewCityLimiter>> {
        let log = log.filter(|_| percent < 100)?;
        let (view, hasher) = (view.clone(), RandomState::new());
        Some(Arc::new(NewCityLimiter {
            view,
            log,
            client_percent: percent,
            hasher,
            usage: SharedMutex::default(),
        }))
    }

    /// Takes the cities of `records` that the results do not have from the client's share: all, or none of them if one of its
    /// partitions has no share left. While the logs are replayed it is not known which cities are new, and nothing is counted.
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
        let mut new: HashSet<&str> = HashSet::new();
        names.chunks(NAMES_PER_LOOKUP).for_each(|some| self.view.collect_unknown_cities(some, &mut new));
        if new.is_empty() {
            return Ok(());
        }
        let have = self.partition_cities();
        if have.is_empty() {
            return Ok(());
        }
        let mut hashes: HashMap<u32, Vec<u64>> = HashMap::new();
        for name in new {
            let partition = (self.log.partition_of)(name, have.len() as u32);
            hashes.entry(partition).or_default().push(self.hasher.hash_one(name));
        }
        let taken = self.usage.lock().charge_client(
            client,
            hashes,
            |partition| self.partition_capacity(&have, partition),
            Instant::now(),
        );
        taken.map_err(|exhausted| {
            telemetry::record_refused_new_cities();
            let NewCityQuotaExhausted { allowed, retry_after: wait } = exhausted;
            let detail = format!(
                "the new cities of this post are more than this client may still add: one client may add {} percent of the \
                 cities that a partition may still have in a day, {allowed} here; check the names, send readings of \
                 known cities alone, or raise results.max_cities or serve.limits.new_cities_percent",
                self.client_percent
            );
            Problem::new(ProblemCode::TooManyNewCities, detail)
                .with_header(warp::http::header::RETRY_AFTER, wait.as_secs().max(1).into())
        })
    }

    /// By partition of the log.
    fn partition_cities(&self) -> Vec<u32> {
        let names = self.view.service_info().partitions.names();
        let mut cities = Vec::new();
        for (slot, name) in names.iter().enumerate().filter(|(_, name)| name.source == self.log.source) {
            let partition = name.partition as usize;
            cities.resize(cities.len().max(partition + 1), 0);
            cities[partition] = self.view.cities_in_partition(slot);
        }
        cities
    }

    fn partition_capacity(&self, have: &[u32], partition: u32) -> PartitionCapacity {
        let cities = have.get(partition as usize).copied().unwrap_or_default();
        PartitionCapacity { cities, max_cities: self.log.max_cities, client_percent: self.client_percent }
    }
}

/// The cities of a partition, how many it may have, and what one client may have of those that are left.
#[derive(Clone, Copy, Debug)]
struct PartitionCapacity {
    cities: u32,
    max_cities: u32,
    client_percent: u32,
}

impl PartitionCapacity {
    /// All that a client may take that has taken so many already: what it took was left too.
    fn client_allowance(self, pending: u32, taken: f64) -> f64 {
        let left = f64::from(self.max_cities.saturating_sub(self.cities).saturating_sub(pending));
        let allowed = ((left + taken) * f64::from(self.client_percent) / 100.0).floor();
        // A small rest is not kept from everybody.
        if self.client_percent > 0 && left > 0.0 { allowed.max(1.0) } else { allowed }
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
        room: impl Fn(u32) -> PartitionCapacity,
        now: Instant,
    ) -> Result<(), NewCityQuotaExhausted> {
        let mut after = Vec::new();
        for (&partition, names) in &mut hashes {
            names.retain(|name| {
                !self.posted_names.contains(name) && !self.previously_posted_names.contains(name)
            });
            let room = room(partition);
            let key = self.usage_key(client, partition, now);
            let pending = self.pending_cities(partition, room.cities, now);
            // Readings of new cities are dead letters in a full partition, and can be sent again from there.
            if names.is_empty() || room.cities >= room.max_cities {
                continue;
            }
            let share = self
                .usage_by_client
                .get(&key)
                .copied()
                .unwrap_or(ClientUsage { used_cities: 0.0, updated_at: now });
            let taken = share.used_cities(now);
            let (allowed, wanted) =
                (room.client_allowance(pending.posted_names, taken), taken + names.len() as f64);
            if wanted > allowed {
                let days = ((wanted - allowed) / taken.max(1.0)).clamp(0.0, 1.0);
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
            after.push((key, ClientUsage { used_cities: wanted, updated_at: now }, pending));
        }
        for (key, share, pending) in after {
            self.usage_by_client.insert(key, share);
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
        self.usage_by_client.retain(|_, share| now.duration_since(share.updated_at) < REFILL_PERIOD);
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
        let (mut shares, start) = (NewCityUsage::default(), Instant::now());
        assert_eq!(shares.charge_client(CLIENT, names(0, 400), half_of(1_000, 0), start), Ok(()));
        assert_eq!(
            shares.charge_client(CLIENT, names(0, 400), half_of(1_000, 0), start),
            Ok(()),
            "these are counted"
        );
        let exhausted =
            shares.charge_client(CLIENT, names(400, 101), half_of(1_000, 400), start).unwrap_err();
        assert_eq!(exhausted.allowed, 500);
        assert_eq!(shares.charge_client(CLIENT, names(400, 100), half_of(1_000, 400), start), Ok(()));
        assert!(shares.charge_client(CLIENT, names(500, 1), half_of(1_000, 500), start).is_err());
        assert!(shares.charge_client(OTHER, names(500, 251), half_of(1_000, 500), start).is_err());
        assert_eq!(shares.charge_client(OTHER, names(500, 250), half_of(1_000, 500), start), Ok(()));
        // The client's share comes back, of what is left then.
        let next_day = start + REFILL_PERIOD;
        assert!(shares.charge_client(CLIENT, names(1_000, 126), half_of(1_000, 750), next_day).is_err());
        assert_eq!(shares.charge_client(CLIENT, names(1_000, 125), half_of(1_000, 750), next_day), Ok(()));
    }

    #[test]
    fn new_cities_count_before_they_are_logged() {
        let (mut shares, start) = (NewCityUsage::default(), Instant::now());
        for client in 0..40 {
            let mut from = client * 1_000;
            while shares
                .charge_client(Some(ClientId(client)), names(from, 1), half_of(1_000, 0), start)
                .is_ok()
            {
                from += 1;
            }
        }
        assert!(shares.posted_names.len() <= 1_000, "{}", shares.posted_names.len());
    }

    #[test]
    fn new_cities_of_a_full_partition_are_left_to_admission() {
        let (mut shares, start) = (NewCityUsage::default(), Instant::now());
        assert_eq!(shares.charge_client(CLIENT, names(0, 400), half_of(1_000, 1_000), start), Ok(()));
        assert_eq!(
            shares.charge_client(CLIENT, names(400, 1), half_of(1_000, 999), start),
            Ok(()),
            "the last one"
        );
        assert!(
            shares
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
        let (mut shares, start) = (NewCityUsage::default(), Instant::now());
        for client in 0..MAX_CLIENT_ENTRIES as u64 + 10 {
            let taken =
                shares.charge_client(Some(ClientId(client)), names(client, 1), half_of(u32::MAX, 0), start);
            assert_eq!(taken, Ok(()));
        }
        assert!(shares.usage_by_client.len() <= MAX_CLIENT_ENTRIES + 1);
        (0..3 * MAX_REMEMBERED_NAMES as u64).for_each(|name| shares.remember_name(name));
        assert!(
            shares.posted_names.len() <= MAX_REMEMBERED_NAMES
                && shares.previously_posted_names.len() <= MAX_REMEMBERED_NAMES
        );
        let table = |capacity: usize, entry: usize| (capacity * 8 / 7).next_power_of_two() * (entry + 1);
        let names =
            table(shares.posted_names.capacity(), 8) + table(shares.previously_posted_names.capacity(), 8);
        let clients = table(MAX_CLIENT_ENTRIES + 1, size_of::<((Option<ClientId>, u32), ClientUsage)>());
        assert!(names + clients <= NEW_CITIES_BYTES, "{names} and {clients}");
    }
}
