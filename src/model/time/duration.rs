//! Durations of event time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::event_time::{DAY_MS, EventTime};

/// A duration of event time in milliseconds, as a person writes it: `90s`, `15m`, `6h`, `1d`,
/// `250ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(i64);

impl Millis {
    /// The longest duration, from the first event time to the last: as a limit it excludes nothing.
    pub const MAX: Millis = Millis(EventTime::MAX.millis() - EventTime::MIN.millis());
    /// 24 hours.
    pub const DAY: Millis = Millis(DAY_MS);

    /// A duration of `ms` milliseconds; `None` if it is below 0 or above [`Millis::MAX`].
    pub fn from_millis(ms: i64) -> Option<Millis> {
        (0..=Self::MAX.0).contains(&ms).then_some(Millis(ms))
    }

    /// The milliseconds.
    pub fn millis(self) -> i64 {
        self.0
    }
}

const DURATION_UNITS: [(&str, i64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", DAY_MS)];

impl FromStr for Millis {
    type Err = String;

    fn from_str(text: &str) -> Result<Millis, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let unit = DURATION_UNITS.iter().find(|(name, _)| *name == &text[digits..]);
        let millis = text[..digits].parse::<i64>().ok().zip(unit).and_then(|(n, (_, ms))| n.checked_mul(*ms));
        millis.and_then(Millis::from_millis).ok_or_else(|| {
            format!(
                "{text:?} is not a duration: write a whole number and one of ms, s, m, h, d, as in 90s or 1d"
            )
        })
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, ms) = DURATION_UNITS
            .iter()
            .rev()
            .find(|(_, ms)| self.0 % ms == 0 && self.0 > 0)
            .unwrap_or(&DURATION_UNITS[1]);
        write!(f, "{}{name}", self.0 / ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip() {
        for text in ["0s", "250ms", "90s", "15m", "6h", "1d", "366d"] {
            assert_eq!(text.parse::<Millis>().unwrap().to_string(), text);
        }
        for text in ["", "1", "d", "-1d", "1.5h", "1 d", "99999999999999d", "1w"] {
            assert!(text.parse::<Millis>().is_err(), "{text}");
        }
    }
}
