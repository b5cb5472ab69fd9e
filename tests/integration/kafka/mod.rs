//! The built program and Apache Kafka itself.

mod appender;
mod avro;
pub mod broker;
pub mod case;
mod checkpoints;
mod dead_letter_commands;
mod earlier_build;
mod faults;
mod identity;
mod kills;
mod lag;
mod measure;
mod processes;
pub mod random_log;
mod refusals;
mod retries;
mod several_sinks;
mod source;
mod support_checks;
mod swelter_process;
mod takeover;
mod topic_reader;
mod topics;
mod variants;

use std::ffi::OsString;
use std::io::Write as _;

/// The value of a variable that `scripts/test` sets. Without it a test ends early and says so.
fn prepared_variable(variable: &str) -> Option<OsString> {
    let value = std::env::var_os(variable).filter(|value| !value.is_empty());
    if value.is_none() {
        let name = std::thread::current().name().unwrap_or_default().to_string();
        // `eprintln!` would be captured.
        let _ = writeln!(std::io::stderr(), "NOT TESTED: {name} needs {variable}: scripts/test sets it");
    }
    value
}
