//! Handlers for signals that ask a process to end.

use std::io;
use std::thread;

use rustix::process::Signal;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// Calls `hear` for each SIGTERM, SIGINT and SIGHUP on a thread of its own, until it returns false.
pub fn handle_signals(mut hear: impl FnMut() -> bool + Send + 'static) -> io::Result<()> {
    catch_file_size_limit()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let [mut terminate, mut interrupt, mut hangup] = {
        let _inside = runtime.enter();
        let [terminate, interrupt, hangup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        [terminate?, interrupt?, hangup?]
    };
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {}
                }
                if !hear() {
                    return;
                }
            }
        });
    })?;
    Ok(())
}

/// Makes a write beyond the file size limit (`ulimit -f`) return an error. Without a handler, the
/// signal ends the process without a message.
pub fn catch_file_size_limit() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    // The handler stays installed after the receiver is dropped.
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}
