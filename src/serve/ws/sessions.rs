//! All sessions of subscribers.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;

use super::metered::MeteredStream;
use super::outbox::Outbox;
use super::session::SubscriberSession;
use super::shared::SessionsShared;
use super::socket::TimedSocket;
use crate::serve::budget::ByteQuota;
use crate::serve::plan::ServeLimits;
use crate::serve::view::{AppliedUpdate, View};

/// How long [`SubscriberSessions::close_all_sessions`] takes at most.
pub const CLOSE_ALL_TIMEOUT: Duration = Duration::from_secs(3);

/// All sessions of subscribers. Clones share them.
#[derive(Clone)]
pub struct SubscriberSessions(Arc<SessionsShared>);

impl SubscriberSessions {
    /// The recorder of metrics must be installed before.
    pub fn new(view: Arc<View>, limits: &ServeLimits) -> SubscriberSessions {
        SubscriberSessions(Arc::new(SessionsShared::new(view, limits)))
    }

    /// Runs one session to its end: the client closes it, violates the protocol or a limit, or
    /// [`SubscriberSessions::close_all_sessions`] is called.
    pub async fn serve_session<S: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        stream: WebSocketStream<MeteredStream<S>>,
    ) {
        let outbox = Arc::new(Outbox::new(self.0.limits.backlog_bytes, self.0.outbox_quota.new_share()));
        let socket = TimedSocket::new(stream, self.0.limits.send_time, self.0.stop.subscribe());
        let socket = socket.with_budget(self.0.view.snapshot_budget().clone());
        SubscriberSession::new(self.0.clone(), outbox, socket).run_session().await;
    }

    /// Ends all sessions, and those that are opened later, with code 1001. Returns when they have
    /// ended, or after [`CLOSE_ALL_TIMEOUT`].
    pub async fn close_all_sessions(&self) {
        self.0.stop.send_replace(true);
        let mut sessions = self.0.session_count.subscribe();
        // Sessions that take longer end with the runtime.
        let _ = tokio::time::timeout(CLOSE_ALL_TIMEOUT, sessions.wait_for(|open| *open == 0)).await;
    }

    /// Bytes of messages that clients have begun and not ended.
    pub(in crate::serve) fn unfinished_quota(&self) -> &Arc<ByteQuota> {
        &self.0.unfinished_quota
    }

    /// Open sessions.
    pub fn session_count(&self) -> usize {
        *self.0.session_count.borrow()
    }

    /// Subscriptions of all sessions.
    #[cfg(test)]
    pub fn subscription_count(&self) -> usize {
        self.0.subscription_count.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Queues the messages of an update that the view has applied.
    pub(in crate::serve) fn route_update(&self, applied: &AppliedUpdate) {
        self.0.route_update(applied);
    }
}
