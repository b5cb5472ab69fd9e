//! `GET /v1/cities/{city}/why`: the readings that a row is the mean of, with their sum and count, so
//! that the mean can be checked by hand; and what arrived for each, if results are in a database.

use std::sync::Arc;

use warp::reply::Response;

use super::city_key::{city_key, unknown_city};
use super::history_page::{oldest_servable, overloaded, replica_behind, store_problem};
use super::row_pages::{
    CURSOR_PARAMETER, LIMIT_PARAMETER, bad_parameter, cursor_parameter, limit_parameter, time_parameter,
};
use super::why_json::{Explanation, KnownArrivals, explanation_json};
use crate::model::history_store::{FinalExplanation, FinalReading, HistoryStore};
use crate::model::refusal::quoted_excerpt;
use crate::model::{AnswerPiece, EventTime, ExplainedRow, OutputUnits, QueryKind};
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
use crate::serve::view::View;

pub(in crate::serve) static WHY: Route =
    Route::get("/v1/cities/{city}/why", Some(TokenScope::Read), RouteAvailability::Ready);

/// Bytes that a reading takes, hardly ever more.
const MAX_READING_BYTES: usize = 256;
/// Bytes that a reading takes with what arrived for it, hardly ever more.
const MAX_READING_WITH_ARRIVALS_BYTES: usize = 1_024;
/// Readings of a page with what arrived for them: several arrivals may belong to one.
const MAX_READINGS_WITH_ARRIVALS: u32 = 2_000;

pub(in crate::serve) fn why_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &WHY, get_why)
}

async fn get_why(server: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    let (view, store) = (&server.view, server.history_store.as_deref());
    let mut query = WhyQuery::parse(&request.query, server.limits.history_rows, view.service_info().units)?;
    let mut reading_bytes = MAX_READING_BYTES;
    if store.is_some() {
        query.limit = query.limit.min(MAX_READINGS_WITH_ARRIVALS);
        reading_bytes = MAX_READING_WITH_ARRIVALS_BYTES;
    }
    let permit = server.acquire_response_permit(query.limit as usize * reading_bytes).await?;
    let key: Arc<str> = city_key(&request.path_parameter)?.as_ref().into();
    let explanation = explain(view, store, &key, query).await?;
    let body = explanation_json(view, &key, explanation, query.units).await;
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

/// A servable row is explained by the dataflow, an older one by the store.
async fn explain(
    view: &View,
    store: Option<&dyn HistoryStore>,
    key: &Arc<str>,
    query: WhyQuery,
) -> Result<Explanation, Problem> {
    let WhyQuery { reading_at, from, limit, .. } = query;
    let kind = QueryKind::Explain { reading_at, from, limit };
    let mut response = view.query_city(key.clone(), kind).map_err(overloaded)?;
    let as_of = response.wait_for_epoch().await.map_err(overloaded)?;
    let first = response.next_piece().await.map_err(overloaded)?;
    let mut piece = first.filter(|piece| piece.is_city_known).ok_or_else(|| unknown_city(key))?;
    let info = view.service_info();
    let window_from = EventTime::from_millis(reading_at.millis().saturating_sub(info.window.millis()))
        .unwrap_or(EventTime::MIN);
    let Some(ExplainedRow { row: Some(row), measurements }) = piece.explained_row.take().map(|row| *row)
    else {
        let oldest = piece.high.map(|high| oldest_servable(high, info));
        let store = store.filter(|_| oldest.is_some_and(|oldest| reading_at < oldest));
        let store = store.ok_or_else(|| unknown_row(key, reading_at, piece.high, info))?;
        return explain_final_row(store, key, query, as_of, window_from).await;
    };
    let (mut readings, mut has_more) = (Vec::new(), false);
    let mut next = Some(piece);
    while let Some(AnswerPiece { rows, has_more: piece_has_more, .. }) = next {
        readings.extend(rows.into_iter().map(|(reading_at, row)| {
            let measurement = measurements.iter().find(|(at, _)| *at == reading_at);
            FinalReading { reading_at, row, measurement: measurement.map(|(_, measurement)| *measurement) }
        }));
        has_more |= piece_has_more;
        next = response.next_piece().await.map_err(overloaded)?;
    }
    drop(response);
    let mut explanation =
        Explanation { as_of, reading_at, row, window_from, readings, has_more, arrivals: None };
    if let Some(store) = store {
        let (first, last) = explanation.page_bounds(from);
        // The row is right without them: a database that does not answer leaves them pending.
        let found = store.arrivals(key.clone(), first, last, as_of).await.unwrap_or_default();
        explanation.arrivals = Some(KnownArrivals::new(found));
    }
    Ok(explanation)
}

/// Explains a row that the dataflow no longer holds.
async fn explain_final_row(
    store: &dyn HistoryStore,
    key: &Arc<str>,
    query: WhyQuery,
    as_of: u64,
    window_from: EventTime,
) -> Result<Explanation, Problem> {
    let WhyQuery { reading_at, from, limit, .. } = query;
    let found = store.explain_final_row(key.clone(), reading_at, from, limit).await.map_err(store_problem)?;
    let FinalExplanation { row, readings, has_more, final_until } = found;
    if final_until.is_none_or(|until| until <= reading_at) {
        return Err(replica_behind(final_until));
    }
    let row = row.ok_or_else(|| no_reading(key, reading_at))?;
    let mut explanation =
        Explanation { as_of, reading_at, row, window_from, readings, has_more, arrivals: None };
    let (first, last) = explanation.page_bounds(from);
    let found = store.arrivals(key.clone(), first, last, as_of).await.map_err(store_problem)?;
    explanation.arrivals = Some(KnownArrivals::new(found));
    Ok(explanation)
}

fn no_reading(key: &str, reading_at: EventTime) -> Problem {
    let detail = format!("city {} has no reading at {reading_at}", quoted_excerpt(key));
    Problem::new(ProblemCode::UnknownRow, detail)
}

/// The problem of a row that the dataflow does not have, without a store.
fn unknown_row(key: &str, reading_at: EventTime, high: Option<EventTime>, info: &ServiceInfo) -> Problem {
    match high.map(|high| oldest_servable(high, info)).filter(|oldest| reading_at < *oldest) {
        Some(oldest) => {
            let detail = format!(
                "{reading_at} is too long ago: the readings of city {} are held for rows from {oldest} on",
                quoted_excerpt(key)
            );
            Problem::new(ProblemCode::UnknownRow, detail)
        }
        None => no_reading(key, reading_at),
    }
}
