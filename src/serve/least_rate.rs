//! How fast a client must read.

use std::time::Duration;

/// Bytes a second that a client must take of what is written to it, averaged over `serve.limits.send_time`.
pub const LEAST_RATE: usize = 16 << 10;
/// The same while others wait for what is held for it, averaged over [`SHORT_TIME`].
pub const SHORT_RATE: usize = 256 << 10;
pub const SHORT_TIME: Duration = Duration::from_secs(2);

/// How much a client has taken while something waited for it to take more.
#[derive(Debug)]
pub struct Pace {
    send_time: Duration,
    long: Span,
    short: Span,
}

#[derive(Debug, Default)]
struct Span {
    time: Duration,
    bytes: usize,
}

impl Span {
    /// Whether it has lasted for `time`, with less than `rate`; it begins anew where it has lasted.
    fn is_slow(&mut self, time: Duration, rate: usize) -> bool {
        if self.time < time {
            return false;
        }
        let span = std::mem::take(self);
        (span.bytes as f64) < span.time.as_secs_f64() * rate as f64
    }
}

impl Pace {
    pub fn new(send_time: Duration) -> Pace {
        Pace { send_time, long: Span::default(), short: Span::default() }
    }

    /// Begins anew.
    pub fn restart(&mut self) {
        (self.long, self.short) = (Span::default(), Span::default());
    }

    /// Notes what was taken in some time, and tells whether that is too slow; `short` says that others wait.
    pub fn is_too_slow(&mut self, time: Duration, bytes: usize, short: bool) -> bool {
        for span in [&mut self.long, &mut self.short] {
            span.time += time;
            span.bytes += bytes;
        }
        let too_slow_for_others = self.short.is_slow(SHORT_TIME, SHORT_RATE) && short;
        self.long.is_slow(self.send_time, LEAST_RATE) || too_slow_for_others
    }

    /// How long until there is something to find.
    pub fn next_look(&self) -> Duration {
        let long = self.send_time.saturating_sub(self.long.time);
        long.min(SHORT_TIME.saturating_sub(self.short.time)).max(Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_rate_is_an_average_and_a_higher_one_where_others_wait() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(10 * second);
        // All at once, and then nothing until the average is less.
        assert!(!pace.is_too_slow(second, 10 * LEAST_RATE, false));
        assert!((0..9).all(|_| !pace.is_too_slow(second, 0, false)));
        assert!((0..10).any(|_| pace.is_too_slow(second, LEAST_RATE - 1, false)));
        assert!((0..100).all(|_| !pace.is_too_slow(second, LEAST_RATE, false)));
        assert!((0..3).any(|_| pace.is_too_slow(second, SHORT_RATE - 1, true)));
        pace.restart();
        assert!((0..100).all(|_| !pace.is_too_slow(second, SHORT_RATE, true)));
    }
}
