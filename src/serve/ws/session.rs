//! The session of one subscriber.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::name_limits::{names_bytes, session_names_bytes};
use super::outbox::Outbox;
use super::request::{self, ClientRequest, RequestError};
use super::selection::{ResetReason, Selection, SubscriptionKind};
use super::session_writer::{MergedChanges, SessionWriter, SnapshotWriter};
use super::shared::{OpenSessionGuard, SessionsShared};
use super::socket::{CloseCause, STOPPING, TOO_SLOW, TimedSocket};
use super::subscriptions::SessionSubscriptions;
use crate::codec;
use crate::model::AnswerPiece;
use crate::model::clock::wall_clock_ms;
use crate::panics::panic_point;
use crate::serve::view::{LatestChanges, MAX_PENDING_QUERIES, QueryError, QueryResponse};
use crate::serve::wire::ServerMessage;

/// A longer request is parsed when its turn comes, as pieces of long responses are encoded.
const LONG_REQUEST_BYTES: usize = 4 * 1024;
/// Bytes that are written before the socket is flushed.
const BYTES_BEFORE_FLUSH: usize = 16 * 1024;
/// Cities that all window subscriptions of a session may list: those that can be queried at one
/// time.
const MAX_SESSION_WATCHED_CITIES: usize = MAX_PENDING_QUERIES;
/// Heartbeats without a message from the client, until the session ends.
const MAX_SILENT_HEARTBEATS: u32 = 3;

pub(super) struct SubscriberSession<S> {
    shared: Arc<SessionsShared>,
    outbox: Arc<Outbox>,
    writer: SessionWriter<S>,
    subscriptions: SessionSubscriptions,
    /// One at a time: the next snapshot is queried once the client has read the last.
    pending_watch: Option<PendingWatch>,
    /// Slots and numbers of the watches that wait for their turn.
    queued_watches: VecDeque<(u16, u64)>,
    /// Numbers the watches of the session.
    last_watch_id: u64,
    last_message_at: Instant,
    /// When the client had read its last window snapshot. While it reads one, its messages are not
    /// read.
    snapshot_written_at: Instant,
    /// Messages that the client may send without exceeding its rate.
    message_allowance: f64,
}

/// The epoch of a snapshot, and the response with its rows.
type SnapshotStart = Result<(u64, QueryResponse), QueryError>;
type WatchStart = (u16, u64, SnapshotStart);
type PendingWatch = Pin<Box<dyn Future<Output = WatchStart> + Send>>;

