//! The values of a record by field, and the rules by which they become a reading.

use super::field::{FIELD_COUNT, Field, FieldValue};
use super::{DecodeSettings, HumidityScale, InputTemperatureUnit, InputWindUnit, Moisture};
use crate::model::reading::check_city_key;
use crate::model::time::TimeProblem;
use crate::model::{EventTime, Measurement, ReadingEvent, Reason, Refusal, Revision, Upsert};

/// A record before any rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct FieldValues<'a>([FieldValue<'a>; FIELD_COUNT]);

impl<'a> FieldValues<'a> {
    #[inline]
    pub(super) fn new() -> FieldValues<'a> {
        FieldValues([FieldValue::Missing; FIELD_COUNT])
    }

    #[inline]
    pub(super) fn set(&mut self, field: Field, value: FieldValue<'a>) {
        self.0[field as usize] = value;
    }

    /// By reference: a copy would be loaded in one piece right after it was stored in two, and
    /// would stall.
    #[inline(always)]
    pub(super) fn get(&self, field: Field) -> &FieldValue<'a> {
        &self.0[field as usize]
    }

    /// The arrival of the record. The refusal is for the first rule that it breaks, in the order
    /// city, time, operation, numbers, ranges.
    #[inline]
    #[allow(clippy::wrong_self_convention)] // Copying so many fields would cost.
    pub(super) fn to_upsert(&self, settings: &DecodeSettings) -> Result<Upsert<'a>, Refusal> {
        let city = self.city()?;
        let reading_at = self.reading_at(settings)?;
        let numbers = if self.is_withdrawal()? { None } else { Some(self.source_measurement(settings)?) };
        let revision = self.revision()?;
        let event = match numbers {
            Some(numbers) => ReadingEvent::Reading(numbers.to_measurement(settings)?),
            None => ReadingEvent::Withdrawal,
        };
        Ok(Upsert { city, reading_at, event, revision })
    }

    #[inline]
    fn city(&self) -> Result<&'a str, Refusal> {
        match *self.get(Field::City) {
            FieldValue::Missing | FieldValue::Untyped("") => Err(missing_field("city")),
            FieldValue::Text(city) | FieldValue::Untyped(city) => check_city_key(city).map(|()| city),
            value => Err(Refusal::new(Reason::BadCity, format!("city {value} is not text"))),
        }
    }

    #[inline]
    pub(super) fn reading_at(&self, settings: &DecodeSettings) -> Result<EventTime, Refusal> {
        let value = *self.get(Field::ReadingAt);
        let of_clock = |problem: TimeProblem| {
            let detail = format!("reading_at {value} is not a time: {problem}");
            Refusal::new(problem.reason(), detail)
        };
        let read = match value {
            FieldValue::Missing => return Err(missing_field("reading_at")),
            FieldValue::Text(text) => EventTime::parse(text, settings.local_time),
            FieldValue::Untyped(text) => match trim_blanks(text) {
                "" => return Err(missing_field("reading_at")),
                text => EventTime::parse(text, settings.local_time),
            },
            FieldValue::Instant(ms) => return EventTime::try_from_millis(ms).map_err(of_clock),
            FieldValue::Local(ms) => {
                return settings.local_time.resolve_local(ms).map(|read| read.instant).map_err(of_clock);
            }
            value => {
                let detail =
                    format!("reading_at {value} is not a time: write text, as in 2013-07-18T15:04:05Z");
                return Err(Refusal::new(Reason::BadTime, detail));
            }
        };
        read.map(|read| read.instant).map_err(|error| error.refusal("reading_at"))
    }

    #[inline]
    fn is_withdrawal(&self) -> Result<bool, Refusal> {
        let (op, deleted) = (self.get(Field::Op), self.get(Field::Deleted));
        if matches!((op, deleted), (FieldValue::Missing, FieldValue::Missing)) {
            return Ok(false);
        }
        let by_op = match *op {
            FieldValue::Missing | FieldValue::Text("upsert") => false,
            FieldValue::Text("delete") => true,
            FieldValue::Untyped(text) if ["", "upsert"].contains(&trim_blanks(text)) => false,
            FieldValue::Untyped(text) if trim_blanks(text) == "delete" => true,
            value => {
                let detail = format!("op {value} is neither upsert nor delete");
                return Err(Refusal::new(Reason::BadOperation, detail));
            }
        };
        let is = |text: &str, boolean: &str| trim_blanks(text).eq_ignore_ascii_case(boolean);
        let by_mark = match *deleted {
            FieldValue::Missing => false,
            FieldValue::Boolean(deleted) => deleted,
            FieldValue::Untyped(text) if is(text, "") || is(text, "false") => false,
            FieldValue::Untyped(text) if is(text, "true") => true,
            value => {
                let detail = format!("deleted {value} is neither true nor false");
                return Err(Refusal::new(Reason::BadOperation, detail));
            }
        };
        Ok(by_op || by_mark)
    }

    #[inline]
    fn source_measurement(&self, settings: &DecodeSettings) -> Result<SourceMeasurement, Refusal> {
        let needed = |field: Field| {
            let name = field.name(settings);
            parse_number(name, self.get(field))?.ok_or_else(|| missing_field(name))
        };
        Ok(SourceMeasurement {
            temperature: needed(Field::Temperature)?,
            moisture: needed(Field::Moisture)?,
            wind_speed: parse_number("wind_speed", self.get(Field::WindSpeed))?,
        })
    }

    #[inline]
    fn revision(&self) -> Result<Option<Revision>, Refusal> {
        let value = self.get(Field::Revision);
        let number = match *value {
            FieldValue::Missing => return Ok(None),
            FieldValue::Integer(number) => Some(number),
            FieldValue::Untyped(text) if trim_blanks(text).is_empty() => return Ok(None),
            FieldValue::Untyped(text) => trim_blanks(text).parse().ok(),
            _ => None,
        };
        match number.and_then(Revision::new) {
            Some(revision) => Ok(Some(revision)),
            None => {
                let detail = format!("revision {value} is not an integer of 64 bits");
                Err(Refusal::new(Reason::BadNumber, detail))
            }
        }
    }
}

