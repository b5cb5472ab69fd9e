//! What the store logs of its own threads: the only place where the cause of their end is.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// What is kept of an error.
const MAX_ERROR_CHARS: usize = 300;

static LAST_ERROR: Mutex<Option<String>> = Mutex::new(None);

struct StoreLogger;

/// Listens to the store from now on, unless something else in the program listens to such logs.
pub(super) fn install_store_logger() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        if log::set_logger(&StoreLogger).is_ok() {
            log::set_max_level(LevelFilter::Error);
        }
    });
}

/// What the store has logged last as an error.
pub(super) fn last_store_error() -> Option<String> {
    LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The error of the operating system within a text of the store, which writes errors as `Debug`
/// does.
pub(super) fn parse_os_error(text: &str) -> Option<io::Error> {
    let (_, rest) = text.split_once("Os { code: ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().map(io::Error::from_raw_os_error)
}

impl Log for StoreLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let of_store = ["fjall", "lsm_tree"].iter().any(|name| metadata.target().starts_with(name));
        of_store && metadata.level() == Level::Error
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let text: String = record.args().to_string().chars().take(MAX_ERROR_CHARS).collect();
            tracing::error!("the storage of the journal: {text}");
            *LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_errors_are_parsed_from_store_messages() {
        for code in [24, 28] {
            let error = fjall::Error::Io(io::Error::from_raw_os_error(code));
            let text = format!("Worker #0 crashed: {error:?}");
            assert_eq!(parse_os_error(&text).unwrap().raw_os_error(), Some(code), "{text}");
        }
        assert!(parse_os_error("Worker #0 crashed: Poisoned").is_none());
    }
}
