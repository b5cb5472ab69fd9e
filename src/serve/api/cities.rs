//! `GET /v1/cities`: the current row of every city.

use std::cmp::Ordering;
use std::sync::Arc;

use warp::reply::Response;

use super::city_json::{MAX_CITY_BYTES, is_stale, push_as_of, push_city, push_now};
use crate::codec::{push_integer, push_number, push_units};
use crate::directory::{CitySearch, Directory};
use crate::model::refusal::quoted_excerpt;
use crate::model::{Category, Millis, OutputUnits};
use crate::serve::context::ServerContext;
use crate::serve::freshness::Freshness;
use crate::serve::problem::{Problem, ProblemCode};
use crate::serve::query_parameters::QueryParameters;
use crate::serve::request::ApiRequest;
use crate::serve::responses::{json_response, with_permit};
use crate::serve::route::{Route, RouteAvailability};
use crate::serve::route_filter::{ApiFilter, route_filter};
use crate::serve::security::TokenScope;
use crate::serve::units;
use crate::serve::view::{ServedCity, View};

pub(in crate::serve) static CITIES: Route =
    Route::get("/v1/cities", Some(TokenScope::Read), RouteAvailability::Ready);

/// Characters of a text that is searched for.
const MAX_SEARCH_CHARS: usize = 128;

pub(in crate::serve) fn cities_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &CITIES, list_cities)
}

