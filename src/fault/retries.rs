//! Tasks that meet passing faults: when they are tried again, and when the log says so.

use std::fmt::Display;
use std::time::{Duration, Instant};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The retries of one task. While it fails, the log says so once a minute, and the gauge `swelter_task_failing` of the task is 1.
#[derive(Debug)]
pub struct Retries {
    /// As metrics call it.
    task: &'static str,
    /// As the log calls it, behind "cannot".
    action: &'static str,
    /// What waits for it.
    effect: &'static str,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    next: Instant,
    backoff: Duration,
    logged: Instant,
}

impl Retries {
    pub fn new(task: &'static str, action: &'static str, effect: &'static str) -> Retries {
        Retries { task, action, effect, failing: None }
    }

    /// Whether the task is to be tried now.
    pub fn is_due(&self) -> bool {
        self.delay().is_zero()
    }

    /// How long it is not to be tried.
    pub fn delay(&self) -> Duration {
        let next = self.failing.as_ref().map(|failing| failing.next);
        next.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()))
    }

    /// Notes that it has failed, with an error whose text says what to do.
    pub fn failed(&mut self, error: &dyn Display) {
        let now = Instant::now();
        let Retries { task, action, effect, failing } = self;
        let is_first = failing.is_none();
        let failing =
            failing.get_or_insert(Failing { since: now, next: now, backoff: FIRST_BACKOFF, logged: now });
        failing.next = now + failing.backoff;
        failing.backoff = (failing.backoff * 2).min(LONGEST_BACKOFF);
        if is_first || now.duration_since(failing.logged) >= LOG_INTERVAL {
            failing.logged = now;
            tracing::warn!(
                task = *task,
                "cannot {action}: {error}; {effect} until it can be done; it is tried again"
            );
        }
        if is_first {
            metrics::gauge!("swelter_task_failing", "task" => *task).set(1.0);
        }
    }

    /// Notes that it was done.
    pub fn succeeded(&mut self) {
        if let Some(Failing { since, .. }) = self.failing.take() {
            let Retries { task, action, .. } = self;
            tracing::info!(task = *task, failed_for = ?since.elapsed(), "can {action} again");
            metrics::gauge!("swelter_task_failing", "task" => *task).set(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_tried_again_later_and_later_up_to_a_limit() {
        let mut retries = Retries::new("test", "do it", "nothing waits");
        assert!(retries.is_due());
        retries.succeeded();
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            retries.failed(&"no");
            assert!(!retries.is_due());
            assert!(retries.delay() <= LONGEST_BACKOFF && retries.delay() + LONGEST_BACKOFF / 100 >= last);
            last = retries.delay();
        }
        assert!(last > LONGEST_BACKOFF / 2, "{last:?}");
        retries.succeeded();
        assert!(retries.is_due());
        retries.failed(&"no");
        assert!(retries.delay() <= FIRST_BACKOFF);
    }
}
