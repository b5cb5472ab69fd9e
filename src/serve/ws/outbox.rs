//! Messages that wait to be written to one client.

use std::collections::VecDeque;

use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::panics::locks::{SharedMutex, SharedMutexGuard};
use crate::serve::budget::QuotaShare;

/// A queue of shared messages, limited by bytes. Beyond the limit the messages of a subscription
/// are dropped, and the session merges what it missed from the view once the client has read the
/// rest.
///
/// A slot is the number of a subscription in its session.
pub(super) struct Outbox {
    queue: SharedMutex<OutboxQueue>,
    wake: Notify,
    max_bytes: usize,
}

struct OutboxQueue {
    messages: VecDeque<OutboxMessage>,
    quota_share: QuotaShare,
    modes: Vec<DeliveryMode>,
}

/// A `changes` message for a subscription.
pub(super) struct OutboxMessage {
    pub(super) slot: u16,
    pub(super) rows: u32,
    pub(super) as_of: u64,
    pub(super) text: Utf8Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DeliveryMode {
    /// Messages are queued.
    Queueing,
    /// Messages are not queued: the session brings the subscription up to date from the view.
    Paused,
    /// Messages were dropped, and the session has not merged them yet.
    Dropped,
}

/// Bytes that a message takes beside its text.
const MESSAGE_OVERHEAD_BYTES: usize = size_of::<OutboxMessage>();
/// Messages that an empty queue keeps memory for.
const RETAINED_CAPACITY: usize = 64;

impl Outbox {
    /// At most `max_bytes`, within a share of the bytes of all outboxes.
    pub(super) fn new(max_bytes: usize, quota_share: QuotaShare) -> Outbox {
        let queue = OutboxQueue { messages: VecDeque::new(), quota_share, modes: Vec::new() };
        Outbox { queue: SharedMutex::new(queue), wake: Notify::new(), max_bytes }
    }

    fn lock_queue(&self) -> SharedMutexGuard<'_, OutboxQueue> {
        self.queue.lock()
    }

    /// Drops the messages of a slot, and queues no others until [`Outbox::resume_slot`].
    pub(super) fn pause_slot(&self, slot: u16) {
        let mut queue = self.lock_queue();
        let slots = queue.modes.len().max(usize::from(slot) + 1);
        queue.modes.resize(slots, DeliveryMode::Paused);
        queue.modes[usize::from(slot)] = DeliveryMode::Paused;
        queue.drop_messages(slot);
    }

    /// Queues the messages of a slot from now on.
    pub(super) fn resume_slot(&self, slot: u16) {
        if let Some(mode) = self.lock_queue().modes.get_mut(usize::from(slot)) {
            *mode = DeliveryMode::Queueing;
        }
    }

    /// Queues a message; returns how many rows were dropped, to be merged later.
    pub(super) fn push_message(&self, slot: u16, as_of: u64, rows: u32, text: &Utf8Bytes) -> u64 {
        let mut queue = self.lock_queue();
        let dropped = match queue.modes.get(usize::from(slot)) {
            None | Some(DeliveryMode::Paused) => return 0,
            Some(DeliveryMode::Dropped) => return u64::from(rows),
            Some(DeliveryMode::Queueing) => {
                let bytes = text.len() + MESSAGE_OVERHEAD_BYTES;
                if queue.try_accept(bytes, self.max_bytes) {
                    queue.messages.push_back(OutboxMessage { slot, rows, as_of, text: text.clone() });
                    0
                } else {
                    queue.modes[usize::from(slot)] = DeliveryMode::Dropped;
                    queue.drop_messages(slot) + u64::from(rows)
                }
            }
        };
        drop(queue);
        self.wake.notify_one();
        dropped
    }

    /// Moves messages of about `bytes` in all, at least one, to `messages`; false if there is none.
    pub(super) fn take_messages(&self, bytes: usize, messages: &mut Vec<OutboxMessage>) -> bool {
        let mut queue = self.lock_queue();
        let mut remaining = bytes;
        while let Some(message) = queue.messages.pop_front() {
            queue.quota_share.shrink(message.text.len() + MESSAGE_OVERHEAD_BYTES);
            remaining = remaining.saturating_sub(message.text.len());
            messages.push(message);
            if remaining == 0 {
                break;
            }
        }
        if queue.messages.is_empty() && queue.messages.capacity() > RETAINED_CAPACITY {
            queue.messages = VecDeque::new();
        }
        !messages.is_empty()
    }

    /// A slot whose messages were dropped.
    pub(super) fn slot_with_dropped_messages(&self) -> Option<u16> {
        self.lock_queue().modes.iter().position(|mode| *mode == DeliveryMode::Dropped).map(|slot| slot as u16)
    }

    /// Whether no message waits and none was dropped.
    pub(super) fn is_drained(&self) -> bool {
        let queue = self.lock_queue();
        queue.messages.is_empty() && !queue.modes.contains(&DeliveryMode::Dropped)
    }

    /// Waits until a message is queued or dropped.
    pub(super) async fn wait_for_work(&self) {
        while self.is_drained() {
            self.wake.notified().await;
        }
    }
}

impl OutboxQueue {
    /// Whether a message may wait: the first one in any case, further ones within the client's
    /// limit and its share.
    fn try_accept(&mut self, bytes: usize, max_bytes: usize) -> bool {
        let fits = self.quota_share.bytes() + bytes <= max_bytes && self.quota_share.try_grow(bytes);
        fits || self.messages.is_empty()
    }

    fn drop_messages(&mut self, slot: u16) -> u64 {
        let mut rows = 0;
        let share = &mut self.quota_share;
        self.messages.retain(|message| {
            let stays = message.slot != slot;
            if !stays {
                share.shrink(message.text.len() + MESSAGE_OVERHEAD_BYTES);
                rows += u64::from(message.rows);
            }
            stays
        });
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::budget::ByteQuota;

    #[test]
    fn full_outbox_drops_messages_of_largest_subscription() {
        let outbox = Outbox::new(3 * (MESSAGE_OVERHEAD_BYTES + 10), ByteQuota::new(1 << 20).new_share());
        let text = Utf8Bytes::from_static("0123456789");
        outbox.pause_slot(0);
        outbox.pause_slot(1);
        assert_eq!(outbox.push_message(0, 1, 1, &text), 0);
        assert!(outbox.is_drained(), "messages of a paused slot are not queued");
        outbox.resume_slot(0);
        outbox.resume_slot(1);
        let dropped: Vec<_> =
            (1..=5).map(|epoch| outbox.push_message(u16::from(epoch == 1), epoch, 2, &text)).collect();
        assert_eq!(dropped, [0, 0, 0, 6, 2]);
        assert_eq!(outbox.slot_with_dropped_messages(), Some(0));
        let mut messages = Vec::new();
        assert!(outbox.take_messages(1000, &mut messages));
        assert_eq!(
            messages.iter().map(|message| (message.slot, message.as_of)).collect::<Vec<_>>(),
            [(1, 1)]
        );
        assert!(!outbox.is_drained());
        outbox.resume_slot(0);
        assert!(outbox.is_drained());
        assert_eq!(outbox.push_message(0, 6, 1, &text), 0);
    }
}
