//! Fields that no reading has, in readings all the same. They are passed over; but one such as `"unit":"C"` may mean that the
//! values are something else than they are taken for, so they are counted, and each name is told once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::model::printable::printable;
use crate::panics::locks::SharedMutex;

/// Names that the process remembers, and so tells of: readings may bring any number.
const MAX_NAMES: usize = 100;
/// Names that one decoder knows to be remembered, so that it need not ask.
const MAX_KNOWN: usize = 16;
/// Of a name that is told.
const MAX_NAME_CHARS: usize = 64;

static COUNT: AtomicU64 = AtomicU64::new(0);
static NAMES: SharedMutex<BTreeSet<Box<str>>> = SharedMutex::new(BTreeSet::new());
static IS_FULL: AtomicBool = AtomicBool::new(false);

/// How many there were since the process began, in the records of its sources.
pub fn unknown_field_count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Their names, cut and printable: the first [`MAX_NAMES`] that were met.
pub fn unknown_field_names() -> Vec<String> {
    NAMES.lock().iter().map(|name| printable(name).into_owned()).collect()
}

/// The fields that one decoder has met.
#[derive(Debug, Default)]
pub(super) struct UnknownFields {
    known: Vec<Box<str>>,
}

impl UnknownFields {
    /// Counts a field, and tells its name where that is new.
    #[inline]
    pub(super) fn meet(&mut self, name: &str) {
        COUNT.fetch_add(1, Ordering::Relaxed);
        if IS_FULL.load(Ordering::Relaxed) || self.known.iter().any(|known| **known == *name) {
            return;
        }
        if remember(name) {
            tracing::warn!(
                field = %shown(name),
                "readings have a field that none of a reading's is: it is passed over, and the units of values are those of the \
                 configuration whatever it says"
            );
        }
        if self.known.len() < MAX_KNOWN {
            self.known.push(name.into());
        }
    }

    /// Counts a field that was met before, as the columns of a file are in its header.
    pub(super) fn count(fields: u64) {
        COUNT.fetch_add(fields, Ordering::Relaxed);
    }
}

/// Whether the name is new, and there is room for it.
fn remember(name: &str) -> bool {
    let mut names = NAMES.lock();
    if names.len() >= MAX_NAMES {
        if !IS_FULL.swap(true, Ordering::Relaxed) {
            tracing::warn!(names = MAX_NAMES, "readings have more unknown fields: further ones are counted only");
        }
        return false;
    }
    names.insert(name.chars().take(MAX_NAME_CHARS).collect::<String>().into())
}

/// Nothing that a terminal obeys, and not too much of it.
fn shown(name: &str) -> String {
    let cut: String = name.chars().take(MAX_NAME_CHARS).collect();
    let end = if cut.len() < name.len() { "…" } else { "" };
    format!("{}{end}", printable(&cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_once_and_of_a_bounded_number() {
        let before = unknown_field_count();
        let mut fields = UnknownFields::default();
        assert!(remember("a field of this test") && !remember("a field of this test"));
        for _ in 0..3 {
            fields.meet("a field of this test");
        }
        assert!(unknown_field_count() >= before + 3);
        assert_eq!(fields.known.len(), 1);
        let told = (0..10 * MAX_NAMES).filter(|n| remember(&format!("field {n}"))).count();
        assert!(told < MAX_NAMES, "{told}");
        for n in 0..10 * MAX_NAMES {
            fields.meet(&format!("other field {n}"));
        }
        assert!(fields.known.len() <= MAX_KNOWN && NAMES.lock().len() <= MAX_NAMES);
    }

    #[test]
    fn names_are_shown_cut_and_escaped() {
        assert_eq!(shown("unit"), "unit");
        assert!(!shown("\u{1b}[2J").contains('\u{1b}'));
        let long = "ü".repeat(1000);
        assert_eq!(shown(&long), format!("{}…", "ü".repeat(MAX_NAME_CHARS)));
    }
}
