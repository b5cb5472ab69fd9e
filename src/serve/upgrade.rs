//! The server's side of the WebSocket handshake (RFC 6455, section 4.2).

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::upgrade::{OnUpgrade, Parts};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use warp::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use warp::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use warp::reply::Response;

use super::budget::ByteQuota;
use super::connection::{Connection, TimedConnection};
use super::problem::{Problem, ProblemCode};
use super::security::{SUBPROTOCOL, subprotocols};
use super::ws::metered::MeteredStream;
use crate::panics::{self, PanicScope};

/// A valid handshake.
pub(super) struct WebSocketUpgrade {
    accept: HeaderValue,
    subprotocol: bool,
    upgrade: OnUpgrade,
}

/// Whether the client wants an upgrade to WebSocket, even if its handshake is not valid.
pub(super) fn is_upgrade_requested(headers: &HeaderMap) -> bool {
    header_has_token(headers, UPGRADE, "websocket")
}

fn header_has_token(headers: &HeaderMap, header: HeaderName, token: &str) -> bool {
    let values = headers.get_all(header).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

impl WebSocketUpgrade {
    /// Checks a handshake.
    ///
    /// # Errors
    ///
    /// `upgrade_required` if it is none, `bad_request` if its key is malformed.
    pub(super) fn validate_handshake(
        headers: &HeaderMap,
        upgrade: Option<OnUpgrade>,
    ) -> Result<WebSocketUpgrade, Problem> {
        let required = |detail| {
            Problem::new(ProblemCode::UpgradeRequired, detail)
                .with_header(UPGRADE, HeaderValue::from_static("websocket"))
                .with_header(CONNECTION, HeaderValue::from_static("Upgrade"))
                .with_header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))
        };
        let Some(upgrade) = upgrade
            .filter(|_| is_upgrade_requested(headers) && header_has_token(headers, CONNECTION, "upgrade"))
        else {
            return Err(required(
                "open this path as a WebSocket: Connection: Upgrade and Upgrade: websocket",
            ));
        };
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(required("the WebSocket version must be 13"));
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
        if BASE64_STANDARD.decode(key).map_or(0, |key| key.len()) != 16 {
            return Err(Problem::new(
                ProblemCode::BadRequest,
                "Sec-WebSocket-Key must be 16 bytes in base64",
            ));
        }
        let accept = HeaderValue::try_from(derive_accept_key(key))
            .map_err(|_| Problem::new(ProblemCode::BadRequest, "Sec-WebSocket-Key cannot be answered"))?;
        let subprotocol = subprotocols(headers).any(|protocol| protocol == SUBPROTOCOL);
        Ok(WebSocketUpgrade { accept, subprotocol, upgrade })
    }

    /// Answers with status 101; `run` gets the socket once that has been sent.
    pub(super) fn accept_handshake<F, R>(
        self,
        config: WebSocketConfig,
        unfinished: &Arc<ByteQuota>,
        run: R,
    ) -> Response
    where
        F: Future<Output = ()> + Send,
        R: FnOnce(WebSocketStream<MeteredStream<Connection>>) -> F + Send + 'static,
    {
        let unfinished = unfinished.clone();
        // A panic in a session's loop ends the session with a close frame; any other ends it
        // without one.
        tokio::spawn(panics::catch_future_panic(PanicScope::Session, async move {
            // It fails if the client has disconnected or the server stops.
            let Ok(upgraded) = self.upgrade.await else { return };
            // The connection itself, without hyper's buffers around it and without the time limits
            // of HTTP.
            let Ok(Parts { io, read_buf, .. }) = upgraded.downcast::<TokioIo<TimedConnection<Connection>>>()
            else {
                return tracing::error!(
                    "an upgraded connection has an unexpected type, so that its session ends: this is a bug of \
                     swelter, please report it"
                );
            };
            let connection = io.into_inner().into_inner();
            let (read_bytes, role) = (read_buf.to_vec(), Role::Server);
            let connection = MeteredStream::new(connection, read_bytes.len(), &unfinished);
            run(WebSocketStream::from_partially_read(connection, read_bytes, role, Some(config)).await).await;
        }));
        let mut response = Response::default();
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        if self.subprotocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        }
        response
    }
}
