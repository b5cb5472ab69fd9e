//! A logger of the store's threads: their log is the only place that has the cause of a failure.

use std::io;
use std::sync::Once;

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

/// The maximum length of an error text that is stored.
const MAX_ERROR_CHARS: usize = 300;

static LAST_ERROR: Mutex<Option<String>> = Mutex::new(None);

struct StoreLogger;

/// Installs the logger, unless the program already has another one.
pub(super) fn install_store_logger() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        if log::set_logger(&StoreLogger).is_ok() {
            log::set_max_level(LevelFilter::Error);
        }
    });
}

/// The last error that the store has logged.
pub(super) fn last_store_error() -> Option<String> {
    LAST_ERROR.lock().clone()
}

/// Extracts the error of the operating system from a text of the store, which formats errors with
/// `Debug`.
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
            *LAST_ERROR.lock() = Some(text);
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
