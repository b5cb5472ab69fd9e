//! A session that sends messages back, for test suites of the WebSocket protocol.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::metered::{MeteredStream, unfinished_bytes};
use super::socket::{CloseCause, TimedSocket, websocket_config};
use crate::serve::budget::ByteQuota;
use crate::serve::plan::ServeLimits;

/// Test suites send messages up to 16 MiB.
const MAX_MESSAGE_BYTES: usize = 32 << 20;
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The socket settings of the other sessions, but for the length of messages.
pub(in crate::serve) fn echo_config(limits: &ServeLimits) -> WebSocketConfig {
    websocket_config(limits).max_message_size(Some(MAX_MESSAGE_BYTES)).max_frame_size(Some(MAX_MESSAGE_BYTES))
}

/// Bytes of unfinished messages, apart from those of other sessions.
pub(in crate::serve) fn unfinished_quota() -> Arc<ByteQuota> {
    ByteQuota::new(unfinished_bytes(MAX_MESSAGE_BYTES))
}

pub(in crate::serve) async fn run_echo<S: AsyncRead + AsyncWrite + Unpin + Send>(
    stream: WebSocketStream<MeteredStream<S>>,
    stop: watch::Receiver<bool>,
) {
    let mut socket = TimedSocket::new(stream, SEND_TIMEOUT, stop);
    let session = CloseCause::run_to_end(async {
        loop {
            match socket.next_message().await? {
                message @ (Message::Text(_) | Message::Binary(_)) => socket.echo_message(message).await?,
                Message::Close(_) => return Err(CloseCause::Disconnected),
                _ => {}
            }
        }
    });
    let cause = session.await;
    socket.close_socket(cause).await;
}

impl<S: AsyncRead + AsyncWrite + Unpin> TimedSocket<S> {
    async fn echo_message(&mut self, message: Message) -> Result<(), CloseCause> {
        self.feed_message(message).await?;
        self.flush_socket().await
    }
}
