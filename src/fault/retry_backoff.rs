//! Backoff of tasks that meet transient faults: when they are retried, and when the log says so.

use std::fmt::Display;
use std::time::{Duration, Instant};

const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The backoff of one task. While the task fails, the log says so once a minute, and the gauge
/// `swelter_task_failing` of the task is 1.
#[derive(Debug)]
pub struct RetryBackoff {
    /// The task's label in metrics.
    task: &'static str,
    /// The task in log lines, behind "cannot".
    action: &'static str,
    /// What waits for the task, in log lines.
    effect: &'static str,
    failing: Option<FailureState>,
}

#[derive(Debug)]
struct FailureState {
    since: Instant,
    next_attempt_at: Instant,
    backoff: Duration,
    logged_at: Instant,
}

impl RetryBackoff {
    pub fn new(task: &'static str, action: &'static str, effect: &'static str) -> RetryBackoff {
        RetryBackoff { task, action, effect, failing: None }
    }

    /// Whether the task may be tried now.
    pub fn is_due(&self) -> bool {
        self.remaining_delay().is_zero()
    }

    /// How long to wait until the next attempt; zero if it may be made now.
    pub fn remaining_delay(&self) -> Duration {
        let next = self.failing.as_ref().map(|failing| failing.next_attempt_at);
        next.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()))
    }

    /// Notes a failed attempt. The error's text says what to do.
    pub fn record_failure(&mut self, error: &dyn Display) {
        let now = Instant::now();
        let RetryBackoff { task, action, effect, failing } = self;
        let is_first = failing.is_none();
        let failing = failing.get_or_insert(FailureState {
            since: now,
            next_attempt_at: now,
            backoff: INITIAL_BACKOFF,
            logged_at: now,
        });
        failing.next_attempt_at = now + failing.backoff;
        failing.backoff = (failing.backoff * 2).min(MAX_BACKOFF);
        if is_first || now.duration_since(failing.logged_at) >= LOG_INTERVAL {
            failing.logged_at = now;
            tracing::warn!(task = *task, "cannot {action}: {error}; {effect} until a retry succeeds");
        }
        if is_first {
            metrics::gauge!("swelter_task_failing", "task" => *task).set(1.0);
        }
    }

    /// Notes a successful attempt.
    pub fn record_success(&mut self) {
        if let Some(FailureState { since, .. }) = self.failing.take() {
            let RetryBackoff { task, action, .. } = self;
            tracing::info!(task = *task, failed_for = ?since.elapsed(), "can {action} again");
            metrics::gauge!("swelter_task_failing", "task" => *task).set(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_delays_grow_up_to_limit() {
        let mut retries = RetryBackoff::new("test", "do it", "nothing waits");
        assert!(retries.is_due());
        retries.record_success();
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            retries.record_failure(&"no");
            assert!(!retries.is_due());
            assert!(
                retries.remaining_delay() <= MAX_BACKOFF
                    && retries.remaining_delay() + MAX_BACKOFF / 100 >= last
            );
            last = retries.remaining_delay();
        }
        assert!(last > MAX_BACKOFF / 2, "{last:?}");
        retries.record_success();
        assert!(retries.is_due());
        retries.record_failure(&"no");
        assert!(retries.remaining_delay() <= INITIAL_BACKOFF);
    }
}
