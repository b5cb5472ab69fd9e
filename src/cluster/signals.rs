//! Signals that ask a process to end.

use std::io;
use std::thread;

use rustix::process::Signal;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// From now on, `hear` hears of each SIGTERM, SIGINT and SIGHUP, on a thread of its own, until it says false.
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

/// From now on, a write beyond the limit of a file's size (`ulimit -f`) is an error with a text: without a handler of its signal it ends
/// the process without a word.
pub fn catch_file_size_limit() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    // The handler stays when nobody listens any more.
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}
