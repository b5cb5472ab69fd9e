//! The deadline of a stopping run, for the code that waits for a sink.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long a stop waits for a sink that does not answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// When the run started to stop, and so how long its sinks may still take.
#[derive(Debug, Default)]
pub struct StopDeadline(OnceLock<Instant>);

impl StopDeadline {
    pub fn begin(&self) {
        let _ = self.0.set(Instant::now());
    }

    pub fn has_begun(&self) -> bool {
        self.0.get().is_some()
    }

    /// How long a sink may still take.
    pub fn time_left(&self) -> Duration {
        self.0.get().map_or(Duration::MAX, |since| STOP_TIMEOUT.saturating_sub(since.elapsed()))
    }

    #[cfg(test)]
    pub fn long_over() -> StopDeadline {
        StopDeadline(OnceLock::from(Instant::now().checked_sub(STOP_TIMEOUT).unwrap()))
    }

    pub fn is_over(&self) -> bool {
        self.time_left().is_zero()
    }
}
