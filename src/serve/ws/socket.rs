//! The socket of a session: its settings, time limits for writing, and its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::metered::MeteredStream;
use crate::panics::{self, CaughtPanic, PanicScope};
use crate::serve::budget::MemoryBudget;
use crate::serve::plan::ServeLimits;
use crate::serve::read_rate::ReadRateMeter;

/// Longer messages are written as fragments, so that a socket buffers no more than one.
pub(super) const FRAGMENT_BYTES: usize = 32 * 1024;
/// Time until a client has read a close frame and closed the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes still read from a client that has violated the protocol, so that the close frame reaches
/// it.
const MAX_CLOSE_DRAIN_BYTES: u64 = 1 << 20;

/// The socket settings of every WebSocket: small buffers, since there are many connections.
pub fn websocket_config(limits: &ServeLimits) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(4096)
        .max_message_size(Some(limits.message_bytes))
        .max_frame_size(Some(limits.message_bytes))
}

pub(super) struct TimedSocket<S> {
    pub(super) stream: WebSocketStream<MeteredStream<S>>,
    send_time: Duration,
    stop_signal: watch::Receiver<bool>,
    /// Whether the last fragment of a message is still to be written.
    in_fragmented_message: bool,
    read_rate: ReadRateMeter,
    memory_budget: Option<Arc<MemoryBudget>>,
}

