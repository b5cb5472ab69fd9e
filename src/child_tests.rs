//! Tests that start another test of the same binary as a child process, to kill it or to give it
//! variables of its own.

use std::process::Command;

/// A command that runs one test of this binary. That test is `#[ignore = "child process of ..."]`,
/// and its name begins with `child_process_`, by which `scripts/test` skips it.
pub fn child_test(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]);
    command
}

/// Checks that a child has run one test: libtest runs none under a wrong name, and ends with 0.
pub fn assert_ran_one_test(stdout: &[u8]) {
    let text = String::from_utf8_lossy(stdout);
    assert!(text.contains("running 1 test\n"), "the child has not run its test: {text}");
}
