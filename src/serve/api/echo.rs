//! `GET /echo`: a WebSocket that sends messages back, for test suites of the WebSocket protocol.

use std::sync::Arc;

use warp::reply::Response;

use crate::serve::context::ServerContext;
use crate::serve::problem::Problem;
use crate::serve::request::ApiRequest;
use crate::serve::route::{Route, RouteAvailability};
use crate::serve::route_filter::{ApiFilter, route_filter};
use crate::serve::upgrade::WebSocketUpgrade;
use crate::serve::ws::echo;

pub(in crate::serve) static ECHO: Route = Route::get("/echo", None, RouteAvailability::TestOnly);

pub(in crate::serve) fn echo_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &ECHO, open_echo_socket)
}

async fn open_echo_socket(server: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    let upgrade = WebSocketUpgrade::validate_handshake(&request.headers, request.upgrade)?;
    let stop = server.stop_signal.clone();
    let (config, unfinished) = (echo::echo_config(&server.limits), echo::unfinished_quota());
    Ok(upgrade.accept_handshake(config, &unfinished, |socket| echo::run_echo(socket, stop)))
}
