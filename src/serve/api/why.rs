//! `GET /v1/cities/{city}/why`: the readings that a row is the mean of, with their sum and count, so
//! that the mean can be checked by hand.

use std::sync::Arc;

use warp::reply::Response;

use super::city_json::push_as_of;
use super::city_key::{city_key, unknown_city};
use super::row_pages::{
    CURSOR_PARAMETER, LIMIT_PARAMETER, bad_parameter, cursor_behind, cursor_parameter, limit_parameter,
    time_parameter,
};
use crate::codec::{
    push_heat_index_values, push_integer, push_json_text, push_measurement_values, push_row_json, push_units,
};
use crate::model::refusal::quoted_excerpt;
use crate::model::{AnswerPiece, EventTime, ExplainedRow, Measurement, OutputUnits, QueryKind, Row};
use crate::serve::context::ServerContext;
use crate::serve::problem::{Problem, ProblemCode};
use crate::serve::query_parameters::QueryParameters;
use crate::serve::request::ApiRequest;
use crate::serve::responses::{json_response, with_permit};
use crate::serve::route::{Route, RouteAvailability};
use crate::serve::route_filter::{ApiFilter, route_filter};
use crate::serve::security::TokenScope;
use crate::serve::service_info::ServiceInfo;
use crate::serve::units;
use crate::serve::view::{QueryError, QueryResponse, View};

pub(in crate::serve) static WHY: Route =
    Route::get("/v1/cities/{city}/why", Some(TokenScope::Read), RouteAvailability::Ready);

/// Bytes that a reading takes, hardly ever more.
const MAX_READING_BYTES: usize = 256;

pub(in crate::serve) fn why_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &WHY, get_why)
}

async fn get_why(server: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    let (max_readings, units) = (server.limits.history_rows, server.view.service_info().units);
    let query = WhyQuery::parse(&request.query, max_readings, units)?;
    let permit = server.acquire_response_permit(query.limit as usize * MAX_READING_BYTES).await?;
    let body = why_json(&server.view, &city_key(&request.path_parameter)?, query).await?;
    Ok(with_permit(permit, json_response(&request.headers, body).await?))
}

/// Which row is explained, and which page of its readings.
#[derive(Clone, Copy)]
struct WhyQuery {
    reading_at: EventTime,
    /// Where the page begins.
    from: EventTime,
    limit: u32,
    units: OutputUnits,
}

impl WhyQuery {
    /// At most `max_readings` readings, in `default` units if the query names no others.
    fn parse(query: &str, max_readings: u32, default: OutputUnits) -> Result<WhyQuery, Problem> {
        let known = [
            "reading_at",
            LIMIT_PARAMETER,
            CURSOR_PARAMETER,
            units::UNITS_PARAMETER,
            units::WIND_UNITS_PARAMETER,
        ];
        let parameters = QueryParameters::parse(query, &known)?;
        let reading_at = time_parameter(&parameters, "reading_at")?.ok_or_else(|| {
            bad_parameter("reading_at is missing: name the time of the row, as in 2025-11-24T16:00:00Z")
        })?;
        Ok(WhyQuery {
            reading_at,
            from: cursor_parameter(&parameters)?.unwrap_or(EventTime::MIN),
            limit: limit_parameter(&parameters, max_readings)?,
            units: units::units_of_query(&parameters, default)?,
        })
    }
}

