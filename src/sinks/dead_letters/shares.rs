//! How much of what a client sends may become dead letters, so that no client fills the disk, or pushes out the letters of others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::ClientId;

/// In this time a client's share comes back.
const REFILL: Duration = Duration::from_secs(24 * 3600);
/// Clients that are told apart; further ones have a share together.
const MOST_CLIENTS: usize = 10_000;
const OTHERS: ClientId = ClientId(0);

/// What each client has taken of its share, for those who write letters and those who let clients in.
#[derive(Clone, Debug)]
pub struct ClientShares(Arc<Mutex<Shares>>);

impl ClientShares {
    /// Each client may cause so many bytes within a day.
    pub(super) fn new(bytes: u64) -> ClientShares {
        ClientShares(Arc::new(Mutex::new(Shares::new(bytes))))
    }

    pub(super) fn take(&self, client: ClientId, bytes: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(client, bytes, Instant::now());
    }

    /// How long it takes until the client may send again, where it may not now.
    pub fn wait(&self, client: ClientId) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).wait(client, Instant::now())
    }
}

#[derive(Debug)]
struct Shares {
    bytes: u64,
    clients: HashMap<ClientId, Share>,
}

/// What a client has taken of its share, as it was at a time.
#[derive(Clone, Copy, Debug)]
struct Share {
    taken: f64,
    at: Instant,
}

impl Share {
    fn taken(self, bytes: u64, now: Instant) -> f64 {
        let back = now.duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64() * bytes as f64;
        (self.taken - back).max(0.0)
    }
}

impl Shares {
    fn new(bytes: u64) -> Shares {
        Shares { bytes, clients: HashMap::new() }
    }

    /// A letter of so many bytes came of what the client has sent.
    fn take(&mut self, client: ClientId, bytes: u64, now: Instant) {
        let client = self.known(client, now);
        let share = self.clients.entry(client).or_insert(Share { taken: 0.0, at: now });
        *share = Share { taken: share.taken(self.bytes, now) + bytes as f64, at: now };
    }

    fn wait(&self, client: ClientId, now: Instant) -> Option<Duration> {
        let share = self
            .clients
            .get(&client)
            .or_else(|| (self.clients.len() >= MOST_CLIENTS).then(|| self.clients.get(&OTHERS)).flatten());
        let over = share?.taken(self.bytes, now) - self.bytes as f64;
        (over >= 0.0).then(|| REFILL.mul_f64(over / self.bytes as f64) + Duration::from_secs(60))
    }

    fn known(&mut self, client: ClientId, now: Instant) -> ClientId {
        if self.clients.len() < MOST_CLIENTS || self.clients.contains_key(&client) {
            return client;
        }
        let bytes = self.bytes;
        self.clients.retain(|_, share| share.taken(bytes, now) > 0.0);
        if self.clients.len() < MOST_CLIENTS { client } else { OTHERS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_of_one_client_leaves_others_theirs_and_comes_back() {
        let mut shares = Shares::new(1_000);
        let start = Instant::now();
        let (greedy, other) = (ClientId(7), ClientId(8));
        shares.take(greedy, 999, start);
        assert_eq!(shares.wait(greedy, start), None);
        shares.take(greedy, 501, start);
        let wait = shares.wait(greedy, start).unwrap();
        assert_eq!(wait.as_secs(), REFILL.as_secs() / 2 + 60);
        assert_eq!(shares.wait(other, start), None);
        assert_eq!(shares.wait(greedy, start + wait), None);
    }

    #[test]
    fn clients_beyond_the_number_share_one() {
        let mut shares = Shares::new(1_000);
        let start = Instant::now();
        for client in 1..=MOST_CLIENTS as u64 + 5 {
            shares.take(ClientId(client), 300, start);
        }
        assert!(shares.clients.len() <= MOST_CLIENTS + 1);
        assert!(shares.wait(ClientId(u64::MAX), start).is_some());
        assert_eq!(shares.wait(ClientId(1), start), None);
        // What they have taken has come back: they are forgotten, other than what those have that share one.
        shares.take(ClientId(1 << 40), 1, start + REFILL);
        assert_eq!(shares.clients.len(), 2);
    }
}
