//! The filters that every API is built from.

use std::future::ready;
use std::sync::Arc;

use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::context::ServerContext;
use super::problem::Problem;
use super::request::{ApiRequest, api_request};
use super::route::{Route, RouteAvailability};

/// The filter of an API: it answers every request for its path, and rejects all others, which are
/// left to the next filter of the table.
pub(super) trait ApiFilter:
    Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync + 'static
{
}

impl<F> ApiFilter for F where
    F: Filter<Extract = (Response,), Error = Rejection> + Clone + Send + Sync + 'static
{
}

/// Requests for the path of `route`.
///
/// The path is compared as a whole: `warp::path!` would accept a slash at the end too, and has no
/// name for metrics and documents. A route that is only for tests rejects all requests unless they
/// are wanted.
pub(super) fn requests_for(
    server: &ServerContext,
    route: &'static Route,
) -> impl Filter<Extract = (ApiRequest,), Error = Rejection> + Clone + Send + Sync + use<> {
    let is_served = server.echo || route.availability != RouteAvailability::TestOnly;
    // It panics if a URI has no path: `target::normalize_target` has given it one.
    warp::path::full()
        .and_then(move |path: FullPath| {
            let parameter = route.match_path(path.as_str()).filter(|_| is_served);
            ready(parameter.map(str::to_owned).ok_or_else(warp::reject::not_found))
        })
        .and(api_request())
        .map(|path_parameter, request| ApiRequest { path_parameter, ..request })
}

/// The filter of a route whose requests have no body.
pub(super) fn route_filter<H, A>(
    server: &Arc<ServerContext>,
    route: &'static Route,
    handler: H,
) -> impl ApiFilter + use<H, A>
where
    H: Fn(Arc<ServerContext>, ApiRequest) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Result<Response, Problem>> + Send + 'static,
{
    let server = server.clone();
    requests_for(&server, route).then(move |request| {
        let (server, handler) = (server.clone(), handler.clone());
        async move { server.respond(route, request, |request| handler(server.clone(), request)).await }
    })
}
