//! `POST /v1/readings`: readings as a body, and `GET /v1/ingest`: a WebSocket for readings.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use warp::Filter;
use warp::reply::Response;

use crate::serve::context::ServerContext;
use crate::serve::problem::Problem;
use crate::serve::request::ApiRequest;
use crate::serve::responses::json_response;
use crate::serve::route::{Route, RouteAvailability};
use crate::serve::route_filter::{ApiFilter, requests_for, route_filter};
use crate::serve::security::TokenScope;
use crate::serve::upgrade::WebSocketUpgrade;
use crate::serve::ws::{self, websocket_config};

pub(in crate::serve) static READINGS: Route =
    Route::post("/v1/readings", Some(TokenScope::Ingest), RouteAvailability::Always);
pub(in crate::serve) static INGEST_SOCKET: Route =
    Route::get("/v1/ingest", Some(TokenScope::Ingest), RouteAvailability::Always);

pub(in crate::serve) fn readings_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    let server = server.clone();
    requests_for(&server, &READINGS).and(warp::body::stream()).then(move |request, body| {
        let server = server.clone();
        async move { server.respond(&READINGS, request, |request| post_readings(&server, request, body)).await }
    })
}

pub(in crate::serve) fn ingest_socket_filter(server: &Arc<ServerContext>) -> impl ApiFilter + use<> {
    route_filter(server, &INGEST_SOCKET, open_ingest_socket)
}

async fn post_readings<B: Buf>(
    server: &ServerContext,
    request: ApiRequest,
    body: impl Stream<Item = Result<B, warp::Error>>,
) -> Result<Response, Problem> {
    let body = std::pin::pin!(body.map(|chunk| chunk.map(into_bytes)));
    let report = server.ingest_for(&request).ingest_body(&request.headers, body).await?;
    json_response(&request.headers, serde_json::to_vec(&report).unwrap_or_default()).await
}

fn into_bytes(mut chunk: impl Buf) -> Bytes {
    chunk.copy_to_bytes(chunk.remaining())
}

async fn open_ingest_socket(server: Arc<ServerContext>, request: ApiRequest) -> Result<Response, Problem> {
    let ingest = server.ingest_for(&request);
    let upgrade = WebSocketUpgrade::validate_handshake(&request.headers, request.upgrade)?;
    ingest.require_appender()?;
    let (limits, stop) = (server.limits.clone(), server.stop_signal.clone());
    let (config, unfinished) = (websocket_config(&limits), server.sessions.unfinished_quota());
    Ok(upgrade.accept_handshake(config, unfinished, |socket| {
        ws::ingest::IngestSession::new(socket, ingest, limits, stop).run_session()
    }))
}
