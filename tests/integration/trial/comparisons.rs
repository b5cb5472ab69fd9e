//! Comparisons and the differences that they found.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[derive(Default)]
pub struct Comparisons {
    pub made: usize,
    /// Compared rows and records.
    pub values: usize,
    pub differences: Vec<String>,
}

impl Comparisons {
    /// Runs a check, which returns the number of compared values and panics if one differs.
    pub fn run_check(&mut self, what: &str, check: impl FnOnce() -> usize) {
        self.made += 1;
        match catch_unwind(AssertUnwindSafe(check)) {
            Ok(values) => self.values += values,
            Err(panic) => self.differences.push(format!("{what}: {}", panic_message(&*panic))),
        }
    }
}

/// The message of a panic.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
}

#[test]
fn difference_is_recorded_with_panic_message() {
    let mut comparisons = Comparisons::default();
    comparisons.run_check("the same", || 3);
    comparisons.run_check("sums", || {
        assert_eq!(1 + 1, 3, "a sum");
        1
    });
    assert_eq!((comparisons.made, comparisons.values), (2, 3));
    let [difference] = &comparisons.differences[..] else { panic!() };
    assert!(difference.starts_with("sums: ") && difference.contains("a sum"), "{difference}");
}
