//! The units that a client asks for.

use super::percent_encoding::QueryParameters;
use super::problem::{Problem, ProblemCode};
use crate::model::refusal::quoted_excerpt;
use crate::model::{OutputUnits, TemperatureUnit, WindUnit};

/// As queries and subscriptions name them, and as answers do.
pub(super) const UNITS_PARAMETER: &str = "units";
pub(super) const WIND_UNITS_PARAMETER: &str = "wind_units";

/// Those that are named, otherwise those of `default`; or what is wrong with a name.
pub(super) fn units_or_default(
    units: Option<&str>,
    wind_units: Option<&str>,
    default: OutputUnits,
) -> Result<OutputUnits, String> {
    let temperature = match units {
        None => default.temperature,
        Some(name) => TemperatureUnit::from_name(name).ok_or_else(|| {
            let names = TemperatureUnit::ALL.map(TemperatureUnit::name).join(", ");
            format!("{UNITS_PARAMETER} {} is none of {names}", quoted_excerpt(name))
        })?,
    };
    let wind = match wind_units {
        None => default.wind,
        Some(name) => WindUnit::from_name(name).ok_or_else(|| {
            let names = WindUnit::ALL.map(WindUnit::name).join(", ");
            format!("{WIND_UNITS_PARAMETER} {} is none of {names}", quoted_excerpt(name))
        })?,
    };
    Ok(OutputUnits { temperature, wind })
}

pub(super) fn units_of_query(
    parameters: &QueryParameters<'_>,
    default: OutputUnits,
) -> Result<OutputUnits, Problem> {
    units_or_default(parameters.get(UNITS_PARAMETER), parameters.get(WIND_UNITS_PARAMETER), default)
        .map_err(|detail| Problem::new(ProblemCode::BadParameter, detail))
}
