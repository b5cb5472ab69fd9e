//! A circuit breaker: after several failures in a row a database is left alone for a while, and
//! requests for it are refused at once.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Failures in a row after which a database is left alone.
const MAX_FAILURES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub struct Breaker(Mutex<BreakerState>);

#[derive(Debug, Default)]
struct BreakerState {
    failures: u32,
    /// Until then, or until a trial has ended, requests are refused.
    open_until: Option<Instant>,
}

/// A request may ask the database.
#[derive(Debug, PartialEq, Eq)]
pub struct Admitted;

impl Breaker {
    /// Whether a request may ask the database now; otherwise how long it should wait. After a pause
    /// one request is let through as a trial.
    pub fn admit(&self, now: Instant) -> Result<Admitted, Duration> {
        let mut state = self.0.lock();
        match state.open_until {
            Some(until) if now < until => Err(until - now),
            Some(_) => {
                // Others wait for the result of the trial.
                state.open_until = Some(now + pause_after(state.failures));
                Ok(Admitted)
            }
            None => Ok(Admitted),
        }
    }

    /// The database has answered.
    pub fn on_success(&self) {
        *self.0.lock() = BreakerState::default();
    }

    /// The database has not answered. Returns true if it is left alone from now on.
    pub fn on_failure(&self, now: Instant) -> bool {
        let mut state = self.0.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures < MAX_FAILURES {
            return false;
        }
        let was_closed = state.open_until.is_none();
        state.open_until = Some(now + pause_after(state.failures));
        was_closed
    }
}

/// Doubled with each failure beyond those that open the breaker.
fn pause_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(MAX_FAILURES).min(16);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(MAX_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaker_opens_after_failures_in_a_row_and_lets_one_trial_through() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert!(!breaker.on_failure(start) && !breaker.on_failure(start));
        breaker.on_success();
        assert!(!breaker.on_failure(start) && !breaker.on_failure(start));
        assert_eq!(breaker.admit(start), Ok(Admitted));
        assert!(breaker.on_failure(start), "it opens");
        assert_eq!(breaker.admit(start + second / 4), Err(second * 3 / 4));
        assert_eq!(breaker.admit(start + second), Ok(Admitted), "the trial");
        assert_eq!(breaker.admit(start + second), Err(second), "others wait for it");
        assert!(!breaker.on_failure(start + second), "it stays open");
        assert_eq!(breaker.admit(start + 2 * second), Err(second), "for twice as long");
        assert_eq!(breaker.admit(start + 3 * second), Ok(Admitted));
        breaker.on_success();
        assert_eq!(breaker.admit(start + 3 * second), Ok(Admitted));
        for _ in 0..100 {
            breaker.on_failure(start);
        }
        assert_eq!(breaker.admit(start), Err(MAX_PAUSE));
    }
}
