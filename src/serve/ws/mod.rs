//! The WebSocket protocol of `docs/protocol.md`, from the server's side.

pub(in crate::serve) mod echo;
pub(in crate::serve) mod ingest;
pub mod metered;
pub mod name_limits;
mod outbox;
mod request;
mod router;
mod row_messages;
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

use self::metered::MeteredStream;
use self::outbox::Outbox;
use self::router::SubscriptionRouter;
use self::selection::ResumeTokens;
use self::session::SubscriberSession;
use self::socket::TimedSocket;
use super::ServeLimits;
use super::budget::ByteQuota;
use super::view::{AppliedUpdate, View};
use crate::panics::locks::{SharedLockGuard, SharedMutex};

/// The socket settings of every WebSocket here: small buffers, since there are many connections.
pub fn websocket_config(limits: &ServeLimits) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(4096)
        .max_message_size(Some(limits.message_bytes))
        .max_frame_size(Some(limits.message_bytes))
}

/// How long [`Sessions::close_all`] takes at most.
pub const CLOSE_ALL_TIMEOUT: Duration = Duration::from_secs(3);

/// All sessions of subscribers. Clones are the same.
#[derive(Clone)]
pub struct SubscriberSessions(Arc<SessionsShared>);

/// What sessions and the publisher share.
struct SessionsShared {
    view: Arc<View>,
    limits: ServeLimits,
    resume_tokens: ResumeTokens,
    router: SharedMutex<SubscriptionRouter>,
    /// Messages up to this epoch are in the outboxes.
    routed_epoch: AtomicU64,
    stop: watch::Sender<bool>,
    session_count: watch::Sender<usize>,
    subscription_count: AtomicUsize,
    /// Bytes that wait in outboxes, of messages that clients have not ended, and of names that subscriptions list.
    outbox_quota: Arc<ByteQuota>,
    unfinished_quota: Arc<ByteQuota>,
    names_quota: Arc<ByteQuota>,
    metrics: SubscriptionMetrics,
}

/// Bytes that wait in all outboxes.
pub const OUTBOXES_BYTES: usize = 512 << 20;

struct SubscriptionMetrics {
    sessions: Gauge,
    subscriptions: Gauge,
    messages: Counter,
    rows: Counter,
    bytes: Counter,
    conflated: Counter,
}

impl SessionsShared {
    fn router(&self) -> SharedLockGuard<MutexGuard<'_, SubscriptionRouter>> {
        self.router.lock()
    }
}

impl SubscriberSessions {
    /// The recorder of metrics must be installed before.
    pub fn new(view: Arc<View>, limits: &ServeLimits) -> SubscriberSessions {
        let tokens = ResumeTokens::new(&view.service_info().generation);
        SubscriberSessions(Arc::new(SessionsShared {
            view,
            limits: limits.clone(),
            resume_tokens: tokens,
            router: SharedMutex::new(SubscriptionRouter::new(tokens)),
            routed_epoch: AtomicU64::new(0),
            stop: watch::Sender::new(false),
            session_count: watch::Sender::new(0),
            subscription_count: AtomicUsize::new(0),
            outbox_quota: ByteQuota::new(OUTBOXES_BYTES),
            unfinished_quota: ByteQuota::new(metered::unfinished_bytes(limits.message_bytes)),
            names_quota: ByteQuota::new(name_limits::all_names_bytes(limits)),
            metrics: SubscriptionMetrics::new(),
        }))
    }

    /// Runs one session to its end: the client's, a violation of the protocol or of a limit, or [`Sessions::close_all`].
    pub async fn serve_session<S: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        stream: WebSocketStream<MeteredStream<S>>,
    ) {
        let outbox = Arc::new(Outbox::new(self.0.limits.backlog_bytes, self.0.outbox_quota.new_share()));
        let socket = TimedSocket::new(stream, self.0.limits.send_time, self.0.stop.subscribe());
        let socket = socket.with_budget(self.0.view.snapshot_budget().clone());
        SubscriberSession::new(self.0.clone(), outbox, socket).run_session().await;
    }

    /// Ends all sessions with 1001, and those that still come. Returns when they have ended, or after [`CLOSE_TIME`].
    pub async fn close_all_sessions(&self) {
        self.0.stop.send_replace(true);
        let mut sessions = self.0.session_count.subscribe();
        // Those that take longer are cut off with the runtime.
        let _ = tokio::time::timeout(CLOSE_ALL_TIMEOUT, sessions.wait_for(|open| *open == 0)).await;
    }

    /// What WebSockets hold of messages that are not ended.
    pub(super) fn unfinished_quota(&self) -> &Arc<ByteQuota> {
        &self.0.unfinished_quota
    }

    /// Open sessions.
    pub fn session_count(&self) -> usize {
        *self.0.session_count.borrow()
    }

    /// Subscriptions of all sessions.
    #[cfg(test)]
    pub fn subscription_count(&self) -> usize {
        self.0.subscription_count.load(Ordering::Relaxed)
    }

    /// Queues the messages of an update that the view has taken in.
    pub(super) fn route_update(&self, applied: &AppliedUpdate) {
        let conflated = self.0.router().route_update(applied);
        self.0.routed_epoch.store(applied.as_of, Ordering::Release);
        if conflated > 0 {
            self.0.metrics.conflated.increment(conflated);
        }
    }
}

impl SubscriptionMetrics {
    fn new() -> SubscriptionMetrics {
        SubscriptionMetrics {
            sessions: metrics::gauge!("swelter_subscriber_sessions"),
            subscriptions: metrics::gauge!("swelter_subscriptions"),
            messages: metrics::counter!("swelter_sent_messages_total"),
            rows: metrics::counter!("swelter_sent_rows_total"),
            bytes: metrics::counter!("swelter_sent_bytes_total"),
            conflated: metrics::counter!("swelter_conflated_rows_total"),
        }
    }
}
