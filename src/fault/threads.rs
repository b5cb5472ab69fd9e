//! Threads that the host does not allow. Libraries panic if they cannot start one, so the limit is
//! checked before.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};

use super::limit_remedy;

const REMEDY_THREADS: &str = "raise `ulimit -u` (with systemd TasksMax=), or the cgroup's pids.max";

/// Checks that `count` more threads can be had now: starts them all, and ends them.
///
/// # Errors
///
/// The host's error for the first thread that it does not allow.
pub fn check_threads_available(count: usize) -> io::Result<()> {
    // The threads wait until the sender is dropped, on every path out of this function.
    let (sender, ended) = mpsc::channel::<()>();
    let ended = Arc::new(Mutex::new(ended));
    let mut threads = Vec::with_capacity(count);
    let mut started = Ok(());
    for _ in 0..count {
        let ended = ended.clone();
        let wait = move || ended.lock().recv();
        match thread::Builder::new().name("probe".into()).spawn(wait) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                started = Err(error);
                break;
            }
        }
    }
    drop(sender);
    for thread in threads {
        // The thread cannot panic.
        let _ = thread.join();
    }
    started
}

/// Longer than any run: an idle thread stays.
const IDLE_THREAD_LIFETIME: Duration = Duration::from_secs(10 * 366 * 24 * 3_600);

/// A runtime with `threads` workers and a limited number of threads for blocking work. One of the
/// latter is there from the beginning, and none ends before the runtime: `spawn_blocking` panics if
/// it has no thread and can start none, and a client's request must not do that.
pub fn build_runtime(builder: &mut Builder, threads: usize, blocking: usize) -> io::Result<Runtime> {
    // The builder would panic without these threads.
    check_threads_available(threads + 1)?;
    let builder = builder
        .worker_threads(threads)
        .max_blocking_threads(blocking)
        .thread_keep_alive(IDLE_THREAD_LIFETIME);
    let runtime = builder.enable_all().build()?;
    runtime.block_on(runtime.spawn_blocking(|| ())).map_err(io::Error::other)?;
    Ok(runtime)
}

/// What cannot be started, and what to do. Threads are started together with the files that they
/// poll, so the cause may be a lack of files.
pub fn start_failure_text(error: &io::Error) -> String {
    match limit_remedy(error) {
        Some(remedy) => format!("this process cannot start: {error}: {remedy}"),
        None => format!("threads cannot be started: {error}: {REMEDY_THREADS}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn thread_check_releases_probed_threads() {
        for _ in 0..3 {
            check_threads_available(50).unwrap();
        }
        check_threads_available(0).unwrap();
    }

    #[test]
    fn thread_start_error_names_reached_limit() {
        let text = |errno: Errno| start_failure_text(&errno.into());
        assert!(text(Errno::AGAIN).starts_with("threads cannot be started"), "{}", text(Errno::AGAIN));
        assert!(text(Errno::AGAIN).contains("`ulimit -u`") && text(Errno::AGAIN).contains("pids.max"));
        assert!(text(Errno::MFILE).contains("`ulimit -n`") && !text(Errno::MFILE).contains("ulimit -u"));
    }
}
