//! Panics of what a client owns alone: they end that request, session or connection, and the process goes on.
//!
//! A panic hook runs on the thread that panics, so a mark of that thread tells it what the thread is at: [`catch`] and
//! [`catch_future`] set it. Every other panic ends the process, as does one while a lock of shared state is held
//! ([`locks`]): what others would go on with may be half changed.

pub mod locks;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, Location, PanicHookInfo, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{LazyLock, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

pub use crate::test_hooks::panic_point;

/// What a caught panic ends. All of it belongs to one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicScope {
    Connection,
    /// A stranger's, with the cluster.
    Handshake,
    Request,
    /// Of a log, or of a request: it becomes a dead letter, or is refused.
    Record,
    /// Of a WebSocket.
    Session,
}

impl PanicScope {
    pub const ALL: [PanicScope; 5] = [
        PanicScope::Connection,
        PanicScope::Handshake,
        PanicScope::Request,
        PanicScope::Record,
        PanicScope::Session,
    ];

    /// As metrics and the log name it.
    pub fn name(self) -> &'static str {
        match self {
            PanicScope::Connection => "connection",
            PanicScope::Handshake => "handshake",
            PanicScope::Request => "request",
            PanicScope::Record => "record",
            PanicScope::Session => "session",
        }
    }
}

/// Caught panics by scope.
pub const CAUGHT_PANICS_METRIC: &str = "swelter_caught_panics_total";

thread_local! {
    /// The innermost scope that this thread runs code of.
    static CURRENT_SCOPE: Cell<Option<PanicScope>> = const { Cell::new(None) };
    /// Locks and calls of shared state that this thread is inside.
    static SHARED_STATE_DEPTH: Cell<u32> = const { Cell::new(0) };
    /// The hook has let a panic go to its scope, which it has not reached yet.
    static IS_UNWINDING: Cell<bool> = const { Cell::new(false) };
    /// A panic has gone through shared state. Only where no hook has ended the process.
    static IS_SHARED_STATE_BROKEN: Cell<bool> = const { Cell::new(false) };
}

/// A panic was caught. The hook has logged it.
#[derive(Debug, thiserror::Error)]
#[error("a bug in swelter ended it")]
pub struct CaughtPanic;

/// Runs `work`, which a client owns alone, and catches its panic.
pub fn catch_panic<T>(scope: PanicScope, work: impl FnOnce() -> T) -> Result<T, CaughtPanic> {
    let outer = CURRENT_SCOPE.replace(Some(scope));
    IS_UNWINDING.set(false);
    // What the work leaves behind is its own, and goes with it; what is shared is not left behind: see `locks`.
    let result = catch_unwind(AssertUnwindSafe(work));
    CURRENT_SCOPE.set(outer);
    IS_UNWINDING.set(false);
    result.map_err(|panic| {
        if IS_SHARED_STATE_BROKEN.get() {
            resume_unwind(panic);
        }
        // One that another thread has caught for this one is counted already.
        if !panic.is::<CaughtPanic>() {
            metrics::counter!(CAUGHT_PANICS_METRIC, "where" => scope.name()).increment(1);
        }
        CaughtPanic
    })
}

/// The same for a future, at each of its polls.
pub fn catch_future_panic<F: Future>(scope: PanicScope, future: F) -> CatchPanicFuture<F> {
    CatchPanicFuture { scope, future: Box::pin(future) }
}

/// See [`catch_future`].
pub struct CatchPanicFuture<F> {
    scope: PanicScope,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for CatchPanicFuture<F> {
    type Output = Result<F::Output, CaughtPanic>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let CatchPanicFuture { scope, future } = &mut *self;
        match catch_panic(*scope, || future.as_mut().poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panicked) => Poll::Ready(Err(panicked)),
        }
    }
}

/// Runs `work` on a thread that may block, in the scope of the caller, which its panic goes on in.
pub async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    let scope = CURRENT_SCOPE.get();
    let run = move || match scope {
        Some(scope) => catch_panic(scope, work),
        None => Ok(work()),
    };
    let result = tokio::task::spawn_blocking(run).await?;
    Ok(result.unwrap_or_else(|panicked| resume_unwind(Box::new(panicked))))
}

/// Asked by the panic hook, once a panic: the scope that the panic of this thread ends, or nothing where it must end the process.
pub fn scope_ended_by(panic: &PanicHookInfo<'_>) -> Option<PanicScope> {
    let scope = CURRENT_SCOPE.get()?;
    // A destructor that panics while a panic unwinds would abort the process, without a word.
    if SHARED_STATE_DEPTH.get() > 0 || IS_UNWINDING.replace(true) || is_of_poisoned_lock(panic) {
        return None;
    }
    Some(scope)
}

/// Some panic has gone through what a lock protects, in whatever crate: every further client would find the same.
fn is_of_poisoned_lock(panic: &PanicHookInfo<'_>) -> bool {
    panic_message(panic).is_some_and(|text| text.contains("PoisonError"))
}

/// What a panic says, where it is text.
pub fn panic_message<'a>(panic: &'a PanicHookInfo<'_>) -> Option<&'a str> {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

/// Reports of one place in the source are at least this far apart.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

struct ReportState {
    last: Instant,
    /// Since the last one.
    unreported: u64,
}

/// Whether a caught panic is to be logged: the first of its place, then one a minute. Gives the number of those since the last
/// that were not.
pub fn unreported_count_if_due(place: &Location<'_>) -> Option<u64> {
    static REPORTS_BY_LOCATION: LazyLock<Mutex<HashMap<String, ReportState>>> = LazyLock::new(Mutex::default);
    // A hook never waits, nor panics.
    let mut places = REPORTS_BY_LOCATION.try_lock().ok()?;
    let now = Instant::now();
    let Some(reports) = places.get_mut(&place.to_string()) else {
        places.insert(place.to_string(), ReportState { last: now, unreported: 0 });
        return Some(0);
    };
    if now - reports.last < REPORT_INTERVAL {
        reports.unreported += 1;
        return None;
    }
    reports.last = now;
    Some(std::mem::take(&mut reports.unreported))
}
