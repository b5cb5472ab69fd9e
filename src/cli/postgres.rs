//! `swelter postgres`: prints and applies the schema of the PostgreSQL sink.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::CliError;
use crate::config::layers::ConfigLayers;
use crate::config::{Config, SinkKind};
use crate::sinks::postgres::schema::{SCHEMA_VERSION, SchemaName, SchemaState};
use crate::sinks::postgres::{DatabaseAccess, Password, PostgresDatabase, migrate_database};

/// Print or apply the tables, views and functions of the PostgreSQL sink
///
/// A service with create_tables = true, the default, applies them itself.
#[derive(Args, Debug)]
pub struct PostgresArgs {
    #[command(subcommand)]
    command: PostgresCommand,
}

#[derive(Debug, Subcommand)]
enum PostgresCommand {
    Migrate(MigrateArgs),
    Schema(SchemaArgs),
}

/// Make the schema, or bring it to the version of this program
///
/// Each database is migrated in one transaction, as a whole or not at all. A schema of a newer
/// program is refused. Run it as the role that is to own the tables.
#[derive(Args, Debug)]
struct MigrateArgs {
    /// The configuration of the service: the databases and schemas of all its PostgreSQL sinks
    #[arg(long, value_name = "FILE", required_unless_present = "url")]
    config: Option<PathBuf>,
    /// A database, as in postgres://swelter@db.example:5432/weather
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    url: Option<String>,
    /// The name of the schema
    #[arg(long, value_name = "NAME", default_value = "swelter", conflicts_with = "config")]
    schema: SchemaName,
    /// A file with the password: lines host:port:database:user:password
    #[arg(long, value_name = "FILE", requires = "url")]
    passfile: Option<PathBuf>,
    /// The CA that signs the server's certificate, PEM; the CAs of this host without it
    #[arg(long, value_name = "FILE", requires = "url")]
    tls_ca: Option<PathBuf>,
}

/// Print the SQL that makes the schema, for psql
#[derive(Args, Debug)]
struct SchemaArgs {
    /// The name of the schema
    #[arg(long, value_name = "NAME", default_value = "swelter")]
    schema: SchemaName,
    /// Only the steps from this version of the schema on
    #[arg(long, value_name = "VERSION")]
    from: Option<i32>,
}

impl PostgresArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.command {
            PostgresCommand::Migrate(args) => args.run(),
            PostgresCommand::Schema(args) => args.run(),
        }
    }
}

impl MigrateArgs {
    fn run(self) -> Result<(), CliError> {
        for (database, schema) in self.targets()? {
            let before =
                migrate_database(&database, &schema).map_err(|error| CliError::Failed(error.to_string()))?;
            let place = format!("{}, schema {}", database.label, schema.as_str());
            print_line(&match before {
                SchemaState::Version(version) if version == SCHEMA_VERSION => {
                    format!("{place}: version {version} is current")
                }
                SchemaState::Version(version) => {
                    format!("{place}: migrated from version {version} to {SCHEMA_VERSION}")
                }
                SchemaState::Missing | SchemaState::Unversioned => {
                    format!("{place}: migrated to version {SCHEMA_VERSION}")
                }
            })?;
        }
        Ok(())
    }

    /// The databases to migrate, and the schema in each.
    fn targets(&self) -> Result<Vec<(PostgresDatabase, SchemaName)>, CliError> {
        let Some(url) = &self.url else { return self.configured_targets() };
        let password = self.passfile.clone().map_or(Password::None, Password::File);
        let access = DatabaseAccess { password, tls: None, ca: self.tls_ca.clone() };
        let database = access.database(url).map_err(|problem| CliError::Usage(format!("--url {problem}")))?;
        Ok(vec![(database, self.schema.clone())])
    }

    fn configured_targets(&self) -> Result<Vec<(PostgresDatabase, SchemaName)>, CliError> {
        let layers = ConfigLayers {
            file: self.config.clone(),
            environment: std::env::vars_os().collect(),
            flags: Vec::new(),
        };
        let plan = Config::load(&layers).map_err(CliError::Config)?.plan;
        let mut targets = Vec::new();
        for sink in plan.sinks {
            if let SinkKind::Postgres(sink) = sink.kind {
                targets.extend(sink.databases.into_iter().map(|database| (database, sink.schema.clone())));
            }
        }
        if targets.is_empty() {
            return Err(CliError::Usage("--config names no sink with type = \"postgres\"".to_owned()));
        }
        Ok(targets)
    }
}

impl SchemaArgs {
    fn run(self) -> Result<(), CliError> {
        let state = self.from.map_or(SchemaState::Missing, SchemaState::Version);
        let script = state.migration(&self.schema).map_err(|error| CliError::Failed(error.to_string()))?;
        print_line(
            script.as_deref().unwrap_or("-- The version is current: there is nothing to do.").trim_end(),
        )
    }
}

fn print_line(line: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|error| CliError::write_error(None, &error))
}
