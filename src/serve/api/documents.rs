//! `GET /v1/openapi.json` and `GET /v1/asyncapi.json`: the documents of the interface.

use std::sync::Arc;

use warp::Filter;

use crate::serve::context::ServerContext;
use crate::serve::documents;
use crate::serve::responses::static_response;
use crate::serve::route::{Route, RouteAvailability};
use crate::serve::route_filter::{ApiFilter, route_filter};

pub(in crate::serve) static OPENAPI: Route = Route::get("/v1/openapi.json", None, RouteAvailability::Always);
pub(in crate::serve) static ASYNCAPI: Route =
    Route::get("/v1/asyncapi.json", None, RouteAvailability::Always);

pub(in crate::serve) fn document_filters(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    document_filter(server, &OPENAPI, documents::openapi())
        .or(document_filter(server, &ASYNCAPI, documents::asyncapi()))
        .unify()
}

fn document_filter(
    server: &Arc<ServerContext>,
    route: &'static Route,
    document: &'static [u8],
) -> impl ApiFilter + use<> {
    route_filter(server, route, move |_, request| async move {
        static_response(&request.headers, "application/json", document, None).await
    })
}
