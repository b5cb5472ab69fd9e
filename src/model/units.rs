//! The units of results that are given out. Results are held, compared and stored in °F and mph. A
//! value is converted where it is written, from the integer and by one division, so that it is the
//! f64 nearest to the exact value.

use super::heat::{mean_fahrenheit, nearest_quotient};
use super::{CurrentRow, HeatIndex};

/// The unit of temperatures: of heat indexes, their means, trends and measured temperatures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum TemperatureUnit {
    #[default]
    #[value(name = "fahrenheit")]
    Fahrenheit,
    #[value(name = "celsius")]
    Celsius,
}

/// The unit of wind speeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum WindUnit {
    #[default]
    #[value(name = "mph")]
    MilesPerHour,
    #[value(name = "km/h")]
    KilometresPerHour,
    #[value(name = "m/s")]
    MetresPerSecond,
}

/// The units of an answer, a subscription or a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OutputUnits {
    pub temperature: TemperatureUnit,
    pub wind: WindUnit,
}

/// 1e-6 mph in one mph.
const MICROS_PER_UNIT: u64 = 1_000_000;
/// 32 °F, in 1e-6 °F.
const FREEZING_MICROS: i128 = 32_000_000;
/// 1e-6 °F in one °C.
const MICROS_PER_CELSIUS: u64 = 1_800_000;

impl TemperatureUnit {
    pub const ALL: [TemperatureUnit; 2] = [TemperatureUnit::Fahrenheit, TemperatureUnit::Celsius];

    /// The name in configurations, requests and answers.
    pub fn name(self) -> &'static str {
        match self {
            TemperatureUnit::Fahrenheit => "fahrenheit",
            TemperatureUnit::Celsius => "celsius",
        }
    }

    pub fn symbol(self) -> &'static str {
        match self {
            TemperatureUnit::Fahrenheit => "°F",
            TemperatureUnit::Celsius => "°C",
        }
    }

    pub fn from_name(name: &str) -> Option<TemperatureUnit> {
        TemperatureUnit::ALL.into_iter().find(|unit| unit.name() == name)
    }

    /// The mean of `count` heat indexes that add up to `sum`, 1e-6 °F.
    pub fn mean(self, sum: i64, count: u32) -> f64 {
        match self {
            TemperatureUnit::Fahrenheit => mean_fahrenheit(sum, count),
            TemperatureUnit::Celsius => {
                let above_freezing = i128::from(sum) - FREEZING_MICROS * i128::from(count);
                nearest_quotient(above_freezing, u128::from(count) * u128::from(MICROS_PER_CELSIUS))
            }
        }
    }

    pub fn heat_index(self, heat_index: HeatIndex) -> f64 {
        self.mean(heat_index.micros(), 1)
    }

    /// A measured temperature, °F. For another unit it is first rounded to 1e-6 °F, so that a value
    /// that was measured in that unit comes out unchanged.
    pub fn temperature(self, fahrenheit: f64) -> f64 {
        match self {
            TemperatureUnit::Fahrenheit => fahrenheit,
            TemperatureUnit::Celsius => self.heat_index(HeatIndex::from_fahrenheit(fahrenheit)),
        }
    }

    /// The trend of a current row, a difference of two means.
    pub fn trend(self, current: &CurrentRow) -> Option<f64> {
        if self == TemperatureUnit::Fahrenheit {
            return current.trend();
        }
        let (sum, count) = current.hour_ago?;
        let (now, now_count) = (i128::from(current.row.sum()), current.row.count());
        let difference = now * i128::from(count) - i128::from(sum) * i128::from(now_count);
        let counts = u128::from(now_count) * u128::from(count);
        Some(nearest_quotient(difference, counts * u128::from(MICROS_PER_CELSIUS)))
    }
}

impl WindUnit {
    pub const ALL: [WindUnit; 3] =
        [WindUnit::MilesPerHour, WindUnit::KilometresPerHour, WindUnit::MetresPerSecond];

    pub fn name(self) -> &'static str {
        match self {
            WindUnit::MilesPerHour => "mph",
            WindUnit::KilometresPerHour => "km/h",
            WindUnit::MetresPerSecond => "m/s",
        }
    }

    pub fn from_name(name: &str) -> Option<WindUnit> {
        WindUnit::ALL.into_iter().find(|unit| unit.name() == name)
    }

    /// A measured speed, mph. For another unit it is first rounded to 1e-6 mph.
    pub fn speed(self, mph: f64) -> f64 {
        // A mile is 1,609.344 m.
        let (numerator, divisor) = match self {
            WindUnit::MilesPerHour => return mph,
            WindUnit::KilometresPerHour => (1_609_344, MICROS_PER_UNIT * 1_000_000),
            WindUnit::MetresPerSecond => (44_704, MICROS_PER_UNIT * 100_000),
        };
        let micros = (mph * MICROS_PER_UNIT as f64).round_ties_even() as i64;
        nearest_quotient(i128::from(micros) * numerator, divisor.into())
    }
}

