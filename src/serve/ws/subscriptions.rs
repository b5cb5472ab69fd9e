//! The subscriptions of one session.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::SessionsShared;
use super::name_limits::names_bytes;
use super::outbox::Outbox;
use super::selection::{Selection, SubscriptionKind};

/// By slot of the outbox. Dropped, it leaves all routes and watches.
pub(super) struct SessionSubscriptions {
    shared: Arc<SessionsShared>,
    outbox: Arc<Outbox>,
    slots: Vec<Option<Subscription>>,
}

pub(super) struct Subscription {
    pub(super) id: Arc<str>,
    pub(super) selection: Arc<Selection>,
    /// The client's map is right as of this epoch; nothing before its snapshot.
    pub(super) sent_epoch: Option<u64>,
    /// The watch whose answers are awaited for the snapshot.
    pub(super) watch_id: Option<u64>,
    /// Holds the rings of its cities.
    pub(super) holds_rings: bool,
}

impl SessionSubscriptions {
    pub(super) fn new(shared: Arc<SessionsShared>, outbox: Arc<Outbox>) -> SessionSubscriptions {
        SessionSubscriptions { shared, outbox, slots: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.iter().count()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.slots.iter().flatten()
    }

    /// Cities of all window subscriptions.
    pub(super) fn window_city_count(&self) -> usize {
        let window = self.iter().filter(|sub| sub.selection.kind == SubscriptionKind::Window);
        window.map(|sub| sub.selection.listed_cities().len()).sum()
    }

    pub(super) fn find_slot(&self, id: &str) -> Option<u16> {
        let found = self.slots.iter().position(|slot| slot.as_ref().is_some_and(|sub| &*sub.id == id));
        found.map(|slot| slot as u16)
    }

    pub(super) fn subscription_mut(&mut self, slot: u16) -> Option<&mut Subscription> {
        self.slots.get_mut(usize::from(slot))?.as_mut()
    }

    /// Bytes that the names of all subscriptions take.
    pub(super) fn names_bytes(&self) -> usize {
        self.iter().map(|sub| names_bytes(&sub.selection)).sum()
    }

    /// Adds a subscription; its messages are held back. Nothing where all subscriptions name too much.
    pub(super) fn open_subscription(&mut self, id: Arc<str>, selection: Selection) -> Option<u16> {
        let slot = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let number = slot as u16;
        self.outbox.pause_slot(number);
        let names = self.shared.names_quota.new_share();
        let joined = self.shared.router().join_group(selection, &id, &self.outbox, number, names);
        let selection = joined?;
        self.slots[slot] =
            Some(Subscription { id, selection, sent_epoch: None, watch_id: None, holds_rings: false });
        self.shared.subscription_count.fetch_add(1, Ordering::Relaxed);
        self.shared.metrics.subscriptions.increment(1);
        Some(number)
    }

    /// Ends a subscription: nothing of it is in the outbox any more.
    pub(super) fn close_subscription(&mut self, slot: u16) {
        let Some(subscription) = self.slots.get_mut(usize::from(slot)).and_then(Option::take) else { return };
        self.shared.router().leave_group(&subscription.selection, &subscription.id, &self.outbox, slot);
        self.outbox.pause_slot(slot);
        self.shared.subscription_count.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.subscriptions.decrement(1);
        if subscription.holds_rings {
            self.shared.view.unwatch_cities(subscription.selection.listed_cities());
        }
    }

    /// Lets go of the rings, to watch anew.
    pub(super) fn release_rings(&mut self, slot: u16) {
        if let Some(Some(subscription)) = self.slots.get_mut(usize::from(slot))
            && std::mem::take(&mut subscription.holds_rings)
        {
            self.shared.view.unwatch_cities(subscription.selection.listed_cities());
        }
    }

    /// Up to which epoch the client has everything of all subscriptions that have begun.
    pub(super) fn complete_epoch(&mut self) -> u64 {
        // In this order: what is routed by then is in the outbox or written.
        let routed = self.shared.routed_epoch.load(Ordering::Acquire);
        let settled = self.outbox.is_drained();
        let sent = self.slots.iter_mut().flatten().filter_map(|sub| sub.sent_epoch.as_mut());
        sent.map(|sent| {
            if settled {
                *sent = routed.max(*sent);
            }
            *sent
        })
        .min()
        .unwrap_or(routed)
    }
}

impl Drop for SessionSubscriptions {
    fn drop(&mut self) {
        for slot in 0..self.slots.len() {
            self.close_subscription(slot as u16);
        }
    }
}
