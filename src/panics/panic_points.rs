//! Named points at which a test makes the built program panic.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// For tests: `NAME:N` panics once, when the point is passed for the N-th time. The variable is
/// read once.
const VARIABLE: &str = "SWELTER_PANIC_POINT";

struct ArmedPanicPoint {
    name: String,
    passes_left: AtomicU64,
}

static ARMED_PANIC_POINT: LazyLock<Option<ArmedPanicPoint>> = LazyLock::new(|| {
    let value = std::env::var(VARIABLE).ok()?;
    let (name, passes) = value.split_once(':')?;
    Some(ArmedPanicPoint { name: name.into(), passes_left: AtomicU64::new(passes.parse().ok()?) })
});

/// Panics if a test asks for it here, with the caller's location; otherwise it does nothing.
#[inline]
#[track_caller]
pub fn panic_point(name: &str) {
    if let Some(armed) = &*ARMED_PANIC_POINT
        && armed.name == name
        && armed.passes_left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        panic!("{VARIABLE} asks for it at {name}");
    }
}
