//! Handles requests to stop: by a signal, the supervisor or another process, at any time of a run.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cluster::{StopFlag, signals};
use crate::fault::exit::{ExitReason, end_process};

/// A second signal within this window is the same one, sent to the process and to its group.
const REPEATED_SIGNAL_WINDOW: Duration = Duration::from_millis(300);
/// How long a start may take to react to a request, whatever it waits for.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Receives requests to stop. Every wait of a start checks the [`flag`](Shutdown::flag); a run gets
/// the request through its command log.
#[derive(Clone, Default)]
pub struct Shutdown(Arc<ShutdownState>);

type Callback = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct ShutdownState {
    flag: StopFlag,
    catches_signals: AtomicBool,
    is_started: AtomicBool,
    /// Passes the request on, once set.
    on_request: Mutex<Option<Callback>>,
    /// Tells the other processes that this one ends, once they are connected.
    on_abandon: Mutex<Option<Callback>>,
}

impl Shutdown {
    /// Handles signals from now on: the first one requests a stop, and a later one ends the
    /// process.
    pub fn catch_signals(&self) -> io::Result<()> {
        if self.0.catches_signals.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let (shutdown, mut requested) = (self.clone(), None::<Instant>);
        signals::handle_signals(move || {
            if requested.is_some_and(|since| since.elapsed() > REPEATED_SIGNAL_WINDOW) {
                tracing::warn!("a second stop signal: the process ends at once");
                end_process(ExitReason::StoppedAgain);
            }
            requested.get_or_insert_with(Instant::now);
            shutdown.request_stop();
            true
        })
    }

    /// Requests a stop, as a signal does.
    pub fn request_stop(&self) {
        if self.raise() {
            call(&self.0.on_request);
        }
    }

    /// Records that all processes stop.
    pub fn confirm_stop(&self) {
        self.raise();
    }

    /// The flag that every wait of a start checks.
    pub fn flag(&self) -> StopFlag {
        self.0.flag.clone()
    }

    /// Sets a callback for a request, which is called at once if there was one.
    pub fn on_request(&self, pass_on: impl Fn() + Send + Sync + 'static) {
        set(&self.0.on_request, Arc::new(pass_on));
        if self.0.flag.is_raised() {
            call(&self.0.on_request);
        }
    }

    /// Sets a callback that runs before a start that does not react to a request is ended.
    pub fn on_abandon(&self, tell_others: impl Fn() + Send + Sync + 'static) {
        set(&self.0.on_abandon, Arc::new(tell_others));
    }

    /// Ends the start phase: from now on the run stops in order.
    pub fn finish_start(&self) {
        self.0.is_started.store(true, Ordering::Release);
    }

    fn is_started(&self) -> bool {
        self.0.is_started.load(Ordering::Acquire)
    }

    /// Raises the flag. Returns true the first time. A start must react to it soon.
    fn raise(&self) -> bool {
        let is_first = self.0.flag.raise();
        if is_first && !self.is_started() {
            let shutdown = self.clone();
            let watch = move || shutdown.end_start_that_hangs();
            if let Err(error) = thread::Builder::new().name("stop".into()).spawn(watch) {
                tracing::warn!(%error, "a stop cannot end this start if it hangs: no thread can be started");
            }
        }
        is_first
    }

    /// Ends a start that does not react: waits for brokers and object stores may have no timeout.
    fn end_start_that_hangs(&self) {
        let deadline = Instant::now() + ABANDON_TIMEOUT;
        while Instant::now() < deadline {
            if self.is_started() {
                return;
            }
            thread::sleep(POLL_INTERVAL);
        }
        tracing::info!("a stop was requested during the start: the process ends");
        call(&self.0.on_abandon);
        end_process(ExitReason::Stopped);
    }
}

fn set(callback: &Mutex<Option<Callback>>, to: Callback) {
    *callback.lock() = Some(to);
}

fn call(callback: &Mutex<Option<Callback>>) {
    let callback = callback.lock().clone();
    if let Some(callback) = callback {
        callback();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn earlier_request_is_passed_on_once() {
        let shutdown = Shutdown::default();
        shutdown.finish_start();
        assert!(!shutdown.flag().is_raised());
        shutdown.request_stop();
        let requests = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&requests);
        shutdown.on_request(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        (0..10).for_each(|_| shutdown.request_stop());
        shutdown.confirm_stop();
        assert!(shutdown.flag().is_raised());
        assert_eq!(requests.load(Ordering::Relaxed), 1);
    }
}
