//! The subscriptions of one session.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::name_limits::names_bytes;
use super::outbox::Outbox;
use super::router::GroupMember;
use super::selection::{Selection, SubscriptionKind};
use super::shared::SessionsShared;

/// The subscriptions of one session, by slot. Dropping it ends all of them.
pub(super) struct SessionSubscriptions {
    shared: Arc<SessionsShared>,
    outbox: Arc<Outbox>,
    slots: Vec<Option<Subscription>>,
}

pub(super) struct Subscription {
    pub(super) id: Arc<str>,
    pub(super) selection: Arc<Selection>,
    /// The client has all changes up to this epoch; `None` before its snapshot.
    pub(super) sent_epoch: Option<u64>,
    /// The watch whose response is the snapshot that the subscription waits for.
    pub(super) watch_id: Option<u64>,
    /// Whether it holds the rings of its cities.
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
        let window =
            self.iter().filter(|subscription| subscription.selection.kind == SubscriptionKind::Window);
        window.map(|subscription| subscription.selection.listed_cities().len()).sum()
    }

    pub(super) fn find_slot(&self, id: &str) -> Option<u16> {
        let has_id =
            |slot: &Option<Subscription>| slot.as_ref().is_some_and(|subscription| &*subscription.id == id);
        self.slots.iter().position(has_id).map(|slot| slot as u16)
    }

    pub(super) fn subscription_mut(&mut self, slot: u16) -> Option<&mut Subscription> {
        self.slots.get_mut(usize::from(slot))?.as_mut()
    }

    /// Bytes that the names of all subscriptions take.
    pub(super) fn names_bytes(&self) -> usize {
        self.iter().map(|subscription| names_bytes(&subscription.selection)).sum()
    }

    /// Adds a subscription, whose messages wait until it has its snapshot; returns its slot. `None`
    /// if all subscriptions together would list too many names.
    pub(super) fn open_subscription(&mut self, id: Arc<str>, selection: Selection) -> Option<u16> {
        let index = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let slot = index as u16;
        self.outbox.pause_slot(slot);
        let names_share = self.shared.names_quota.new_share();
        let member = GroupMember { outbox: self.outbox.clone(), slot };
        let selection = self.shared.router().join_group(selection, &id, member, names_share)?;
        self.slots[index] =
            Some(Subscription { id, selection, sent_epoch: None, watch_id: None, holds_rings: false });
        self.shared.subscription_count.fetch_add(1, Ordering::Relaxed);
        self.shared.metrics.subscriptions.increment(1);
        Some(slot)
    }

    /// Ends a subscription, and removes its messages from the outbox.
    pub(super) fn close_subscription(&mut self, slot: u16) {
        let Some(subscription) = self.slots.get_mut(usize::from(slot)).and_then(Option::take) else { return };
        let member = GroupMember { outbox: self.outbox.clone(), slot };
        self.shared.router().leave_group(&subscription.selection, &subscription.id, &member);
        self.outbox.pause_slot(slot);
        self.shared.subscription_count.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.subscriptions.decrement(1);
        if subscription.holds_rings {
            self.shared.view.unwatch_cities(subscription.selection.listed_cities());
        }
    }

    /// Releases the rings of a subscription, which will watch its cities again.
    pub(super) fn release_rings(&mut self, slot: u16) {
        if let Some(Some(subscription)) = self.slots.get_mut(usize::from(slot))
            && std::mem::take(&mut subscription.holds_rings)
        {
            self.shared.view.unwatch_cities(subscription.selection.listed_cities());
        }
    }

    /// The epoch up to which the client has all changes of all subscriptions that have their
    /// snapshot.
    pub(super) fn complete_epoch(&mut self) -> u64 {
        // In this order: messages routed by this epoch are in the outbox or written.
        let routed = self.shared.routed_epoch.load(Ordering::Acquire);
        let is_drained = self.outbox.is_drained();
        let sent =
            self.slots.iter_mut().flatten().filter_map(|subscription| subscription.sent_epoch.as_mut());
        sent.map(|sent| {
            if is_drained {
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
