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
static NAMES: SharedMutex<Names> = SharedMutex::new(Names(BTreeSet::new()));
static IS_FULL: AtomicBool = AtomicBool::new(false);

/// How many there were since the process began, in the records of its sources.
pub fn unknown_field_count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Their names, cut and printable: the first 100 that were met.
pub fn unknown_field_names() -> Vec<String> {
    NAMES.lock().0.iter().map(|name| printable(name).into_owned()).collect()
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
        tell(name);
        if self.known.len() < MAX_KNOWN {
            self.known.push(name.into());
        }
    }

    /// Counts a field that was met before, as the columns of a file are in its header.
    pub(super) fn count(fields: u64) {
        COUNT.fetch_add(fields, Ordering::Relaxed);
    }
}

#[cold]
fn tell(name: &str) {
    let remembered = NAMES.lock().remember(name);
    match remembered {
        Remembered::New => tracing::warn!(
            field = %shown(name),
            "readings have a field that none of a reading's is: it is passed over, and the units of values are those of the \
             configuration whatever it says"
        ),
        Remembered::Before => {}
        Remembered::Full if IS_FULL.swap(true, Ordering::Relaxed) => {}
        Remembered::Full => {
            tracing::warn!(
                names = MAX_NAMES,
                "readings have more unknown fields: further ones are counted only"
            );
        }
    }
}

/// Names that were told, cut.
#[derive(Debug, Default)]
struct Names(BTreeSet<Box<str>>);

#[derive(Debug, PartialEq, Eq)]
enum Remembered {
    New,
    Before,
    /// There is no room for it.
    Full,
}

impl Names {
    fn remember(&mut self, name: &str) -> Remembered {
        let name: String = name.chars().take(MAX_NAME_CHARS).collect();
        if self.0.contains(&*name) {
            return Remembered::Before;
        }
        if self.0.len() >= MAX_NAMES {
            return Remembered::Full;
        }
        self.0.insert(name.into());
        Remembered::New
    }
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
    use crate::codec::{DecodeSettings, RecordDecoder};

    #[test]
    fn names_are_told_once_and_of_a_bounded_number() {
        let mut names = Names::default();
        assert_eq!(names.remember("unit"), Remembered::New);
        assert_eq!(names.remember("unit"), Remembered::Before);
        let long = "x".repeat(100_000);
        assert_eq!((names.remember(&long), names.remember(&long)), (Remembered::New, Remembered::Before));
        let new = (0..10 * MAX_NAMES).filter(|n| names.remember(&format!("field {n}")) == Remembered::New);
        assert_eq!(new.count(), MAX_NAMES - 2);
        assert_eq!(
            (names.remember("one more"), names.remember("unit")),
            (Remembered::Full, Remembered::Before)
        );
        assert!(names.0.iter().all(|name| name.len() <= MAX_NAME_CHARS));
    }

    #[test]
    fn fields_are_counted_by_all_decoders_of_sources() {
        let before = unknown_field_count();
        let mut decoder = RecordDecoder::of_source(DecodeSettings::default());
        let reading = br#"{"city":"x","reading_at":"2025-11-24T16:00:00Z","temperature":30,"humidity":50,"unit":"C","":{"a":[1]}}"#;
        for _ in 0..3 {
            decoder.decode(reading).unwrap();
        }
        assert_eq!(decoder.ignored_fields(), 6);
        assert!(unknown_field_count() >= before + 6);
        let mut fields = UnknownFields::default();
        (0..10 * MAX_NAMES).for_each(|n| fields.meet(&format!("other field {n}")));
        assert!(fields.known.len() <= MAX_KNOWN && unknown_field_names().len() <= MAX_NAMES);
    }

    #[test]
    fn names_are_shown_cut_and_escaped() {
        assert_eq!(shown("unit"), "unit");
        assert!(!shown("\u{1b}[2J").contains('\u{1b}'));
        let long = "ü".repeat(1000);
        assert_eq!(shown(&long), format!("{}…", "ü".repeat(MAX_NAME_CHARS)));
    }
}
