//! What requests are answered from, and the checks that come before every API: host, origin,
//! method, token, readiness.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use warp::http::header::{ALLOW, CONNECTION};
use warp::http::{HeaderValue, Method};
use warp::reply::Response;

use super::budget::{MemoryBudget, Permit};
use super::ingest::IngestHandler;
use super::plan::ServeLimits;
use super::problem::{Problem, ProblemCode};
use super::request::{self, ApiRequest};
use super::responses::no_content_response;
use super::route::{Route, RouteAvailability};
use super::security::{self, AccessGuard, RequestOrigin};
use super::target::PathlessTarget;
use super::telemetry;
use super::view::View;
use super::ws::SubscriberSessions;
use crate::model::history_store::HistoryStore;
use crate::panics::panic_point;

/// The `route` label of requests that are for no route.
const NO_ROUTE_LABEL: &str = "none";

/// What requests are answered from.
pub(super) struct ServerContext {
    pub(super) view: Arc<View>,
    pub(super) sessions: SubscriberSessions,
    pub(super) ingest: IngestHandler,
    pub(super) access_guard: AccessGuard,
    pub(super) limits: ServeLimits,
    /// Whether the test-only WebSocket is served.
    pub(super) echo: bool,
    /// One for each connection that may still be opened.
    pub(super) connection_permits: Arc<Semaphore>,
    /// Memory of long responses.
    pub(super) response_budget: Arc<MemoryBudget>,
    /// Has the rows that the dataflow no longer holds.
    pub(super) history_store: Option<Arc<dyn HistoryStore>>,
    pub(super) stop_signal: watch::Receiver<bool>,
}

/// A request that is being answered, as far as its response depends on it.
struct HttpExchange {
    route_label: &'static str,
    method_label: &'static str,
    is_page: bool,
    origin: RequestOrigin,
    started_at: Instant,
}

impl HttpExchange {
    fn begin(server: &ServerContext, route: Option<&'static Route>, request: &ApiRequest) -> HttpExchange {
        let started_at = Instant::now();
        panic_point("request");
        HttpExchange {
            route_label: route.map_or(NO_ROUTE_LABEL, |route| route.path),
            method_label: request.method_label(),
            is_page: route.is_some_and(|route| route.is_page),
            origin: server.access_guard.classify_origin(&request.headers),
            started_at,
        }
    }

    /// Adds the headers of every response, and counts the request.
    fn finish(self, answer: Result<Response, Problem>) -> Response {
        let mut response = answer.unwrap_or_else(Problem::into_response);
        security::set_security_headers(&mut response, self.is_page);
        security::allow_origin(&mut response, self.origin);
        let status = response.status().as_u16();
        telemetry::record_request(self.route_label, self.method_label, status, self.started_at.elapsed());
        response
    }
}

impl ServerContext {
    /// Connections that are open.
    pub(super) fn open_connections(&self) -> usize {
        self.limits.connections.saturating_sub(self.connection_permits.available_permits())
    }

    /// Answers a request for the path of `route`: with what `handler` makes, if the request passes
    /// all checks.
    pub(super) async fn respond<A>(
        &self,
        route: &'static Route,
        mut request: ApiRequest,
        handler: impl FnOnce(ApiRequest) -> A,
    ) -> Response
    where
        A: Future<Output = Result<Response, Problem>>,
    {
        let exchange = HttpExchange::begin(self, Some(route), &request);
        let answer = match self.check_request(route, &request, &exchange.origin) {
            Ok(None) => {
                if request.method == Method::HEAD {
                    // A handshake is a `GET`.
                    request.upgrade = None;
                }
                handler(request).await
            }
            Ok(Some(response)) => Ok(response),
            Err(problem) => Err(problem),
        };
        exchange.finish(answer)
    }

    /// Answers a request whose target is no path.
    pub(super) fn respond_without_path(&self, target: PathlessTarget, request: &ApiRequest) -> Response {
        let exchange = HttpExchange::begin(self, None, request);
        let answer = match target {
            PathlessTarget::Refused(why) => {
                // A client that frames a request like this may frame the next one badly too.
                let problem = Problem::new(ProblemCode::BadRequest, why);
                Err(problem.with_header(CONNECTION, HeaderValue::from_static("close")))
            }
            PathlessTarget::Server => {
                let methods = HeaderValue::from_static("GET, HEAD, POST, OPTIONS");
                self.access_guard.check_host(&request.headers).map(|()| no_content_response(methods))
            }
        };
        exchange.finish(answer)
    }

    /// Answers a request for a path that has no route.
    pub(super) fn respond_not_found(&self, request: &ApiRequest) -> Response {
        let exchange = HttpExchange::begin(self, None, request);
        let not_found =
            || Problem::new(ProblemCode::NotFound, "see /v1/openapi.json for the paths that are served");
        exchange.finish(self.access_guard.check_host(&request.headers).and_then(|()| Err(not_found())))
    }

    /// The response to a request whose handling has panicked.
    pub(super) fn internal_error(method: &Method, duration: Duration) -> Response {
        let detail = "the request met a bug in swelter, which its log describes: please report it";
        let mut response = Problem::new(ProblemCode::InternalError, detail).into_response();
        security::set_security_headers(&mut response, false);
        let (method, status) = (request::method_label(method), response.status().as_u16());
        telemetry::record_request(NO_ROUTE_LABEL, method, status, duration);
        response
    }

    /// What comes before the API: the response to `OPTIONS`, or why the request is refused.
    fn check_request(
        &self,
        route: &Route,
        request: &ApiRequest,
        origin: &RequestOrigin,
    ) -> Result<Option<Response>, Problem> {
        self.access_guard.check_host(&request.headers)?;
        let is_preflight = request.is_preflight();
        if *origin == RequestOrigin::NotAllowed && (request.is_unsafe() || is_preflight) {
            let detail = "web pages of this origin may not do this: add it to the allowed origins";
            return Err(Problem::new(ProblemCode::ForeignOrigin, detail));
        }
        if request.method == Method::OPTIONS {
            return Ok(Some(options_response(route, is_preflight)));
        }
        if !route.accepts(&request.method) {
            let detail = format!("{} is not for this path: see Allow", request.method_label());
            let problem = Problem::new(ProblemCode::MethodNotAllowed, detail);
            return Err(problem.with_header(ALLOW, route.allowed_methods()));
        }
        if let Some(scope) = route.scope {
            self.access_guard.check_token(&request.headers, scope)?;
        }
        if route.availability == RouteAvailability::Ready && !self.view.is_ready() {
            let detail = "the logs are being replayed: try again in a moment";
            return Err(Problem::new(ProblemCode::CatchingUp, detail));
        }
        Ok(None)
    }

    /// Waits a little until a long response of at most `bytes` may be made.
    pub(super) async fn acquire_response_permit(&self, bytes: usize) -> Result<Permit, Problem> {
        let detail = "too many long answers are being sent: try again in a moment";
        self.response_budget.acquire(bytes).await.ok_or_else(|| Problem::new(ProblemCode::Overloaded, detail))
    }

    /// The ingest handler for the client that sends a request.
    pub(super) fn ingest_for(&self, request: &ApiRequest) -> IngestHandler {
        self.ingest.for_client(self.access_guard.client_id(&request.headers, request.peer_address))
    }
}

fn options_response(route: &Route, is_preflight: bool) -> Response {
    let methods = route.allowed_methods();
    let mut response = no_content_response(methods.clone());
    if is_preflight {
        security::set_preflight_headers(&mut response, &methods);
    }
    response
}
