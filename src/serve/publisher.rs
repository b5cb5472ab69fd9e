//! The thread that applies updates to the view and routes them to subscribers, so that the
//! dataflow's workers never encode.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};

use super::view::View;
use super::ws::SubscriberSessions;
use crate::model::ViewUpdate;
use crate::panics::panic_point;

/// Updates that may wait for the publisher thread.
const MAX_QUEUED_UPDATES: usize = 64;

/// Sends updates to the publisher thread. When the last publisher is dropped, the thread applies
/// the queued updates and ends.
#[derive(Clone)]
pub struct Publisher {
    updates: SyncSender<ViewUpdate>,
    queued: Arc<AtomicUsize>,
}

impl Publisher {
    /// Queues an update. Never waits.
    ///
    /// # Errors
    ///
    /// If the queue is full, with the update.
    // The caller keeps the update that is returned, so it is not boxed.
    #[allow(clippy::result_large_err)]
    pub fn publish_update(&self, update: ViewUpdate) -> Result<(), ViewUpdate> {
        self.queued.fetch_add(1, Ordering::Relaxed);
        self.updates.try_send(update).map_err(|error| {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(update) | TrySendError::Disconnected(update) => update,
            }
        })
    }
}

/// Starts the publisher thread.
pub fn spawn_publisher(
    view: Arc<View>,
    sessions: SubscriberSessions,
) -> std::io::Result<(Publisher, JoinHandle<()>)> {
    let (updates, queue) = mpsc::sync_channel(MAX_QUEUED_UPDATES);
    let queued = Arc::new(AtomicUsize::new(0));
    let publisher = Publisher { updates, queued: queued.clone() };
    let run = move || publish_updates(&view, &sessions, &queue, &queued);
    let thread = thread::Builder::new().name("publisher".into()).spawn(run)?;
    Ok((publisher, thread))
}

fn publish_updates(
    view: &View,
    sessions: &SubscriberSessions,
    queue: &Receiver<ViewUpdate>,
    queued: &AtomicUsize,
) {
    for update in queue {
        queued.fetch_sub(1, Ordering::Relaxed);
        panic_point("publisher");
        let applied = view.apply_update(update);
        sessions.route_update(&applied);
    }
}
