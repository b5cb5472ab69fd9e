//! One client's session.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::Shared;
use super::names::{names_bytes, session_names_bytes};
use super::outbox::Outbox;
use super::request::{self, Problem, Request};
use super::rows::Snapshot;
use super::selection::{Reset, Rows, Selection};
use super::socket::{End, STOPPING, Socket, TOO_SLOW};
use super::subscriptions::Subscriptions;
use crate::codec;
use crate::model::Answer;
use crate::model::clock::wall_clock_ms;
use crate::panics::fail_point;
use crate::serve::view::{Busy, MAX_WAITING, Since, Waiting};
use crate::serve::wire::Said;

/// What is written before the socket is flushed.
/// A longer message is parsed in turn, as the pieces of long answers are made.
const LONG_REQUEST: usize = 4 * 1024;
const BURST_BYTES: usize = 16 * 1024;
/// Cities that a session's window subscriptions list: what can be asked for at once.
const MAX_WATCHED: usize = MAX_WAITING;
/// Heartbeats without anything from the client.
const SILENT_BEATS: u32 = 3;

pub(super) struct Session<S> {
    pub(super) shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    pub(super) socket: Socket<S>,
    subscriptions: Subscriptions,
    /// One at a time: the next snapshot is asked for once the client has taken the last.
    watching: Option<Watching>,
    /// Slots and numbers of the watches that wait for that.
    unasked: VecDeque<(u16, u64)>,
    /// Numbers the watches of the session.
    watches: u64,
    heard: Instant,
    /// When the client had taken a long snapshot: until then it was not listened to.
    wrote: Instant,
    /// Messages that the client may send at once.
    allowance: f64,
}

/// The epoch of a snapshot, and where its rows come from.
type Begun = Result<(u64, Waiting), Busy>;
type Watched = (u16, u64, Begun);
type Watching = Pin<Box<dyn Future<Output = Watched> + Send>>;

enum Event {
    Read(Message),
    Watched(Watched),
    Work,
    Beat,
}

