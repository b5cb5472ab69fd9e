//! The tables, views and functions of the sink, as numbered migrations.
//!
//! No statement of a migration names the schema: the transaction that applies it sets search_path.
//! Functions and views are bound when they are created, so renaming the schema keeps them right.

use std::fmt::Write as _;
use std::str::FromStr;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

/// A change of the schema. Its number is its place, from 1; it never changes once it was released.
const MIGRATIONS: [&str; 2] =
    [include_str!("schema/0001_tables.sql"), include_str!("schema/0002_results.sql")];

/// The version of the schema that this program reads and writes.
pub const SCHEMA_VERSION: i32 = MIGRATIONS.len() as i32;

/// Whether the schema and its table of versions exist; `$1` is the name of the schema.
const SCHEMA_STATE_QUERY: &str = "select exists (select from pg_catalog.pg_namespace where nspname = $1), \
     exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
     where n.nspname = $1 and c.relname = 'schema_version')";

/// The longest identifier of PostgreSQL, in bytes.
const MAX_IDENTIFIER_BYTES: usize = 63;

/// The name of a schema of PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaName(String);

/// What a database holds under the name of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// No schema of that name.
    Missing,
    /// A schema without a table of versions.
    Unversioned,
    /// A schema of this version.
    Version(i32),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error(
        "{0:?} cannot be the name of a schema: it must have 1 to {MAX_IDENTIFIER_BYTES} bytes, no control characters, and not begin with pg_"
    )]
    BadName(String),
    #[error(
        "the schema {schema} has version {found}, and this swelter knows versions up to {SCHEMA_VERSION}: run the swelter that has migrated it, \
         or a newer one"
    )]
    Newer { schema: String, found: i32 },
    #[error(
        "the schema {schema} has version {found}, and this swelter needs {SCHEMA_VERSION}: run `swelter postgres migrate` as the owner of its \
         tables"
    )]
    Older { schema: String, found: i32 },
    #[error(
        "the database has no tables of swelter in the schema {0}: run `swelter postgres migrate`, or set create_tables = true"
    )]
    Missing(String),
}

impl SchemaName {
    pub fn new(name: &str) -> Result<SchemaName, SchemaError> {
        let is_name = (1..=MAX_IDENTIFIER_BYTES).contains(&name.len())
            && !name.starts_with("pg_")
            && !name.chars().any(char::is_control);
        if is_name { Ok(SchemaName(name.to_owned())) } else { Err(SchemaError::BadName(name.to_owned())) }
    }

    /// The name as a value.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as an identifier in a statement.
    pub fn quoted(&self) -> String {
        format!("\"{}\"", self.0.replace('"', "\"\""))
    }
}

impl FromStr for SchemaName {
    type Err = SchemaError;

    fn from_str(name: &str) -> Result<SchemaName, SchemaError> {
        SchemaName::new(name)
    }
}

impl SchemaState {
    pub async fn read(client: &Client, schema: &SchemaName) -> Result<SchemaState, tokio_postgres::Error> {
        let found = client.query_typed(SCHEMA_STATE_QUERY, &[(&schema.as_str(), Type::TEXT)]).await?;
        let (has_schema, has_versions) =
            found.first().map_or((false, false), |found| (found.get(0), found.get(1)));
        if !has_versions {
            return Ok(if has_schema { SchemaState::Unversioned } else { SchemaState::Missing });
        }
        let query = format!("select max(version) from {}.schema_version", schema.quoted());
        let found = client.query_typed(&query, &[]).await?;
        let version: Option<i32> = found.first().and_then(|found| found.get(0));
        Ok(SchemaState::Version(version.unwrap_or(0)))
    }

    /// Checks that this program can read and write the schema as it is.
    pub fn require_current(self, schema: &SchemaName) -> Result<(), SchemaError> {
        let name = schema.as_str().to_owned();
        match self {
            SchemaState::Missing | SchemaState::Unversioned => Err(SchemaError::Missing(name)),
            SchemaState::Version(found) if found > SCHEMA_VERSION => {
                Err(SchemaError::Newer { schema: name, found })
            }
            SchemaState::Version(found) if found < SCHEMA_VERSION => {
                Err(SchemaError::Older { schema: name, found })
            }
            SchemaState::Version(_) => Ok(()),
        }
    }

