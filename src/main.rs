use std::process::ExitCode;

use clap::Parser;
use swelter::cli::Cli;

fn main() -> ExitCode {
    // A worker that panics would leave the others waiting for it.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::exit(101);
    }));
    Cli::parse().run()
}
