//! How many new cities one client may post. Admission keeps each city of a partition for ever, and decides by the log alone, so a client's
//! share of the cities that are left is looked at before its readings go to the log.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::problem::{Code, Problem};
use super::telemetry;
use super::view::View;
use crate::model::{ClientId, NewRecord};
use crate::panics::locks::SharedMutex;

/// In this time a client's share comes back.
const REFILL: Duration = Duration::from_secs(24 * 3600);
/// Shares of clients in partitions that are told apart; further clients have one together in each partition.
const MOST_SHARES: usize = 100_000;
/// Names that were posted and are not in the results yet are remembered in two halves of so many, so that they count once.
const REMEMBERED: usize = 458_752;
/// After this long without a new name, what is not among the cities of a partition does not come any more.
const SETTLE: Duration = Duration::from_secs(60);
/// Names that are looked up at once.
const LOOKED_UP: usize = 1_024;

/// What shares and remembered names take at most: tables that are filled to 7/8 have 8 bytes and a mark an entry.
pub const NEW_CITIES_BYTES: usize = 2 * 9 * (REMEMBERED / 7 * 8) + (1 << 18) * 48;

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
pub(super) struct NewCities {
    view: Arc<View>,
    log: IngestLog,
    /// Of the cities that are left.
    percent: u32,
    hasher: RandomState,
    shares: SharedMutex<Shares>,
}

#[derive(Debug, Default)]
struct Shares {
    clients: HashMap<(Option<ClientId>, u32), Share>,
    partitions: HashMap<u32, Pending>,
    posted: HashSet<u64>,
    posted_before: HashSet<u64>,
}

/// The new cities that a client has posted, as it was at a time.
#[derive(Clone, Copy, Debug)]
struct Share {
    taken: f64,
    at: Instant,
}

/// New cities that a partition does not have yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    cities: u32,
    names: u32,
    at: Instant,
}

/// The client has used up its share.
#[derive(Debug, PartialEq)]
struct Exhausted {
    allowed: u32,
    wait: Duration,
}

impl NewCities {
    /// None if there is nothing to share: no ingest, or all may go to one client.
    pub(super) fn new(view: &Arc<View>, log: Option<IngestLog>, percent: u32) -> Option<Arc<NewCities>> {
        let log = log.filter(|_| percent < 100)?;
        let (view, hasher) = (view.clone(), RandomState::new());
        Some(Arc::new(NewCities { view, log, percent, hasher, shares: SharedMutex::default() }))
    }

    /// Takes the cities of `records` that the results do not have from the client's share: all, or none of them if one of its
    /// partitions has no share left. While the logs are replayed it is not known which cities are new, and nothing is counted.
    pub(super) fn take(&self, client: Option<ClientId>, records: &[NewRecord]) -> Result<(), Problem> {
        if !self.view.is_ready() {
            return Ok(());
        }
        let names = records.iter().filter_map(|record| record.city.as_deref());
        let mut names: Vec<&str> = names.collect();
        names.dedup();
        let mut new: HashSet<&str> = HashSet::new();
        names.chunks(LOOKED_UP).for_each(|some| self.view.add_unknown(some, &mut new));
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
        let taken =
            self.shares.lock().take(client, hashes, |partition| self.room(&have, partition), Instant::now());
        taken.map_err(|exhausted| {
            telemetry::new_cities_refused();
            let Exhausted { allowed, wait } = exhausted;
            let detail = format!(
                "the new cities of this post are more than this client may still add: one client may add {} percent of the \
                 cities that a partition may still have in a day, {allowed} here; check the names, send readings of \
                 known cities alone, or raise results.max_cities or serve.limits.new_cities_percent",
                self.percent
            );
            Problem::new(Code::TooManyNewCities, detail)
                .header(warp::http::header::RETRY_AFTER, wait.as_secs().max(1).into())
        })
    }

    /// By partition of the log.
    fn partition_cities(&self) -> Vec<u32> {
        let names = self.view.facts().partitions.all();
        let mut cities = Vec::new();
        for (slot, name) in names.iter().enumerate().filter(|(_, name)| name.source == self.log.source) {
            let partition = name.partition as usize;
            cities.resize(cities.len().max(partition + 1), 0);
            cities[partition] = self.view.partition_cities(slot);
        }
        cities
    }

    fn room(&self, have: &[u32], partition: u32) -> Room {
        let cities = have.get(partition as usize).copied().unwrap_or_default();
        Room { cities, most: self.log.max_cities, percent: self.percent }
    }
}

/// The cities of a partition, how many it may have, and what one client may have of those that are left.
#[derive(Clone, Copy, Debug)]
struct Room {
    cities: u32,
    most: u32,
    percent: u32,
}

impl Room {
    /// All that a client may take that has taken so many already: what it took was left too.
    fn allowed(self, pending: u32, taken: f64) -> f64 {
        let left = f64::from(self.most.saturating_sub(self.cities).saturating_sub(pending));
        let allowed = ((left + taken) * f64::from(self.percent) / 100.0).floor();
        // A small rest is not kept from everybody.
        if self.percent > 0 && left > 0.0 { allowed.max(1.0) } else { allowed }
    }
}

impl Share {
    fn taken(self, now: Instant) -> f64 {
        let age = now.duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64();
        self.taken * (1.0 - age).max(0.0)
    }
}

