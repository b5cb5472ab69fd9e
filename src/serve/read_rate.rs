//! How fast a client must read.

use std::time::Duration;

/// Bytes a second that a client must take of what is written to it, averaged over `serve.limits.send_time`.
pub const MIN_READ_RATE: usize = 16 << 10;
/// The same while others wait for what is held for it, averaged over [`SHORT_TIME`].
pub const MIN_CONTENDED_READ_RATE: usize = 256 << 10;
pub const CONTENDED_RATE_WINDOW: Duration = Duration::from_secs(2);

/// How much a client has taken while something waited for it to take more.
#[derive(Debug)]
pub struct ReadRateMeter {
    send_time: Duration,
    normal_window: RateWindow,
    contended_window: RateWindow,
}

#[derive(Debug, Default)]
struct RateWindow {
    time: Duration,
    bytes: usize,
}

impl RateWindow {
    /// Whether it has lasted for `time`, with less than `rate`; it begins anew where it has lasted.
    fn finish_is_slow(&mut self, time: Duration, rate: usize) -> bool {
        if self.time < time {
            return false;
        }
        let span = std::mem::take(self);
        (span.bytes as f64) < span.time.as_secs_f64() * rate as f64
    }
}

impl ReadRateMeter {
    pub fn new(send_time: Duration) -> ReadRateMeter {
        ReadRateMeter {
            send_time,
            normal_window: RateWindow::default(),
            contended_window: RateWindow::default(),
        }
    }

    /// Notes what was taken in some time, and tells whether that is too slow; `short` says that others wait.
    pub fn record_is_too_slow(&mut self, time: Duration, bytes: usize, short: bool) -> bool {
        for span in [&mut self.normal_window, &mut self.contended_window] {
            span.time += time;
            span.bytes += bytes;
        }
        let too_slow_for_others =
            self.contended_window.finish_is_slow(CONTENDED_RATE_WINDOW, MIN_CONTENDED_READ_RATE) && short;
        self.normal_window.finish_is_slow(self.send_time, MIN_READ_RATE) || too_slow_for_others
    }

    /// How long until there is something to find.
    pub fn next_check_after(&self) -> Duration {
        let long = self.send_time.saturating_sub(self.normal_window.time);
        long.min(CONTENDED_RATE_WINDOW.saturating_sub(self.contended_window.time))
            .max(Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_rate_limit_is_an_average_and_rises_if_others_wait() {
        let second = Duration::from_secs(1);
        let mut pace = ReadRateMeter::new(10 * second);
        // All at once, and then nothing until the average is less.
        assert!(!pace.record_is_too_slow(second, 10 * MIN_READ_RATE, false));
        assert!((0..9).all(|_| !pace.record_is_too_slow(second, 0, false)));
        assert!((0..10).any(|_| pace.record_is_too_slow(second, MIN_READ_RATE - 1, false)));
        assert!((0..100).all(|_| !pace.record_is_too_slow(second, MIN_READ_RATE, false)));
        assert!((0..3).any(|_| pace.record_is_too_slow(second, MIN_CONTENDED_READ_RATE - 1, true)));
        let mut pace = ReadRateMeter::new(10 * second);
        assert!((0..100).all(|_| !pace.record_is_too_slow(second, MIN_CONTENDED_READ_RATE, true)));
    }
}
