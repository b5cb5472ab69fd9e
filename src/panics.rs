//! Panics in code that serves one client: they end that request, session or connection, and the
//! process goes on.
//!
//! A panic hook runs on the panicking thread, so a thread-local scope tells it what the thread is
//! serving: [`catch_panic`] and [`catch_future_panic`] set it. Every other panic ends the process,
//! and so does one while a lock of shared state is held ([`locks`]), since that state may be half
//! changed.

pub mod locks;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, Location, PanicHookInfo, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use crate::test_hooks::panic_point;

/// What a caught panic ends. Each of these belongs to one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicScope {
    Connection,
    /// The handshake of an unproven connection to the cluster.
    Handshake,
    Request,
    /// One record of a log or of a request: it becomes a dead letter, or is refused.
    Record,
    /// A WebSocket session.
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

    /// The name in metrics and in the log.
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

/// The text of an error that only a bug of this program can cause.
pub fn bug_text(problem: &str) -> String {
    format!("a bug in swelter, please report it: {problem}")
}

/// The metric of caught panics, by scope.
pub const CAUGHT_PANICS_METRIC: &str = "swelter_caught_panics_total";

thread_local! {
    /// The innermost scope that this thread runs in.
    static CURRENT_SCOPE: Cell<Option<PanicScope>> = const { Cell::new(None) };
    /// Locks and sections of shared state that this thread is inside.
    static SHARED_STATE_DEPTH: Cell<u32> = const { Cell::new(0) };
    /// The hook has let a panic unwind to its scope, which it has not reached yet.
    static IS_UNWINDING: Cell<bool> = const { Cell::new(false) };
    /// A panic went through shared state. It can only be true if no hook has ended the process.
    static IS_SHARED_STATE_BROKEN: Cell<bool> = const { Cell::new(false) };
}

/// A panic was caught. The hook has logged it.
#[derive(Debug, thiserror::Error)]
#[error("a bug in swelter ended it")]
pub struct CaughtPanic;

/// Runs `work`, which serves one client, and catches its panic.
pub fn catch_panic<T>(scope: PanicScope, work: impl FnOnce() -> T) -> Result<T, CaughtPanic> {
    let outer = CURRENT_SCOPE.replace(Some(scope));
    IS_UNWINDING.set(false);
    // The state of `work` belongs to its client and is dropped with it; shared state is guarded by
    // `locks`.
    let result = catch_unwind(AssertUnwindSafe(work));
    CURRENT_SCOPE.set(outer);
    IS_UNWINDING.set(false);
    result.map_err(|panic| {
        if IS_SHARED_STATE_BROKEN.get() {
            resume_unwind(panic);
        }
        // A panic that another thread caught for this one was counted there.
        if !panic.is::<CaughtPanic>() {
            metrics::counter!(CAUGHT_PANICS_METRIC, "where" => scope.name()).increment(1);
        }
        CaughtPanic
    })
}

/// [`catch_panic`] for a future, at each of its polls.
pub fn catch_future_panic<F: Future>(scope: PanicScope, future: F) -> CatchPanicFuture<F> {
    CatchPanicFuture { scope, future: Box::pin(future) }
}

/// The future of [`catch_future_panic`].
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

/// Runs `work` on a thread that may block, in the scope of the caller, to which a panic of `work`
/// is passed on.
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

/// For the panic hook, once a panic: the scope that the panic of this thread ends, or `None` if it
/// must end the process.
pub fn scope_ended_by(panic: &PanicHookInfo<'_>) -> Option<PanicScope> {
    let scope = CURRENT_SCOPE.get()?;
    // A destructor that panics during unwinding would abort the process without a log line.
    if SHARED_STATE_DEPTH.get() > 0 || IS_UNWINDING.replace(true) || is_of_poisoned_lock(panic) {
        return None;
    }
    Some(scope)
}

/// Whether a lock of any crate was poisoned by an earlier panic: every further client would meet
/// the same.
fn is_of_poisoned_lock(panic: &PanicHookInfo<'_>) -> bool {
    panic_message(panic).is_some_and(|text| text.contains("PoisonError"))
}

/// The message of a panic, if it is text.
pub fn panic_message<'a>(panic: &'a PanicHookInfo<'_>) -> Option<&'a str> {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

/// The least time between two log lines about one location in the source.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

struct ReportState {
    last: Instant,
    /// Panics at the location since the last log line.
    unreported: u64,
}

/// Whether to log a caught panic: the first at its location, then one a minute. The number is of
/// those since the last line that were not logged.
pub fn unreported_count_if_due(location: &Location<'_>) -> Option<u64> {
    static REPORTS_BY_LOCATION: LazyLock<Mutex<HashMap<String, ReportState>>> = LazyLock::new(Mutex::default);
    // A hook never waits, nor panics.
    let mut reports_by_location = REPORTS_BY_LOCATION.try_lock()?;
    let now = Instant::now();
    let Some(reports) = reports_by_location.get_mut(&location.to_string()) else {
        reports_by_location.insert(location.to_string(), ReportState { last: now, unreported: 0 });
        return Some(0);
    };
    if now - reports.last < REPORT_INTERVAL {
        reports.unreported += 1;
        return None;
    }
    reports.last = now;
    Some(std::mem::take(&mut reports.unreported))
}
