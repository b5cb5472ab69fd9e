//! `GET /v1/cities/{city}/history`: the rows of a city in a range of time, as they are or as they
//! were at an epoch.

use std::sync::Arc;

use warp::reply::Response;

use super::city_json::push_as_of;
use super::city_key::{city_key, unknown_city};
use super::history_page::{
    HistoryPage, LiveRows, open_page, overloaded, replica_behind_epoch, store_problem,
};
use super::row_pages::{
    CURSOR_PARAMETER, LIMIT_PARAMETER, bad_parameter, cursor_behind, cursor_parameter, limit_parameter,
    time_parameter,
};
use crate::codec::{push_json_text, push_row_json, push_units};
use crate::model::history_store::{HistoryRange, HistoryStore, PastRows};
use crate::model::{EventTime, OutputUnits, Row};
use crate::serve::context::ServerContext;
use crate::serve::encoding_turns::ROWS_PER_TURN;
use crate::serve::problem::Problem;
use crate::serve::query_parameters::QueryParameters;
use crate::serve::request::ApiRequest;
use crate::serve::responses::{json_response, with_permit};
use crate::serve::route::{Route, RouteAvailability};
use crate::serve::route_filter::{ApiFilter, route_filter};
use crate::serve::security::TokenScope;
use crate::serve::units;
use crate::serve::view::View;

pub(in crate::serve) static HISTORY: Route =
    Route::get("/v1/cities/{city}/history", Some(TokenScope::Read), RouteAvailability::Ready);

/// Bytes that a row takes in a history, hardly ever more.
const MAX_ROW_BYTES: usize = 384;
/// The name of the epoch as of which rows are wanted.
const AS_OF_PARAMETER: &str = "as_of";

pub(in crate::serve) fn history_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &HISTORY, get_history)
}

async fn get_history(server: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    let (view, store) = (&server.view, server.history_store.as_deref());
    let query = HistoryQuery::parse(&request.query, server.limits.history_rows, view.service_info().units)?;
    let permit = server.acquire_response_permit(query.limit as usize * MAX_ROW_BYTES).await?;
    let key = city_key(&request.path_parameter)?;
    let HistoryQuery { from, to, limit, units, as_of } = query;
    let range = HistoryRange { city: key.as_ref().into(), from, to, limit };
    let page = match as_of {
        None => open_page(view, store, range).await?,
        Some(epoch) => page_as_of(view, store, range, epoch).await?,
    };
    let body = page_json(view, &key, page, units).await?;
    Ok(with_permit(permit, json_response(&request.headers, body).await?))
}

/// Which rows of a city a history has: those from `from` on, before `to`.
struct HistoryQuery {
    from: EventTime,
    to: EventTime,
    limit: u32,
    units: OutputUnits,
    /// The rows as they were at this epoch, rather than as they are.
    as_of: Option<u64>,
}

impl HistoryQuery {
    /// At most `max_rows` rows, in `default` units if the query names no others.
    fn parse(query: &str, max_rows: u32, default: OutputUnits) -> Result<HistoryQuery, Problem> {
        let known = [
            "from",
            "to",
            LIMIT_PARAMETER,
            CURSOR_PARAMETER,
            AS_OF_PARAMETER,
            units::UNITS_PARAMETER,
            units::WIND_UNITS_PARAMETER,
        ];
        let parameters = QueryParameters::parse(query, &known)?;
        let units = units::units_of_query(&parameters, default)?;
        let from = time_parameter(&parameters, "from")?.unwrap_or(EventTime::MIN);
        let to = time_parameter(&parameters, "to")?.unwrap_or(EventTime::MAX);
        let from = cursor_parameter(&parameters)?.map_or(from, |cursor| cursor.max(from));
        let as_of = parameters.parse_value(AS_OF_PARAMETER, "an epoch, as answers have it in as_of")?;
        Ok(HistoryQuery { from, to, limit: limit_parameter(&parameters, max_rows)?, units, as_of })
    }
}

/// A page of rows as they were at `epoch`, all from the store.
async fn page_as_of(
    view: &View,
    store: Option<&dyn HistoryStore>,
    range: HistoryRange,
    epoch: u64,
) -> Result<HistoryPage, Problem> {
    let store = store.ok_or_else(|| {
        bad_parameter("as_of needs results in PostgreSQL, and the configuration has no serve.history_urls")
    })?;
    if epoch > view.as_of() {
        return Err(bad_parameter(format!(
            "as_of {epoch} is not over yet: the newest epoch is {}",
            view.as_of()
        )));
    }
    if view.city(&range.city).is_none() {
        return Err(unknown_city(&range.city));
    }
    let PastRows { rows, has_more, complete_until, .. } =
        store.rows_as_of(range, epoch).await.map_err(store_problem)?;
    if complete_until.is_none_or(|complete| complete < epoch) {
        return Err(replica_behind_epoch(epoch, complete_until));
    }
    Ok(HistoryPage { as_of: epoch, stored_rows: rows, ends_in_store: has_more, live: None })
}

/// `{"as_of":..,"units":..,"wind_units":..,"city":..,"rows":[..],"next":cursor|null}`.
async fn page_json(
    view: &View,
    key: &str,
    page: HistoryPage,
    units: OutputUnits,
) -> Result<Vec<u8>, Problem> {
    let HistoryPage { as_of, stored_rows, ends_in_store, live } = page;
    let mut out = Vec::with_capacity(512);
    push_as_of(&mut out, as_of);
    out.push(b',');
    push_units(&mut out, units);
    out.extend_from_slice(b",\"city\":");
    push_json_text(key, &mut out);
    out.extend_from_slice(b",\"rows\":[");
    let mut rows = RowsJson { out: &mut out, key, units, last: None };
    for piece in stored_rows.chunks(ROWS_PER_TURN) {
        let _turn = view.encoding_turns().wait_for_turn().await;
        rows.push(piece);
    }
    let mut has_more = ends_in_store;
    if let Some(live) = live {
        has_more |= push_live_rows(&mut rows, view, live).await?;
    }
    let next = rows.last.filter(|_| has_more).and_then(cursor_behind);
    out.extend_from_slice(b"],\"next\":");
    match next {
        Some(next) => push_json_text(&next, &mut out),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    Ok(out)
}

/// Appends the rows of the dataflow; true if further ones follow on another page.
async fn push_live_rows(rows: &mut RowsJson<'_>, view: &View, mut live: LiveRows) -> Result<bool, Problem> {
    let mut has_more = false;
    while let Some((piece, more)) = live.next_rows().await.map_err(overloaded)? {
        let _turn = view.encoding_turns().wait_for_turn().await;
        rows.push(&piece);
        has_more |= more;
    }
    Ok(has_more)
}

/// The rows of a page, as far as they are written.
struct RowsJson<'a> {
    out: &'a mut Vec<u8>,
    key: &'a str,
    units: OutputUnits,
    last: Option<EventTime>,
}

impl RowsJson<'_> {
    fn push(&mut self, rows: &[(EventTime, Row)]) {
        for (reading_at, row) in rows {
            if self.last.replace(*reading_at).is_some() {
                self.out.push(b',');
            }
            push_row_json(self.out, self.key, *reading_at, row, self.units);
        }
    }
}
