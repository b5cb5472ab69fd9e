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

use super::budget::{Budget, Held};
use super::encoding::Coding;
use super::ingest::Ingest;
use super::problem::{Code, Problem};
use super::security::{self, Guard, Origin, PeerAddress, Scope};
use super::target::Pathless;
use super::upgrade::{self, Upgrade};
use super::view::View;
use super::ws::{self, Sessions};
use super::{Limits, api, documents, freshness, telemetry, text, ui};
use crate::panics::fail_point;

/// A path with what it needs and gives. Nothing else is served.
pub(super) struct Route {
    pub(super) method: Method,
    /// As the documents write it: `{..}` is one segment.
    pub(super) path: &'static str,
    /// What a token must allow, where there are tokens.
    pub(super) scope: Option<Scope>,
    pub(super) when: When,
    give: Give,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Always,
    /// Once replay is done.
    Ready,
    /// Where it is asked for at the start.
    Testing,
}

#[derive(Clone, Copy)]
enum Give {
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

const fn get(path: &'static str, scope: Option<Scope>, when: When, give: Give) -> Route {
    Route { method: Method::GET, path, scope, when, give }
}

const fn post(path: &'static str, scope: Option<Scope>, when: When, give: Give) -> Route {
    Route { method: Method::POST, path, scope, when, give }
}

const READ: Option<Scope> = Some(Scope::Read);
const INGEST: Option<Scope> = Some(Scope::Ingest);

/// `GET` stands for `HEAD` too.
pub(super) static ROUTES: [Route; 15] = [
    get("/v1/cities", READ, When::Ready, Give::Cities),
    get("/v1/cities/{city}", READ, When::Ready, Give::City),
    get("/v1/cities/{city}/history", READ, When::Ready, Give::History),
    get("/v1/status", READ, When::Always, Give::Status),
    get("/v1/subscribe", READ, When::Ready, Give::Subscribe),
    post("/v1/readings", INGEST, When::Always, Give::Readings),
    get("/v1/ingest", INGEST, When::Always, Give::Ingest),
    get("/v1/openapi.json", None, When::Always, Give::Document(documents::openapi)),
    get("/v1/asyncapi.json", None, When::Always, Give::Document(documents::asyncapi)),
    get("/metrics", READ, When::Always, Give::Metrics),
    get("/healthz", None, When::Always, Give::Health),
    get("/readyz", None, When::Always, Give::Readiness),
    get("/", None, When::Always, Give::Page),
    get("/ui/{file}", None, When::Always, Give::Page),
    get("/echo", None, When::Testing, Give::Echo),
];

/// Bytes of the long answers that are being made or sent, all together.
pub const ANSWERS_BYTES: usize = 256 << 20;
/// Until there is room for one more.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// What requests are answered from.
pub(super) struct Server {
    pub(super) view: Arc<View>,
    pub(super) sessions: Sessions,
    pub(super) ingest: Ingest,
    pub(super) guard: Guard,
    pub(super) limits: Limits,
    pub(super) echo: bool,
    /// One for each connection that may still be opened.
    pub(super) slots: Arc<Semaphore>,
    pub(super) answers: Arc<Budget>,
    pub(super) stop: watch::Receiver<bool>,
}

pub(super) fn answers_room() -> Arc<Budget> {
    Budget::new(ANSWERS_BYTES, ANSWER_WAIT)
}

/// Goes with an answer until it has been sent.
#[derive(Clone)]
pub(super) struct Room {
    _bytes: Arc<Held>,
}

type Body = Pin<Box<dyn Stream<Item = Result<Bytes, warp::Error>> + Send>>;

/// A request, without its method and path.
struct Request {
    pathless: Option<Pathless>,
    query: String,
    headers: HeaderMap,
    upgrade: Option<OnUpgrade>,
    peer: Option<PeerAddress>,
    body: Body,
}

/// All routes.
pub(super) fn filter(
    server: Arc<Server>,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync + 'static {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        // Safe only behind `target::normalize`: it panics where there is no path.
        .and(warp::path::full())
        .and(query)
        .and(warp::ext::optional::<Pathless>())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::optional::<PeerAddress>())
        .and(warp::body::stream())
        .then(move |method: Method, path: FullPath, query, pathless, headers, upgrade, peer, body| {
            let server = server.clone();
            let request = Request { pathless, query, headers, upgrade, peer, body: boxed(body) };
            async move { server.respond(method, path.as_str(), request).await }
        })
}

