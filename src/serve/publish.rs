//! The thread that applies updates to the view and sends them on, so that the dataflow's workers never encode.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};

use super::view::View;
use super::ws::Sessions;
use crate::model::Update;
use crate::panics::fail_point;

/// Updates that may wait.
const QUEUED: usize = 64;

/// Where updates go. When the last one is dropped, the thread ends once it has sent what waits.
#[derive(Clone)]
pub struct Publisher {
    updates: SyncSender<Update>,
    queued: Arc<AtomicUsize>,
}

impl Publisher {
    /// Never waits: gives the update back where the queue is full.
    // The caller keeps what comes back.
    #[allow(clippy::result_large_err)]
    pub fn publish(&self, update: Update) -> Result<(), Update> {
        self.queued.fetch_add(1, Ordering::Relaxed);
        self.updates.try_send(update).map_err(|error| {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(update) | TrySendError::Disconnected(update) => update,
            }
        })
    }

    pub fn is_full(&self) -> bool {
        self.queued.load(Ordering::Relaxed) >= QUEUED
    }
}

/// Starts the publisher thread.
pub fn spawn(view: Arc<View>, sessions: Sessions) -> std::io::Result<(Publisher, JoinHandle<()>)> {
    let (updates, waiting) = mpsc::sync_channel(QUEUED);
    let queued = Arc::new(AtomicUsize::new(0));
    let publisher = Publisher { updates, queued: queued.clone() };
    let run = move || run(&view, &sessions, &waiting, &queued);
    let thread = thread::Builder::new().name("publisher".into()).spawn(run)?;
    Ok((publisher, thread))
}

fn run(view: &View, sessions: &Sessions, waiting: &Receiver<Update>, queued: &AtomicUsize) {
    for update in waiting {
        queued.fetch_sub(1, Ordering::Relaxed);
        fail_point("publisher");
        let applied = view.apply(update);
        sessions.route(&applied);
    }
}
