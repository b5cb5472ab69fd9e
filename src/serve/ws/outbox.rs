//! What waits to be written to one client.

use std::collections::VecDeque;
use std::sync::MutexGuard;

use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::panics::locks::{SharedGuard, SharedMutex};
use crate::serve::budget::Share;

/// A queue of shared messages, limited by bytes. Past the limit a subscription's messages are dropped: what it misses is merged
/// from the view when the client has taken the rest.
pub(super) struct Outbox {
    queue: SharedMutex<Queue>,
    wake: Notify,
    limit: usize,
}

struct Queue {
    items: VecDeque<Item>,
    bytes: Share,
    flows: Vec<Flow>,
}

/// A `changes` message for the subscription of a slot.
pub(super) struct Item {
    pub(super) slot: u16,
    pub(super) rows: u32,
    pub(super) as_of: u64,
    pub(super) text: Utf8Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Messages are queued.
    On,
    /// The session brings the subscription up to date by itself.
    Held,
    /// Messages were dropped.
    Behind,
}

/// What an item costs beside its text, which it may be the last to hold.
const ITEM_BYTES: usize = size_of::<Item>();
/// A queue that was long gives its room back.
const KEPT_ITEMS: usize = 64;

impl Outbox {
    /// Its bytes are a share of those of all outboxes.
    pub(super) fn new(limit: usize, bytes: Share) -> Outbox {
        let queue = Queue { items: VecDeque::new(), bytes, flows: Vec::new() };
        Outbox { queue: SharedMutex::new(queue), wake: Notify::new(), limit }
    }

    fn queue(&self) -> SharedGuard<MutexGuard<'_, Queue>> {
        self.queue.lock()
    }

    /// Holds a slot's messages back until [`Outbox::open`].
    pub(super) fn hold(&self, slot: u16) {
        let mut queue = self.queue();
        let slots = queue.flows.len().max(usize::from(slot) + 1);
        queue.flows.resize(slots, Flow::Held);
        queue.flows[usize::from(slot)] = Flow::Held;
        queue.drop_items(slot);
    }

    /// From now on messages are queued.
    pub(super) fn open(&self, slot: u16) {
        if let Some(flow) = self.queue().flows.get_mut(usize::from(slot)) {
            *flow = Flow::On;
        }
    }

    /// Queues a message; returns how many rows are left to be merged.
    pub(super) fn push(&self, slot: u16, as_of: u64, rows: u32, text: &Utf8Bytes) -> u64 {
        let mut queue = self.queue();
        let merged = match queue.flows.get(usize::from(slot)) {
            None | Some(Flow::Held) => return 0,
            Some(Flow::Behind) => return u64::from(rows),
            Some(Flow::On) => {
                let bytes = text.len() + ITEM_BYTES;
                if queue.takes(bytes, self.limit) {
                    queue.items.push_back(Item { slot, rows, as_of, text: text.clone() });
                    0
                } else {
                    queue.flows[usize::from(slot)] = Flow::Behind;
                    queue.drop_items(slot) + u64::from(rows)
                }
            }
        };
        drop(queue);
        self.wake.notify_one();
        merged
    }

    /// Takes messages of about `bytes` in all, at least one; false where there is none.
    pub(super) fn take(&self, bytes: usize, taken: &mut Vec<Item>) -> bool {
        let mut queue = self.queue();
        let mut left = bytes;
        while let Some(item) = queue.items.pop_front() {
            queue.bytes.shrink(item.text.len() + ITEM_BYTES);
            left = left.saturating_sub(item.text.len());
            taken.push(item);
            if left == 0 {
                break;
            }
        }
        if queue.items.is_empty() && queue.items.capacity() > KEPT_ITEMS {
            queue.items = VecDeque::new();
        }
        !taken.is_empty()
    }

    /// A slot whose messages were dropped.
    pub(super) fn behind(&self) -> Option<u16> {
        self.queue().flows.iter().position(|flow| *flow == Flow::Behind).map(|slot| slot as u16)
    }

    pub(super) fn is_settled(&self) -> bool {
        let queue = self.queue();
        queue.items.is_empty() && !queue.flows.contains(&Flow::Behind)
    }

    /// Returns when there is something to do.
    pub(super) async fn ready(&self) {
        while self.is_settled() {
            self.wake.notified().await;
        }
    }
}

impl Queue {
    /// Whether a message may wait: the first one in any case, further ones within the client's limit and its share.
    fn takes(&mut self, bytes: usize, limit: usize) -> bool {
        let within = self.bytes.bytes() + bytes <= limit && self.bytes.grow(bytes);
        within || self.items.is_empty()
    }

    fn drop_items(&mut self, slot: u16) -> u64 {
        let mut rows = 0;
        let bytes = &mut self.bytes;
        self.items.retain(|item| {
            let kept = item.slot != slot;
            if !kept {
                bytes.shrink(item.text.len() + ITEM_BYTES);
                rows += u64::from(item.rows);
            }
            kept
        });
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::budget::Shares;

    #[test]
    fn a_full_outbox_drops_the_messages_of_the_subscription_that_is_too_much() {
        let outbox = Outbox::new(3 * (ITEM_BYTES + 10), Shares::new(1 << 20).share());
        let text = Utf8Bytes::from_static("0123456789");
        outbox.hold(0);
        outbox.hold(1);
        assert_eq!(outbox.push(0, 1, 1, &text), 0);
        assert!(outbox.is_settled(), "what is held is not queued");
        outbox.open(0);
        outbox.open(1);
        let merged: Vec<_> =
            (1..=5).map(|epoch| outbox.push(u16::from(epoch == 1), epoch, 2, &text)).collect();
        assert_eq!(merged, [0, 0, 0, 6, 2]);
        assert_eq!(outbox.behind(), Some(0));
        let mut taken = Vec::new();
        assert!(outbox.take(1000, &mut taken));
        assert_eq!(taken.iter().map(|item| (item.slot, item.as_of)).collect::<Vec<_>>(), [(1, 1)]);
        assert!(!outbox.is_settled());
        outbox.open(0);
        assert!(outbox.is_settled());
        assert_eq!(outbox.push(0, 6, 1, &text), 0);
    }
}
