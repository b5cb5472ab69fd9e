//! `swelter cluster`: generates the secret that the processes of a cluster need.

use std::io::{self, Write as _};

use clap::{Args, Subcommand};

use super::CliError;
use crate::config::make_cluster_secret;

/// Create the secret of a cluster
#[derive(Args, Debug)]
pub struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Print a new random secret for the processes of a cluster
    ///
    /// Set it as SWELTER_CLUSTER__SECRET for all processes. Each call prints another secret.
    Secret,
}

impl ClusterArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.command {
            ClusterCommand::Secret => {
                let secret = make_cluster_secret().map_err(CliError::Failed)?;
                let mut out = io::stdout().lock();
                writeln!(out, "{secret}").map_err(|error| CliError::write_error(None, &error))
            }
        }
    }
}