async fn why_json(view: &View, key: &str, query: WhyQuery) -> Result<Vec<u8>, Problem> {
    let key: Arc<str> = key.into();
    let WhyQuery { reading_at, from, limit, .. } = query;
    let overloaded = |error: QueryError| Problem::new(ProblemCode::Overloaded, error.to_string());
    let kind = QueryKind::Explain { reading_at, from, limit };
    let mut response = view.query_city(key.clone(), kind).map_err(overloaded)?;
    let as_of = response.wait_for_epoch().await.map_err(overloaded)?;
    let first = response.next_piece().await.map_err(overloaded)?;
    let first = first.filter(|piece| piece.is_city_known).ok_or_else(|| unknown_city(&key))?;
    let info = view.service_info();
    let ExplainedRow { row, measurements } =
        first.explained_row.as_deref().cloned().unwrap_or(ExplainedRow { row: None, measurements: vec![] });
    let row = row.ok_or_else(|| unknown_row(&key, reading_at, first.high, info))?;
    let mut out = Vec::with_capacity(1_024);
    push_as_of(&mut out, as_of);
    push_explained_row(&mut out, &key, reading_at, &row, info, query.units);
    out.extend_from_slice(b",\"readings\":[");
    let next = push_readings(&mut out, view, response, first, &measurements, query.units).await;
    out.extend_from_slice(b"],\"next\":");
    match next.map_err(overloaded)?.and_then(cursor_behind) {
        Some(next) => push_json_text(&next, &mut out),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    Ok(out)
}

/// Appends the row, and the bounds, the sum and the count of its window.
fn push_explained_row(
    out: &mut Vec<u8>,
    key: &str,
    reading_at: EventTime,
    row: &Row,
    info: &ServiceInfo,
    units: OutputUnits,
) {
    out.push(b',');
    push_units(out, units);
    out.extend_from_slice(b",\"row\":");
    push_row_json(out, key, reading_at, row, units);
    let from = EventTime::from_millis(reading_at.millis().saturating_sub(info.window.millis()));
    out.extend_from_slice(b",\"window\":{\"from\":\"");
    from.unwrap_or(EventTime::MIN).write_to(out);
    out.extend_from_slice(b"\",\"to\":\"");
    reading_at.write_to(out);
    out.extend_from_slice(b"\",\"sum_e6\":");
    push_integer(row.sum(), out);
    out.extend_from_slice(b",\"count\":");
    push_integer(row.count().into(), out);
    out.push(b'}');
}

/// Appends the readings of a page. Returns the time of the last one if there are more.
async fn push_readings(
    out: &mut Vec<u8>,
    view: &View,
    mut response: QueryResponse,
    first: AnswerPiece,
    measurements: &[(EventTime, Measurement)],
    units: OutputUnits,
) -> Result<Option<EventTime>, QueryError> {
    let (mut last, mut has_more, mut piece) = (None, false, Some(first));
    while let Some(AnswerPiece { rows, has_more: piece_has_more, .. }) = piece {
        let turn = view.encoding_turns().wait_for_turn().await;
        for (reading_at, row) in rows {
            out.extend_from_slice(if last.is_some() { b",{" } else { b"{" });
            out.extend_from_slice(b"\"reading_at\":\"");
            reading_at.write_to(out);
            out.extend_from_slice(b"\",");
            push_heat_index_values(out, &row, units);
            let measurement = measurements.iter().find(|(at, _)| *at == reading_at);
            push_measurement_values(out, measurement.map(|(_, measurement)| measurement), units);
            out.push(b'}');
            last = Some(reading_at);
        }
        drop(turn);
        has_more |= piece_has_more;
        piece = response.next_piece().await?;
    }
    Ok(last.filter(|_| has_more))
}

fn unknown_row(key: &str, reading_at: EventTime, high: Option<EventTime>, info: &ServiceInfo) -> Problem {
    let reach = info.lateness.max(info.history).millis();
    let oldest = high.and_then(|high| EventTime::from_millis(high.millis().saturating_sub(reach)));
    let detail = match oldest.filter(|oldest| reading_at < *oldest) {
        Some(oldest) => format!(
            "{reading_at} is too long ago: the readings of city {} are held for rows from {oldest} on",
            quoted_excerpt(key)
        ),
        None => format!("city {} has no reading at {reading_at}", quoted_excerpt(key)),
    };
    Problem::new(ProblemCode::UnknownRow, detail)
}
