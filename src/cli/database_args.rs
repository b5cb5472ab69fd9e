//! Options that name databases with results: those of a configuration, or one by its URL.

use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::config::layers::ConfigLayers;
use crate::config::{Config, SinkKind};
use crate::sinks::postgres::schema::SchemaName;
use crate::sinks::postgres::{DatabaseAccess, Password, PostgresDatabase};

/// The databases with results.
#[derive(Args, Debug)]
pub struct DatabaseArgs {
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

impl DatabaseArgs {
    /// The databases, and the schema in each.
    pub fn targets(&self) -> Result<Vec<(PostgresDatabase, SchemaName)>, CliError> {
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
