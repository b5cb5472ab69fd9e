//! Writing to a client within its time limit, and ending.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::metered::Metered;
use crate::panics::{self, Panicked, Scope};
use crate::serve::budget::Budget;
use crate::serve::least_rate::Pace;

/// Longer messages are written as fragments, so that a socket holds no more of them.
pub(super) const FRAGMENT_BYTES: usize = 32 * 1024;
/// Until a client has answered a close, or has taken it.
const END_TIME: Duration = Duration::from_secs(1);
/// What is still read from a client that has violated the protocol, so that the close frame reaches it.
const END_BYTES: u64 = 1 << 20;

pub(super) struct Socket<S> {
    pub(super) stream: WebSocketStream<Metered<S>>,
    send_time: Duration,
    stop: watch::Receiver<bool>,
    /// Inside a message of fragments.
    begun: bool,
    pace: Pace,
    budget: Option<Arc<Budget>>,
}

/// Why a session ends.
#[derive(Debug)]
pub(super) enum End {
    /// The client has closed, or is gone.
    Gone,
    /// The client has violated the protocol: what it sends cannot be read any more.
    Violation(u16, &'static str),
    Close(u16, &'static str),
}

pub(super) const STOPPING: End = End::Close(1001, "the service is stopping, reconnect");
const BUG: End = End::Close(1011, "the session met a bug in the service, reconnect");
const TOO_MUCH: End = End::Violation(1013, "too much is held for unfinished messages: try again later");
pub(super) const TOO_SLOW: End = End::Close(4413, "the client reads too slowly");

impl End {
    /// Runs the loop of a session to its end, a panic included.
    pub(super) async fn of(session: impl Future<Output = Result<(), End>>) -> End {
        match panics::catch_future(Scope::Session, session).await {
            Ok(Err(end)) => end,
            Ok(Ok(())) => STOPPING,
            Err(Panicked) => BUG,
        }
    }

    pub(super) fn of_read(error: &Error) -> End {
        match error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => {
                End::Violation(1009, "the message is too long")
            }
            Error::Utf8(_) => End::Violation(1007, "text must be UTF-8"),
            Error::Protocol(_) | Error::Capacity(_) => End::Violation(1002, "protocol violation"),
            _ => End::Gone,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(super) fn new(
        stream: WebSocketStream<Metered<S>>,
        send_time: Duration,
        stop: watch::Receiver<bool>,
    ) -> Socket<S> {
        Socket { stream, send_time, stop, begun: false, pace: Pace::new(send_time), budget: None }
    }

    /// What is written is held in a budget that others may wait for.
    pub(super) fn sharing(self, budget: Arc<Budget>) -> Socket<S> {
        Socket { budget: Some(budget), ..self }
    }

    pub(super) fn stop(&mut self) -> &mut watch::Receiver<bool> {
        &mut self.stop
    }

    /// Waits for [`STOPPING`].
    pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
        stopped(stop).await;
    }

    pub(super) async fn next(&mut self) -> Result<Message, End> {
        tokio::select! {
            biased;
            () = Self::stopped(&mut self.stop) => Err(STOPPING),
            read = self.stream.next() => match read {
                Some(Ok(message)) => {
                    self.stream.get_mut().end_message();
                    Ok(message)
                }
                Some(Err(_)) if self.stream.get_ref().is_refused() => Err(TOO_MUCH),
                Some(Err(error)) => Err(End::of_read(&error)),
                None => Err(End::Gone),
            },
        }
    }

    /// Hands a message to the socket, which may hold it until [`Socket::flush`].
    pub(super) async fn feed(&mut self, message: Message) -> Result<(), End> {
        let Message::Text(text) = &message else { return self.feed_whole(message).await };
        if text.len() <= FRAGMENT_BYTES {
            return self.feed_whole(message).await;
        }
        let mut rest: Bytes = text.clone().into();
        while rest.len() > FRAGMENT_BYTES {
            let fragment = rest.split_to(FRAGMENT_BYTES);
            self.fragment(fragment, false).await?;
        }
        self.fragment(rest, true).await
    }

    /// Writes a part of a text message.
    pub(super) async fn fragment(&mut self, part: Bytes, last: bool) -> Result<(), End> {
        let code = if self.begun { Data::Continue } else { Data::Text };
        self.begun = !last;
        self.feed_whole(Message::Frame(Frame::message(part, OpCode::Data(code), last))).await?;
        self.flush().await
    }

    async fn feed_whole(&mut self, message: Message) -> Result<(), End> {
        let bytes = message.len();
        let writing = self.stream.feed(message);
        let limits = Writing { send_time: self.send_time, pace: &mut self.pace, budget: &self.budget };
        limits.write(writing, bytes, &mut self.stop).await
    }

    pub(super) async fn flush(&mut self) -> Result<(), End> {
        let writing = self.stream.flush();
        let limits = Writing { send_time: self.send_time, pace: &mut self.pace, budget: &self.budget };
        limits.write(writing, 0, &mut self.stop).await
    }

    /// Tells the client why, and waits a little until it has heard.
    pub(super) async fn end(mut self, end: End) {
        let _ = tokio::time::timeout(END_TIME, async {
            if let End::Close(code, reason) | End::Violation(code, reason) = &end {
                let reason = (*reason).into();
                let frame = CloseFrame { code: CloseCode::from(*code), reason };
                self.stream.close(Some(frame)).await.ok()?;
            }
            if let End::Violation(..) = end {
                // Nothing more is said, so that a client that waits for the end of the connection need not wait for ours.
                self.stream.get_mut().shutdown().await.ok()?;
                let rest = &mut self.stream.get_mut().take(END_BYTES);
                tokio::io::copy(rest, &mut tokio::io::sink()).await.ok()?;
            }
            while let Some(Ok(_)) = self.stream.next().await {}
            Some(())
        })
        .await;
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender lives as long as the session.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// How long a client may take to take what is written.
struct Writing<'a> {
    send_time: Duration,
    pace: &'a mut Pace,
    budget: &'a Option<Arc<Budget>>,
}

impl Writing<'_> {
    async fn write(
        self,
        writing: impl Future<Output = Result<(), Error>>,
        bytes: usize,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), End> {
        tokio::pin!(writing);
        let began = Instant::now();
        let mut looked = began;
        loop {
            let written = tokio::select! {
                biased;
                written = &mut writing => Some(written),
                () = stopped(stop) => return Err(STOPPING),
                () = tokio::time::sleep(self.pace.next_look()) => None,
            };
            let now = Instant::now();
            let waited = now - std::mem::replace(&mut looked, now);
            let taken = if written.is_some() { bytes } else { 0 };
            let short = self.budget.as_ref().is_some_and(|budget| budget.is_short());
            let too_slow = self.pace.is_too_slow(waited, taken, short);
            match written {
                Some(Err(_)) => return Err(End::Gone),
                _ if too_slow || now - began >= self.send_time => return Err(TOO_SLOW),
                Some(Ok(())) => return Ok(()),
                None => {}
            }
        }
    }
}
