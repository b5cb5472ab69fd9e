//! Limits of the memory that all clients together may use, and the share of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A share may be at most this part of what the other shares have left.
const SHARE_DIVISOR: usize = 8;

/// Bytes for many clients, none of which waits: a client that wants more than its share is refused.
#[derive(Debug)]
pub struct ByteQuota {
    total: usize,
    used: AtomicUsize,
}

/// The bytes that one client holds, until this is dropped.
#[derive(Debug)]
pub struct QuotaShare {
    quota: Arc<ByteQuota>,
    bytes: usize,
}

impl ByteQuota {
    pub fn new(total: usize) -> Arc<ByteQuota> {
        Arc::new(ByteQuota { total, used: AtomicUsize::new(0) })
    }

    /// A share of nothing yet.
    pub fn new_share(self: &Arc<ByteQuota>) -> QuotaShare {
        QuotaShare { quota: self.clone(), bytes: 0 }
    }

    #[cfg(test)]
    pub fn used_bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

impl QuotaShare {
    /// Holds `bytes` more; false if that would be too large a share.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let new_bytes = self.bytes + bytes;
        let fits = |used: usize| {
            let free_bytes = self.quota.total.saturating_sub(used - self.bytes);
            (new_bytes <= free_bytes / SHARE_DIVISOR).then_some(used + bytes)
        };
        let has_grown = self.quota.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if has_grown {
            self.bytes = new_bytes;
        }
        has_grown
    }

    /// Releases `bytes`, or all bytes if it holds less.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.quota.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for QuotaShare {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

/// Bytes for responses and snapshots that are being made or sent, which wait for their turn. A
/// quarter is reserved for small ones, so that they never wait for large ones.
#[derive(Debug)]
pub struct MemoryBudget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    large_bytes: usize,
    waiters: AtomicUsize,
    /// How long a permit may be waited for.
    acquire_timeout: Duration,
}

/// The length up to which a response counts as small.
pub const SMALL_PERMIT_BYTES: usize = 1 << 20;

/// Bytes of a [`MemoryBudget`], held until this is dropped.
#[derive(Debug)]
pub struct Permit(OwnedSemaphorePermit);

/// Counts a waiter until it is dropped.
struct WaiterGuard<'a>(&'a AtomicUsize);

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl MemoryBudget {
    pub fn new(total: usize, acquire_timeout: Duration) -> Arc<MemoryBudget> {
        let small = total / 4;
        Arc::new(MemoryBudget {
            small: Arc::new(Semaphore::new(small)),
            large: Arc::new(Semaphore::new(total - small)),
            large_bytes: total - small,
            waiters: AtomicUsize::new(0),
            acquire_timeout,
        })
    }

    /// Waits for `bytes`; `None` if they are not free in time. A permit for more than the budget is
    /// a permit for all of it.
    pub async fn acquire(&self, bytes: usize) -> Option<Permit> {
        let semaphore = if bytes <= SMALL_PERMIT_BYTES { &self.small } else { &self.large };
        let bytes = u32::try_from(bytes.clamp(1, self.large_bytes)).unwrap_or(u32::MAX);
        if let Ok(permit) = semaphore.clone().try_acquire_many_owned(bytes) {
            return Some(Permit(permit));
        }
        self.waiters.fetch_add(1, Ordering::Relaxed);
        let _waiter = WaiterGuard(&self.waiters);
        let acquired =
            tokio::time::timeout(self.acquire_timeout, semaphore.clone().acquire_many_owned(bytes)).await;
        acquired.ok().and_then(Result::ok).map(Permit)
    }

    /// Whether a permit is waited for. Clients that hold permits must then read faster.
    pub fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::Relaxed) > 0
    }
}

impl Permit {
    /// Releases all but `bytes`, if it holds more.
    pub fn shrink(&mut self, bytes: usize) {
        let unused = self.0.num_permits().saturating_sub(bytes);
        drop(self.0.split(unused));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_leaves_a_share_for_newcomers() {
        let quota = ByteQuota::new(8_000);
        let mut first = quota.new_share();
        assert!(first.try_grow(1_000) && !first.try_grow(1));
        let mut others: Vec<QuotaShare> = (0..20).map(|_| quota.new_share()).collect();
        others.iter_mut().for_each(|other| while other.try_grow(10) {});
        assert!(others.iter().all(|other| other.bytes() > 0), "{others:?}");
        assert!(quota.used_bytes() <= 8_000);
        first.shrink(2_000);
        assert_eq!(first.bytes(), 0);
        drop((first, others));
        assert_eq!(quota.used_bytes(), 0);
    }

    #[tokio::test]
    async fn small_responses_overtake_large_ones() {
        let budget = MemoryBudget::new(16 << 20, Duration::from_millis(20));
        let mut large = budget.acquire(usize::MAX).await.unwrap();
        assert!(budget.acquire(2 << 20).await.is_none());
        assert!(budget.acquire(1 << 20).await.is_some() && !budget.has_waiters());
        large.shrink(10 << 20);
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.acquire(4 << 20).await.is_some() }
        });
        while !budget.has_waiters() {
            tokio::task::yield_now().await;
        }
        large.shrink(0);
        assert!(waiting.await.unwrap() && !budget.has_waiters());
    }
}
