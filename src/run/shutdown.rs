//! Being asked to stop: by a signal, by the supervisor, by another process; at any time from the first line on.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::processes::Processes;
use super::run_error::RunError;
use crate::cluster::message::Message;
use crate::cluster::{StopFlag, signals};

/// What comes so soon after a signal is the same one, sent to the process and to its group.
const REPEATED_SIGNAL_WINDOW: Duration = Duration::from_millis(300);
/// How long a start that is given up may take to notice, whatever it waits for.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What ends the wait for the end.
pub enum Event {
    /// This process is asked to stop: it is a wish, as all stop together.
    Asked,
    /// All processes stop.
    Stop,
    Ended(Result<(), RunError>),
}

/// Hears that it is time to stop. A start gives up then: it has nothing yet that must come to an end. A run is told by an `Event`.
#[derive(Clone, Default)]
pub struct Shutdown(Arc<ShutdownState>);

#[derive(Default)]
struct ShutdownState {
    flag: StopFlag,
    is_ordered: AtomicBool,
    catches_signals: AtomicBool,
    has_started: AtomicBool,
    events: OnceLock<SyncSender<Event>>,
    processes: OnceLock<Weak<Processes>>,
}

impl Shutdown {
    /// From now on signals ask; one that comes later than the first is the end.
    pub fn catch_signals(&self) -> io::Result<()> {
        if self.0.catches_signals.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let (stops, mut asked) = (self.clone(), None::<Instant>);
        signals::handle_signals(move || {
            if asked.is_some_and(|since| since.elapsed() > REPEATED_SIGNAL_WINDOW) {
                tracing::warn!("asked to stop again: ending at once");
                std::process::exit(130);
            }
            asked.get_or_insert_with(Instant::now);
            stops.request_stop();
            true
        })
    }

    /// Asks, as a signal does.
    pub fn request_stop(&self) {
        self.hear(Event::Asked);
    }

    /// All processes stop.
    pub fn confirm_stop(&self) {
        if !self.0.is_ordered.swap(true, Ordering::AcqRel) {
            self.hear(Event::Stop);
        }
    }

    /// What whoever waits looks at.
    pub fn flag(&self) -> StopFlag {
        self.0.flag.clone()
    }

    /// Tells `events`, also of what was asked before.
    pub fn listen(&self, events: &SyncSender<Event>) {
        let _ = self.0.events.set(events.clone());
        if self.0.flag.is_raised() {
            let _ = events.try_send(Event::Asked);
        }
    }

    /// Whom to tell.
    pub fn meet(&self, processes: &Arc<Processes>) {
        let _ = self.0.processes.set(Arc::downgrade(processes));
    }

    /// The start is done: from now on it comes to an end in order.
    pub fn start_is_done(&self) {
        self.0.has_started.store(true, Ordering::Release);
    }

    fn hear(&self, event: Event) {
        let is_first = self.0.flag.raise();
        if let Some(events) = self.0.events.get().filter(|_| is_first || matches!(event, Event::Stop)) {
            // There is room for it: each is sent once, and once more by `listen`.
            let _ = events.try_send(event);
        }
        if is_first && !self.has_started() {
            let stops = self.clone();
            let watch = move || stops.watch_the_start();
            if let Err(error) = thread::Builder::new().name("stop".into()).spawn(watch) {
                tracing::warn!(%error, "a start that waits for something is not given up");
            }
        }
    }

    fn has_started(&self) -> bool {
        self.0.has_started.load(Ordering::Acquire)
    }

    /// Tells the others, and ends a start that does not notice: what it may wait for, such as brokers and object stores, has no end of its
    /// own.
    fn watch_the_start(&self) {
        let deadline = Instant::now() + ABANDON_TIMEOUT;
        let processes = || self.0.processes.get().and_then(Weak::upgrade);
        if let Some(processes) = processes() {
            processes.tell(&Message::Stop);
        }
        while Instant::now() < deadline {
            if self.has_started() {
                return;
            }
            thread::sleep(POLL_INTERVAL);
        }
        tracing::info!("asked to stop while it starts: ending");
        if let Some(processes) = processes() {
            processes.give_up();
        }
        std::process::exit(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn early_stop_request_is_delivered_and_order_sent_once() {
        let stops = Shutdown::default();
        stops.start_is_done();
        assert!(!stops.flag().is_raised());
        stops.request_stop();
        let (events, happened) = mpsc::sync_channel(4);
        stops.listen(&events);
        assert!(stops.flag().is_raised());
        assert!(matches!(happened.try_recv(), Ok(Event::Asked)));
        (0..10).for_each(|_| stops.request_stop());
        stops.confirm_stop();
        stops.confirm_stop();
        assert!(matches!(happened.try_recv(), Ok(Event::Stop)));
        assert!(happened.try_recv().is_err());
    }
}
