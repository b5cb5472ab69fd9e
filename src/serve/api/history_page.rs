//! A page of a history across the seam between the dataflow and a store of older rows.
//!
//! The dataflow has the rows from `high - max(lateness, history)` on. A row older than that is
//! final, and comes from the store, if the store knows it to be final too: if the store is behind,
//! it may lack a correction. Rows between the two wait for the store: their page is refused, and
//! no other.

use std::time::Duration;

use warp::http::HeaderValue;
use warp::http::header::RETRY_AFTER;

use super::city_key::unknown_city;
use crate::model::history_store::{FinalRows, HistoryError, HistoryRange, HistoryStore};
use crate::model::{AnswerPiece, EventTime, QueryKind, Row};
use crate::serve::problem::{Problem, ProblemCode};
use crate::serve::service_info::ServiceInfo;
use crate::serve::view::{QueryError, QueryResponse, View};

/// A page: first the rows of the store, then those of the dataflow.
pub(super) struct HistoryPage {
    /// The epoch that the rows are of.
    pub as_of: u64,
    pub stored_rows: Vec<(EventTime, Row)>,
    /// Further rows follow those of the store on another page.
    pub ends_in_store: bool,
    /// The rows of the dataflow, of which the first piece has arrived.
    pub live: Option<LiveRows>,
}

/// Rows of the dataflow, while they arrive.
pub(super) struct LiveRows {
    response: QueryResponse,
    piece: Option<AnswerPiece>,
    /// Rows that the page still takes.
    room: usize,
}

pub(super) fn overloaded(error: QueryError) -> Problem {
    Problem::new(ProblemCode::Overloaded, error.to_string())
}

/// A page of `range`, with the rows of `store` if it reaches further back than the dataflow.
pub(super) async fn open_page(
    view: &View,
    store: Option<&dyn HistoryStore>,
    range: HistoryRange,
) -> Result<HistoryPage, Problem> {
    let HistoryRange { from, to, limit, .. } = range;
    let kind = QueryKind::History { from, to, limit };
    let mut response = view.query_city(range.city.clone(), kind).map_err(overloaded)?;
    let as_of = response.wait_for_epoch().await.map_err(overloaded)?;
    let first = response.next_piece().await.map_err(overloaded)?;
    let first = first.filter(|piece| piece.is_city_known).ok_or_else(|| unknown_city(&range.city))?;
    let oldest_live = first.high.map(|high| oldest_servable(high, view.service_info()));
    let older = store.zip(oldest_live).filter(|(_, oldest)| from < *oldest);
    let mut page = HistoryPage { as_of, stored_rows: Vec::new(), ends_in_store: false, live: None };
    if let Some((store, oldest_live)) = older {
        let older = HistoryRange { to: to.min(oldest_live), ..range };
        (page.stored_rows, page.ends_in_store) = rows_before_seam(store, older).await?;
    }
    if !page.ends_in_store {
        let room = (limit as usize).saturating_sub(page.stored_rows.len());
        page.live = Some(LiveRows { response, piece: Some(first), room });
    }
    Ok(page)
}

/// The oldest time of a servable row.
pub(super) fn oldest_servable(high: EventTime, info: &ServiceInfo) -> EventTime {
    let reach = info.lateness.max(info.history).millis();
    EventTime::from_millis(high.millis().saturating_sub(reach)).unwrap_or(EventTime::MIN)
}

/// The rows of a range that ends where the dataflow begins, and whether further ones of the range
/// are left for other pages.
async fn rows_before_seam(
    store: &dyn HistoryStore,
    range: HistoryRange,
) -> Result<(Vec<(EventTime, Row)>, bool), Problem> {
    let to = range.to;
    let FinalRows { rows, has_more, final_until } = store.final_rows(range).await.map_err(store_problem)?;
    if has_more || final_until.is_some_and(|until| until >= to) {
        return Ok((rows, has_more));
    }
    // The next page begins behind the last row, where nothing is known to be final.
    if rows.is_empty() { Err(replica_behind(final_until)) } else { Ok((rows, true)) }
}

/// Rows that the dataflow no longer holds and the store does not know to be final yet.
pub(super) fn replica_behind(final_until: Option<EventTime>) -> Problem {
    let reach = match final_until {
        Some(until) => format!("it has the final rows before {until}"),
        None => "it has no reading of the city yet".into(),
    };
    let detail = format!("the database of older rows is behind ({reach}): try again in a moment");
    Problem::new(ProblemCode::ReplicaBehind, detail)
}

/// An epoch that the store has not reached.
pub(super) fn replica_behind_epoch(epoch: u64, complete_until: Option<u64>) -> Problem {
    let reach = match complete_until {
        Some(complete) => format!("it is complete up to {complete}"),
        None => "it has nothing of the city yet".into(),
    };
    let detail =
        format!("the database of older rows has not reached epoch {epoch} ({reach}): try again in a moment");
    Problem::new(ProblemCode::ReplicaBehind, detail)
}

pub(super) fn store_problem(error: HistoryError) -> Problem {
    let HistoryError::Unavailable { retry_after, .. } = &error;
    let seconds = retry_after.max(&Duration::from_secs(1)).as_secs_f64().ceil() as u64;
    Problem::new(ProblemCode::HistoryUnavailable, error.to_string())
        .with_header(RETRY_AFTER, HeaderValue::from(seconds))
}

impl LiveRows {
    /// The next rows of the page; `None` behind the last one. The second value says that further
    /// rows follow on another page.
    pub(super) async fn next_rows(&mut self) -> Result<Option<(Vec<(EventTime, Row)>, bool)>, QueryError> {
        let Some(AnswerPiece { mut rows, has_more, .. }) = self.piece.take() else { return Ok(None) };
        let is_cut = rows.len() > self.room;
        rows.truncate(self.room);
        self.room -= rows.len();
        if !is_cut {
            self.piece = self.response.next_piece().await?;
        }
        Ok(Some((rows, is_cut || has_more)))
    }
}