/// Counts open sessions, also where a session is dropped.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: Arc<Shared>) -> Counted {
        shared.sessions.send_modify(|open| *open += 1);
        shared.meters.sessions.increment(1);
        Counted(shared)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.sessions.send_modify(|open| *open -= 1);
        self.0.meters.sessions.decrement(1);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    pub(super) fn new(shared: Arc<Shared>, outbox: Arc<Outbox>, socket: Socket<S>) -> Session<S> {
        Session {
            subscriptions: Subscriptions::new(shared.clone(), outbox.clone()),
            allowance: shared.limits.messages_per_second.into(),
            shared,
            outbox,
            socket,
            watching: None,
            unasked: VecDeque::new(),
            watches: 0,
            heard: Instant::now(),
            wrote: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) {
        let _counted = Counted::new(self.shared.clone());
        let end = End::of(self.serve()).await;
        tracing::debug!(?end, "a subscriber's session ends");
        drop(self.subscriptions);
        self.socket.end(end).await;
    }

    async fn serve(&mut self) -> Result<(), End> {
        let hello = Said::hello(self.shared.view.facts(), &self.shared.limits, wall_clock_ms()).to_json();
        self.write(hello).await?;
        let heartbeat = self.shared.limits.heartbeat;
        let beat = tokio::time::sleep(heartbeat);
        tokio::pin!(beat);
        loop {
            let event = tokio::select! {
                biased;
                read = self.socket.next() => Event::Read(read?),
                watched = answered(&mut self.watching) => Event::Watched(watched),
                () = &mut beat => Event::Beat,
                () = self.outbox.ready() => Event::Work,
            };
            match event {
                Event::Read(message) => self.read(message).await?,
                Event::Watched((slot, watch, begun)) => {
                    self.watched(slot, watch, begun).await?;
                    self.ask_next().await?;
                }
                Event::Work => self.work().await?,
                Event::Beat => {
                    self.beat().await?;
                    beat.as_mut().reset(tokio::time::Instant::now() + heartbeat);
                }
            }
        }
    }

    async fn beat(&mut self) -> Result<(), End> {
        if self.heard.max(self.wrote).elapsed() >= self.shared.limits.heartbeat * SILENT_BEATS {
            return Err(End::Close(4408, "nothing came from the client for too long"));
        }
        let as_of = self.subscriptions.as_of();
        self.socket.feed(Message::Ping(Bytes::new())).await?;
        self.say(Said::Heartbeat { as_of, now: wall_clock_ms() }).await
    }

    /// Writes what waits in the outbox, and merges what was dropped there.
    async fn work(&mut self) -> Result<(), End> {
        let mut items = Vec::new();
        if !self.outbox.take(BURST_BYTES, &mut items) {
            return match self.outbox.behind() {
                Some(slot) => self.update(slot, Reset::Behind).await,
                None => Ok(()),
            };
        }
        for item in items {
            // What a snapshot or a merged message has included already is not sent again.
            let Some(subscription) = self.subscriptions.get_mut(item.slot) else { continue };
            if subscription.sent.is_none_or(|sent| item.as_of <= sent) {
                continue;
            }
            subscription.sent = Some(item.as_of);
            self.count(item.text.len(), item.rows.into());
            self.socket.feed(Message::Text(item.text)).await?;
        }
        self.socket.flush().await
    }

    async fn read(&mut self, message: Message) -> Result<(), End> {
        fail_point("session");
        let now = Instant::now();
        let rate = f64::from(self.shared.limits.messages_per_second);
        let earned = (now - self.heard).as_secs_f64() * rate;
        self.allowance = (self.allowance + earned).min(rate) - 1.0;
        self.heard = now;
        if self.allowance < 0.0 {
            return Err(End::Close(1008, "messages faster than the limit"));
        }
        match message {
            Message::Text(text) => {
                let view = self.shared.view.clone();
                let turn = if text.len() > LONG_REQUEST { view.turns().take().await } else { None };
                let parsed = request::parse(&text, &self.shared.limits, view.facts().units);
                drop(turn);
                match parsed {
                    Ok(request) => self.handle(request).await,
                    Err(problem) => self.refuse(problem).await,
                }
            }
            Message::Binary(_) => Err(End::Close(1003, "messages are text")),
            Message::Close(_) => Err(End::Gone),
            _ => Ok(()),
        }
    }

    async fn handle(&mut self, request: Request) -> Result<(), End> {
        match request {
            Request::Ping => {
                let as_of = self.subscriptions.as_of();
                self.say(Said::Pong { as_of, now: wall_clock_ms() }).await
            }
            Request::Unsubscribe { id } => match self.subscriptions.find(&id) {
                Some(slot) => {
                    self.subscriptions.close(slot);
                    self.say(Said::Unsubscribed { id: &id }).await
                }
                None => {
                    self.refuse(Problem::of(&id, "unknown_id", "there is no subscription of this id")).await
                }
            },
            Request::Subscribe { id, selection, resume } => self.subscribe(id, selection, resume).await,
        }
    }

    async fn subscribe(
        &mut self,
        id: Arc<str>,
        selection: Selection,
        resume: Option<String>,
    ) -> Result<(), End> {
        if self.subscriptions.find(&id).is_some() {
            let detail = "there is a subscription of this id: unsubscribe it first";
            return self.refuse(Problem::of(&id, "duplicate_id", detail)).await;
        }
        let most = self.shared.limits.subscriptions;
        if self.subscriptions.len() >= most {
            let detail = format!("a session takes at most {most} subscriptions");
            return self.refuse(Problem::of(&id, "too_many_subscriptions", &detail)).await;
        }
        if selection.rows == Rows::Window
            && self.subscriptions.watched() + selection.listed().len() > MAX_WATCHED
        {
            let detail = format!("the window subscriptions of a session list at most {MAX_WATCHED} cities");
            return self.refuse(Problem::of(&id, "too_many_cities", &detail)).await;
        }
        if self.subscriptions.names_bytes() + names_bytes(&selection)
            > session_names_bytes(&self.shared.limits)
        {
            let detail = "the subscriptions of this session name too many cities, or in too long names";
            return self.refuse(Problem::of(&id, "too_many_cities", detail)).await;
        }
        let (rows, digest) = (selection.rows, selection.digest());
        let Some(slot) = self.subscriptions.open(id.clone(), selection) else {
            return self.refuse(Problem::of(&id, "busy", &Busy::Names.to_string())).await;
        };
        let Some(token) = resume else { return self.begin(slot).await };
        match self.resume(slot, rows, &token, digest).await {
            Ok(()) => self.update(slot, Reset::Expired).await,
            Err(reset) => {
                self.say(Said::Reset { id: &id, reason: reset.reason() }).await?;
                self.begin(slot).await
            }
        }
    }

    async fn resume(&mut self, slot: u16, rows: Rows, token: &str, digest: u64) -> Result<(), Reset> {
        let view = &self.shared.view;
        let epoch = self.shared.tokens.epoch(token, digest, view.newest())?;
        if !view.comes_to(epoch).await {
            return Err(Reset::Malformed);
        }
        let Some(subscription) = self.subscriptions.get_mut(slot) else { return Ok(()) };
        if rows == Rows::Window {
            view.watch_again(subscription.selection.listed(), epoch).map_err(|_| Reset::Expired)?;
            subscription.holds = true;
        }
        subscription.sent = Some(epoch);
        Ok(())
    }

    /// Begins a subscription with a snapshot.
    async fn begin(&mut self, slot: u16) -> Result<(), End> {
        let Some(subscription) = self.subscriptions.get_mut(slot) else { return Ok(()) };
        subscription.sent = None;
        match subscription.selection.rows {
            Rows::Latest => self.update(slot, Reset::Behind).await,
            Rows::Window => self.watch(slot).await,
        }
    }

    async fn watch(&mut self, slot: u16) -> Result<(), End> {
        self.outbox.hold(slot);
        self.subscriptions.unwatch(slot);
        let Some(subscription) = self.subscriptions.get_mut(slot) else { return Ok(()) };
        self.watches += 1;
        subscription.watch = Some(self.watches);
        self.unasked.push_back((slot, self.watches));
        self.ask_next().await
    }

    /// Asks for the next snapshot, unless there is one on its way.
    async fn ask_next(&mut self) -> Result<(), End> {
        while self.watching.is_none()
            && let Some((slot, watch)) = self.unasked.pop_front()
        {
            let subscription = self.subscriptions.get_mut(slot).filter(|sub| sub.watch == Some(watch));
            let Some(subscription) = subscription else { continue };
            match self.shared.view.watch(subscription.selection.listed()) {
                Ok(mut waiting) => {
                    subscription.holds = true;
                    self.watching = Some(Box::pin(async move {
                        let epoch = waiting.epoch().await;
                        (slot, watch, epoch.map(|epoch| (epoch, waiting)))
                    }));
                }
                Err(busy) => self.give_up(slot, busy).await?,
            }
        }
        Ok(())
    }

    async fn give_up(&mut self, slot: u16, busy: Busy) -> Result<(), End> {
        let Some(subscription) = self.subscriptions.get_mut(slot) else { return Ok(()) };
        let problem = Problem::of(&subscription.id, "busy", &busy.to_string());
        self.subscriptions.close(slot);
        self.refuse(problem).await
    }

    async fn watched(&mut self, slot: u16, watch: u64, begun: Begun) -> Result<(), End> {
        let Some(subscription) = self.subscriptions.get_mut(slot) else { return Ok(()) };
        if subscription.watch != Some(watch) {
            return Ok(());
        }
        subscription.watch = None;
        let (as_of, mut waiting) = match begun {
            Ok(begun) => begun,
            Err(busy) => return self.give_up(slot, busy).await,
        };
        let (id, units) = (subscription.id.clone(), subscription.selection.units);
        subscription.sent = Some(as_of);
        let mut snapshot = Snapshot::new(id, &subscription.selection, as_of);
        let view = self.shared.view.clone();
        loop {
            let next = tokio::select! {
                next = waiting.next() => next,
                () = Socket::<S>::stopped(self.socket.stop()) => return Err(STOPPING),
            };
            match next {
                Ok(None) => break,
                Ok(Some(Answer { city, rows, .. })) => {
                    let turn = view.turns().take().await;
                    for (reading_at, row) in rows {
                        snapshot.add_row(|out| codec::push_row_json(out, &city, reading_at, &row, units));
                    }
                    drop(turn);
                    self.write_parts(&mut snapshot).await?;
                }
                Err(Busy::Slow) => return Err(TOO_SLOW),
                // What it has of the snapshot is not complete, and never will be.
                Err(busy) => return self.give_up(slot, busy).await,
            }
        }
        drop(waiting);
        self.complete(snapshot).await?;
        self.wrote = Instant::now();
        self.update(slot, Reset::Behind).await
    }

    /// Brings a subscription up to date from the view: with a snapshot, or with what has changed since it was last sent to.
    /// From then on messages are queued; where what has changed is not kept any more, a reset gives `why`.
    async fn update(&mut self, slot: u16, why: Reset) -> Result<(), End> {
        let Some(subscription) = self.subscriptions.get_mut(slot) else { return Ok(()) };
        let (id, selection, sent) =
            (subscription.id.clone(), subscription.selection.clone(), subscription.sent);
        // Before the view is read, so that what comes later is queued.
        self.outbox.open(slot);
        if selection.rows == Rows::Window {
            return self.update_window(slot, &id, &selection, why).await;
        }
        let view = self.shared.view.clone();
        let mut held = match view.room_for_latest(&selection.select()).await {
            Ok(held) => held,
            Err(busy) => return self.give_up(slot, busy).await,
        };
        let turn = view.turns().take().await;
        let found = view.latest(&selection.select(), sent);
        drop(turn);
        let found = match found {
            Ok(since) => Some((since, sent)),
            Err(_) => {
                self.say(Said::Reset { id: &id, reason: why.reason() }).await?;
                let _turn = view.turns().take().await;
                view.latest(&selection.select(), None).ok().map(|all| (all, None))
            }
        };
        let Some((since, sent)) = found else { return Ok(()) };
        held.shrink(since.bytes());
        let Since { as_of, upserts, removals } = since;
        if let Some(subscription) = self.subscriptions.get_mut(slot) {
            subscription.sent = Some(as_of);
        }
        let write = |out: &mut Vec<u8>, (city, row): &(Arc<str>, _)| {
            codec::push_current_json(out, city, row, selection.units);
        };
        match sent {
            None => self.snapshot(&id, &selection, as_of, upserts.into_iter(), write).await,
            Some(_) if upserts.is_empty() && removals.is_empty() && !is_resumed(why) => Ok(()),
            Some(_) => self.changes(&id, &selection, as_of, upserts, write, removals).await,
        }
    }

    async fn update_window(
        &mut self,
        slot: u16,
        id: &Arc<str>,
        selection: &Selection,
        why: Reset,
    ) -> Result<(), End> {
        let mut held = match self.shared.view.room_for_window(selection.listed()).await {
            Ok(held) => held,
            Err(busy) => return self.give_up(slot, busy).await,
        };
        let Some(subscription) = self.subscriptions.get_mut(slot) else { return Ok(()) };
        let Some(sent) = subscription.sent else { return Ok(()) };
        let Ok(since) = self.shared.view.window(selection.listed(), sent) else {
            subscription.sent = None;
            drop(held);
            self.say(Said::Reset { id, reason: why.reason() }).await?;
            return self.watch(slot).await;
        };
        subscription.sent = Some(since.as_of);
        held.shrink(since.bytes());
        let mut removals = Vec::new();
        let mut upserts = Vec::with_capacity(since.rows.len());
        for (city, reading_at, row) in since.rows {
            match row {
                Some(row) => upserts.push((city, reading_at, row)),
                None => removals.push((city, reading_at)),
            }
        }
        if upserts.is_empty() && removals.is_empty() && !is_resumed(why) {
            return Ok(());
        }
        let write = |out: &mut Vec<u8>, row: &_| {
            let (city, reading_at, row): &(Arc<str>, _, _) = row;
            codec::push_row_json(out, city, *reading_at, row, selection.units);
        };
        self.changes(id, selection, since.as_of, upserts, write, removals).await
    }

    async fn refuse(&mut self, problem: Problem) -> Result<(), End> {
        self.say(problem.said()).await
    }

    /// Writes a message of the session itself.
    async fn say(&mut self, said: Said<'_>) -> Result<(), End> {
        self.write(said.to_json()).await
    }

    async fn write(&mut self, text: String) -> Result<(), End> {
        self.count(text.len(), 0);
        self.socket.feed(Message::Text(text.into())).await?;
        self.socket.flush().await
    }

    pub(super) fn count(&self, bytes: usize, rows: u64) {
        let meters = &self.shared.meters;
        meters.messages.increment(1);
        meters.rows.increment(rows);
        meters.bytes.increment(bytes as u64);
    }
}

/// A client that resumes is answered in any case; others hear nothing where nothing has changed.
fn is_resumed(why: Reset) -> bool {
    matches!(why, Reset::Expired)
}

/// Waits for the answers of the watch that is on its way; for ever, where there is none.
async fn answered(watching: &mut Option<Watching>) -> Watched {
    match watching {
        Some(waiting) => {
            let watched = waiting.await;
            *watching = None;
            watched
        }
        None => std::future::pending().await,
    }
}
