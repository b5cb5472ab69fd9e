//! The clocks of this host: the time, and how long the host has been up.

use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock, ms since 1970-01-01T00:00:00Z.
pub fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let clock = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    #[cfg(debug_assertions)]
    let clock = clock.saturating_add_signed(test_offset::offset_ms());
    clock
}

/// How long the host has been up, in ms, including its sleep. It never goes back, and nobody can
/// set it.
pub fn uptime_ms() -> i64 {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec.saturating_mul(1_000) + time.tv_nsec / 1_000_000
}

/// An id that differs with every boot of the host; empty if unknown.
pub fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// The offset by which tests set the clock of a process forward or back: at its start, or by a file
/// that is read each time the clock is. Builds without debug assertions have neither.
#[cfg(debug_assertions)]
mod test_offset {
    use std::env::{var, var_os};
    use std::ffi::OsString;
    use std::sync::LazyLock;

    static START_OFFSET_MS: LazyLock<i64> =
        LazyLock::new(|| var("SWELTER_TEST_CLOCK_OFFSET_MS").map_or(0, |text| text.parse().unwrap_or(0)));
    static OFFSET_FILE: LazyLock<Option<OsString>> =
        LazyLock::new(|| var_os("SWELTER_TEST_CLOCK_OFFSET_FILE"));

    pub fn offset_ms() -> i64 {
        let Some(file) = &*OFFSET_FILE else { return *START_OFFSET_MS };
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.trim().parse().unwrap_or(*START_OFFSET_MS)
    }
}
