//! `GET /metrics`, `GET /healthz` and `GET /readyz`: for monitoring and probes.

use std::sync::Arc;

use warp::Filter;
use warp::reply::Response;

use crate::serve::context::ServerContext;
use crate::serve::problem::{Problem, ProblemCode};
use crate::serve::request::ApiRequest;
use crate::serve::responses::{encoded_response, json_response};
use crate::serve::route::{Route, RouteAvailability};
use crate::serve::route_filter::{ApiFilter, route_filter};
use crate::serve::security::TokenScope;
use crate::serve::telemetry;

pub(in crate::serve) static METRICS: Route =
    Route::get("/metrics", Some(TokenScope::Read), RouteAvailability::Always);
pub(in crate::serve) static HEALTH: Route = Route::get("/healthz", None, RouteAvailability::Always);
pub(in crate::serve) static READINESS: Route = Route::get("/readyz", None, RouteAvailability::Always);

/// The media type of the text format of Prometheus.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(in crate::serve) fn health_filters(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &HEALTH, get_health)
        .or(route_filter(server, &READINESS, get_readiness))
        .unify()
        .or(route_filter(server, &METRICS, get_metrics))
        .unify()
}

async fn get_health(_: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    json_response(&request.headers, br#"{"status":"ok"}"#.to_vec()).await
}

async fn get_readiness(server: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    if let Some(hold) = server.ingest.current_hold() {
        return Err(Problem::on_hold(&hold));
    }
    if !server.view.is_ready() {
        return Err(Problem::new(ProblemCode::CatchingUp, "the logs are being replayed"));
    }
    json_response(&request.headers, br#"{"status":"ready"}"#.to_vec()).await
}

async fn get_metrics(server: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    let (open, limit) = (server.open_connections(), server.limits.connections);
    let text = telemetry::render_metrics(&server.view, open, limit);
    encoded_response(&request.headers, METRICS_CONTENT_TYPE, text.into_bytes()).await
}
