//! Threads that the host does not allow: what starts them within libraries panics, so it is found out before.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::limit_remedy;

const REMEDY_THREADS: &str = "raise `ulimit -u` (with systemd TasksMax=), or the cgroup's pids.max";

/// Whether so many threads more can be had now: starts them all, and ends them.
///
/// # Errors
///
/// What the host says to the first that it does not allow.
pub fn check_threads_available(count: usize) -> io::Result<()> {
    // They wait until the sender is gone, which it is however this ends.
    let (sender, ended) = mpsc::channel::<()>();
    let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
    let mut threads = Vec::with_capacity(count);
    let mut started = Ok(());
    for _ in 0..count {
        let ended = ended.clone();
        let wait = move || drop(ended.lock().map(|ended| ended.recv()));
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
        // It does nothing that could panic.
        let _ = thread.join();
    }
    started
}

/// A thread that has nothing to do stays.
const IDLE_THREAD_LIFETIME: Duration = Duration::from_secs(10 * 366 * 24 * 3_600);

/// A runtime with so many threads, and at most so many for blocking work. One of those is there from the beginning, and none ends
/// before the runtime: `spawn_blocking` panics if it has none and can start none, which what a client asks for must not do.
pub fn build_runtime(builder: &mut Builder, threads: usize, blocking: usize) -> io::Result<Runtime> {
    // It would panic without them.
    check_threads_available(threads + 1)?;
    let builder = builder
        .worker_threads(threads)
        .max_blocking_threads(blocking)
        .thread_keep_alive(IDLE_THREAD_LIFETIME);
    let runtime = builder.enable_all().build()?;
    runtime.block_on(runtime.spawn_blocking(|| ())).map_err(io::Error::other)?;
    Ok(runtime)
}

/// What cannot be started, and what to do: where threads are started together with what they wait by, files may be lacking, too.
pub fn start_failure_text(error: &io::Error) -> String {
    match limit_remedy(error) {
        Some(remedy) => format!("this process cannot get on with its start: {error}: {remedy}"),
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
        let said = |errno: Errno| start_failure_text(&errno.into());
        assert!(said(Errno::AGAIN).starts_with("threads cannot be started"), "{}", said(Errno::AGAIN));
        assert!(said(Errno::AGAIN).contains("`ulimit -u`") && said(Errno::AGAIN).contains("pids.max"));
        assert!(said(Errno::MFILE).contains("`ulimit -n`") && !said(Errno::MFILE).contains("ulimit -u"));
    }
}
