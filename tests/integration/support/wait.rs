//! Conditions with a deadline, in place of sleeps.

use std::thread;
use std::time::{Duration, Instant};

/// No step of a test takes longer, however busy the machine is: a guard against hanging, and no
/// measurement.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Polls `condition` until it returns a value; fails with `what` after [`WAIT_TIMEOUT`].
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_at_most(WAIT_TIMEOUT, condition).unwrap_or_else(|| panic!("{what}: not within {WAIT_TIMEOUT:?}"))
}

/// Polls `condition` until it returns a value; `None` if that takes longer than `timeout`.
fn wait_at_most<T>(timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Checks `condition` for as long as `time`, for states in which nothing may happen; at least once.
pub fn check_during(time: Duration, mut condition: impl FnMut()) {
    wait_at_most(time, || -> Option<()> {
        condition();
        None
    });
}
