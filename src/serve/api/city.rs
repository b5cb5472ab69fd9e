//! `GET /v1/cities/{city}`: the current row of a city.

use std::sync::Arc;

use warp::reply::Response;

use super::city_json::{MAX_CITY_BYTES, is_stale, push_as_of, push_city, push_now};
use super::city_key::{city_key, unknown_city};
use crate::codec::push_units;
use crate::model::OutputUnits;
use crate::serve::context::ServerContext;
use crate::serve::freshness;
use crate::serve::problem::Problem;
use crate::serve::query_parameters::QueryParameters;
use crate::serve::request::ApiRequest;
use crate::serve::responses::{json_response, matches_entity_tag, not_modified_response, with_entity_tag};
use crate::serve::route::{Route, RouteAvailability};
use crate::serve::route_filter::{ApiFilter, route_filter};
use crate::serve::security::TokenScope;
use crate::serve::units;
use crate::serve::view::View;

pub(in crate::serve) static CITY: Route =
    Route::get("/v1/cities/{city}", Some(TokenScope::Read), RouteAvailability::Ready);

pub(in crate::serve) fn city_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &CITY, get_city)
}

async fn get_city(server: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    let (headers, key) = (&request.headers, city_key(&request.path_parameter)?);
    let CityBody { json, entity_tag, age_ms } = city_body(&server.view, &key, &request.query)?;
    let mut response = if matches_entity_tag(headers, &entity_tag) {
        not_modified_response(&entity_tag)
    } else {
        with_entity_tag(json_response(headers, json).await?, &entity_tag)
    };
    freshness::set_age_headers(response.headers_mut(), age_ms);
    Ok(response)
}

/// A city as JSON, and what the headers of its response say.
struct CityBody {
    json: Vec<u8>,
    /// Responses with one tag differ in nothing but `as_of`, `now` and `age_s`.
    entity_tag: String,
    /// Age of the current row.
    age_ms: Option<i64>,
}

fn city_body(view: &View, key: &str, query: &str) -> Result<CityBody, Problem> {
    let parameters = QueryParameters::parse(query, &[units::UNITS_PARAMETER, units::WIND_UNITS_PARAMETER])?;
    let units = units::units_of_query(&parameters, view.service_info().units)?;
    // Read before the row, so that it never promises more than the row holds.
    let as_of = view.as_of();
    let city = view.city(key).ok_or_else(|| unknown_city(key))?;
    let freshness = view.freshness();
    let mut out = Vec::with_capacity(MAX_CITY_BYTES);
    push_as_of(&mut out, as_of);
    push_now(&mut out, freshness);
    out.push(b',');
    push_units(&mut out, units);
    out.push(b',');
    push_city(&mut out, &city, view.service_info().directory, freshness, units);
    let stale = if is_stale(&city, freshness) { ".stale" } else { "" };
    let OutputUnits { temperature, wind } = units;
    let (unit, wind_unit) = (temperature.name(), wind.name());
    let tag =
        format!("W/\"{}.{}{stale}.{unit}.{wind_unit}\"", view.service_info().generation, city.changed_epoch);
    let age_ms = city.current.map(|current| freshness.age_ms(current.reading_at));
    Ok(CityBody { json: out, entity_tag: tag, age_ms })
}