/// Why a session ends.
#[derive(Debug)]
pub(super) enum CloseCause {
    /// The client has closed the connection or lost it.
    Disconnected,
    /// The client has violated the protocol, so that its bytes can no longer be read: code and
    /// reason of the close frame.
    ProtocolViolation(u16, &'static str),
    /// Code and reason of the close frame.
    Close(u16, &'static str),
}

pub(super) const STOPPING: CloseCause = CloseCause::Close(1001, "the service is stopping, reconnect");
const SESSION_BUG: CloseCause = CloseCause::Close(1011, "the session met a bug in the service, reconnect");
const TOO_MUCH_UNFINISHED: CloseCause =
    CloseCause::ProtocolViolation(1013, "too much is held for unfinished messages: try again later");
pub(super) const TOO_SLOW: CloseCause = CloseCause::Close(4413, "the client reads too slowly");

impl CloseCause {
    /// Runs the loop of a session to its end, a panic included.
    pub(super) async fn run_to_end(session: impl Future<Output = Result<(), CloseCause>>) -> CloseCause {
        match panics::catch_future_panic(PanicScope::Session, session).await {
            Ok(Err(cause)) => cause,
            Ok(Ok(())) => STOPPING,
            Err(CaughtPanic) => SESSION_BUG,
        }
    }

    pub(super) fn from_read_error(error: &Error) -> CloseCause {
        match error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => {
                CloseCause::ProtocolViolation(1009, "the message is too long")
            }
            Error::Utf8(_) => CloseCause::ProtocolViolation(1007, "text must be UTF-8"),
            Error::Protocol(_) | Error::Capacity(_) => {
                CloseCause::ProtocolViolation(1002, "protocol violation")
            }
            _ => CloseCause::Disconnected,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TimedSocket<S> {
    pub(super) fn new(
        stream: WebSocketStream<MeteredStream<S>>,
        send_time: Duration,
        stop: watch::Receiver<bool>,
    ) -> TimedSocket<S> {
        TimedSocket {
            stream,
            send_time,
            stop_signal: stop,
            in_fragmented_message: false,
            read_rate: ReadRateMeter::new(send_time),
            memory_budget: None,
        }
    }

    /// Messages that are written take memory of a budget that others may wait for.
    pub(super) fn with_budget(self, budget: Arc<MemoryBudget>) -> TimedSocket<S> {
        TimedSocket { memory_budget: Some(budget), ..self }
    }

    pub(super) fn stop_signal(&mut self) -> &mut watch::Receiver<bool> {
        &mut self.stop_signal
    }

    /// Waits for [`STOPPING`].
    pub(super) async fn wait_for_stop(stop: &mut watch::Receiver<bool>) {
        wait_for_stop(stop).await;
    }

    pub(super) async fn next_message(&mut self) -> Result<Message, CloseCause> {
        tokio::select! {
            biased;
            () = Self::wait_for_stop(&mut self.stop_signal) => Err(STOPPING),
            read = self.stream.next() => match read {
                Some(Ok(message)) => {
                    self.stream.get_mut().end_message();
                    Ok(message)
                }
                Some(Err(_)) if self.stream.get_ref().is_over_quota() => Err(TOO_MUCH_UNFINISHED),
                Some(Err(error)) => Err(CloseCause::from_read_error(&error)),
                None => Err(CloseCause::Disconnected),
            },
        }
    }

    /// Writes a message to the socket, which may buffer it until [`TimedSocket::flush_socket`].
    pub(super) async fn feed_message(&mut self, message: Message) -> Result<(), CloseCause> {
        let Message::Text(text) = &message else { return self.feed_unfragmented(message).await };
        if text.len() <= FRAGMENT_BYTES {
            return self.feed_unfragmented(message).await;
        }
        let mut rest: Bytes = text.clone().into();
        while rest.len() > FRAGMENT_BYTES {
            let fragment = rest.split_to(FRAGMENT_BYTES);
            self.write_fragment(fragment, false).await?;
        }
        self.write_fragment(rest, true).await
    }

    /// Writes a part of a text message.
    pub(super) async fn write_fragment(&mut self, part: Bytes, is_last: bool) -> Result<(), CloseCause> {
        let code = if self.in_fragmented_message { Data::Continue } else { Data::Text };
        self.in_fragmented_message = !is_last;
        self.feed_unfragmented(Message::Frame(Frame::message(part, OpCode::Data(code), is_last))).await?;
        self.flush_socket().await
    }

    async fn feed_unfragmented(&mut self, message: Message) -> Result<(), CloseCause> {
        let bytes = message.len();
        let writing = self.stream.feed(message);
        let limits = TimedWrite {
            send_time: self.send_time,
            read_rate: &mut self.read_rate,
            memory_budget: &self.memory_budget,
        };
        limits.write_in_time(writing, bytes, &mut self.stop_signal).await
    }

    pub(super) async fn flush_socket(&mut self) -> Result<(), CloseCause> {
        let writing = self.stream.flush();
        let limits = TimedWrite {
            send_time: self.send_time,
            read_rate: &mut self.read_rate,
            memory_budget: &self.memory_budget,
        };
        limits.write_in_time(writing, 0, &mut self.stop_signal).await
    }

    /// Sends the client a close frame, and waits a little until it has closed the connection.
    pub(super) async fn close_socket(mut self, cause: CloseCause) {
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, async {
            if let CloseCause::Close(code, reason) | CloseCause::ProtocolViolation(code, reason) = &cause {
                let reason = (*reason).into();
                let frame = CloseFrame { code: CloseCode::from(*code), reason };
                self.stream.close(Some(frame)).await.ok()?;
            }
            if let CloseCause::ProtocolViolation(..) = cause {
                // Shut down writing, so that a client that waits for the end of the connection sees
                // it.
                self.stream.get_mut().shutdown().await.ok()?;
                let rest = &mut self.stream.get_mut().take(MAX_CLOSE_DRAIN_BYTES);
                tokio::io::copy(rest, &mut tokio::io::sink()).await.ok()?;
            }
            while let Some(Ok(_)) = self.stream.next().await {}
            Some(())
        })
        .await;
    }
}

async fn wait_for_stop(stop: &mut watch::Receiver<bool>) {
    // The sender lives as long as the session.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The limits of one write.
struct TimedWrite<'a> {
    send_time: Duration,
    read_rate: &'a mut ReadRateMeter,
    memory_budget: &'a Option<Arc<MemoryBudget>>,
}

impl TimedWrite<'_> {
    async fn write_in_time(
        self,
        writing: impl Future<Output = Result<(), Error>>,
        bytes: usize,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), CloseCause> {
        tokio::pin!(writing);
        let began = Instant::now();
        let mut checked_at = began;
        loop {
            let written = tokio::select! {
                biased;
                written = &mut writing => Some(written),
                () = wait_for_stop(stop) => return Err(STOPPING),
                () = tokio::time::sleep(self.read_rate.next_check_after()) => None,
            };
            let now = Instant::now();
            let waited = now - std::mem::replace(&mut checked_at, now);
            let read_bytes = if written.is_some() { bytes } else { 0 };
            let is_contended = self.memory_budget.as_ref().is_some_and(|budget| budget.has_waiters());
            let is_too_slow = self.read_rate.record_is_too_slow(waited, read_bytes, is_contended);
            match written {
                Some(Err(_)) => return Err(CloseCause::Disconnected),
                _ if is_too_slow || now - began >= self.send_time => return Err(TOO_SLOW),
                Some(Ok(())) => return Ok(()),
                None => {}
            }
        }
    }
}
