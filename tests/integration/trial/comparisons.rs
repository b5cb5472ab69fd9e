//! Comparisons and the differences that they found.

use std::any::Any;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;

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

/// Checks that the file has the refused records of posts, each once; returns their number.
pub fn check_dead_letters(file: &Path, too_late: &[String]) -> usize {
    let text = fs::read_to_string(file).unwrap_or_default();
    let letters: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut raw: Vec<_> = letters.iter().map(|letter| letter["raw"].as_str().unwrap()).collect();
    let mut expected: Vec<_> = too_late.iter().map(String::as_str).collect();
    raw.sort_unstable();
    expected.sort_unstable();
    assert_eq!(raw, expected, "dead letters");
    raw.len()
}
