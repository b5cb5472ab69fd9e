//! The routes, and the way of a request: host, origin, path, method, token, readiness, answer.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use hyper::body::Body as _;
use hyper::upgrade::OnUpgrade;
use tokio::sync::{Semaphore, watch};
use warp::http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, VARY,
};
use warp::http::{HeaderMap, HeaderValue, Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::budget::{MemoryBudget, Permit};
use super::encoding::ContentCoding;
use super::ingest::IngestHandler;
use super::problem::{Problem, ProblemCode};
use super::security::{self, AccessGuard, PeerAddress, RequestOrigin, TokenScope};
use super::target::PathlessTarget;
use super::upgrade::{self, WebSocketUpgrade};
use super::view::View;
use super::ws::{self, SubscriberSessions};
use super::{ServeLimits, api, documents, freshness, percent_encoding, telemetry, ui};
use crate::panics::panic_point;

/// A path with what it needs and gives. Nothing else is served.
pub(super) struct Route {
    pub(super) method: Method,
    /// As the documents write it: `{..}` is one segment.
    pub(super) path: &'static str,
    /// What a token must allow, where there are tokens.
    pub(super) scope: Option<TokenScope>,
    pub(super) availability: RouteAvailability,
    endpoint: Endpoint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteAvailability {
    Always,
    /// Once replay is done.
    Ready,
    /// Where it is asked for at the start.
    TestOnly,
}

#[derive(Clone, Copy)]
enum Endpoint {
    Cities,
    City,
    History,
    Status,
    Readings,
    Subscribe,
    Ingest,
    Metrics,
    Health,
    Readiness,
    Document(fn() -> &'static [u8]),
    Page,
    Echo,
}

const fn get_route(
    path: &'static str,
    scope: Option<TokenScope>,
    when: RouteAvailability,
    give: Endpoint,
) -> Route {
    Route { method: Method::GET, path, scope, availability: when, endpoint: give }
}

const fn post_route(
    path: &'static str,
    scope: Option<TokenScope>,
    when: RouteAvailability,
    give: Endpoint,
) -> Route {
    Route { method: Method::POST, path, scope, availability: when, endpoint: give }
}

const READ_SCOPE: Option<TokenScope> = Some(TokenScope::Read);
const INGEST_SCOPE: Option<TokenScope> = Some(TokenScope::Ingest);

/// `GET` stands for `HEAD` too.
pub(super) static ROUTES: [Route; 15] = [
    get_route("/v1/cities", READ_SCOPE, RouteAvailability::Ready, Endpoint::Cities),
    get_route("/v1/cities/{city}", READ_SCOPE, RouteAvailability::Ready, Endpoint::City),
    get_route("/v1/cities/{city}/history", READ_SCOPE, RouteAvailability::Ready, Endpoint::History),
    get_route("/v1/status", READ_SCOPE, RouteAvailability::Always, Endpoint::Status),
    get_route("/v1/subscribe", READ_SCOPE, RouteAvailability::Ready, Endpoint::Subscribe),
    post_route("/v1/readings", INGEST_SCOPE, RouteAvailability::Always, Endpoint::Readings),
    get_route("/v1/ingest", INGEST_SCOPE, RouteAvailability::Always, Endpoint::Ingest),
    get_route("/v1/openapi.json", None, RouteAvailability::Always, Endpoint::Document(documents::openapi)),
    get_route("/v1/asyncapi.json", None, RouteAvailability::Always, Endpoint::Document(documents::asyncapi)),
    get_route("/metrics", READ_SCOPE, RouteAvailability::Always, Endpoint::Metrics),
    get_route("/healthz", None, RouteAvailability::Always, Endpoint::Health),
    get_route("/readyz", None, RouteAvailability::Always, Endpoint::Readiness),
    get_route("/", None, RouteAvailability::Always, Endpoint::Page),
    get_route("/ui/{file}", None, RouteAvailability::Always, Endpoint::Page),
    get_route("/echo", None, RouteAvailability::TestOnly, Endpoint::Echo),
];

/// Bytes of the long answers that are being made or sent, all together.
pub const LONG_RESPONSES_BYTES: usize = 256 << 20;
/// Until there is room for one more.
const RESPONSE_PERMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// What requests are answered from.
pub(super) struct ServerContext {
    pub(super) view: Arc<View>,
    pub(super) sessions: SubscriberSessions,
    pub(super) ingest: IngestHandler,
    pub(super) access_guard: AccessGuard,
    pub(super) limits: ServeLimits,
    pub(super) echo: bool,
    /// One for each connection that may still be opened.
    pub(super) connection_permits: Arc<Semaphore>,
    pub(super) response_budget: Arc<MemoryBudget>,
    pub(super) stop_signal: watch::Receiver<bool>,
}

pub(super) fn response_budget() -> Arc<MemoryBudget> {
    MemoryBudget::new(LONG_RESPONSES_BYTES, RESPONSE_PERMIT_TIMEOUT)
}

/// Goes with an answer until it has been sent.
#[derive(Clone)]
pub(super) struct ResponsePermit {
    _permit: Arc<Permit>,
}

type RequestBody = Pin<Box<dyn Stream<Item = Result<Bytes, warp::Error>> + Send>>;

/// A request, without its method and path.
struct RoutedRequest {
    pathless_target: Option<PathlessTarget>,
    query: String,
    headers: HeaderMap,
    upgrade: Option<OnUpgrade>,
    peer_address: Option<PeerAddress>,
    body: RequestBody,
}

/// All routes.
pub(super) fn routes_filter(
    server: Arc<ServerContext>,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync + 'static {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        // Safe only behind `target::normalize`: it panics where there is no path.
        .and(warp::path::full())
        .and(query)
        .and(warp::ext::optional::<PathlessTarget>())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::optional::<PeerAddress>())
        .and(warp::body::stream())
        .then(move |method: Method, path: FullPath, query, pathless, headers, upgrade, peer, body| {
            let server = server.clone();
            let request = RoutedRequest {
                pathless_target: pathless,
                query,
                headers,
                upgrade,
                peer_address: peer,
                body: boxed_body(body),
            };
            async move { server.respond_to(method, path.as_str(), request).await }
        })
}

fn boxed_body<B: Buf>(body: impl Stream<Item = Result<B, warp::Error>> + Send + 'static) -> RequestBody {
    Box::pin(body.map(|chunk| chunk.map(|mut chunk| chunk.copy_to_bytes(chunk.remaining()))))
}

/// The routes of a path, and the segment that stands for its parameter.
fn find_routes(path: &str, echo: bool) -> Vec<(&'static Route, &str)> {
    let served = ROUTES.iter().filter(|route| echo || route.availability != RouteAvailability::TestOnly);
    served.filter_map(|route| Some((route, path_parameter(route.path, path)?))).collect()
}

/// Where the path is of the pattern, its parameter.
fn path_parameter<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    let Some((before, after)) = pattern.split_once('{') else { return (pattern == path).then_some("") };
    let (_, after) = after.split_once('}')?;
    let segment = path.strip_prefix(before)?.strip_suffix(after)?;
    (!segment.is_empty() && !segment.contains('/')).then_some(segment)
}

impl ServerContext {
    /// Connections that are open.
    pub(super) fn open_connections(&self) -> usize {
        self.limits.connections.saturating_sub(self.connection_permits.available_permits())
    }

    /// The answer to a request whose handling has panicked.
    pub(super) fn internal_error(method: &Method, took: Duration) -> Response {
        let detail = "the request met a bug in swelter, which its log describes: please report it";
        let mut response = Problem::new(ProblemCode::InternalError, detail).into_response();
        security::set_security_headers(&mut response, false);
        telemetry::record_request("none", method_label(method), response.status().as_u16(), took);
        response
    }

    async fn respond_to(&self, method: Method, path: &str, request: RoutedRequest) -> Response {
        let started = Instant::now();
        panic_point("request");
        let found = if request.pathless_target.is_none() { find_routes(path, self.echo) } else { Vec::new() };
        let (template, page) = found
            .first()
            .map_or(("none", false), |(route, _)| (route.path, matches!(route.endpoint, Endpoint::Page)));
        let origin = self.access_guard.classify_origin(&request.headers);
        let answer = self.handle_request(&method, &found, &origin, request).await;
        let mut response = answer.unwrap_or_else(Problem::into_response);
        security::set_security_headers(&mut response, page);
        security::allow_origin(&mut response, origin);
        let status = response.status().as_u16();
        telemetry::record_request(template, method_label(&method), status, started.elapsed());
        response
    }

    async fn handle_request(
        &self,
        method: &Method,
        found: &[(&'static Route, &str)],
        origin: &RequestOrigin,
        mut request: RoutedRequest,
    ) -> Result<Response, Problem> {
        if let Some(PathlessTarget::Refused(why)) = request.pathless_target {
            // Who frames requests like that may frame the next one badly too.
            let problem = Problem::new(ProblemCode::BadRequest, why);
            return Err(problem.with_header(CONNECTION, HeaderValue::from_static("close")));
        }
        self.access_guard.check_host(&request.headers)?;
        if request.pathless_target == Some(PathlessTarget::Server) {
            return Ok(no_content_response(HeaderValue::from_static("GET, HEAD, POST, OPTIONS")));
        }
        if found.is_empty() {
            return Err(Problem::new(
                ProblemCode::NotFound,
                "see /v1/openapi.json for the paths that are served",
            ));
        }
        let writes = *method == Method::POST || upgrade::is_upgrade_requested(&request.headers);
        let preflight =
            *method == Method::OPTIONS && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if *origin == RequestOrigin::NotAllowed && (writes || preflight) {
            let detail = "web pages of this origin may not do this: add it to the allowed origins";
            return Err(Problem::new(ProblemCode::ForeignOrigin, detail));
        }
        if *method == Method::OPTIONS {
            return Ok(options_response(found, preflight));
        }
        let asked = if *method == Method::HEAD { &Method::GET } else { method };
        let Some((route, parameter)) = found.iter().find(|(route, _)| route.method == *asked) else {
            let detail = format!("{} is not for this path: see Allow", method_label(method));
            return Err(
                Problem::new(ProblemCode::MethodNotAllowed, detail).with_header(ALLOW, allow_header(found))
            );
        };
        if let Some(scope) = route.scope {
            self.access_guard.check_token(&request.headers, scope)?;
        }
        if route.availability == RouteAvailability::Ready && !self.view.is_ready() {
            let detail = "the logs are being replayed: try again in a moment";
            return Err(Problem::new(ProblemCode::CatchingUp, detail));
        }
        if *method == Method::HEAD {
            // A handshake is a `GET`.
            request.upgrade = None;
        }
        self.call_endpoint(route, parameter, request).await
    }

    async fn call_endpoint(
        &self,
        route: &Route,
        parameter: &str,
        request: RoutedRequest,
    ) -> Result<Response, Problem> {
        let (headers, query) = (&request.headers, request.query.as_str());
        match route.endpoint {
            Endpoint::Cities => {
                let listing = api::CityListQuery::parse(query, self.view.service_info().units)?;
                let cities = listing.limit.min(self.view.city_count());
                let room = self.acquire_response_permit(cities * api::MAX_CITY_BYTES).await?;
                let turn = self.view.encoding_turns().wait_for_turn().await;
                let body = listing.to_json(&self.view);
                drop(turn);
                Ok(with_permit(room, json_response(headers, body).await?))
            }
            Endpoint::City => {
                let answer = api::city_response(&self.view, &city_key(parameter)?, query)?;
                let api::CityResponse { body, entity_tag: tag, age_ms } = answer;
                let mut response = if matches_entity_tag(headers, &tag) {
                    not_modified_response(&tag)
                } else {
                    with_entity_tag(json_response(headers, body).await?, &tag)
                };
                freshness::set_age_headers(response.headers_mut(), age_ms);
                Ok(response)
            }
            Endpoint::History => {
                let range = api::HistoryQuery::parse(
                    query,
                    self.limits.history_rows,
                    self.view.service_info().units,
                )?;
                let room = self.acquire_response_permit(range.limit as usize * api::MAX_ROW_BYTES).await?;
                let body = api::history_json(&self.view, &city_key(parameter)?, range).await?;
                Ok(with_permit(room, json_response(headers, body).await?))
            }
            Endpoint::Status => {
                let body =
                    api::status_json(&self.view, self.sessions.session_count(), self.open_connections());
                json_response(headers, body).await
            }
            Endpoint::Readings => {
                let ingest =
                    self.ingest.for_client(self.access_guard.client_id(headers, request.peer_address));
                let taken = ingest.ingest_body(headers, request.body).await?;
                json_response(headers, serde_json::to_vec(&taken).unwrap_or_default()).await
            }
            Endpoint::Subscribe | Endpoint::Ingest | Endpoint::Echo => {
                self.upgrade_to_websocket(route, request)
            }
            Endpoint::Metrics => {
                let text =
                    telemetry::render_metrics(&self.view, self.open_connections(), self.limits.connections);
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                encoded_response(headers, kind, text.into_bytes()).await
            }
            Endpoint::Health => json_response(headers, br#"{"status":"ok"}"#.to_vec()).await,
            Endpoint::Readiness => match (self.ingest.current_hold(), self.view.is_ready()) {
                (Some(hold), _) => Err(Problem::on_hold(&hold)),
                (None, true) => json_response(headers, br#"{"status":"ready"}"#.to_vec()).await,
                (None, false) => Err(Problem::new(ProblemCode::CatchingUp, "the logs are being replayed")),
            },
            Endpoint::Document(document) => {
                static_response(headers, "application/json", document(), None).await
            }
            Endpoint::Page => {
                let path = if route.path == "/" { "/".into() } else { format!("/ui/{parameter}") };
                let asset = ui::find_asset(&path);
                let asset =
                    asset.ok_or_else(|| Problem::new(ProblemCode::NotFound, "the page has no such file"))?;
                static_response(headers, asset.content_type, asset.bytes, Some(&asset.etag)).await
            }
        }
    }

    fn upgrade_to_websocket(&self, route: &Route, request: RoutedRequest) -> Result<Response, Problem> {
        let ingest =
            self.ingest.for_client(self.access_guard.client_id(&request.headers, request.peer_address));
        let upgrade = WebSocketUpgrade::validate_handshake(&request.headers, request.upgrade)?;
        let (limits, stop) = (self.limits.clone(), self.stop_signal.clone());
        let (config, unfinished) = (ws::websocket_config(&limits), self.sessions.unfinished_quota());
        Ok(match route.endpoint {
            Endpoint::Ingest => {
                self.ingest.require_appender()?;
                upgrade.accept_handshake(config, unfinished, |socket| {
                    ws::ingest::IngestSession::new(socket, ingest, limits, stop).run_session()
                })
            }
            Endpoint::Echo => upgrade.accept_handshake(
                ws::echo::echo_config(&limits),
                &ws::echo::unfinished_quota(),
                |socket| ws::echo::run_echo(socket, stop),
            ),
            _ => {
                let sessions = self.sessions.clone();
                upgrade.accept_handshake(config, unfinished, |socket| async move {
                    sessions.serve_session(socket).await
                })
            }
        })
    }

    /// Waits a little until a long answer may be made.
    async fn acquire_response_permit(&self, bytes: usize) -> Result<Permit, Problem> {
        let detail = "too many long answers are being sent: try again in a moment";
        self.response_budget.acquire(bytes).await.ok_or_else(|| Problem::new(ProblemCode::Overloaded, detail))
    }
}

/// The decoded key of a city in a path.
fn city_key(segment: &str) -> Result<std::borrow::Cow<'_, str>, Problem> {
    let detail = "the city in the path is not percent-encoded UTF-8";
    percent_encoding::percent_decode(segment).ok_or_else(|| Problem::new(ProblemCode::BadParameter, detail))
}

/// For labels: few, whatever clients send.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

fn allow_header(found: &[(&'static Route, &str)]) -> HeaderValue {
    let get = found.iter().any(|(route, _)| route.method == Method::GET);
    let post = found.iter().any(|(route, _)| route.method == Method::POST);
    HeaderValue::from_static(match (get, post) {
        (true, true) => "GET, HEAD, POST, OPTIONS",
        (true, false) => "GET, HEAD, OPTIONS",
        _ => "POST, OPTIONS",
    })
}

fn options_response(found: &[(&'static Route, &str)], preflight: bool) -> Response {
    let methods = allow_header(found);
    let mut response = no_content_response(methods.clone());
    if preflight {
        security::set_preflight_headers(&mut response, &methods);
    }
    response
}

fn no_content_response(methods: HeaderValue) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, methods);
    response
}

async fn json_response(headers: &HeaderMap, body: Vec<u8>) -> Result<Response, Problem> {
    encoded_response(headers, "application/json", body).await
}

/// An answer that is made for this request.
async fn encoded_response(
    headers: &HeaderMap,
    kind: &'static str,
    body: Vec<u8>,
) -> Result<Response, Problem> {
    let coding = negotiate_coding(headers, body.len())?;
    let body = coding.compress_response(body).await.map_err(compression_failed)?;
    Ok(complete_response(kind, body, coding))
}

/// Bytes that are compiled in.
async fn static_response(
    headers: &HeaderMap,
    kind: &'static str,
    body: &'static [u8],
    tag: Option<&str>,
) -> Result<Response, Problem> {
    let tag = match tag {
        // One tag for all codings of the bytes.
        Some(strong) => format!("W/{strong}"),
        None => format!("W/\"{:016x}\"", xxhash_rust::xxh3::xxh3_64(body)),
    };
    if matches_entity_tag(headers, &tag) {
        return Ok(not_modified_response(&tag));
    }
    let coding = negotiate_coding(headers, body.len())?;
    let body = coding.compress_static(body).await.map_err(compression_failed)?;
    Ok(with_entity_tag(complete_response(kind, body, coding), &tag))
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

fn complete_response(kind: &'static str, body: Bytes, coding: ContentCoding) -> Response {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Some(coding) = coding.header_value() {
        headers.insert(CONTENT_ENCODING, coding);
    }
    response
}

fn with_entity_tag(mut response: Response, tag: &str) -> Response {
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// Keeps the room that the answer takes, now that it is known.
fn with_permit(mut room: Permit, mut response: Response) -> Response {
    let bytes = response.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    if let Some(bytes) = bytes {
        room.shrink(bytes);
    }
    response.extensions_mut().insert(ResponsePermit { _permit: Arc::new(room) });
    response
}

fn not_modified_response(tag: &str) -> Response {
    let mut response = with_entity_tag(Response::default(), tag);
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

/// Weakly, as `If-None-Match` is compared.
fn matches_entity_tag(headers: &HeaderMap, tag: &str) -> bool {
    let opaque = |tag: &str| String::from(tag.trim().trim_start_matches("W/"));
    let values = headers.get_all(IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|given| given.trim() == "*" || opaque(given) == opaque(tag))
}
