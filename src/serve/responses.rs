//! Responses: content coding, entity tags, and the memory that long responses take.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body as _;
use warp::http::header::{ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use warp::http::{HeaderMap, HeaderValue, StatusCode};
use warp::reply::Response;

use super::budget::{MemoryBudget, Permit};
use super::encoding::ContentCoding;
use super::problem::{Problem, ProblemCode};

/// Bytes of all long responses that are being made or sent.
pub const LONG_RESPONSES_BYTES: usize = 256 << 20;
/// How long a long response waits for its memory.
const RESPONSE_PERMIT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn response_budget() -> Arc<MemoryBudget> {
    MemoryBudget::new(LONG_RESPONSES_BYTES, RESPONSE_PERMIT_TIMEOUT)
}

/// The memory of a response, held as an extension of the response until it has been sent.
#[derive(Clone)]
pub(super) struct ResponsePermit {
    _permit: Arc<Permit>,
}

/// Keeps the permit with its response, reduced to the response's length, which is known now.
pub(super) fn with_permit(mut permit: Permit, mut response: Response) -> Response {
    let bytes = response.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    if let Some(bytes) = bytes {
        permit.shrink(bytes);
    }
    response.extensions_mut().insert(ResponsePermit { _permit: Arc::new(permit) });
    response
}

pub(super) async fn json_response(headers: &HeaderMap, body: Vec<u8>) -> Result<Response, Problem> {
    encoded_response(headers, "application/json", body).await
}

/// A response whose body is made for this request.
pub(super) async fn encoded_response(
    headers: &HeaderMap,
    content_type: &'static str,
    body: Vec<u8>,
) -> Result<Response, Problem> {
    let coding = negotiate_coding(headers, body.len())?;
    let body = coding.compress_response(body).await.map_err(compression_failed)?;
    Ok(complete_response(content_type, body, coding))
}

/// A response of bytes that are compiled in. `strong_tag` is their entity tag, if it is known.
pub(super) async fn static_response(
    headers: &HeaderMap,
    content_type: &'static str,
    body: &'static [u8],
    strong_tag: Option<&str>,
) -> Result<Response, Problem> {
    // Weak, since all codings of the bytes have this one tag.
    let tag = match strong_tag {
        Some(strong) => format!("W/{strong}"),
        None => format!("W/\"{:016x}\"", xxhash_rust::xxh3::xxh3_64(body)),
    };
    if matches_entity_tag(headers, &tag) {
        return Ok(not_modified_response(&tag));
    }
    let coding = negotiate_coding(headers, body.len())?;
    let body = coding.compress_static(body).await.map_err(compression_failed)?;
    Ok(with_entity_tag(complete_response(content_type, body, coding), &tag))
}

pub(super) fn no_content_response(methods: HeaderValue) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, methods);
    response
}

pub(super) fn not_modified_response(tag: &str) -> Response {
    let mut response = with_entity_tag(Response::default(), tag);
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

pub(super) fn with_entity_tag(mut response: Response, tag: &str) -> Response {
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// Whether the client has a response with this tag, by the weak comparison that RFC 9110, section
/// 13.1.2, prescribes for `If-None-Match`.
pub(super) fn matches_entity_tag(headers: &HeaderMap, tag: &str) -> bool {
    fn opaque(tag: &str) -> &str {
        tag.trim().trim_start_matches("W/")
    }
    let values = headers.get_all(IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|listed| listed.trim() == "*" || opaque(listed) == opaque(tag))
}

fn negotiate_coding(headers: &HeaderMap, bytes: usize) -> Result<ContentCoding, Problem> {
    ContentCoding::negotiate(headers, bytes).ok_or_else(|| {
        let detail = "answers come as zstd, gzip or identity, and Accept-Encoding takes none of them";
        Problem::new(ProblemCode::NotAcceptable, detail)
    })
}

fn compression_failed(error: std::io::Error) -> Problem {
    Problem::new(ProblemCode::Overloaded, format!("the answer could not be compressed: {error}"))
}

fn complete_response(content_type: &'static str, body: Bytes, coding: ContentCoding) -> Response {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Some(coding) = coding.header_value() {
        headers.insert(CONTENT_ENCODING, coding);
    }
    response
}