/// A measurement in the units of the source.
struct SourceMeasurement {
    temperature: f64,
    moisture: f64,
    wind_speed: Option<f64>,
}

impl SourceMeasurement {
    #[inline]
    fn to_measurement(&self, settings: &DecodeSettings) -> Result<Measurement, Refusal> {
        match (settings.temperature_unit, settings.moisture, settings.humidity, settings.wind_unit) {
            (
                InputTemperatureUnit::Fahrenheit,
                Moisture::Humidity,
                HumidityScale::Percent,
                InputWindUnit::Mph,
            ) => Measurement::new(self.temperature, self.moisture, self.wind_speed),
            _ => self.convert_units(settings),
        }
    }

    fn convert_units(&self, settings: &DecodeSettings) -> Result<Measurement, Refusal> {
        let &SourceMeasurement { temperature, moisture, wind_speed } = self;
        let (fahrenheit, celsius): (f64, fn(f64) -> f64) = match settings.temperature_unit {
            InputTemperatureUnit::Fahrenheit => (temperature, |fahrenheit| (fahrenheit - 32.0) / 1.8),
            InputTemperatureUnit::Celsius => (temperature * 1.8 + 32.0, |celsius| celsius),
            InputTemperatureUnit::Kelvin => ((temperature - 273.15) * 1.8 + 32.0, |kelvin| kelvin - 273.15),
        };
        let humidity = match (settings.moisture, settings.humidity) {
            (Moisture::Humidity, HumidityScale::Percent) => moisture,
            // Rounded, since 0.57 * 100 is not 57.
            (Moisture::Humidity, HumidityScale::Fraction) => (moisture * 1e12).round_ties_even() / 1e10,
            (Moisture::DewPoint, _) => relative_humidity(celsius(temperature), celsius(moisture)),
        };
        let wind_speed = wind_speed.map(|speed| speed * settings.wind_unit.mph_per_unit());
        Measurement::new(fahrenheit, humidity, wind_speed).map_err(|refusal| {
            let name = Field::Moisture.name(settings);
            let detail = format!("{} (from temperature {temperature}, {name} {moisture})", refusal.detail);
            Refusal::new(refusal.reason, detail)
        })
    }
}

#[cold]
fn missing_field(name: &str) -> Refusal {
    Refusal::new(Reason::MissingField, format!("{name} is missing"))
}

/// The relative humidity, %, from the temperature and the dew point, both °C. Magnus formula with
/// the coefficients of Alduchov and Eskridge (1996).
fn relative_humidity(temperature: f64, dew_point: f64) -> f64 {
    let vapour_pressure = |t: f64| libm::exp(17.625 * t / (243.04 + t));
    100.0 * vapour_pressure(dew_point) / vapour_pressure(temperature)
}

