//! A session of the WebSocket ingest: messages go to the log side by side, and are answered in their order.

use std::pin::Pin;
use std::time::Instant;

use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::metered::Metered;
use super::socket::{End, STOPPING, Socket};
use crate::panics::fail_point;
use crate::serve::Limits;
use crate::serve::ingest::{self, Ingest};

/// Messages that may wait for the log; further ones are not read until then.
const MOST_WAITING: usize = 64;
/// Heartbeats without anything from the client.
const SILENT_BEATS: u32 = 3;

pub(in crate::serve) struct IngestSession<S> {
    ingest: Ingest,
    limits: Limits,
    socket: Socket<S>,
    stop: watch::Receiver<bool>,
    seq: u64,
    answers: FuturesOrdered<Pin<Box<dyn Future<Output = String> + Send>>>,
    heard: Instant,
}

enum Event {
    Read(Message),
    Answer(String),
    Beat,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> IngestSession<S> {
    pub(in crate::serve) fn new(
        stream: WebSocketStream<Metered<S>>,
        ingest: Ingest,
        limits: Limits,
        stop: watch::Receiver<bool>,
    ) -> IngestSession<S> {
        let socket = Socket::new(stream, limits.send_time, stop.clone());
        let (answers, heard) = (FuturesOrdered::new(), Instant::now());
        IngestSession { ingest, limits, socket, stop, seq: 0, answers, heard }
    }

    /// Runs the session to its end.
    pub(in crate::serve) async fn run(mut self) {
        let end = End::of(self.serve()).await;
        tracing::debug!(?end, "a session of the WebSocket ingest ends");
        self.socket.end(end).await;
    }

    async fn serve(&mut self) -> Result<(), End> {
        let beat = tokio::time::sleep(self.limits.heartbeat);
        tokio::pin!(beat);
        loop {
            let event = tokio::select! {
                () = Socket::<S>::stopped(&mut self.stop) => return Err(STOPPING),
                read = self.socket.next(), if self.answers.len() < MOST_WAITING => Event::Read(read?),
                Some(answer) = self.answers.next(), if !self.answers.is_empty() => Event::Answer(answer),
                () = &mut beat => Event::Beat,
            };
            match event {
                Event::Read(message) => self.read(message).await?,
                Event::Answer(answer) => self.answer(answer).await?,
                Event::Beat => {
                    self.beat().await?;
                    beat.as_mut().reset(tokio::time::Instant::now() + self.limits.heartbeat);
                }
            }
        }
    }

    async fn read(&mut self, message: Message) -> Result<(), End> {
        fail_point("ingest_session");
        self.heard = Instant::now();
        match message {
            Message::Text(text) => {
                let pending = self.ingest.message(text.as_bytes()).await;
                self.answers.push_back(Box::pin(ingest::answer(self.seq, pending)));
                self.seq += 1;
                Ok(())
            }
            Message::Binary(_) => Err(End::Close(1003, "messages are text")),
            Message::Close(_) => Err(End::Gone),
            _ => Ok(()),
        }
    }

    /// Writes the answer, and those after it that are there already, before the socket is flushed.
    async fn answer(&mut self, answer: String) -> Result<(), End> {
        let mut next = Some(answer);
        while let Some(answer) = next {
            self.socket.feed(Message::text(answer)).await?;
            next = self.answers.next().now_or_never().flatten();
        }
        self.socket.flush().await
    }

    async fn beat(&mut self) -> Result<(), End> {
        let silent = self.heard.elapsed() >= self.limits.heartbeat * SILENT_BEATS;
        // A client that waits for the log is not read, and may seem silent.
        if silent && self.answers.len() < MOST_WAITING {
            return Err(End::Close(4408, "nothing came from the client for too long"));
        }
        self.socket.feed(Message::Ping(Bytes::new())).await?;
        self.socket.flush().await
    }
}
