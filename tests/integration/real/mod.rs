//! The built program among real ones: a browser, a WebSocket client and a conformance suite that nobody here wrote, and clients
//! that mean no good.

mod browser;
mod cdp;
mod conformance;
mod fuzz;
mod hostile;
mod http;
mod paced_readers;
mod page;
mod page_freshness;
mod page_places;
mod page_units;
mod panics;
mod python_client;
mod readers;
mod service;

use std::ffi::OsString;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What `scripts/test` has prepared: the value of a variable. Without it a test ends early and says so; `scripts/test` sets all
/// of them, so that nothing is left out there. They have no prefix of the program's own, whose configuration they are not.
fn prepared_variable(variable: &str) -> Option<OsString> {
    let value = std::env::var_os(variable).filter(|value| !value.is_empty());
    if value.is_none() {
        print_line(&format!(
            "NOT TESTED: {variable} is not set. scripts/test installs what is needed and sets it"
        ));
    }
    value
}

/// A line that is seen although the test passes: what `eprintln!` says is captured.
fn print_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Held by tests that keep the whole machine busy.
fn lock_machine() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
