//! `GET /` and `GET /ui/{file}`: the live page.

use std::sync::Arc;

use warp::Filter;
use warp::reply::Response;

use crate::serve::context::ServerContext;
use crate::serve::problem::{Problem, ProblemCode};
use crate::serve::request::ApiRequest;
use crate::serve::responses::static_response;
use crate::serve::route::Route;
use crate::serve::route_filter::{ApiFilter, route_filter};
use crate::serve::ui;

pub(in crate::serve) static PAGE: Route = Route::page("/");
pub(in crate::serve) static PAGE_FILE: Route = Route::page("/ui/{file}");

pub(in crate::serve) fn page_filters(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    let page = route_filter(server, &PAGE, |_, request| get_asset("/".into(), request));
    let files = route_filter(server, &PAGE_FILE, |_, request: ApiRequest| {
        get_asset(format!("/ui/{}", request.path_parameter), request)
    });
    page.or(files).unify()
}

async fn get_asset(path: String, request: ApiRequest) -> Result<Response, Problem> {
    let no_file = || Problem::new(ProblemCode::NotFound, "the page has no such file");
    let asset = ui::find_asset(&path).ok_or_else(no_file)?;
    static_response(&request.headers, asset.content_type, asset.bytes, Some(&asset.etag)).await
}
