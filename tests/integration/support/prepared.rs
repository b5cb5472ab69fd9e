//! What `scripts/test` prepares: a broker, a browser and Python packages, each named by a variable.

use std::ffi::OsString;
use std::io::Write as _;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// The value of a variable that `scripts/test` sets; without it the test fails. A test that needs
/// one has `#[ignore = "needs ...: scripts/test"]`, so that plain `cargo test` needs nothing.
pub fn prepared_variable(variable: &str) -> OsString {
    let value = std::env::var_os(variable).filter(|value| !value.is_empty());
    value.unwrap_or_else(|| panic!("{variable} is not set: scripts/test installs what it names and sets it"))
}

/// Prints a line although the test passes: libtest captures what `eprintln!` prints.
pub fn print_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Held by tests that keep the whole machine busy, so that only one of them runs at a time.
pub fn lock_machine() -> MutexGuard<'static, ()> {
    static BUSY: Mutex<()> = Mutex::new(());
    BUSY.lock()
}

/// Tests with a browser that run at the same time.
const MAX_BROWSERS: usize = 2;
static BROWSERS: Mutex<usize> = Mutex::new(0);
static BROWSER_CLOSED: Condvar = Condvar::new();

/// Held by a test with a browser.
pub struct BrowserPermit(());

/// Waits until the test may start a browser.
pub fn limit_browsers() -> BrowserPermit {
    let mut running = BROWSERS.lock();
    BROWSER_CLOSED.wait_while(&mut running, |running| *running >= MAX_BROWSERS);
    *running += 1;
    BrowserPermit(())
}

impl Drop for BrowserPermit {
    fn drop(&mut self) {
        *BROWSERS.lock() -= 1;
        BROWSER_CLOSED.notify_one();
    }
}
