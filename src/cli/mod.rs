//! The command line: one file per command.

mod backup;
mod batch;
mod checkpoints;
mod cluster;
mod dead_letters;
mod demo;
mod generate;
mod logging;
mod postgres;
mod produce;
mod read_args;
mod run;
mod subscribe;
mod time_shift;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cluster::supervisor::TAKEN_OVER_EXIT_CODE;
use crate::codec::{self, Compression, Format};
use crate::config::ConfigErrors;
use crate::fault::remedy_suffix;
use crate::model::printable::printable;

/// The exit code if no record of any input was accepted.
const NOTHING_TAKEN_EXIT_CODE: u8 = 4;

/// The rolling heat index of every city, exact and incremental.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Demo(demo::DemoArgs),
    Subscribe(subscribe::SubscribeArgs),
    Batch(batch::BatchArgs),
    Generate(generate::GenerateArgs),
    Produce(produce::ProduceArgs),
    DeadLetters(dead_letters::DeadLettersArgs),
    Checkpoints(checkpoints::CheckpointsArgs),
    Postgres(postgres::PostgresArgs),
    Cluster(cluster::ClusterArgs),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
}

/// Runs the command line of this process, as the program `swelter` does, and returns its exit code:
///
/// | code | meaning |
/// |---|---|
/// | 0 | done; single readings may have been refused |
/// | 1 | failed, or stopped by an error |
/// | 2 | wrong arguments or configuration |
/// | 3 | another generation has taken over |
/// | 4 | done, but no record of any input was accepted |
///
/// It ends the process itself if the arguments are wrong or ask for help.
pub fn run_command_line() -> ExitCode {
    Cli::parse().run()
}

impl Cli {
    fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Run(args) => args.run(),
            Command::Demo(args) => args.run(),
            Command::Subscribe(args) => args.run(),
            Command::Batch(args) => args.run(),
            Command::Generate(args) => args.run(),
            Command::Produce(args) => args.run(),
            Command::DeadLetters(args) => args.run(),
            Command::Checkpoints(args) => args.run(),
            Command::Postgres(args) => args.run(),
            Command::Cluster(args) => args.run(),
            Command::Backup(args) => args.run(),
            Command::Restore(args) => args.run(),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(CliError::Usage(message)) => {
                let _ = writeln!(
                    io::stderr(),
                    "error: {}\n\nFor more information, try '--help'.",
                    printable(&message)
                );
                ExitCode::from(2)
            }
            Err(CliError::Failed(message)) => {
                let _ = writeln!(io::stderr(), "error: {}", printable(&message));
                ExitCode::FAILURE
            }
            Err(CliError::Config(errors)) => {
                let mut out = io::stderr().lock();
                for error in &errors.0 {
                    let _ = writeln!(out, "error: {}", printable(&error.to_string()));
                }
                ExitCode::from(2)
            }
            Err(CliError::NothingTaken(message)) => {
                let _ = writeln!(io::stderr(), "error: {}", printable(&message));
                ExitCode::from(NOTHING_TAKEN_EXIT_CODE)
            }
            Err(CliError::TakenOver(message)) => {
                let _ = writeln!(io::stderr(), "error: {}", printable(&message));
                ExitCode::from(TAKEN_OVER_EXIT_CODE)
            }
            // The reader of our output has closed it on purpose.
            Err(CliError::PipeClosed) => ExitCode::SUCCESS,
        }
    }
}

/// Why a command ends early.
#[derive(Debug)]
enum CliError {
    Usage(String),
    Config(ConfigErrors),
    Failed(String),
    TakenOver(String),
    /// The command completed, but no record was accepted.
    NothingTaken(String),
    PipeClosed,
}

impl CliError {
    /// The error of a failed write to `path`; `None` is standard output.
    fn write_error(path: Option<&Path>, error: &io::Error) -> CliError {
        match path {
            None if error.kind() == io::ErrorKind::BrokenPipe => CliError::PipeClosed,
            None => CliError::Failed(format!("standard output cannot be written: {error}")),
            Some(path) => {
                let remedy = remedy_suffix(error, path);
                CliError::Failed(format!("{} cannot be written: {error}{remedy}", path.display()))
            }
        }
    }
}

/// The error of a data directory that is given and not used.
fn unused_data_dir_error(dir: &str, used_by: &str) -> CliError {
    CliError::Usage(format!(
        "--data-dir {dir} is not used, because the configuration has no {used_by} (ingest.enabled, ingest.into): leave it out"
    ))
}

/// Parses a file argument: its format is `format` if given, else that of its name. `-` is a
/// standard stream, with `default` as its format.
fn parse_file_argument(
    path: &Path,
    format: Option<Format>,
    default: Option<Format>,
    flag: &str,
) -> Result<(Option<PathBuf>, Format, Compression), CliError> {
    if path == Path::new("-") {
        let format = format.or(default);
        let format =
            format.ok_or_else(|| CliError::Usage(format!("- needs {flag}: csv, json or parquet")))?;
        return Ok((None, format, Compression::None));
    }
    match format {
        Some(format) => Ok((Some(path.to_path_buf()), format, codec::detect_compression(path))),
        None => {
            let (format, compression) =
                codec::detect_format(path).map_err(|error| CliError::Usage(format!("{error} ({flag})")))?;
            Ok((Some(path.to_path_buf()), format, compression))
        }
    }
}
