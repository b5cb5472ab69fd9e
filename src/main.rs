use std::process::ExitCode;

use clap::Parser;
use swelter::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
