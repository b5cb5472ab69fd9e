//! The subscriptions of one session.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::names::names_bytes;
use super::outbox::Outbox;
use super::selection::{Rows, Selection};

/// By slot of the outbox. Dropped, it leaves all routes and watches.
pub(super) struct Subscriptions {
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    slots: Vec<Option<Subscription>>,
}

pub(super) struct Subscription {
    pub(super) id: Arc<str>,
    pub(super) selection: Arc<Selection>,
    /// The client's map is right as of this epoch; nothing before its snapshot.
    pub(super) sent: Option<u64>,
    /// The watch whose answers are awaited for the snapshot.
    pub(super) watch: Option<u64>,
    /// Holds the rings of its cities.
    pub(super) holds: bool,
}

impl Subscriptions {
    pub(super) fn new(shared: Arc<Shared>, outbox: Arc<Outbox>) -> Subscriptions {
        Subscriptions { shared, outbox, slots: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.iter().count()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.slots.iter().flatten()
    }

    /// Cities of all window subscriptions.
    pub(super) fn watched(&self) -> usize {
        let window = self.iter().filter(|sub| sub.selection.rows == Rows::Window);
        window.map(|sub| sub.selection.listed().len()).sum()
    }

    pub(super) fn find(&self, id: &str) -> Option<u16> {
        let found = self.slots.iter().position(|slot| slot.as_ref().is_some_and(|sub| &*sub.id == id));
        found.map(|slot| slot as u16)
    }

    pub(super) fn get_mut(&mut self, slot: u16) -> Option<&mut Subscription> {
        self.slots.get_mut(usize::from(slot))?.as_mut()
    }

    /// Bytes that the names of all subscriptions take.
    pub(super) fn names_bytes(&self) -> usize {
        self.iter().map(|sub| names_bytes(&sub.selection)).sum()
    }

    /// Adds a subscription; its messages are held back. Nothing where all subscriptions name too much.
    pub(super) fn open(&mut self, id: Arc<str>, selection: Selection) -> Option<u16> {
        let slot = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let number = slot as u16;
        self.outbox.hold(number);
        let names = self.shared.names.share();
        let joined = self.shared.routes().join(selection, &id, &self.outbox, number, names);
        let selection = joined?;
        self.slots[slot] = Some(Subscription { id, selection, sent: None, watch: None, holds: false });
        self.shared.subscriptions.fetch_add(1, Ordering::Relaxed);
        self.shared.meters.subscriptions.increment(1);
        Some(number)
    }

    /// Ends a subscription: nothing of it is in the outbox any more.
    pub(super) fn close(&mut self, slot: u16) {
        let Some(subscription) = self.slots.get_mut(usize::from(slot)).and_then(Option::take) else { return };
        self.shared.routes().leave(&subscription.selection, &subscription.id, &self.outbox, slot);
        self.outbox.hold(slot);
        self.shared.subscriptions.fetch_sub(1, Ordering::Relaxed);
        self.shared.meters.subscriptions.decrement(1);
        if subscription.holds {
            self.shared.view.unwatch(subscription.selection.listed());
        }
    }

    /// Lets go of the rings, to watch anew.
    pub(super) fn unwatch(&mut self, slot: u16) {
        if let Some(Some(subscription)) = self.slots.get_mut(usize::from(slot))
            && std::mem::take(&mut subscription.holds)
        {
            self.shared.view.unwatch(subscription.selection.listed());
        }
    }

    /// Up to which epoch the client has everything of all subscriptions that have begun.
    pub(super) fn as_of(&mut self) -> u64 {
        // In this order: what is routed by then is in the outbox or written.
        let routed = self.shared.routed.load(Ordering::Acquire);
        let settled = self.outbox.is_settled();
        let sent = self.slots.iter_mut().flatten().filter_map(|sub| sub.sent.as_mut());
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

impl Drop for Subscriptions {
    fn drop(&mut self) {
        for slot in 0..self.slots.len() {
            self.close(slot as u16);
        }
    }
}
