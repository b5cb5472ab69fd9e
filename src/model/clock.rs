//! The clocks of this host: the time, and how long the host has been up.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::test_hooks;

/// The wall clock, ms since 1970-01-01T00:00:00Z.
pub fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let clock = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    clock.saturating_add_signed(test_hooks::clock_offset_ms())
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
