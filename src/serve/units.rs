//! The units that a client asks for.

use super::problem::{Code, Problem};
use super::text::Parameters;
use crate::model::refusal::quoted;
use crate::model::{OutputUnits, TemperatureUnit, WindUnit};

/// As queries and subscriptions name them, and as answers do.
pub(super) const UNITS: &str = "units";
pub(super) const WIND_UNITS: &str = "wind_units";

/// Those that are named, otherwise those of `default`; or what is wrong with a name.
pub(super) fn chosen(
    units: Option<&str>,
    wind_units: Option<&str>,
    default: OutputUnits,
) -> Result<OutputUnits, String> {
    let temperature = match units {
        None => default.temperature,
        Some(name) => TemperatureUnit::named(name).ok_or_else(|| {
            let names = TemperatureUnit::ALL.map(TemperatureUnit::name).join(", ");
            format!("{UNITS} {} is none of {names}", quoted(name))
        })?,
    };
    let wind = match wind_units {
        None => default.wind,
        Some(name) => WindUnit::named(name).ok_or_else(|| {
            let names = WindUnit::ALL.map(WindUnit::name).join(", ");
            format!("{WIND_UNITS} {} is none of {names}", quoted(name))
        })?,
    };
    Ok(OutputUnits { temperature, wind })
}

pub(super) fn of_query(parameters: &Parameters<'_>, default: OutputUnits) -> Result<OutputUnits, Problem> {
    chosen(parameters.get(UNITS), parameters.get(WIND_UNITS), default)
        .map_err(|detail| Problem::new(Code::BadParameter, detail))
}
