//! A reading as a sensor sends it, and the rules that it must meet.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::num::NonZeroI64;

use serde::{Deserialize, Serialize};

use super::{EventTime, Reason, Refusal};

/// The longest city key, in bytes of UTF-8.
pub const MAX_CITY_BYTES: usize = 128;
/// Accepted temperatures, °F.
pub const TEMPERATURE_RANGE_F: std::ops::RangeInclusive<f64> = -130.0..=140.0;
/// Accepted relative humidities, %. A value above 100 comes from a wet sensor, and counts as 100.
pub const HUMIDITY_RANGE_PCT: std::ops::RangeInclusive<f64> = 0.0..=105.0;
/// Accepted wind speeds, mph.
pub const WIND_SPEED_RANGE_MPH: std::ops::RangeInclusive<f64> = 0.0..=260.0;

/// One arrival, decoded and within the rules, before admission: it sets or removes the reading of
/// `(city, reading_at)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Upsert<'a> {
    /// The key of the city: see `check_city_key`.
    pub city: &'a str,
    /// When the reading was taken.
    pub reading_at: EventTime,
    /// A reading or a withdrawal.
    pub event: ReadingEvent,
    /// An arrival loses against an earlier one only if both have a revision and its own is lower.
    pub revision: Option<Revision>,
}

impl Upsert<'_> {
    /// The arrival as a retried dead letter.
    pub fn into_retried(self) -> Result<Self, Refusal> {
        match self.event {
            ReadingEvent::Reading(measurement) | ReadingEvent::RetriedReading(measurement) => {
                Ok(Self { event: ReadingEvent::RetriedReading(measurement), ..self })
            }
            ReadingEvent::Withdrawal => {
                let detail = "a withdrawal is not retried: withdraw the reading again";
                Err(Refusal::new(Reason::BadOperation, detail))
            }
        }
    }
}

/// The effect that an arrival asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReadingEvent {
    /// Sets the reading of its key.
    Reading(Measurement),
    /// The reading of a retried dead letter: it counts only if its key has no reading, and no
    /// withdrawal of the key is remembered.
    RetriedReading(Measurement),
    /// Removes the reading of its key: a delete.
    Withdrawal,
}

impl ReadingEvent {
    /// The measurement, unless the arrival is a withdrawal.
    #[inline(always)]
    pub fn measurement(&self) -> Option<&Measurement> {
        match self {
            ReadingEvent::Reading(measurement) | ReadingEvent::RetriedReading(measurement) => {
                Some(measurement)
            }
            ReadingEvent::Withdrawal => None,
        }
    }
}

/// A sensor's measurement. `NaN` stands for no wind speed, so that a measurement is three words
/// wide. The order is that of bit patterns, since differential dataflow needs a total one.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Measurement {
    temperature: f64,
    humidity: f64,
    wind_speed: f64,
}

impl Measurement {
    /// Stands for no measurement in a field of fixed width.
    pub(super) const ZERO: Measurement = Measurement { temperature: 0.0, humidity: 0.0, wind_speed: 0.0 };

    /// A measurement within the accepted ranges (°F, %, mph).
    pub fn new(temperature: f64, humidity: f64, wind_speed: Option<f64>) -> Result<Measurement, Refusal> {
        check_range("temperature", temperature, TEMPERATURE_RANGE_F, "°F")?;
        check_range("humidity", humidity, HUMIDITY_RANGE_PCT, "%")?;
        if let Some(wind_speed) = wind_speed {
            check_range("wind_speed", wind_speed, WIND_SPEED_RANGE_MPH, "mph")?;
        }
        // Adding 0.0 turns -0.0 into 0.0, so that equal numbers have equal bits.
        let wind_speed = wind_speed.map_or(f64::NAN, |w| w + 0.0);
        Ok(Measurement { temperature: temperature + 0.0, humidity: humidity + 0.0, wind_speed })
    }

    /// °F.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// Relative humidity as measured, 0 to 105 %.
    pub fn humidity(&self) -> f64 {
        self.humidity
    }

    /// mph.
    pub fn wind_speed(&self) -> Option<f64> {
        (!self.wind_speed.is_nan()).then_some(self.wind_speed)
    }
}