impl Shares {
    fn take(
        &mut self,
        client: Option<ClientId>,
        mut hashes: HashMap<u32, Vec<u64>>,
        room: impl Fn(u32) -> Room,
        now: Instant,
    ) -> Result<(), Exhausted> {
        let mut after = Vec::new();
        for (&partition, names) in &mut hashes {
            names.retain(|name| !self.posted.contains(name) && !self.posted_before.contains(name));
            let room = room(partition);
            let key = self.key(client, partition, now);
            let pending = self.pending(partition, room.cities, now);
            // Readings of new cities are dead letters in a full partition, and can be sent again from there.
            if names.is_empty() || room.cities >= room.most {
                continue;
            }
            let share = self.clients.get(&key).copied().unwrap_or(Share { taken: 0.0, at: now });
            let taken = share.taken(now);
            let (allowed, wanted) = (room.allowed(pending.names, taken), taken + names.len() as f64);
            if wanted > allowed {
                let days = ((wanted - allowed) / taken.max(1.0)).clamp(0.0, 1.0);
                return Err(Exhausted { allowed: allowed as u32, wait: REFILL.mul_f64(days) });
            }
            let pending = Pending { names: pending.names + names.len() as u32, at: now, ..pending };
            after.push((key, Share { taken: wanted, at: now }, pending));
        }
        for (key, share, pending) in after {
            self.clients.insert(key, share);
            self.partitions.insert(key.1, pending);
        }
        hashes.into_values().flatten().for_each(|name| self.remember(name));
        Ok(())
    }

    fn pending(&self, partition: u32, cities: u32, now: Instant) -> Pending {
        match self.partitions.get(&partition) {
            Some(pending) if now.duration_since(pending.at) < SETTLE => {
                let names = pending.names.saturating_sub(cities.saturating_sub(pending.cities));
                Pending { cities, names, at: pending.at }
            }
            _ => Pending { cities, names: 0, at: now },
        }
    }

    fn key(&mut self, client: Option<ClientId>, partition: u32, now: Instant) -> (Option<ClientId>, u32) {
        let key = (client, partition);
        if self.clients.len() < MOST_SHARES || self.clients.contains_key(&key) {
            return key;
        }
        self.clients.retain(|_, share| now.duration_since(share.at) < REFILL);
        if self.clients.len() < MOST_SHARES { key } else { (None, partition) }
    }

    fn remember(&mut self, name: u64) {
        if self.posted.len() >= REMEMBERED {
            self.posted_before = std::mem::take(&mut self.posted);
        }
        self.posted.insert(name);
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

    fn half_of(most: u32, cities: u32) -> impl Fn(u32) -> Room {
        move |_| Room { cities, most, percent: 50 }
    }

    #[test]
    fn new_cities_of_one_client_are_half_of_what_is_left_a_day() {
        let (mut shares, start) = (Shares::default(), Instant::now());
        assert_eq!(shares.take(CLIENT, names(0, 400), half_of(1_000, 0), start), Ok(()));
        assert_eq!(shares.take(CLIENT, names(0, 400), half_of(1_000, 0), start), Ok(()), "these are counted");
        let exhausted = shares.take(CLIENT, names(400, 101), half_of(1_000, 400), start).unwrap_err();
        assert_eq!(exhausted.allowed, 500);
        assert_eq!(shares.take(CLIENT, names(400, 100), half_of(1_000, 400), start), Ok(()));
        assert!(shares.take(CLIENT, names(500, 1), half_of(1_000, 500), start).is_err());
        assert!(shares.take(OTHER, names(500, 251), half_of(1_000, 500), start).is_err());
        assert_eq!(shares.take(OTHER, names(500, 250), half_of(1_000, 500), start), Ok(()));
        // The client's share comes back, of what is left then.
        let next_day = start + REFILL;
        assert!(shares.take(CLIENT, names(1_000, 126), half_of(1_000, 750), next_day).is_err());
        assert_eq!(shares.take(CLIENT, names(1_000, 125), half_of(1_000, 750), next_day), Ok(()));
    }

    #[test]
    fn new_cities_count_before_the_log_has_them() {
        let (mut shares, start) = (Shares::default(), Instant::now());
        for client in 0..40 {
            let mut from = client * 1_000;
            while shares.take(Some(ClientId(client)), names(from, 1), half_of(1_000, 0), start).is_ok() {
                from += 1;
            }
        }
        assert!(shares.posted.len() <= 1_000, "{}", shares.posted.len());
    }

    #[test]
    fn new_cities_of_a_full_partition_are_left_to_admission() {
        let (mut shares, start) = (Shares::default(), Instant::now());
        assert_eq!(shares.take(CLIENT, names(0, 400), half_of(1_000, 1_000), start), Ok(()));
        assert_eq!(shares.take(CLIENT, names(400, 1), half_of(1_000, 999), start), Ok(()), "the last one");
        assert!(
            shares.take(CLIENT, names(401, 1), |_| Room { cities: 0, most: 9, percent: 0 }, start).is_err()
        );
    }

    #[test]
    fn shares_and_remembered_names_are_bounded() {
        let (mut shares, start) = (Shares::default(), Instant::now());
        for client in 0..MOST_SHARES as u64 + 10 {
            let taken = shares.take(Some(ClientId(client)), names(client, 1), half_of(u32::MAX, 0), start);
            assert_eq!(taken, Ok(()));
        }
        assert!(shares.clients.len() <= MOST_SHARES + 1);
        (0..3 * REMEMBERED as u64).for_each(|name| shares.remember(name));
        assert!(shares.posted.len() <= REMEMBERED && shares.posted_before.len() <= REMEMBERED);
        let table = |capacity: usize, entry: usize| (capacity * 8 / 7).next_power_of_two() * (entry + 1);
        let names = table(shares.posted.capacity(), 8) + table(shares.posted_before.capacity(), 8);
        let clients = table(MOST_SHARES + 1, size_of::<((Option<ClientId>, u32), Share)>());
        assert!(names + clients <= NEW_CITIES_BYTES, "{names} and {clients}");
    }
}