    /// The transaction that makes the schema current: `None` if it is. It fails as a whole if
    /// another one has migrated the schema meanwhile.
    pub fn migration(self, schema: &SchemaName) -> Result<Option<String>, SchemaError> {
        match self {
            SchemaState::Version(version) if version >= SCHEMA_VERSION => {
                self.require_current(schema).map(|()| None)
            }
            _ => Ok(Some(migration_script(schema, self))),
        }
    }
}

/// Runs a migration. If it fails, nothing of it remains.
pub async fn run_migration(client: &Client, migration: &str) -> Result<(), tokio_postgres::Error> {
    let migrated = client.batch_execute(migration).await;
    if migrated.is_err() {
        // The error of the migration is the one to report.
        let _ = client.batch_execute("rollback").await;
    }
    migrated
}

/// One transaction with the migrations that a schema in this state does not have.
fn migration_script(schema: &SchemaName, state: SchemaState) -> String {
    let name = schema.quoted();
    let (creates_schema, from) = match state {
        SchemaState::Missing => (true, None),
        SchemaState::Unversioned => (false, None),
        SchemaState::Version(version) => (false, Some(version)),
    };
    let mut script = String::from("begin;\n");
    if creates_schema {
        // Writing to a string does not fail.
        let _ = writeln!(script, "create schema {name};");
    }
    let _ = writeln!(script, "set local search_path to {name};\nset local client_min_messages to warning;");
    if from.is_none() {
        script.push_str(
            "create table schema_version (version int primary key, applied_at timestamptz not null default now());\n\
             comment on table schema_version is 'The migrations that made this schema.';\n\
             comment on column schema_version.version is 'The number of a migration; the greatest is the version of the schema.';\n\
             comment on column schema_version.applied_at is 'When it was applied.';\n",
        );
    }
    for (version, migration) in (1..).zip(MIGRATIONS).filter(|(version, _)| Some(*version) > from) {
        let _ = writeln!(script, "insert into schema_version (version) values ({version});\n{migration}");
    }
    script.push_str("commit;\n");
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_names_are_quoted_or_refused() {
        let name = SchemaName::new("we\"ird; drop schema x").unwrap();
        assert_eq!(name.quoted(), "\"we\"\"ird; drop schema x\"");
        for refused in ["", "pg_mine", "a\0b", "a\nb", &"x".repeat(64)] {
            assert_eq!(SchemaName::new(refused), Err(SchemaError::BadName(refused.into())));
        }
        assert!(SchemaName::new(&"x".repeat(63)).is_ok());
    }

    #[test]
    fn schema_of_newer_program_is_refused() {
        let schema = SchemaName::new("swelter").unwrap();
        let newer = SchemaState::Version(SCHEMA_VERSION + 1);
        let refusal = SchemaError::Newer { schema: "swelter".into(), found: SCHEMA_VERSION + 1 };
        assert_eq!(newer.require_current(&schema), Err(refusal));
        assert!(newer.migration(&schema).is_err());
        let current = SchemaState::Version(SCHEMA_VERSION);
        assert_eq!((current.require_current(&schema), current.migration(&schema)), (Ok(()), Ok(None)));
        assert_eq!(
            SchemaState::Missing.require_current(&schema),
            Err(SchemaError::Missing("swelter".into()))
        );
        let older = SchemaError::Older { schema: "swelter".into(), found: 1 };
        assert_eq!(SchemaState::Version(1).require_current(&schema), Err(older));
    }

    #[test]
    fn migration_has_only_the_steps_that_are_missing() {
        let schema = SchemaName::new("swelter").unwrap();
        let steps = |state: SchemaState| {
            let script = state.migration(&schema).unwrap().unwrap();
            assert!(script.starts_with("begin;\n") && script.ends_with("commit;\n"));
            ["create schema", "create table schema_version", "values (1)", "values (2)"]
                .map(|step| script.contains(step))
        };
        assert_eq!(steps(SchemaState::Missing), [true; 4]);
        assert_eq!(steps(SchemaState::Unversioned), [false, true, true, true]);
        assert_eq!(steps(SchemaState::Version(1)), [false, false, false, true]);
    }
}
