//! What all clients together may hold in memory, and the share of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Nobody may hold more than this part of what the others have left.
const SHARE: usize = 8;

/// Bytes that many hold, of whom nobody may wait: whoever asks for more than its share is refused.
#[derive(Debug)]
pub struct Shares {
    total: usize,
    used: AtomicUsize,
}

/// What one of them holds, until it is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    bytes: usize,
}

impl Shares {
    pub fn new(total: usize) -> Arc<Shares> {
        Arc::new(Shares { total, used: AtomicUsize::new(0) })
    }

    /// A share of nothing yet.
    pub fn share(self: &Arc<Shares>) -> Share {
        Share { shares: self.clone(), bytes: 0 }
    }

    #[cfg(test)]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

impl Share {
    /// Holds so many more bytes; false where that would be more than its share.
    pub fn grow(&mut self, by: usize) -> bool {
        let wanted = self.bytes + by;
        let fits = |used: usize| {
            let left = self.shares.total.saturating_sub(used - self.bytes);
            (wanted <= left / SHARE).then_some(used + by)
        };
        let grown = self.shares.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if grown {
            self.bytes = wanted;
        }
        grown
    }

    /// Gives back so many bytes, or all where it holds less.
    pub fn shrink(&mut self, by: usize) {
        let by = by.min(self.bytes);
        self.bytes -= by;
        self.shares.used.fetch_sub(by, Ordering::Relaxed);
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

/// Bytes of answers and snapshots that are being made or sent. Whoever needs them waits for its turn; what is small has a quarter
/// of its own, so that it never waits for what is large.
#[derive(Debug)]
pub struct Budget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    large_bytes: usize,
    waiting: AtomicUsize,
    /// Until there is room for one more.
    patience: Duration,
}

/// What is no larger is small.
pub const SMALL_BYTES: usize = 1 << 20;

/// Bytes that are held, until it is dropped.
#[derive(Debug)]
pub struct Held(OwnedSemaphorePermit);

/// Counts whoever waits.
struct InLine<'a>(&'a AtomicUsize);

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Budget {
    pub fn new(total: usize, patience: Duration) -> Arc<Budget> {
        let small = total / 4;
        Arc::new(Budget {
            small: Arc::new(Semaphore::new(small)),
            large: Arc::new(Semaphore::new(total - small)),
            large_bytes: total - small,
            waiting: AtomicUsize::new(0),
            patience,
        })
    }

    /// Waits a little for so many bytes. What is larger than all that may be held has it alone.
    pub async fn take(&self, bytes: usize) -> Option<Held> {
        let room = if bytes <= SMALL_BYTES { &self.small } else { &self.large };
        let bytes = u32::try_from(bytes.clamp(1, self.large_bytes)).unwrap_or(u32::MAX);
        if let Ok(held) = room.clone().try_acquire_many_owned(bytes) {
            return Some(Held(held));
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _in_line = InLine(&self.waiting);
        let taken = tokio::time::timeout(self.patience, room.clone().acquire_many_owned(bytes)).await;
        taken.ok().and_then(Result::ok).map(Held)
    }

    /// Whether somebody waits: whoever holds something must then be read fast.
    pub fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

impl Held {
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
    fn shares_leave_something_for_whoever_comes_next() {
        let shares = Shares::new(8_000);
        let mut first = shares.share();
        assert!(first.grow(1_000) && !first.grow(1));
        let mut others: Vec<Share> = (0..20).map(|_| shares.share()).collect();
        others.iter_mut().for_each(|other| while other.grow(10) {});
        assert!(others.iter().all(|other| other.bytes() > 0), "{others:?}");
        assert!(shares.used() <= 8_000);
        first.shrink(2_000);
        assert_eq!(first.bytes(), 0);
        drop((first, others));
        assert_eq!(shares.used(), 0);
    }

    #[tokio::test]
    async fn small_answers_do_not_wait_for_large_ones() {
        let budget = Budget::new(16 << 20, Duration::from_millis(20));
        let mut large = budget.take(usize::MAX).await.unwrap();
        assert!(budget.take(2 << 20).await.is_none());
        assert!(budget.take(1 << 20).await.is_some() && !budget.is_short());
        large.shrink(10 << 20);
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.take(4 << 20).await.is_some() }
        });
        while !budget.is_short() {
            tokio::task::yield_now().await;
        }
        large.shrink(0);
        assert!(waiting.await.unwrap() && !budget.is_short());
    }
}
