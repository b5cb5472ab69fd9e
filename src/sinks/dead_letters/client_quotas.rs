//! Quotas of dead letters by client: no client fills the disk, or pushes out the dead letters of
//! others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::model::ClientId;

/// A used quota refills within this time.
const REFILL_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// The most clients with a quota of their own; further clients share one.
const MAX_CLIENTS: usize = 10_000;
const OTHER_CLIENTS: ClientId = ClientId(0);

/// How much of its quota each client has used. Shared by the writers of dead letters and by the
/// servers that admit clients.
#[derive(Clone, Debug)]
pub struct ClientQuotas(Arc<Mutex<QuotaTable>>);

impl ClientQuotas {
    /// Each client may cause this many bytes of dead letters a day.
    pub(super) fn new(bytes: u64) -> ClientQuotas {
        ClientQuotas(Arc::new(Mutex::new(QuotaTable::new(bytes))))
    }

    pub(super) fn charge_client(&self, client: ClientId, bytes: u64) {
        self.0.lock().charge_client(client, bytes, Instant::now());
    }

    /// How long until the client may send again; `None` if it may send now.
    pub fn retry_after(&self, client: ClientId) -> Option<Duration> {
        self.0.lock().retry_after(client, Instant::now())
    }
}

#[derive(Debug)]
struct QuotaTable {
    quota_bytes: u64,
    clients: HashMap<ClientId, QuotaUsage>,
}

/// The used quota of a client, as of a time.
#[derive(Clone, Copy, Debug)]
struct QuotaUsage {
    used_bytes: f64,
    at: Instant,
}

impl QuotaUsage {
    fn used_bytes(self, bytes: u64, now: Instant) -> f64 {
        let back = now.duration_since(self.at).as_secs_f64() / REFILL_PERIOD.as_secs_f64() * bytes as f64;
        (self.used_bytes - back).max(0.0)
    }
}

impl QuotaTable {
    fn new(bytes: u64) -> QuotaTable {
        QuotaTable { quota_bytes: bytes, clients: HashMap::new() }
    }

    /// Charges the client for a dead letter of this many bytes.
    fn charge_client(&mut self, client: ClientId, bytes: u64, now: Instant) {
        let client = self.tracked_client(client, now);
        let share = self.clients.entry(client).or_insert(QuotaUsage { used_bytes: 0.0, at: now });
        *share = QuotaUsage { used_bytes: share.used_bytes(self.quota_bytes, now) + bytes as f64, at: now };
    }

    fn retry_after(&self, client: ClientId, now: Instant) -> Option<Duration> {
        let share = self.clients.get(&client).or_else(|| {
            (self.clients.len() >= MAX_CLIENTS).then(|| self.clients.get(&OTHER_CLIENTS)).flatten()
        });
        let over = share?.used_bytes(self.quota_bytes, now) - self.quota_bytes as f64;
        (over >= 0.0).then(|| REFILL_PERIOD.mul_f64(over / self.quota_bytes as f64) + Duration::from_secs(60))
    }

    fn tracked_client(&mut self, client: ClientId, now: Instant) -> ClientId {
        if self.clients.len() < MAX_CLIENTS || self.clients.contains_key(&client) {
            return client;
        }
        let bytes = self.quota_bytes;
        self.clients.retain(|_, share| share.used_bytes(bytes, now) > 0.0);
        if self.clients.len() < MAX_CLIENTS { client } else { OTHER_CLIENTS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_quota_is_separate_and_replenished() {
        let mut shares = QuotaTable::new(1_000);
        let start = Instant::now();
        let (greedy, other) = (ClientId(7), ClientId(8));
        shares.charge_client(greedy, 999, start);
        assert_eq!(shares.retry_after(greedy, start), None);
        shares.charge_client(greedy, 501, start);
        let wait = shares.retry_after(greedy, start).unwrap();
        assert_eq!(wait.as_secs(), REFILL_PERIOD.as_secs() / 2 + 60);
        assert_eq!(shares.retry_after(other, start), None);
        assert_eq!(shares.retry_after(greedy, start + wait), None);
    }

    #[test]
    fn clients_beyond_maximum_share_one_quota() {
        let mut shares = QuotaTable::new(1_000);
        let start = Instant::now();
        for client in 1..=MAX_CLIENTS as u64 + 5 {
            shares.charge_client(ClientId(client), 300, start);
        }
        assert!(shares.clients.len() <= MAX_CLIENTS + 1);
        assert!(shares.retry_after(ClientId(u64::MAX), start).is_some());
        assert_eq!(shares.retry_after(ClientId(1), start), None);
        // All quotas have refilled, so the clients are forgotten, except those that share a quota.
        shares.charge_client(ClientId(1 << 40), 1, start + REFILL_PERIOD);
        assert_eq!(shares.clients.len(), 2);
    }
}
