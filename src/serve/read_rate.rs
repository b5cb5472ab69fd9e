//! The rate at which a client must read.

use std::time::Duration;

/// Bytes a second that a client must read while data waits for it, averaged over
/// `serve.limits.send_time`.
pub const MIN_READ_RATE: usize = 16 << 10;
/// The same while others wait for the memory of its response, averaged over
/// [`CONTENDED_RATE_WINDOW`].
pub const MIN_CONTENDED_READ_RATE: usize = 256 << 10;
/// The time over which [`MIN_CONTENDED_READ_RATE`] is averaged.
pub const CONTENDED_RATE_WINDOW: Duration = Duration::from_secs(2);

/// Measures how fast a client reads while data waits for it.
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
    /// Ends the window if it has lasted for `time`; true if its rate was below `rate` bytes a
    /// second.
    fn finish_is_slow(&mut self, time: Duration, rate: usize) -> bool {
        if self.time < time {
            return false;
        }
        let finished = std::mem::take(self);
        (finished.bytes as f64) < finished.time.as_secs_f64() * rate as f64
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

    /// Begins both windows anew.
    #[cfg(test)]
    pub fn restart(&mut self) {
        (self.normal_window, self.contended_window) = (RateWindow::default(), RateWindow::default());
    }

    /// Records that the client has read `bytes` in `time`; true if it reads too slowly.
    /// `is_contended` says that others wait for the memory of its response.
    pub fn record_is_too_slow(&mut self, time: Duration, bytes: usize, is_contended: bool) -> bool {
        for window in [&mut self.normal_window, &mut self.contended_window] {
            window.time += time;
            window.bytes += bytes;
        }
        let is_too_slow_for_others =
            self.contended_window.finish_is_slow(CONTENDED_RATE_WINDOW, MIN_CONTENDED_READ_RATE)
                && is_contended;
        self.normal_window.finish_is_slow(self.send_time, MIN_READ_RATE) || is_too_slow_for_others
    }

    /// The time until a window ends, if the client reads nothing.
    pub fn next_check_after(&self) -> Duration {
        let normal = self.send_time.saturating_sub(self.normal_window.time);
        normal
            .min(CONTENDED_RATE_WINDOW.saturating_sub(self.contended_window.time))
            .max(Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_rate_limit_is_an_average_and_rises_if_others_wait() {
        let second = Duration::from_secs(1);
        let mut meter = ReadRateMeter::new(10 * second);
        // The client reads much at first, then nothing until the average is too low.
        assert!(!meter.record_is_too_slow(second, 10 * MIN_READ_RATE, false));
        assert!((0..9).all(|_| !meter.record_is_too_slow(second, 0, false)));
        assert!((0..10).any(|_| meter.record_is_too_slow(second, MIN_READ_RATE - 1, false)));
        assert!((0..100).all(|_| !meter.record_is_too_slow(second, MIN_READ_RATE, false)));
        assert!((0..3).any(|_| meter.record_is_too_slow(second, MIN_CONTENDED_READ_RATE - 1, true)));
        meter.restart();
        assert!((0..100).all(|_| !meter.record_is_too_slow(second, MIN_CONTENDED_READ_RATE, true)));
    }
}
