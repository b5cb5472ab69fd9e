//! Whether current rows are fresh, by this host's clock when a response is made. Results never
//! depend on it.

use warp::http::header::CACHE_CONTROL;
use warp::http::{HeaderMap, HeaderName, HeaderValue};

use crate::model::clock::wall_clock_ms;
use crate::model::{EventTime, Millis};

/// The age of a city's current row in seconds, in a response that has only that row.
pub(super) static READING_AGE_HEADER: HeaderName = HeaderName::from_static("reading-age");

/// The time of a response, and how old a fresh row may be.
#[derive(Clone, Copy, Debug)]
pub struct Freshness {
    now_ms: u64,
    stale_after: Millis,
}

impl Freshness {
    /// By the clock as it is now.
    pub fn now(stale_after: Millis) -> Freshness {
        Freshness { now_ms: wall_clock_ms(), stale_after }
    }

    #[cfg(test)]
    pub fn at(now_ms: u64, stale_after: Millis) -> Freshness {
        Freshness { now_ms, stale_after }
    }

    /// The time of the response, in ms since 1970-01-01T00:00:00Z.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// How old a reading is, in ms; 0 if it is dated ahead of the clock.
    pub fn age_ms(&self, reading_at: EventTime) -> i64 {
        i64::try_from(self.now_ms).unwrap_or(i64::MAX).saturating_sub(reading_at.millis()).max(0)
    }

    /// A row whose age is exactly `stale_after` is still fresh.
    pub fn is_stale(&self, reading_at: EventTime) -> bool {
        self.age_ms(reading_at) > self.stale_after.millis()
    }
}

/// Sets the age of a response's row. The response must not be stored: its age would be wrong when
/// it is read from a cache.
pub(super) fn set_age_headers(headers: &mut HeaderMap, age_ms: Option<i64>) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let age = age_ms.and_then(|ms| HeaderValue::try_from((ms as f64 / 1e3).to_string()).ok());
    if let Some(age) = age {
        headers.insert(READING_AGE_HEADER.clone(), age);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_older_than_limit_are_stale() {
        let at = |ms: i64| EventTime::from_millis(ms).unwrap();
        let freshness = Freshness::at(1_000_000, "10s".parse().unwrap());
        for (reading_at, age, stale) in [
            (1_000_000, 0, false),
            (999_999, 1, false),
            (990_000, 10_000, false),
            (989_999, 10_001, true),
            (-5, 1_000_005, true),
            (1_600_000, 0, false),
            (EventTime::MAX.millis(), 0, false),
            (EventTime::MIN.millis(), 1_000_000 - EventTime::MIN.millis(), true),
        ] {
            let found = (freshness.age_ms(at(reading_at)), freshness.is_stale(at(reading_at)));
            assert_eq!(found, (age, stale), "{reading_at}");
        }
    }
}
