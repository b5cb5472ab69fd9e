//! Hooks by which the tests put a built program into states that a healthy host does not show: a
//! wall clock that is wrong, a crash between two writes, a panic at a named point.
//!
//! The hooks read environment variables, and exist only with the feature `test-hooks`, which the
//! tests enable and no released build does. Without it every function here is empty and costs
//! nothing. `scripts/check-no-test-hooks` searches a binary for the names of the variables, and
//! `layers::test_hooks_are_in_one_file` keeps all of them in this file.

#[cfg(not(feature = "test-hooks"))]
pub use self::disabled::*;
#[cfg(feature = "test-hooks")]
pub use self::enabled::*;

#[cfg(feature = "test-hooks")]
mod enabled {
    use std::env::{var, var_os};
    use std::ffi::OsString;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

    /// Milliseconds that are added to the wall clock.
    const CLOCK_OFFSET_VARIABLE: &str = "SWELTER_TEST_CLOCK_OFFSET_MS";
    /// A file that holds the same number, read at each look at the clock.
    const CLOCK_OFFSET_FILE_VARIABLE: &str = "SWELTER_TEST_CLOCK_OFFSET_FILE";
    /// For how many milliseconds a wall clock that has jumped forward must agree with itself before
    /// it counts.
    const CLOCK_CONFIRM_VARIABLE: &str = "SWELTER_TEST_CLOCK_AGREE_MS";
    /// `N`: the process dies after all files of checkpoint `N + 1` are written, before its manifest
    /// is.
    const CRASH_BEFORE_MANIFEST_VARIABLE: &str = "SWELTER_TEST_DIE_BEFORE_MANIFEST";
    /// `N`: the process dies after the records of transaction `N + 1` are flushed, before it is
    /// committed.
    const CRASH_BEFORE_COMMIT_VARIABLE: &str = "SWELTER_TEST_DIE_BEFORE_COMMIT";
    /// `N`: the process dies after the rows of transaction `N + 1` of a folder are synced, before it
    /// is committed.
    const CRASH_BEFORE_FOLDER_COMMIT_VARIABLE: &str = "SWELTER_TEST_DIE_BEFORE_FOLDER_COMMIT";
    /// `NAME:N`: the process panics once, at the `N`-th pass of the point `NAME`.
    const PANIC_POINT_VARIABLE: &str = "SWELTER_PANIC_POINT";

    fn number(variable: &str) -> Option<i64> {
        var(variable).ok()?.parse().ok()
    }

    /// Milliseconds to add to the wall clock.
    pub fn clock_offset_ms() -> i64 {
        static AT_START: LazyLock<i64> = LazyLock::new(|| number(CLOCK_OFFSET_VARIABLE).unwrap_or(0));
        static FILE: LazyLock<Option<OsString>> = LazyLock::new(|| var_os(CLOCK_OFFSET_FILE_VARIABLE));
        let Some(file) = &*FILE else { return *AT_START };
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.trim().parse().unwrap_or(*AT_START)
    }

    /// For how long a wall clock that has jumped forward must agree with itself, if a test says so.
    pub fn clock_confirm_ms() -> Option<i64> {
        number(CLOCK_CONFIRM_VARIABLE)
    }

    /// Counts a checkpoint whose files are written, and aborts the process if this is the one at
    /// which a test wants it.
    pub fn crash_before_manifest() {
        static PASSES: LazyLock<AtomicI64> = LazyLock::new(|| passes(CRASH_BEFORE_MANIFEST_VARIABLE));
        abort_after(&PASSES);
    }

    /// Counts a transaction whose records are flushed, and aborts the process if this is the one at
    /// which a test wants it.
    pub fn crash_before_commit() {
        static PASSES: LazyLock<AtomicI64> = LazyLock::new(|| passes(CRASH_BEFORE_COMMIT_VARIABLE));
        abort_after(&PASSES);
    }

    /// Counts a transaction of a folder whose rows are synced, and aborts the process if this is the
    /// one at which a test wants it.
    pub fn crash_before_folder_commit() {
        static PASSES: LazyLock<AtomicI64> = LazyLock::new(|| passes(CRASH_BEFORE_FOLDER_COMMIT_VARIABLE));
        abort_after(&PASSES);
    }

    fn passes(variable: &str) -> AtomicI64 {
        AtomicI64::new(number(variable).unwrap_or(i64::MAX))
    }

    fn abort_after(passes: &AtomicI64) {
        if passes.fetch_sub(1, Ordering::Relaxed) <= 0 {
            std::process::abort();
        }
    }

    struct ArmedPanicPoint {
        name: String,
        passes_left: AtomicU64,
    }

    /// Panics if a test wants it here, at the line that calls this.
    #[inline]
    #[track_caller]
    pub fn panic_point(name: &str) {
        static ARMED: LazyLock<Option<ArmedPanicPoint>> = LazyLock::new(|| {
            let value = var(PANIC_POINT_VARIABLE).ok()?;
            let (name, passes) = value.split_once(':')?;
            Some(ArmedPanicPoint { name: name.into(), passes_left: AtomicU64::new(passes.parse().ok()?) })
        });
        if let Some(armed) = &*ARMED
            && armed.name == name
            && armed.passes_left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            panic!("{PANIC_POINT_VARIABLE} asks for it at {name}");
        }
    }
}

#[cfg(not(feature = "test-hooks"))]
mod disabled {
    #[inline(always)]
    pub fn clock_offset_ms() -> i64 {
        0
    }

    #[inline(always)]
    pub fn clock_confirm_ms() -> Option<i64> {
        None
    }

    #[inline(always)]
    pub fn crash_before_manifest() {}

    #[inline(always)]
    pub fn crash_before_commit() {}

    #[inline(always)]
    pub fn crash_before_folder_commit() {}

    #[inline(always)]
    pub fn panic_point(_name: &str) {}
}