fn trim_blanks(text: &str) -> &str {
    text.trim_matches(' ')
}

#[inline]
fn parse_number(name: &str, value: &FieldValue<'_>) -> Result<Option<f64>, Refusal> {
    let number = match *value {
        FieldValue::Missing => return Ok(None),
        FieldValue::Number(number) => Some(number).filter(|number| number.is_finite()),
        FieldValue::Integer(number) => Some(number as f64),
        FieldValue::Untyped(text) => match parse_short_decimal(text.as_bytes()) {
            Some(number) => Some(number),
            None if trim_blanks(text).is_empty() => return Ok(None),
            // Rust also parses `inf` and `nan`.
            None => trim_blanks(text).parse().ok().filter(|number: &f64| number.is_finite()),
        },
        _ => None,
    };
    match number {
        Some(_) => Ok(number),
        None => {
            Err(Refusal::new(Reason::BadNumber, format!("{name} {value} is not a finite decimal number")))
        }
    }
}

/// Parses `[-]digits[.digits]` of at most 15 digits. The digits and the power of ten are then exact
/// as f64, so their quotient is the nearest f64, in half the time of the standard library.
#[inline]
fn parse_short_decimal(text: &[u8]) -> Option<f64> {
    const POWERS: [f64; 16] =
        [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    let mut number = 0u64;
    let mut point = None;
    for (at, &byte) in digits.iter().enumerate() {
        match byte {
            b'0'..=b'9' => number = number * 10 + u64::from(byte - b'0'),
            b'.' if point.is_none() => point = Some(at),
            _ => return None,
        }
    }
    let count = digits.len() - usize::from(point.is_some());
    if count == 0 || count > 15 {
        return None;
    }
    let magnitude = match point {
        Some(at) => number as f64 / POWERS[digits.len() - 1 - at],
        None => number as f64,
    };
    Some(if negative { -magnitude } else { magnitude })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn short_decimals_parse_like_std(text in "-?[0-9]{0,17}(\\.[0-9]{0,17})?") {
            if let Some(number) = parse_short_decimal(text.as_bytes()) {
                prop_assert_eq!(number.to_bits(), text.parse::<f64>().unwrap().to_bits());
            }
        }
    }

    fn reading(temperature: f64, moisture: f64, settings: DecodeSettings) -> Result<Measurement, Refusal> {
        let mut record = FieldValues::new();
        record.set(Field::City, FieldValue::Text("x"));
        record.set(Field::ReadingAt, FieldValue::Instant(0));
        record.set(Field::Temperature, FieldValue::Number(temperature));
        record.set(Field::Moisture, FieldValue::Number(moisture));
        Ok(*record.to_upsert(&settings)?.event.measurement().unwrap())
    }

    #[test]
    fn celsius_and_dew_points_are_converted() {
        let celsius =
            DecodeSettings { temperature_unit: InputTemperatureUnit::Celsius, ..DecodeSettings::default() };
        assert_eq!(reading(40.0, 50.0, celsius).unwrap().temperature(), 104.0);
        let refusal = reading(61.0, 50.0, celsius).unwrap_err();
        assert_eq!(refusal.reason, Reason::OutOfRange);
        assert!(refusal.detail.contains("temperature 61"), "{refusal}");

        let dew_point = DecodeSettings { moisture: Moisture::DewPoint, ..celsius };
        let saturated = reading(20.0, 20.0, dew_point).unwrap().humidity();
        assert_eq!(saturated, 100.0);
        let half = reading(20.0, 9.27, dew_point).unwrap().humidity();
        assert!((half - 50.0).abs() < 0.1, "{half}");
        let fahrenheit = DecodeSettings { temperature_unit: InputTemperatureUnit::Fahrenheit, ..dew_point };
        let same = reading(68.0, 48.686, fahrenheit).unwrap().humidity();
        assert!((same - half).abs() < 1e-9, "{same} {half}");
        for dew_point_c in [25.0, -243.04, -500.0] {
            let refused = reading(20.0, dew_point_c, dew_point);
            assert!(refused.is_err() || refused.unwrap().humidity() == 0.0, "{dew_point_c}");
        }
        assert!(reading(20.0, 25.0, dew_point).unwrap_err().detail.contains("dew_point 25"));
    }
}
