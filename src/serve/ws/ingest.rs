//! A session of the WebSocket ingest: messages are appended to the log concurrently, and
//! acknowledged in their order.

use std::pin::Pin;
use std::time::Instant;

use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::metered::MeteredStream;
use super::socket::{CloseCause, STOPPING, TimedSocket};
use crate::panics::panic_point;
use crate::serve::ingest::{self, IngestHandler};
use crate::serve::plan::ServeLimits;

/// Messages that may wait for the log; further ones are not read meanwhile.
const MAX_PENDING_MESSAGES: usize = 64;
/// Heartbeats without a message from the client, until the session ends.
const MAX_SILENT_HEARTBEATS: u32 = 3;

pub(in crate::serve) struct IngestSession<S> {
    ingest_handler: IngestHandler,
    limits: ServeLimits,
    socket: TimedSocket<S>,
    stop_signal: watch::Receiver<bool>,
    sequence: u64,
    answers: FuturesOrdered<Pin<Box<dyn Future<Output = String> + Send>>>,
    last_message_at: Instant,
}

enum IngestEvent {
    Received(Message),
    Answer(String),
    HeartbeatDue,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> IngestSession<S> {
    pub(in crate::serve) fn new(
        stream: WebSocketStream<MeteredStream<S>>,
        ingest: IngestHandler,
        limits: ServeLimits,
        stop: watch::Receiver<bool>,
    ) -> IngestSession<S> {
        let socket = TimedSocket::new(stream, limits.send_time, stop.clone());
        IngestSession {
            ingest_handler: ingest,
            limits,
            socket,
            stop_signal: stop,
            sequence: 0,
            answers: FuturesOrdered::new(),
            last_message_at: Instant::now(),
        }
    }

    /// Runs the session to its end.
    pub(in crate::serve) async fn run_session(mut self) {
        let cause = CloseCause::run_to_end(self.serve_client()).await;
        tracing::debug!(?cause, "a session of the WebSocket ingest ends");
        self.socket.close_socket(cause).await;
    }

    async fn serve_client(&mut self) -> Result<(), CloseCause> {
        let beat = tokio::time::sleep(self.limits.heartbeat);
        tokio::pin!(beat);
        loop {
            let event = tokio::select! {
                () = TimedSocket::<S>::wait_for_stop(&mut self.stop_signal) => return Err(STOPPING),
                read = self.socket.next_message(), if self.answers.len() < MAX_PENDING_MESSAGES => IngestEvent::Received(read?),
                Some(answer) = self.answers.next(), if !self.answers.is_empty() => IngestEvent::Answer(answer),
                () = &mut beat => IngestEvent::HeartbeatDue,
            };
            match event {
                IngestEvent::Received(message) => self.on_message(message).await?,
                IngestEvent::Answer(answer) => self.send_answers(answer).await?,
                IngestEvent::HeartbeatDue => {
                    self.send_heartbeat().await?;
                    beat.as_mut().reset(tokio::time::Instant::now() + self.limits.heartbeat);
                }
            }
        }
    }

    async fn on_message(&mut self, message: Message) -> Result<(), CloseCause> {
        panic_point("ingest_session");
        self.last_message_at = Instant::now();
        match message {
            Message::Text(text) => {
                let pending = self.ingest_handler.ingest_message(text.as_bytes()).await;
                self.answers.push_back(Box::pin(ingest::reply_json(self.sequence, pending)));
                self.sequence += 1;
                Ok(())
            }
            Message::Binary(_) => Err(CloseCause::Close(1003, "messages are text")),
            Message::Close(_) => Err(CloseCause::Disconnected),
            _ => Ok(()),
        }
    }

    /// Writes the answer and all further ones that are ready, then flushes the socket.
    async fn send_answers(&mut self, answer: String) -> Result<(), CloseCause> {
        let mut next = Some(answer);
        while let Some(answer) = next {
            self.socket.feed_message(Message::text(answer)).await?;
            next = self.answers.next().now_or_never().flatten();
        }
        self.socket.flush_socket().await
    }

    async fn send_heartbeat(&mut self) -> Result<(), CloseCause> {
        let silent = self.last_message_at.elapsed() >= self.limits.heartbeat * MAX_SILENT_HEARTBEATS;
        // While the messages of a client wait for the log, further ones are not read, so it may
        // seem silent.
        if silent && self.answers.len() < MAX_PENDING_MESSAGES {
            return Err(CloseCause::Close(4408, "nothing came from the client for too long"));
        }
        self.socket.feed_message(Message::Ping(Bytes::new())).await?;
        self.socket.flush_socket().await
    }
}
