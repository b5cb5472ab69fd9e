//! Fields that no reading has, in records that are readings all the same. They are ignored; but one
//! such as `"unit":"C"` may mean that the values are not in the units that they are read in, so
//! such fields are counted, and each name is logged once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::model::printable::printable;
use crate::panics::locks::SharedMutex;

/// The most names that the process remembers and logs: readings may bring any number.
const MAX_REMEMBERED_NAMES: usize = 100;
/// The most remembered names that one decoder knows, so that it need not take the lock.
const MAX_NAMES_PER_DECODER: usize = 16;
/// The most characters of a name in the log.
const MAX_NAME_CHARS: usize = 64;

static UNKNOWN_FIELD_COUNT: AtomicU64 = AtomicU64::new(0);
static UNKNOWN_FIELD_NAMES: SharedMutex<RememberedNames> = SharedMutex::new(RememberedNames(BTreeSet::new()));
static IS_NAME_LIST_FULL: AtomicBool = AtomicBool::new(false);

/// The number of unknown fields since the process began, in the records of its sources.
pub fn unknown_field_count() -> u64 {
    UNKNOWN_FIELD_COUNT.load(Ordering::Relaxed)
}

/// The first 100 names of unknown fields, cut off and printable.
pub fn unknown_field_names() -> Vec<String> {
    UNKNOWN_FIELD_NAMES.lock().0.iter().map(|name| printable(name).into_owned()).collect()
}

/// The unknown fields of one decoder.
#[derive(Debug, Default)]
pub(super) struct UnknownFields {
    names: Vec<Box<str>>,
}

impl UnknownFields {
    /// Counts a field, and logs its name if it is new.
    #[inline]
    pub(super) fn count_and_log(&mut self, name: &str) {
        UNKNOWN_FIELD_COUNT.fetch_add(1, Ordering::Relaxed);
        if IS_NAME_LIST_FULL.load(Ordering::Relaxed)
            || self.names.iter().any(|known_name| **known_name == *name)
        {
            return;
        }
        log_new_name(name);
        if self.names.len() < MAX_NAMES_PER_DECODER {
            self.names.push(name.into());
        }
    }

    /// Counts fields whose names were logged before, as the columns of a file are.
    pub(super) fn count_known(fields: u64) {
        UNKNOWN_FIELD_COUNT.fetch_add(fields, Ordering::Relaxed);
    }
}

#[cold]
fn log_new_name(name: &str) {
    let remembered = UNKNOWN_FIELD_NAMES.lock().remember(name);
    match remembered {
        NameMemory::New => tracing::warn!(
            field = %printable_name(name),
            "readings have an unknown field, which is ignored: the units of values are those of the configuration, \
             whatever the field says"
        ),
        NameMemory::Known => {}
        NameMemory::Full if IS_NAME_LIST_FULL.swap(true, Ordering::Relaxed) => {}
        NameMemory::Full => {
            tracing::warn!(
                names = MAX_REMEMBERED_NAMES,
                "readings have more unknown fields: further ones are counted, and their names are not logged"
            );
        }
    }
}

/// Names that were logged, cut off.
#[derive(Debug, Default)]
struct RememberedNames(BTreeSet<Box<str>>);

#[derive(Debug, PartialEq, Eq)]
enum NameMemory {
    New,
    Known,
    /// The list is full, and the name is not in it.
    Full,
}

impl RememberedNames {
    fn remember(&mut self, name: &str) -> NameMemory {
        let name: String = name.chars().take(MAX_NAME_CHARS).collect();
        if self.0.contains(&*name) {
            return NameMemory::Known;
        }
        if self.0.len() >= MAX_REMEMBERED_NAMES {
            return NameMemory::Full;
        }
        self.0.insert(name.into());
        NameMemory::New
    }
}

/// A name without characters that a terminal obeys, cut off.
fn printable_name(name: &str) -> String {
    let cut: String = name.chars().take(MAX_NAME_CHARS).collect();
    let end = if cut.len() < name.len() { "…" } else { "" };
    format!("{}{end}", printable(&cut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{DecodeSettings, JsonRecordDecoder};

    #[test]
    fn names_are_reported_once_and_bounded() {
        let mut names = RememberedNames::default();
        assert_eq!(names.remember("unit"), NameMemory::New);
        assert_eq!(names.remember("unit"), NameMemory::Known);
        let long = "x".repeat(100_000);
        assert_eq!((names.remember(&long), names.remember(&long)), (NameMemory::New, NameMemory::Known));
        let new = (0..10 * MAX_REMEMBERED_NAMES)
            .filter(|n| names.remember(&format!("field {n}")) == NameMemory::New);
        assert_eq!(new.count(), MAX_REMEMBERED_NAMES - 2);
        assert_eq!(
            (names.remember("one more"), names.remember("unit")),
            (NameMemory::Full, NameMemory::Known)
        );
        assert!(names.0.iter().all(|name| name.len() <= MAX_NAME_CHARS));
    }

    #[test]
    fn all_source_decoders_count_unknown_fields() {
        let before = unknown_field_count();
        let mut decoder = JsonRecordDecoder::for_source(DecodeSettings::default());
        let reading = br#"{"city":"x","reading_at":"2025-11-24T16:00:00Z","temperature":30,"humidity":50,"unit":"C","":{"a":[1]}}"#;
        for _ in 0..3 {
            decoder.decode(reading).unwrap();
        }
        assert_eq!(decoder.ignored_fields(), 6);
        assert!(unknown_field_count() >= before + 6);
        let mut fields = UnknownFields::default();
        (0..10 * MAX_REMEMBERED_NAMES).for_each(|n| fields.count_and_log(&format!("other field {n}")));
        assert!(
            fields.names.len() <= MAX_NAMES_PER_DECODER
                && unknown_field_names().len() <= MAX_REMEMBERED_NAMES
        );
    }

    #[test]
    fn names_are_truncated_and_escaped() {
        assert_eq!(printable_name("unit"), "unit");
        assert!(!printable_name("\u{1b}[2J").contains('\u{1b}'));
        let long = "ü".repeat(1000);
        assert_eq!(printable_name(&long), format!("{}…", "ü".repeat(MAX_NAME_CHARS)));
    }
}
