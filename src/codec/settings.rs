//! Units and scales of a source, which its records do not state.

use crate::model::LocalTimePolicy;

/// The unit of a source's temperatures, its dew points included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum InputTemperatureUnit {
    #[default]
    #[value(name = "fahrenheit")]
    Fahrenheit,
    #[value(name = "celsius")]
    Celsius,
    #[value(name = "kelvin")]
    Kelvin,
}

/// The unit of a source's wind speeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum InputWindUnit {
    #[default]
    #[value(name = "mph")]
    Mph,
    #[value(name = "km/h")]
    KilometresPerHour,
    #[value(name = "m/s")]
    MetresPerSecond,
    #[value(name = "knots")]
    Knots,
}

impl InputWindUnit {
    /// Miles an hour in one unit.
    pub(super) fn mph_per_unit(self) -> f64 {
        match self {
            InputWindUnit::Mph => 1.0,
            InputWindUnit::KilometresPerHour => 1.0 / 1.609_344,
            InputWindUnit::MetresPerSecond => 3.6 / 1.609_344,
            InputWindUnit::Knots => 1.852 / 1.609_344,
        }
    }
}

/// The scale of a source's relative humidities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum HumidityScale {
    /// 0 to 100
    #[default]
    #[value(name = "percent")]
    Percent,
    /// 0 to 1
    #[value(name = "fraction")]
    Fraction,
}

/// The measure of moisture that a source has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Moisture {
    /// Relative humidity, %, as `humidity`
    #[default]
    #[value(name = "humidity")]
    Humidity,
    /// The dew point, as `dew_point`
    #[value(name = "dew-point")]
    DewPoint,
}

/// What the records of a source do not state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DecodeSettings {
    /// How a time without an offset is read.
    pub local_time: LocalTimePolicy,
    /// The unit of temperatures and dew points.
    pub temperature_unit: InputTemperatureUnit,
    /// Which field says how moist the air is.
    pub moisture: Moisture,
    /// The scale of relative humidities.
    pub humidity: HumidityScale,
    /// The unit of wind speeds.
    pub wind_unit: InputWindUnit,
}

impl DecodeSettings {
    /// Whether times without an offset are accepted.
    pub fn has_local_times(&self) -> bool {
        self.local_time != LocalTimePolicy::Refuse
    }
}

impl DecodeSettings {
    /// The settings that differ from those of all sources.
    pub(super) fn differences(&self, common: &DecodeSettings) -> Vec<String> {
        let mut parts = Vec::new();
        if self.temperature_unit != common.temperature_unit {
            parts.push(format!("units {}", self.temperature_unit.name()));
        }
        if self.moisture != common.moisture {
            parts.push(format!("moisture {}", self.moisture.name()));
        }
        if self.humidity != common.humidity {
            parts.push(format!("humidity {}", self.humidity.name()));
        }
        if self.wind_unit != common.wind_unit {
            parts.push(format!("wind_units {}", self.wind_unit.name()));
        }
        if self.local_time != common.local_time {
            parts.push(format!("local times {}", self.local_time));
        }
        parts
    }
}

macro_rules! named {
    ($kind:ty { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $kind {
            pub const ALL: &'static [$kind] = &[$(<$kind>::$variant),+];

            /// The name in options, keys and identities.
            pub fn name(self) -> &'static str {
                match self {
                    $(<$kind>::$variant => $name),+
                }
            }
        }
    };
}

named!(InputTemperatureUnit { Fahrenheit => "fahrenheit", Celsius => "celsius", Kelvin => "kelvin" });
named!(Moisture { Humidity => "humidity", DewPoint => "dew-point" });
named!(HumidityScale { Percent => "percent", Fraction => "fraction" });
named!(InputWindUnit { Mph => "mph", KilometresPerHour => "km/h", MetresPerSecond => "m/s", Knots => "knots" });
