//! Errors of the operating system: which of them pass by themselves or once a person has freed a
//! resource, what that person has to do, and retries until then.

mod errno;
pub mod exit;
mod files;
mod retry_backoff;
mod threads;

pub use self::errno::{
    FaultClass, classify_fault, find_errno, is_transient, limit_remedy, remedy_for, remedy_suffix,
};
pub use self::files::{
    NotRegularFile, check_regular_file, open_regular_file, read_small_file, read_small_text,
};
pub use self::retry_backoff::RetryBackoff;
pub use self::threads::{build_runtime, check_threads_available, start_failure_text};