impl OutputUnits {
    /// The units of results in memory, and of topics, checkpoints and logs.
    pub const STORED: OutputUnits =
        OutputUnits { temperature: TemperatureUnit::Fahrenheit, wind: WindUnit::MilesPerHour };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Category, EventTime, Row};
    use clap::ValueEnum as _;

    const CELSIUS: TemperatureUnit = TemperatureUnit::Celsius;

    fn current(sum: i64, count: u32, hour_ago: (i64, u32)) -> CurrentRow {
        let row = Row::new(HeatIndex::default(), Category::None, sum, count);
        CurrentRow { reading_at: EventTime::default(), row, hour_ago: Some(hour_ago), measurement: None }
    }

    #[test]
    fn celsius_heat_index_is_nearest_double() {
        for (micros, celsius) in [
            (32_000_000, "0"),
            (31_999_999, "-0.0000005555555555555555"),
            (212_000_000, "100"),
            (86_180_000, "30.1"),
            (91_283_411, "32.935228333333335"),
            (-40_000_000, "-40"),
            (0, "-17.77777777777778"),
            (1, "-17.777777222222223"),
            (HeatIndex::MIN.micros(), "-253.88888888888889"),
            (HeatIndex::MAX.micros(), "1982.2222222222222"),
        ] {
            assert_eq!(CELSIUS.heat_index(HeatIndex::from_micros(micros)).to_string(), celsius, "{micros}");
        }
        // Rounding each step adds a digit that was never measured.
        assert_ne!(((-57.82 - 32.0) / 1.8).to_string(), "-49.9");
        assert_eq!(CELSIUS.temperature(-57.82).to_string(), "-49.9");
        for tenths in -500..500 {
            let celsius = f64::from(tenths) / 10.0;
            assert_eq!(CELSIUS.temperature(celsius * 1.8 + 32.0), celsius);
        }
    }

    #[test]
    fn celsius_means_and_trends_are_rounded_once() {
        assert_eq!(CELSIUS.mean(252_038_190_000, 3001).to_string(), "28.880408382391053");
        let extreme = HeatIndex::MAX.micros() * i64::from(Row::MAX_COUNT);
        assert_eq!(CELSIUS.mean(extreme, Row::MAX_COUNT), CELSIUS.heat_index(HeatIndex::MAX));
        let least = HeatIndex::MIN.micros() * i64::from(Row::MAX_COUNT);
        assert_eq!(CELSIUS.mean(least, Row::MAX_COUNT), CELSIUS.heat_index(HeatIndex::MIN));
        for (now, hour_ago, celsius) in [
            ((80_000_000, 1), (80_000_000, 1), "0"),
            ((80_000_001, 1), (80_000_000, 1), "0.0000005555555555555555"),
            ((80_000_000, 1), (81_800_000, 1), "-1"),
            ((100_000_000, 3), (100_000_000, 7), "10.582010582010582"),
            ((-85_000_000, 2), (90_000_000, 3), "-40.27777777777778"),
        ] {
            let found = CELSIUS.trend(&current(now.0, now.1, hour_ago)).unwrap();
            assert_eq!(found.to_string(), celsius, "{now:?} {hour_ago:?}");
        }
        let wide = current(extreme, Row::MAX_COUNT, (extreme - 1, Row::MAX_COUNT));
        let expected = 1.0 / (f64::from(Row::MAX_COUNT) * 1.8e6);
        assert_eq!(CELSIUS.trend(&wide), Some(expected));
        assert_eq!(CELSIUS.trend(&CurrentRow { hour_ago: None, ..wide }), None);
    }

    #[test]
    fn wind_speeds_are_exact_to_a_millionth_of_a_mile() {
        for (mph, km_per_h, m_per_s) in [
            (0.0, "0", "0"),
            (1.0, "1.609344", "0.44704"),
            (8.05546, "12.96400621824", "3.6011128384"),
            (260.0, "418.42944", "116.2304"),
        ] {
            assert_eq!(WindUnit::KilometresPerHour.speed(mph).to_string(), km_per_h);
            assert_eq!(WindUnit::MetresPerSecond.speed(mph).to_string(), m_per_s);
            assert_eq!(WindUnit::MilesPerHour.speed(mph), mph);
        }
    }

    #[test]
    fn unit_names_match_command_line() {
        for unit in TemperatureUnit::ALL {
            assert_eq!(TemperatureUnit::from_str(unit.name(), false), Ok(unit));
            assert_eq!(TemperatureUnit::from_name(unit.name()), Some(unit));
        }
        for unit in WindUnit::ALL {
            assert_eq!(WindUnit::from_str(unit.name(), false), Ok(unit));
            assert_eq!(WindUnit::from_name(unit.name()), Some(unit));
        }
        assert_eq!(TemperatureUnit::value_variants(), TemperatureUnit::ALL);
        assert_eq!(WindUnit::value_variants(), WindUnit::ALL);
        assert_eq!((TemperatureUnit::from_name("Celsius"), WindUnit::from_name("kmh")), (None, None));
        assert_eq!(OutputUnits::STORED, OutputUnits::default());
    }
}
