//! A session that says what it hears, for test suites of the WebSocket protocol.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::metered::{Metered, unfinished_bytes};
use super::socket::{End, Socket};
use crate::serve::Limits;
use crate::serve::budget::Shares;

/// Test suites send messages up to 16 MiB.
const MESSAGE_BYTES: usize = 32 << 20;
const SEND_TIME: Duration = Duration::from_secs(10);

/// As of the other sessions, but for the length of messages.
pub(in crate::serve) fn config(limits: &Limits) -> WebSocketConfig {
    super::config(limits).max_message_size(Some(MESSAGE_BYTES)).max_frame_size(Some(MESSAGE_BYTES))
}

/// What they may have begun: not what others share.
pub(in crate::serve) fn unfinished() -> Arc<Shares> {
    Shares::new(unfinished_bytes(MESSAGE_BYTES))
}

pub(in crate::serve) async fn run<S: AsyncRead + AsyncWrite + Unpin + Send>(
    stream: WebSocketStream<Metered<S>>,
    stop: watch::Receiver<bool>,
) {
    let mut socket = Socket::new(stream, SEND_TIME, stop);
    let end = End::of(async {
        loop {
            match socket.next().await? {
                message @ (Message::Text(_) | Message::Binary(_)) => socket.echo(message).await?,
                Message::Close(_) => return Err(End::Gone),
                _ => {}
            }
        }
    });
    let end = end.await;
    socket.end(end).await;
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    async fn echo(&mut self, message: Message) -> Result<(), End> {
        self.feed(message).await?;
        self.flush().await
    }
}
