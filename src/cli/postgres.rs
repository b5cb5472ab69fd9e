//! `swelter postgres`: prints and applies the schema of the PostgreSQL sink.

use std::io::{self, Write as _};

use clap::{Args, Subcommand};

use super::CliError;
use super::database_args::DatabaseArgs;
use crate::sinks::postgres::migrate_database;
use crate::sinks::postgres::schema::{SCHEMA_VERSION, SchemaName, SchemaState};

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
    #[command(flatten)]
    databases: DatabaseArgs,
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
        for (database, schema) in self.databases.targets()? {
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
