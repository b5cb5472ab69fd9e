//! What all clients together may hold in memory, and the share of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Nobody may hold more than this part of what the others have left.
const SHARE_DIVISOR: usize = 8;

/// Bytes that many hold, of whom nobody may wait: whoever asks for more than its share is refused.
#[derive(Debug)]
pub struct ByteQuota {
    total: usize,
    used: AtomicUsize,
}

/// What one of them holds, until it is dropped.
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
    /// Holds so many more bytes; false where that would be more than its share.
    pub fn try_grow(&mut self, by: usize) -> bool {
        let wanted = self.bytes + by;
        let fits = |used: usize| {
            let left = self.quota.total.saturating_sub(used - self.bytes);
            (wanted <= left / SHARE_DIVISOR).then_some(used + by)
        };
        let grown = self.quota.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if grown {
            self.bytes = wanted;
        }
        grown
    }

    /// Gives back so many bytes, or all where it holds less.
    pub fn shrink(&mut self, by: usize) {
        let by = by.min(self.bytes);
        self.bytes -= by;
        self.quota.used.fetch_sub(by, Ordering::Relaxed);
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

/// Bytes of answers and snapshots that are being made or sent. Whoever needs them waits for its turn; what is small has a quarter
/// of its own, so that it never waits for what is large.
#[derive(Debug)]
pub struct MemoryBudget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    large_bytes: usize,
    waiters: AtomicUsize,
    /// Until there is room for one more.
    acquire_timeout: Duration,
}

/// What is no larger is small.
pub const SMALL_PERMIT_BYTES: usize = 1 << 20;

/// Bytes that are held, until it is dropped.
#[derive(Debug)]
pub struct Permit(OwnedSemaphorePermit);

/// Counts whoever waits.
struct WaiterGuard<'a>(&'a AtomicUsize);

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl MemoryBudget {
    pub fn new(total: usize, patience: Duration) -> Arc<MemoryBudget> {
        let small = total / 4;
        Arc::new(MemoryBudget {
            small: Arc::new(Semaphore::new(small)),
            large: Arc::new(Semaphore::new(total - small)),
            large_bytes: total - small,
            waiters: AtomicUsize::new(0),
            acquire_timeout: patience,
        })
    }

    /// Waits a little for so many bytes. What is larger than all that may be held has it alone.
    pub async fn acquire(&self, bytes: usize) -> Option<Permit> {
        let room = if bytes <= SMALL_PERMIT_BYTES { &self.small } else { &self.large };
        let bytes = u32::try_from(bytes.clamp(1, self.large_bytes)).unwrap_or(u32::MAX);
        if let Ok(held) = room.clone().try_acquire_many_owned(bytes) {
            return Some(Permit(held));
        }
        self.waiters.fetch_add(1, Ordering::Relaxed);
        let _in_line = WaiterGuard(&self.waiters);
        let taken = tokio::time::timeout(self.acquire_timeout, room.clone().acquire_many_owned(bytes)).await;
        taken.ok().and_then(Result::ok).map(Permit)
    }

    /// Whether somebody waits: whoever holds something must then be read fast.
    pub fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::Relaxed) > 0
    }
}

impl Permit {
    /// Gives back all but `bytes`, where that is less.
    pub fn shrink(&mut self, bytes: usize) {
        let spare = self.0.num_permits().saturating_sub(bytes);
        drop(self.0.split(spare));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_leaves_a_share_for_newcomers() {
        let shares = ByteQuota::new(8_000);
        let mut first = shares.new_share();
        assert!(first.try_grow(1_000) && !first.try_grow(1));
        let mut others: Vec<QuotaShare> = (0..20).map(|_| shares.new_share()).collect();
        others.iter_mut().for_each(|other| while other.try_grow(10) {});
        assert!(others.iter().all(|other| other.bytes() > 0), "{others:?}");
        assert!(shares.used_bytes() <= 8_000);
        first.shrink(2_000);
        assert_eq!(first.bytes(), 0);
        drop((first, others));
        assert_eq!(shares.used_bytes(), 0);
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
