//! The units that a client asks for.

use super::problem::{Problem, ProblemCode};
use super::query_parameters::QueryParameters;
use crate::model::refusal::quoted_excerpt;
use crate::model::{OutputUnits, TemperatureUnit, WindUnit};

/// The name of the temperature unit in queries, subscriptions and responses.
pub(super) const UNITS_PARAMETER: &str = "units";
/// The name of the wind unit in queries, subscriptions and responses.
pub(super) const WIND_UNITS_PARAMETER: &str = "wind_units";

/// The units of these names, and those of `default` for names that are absent.
///
/// # Errors
///
/// If a name is not that of a unit, with the names of all units.
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

/// The units that the parameters of a query name.
pub(super) fn units_of_query(
    parameters: &QueryParameters<'_>,
    default: OutputUnits,
) -> Result<OutputUnits, Problem> {
    units_or_default(parameters.get(UNITS_PARAMETER), parameters.get(WIND_UNITS_PARAMETER), default)
        .map_err(|detail| Problem::new(ProblemCode::BadParameter, detail))
}