enum SessionEvent {
    Received(Message),
    WatchStarted(WatchStart),
    OutboxReady,
    HeartbeatDue,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> SubscriberSession<S> {
    pub(super) fn new(
        shared: Arc<SessionsShared>,
        outbox: Arc<Outbox>,
        socket: TimedSocket<S>,
    ) -> SubscriberSession<S> {
        SubscriberSession {
            subscriptions: SessionSubscriptions::new(shared.clone(), outbox.clone()),
            message_allowance: shared.limits.messages_per_second.into(),
            writer: SessionWriter::new(shared.clone(), socket),
            shared,
            outbox,
            pending_watch: None,
            queued_watches: VecDeque::new(),
            last_watch_id: 0,
            last_message_at: Instant::now(),
            snapshot_written_at: Instant::now(),
        }
    }

    pub(super) async fn run_session(mut self) {
        let _counted = OpenSessionGuard::new(self.shared.clone());
        let cause = CloseCause::run_to_end(self.serve_client()).await;
        tracing::debug!(?cause, "the session of a subscriber ends");
        drop(self.subscriptions);
        self.writer.socket.close_socket(cause).await;
    }

    async fn serve_client(&mut self) -> Result<(), CloseCause> {
        let hello = ServerMessage::hello_message(
            self.shared.view.service_info(),
            &self.shared.limits,
            wall_clock_ms(),
        );
        self.writer.send_message(hello).await?;
        let heartbeat = self.shared.limits.heartbeat;
        let beat = tokio::time::sleep(heartbeat);
        tokio::pin!(beat);
        loop {
            let event = tokio::select! {
                biased;
                read = self.writer.socket.next_message() => SessionEvent::Received(read?),
                start = wait_for_watch(&mut self.pending_watch) => SessionEvent::WatchStarted(start),
                () = &mut beat => SessionEvent::HeartbeatDue,
                () = self.outbox.wait_for_work() => SessionEvent::OutboxReady,
            };
            match event {
                SessionEvent::Received(message) => self.on_message(message).await?,
                SessionEvent::WatchStarted((slot, watch, start)) => {
                    self.on_watch_started(slot, watch, start).await?;
                    self.start_next_watch().await?;
                }
                SessionEvent::OutboxReady => self.drain_outbox().await?,
                SessionEvent::HeartbeatDue => {
                    self.send_heartbeat().await?;
                    beat.as_mut().reset(tokio::time::Instant::now() + heartbeat);
                }
            }
        }
    }

    async fn send_heartbeat(&mut self) -> Result<(), CloseCause> {
        if self.last_message_at.max(self.snapshot_written_at).elapsed()
            >= self.shared.limits.heartbeat * MAX_SILENT_HEARTBEATS
        {
            return Err(CloseCause::Close(4408, "nothing came from the client for too long"));
        }
        let as_of = self.subscriptions.complete_epoch();
        self.writer.socket.feed_message(Message::Ping(Bytes::new())).await?;
        self.writer.send_message(ServerMessage::Heartbeat { as_of, now: wall_clock_ms() }).await
    }

    /// Writes the messages of the outbox, or the merged changes of a subscription whose messages
    /// were dropped.
    async fn drain_outbox(&mut self) -> Result<(), CloseCause> {
        let mut messages = Vec::new();
        if !self.outbox.take_messages(BYTES_BEFORE_FLUSH, &mut messages) {
            return match self.outbox.slot_with_dropped_messages() {
                Some(slot) => self.catch_up(slot, ResetReason::ClientBehind).await,
                None => Ok(()),
            };
        }
        for message in messages {
            // A snapshot or merged changes may have included the message already.
            let Some(subscription) = self.subscriptions.subscription_mut(message.slot) else { continue };
            if subscription.sent_epoch.is_none_or(|sent| message.as_of <= sent) {
                continue;
            }
            subscription.sent_epoch = Some(message.as_of);
            self.writer.record_sent(message.text.len(), message.rows.into());
            self.writer.socket.feed_message(Message::Text(message.text)).await?;
        }
        self.writer.socket.flush_socket().await
    }

    async fn on_message(&mut self, message: Message) -> Result<(), CloseCause> {
        panic_point("session");
        let now = Instant::now();
        let rate = f64::from(self.shared.limits.messages_per_second);
        let earned = (now - self.last_message_at).as_secs_f64() * rate;
        self.message_allowance = (self.message_allowance + earned).min(rate) - 1.0;
        self.last_message_at = now;
        if self.message_allowance < 0.0 {
            return Err(CloseCause::Close(1008, "messages faster than the limit"));
        }
        match message {
            Message::Text(text) => {
                let view = self.shared.view.clone();
                let turn = if text.len() > LONG_REQUEST_BYTES {
                    view.encoding_turns().wait_for_turn().await
                } else {
                    None
                };
                let parsed = request::parse_request(&text, &self.shared.limits, view.service_info().units);
                drop(turn);
                match parsed {
                    Ok(request) => self.handle_request(request).await,
                    Err(error) => self.send_error(error).await,
                }
            }
            Message::Binary(_) => Err(CloseCause::Close(1003, "messages are text")),
            Message::Close(_) => Err(CloseCause::Disconnected),
            _ => Ok(()),
        }
    }

    async fn handle_request(&mut self, request: ClientRequest) -> Result<(), CloseCause> {
        match request {
            ClientRequest::Ping => {
                let as_of = self.subscriptions.complete_epoch();
                self.writer.send_message(ServerMessage::Pong { as_of, now: wall_clock_ms() }).await
            }
            ClientRequest::Unsubscribe { id } => match self.subscriptions.find_slot(&id) {
                Some(slot) => {
                    self.subscriptions.close_subscription(slot);
                    self.writer.send_message(ServerMessage::Unsubscribed { id: &id }).await
                }
                None => {
                    self.send_error(RequestError::for_subscription(
                        &id,
                        "unknown_id",
                        "there is no subscription of this id",
                    ))
                    .await
                }
            },
            ClientRequest::Subscribe { id, selection, resume } => self.subscribe(id, selection, resume).await,
        }
    }

    async fn subscribe(
        &mut self,
        id: Arc<str>,
        selection: Selection,
        resume: Option<String>,
    ) -> Result<(), CloseCause> {
        if self.subscriptions.find_slot(&id).is_some() {
            let detail = "there is a subscription of this id: unsubscribe it first";
            return self.send_error(RequestError::for_subscription(&id, "duplicate_id", detail)).await;
        }
        let most = self.shared.limits.subscriptions;
        if self.subscriptions.len() >= most {
            let detail = format!("a session takes at most {most} subscriptions");
            return self
                .send_error(RequestError::for_subscription(&id, "too_many_subscriptions", &detail))
                .await;
        }
        if selection.kind == SubscriptionKind::Window
            && self.subscriptions.window_city_count() + selection.listed_cities().len()
                > MAX_SESSION_WATCHED_CITIES
        {
            let detail = format!(
                "the window subscriptions of a session list at most {MAX_SESSION_WATCHED_CITIES} cities"
            );
            return self.send_error(RequestError::for_subscription(&id, "too_many_cities", &detail)).await;
        }
        if self.subscriptions.names_bytes() + names_bytes(&selection)
            > session_names_bytes(&self.shared.limits)
        {
            let detail = "the subscriptions of this session name too many cities, or in too long names";
            return self.send_error(RequestError::for_subscription(&id, "too_many_cities", detail)).await;
        }
        let (rows, digest) = (selection.kind, selection.digest());
        let Some(slot) = self.subscriptions.open_subscription(id.clone(), selection) else {
            return self
                .send_error(RequestError::for_subscription(
                    &id,
                    "busy",
                    &QueryError::TooManyNames.to_string(),
                ))
                .await;
        };
        let Some(token) = resume else { return self.begin_snapshot(slot).await };
        match self.resume_from_token(slot, rows, &token, digest).await {
            Ok(()) => self.catch_up(slot, ResetReason::Expired).await,
            Err(reset) => {
                self.writer.send_message(ServerMessage::Reset { id: &id, reason: reset.as_str() }).await?;
                self.begin_snapshot(slot).await
            }
        }
    }

    async fn resume_from_token(
        &mut self,
        slot: u16,
        rows: SubscriptionKind,
        token: &str,
        digest: u64,
    ) -> Result<(), ResetReason> {
        let view = &self.shared.view;
        let epoch = self.shared.resume_tokens.resume_epoch(token, digest, view.newest_watched_epoch())?;
        if !view.wait_for_epoch(epoch).await {
            return Err(ResetReason::Malformed);
        }
        let Some(subscription) = self.subscriptions.subscription_mut(slot) else { return Ok(()) };
        if rows == SubscriptionKind::Window {
            view.resume_watch(subscription.selection.listed_cities(), epoch)
                .map_err(|_| ResetReason::Expired)?;
            subscription.holds_rings = true;
        }
        subscription.sent_epoch = Some(epoch);
        Ok(())
    }

    /// Begins a subscription with a snapshot.
    async fn begin_snapshot(&mut self, slot: u16) -> Result<(), CloseCause> {
        let Some(subscription) = self.subscriptions.subscription_mut(slot) else { return Ok(()) };
        subscription.sent_epoch = None;
        match subscription.selection.kind {
            SubscriptionKind::Latest => self.catch_up(slot, ResetReason::ClientBehind).await,
            SubscriptionKind::Window => self.queue_watch(slot).await,
        }
    }

    async fn queue_watch(&mut self, slot: u16) -> Result<(), CloseCause> {
        self.outbox.pause_slot(slot);
        self.subscriptions.release_rings(slot);
        let Some(subscription) = self.subscriptions.subscription_mut(slot) else { return Ok(()) };
        self.last_watch_id += 1;
        subscription.watch_id = Some(self.last_watch_id);
        self.queued_watches.push_back((slot, self.last_watch_id));
        self.start_next_watch().await
    }

    /// Queries the next snapshot, unless one is pending.
    async fn start_next_watch(&mut self) -> Result<(), CloseCause> {
        while self.pending_watch.is_none()
            && let Some((slot, watch)) = self.queued_watches.pop_front()
        {
            let subscription =
                self.subscriptions.subscription_mut(slot).filter(|sub| sub.watch_id == Some(watch));
            let Some(subscription) = subscription else { continue };
            match self.shared.view.watch_cities(subscription.selection.listed_cities()) {
                Ok(mut response) => {
                    subscription.holds_rings = true;
                    self.pending_watch = Some(Box::pin(async move {
                        let epoch = response.wait_for_epoch().await;
                        (slot, watch, epoch.map(|epoch| (epoch, response)))
                    }));
                }
                Err(error) => self.close_with_error(slot, error).await?,
            }
        }
        Ok(())
    }

    async fn close_with_error(&mut self, slot: u16, error: QueryError) -> Result<(), CloseCause> {
        let Some(subscription) = self.subscriptions.subscription_mut(slot) else { return Ok(()) };
        let error = RequestError::for_subscription(&subscription.id, "busy", &error.to_string());
        self.subscriptions.close_subscription(slot);
        self.send_error(error).await
    }

    async fn on_watch_started(
        &mut self,
        slot: u16,
        watch: u64,
        start: SnapshotStart,
    ) -> Result<(), CloseCause> {
        let Some(subscription) = self.subscriptions.subscription_mut(slot) else { return Ok(()) };
        if subscription.watch_id != Some(watch) {
            return Ok(());
        }
        subscription.watch_id = None;
        let (as_of, mut response) = match start {
            Ok(start) => start,
            Err(error) => return self.close_with_error(slot, error).await,
        };
        let (id, units) = (subscription.id.clone(), subscription.selection.units);
        subscription.sent_epoch = Some(as_of);
        let mut snapshot = SnapshotWriter::new(id, &subscription.selection, as_of);
        let view = self.shared.view.clone();
        loop {
            let next = tokio::select! {
                next = response.next_piece() => next,
                () = TimedSocket::<S>::wait_for_stop(self.writer.socket.stop_signal()) => return Err(STOPPING),
            };
            match next {
                Ok(None) => break,
                Ok(Some(AnswerPiece { city, rows, .. })) => {
                    let turn = view.encoding_turns().wait_for_turn().await;
                    for (reading_at, row) in rows {
                        snapshot.add_row(|out| codec::push_row_json(out, &city, reading_at, &row, units));
                    }
                    drop(turn);
                    self.writer.write_full_parts(&mut snapshot).await?;
                }
                Err(QueryError::SlowReader) => return Err(TOO_SLOW),
                // The client has a part of the snapshot, and the rest will never follow.
                Err(error) => return self.close_with_error(slot, error).await,
            }
        }
        drop(response);
        self.writer.finish_snapshot(snapshot).await?;
        self.snapshot_written_at = Instant::now();
        self.catch_up(slot, ResetReason::ClientBehind).await
    }

    /// Brings a subscription up to date from the view: with a snapshot, or with the changes since
    /// its last message. From then on messages are queued. If the changes have expired, it is reset
    /// for `reason`.
    async fn catch_up(&mut self, slot: u16, reason: ResetReason) -> Result<(), CloseCause> {
        let Some(subscription) = self.subscriptions.subscription_mut(slot) else { return Ok(()) };
        let (id, selection, sent) =
            (subscription.id.clone(), subscription.selection.clone(), subscription.sent_epoch);
        // Before the view is read, so that later changes are queued.
        self.outbox.resume_slot(slot);
        if selection.kind == SubscriptionKind::Window {
            return self.catch_up_window(slot, &id, &selection, reason).await;
        }
        let view = self.shared.view.clone();
        let mut permit = match view.acquire_latest_permit(&selection.city_filter()).await {
            Ok(permit) => permit,
            Err(error) => return self.close_with_error(slot, error).await,
        };
        let turn = view.encoding_turns().wait_for_turn().await;
        let since_sent = view.latest_since(&selection.city_filter(), sent);
        drop(turn);
        let changes = match since_sent {
            Ok(changes) => Some((changes, sent)),
            Err(_) => {
                self.writer.send_message(ServerMessage::Reset { id: &id, reason: reason.as_str() }).await?;
                let _turn = view.encoding_turns().wait_for_turn().await;
                view.latest_since(&selection.city_filter(), None).ok().map(|all| (all, None))
            }
        };
        let Some((changes, sent)) = changes else { return Ok(()) };
        permit.shrink(changes.bytes());
        let LatestChanges { as_of, upserts, removals } = changes;
        if let Some(subscription) = self.subscriptions.subscription_mut(slot) {
            subscription.sent_epoch = Some(as_of);
        }
        let write = |out: &mut Vec<u8>, (city, row): &(Arc<str>, _)| {
            codec::push_current_json(out, city, row, selection.units);
        };
        if sent.is_none() {
            return self.writer.write_snapshot(&id, &selection, as_of, upserts.into_iter(), write).await;
        }
        let changes = MergedChanges { as_of, upserts, removals };
        if changes.is_empty() && !is_after_resume(reason) {
            return Ok(());
        }
        self.writer.write_changes(&id, &selection, changes, write).await
    }

    async fn catch_up_window(
        &mut self,
        slot: u16,
        id: &Arc<str>,
        selection: &Selection,
        reason: ResetReason,
    ) -> Result<(), CloseCause> {
        let mut permit = match self.shared.view.acquire_window_permit(selection.listed_cities()).await {
            Ok(permit) => permit,
            Err(error) => return self.close_with_error(slot, error).await,
        };
        let Some(subscription) = self.subscriptions.subscription_mut(slot) else { return Ok(()) };
        let Some(sent) = subscription.sent_epoch else { return Ok(()) };
        let Ok(changes) = self.shared.view.window_since(selection.listed_cities(), sent) else {
            subscription.sent_epoch = None;
            drop(permit);
            self.writer.send_message(ServerMessage::Reset { id, reason: reason.as_str() }).await?;
            return self.queue_watch(slot).await;
        };
        let as_of = changes.as_of;
        subscription.sent_epoch = Some(as_of);
        permit.shrink(changes.bytes());
        let mut removals = Vec::new();
        let mut upserts = Vec::with_capacity(changes.rows.len());
        for (city, reading_at, row) in changes.rows {
            match row {
                Some(row) => upserts.push((city, reading_at, row)),
                None => removals.push((city, reading_at)),
            }
        }
        let changes = MergedChanges { as_of, upserts, removals };
        if changes.is_empty() && !is_after_resume(reason) {
            return Ok(());
        }
        let write = |out: &mut Vec<u8>, row: &_| {
            let (city, reading_at, row): &(Arc<str>, _, _) = row;
            codec::push_row_json(out, city, *reading_at, row, selection.units);
        };
        self.writer.write_changes(id, selection, changes, write).await
    }

    async fn send_error(&mut self, error: RequestError) -> Result<(), CloseCause> {
        self.writer.send_message(error.to_message()).await
    }
}

/// A client that resumes gets a message in any case; other clients get none if nothing has changed.
fn is_after_resume(reason: ResetReason) -> bool {
    matches!(reason, ResetReason::Expired)
}

/// Waits until the rows of the pending watch are counted; for ever, if none is pending.
async fn wait_for_watch(pending_watch: &mut Option<PendingWatch>) -> WatchStart {
    match pending_watch {
        Some(pending) => {
            let start = pending.await;
            *pending_watch = None;
            start
        }
        None => std::future::pending().await,
    }
}
