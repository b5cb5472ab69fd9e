//! The WebSocket protocol of `docs/protocol.md`, from the server's side.

pub(in crate::serve) mod echo;
pub(in crate::serve) mod ingest;
pub mod metered;
pub mod names;
mod outbox;
mod request;
mod routes;
mod rows;
mod selection;
mod session;
mod socket;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use metrics::{Counter, Gauge};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use self::metered::Metered;
use self::outbox::Outbox;
use self::routes::Routes;
use self::selection::Tokens;
use self::session::Session;
use self::socket::Socket;
use super::Limits;
use super::budget::Shares;
use super::view::{Applied, View};
use crate::panics::locks::{SharedGuard, SharedMutex};

/// The socket settings of every WebSocket here: small buffers, since there are many connections.
pub fn config(limits: &Limits) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(4096)
        .max_message_size(Some(limits.message_bytes))
        .max_frame_size(Some(limits.message_bytes))
}

/// How long [`Sessions::close_all`] takes at most.
pub const CLOSE_TIME: Duration = Duration::from_secs(3);

/// All sessions of subscribers. Clones are the same.
#[derive(Clone)]
pub struct Sessions(Arc<Shared>);

/// What sessions and the publisher share.
struct Shared {
    view: Arc<View>,
    limits: Limits,
    tokens: Tokens,
    routes: SharedMutex<Routes>,
    /// Messages up to this epoch are in the outboxes.
    routed: AtomicU64,
    stop: watch::Sender<bool>,
    sessions: watch::Sender<usize>,
    subscriptions: AtomicUsize,
    /// Bytes that wait in outboxes, of messages that clients have not ended, and of names that subscriptions list.
    outboxes: Arc<Shares>,
    unfinished: Arc<Shares>,
    names: Arc<Shares>,
    meters: Meters,
}

/// Bytes that wait in all outboxes.
pub const OUTBOXES_BYTES: usize = 512 << 20;

struct Meters {
    sessions: Gauge,
    subscriptions: Gauge,
    messages: Counter,
    rows: Counter,
    bytes: Counter,
    conflated: Counter,
}

impl Shared {
    fn routes(&self) -> SharedGuard<MutexGuard<'_, Routes>> {
        self.routes.lock()
    }
}

impl Sessions {
    /// The recorder of metrics must be installed before.
    pub fn new(view: Arc<View>, limits: &Limits) -> Sessions {
        let tokens = Tokens::new(&view.facts().generation);
        Sessions(Arc::new(Shared {
            view,
            limits: limits.clone(),
            tokens,
            routes: SharedMutex::new(Routes::new(tokens)),
            routed: AtomicU64::new(0),
            stop: watch::Sender::new(false),
            sessions: watch::Sender::new(0),
            subscriptions: AtomicUsize::new(0),
            outboxes: Shares::new(OUTBOXES_BYTES),
            unfinished: Shares::new(metered::unfinished_bytes(limits.message_bytes)),
            names: Shares::new(names::all_names_bytes(limits)),
            meters: Meters::new(),
        }))
    }

    /// Runs one session to its end: the client's, a violation of the protocol or of a limit, or [`Sessions::close_all`].
    pub async fn serve_session<S: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        stream: WebSocketStream<Metered<S>>,
    ) {
        let outbox = Arc::new(Outbox::new(self.0.limits.backlog_bytes, self.0.outboxes.share()));
        let socket = Socket::new(stream, self.0.limits.send_time, self.0.stop.subscribe());
        let socket = socket.sharing(self.0.view.room().clone());
        Session::new(self.0.clone(), outbox, socket).run().await;
    }

    /// Ends all sessions with 1001, and those that still come. Returns when they have ended, or after [`CLOSE_TIME`].
    pub async fn close_all(&self) {
        self.0.stop.send_replace(true);
        let mut sessions = self.0.sessions.subscribe();
        // Those that take longer are cut off with the runtime.
        let _ = tokio::time::timeout(CLOSE_TIME, sessions.wait_for(|open| *open == 0)).await;
    }

    /// What WebSockets hold of messages that are not ended.
    pub(super) fn unfinished(&self) -> &Arc<Shares> {
        &self.0.unfinished
    }

    /// Open sessions.
    pub fn open(&self) -> usize {
        *self.0.sessions.borrow()
    }

    /// Subscriptions of all sessions.
    pub fn subscriptions(&self) -> usize {
        self.0.subscriptions.load(Ordering::Relaxed)
    }

    /// Queues the messages of an update that the view has taken in.
    pub(super) fn route(&self, applied: &Applied) {
        let conflated = self.0.routes().route(applied);
        self.0.routed.store(applied.as_of, Ordering::Release);
        if conflated > 0 {
            self.0.meters.conflated.increment(conflated);
        }
    }
}

impl Meters {
    fn new() -> Meters {
        Meters {
            sessions: metrics::gauge!("swelter_subscriber_sessions"),
            subscriptions: metrics::gauge!("swelter_subscriptions"),
            messages: metrics::counter!("swelter_sent_messages_total"),
            rows: metrics::counter!("swelter_sent_rows_total"),
            bytes: metrics::counter!("swelter_sent_bytes_total"),
            conflated: metrics::counter!("swelter_conflated_rows_total"),
        }
    }
}
