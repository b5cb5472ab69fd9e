//! `GET /v1/cities/{city}/history`: the rows of a city in a range of time.

use std::sync::Arc;

use warp::reply::Response;

use super::city_json::push_as_of;
use super::city_key::{city_key, unknown_city};
use super::row_pages::{
    CURSOR_PARAMETER, LIMIT_PARAMETER, cursor_behind, cursor_parameter, limit_parameter, time_parameter,
};
use crate::codec::{push_json_text, push_row_json, push_units};
use crate::model::{AnswerPiece, EventTime, OutputUnits, QueryKind};
use crate::serve::context::ServerContext;
use crate::serve::problem::{Problem, ProblemCode};
use crate::serve::query_parameters::QueryParameters;
use crate::serve::request::ApiRequest;
use crate::serve::responses::{json_response, with_permit};
use crate::serve::route::{Route, RouteAvailability};
use crate::serve::route_filter::{ApiFilter, route_filter};
use crate::serve::security::TokenScope;
use crate::serve::units;
use crate::serve::view::{QueryError, View};

pub(in crate::serve) static HISTORY: Route =
    Route::get("/v1/cities/{city}/history", Some(TokenScope::Read), RouteAvailability::Ready);

/// Bytes that a row takes in a history, hardly ever more.
const MAX_ROW_BYTES: usize = 384;

pub(in crate::serve) fn history_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &HISTORY, get_history)
}

async fn get_history(server: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    let (max_rows, units) = (server.limits.history_rows, server.view.service_info().units);
    let range = HistoryQuery::parse(&request.query, max_rows, units)?;
    let permit = server.acquire_response_permit(range.limit as usize * MAX_ROW_BYTES).await?;
    let body = history_json(&server.view, &city_key(&request.path_parameter)?, range).await?;
    Ok(with_permit(permit, json_response(&request.headers, body).await?))
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
        let known = [
            "from",
            "to",
            LIMIT_PARAMETER,
            CURSOR_PARAMETER,
            units::UNITS_PARAMETER,
            units::WIND_UNITS_PARAMETER,
        ];
        let parameters = QueryParameters::parse(query, &known)?;
        let units = units::units_of_query(&parameters, default)?;
        let from = time_parameter(&parameters, "from")?.unwrap_or(EventTime::MIN);
        let to = time_parameter(&parameters, "to")?.unwrap_or(EventTime::MAX);
        let from = cursor_parameter(&parameters)?.map_or(from, |cursor| cursor.max(from));
        Ok(HistoryQuery { from, to, limit: limit_parameter(&parameters, max_rows)?, units })
    }
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
    out.extend_from_slice(b"],\"next\":");
    match last.filter(|_| has_more).and_then(cursor_behind) {
        Some(next) => push_json_text(&next, &mut out),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    Ok(out)
}
