//! `GET /v1/subscribe`: a WebSocket for subscriptions.

use std::sync::Arc;

use warp::reply::Response;

use crate::serve::context::ServerContext;
use crate::serve::problem::Problem;
use crate::serve::request::ApiRequest;
use crate::serve::route::{Route, RouteAvailability};
use crate::serve::route_filter::{ApiFilter, route_filter};
use crate::serve::security::TokenScope;
use crate::serve::upgrade::WebSocketUpgrade;
use crate::serve::ws::websocket_config;

pub(in crate::serve) static SUBSCRIBE: Route =
    Route::get("/v1/subscribe", Some(TokenScope::Read), RouteAvailability::Ready);

pub(in crate::serve) fn subscribe_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &SUBSCRIBE, open_subscriber_socket)
}

async fn open_subscriber_socket(
    server: Arc<ServerContext>,
    request: ApiRequest,
) -> Result<Response, Problem> {
    let upgrade = WebSocketUpgrade::validate_handshake(&request.headers, request.upgrade)?;
    let sessions = server.sessions.clone();
    let (config, unfinished) = (websocket_config(&server.limits), server.sessions.unfinished_quota());
    Ok(upgrade.accept_handshake(config, unfinished, |socket| async move {
        sessions.serve_session(socket).await;
    }))
}