impl Measurement {
    fn bits(&self) -> [u64; 3] {
        [self.temperature.to_bits(), self.humidity.to_bits(), self.wind_speed.to_bits()]
    }
}

impl PartialEq for Measurement {
    fn eq(&self, other: &Measurement) -> bool {
        self.bits() == other.bits()
    }
}

impl Eq for Measurement {}

impl Ord for Measurement {
    fn cmp(&self, other: &Measurement) -> Ordering {
        self.bits().cmp(&other.bits())
    }
}

impl PartialOrd for Measurement {
    fn partial_cmp(&self, other: &Measurement) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Measurement {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bits().hash(state);
    }
}

fn check_range(
    name: &str,
    value: f64,
    range: std::ops::RangeInclusive<f64>,
    unit: &str,
) -> Result<(), Refusal> {
    if range.contains(&value) {
        return Ok(());
    }
    let detail = format!("{name} {value} is outside {} to {} {unit}", range.start(), range.end());
    Err(Refusal::new(Reason::OutOfRange, detail))
}

/// Checks a city key: 1 to [`MAX_CITY_BYTES`] bytes, no control characters. It is not trimmed.
pub fn check_city_key(city: &str) -> Result<(), Refusal> {
    let bad = |detail: String| Err(Refusal::new(Reason::BadCity, detail));
    match city.len() {
        0 => bad("city is empty".into()),
        len if len > MAX_CITY_BYTES => bad(format!("city is {len} bytes long, more than {MAX_CITY_BYTES}")),
        // A byte below 0x20, 0x7F, or the lead byte of U+0080..=U+009F: anything else cannot be a
        // control character.
        _ if !city.bytes().any(|b| b < 0x20 || b == 0x7F || b == 0xC2) => Ok(()),
        _ if city.chars().any(char::is_control) => bad(format!("city {city:?} holds a control character")),
        _ => Ok(()),
    }
}

/// A revision number. `i64::MIN` is not allowed, so that an optional revision takes 8 bytes too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Revision(NonZeroI64);

impl Revision {
    /// The revision of this number; `None` for `i64::MIN`.
    pub fn new(number: i64) -> Option<Revision> {
        NonZeroI64::new(number ^ i64::MIN).map(Revision)
    }

    /// The number of the revision.
    pub fn number(self) -> i64 {
        self.0.get() ^ i64::MIN
    }
}

impl Ord for Revision {
    fn cmp(&self, other: &Revision) -> Ordering {
        self.number().cmp(&other.number())
    }
}

impl PartialOrd for Revision {
    fn partial_cmp(&self, other: &Revision) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurement_ranges_are_inclusive() {
        for (t, h, w) in [(-130.0, 0.0, Some(0.0)), (140.0, 105.0, Some(260.0)), (70.0, 50.0, None)] {
            assert_eq!(Measurement::new(t, h, w).unwrap().wind_speed(), w);
        }
        let nan = f64::NAN;
        for (t, h, w) in [(-130.1, 50.0, None), (140.1, 50.0, None), (70.0, -0.1, None), (70.0, 105.1, None)]
            .into_iter()
            .chain([
                (70.0, 50.0, Some(-1.0)),
                (70.0, 50.0, Some(261.0)),
                (nan, 50.0, None),
                (70.0, 50.0, Some(nan)),
            ])
        {
            assert_eq!(Measurement::new(t, h, w).unwrap_err().reason, Reason::OutOfRange);
        }
    }

    #[test]
    fn city_keys_are_limited_in_length_and_characters() {
        for city in ["x", " New York ", "京都", "\u{a0}", &"é".repeat(64)] {
            assert!(check_city_key(city).is_ok(), "{city:?}");
        }
        for city in ["", "a\nb", "a\u{7f}", "\u{85}", &"é".repeat(65)] {
            assert_eq!(check_city_key(city).unwrap_err().reason, Reason::BadCity, "{city:?}");
        }
    }

    #[test]
    fn revisions_keep_their_number() {
        assert_eq!(size_of::<Option<Revision>>(), 8);
        for number in [0, 1, -1, i64::MAX, i64::MIN + 1] {
            assert_eq!(Revision::new(number).unwrap().number(), number);
        }
        assert!(Revision::new(i64::MIN).is_none());
    }
}