async fn list_cities(server: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    let list = CityListQuery::parse(&request.query, server.view.service_info().units)?;
    let cities = list.limit.min(server.view.city_count());
    let permit = server.acquire_response_permit(cities * MAX_CITY_BYTES).await?;
    let turn = server.view.encoding_turns().wait_for_turn().await;
    let body = list.to_json(&server.view);
    drop(turn);
    Ok(with_permit(permit, json_response(&request.headers, body).await?))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ListOrder {
    HeatIndex,
    RollingHeatIndex,
    City,
}

/// Which cities a list has, in which order and units.
struct CityListQuery {
    category: Option<Category>,
    country: Option<String>,
    /// Only cities whose key, name or country this text is the beginning of.
    search: Option<String>,
    /// Only rows that are not older.
    max_row_age: Option<Millis>,
    sort_order: ListOrder,
    limit: usize,
    units: OutputUnits,
}

impl CityListQuery {
    /// In `default` units if the query names no others.
    fn parse(query: &str, default: OutputUnits) -> Result<CityListQuery, Problem> {
        let known = [
            "category",
            "country",
            "search",
            "max_age",
            "order",
            "limit",
            units::UNITS_PARAMETER,
            units::WIND_UNITS_PARAMETER,
        ];
        let parameters = QueryParameters::parse(query, &known)?;
        Ok(CityListQuery {
            units: units::units_of_query(&parameters, default)?,
            category: parameters.get("category").map(parse_category).transpose()?,
            sort_order: parameters.get("order").map_or(Ok(ListOrder::City), parse_order)?,
            country: parameters.get("country").map(parse_country).transpose()?,
            search: parameters.get("search").map(parse_search).transpose()?,
            limit: parameters.parse_value("limit", "a whole number")?.unwrap_or(usize::MAX),
            max_row_age: parameters.get("max_age").map(parse_max_age).transpose()?,
        })
    }

    /// The body: `as_of`, `now`, `units`, `wind_units`, `stale_after_s`, `stale_cities` and the
    /// list `cities`.
    fn to_json(&self, view: &View) -> Vec<u8> {
        let directory = view.service_info().directory;
        let (mut cities, mut stale) = (Vec::new(), 0);
        let freshness = view.freshness();
        // Made before the view is locked. A blank text matches all cities.
        let search = self.search.as_deref().and_then(|text| CitySearch::new(directory, text));
        let as_of = view.for_each_city(&mut |city| {
            let is_match = search.as_ref().is_none_or(|search| search.matches_city(&city.key));
            if is_match && self.is_in_country(city, directory) {
                stale += i64::from(is_stale(city, freshness));
                if self.includes(city, freshness) {
                    cities.push(city.clone());
                }
            }
        });
        cities.sort_unstable_by(|a, b| self.compare(a, b));
        cities.truncate(self.limit);
        let mut out = Vec::with_capacity(cities.len() * MAX_CITY_BYTES * 3 / 4 + 64);
        push_as_of(&mut out, as_of);
        push_now(&mut out, freshness);
        out.push(b',');
        push_units(&mut out, self.units);
        out.extend_from_slice(b",\"stale_after_s\":");
        push_number(view.service_info().stale_after.millis() as f64 / 1e3, &mut out);
        out.extend_from_slice(b",\"stale_cities\":");
        push_integer(stale, &mut out);
        out.extend_from_slice(b",\"cities\":[");
        for (at, city) in cities.iter().enumerate() {
            out.extend_from_slice(if at == 0 { b"{" } else { b",{" });
            push_city(&mut out, city, directory, freshness, self.units);
        }
        out.extend_from_slice(b"]}");
        out
    }

    fn is_in_country(&self, city: &ServedCity, directory: &Directory<'_>) -> bool {
        let is_in =
            |wanted| directory.find_by_key(&city.key).is_some_and(|entry| entry.country == Some(wanted));
        self.country.as_deref().is_none_or(is_in)
    }

    /// Whether the list has the city. A stale row belongs to no category and no ranking.
    fn includes(&self, city: &ServedCity, freshness: Freshness) -> bool {
        let Some(current) = city.current else {
            return self.category.is_none() && self.max_row_age.is_none();
        };
        let age_ms = freshness.age_ms(current.reading_at);
        let is_ranking = self.category.is_some() || self.sort_order != ListOrder::City;
        self.max_row_age.is_none_or(|max_age| age_ms <= max_age.millis())
            && self.category.is_none_or(|wanted| current.row.category() == wanted)
            && !(is_ranking && freshness.is_stale(current.reading_at))
    }

    /// Hottest first, cities without a current row last, equal ones by their keys.
    fn compare(&self, a: &ServedCity, b: &ServedCity) -> Ordering {
        let heat = |city: &ServedCity| city.current.map(|current| current.row.heat_index());
        let rolling = |city: &ServedCity| {
            city.current.map_or(f64::NEG_INFINITY, |current| current.row.rolling_heat_index())
        };
        let first = match self.sort_order {
            ListOrder::City => Ordering::Equal,
            ListOrder::HeatIndex => heat(b).cmp(&heat(a)),
            ListOrder::RollingHeatIndex => rolling(b).total_cmp(&rolling(a)),
        };
        first.then_with(|| a.key.cmp(&b.key))
    }
}

fn bad_parameter(detail: String) -> Problem {
    Problem::new(ProblemCode::BadParameter, detail)
}

fn parse_category(name: &str) -> Result<Category, Problem> {
    Category::ALL.into_iter().find(|category| category.name() == name).ok_or_else(|| {
        let names = Category::ALL.map(Category::name).join(", ");
        bad_parameter(format!("category {} is none of {names}", quoted_excerpt(name)))
    })
}

fn parse_order(name: &str) -> Result<ListOrder, Problem> {
    match name {
        "city" => Ok(ListOrder::City),
        "heat_index" => Ok(ListOrder::HeatIndex),
        "rolling_heat_index" => Ok(ListOrder::RollingHeatIndex),
        other => Err(bad_parameter(format!(
            "order {} is none of heat_index, rolling_heat_index, city",
            quoted_excerpt(other)
        ))),
    }
}

fn parse_country(text: &str) -> Result<String, Problem> {
    let country = text.to_ascii_uppercase();
    if country.len() != 2 {
        let detail = format!("country {} is not two letters (ISO 3166-1)", quoted_excerpt(&country));
        return Err(bad_parameter(detail));
    }
    Ok(country)
}

fn parse_search(text: &str) -> Result<String, Problem> {
    if text.chars().count() > MAX_SEARCH_CHARS {
        return Err(bad_parameter(format!(
            "search {} is longer than {MAX_SEARCH_CHARS} characters",
            quoted_excerpt(text)
        )));
    }
    Ok(text.to_owned())
}

/// Parses whole seconds, or a duration such as `90m`.
fn parse_max_age(text: &str) -> Result<Millis, Problem> {
    let seconds = |text: &str| -> Option<Millis> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<i64>().ok()?.checked_mul(1_000)).flatten().and_then(Millis::from_millis)
    };
    seconds(text).or_else(|| text.parse().ok()).ok_or_else(|| {
        let detail = format!(
            "max_age {} is neither whole seconds nor a duration such as 90s, 15m, 6h or 1d",
            quoted_excerpt(text)
        );
        bad_parameter(detail)
    })
}
