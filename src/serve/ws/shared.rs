//! What all sessions of subscribers and the publisher share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use metrics::{Counter, Gauge};
use tokio::sync::watch;

use super::router::SubscriptionRouter;
use super::selection::ResumeTokens;
use super::{metered, name_limits};
use crate::panics::locks::{SharedMutex, SharedMutexGuard};
use crate::serve::budget::ByteQuota;
use crate::serve::plan::ServeLimits;
use crate::serve::view::{AppliedUpdate, View};

/// Bytes that wait in all outboxes.
pub const OUTBOXES_BYTES: usize = 512 << 20;

/// What all sessions of subscribers and the publisher share.
pub(super) struct SessionsShared {
    pub(super) view: Arc<View>,
    pub(super) limits: ServeLimits,
    pub(super) resume_tokens: ResumeTokens,
    router: SharedMutex<SubscriptionRouter>,
    /// Messages up to this epoch are in the outboxes.
    pub(super) routed_epoch: AtomicU64,
    pub(super) stop: watch::Sender<bool>,
    pub(super) session_count: watch::Sender<usize>,
    pub(super) subscription_count: AtomicUsize,
    /// Bytes that wait in outboxes.
    pub(super) outbox_quota: Arc<ByteQuota>,
    /// Bytes of messages that clients have begun and not ended.
    pub(super) unfinished_quota: Arc<ByteQuota>,
    /// Bytes of the names that subscriptions list.
    pub(super) names_quota: Arc<ByteQuota>,
    pub(super) metrics: SubscriptionMetrics,
}

pub(super) struct SubscriptionMetrics {
    pub(super) sessions: Gauge,
    pub(super) subscriptions: Gauge,
    pub(super) messages: Counter,
    pub(super) rows: Counter,
    pub(super) bytes: Counter,
    pub(super) conflated: Counter,
}

impl SessionsShared {
    pub(super) fn new(view: Arc<View>, limits: &ServeLimits) -> SessionsShared {
        let resume_tokens = ResumeTokens::new(&view.service_info().generation);
        SessionsShared {
            view,
            limits: limits.clone(),
            resume_tokens,
            router: SharedMutex::new(SubscriptionRouter::new(resume_tokens)),
            routed_epoch: AtomicU64::new(0),
            stop: watch::Sender::new(false),
            session_count: watch::Sender::new(0),
            subscription_count: AtomicUsize::new(0),
            outbox_quota: ByteQuota::new(OUTBOXES_BYTES),
            unfinished_quota: ByteQuota::new(metered::unfinished_bytes(limits.message_bytes)),
            names_quota: ByteQuota::new(name_limits::all_names_bytes(limits)),
            metrics: SubscriptionMetrics::new(),
        }
    }

    pub(super) fn router(&self) -> SharedMutexGuard<'_, SubscriptionRouter> {
        self.router.lock()
    }

    /// Queues the messages of an update that the view has applied.
    pub(super) fn route_update(&self, applied: &AppliedUpdate) {
        let conflated = self.router().route_update(applied);
        self.routed_epoch.store(applied.as_of, Ordering::Release);
        if conflated > 0 {
            self.metrics.conflated.increment(conflated);
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

/// Counts a session while it is open, whatever ends it.
pub(super) struct OpenSessionGuard(Arc<SessionsShared>);

impl OpenSessionGuard {
    pub(super) fn new(shared: Arc<SessionsShared>) -> OpenSessionGuard {
        shared.session_count.send_modify(|open| *open += 1);
        shared.metrics.sessions.increment(1);
        OpenSessionGuard(shared)
    }
}

impl Drop for OpenSessionGuard {
    fn drop(&mut self) {
        self.0.session_count.send_modify(|open| *open -= 1);
        self.0.metrics.sessions.decrement(1);
    }
}
