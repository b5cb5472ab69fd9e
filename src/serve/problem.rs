//! Error responses as `application/problem+json` (RFC 9457). Programs branch on `code`; `detail` is
//! for people.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use warp::http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use warp::http::{HeaderName, HeaderValue, StatusCode};
use warp::reply::Response;

use crate::model::{AppendHold, HoldCause};

/// Why a request is refused. Codes are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProblemCode {
    BadRequest,
    BadParameter,
    NotJson,
    Unauthorized,
    InsufficientScope,
    ForeignOrigin,
    ForeignHost,
    NotFound,
    UnknownCity,
    UnknownRow,
    MethodNotAllowed,
    NotAcceptable,
    BodyTooSlow,
    BodyTooLarge,
    UnsupportedMediaType,
    NoneAccepted,
    UpgradeRequired,
    Busy,
    LogFailed,
    InternalError,
    CatchingUp,
    Overloaded,
    NoIngest,
    Stopping,
    ClockAhead,
    DeadLettersFull,
    DeadLetterShare,
    TooManyNewCities,
    ReplicaBehind,
    HistoryUnavailable,
}

impl ProblemCode {
    #[cfg(test)]
    pub(super) const ALL: [ProblemCode; 30] = [
        ProblemCode::BadRequest,
        ProblemCode::BadParameter,
        ProblemCode::NotJson,
        ProblemCode::Unauthorized,
        ProblemCode::InsufficientScope,
        ProblemCode::ForeignOrigin,
        ProblemCode::ForeignHost,
        ProblemCode::NotFound,
        ProblemCode::UnknownCity,
        ProblemCode::UnknownRow,
        ProblemCode::MethodNotAllowed,
        ProblemCode::NotAcceptable,
        ProblemCode::BodyTooSlow,
        ProblemCode::BodyTooLarge,
        ProblemCode::UnsupportedMediaType,
        ProblemCode::NoneAccepted,
        ProblemCode::UpgradeRequired,
        ProblemCode::Busy,
        ProblemCode::LogFailed,
        ProblemCode::InternalError,
        ProblemCode::CatchingUp,
        ProblemCode::Overloaded,
        ProblemCode::NoIngest,
        ProblemCode::Stopping,
        ProblemCode::ClockAhead,
        ProblemCode::DeadLettersFull,
        ProblemCode::DeadLetterShare,
        ProblemCode::TooManyNewCities,
        ProblemCode::ReplicaBehind,
        ProblemCode::HistoryUnavailable,
    ];

    /// The HTTP status, the code and the title.
    pub(super) fn status_code_title(self) -> (u16, &'static str, &'static str) {
        match self {
            ProblemCode::BadRequest => (400, "bad_request", "The request is malformed"),
            ProblemCode::BadParameter => (400, "bad_parameter", "A parameter is not valid"),
            ProblemCode::NotJson => (400, "not_json", "The body is not JSON"),
            ProblemCode::Unauthorized => (401, "unauthorized", "A bearer token is needed"),
            ProblemCode::InsufficientScope => (403, "insufficient_scope", "The token does not allow this"),
            ProblemCode::ForeignOrigin => (403, "foreign_origin", "The origin is not allowed"),
            ProblemCode::ForeignHost => (403, "foreign_host", "The host is not served here"),
            ProblemCode::NotFound => (404, "not_found", "There is nothing at this path"),
            ProblemCode::UnknownCity => (404, "unknown_city", "The city has never had a reading"),
            ProblemCode::UnknownRow => (404, "unknown_row", "The city has no row at this time"),
            ProblemCode::MethodNotAllowed => {
                (405, "method_not_allowed", "The path does not take this method")
            }
            ProblemCode::NotAcceptable => (406, "not_acceptable", "No acceptable content coding"),
            ProblemCode::BodyTooSlow => (408, "body_too_slow", "The body did not come in time"),
            ProblemCode::BodyTooLarge => (413, "body_too_large", "The body is too large"),
            ProblemCode::UnsupportedMediaType => {
                (415, "unsupported_media_type", "The media type is not read")
            }
            ProblemCode::NoneAccepted => (422, "none_accepted", "No reading was accepted"),
            ProblemCode::UpgradeRequired => (426, "upgrade_required", "The path takes WebSockets only"),
            ProblemCode::Busy => (429, "busy", "The service is busy"),
            ProblemCode::LogFailed => (500, "log_failed", "The log cannot be written"),
            ProblemCode::InternalError => (500, "internal_error", "The service has a bug"),
            ProblemCode::CatchingUp => (503, "catching_up", "The service is catching up"),
            ProblemCode::Overloaded => (503, "overloaded", "The service cannot answer now"),
            ProblemCode::NoIngest => (503, "no_ingest", "The service takes no readings"),
            ProblemCode::Stopping => (503, "stopping", "The service is stopping"),
            ProblemCode::ClockAhead => (503, "clock_ahead", "The clock of the service is in doubt"),
            ProblemCode::DeadLettersFull => {
                (503, "dead_letters_full", "There is no room for more dead letters")
            }
            ProblemCode::DeadLetterShare => {
                (429, "too_many_dead_letters", "Too much of what was sent was refused")
            }
            ProblemCode::TooManyNewCities => (429, "too_many_new_cities", "Too many new cities were sent"),
            ProblemCode::ReplicaBehind => (503, "replica_behind", "The database of older rows is behind"),
            ProblemCode::HistoryUnavailable => {
                (503, "history_unavailable", "The database of older rows does not answer")
            }
        }
    }

    fn retry_after(self) -> Option<HeaderValue> {
        matches!(
            self,
            ProblemCode::Busy
                | ProblemCode::CatchingUp
                | ProblemCode::Overloaded
                | ProblemCode::Stopping
                | ProblemCode::ReplicaBehind
        )
        .then(|| HeaderValue::from_static("1"))
    }
}

/// An error response.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) code: ProblemCode,
    detail: Cow<'static, str>,
    members: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub(super) fn new(code: ProblemCode, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem { code, detail: detail.into(), members: Map::new(), headers: Vec::new() }
    }

    /// No readings are accepted for now.
    pub(super) fn on_hold(hold: &AppendHold) -> Problem {
        let code = match hold.cause {
            HoldCause::ClockAhead => ProblemCode::ClockAhead,
            HoldCause::DeadLettersFull => ProblemCode::DeadLettersFull,
            HoldCause::DeadLetterShare => ProblemCode::DeadLetterShare,
        };
        Problem::new(code, hold.detail.to_string()).with_header(RETRY_AFTER, hold.retry_after_s.into())
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Problem {
        self.headers.push((name, value));
        self
    }

    /// A further member of the object.
    pub(super) fn with_member(mut self, name: &str, value: Value) -> Problem {
        self.members.insert(name.into(), value);
        self
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    pub(super) fn into_response(self) -> Response {
        let (status, code, title) = self.code.status_code_title();
        let status = StatusCode::from_u16(status).unwrap_or_default();
        let mut object = self.members;
        object.insert("type".into(), json!(format!("urn:swelter:problem:{code}")));
        object.insert("title".into(), json!(title));
        object.insert("status".into(), json!(status.as_u16()));
        object.insert("code".into(), json!(code));
        object.insert("detail".into(), json!(self.detail));
        let mut response = Response::new(Value::Object(object).to_string().into());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.code.retry_after() {
            headers.insert(RETRY_AFTER, seconds);
        }
        // The rest of the body is not read.
        if matches!(self.code, ProblemCode::BodyTooLarge | ProblemCode::BodyTooSlow) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        headers.extend(self.headers);
        response
    }
}