fn boxed<B: Buf>(body: impl Stream<Item = Result<B, warp::Error>> + Send + 'static) -> Body {
    Box::pin(body.map(|chunk| chunk.map(|mut chunk| chunk.copy_to_bytes(chunk.remaining()))))
}

/// The routes of a path, and the segment that stands for its parameter.
fn find(path: &str, echo: bool) -> Vec<(&'static Route, &str)> {
    let served = ROUTES.iter().filter(|route| echo || route.when != When::Testing);
    served.filter_map(|route| Some((route, parameter(route.path, path)?))).collect()
}

/// Where the path is of the pattern, its parameter.
fn parameter<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    let Some((before, after)) = pattern.split_once('{') else { return (pattern == path).then_some("") };
    let (_, after) = after.split_once('}')?;
    let segment = path.strip_prefix(before)?.strip_suffix(after)?;
    (!segment.is_empty() && !segment.contains('/')).then_some(segment)
}

impl Server {
    /// Connections that are open.
    pub(super) fn connections(&self) -> usize {
        self.limits.connections.saturating_sub(self.slots.available_permits())
    }

    /// The answer to a request whose handling has panicked.
    pub(super) fn internal_error(method: &Method, took: Duration) -> Response {
        let detail = "the request met a bug in swelter, which its log describes: please report it";
        let mut response = Problem::new(Code::InternalError, detail).into_response();
        security::harden(&mut response, false);
        telemetry::answered("none", name(method), response.status().as_u16(), took);
        response
    }

    async fn respond(&self, method: Method, path: &str, request: Request) -> Response {
        let started = Instant::now();
        fail_point("request");
        let found = if request.pathless.is_none() { find(path, self.echo) } else { Vec::new() };
        let (template, page) = found
            .first()
            .map_or(("none", false), |(route, _)| (route.path, matches!(route.give, Give::Page)));
        let origin = self.guard.origin(&request.headers);
        let answer = self.answer(&method, &found, &origin, request).await;
        let mut response = answer.unwrap_or_else(Problem::into_response);
        security::harden(&mut response, page);
        security::share(&mut response, origin);
        let status = response.status().as_u16();
        telemetry::answered(template, name(&method), status, started.elapsed());
        response
    }

