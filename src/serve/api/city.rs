//! `GET /v1/cities/{city}`: the current row of a city, and `GET /v1/cities/{city}/history`: its
//! rows in a range of time.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use warp::reply::Response;

use super::city_json::{MAX_CITY_BYTES, is_stale, push_as_of, push_city, push_now};
use crate::codec::{push_json_text, push_row_json, push_units};
use crate::model::refusal::quoted_excerpt;
use crate::model::time::TimeProblem;
use crate::model::{AnswerPiece, EventTime, OutputUnits, QueryKind, TimeError};
use crate::serve::context::ServerContext;
use crate::serve::freshness;
use crate::serve::problem::{Problem, ProblemCode};
use crate::serve::query_parameters::{QueryParameters, decode_percent};
use crate::serve::request::ApiRequest;
use crate::serve::responses::{
    json_response, matches_entity_tag, not_modified_response, with_entity_tag, with_permit,
};
use crate::serve::route::{Route, RouteAvailability};
use crate::serve::route_filter::{ApiFilter, route_filter};
use crate::serve::security::TokenScope;
use crate::serve::units;
use crate::serve::view::{QueryError, View};

pub(in crate::serve) static CITY: Route =
    Route::get("/v1/cities/{city}", Some(TokenScope::Read), RouteAvailability::Ready);
pub(in crate::serve) static HISTORY: Route =
    Route::get("/v1/cities/{city}/history", Some(TokenScope::Read), RouteAvailability::Ready);

/// Bytes that a row takes in a history, hardly ever more.
const MAX_ROW_BYTES: usize = 384;

pub(in crate::serve) fn city_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &CITY, get_city)
}

pub(in crate::serve) fn history_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &HISTORY, get_history)
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

async fn get_history(server: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    let (max_rows, units) = (server.limits.history_rows, server.view.service_info().units);
    let range = HistoryQuery::parse(&request.query, max_rows, units)?;
    let permit = server.acquire_response_permit(range.limit as usize * MAX_ROW_BYTES).await?;
    let body = history_json(&server.view, &city_key(&request.path_parameter)?, range).await?;
    Ok(with_permit(permit, json_response(&request.headers, body).await?))
}

/// The key of the city that a segment of a path names.
fn city_key(segment: &str) -> Result<Cow<'_, str>, Problem> {
    let detail = "the city in the path is not percent-encoded UTF-8";
    decode_percent(segment).ok_or_else(|| Problem::new(ProblemCode::BadParameter, detail))
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

fn unknown_city(key: &str) -> Problem {
    Problem::new(
        ProblemCode::UnknownCity,
        format!("there has never been a reading of city {}", quoted_excerpt(key)),
    )
}

/// Which rows of a city a history has: those from `from` on, before `to`.
struct HistoryQuery {
    from: EventTime,
    to: EventTime,
    limit: u32,
    units: OutputUnits,
}

impl HistoryQuery {
    /// At most `max_rows` rows, in `default` units if the query names no others.
    fn parse(query: &str, max_rows: u32, default: OutputUnits) -> Result<HistoryQuery, Problem> {
        let known = ["from", "to", "limit", "cursor", units::UNITS_PARAMETER, units::WIND_UNITS_PARAMETER];
        let parameters = QueryParameters::parse(query, &known)?;
        let units = units::units_of_query(&parameters, default)?;
        let bad = |detail: String| Problem::new(ProblemCode::BadParameter, detail);
        let time = |name: &str, default: EventTime| match parameters.get(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|error: TimeError| {
                let hint = match error.problem {
                    TimeProblem::BadOffset if text.contains(' ') => "; in an address + is written %2B",
                    _ => "",
                };
                bad(format!("{name}: {error}{hint}"))
            }),
        };
        let mut from = time("from", EventTime::MIN)?;
        let to = time("to", EventTime::MAX)?;
        if let Some(cursor) = parameters.get("cursor") {
            let cursor = decode_cursor(cursor);
            from = cursor.ok_or_else(|| bad("cursor is not one of this server's".into()))?.max(from);
        }
        match parameters.parse_value("limit", "a whole number from 1")? {
            Some(0) => Err(bad("limit \"0\" is not a whole number from 1".into())),
            limit => Ok(HistoryQuery { from, to, limit: limit.unwrap_or(max_rows).min(max_rows), units }),
        }
    }
}

const CURSOR_VERSION: u8 = 1;

/// The cursor of the page that begins at `from`.
fn encode_cursor(from: EventTime) -> String {
    let mut bytes = [CURSOR_VERSION; 9];
    bytes[1..].copy_from_slice(&from.millis().to_be_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn decode_cursor(text: &str) -> Option<EventTime> {
    let bytes: [u8; 9] = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
    let [CURSOR_VERSION, millis @ ..] = bytes else { return None };
    EventTime::from_millis(i64::from_be_bytes(millis))
}

/// `{"as_of":..,"units":..,"wind_units":..,"city":..,"rows":[..],"next":cursor|null}`.
async fn history_json(view: &View, key: &str, range: HistoryQuery) -> Result<Vec<u8>, Problem> {
    let key: Arc<str> = key.into();
    let query = QueryKind::History { from: range.from, to: range.to, limit: range.limit };
    let overloaded = |error: QueryError| Problem::new(ProblemCode::Overloaded, error.to_string());
    let mut response = view.query_city(key.clone(), query).map_err(overloaded)?;
    let mut out = Vec::with_capacity(512);
    push_as_of(&mut out, response.wait_for_epoch().await.map_err(overloaded)?);
    out.push(b',');
    push_units(&mut out, range.units);
    out.extend_from_slice(b",\"city\":");
    push_json_text(&key, &mut out);
    out.extend_from_slice(b",\"rows\":[");
    let (mut count, mut last, mut has_more) = (0, None, false);
    while let Some(piece) = response.next_piece().await.map_err(overloaded)? {
        let AnswerPiece { is_city_known, rows, has_more: piece_has_more, .. } = piece;
        if !is_city_known {
            return Err(unknown_city(&key));
        }
        let _turn = view.encoding_turns().wait_for_turn().await;
        for (reading_at, row) in rows {
            if count > 0 {
                out.push(b',');
            }
            push_row_json(&mut out, &key, reading_at, &row, range.units);
            (count, last) = (count + 1, Some(reading_at));
        }
        has_more |= piece_has_more;
    }
    let next =
        last.filter(|_| has_more).and_then(|at| EventTime::from_millis(at.millis() + 1)).map(encode_cursor);
    out.extend_from_slice(b"],\"next\":");
    match next {
        Some(next) => push_json_text(&next, &mut out),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    Ok(out)
}
