//! The table of routes: what is served, as one warp filter.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;

use warp::Filter;
use warp::reply::Response;

use super::api::{cities, city, documents, echo, health, history, ingest, page, status, subscribe, why};
use super::context::ServerContext;
use super::request::{ApiRequest, api_request};
#[cfg(test)]
use super::route::Route;
use super::route_filter::ApiFilter;
use super::target::PathlessTarget;

/// A filter that answers every request.
pub(super) trait TotalFilter:
    Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static
{
}

impl<F> TotalFilter for F where
    F: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static
{
}

/// The routes of [`routes_filter`], to compare with the documents.
#[cfg(test)]
pub(super) static ROUTES: [&Route; 16] = [
    &cities::CITIES,
    &city::CITY,
    &history::HISTORY,
    &why::WHY,
    &status::STATUS,
    &subscribe::SUBSCRIBE,
    &ingest::READINGS,
    &ingest::INGEST_SOCKET,
    &documents::OPENAPI,
    &documents::ASYNCAPI,
    &health::METRICS,
    &health::HEALTH,
    &health::READINESS,
    &page::PAGE,
    &page::PAGE_FILE,
    &echo::ECHO,
];

/// All routes. A request is tried at one filter after the other until one has its path. The last
/// filter answers all others, so that no request is rejected.
pub(super) fn routes_filter(server: &Arc<ServerContext>) -> impl TotalFilter + use<> {
    requests_without_path(server)
        .or(city::city_filter(server))
        .unify()
        .or(ingest::readings_filter(server))
        .unify()
        .or(cities::cities_filter(server))
        .unify()
        .or(history::history_filter(server))
        .unify()
        .or(why::why_filter(server))
        .unify()
        .or(status::status_filter(server))
        .unify()
        .or(subscribe::subscribe_filter(server))
        .unify()
        .or(ingest::ingest_socket_filter(server))
        .unify()
        .or(health::health_filters(server))
        .unify()
        .or(page::page_filters(server))
        .unify()
        .or(documents::document_filters(server))
        .unify()
        .or(echo::echo_filter(server))
        .unify()
        .or(requests_without_route(server))
        .unify()
}

/// Requests whose target is no path. It must come before all routes: `target::normalize_target` has
/// given them a path that they did not ask for.
fn requests_without_path(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    let server = server.clone();
    warp::ext::optional::<PathlessTarget>()
        .and_then(|target: Option<PathlessTarget>| ready(target.ok_or_else(warp::reject::not_found)))
        .and(api_request())
        .map(move |target, request: ApiRequest| server.respond_without_path(target, &request))
}

/// Requests for paths that no route has.
fn requests_without_route(server: &Arc<ServerContext>) -> impl TotalFilter + use<> {
    let server = server.clone();
    api_request().map(move |request: ApiRequest| server.respond_not_found(&request))
}