    async fn answer(
        &self,
        method: &Method,
        found: &[(&'static Route, &str)],
        origin: &Origin,
        mut request: Request,
    ) -> Result<Response, Problem> {
        if let Some(Pathless::Refused(why)) = request.pathless {
            // Who frames requests like that may frame the next one badly too.
            let problem = Problem::new(Code::BadRequest, why);
            return Err(problem.header(CONNECTION, HeaderValue::from_static("close")));
        }
        self.guard.check_host(&request.headers)?;
        if request.pathless == Some(Pathless::Server) {
            return Ok(no_content(HeaderValue::from_static("GET, HEAD, POST, OPTIONS")));
        }
        if found.is_empty() {
            return Err(Problem::new(Code::NotFound, "see /v1/openapi.json for the paths that are served"));
        }
        let writes = *method == Method::POST || upgrade::is_asked(&request.headers);
        let preflight =
            *method == Method::OPTIONS && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if *origin == Origin::Foreign && (writes || preflight) {
            let detail = "web pages of this origin may not do this: add it to the allowed origins";
            return Err(Problem::new(Code::ForeignOrigin, detail));
        }
        if *method == Method::OPTIONS {
            return Ok(options(found, preflight));
        }
        let asked = if *method == Method::HEAD { &Method::GET } else { method };
        let Some((route, parameter)) = found.iter().find(|(route, _)| route.method == *asked) else {
            let detail = format!("{} is not for this path: see Allow", name(method));
            return Err(Problem::new(Code::MethodNotAllowed, detail).header(ALLOW, allowed(found)));
        };
        if let Some(scope) = route.scope {
            self.guard.check_token(&request.headers, scope)?;
        }
        if route.when == When::Ready && !self.view.is_ready() {
            let detail = "the logs are being replayed: try again in a moment";
            return Err(Problem::new(Code::CatchingUp, detail));
        }
        if *method == Method::HEAD {
            // A handshake is a `GET`.
            request.upgrade = None;
        }
        self.give(route, parameter, request).await
    }

    async fn give(&self, route: &Route, parameter: &str, request: Request) -> Result<Response, Problem> {
        let (headers, query) = (&request.headers, request.query.as_str());
        match route.give {
            Give::Cities => {
                let listing = api::Listing::parse(query, self.view.facts().units)?;
                let cities = listing.limit.min(self.view.city_count());
                let room = self.room(cities * api::CITY_BYTES).await?;
                let turn = self.view.turns().take().await;
                let body = listing.json(&self.view);
                drop(turn);
                Ok(with(room, json(headers, body).await?))
            }
            Give::City => {
                let answer = api::city(&self.view, &city_key(parameter)?, query)?;
                let api::CityAnswer { body, tag, age_ms } = answer;
                let mut response = if matches_tag(headers, &tag) {
                    not_modified(&tag)
                } else {
                    tagged(json(headers, body).await?, &tag)
                };
                freshness::set_age(response.headers_mut(), age_ms);
                Ok(response)
            }
            Give::History => {
                let range = api::Range::parse(query, self.limits.history_rows, self.view.facts().units)?;
                let room = self.room(range.limit as usize * api::ROW_BYTES).await?;
                let body = api::history(&self.view, &city_key(parameter)?, range).await?;
                Ok(with(room, json(headers, body).await?))
            }
            Give::Status => {
                let body = api::status(&self.view, self.sessions.open(), self.connections());
                json(headers, body).await
            }
            Give::Readings => {
                let ingest = self.ingest.of(self.guard.client(headers, request.peer));
                let taken = ingest.post(headers, request.body).await?;
                json(headers, serde_json::to_vec(&taken).unwrap_or_default()).await
            }
            Give::Subscribe | Give::Ingest | Give::Echo => self.upgrade(route, request),
            Give::Metrics => {
                let text = telemetry::render(&self.view, self.connections(), self.limits.connections);
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                coded(headers, kind, text.into_bytes()).await
            }
            Give::Health => json(headers, br#"{"status":"ok"}"#.to_vec()).await,
            Give::Readiness => match (self.ingest.hold(), self.view.is_ready()) {
                (Some(hold), _) => Err(Problem::held(&hold)),
                (None, true) => json(headers, br#"{"status":"ready"}"#.to_vec()).await,
                (None, false) => Err(Problem::new(Code::CatchingUp, "the logs are being replayed")),
            },
            Give::Document(document) => fixed(headers, "application/json", document(), None).await,
            Give::Page => {
                let path = if route.path == "/" { "/".into() } else { format!("/ui/{parameter}") };
                let asset = ui::asset(&path);
                let asset = asset.ok_or_else(|| Problem::new(Code::NotFound, "the page has no such file"))?;
                fixed(headers, asset.content_type, asset.bytes, Some(&asset.etag)).await
            }
        }
    }

    fn upgrade(&self, route: &Route, request: Request) -> Result<Response, Problem> {
        let ingest = self.ingest.of(self.guard.client(&request.headers, request.peer));
        let upgrade = Upgrade::check(&request.headers, request.upgrade)?;
        let (limits, stop) = (self.limits.clone(), self.stop.clone());
        let (config, unfinished) = (ws::config(&limits), self.sessions.unfinished());
        Ok(match route.give {
            Give::Ingest => {
                self.ingest.check()?;
                upgrade.accept(config, unfinished, |socket| {
                    ws::ingest::IngestSession::new(socket, ingest, limits, stop).run()
                })
            }
            Give::Echo => upgrade.accept(ws::echo::config(&limits), &ws::echo::unfinished(), |socket| {
                ws::echo::run(socket, stop)
            }),
            _ => {
                let sessions = self.sessions.clone();
                upgrade.accept(
                    config,
                    unfinished,
                    |socket| async move { sessions.serve_session(socket).await },
                )
            }
        })
    }

    /// Waits a little until a long answer may be made.
    async fn room(&self, bytes: usize) -> Result<Held, Problem> {
        let detail = "too many long answers are being sent: try again in a moment";
        self.answers.take(bytes).await.ok_or_else(|| Problem::new(Code::Overloaded, detail))
    }
}

/// The decoded key of a city in a path.
fn city_key(segment: &str) -> Result<std::borrow::Cow<'_, str>, Problem> {
    let detail = "the city in the path is not percent-encoded UTF-8";
    text::decoded(segment).ok_or_else(|| Problem::new(Code::BadParameter, detail))
}

/// For labels: few, whatever clients send.
fn name(method: &Method) -> &'static str {
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

fn allowed(found: &[(&'static Route, &str)]) -> HeaderValue {
    let get = found.iter().any(|(route, _)| route.method == Method::GET);
    let post = found.iter().any(|(route, _)| route.method == Method::POST);
    HeaderValue::from_static(match (get, post) {
        (true, true) => "GET, HEAD, POST, OPTIONS",
        (true, false) => "GET, HEAD, OPTIONS",
        _ => "POST, OPTIONS",
    })
}

fn options(found: &[(&'static Route, &str)], preflight: bool) -> Response {
    let methods = allowed(found);
    let mut response = no_content(methods.clone());
    if preflight {
        security::preflight(&mut response, &methods);
    }
    response
}

fn no_content(methods: HeaderValue) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, methods);
    response
}

async fn json(headers: &HeaderMap, body: Vec<u8>) -> Result<Response, Problem> {
    coded(headers, "application/json", body).await
}

/// An answer that is made for this request.
async fn coded(headers: &HeaderMap, kind: &'static str, body: Vec<u8>) -> Result<Response, Problem> {
    let coding = coding(headers, body.len())?;
    let body = coding.encode(body).await.map_err(cannot_code)?;
    Ok(whole(kind, body, coding))
}

/// Bytes that are compiled in.
async fn fixed(
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
    if matches_tag(headers, &tag) {
        return Ok(not_modified(&tag));
    }
    let coding = coding(headers, body.len())?;
    let body = coding.encode_static(body).await.map_err(cannot_code)?;
    Ok(tagged(whole(kind, body, coding), &tag))
}

fn coding(headers: &HeaderMap, bytes: usize) -> Result<Coding, Problem> {
    Coding::negotiate(headers, bytes).ok_or_else(|| {
        let detail = "answers come as zstd, gzip or identity, and Accept-Encoding takes none of them";
        Problem::new(Code::NotAcceptable, detail)
    })
}

fn cannot_code(error: std::io::Error) -> Problem {
    Problem::new(Code::Overloaded, format!("the answer could not be compressed: {error}"))
}

fn whole(kind: &'static str, body: Bytes, coding: Coding) -> Response {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Some(coding) = coding.header() {
        headers.insert(CONTENT_ENCODING, coding);
    }
    response
}

fn tagged(mut response: Response, tag: &str) -> Response {
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// Keeps the room that the answer takes, now that it is known.
fn with(mut room: Held, mut response: Response) -> Response {
    let bytes = response.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    if let Some(bytes) = bytes {
        room.shrink(bytes);
    }
    response.extensions_mut().insert(Room { _bytes: Arc::new(room) });
    response
}

fn not_modified(tag: &str) -> Response {
    let mut response = tagged(Response::default(), tag);
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

/// Weakly, as `If-None-Match` is compared.
fn matches_tag(headers: &HeaderMap, tag: &str) -> bool {
    let opaque = |tag: &str| String::from(tag.trim().trim_start_matches("W/"));
    let values = headers.get_all(IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|given| given.trim() == "*" || opaque(given) == opaque(tag))
}
