//! Responses in pages of rows by time: the query parameters of times, limits and cursors.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::model::time::TimeProblem;
use crate::model::{EventTime, TimeError};
use crate::serve::problem::{Problem, ProblemCode};
use crate::serve::query_parameters::QueryParameters;

/// The name of the limit of a page.
pub(super) const LIMIT_PARAMETER: &str = "limit";
/// The name of the cursor of the page before.
pub(super) const CURSOR_PARAMETER: &str = "cursor";

pub(super) fn bad_parameter(detail: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::BadParameter, detail.into())
}

/// The time that a parameter names, if it is there.
pub(super) fn time_parameter(
    parameters: &QueryParameters<'_>,
    name: &str,
) -> Result<Option<EventTime>, Problem> {
    let Some(text) = parameters.get(name) else { return Ok(None) };
    let parsed = text.parse().map_err(|error: TimeError| {
        let hint = match error.problem {
            TimeProblem::BadOffset if text.contains(' ') => "; in an address + is written %2B",
            _ => "",
        };
        bad_parameter(format!("{name}: {error}{hint}"))
    });
    parsed.map(Some)
}

/// The rows of a page: what the query asks for, at most `max_rows`.
pub(super) fn limit_parameter(parameters: &QueryParameters<'_>, max_rows: u32) -> Result<u32, Problem> {
    match parameters.parse_value(LIMIT_PARAMETER, "a whole number from 1")? {
        Some(0) => Err(bad_parameter("limit \"0\" is not a whole number from 1")),
        limit => Ok(limit.unwrap_or(max_rows).min(max_rows)),
    }
}

/// The time at which the page of the query's cursor begins, if it has one.
pub(super) fn cursor_parameter(parameters: &QueryParameters<'_>) -> Result<Option<EventTime>, Problem> {
    let Some(cursor) = parameters.get(CURSOR_PARAMETER) else { return Ok(None) };
    decode_cursor(cursor).map(Some).ok_or_else(|| bad_parameter("cursor is not one of this server's"))
}

const CURSOR_VERSION: u8 = 1;

/// The cursor of the page that begins behind `last`, the time of a page's last row; `None` if no
/// time is later.
pub(super) fn cursor_behind(last: EventTime) -> Option<String> {
    let from = EventTime::from_millis(last.millis() + 1)?;
    let mut bytes = [CURSOR_VERSION; 9];
    bytes[1..].copy_from_slice(&from.millis().to_be_bytes());
    Some(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

fn decode_cursor(text: &str) -> Option<EventTime> {
    let bytes: [u8; 9] = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
    let [CURSOR_VERSION, millis @ ..] = bytes else { return None };
    EventTime::from_millis(i64::from_be_bytes(millis))
}
