//! The built program and Apache Kafka itself.

mod appender;
mod avro;
pub mod broker;
pub mod case;
mod checkpoints;
mod earlier_build;
mod faults;
mod identity;
mod kills;
mod lag;
mod letters;
pub mod log;
mod measure;
mod processes;
mod reading;
mod refusals;
mod retries;
mod rig;
mod source;
mod swelter;
mod takeover;
mod topics;
mod variants;

use std::ffi::OsString;
use std::io::Write as _;

/// The value of a variable that `scripts/test` sets. Without it a test ends early and says so.
fn prepared(variable: &str) -> Option<OsString> {
    let value = std::env::var_os(variable).filter(|value| !value.is_empty());
    if value.is_none() {
        let name = std::thread::current().name().unwrap_or_default().to_string();
        // `eprintln!` would be captured.
        let _ = writeln!(std::io::stderr(), "NOT TESTED: {name} needs {variable}: scripts/test sets it");
    }
    value
}
