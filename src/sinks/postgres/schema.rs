//! The tables, views and functions of the sink, as numbered migrations.
//!
//! No statement of a migration names the schema: the transaction that applies it sets search_path.
//! Functions and views are bound when they are created, so renaming the schema keeps them right.

use std::fmt::Write as _;
use std::str::FromStr;

/// A change of the schema. Its number is its place, from 1; it never changes once it was released.
const MIGRATIONS: [&str; 2] =
    [include_str!("schema/0001_tables.sql"), include_str!("schema/0002_results.sql")];

/// The version of the schema that this program reads and writes.
pub const SCHEMA_VERSION: i32 = MIGRATIONS.len() as i32;

/// Whether the schema and its table of versions exist; `$1` is the name of the schema.
pub const SCHEMA_STATE_QUERY: &str = "select exists (select from pg_catalog.pg_namespace where nspname = $1), \
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

    /// The name as a value, such as a parameter of [`SCHEMA_STATE_QUERY`].
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as an identifier in a statement.
    pub fn quoted(&self) -> String {
        format!("\"{}\"", self.0.replace('"', "\"\""))
    }

    /// The query for the version of the schema, which must have a table of versions.
    pub fn version_query(&self) -> String {
        format!("select max(version) from {}.schema_version", self.quoted())
    }
}

impl FromStr for SchemaName {
    type Err = SchemaError;

    fn from_str(name: &str) -> Result<SchemaName, SchemaError> {
        SchemaName::new(name)
    }
}

impl SchemaState {
    /// The state after the answers to [`SCHEMA_STATE_QUERY`] and [`SchemaName::version_query`].
    pub fn of(has_schema: bool, version: Option<i32>) -> SchemaState {
        match (has_schema, version) {
            (false, _) => SchemaState::Missing,
            (true, None) => SchemaState::Unversioned,
            (true, Some(version)) => SchemaState::Version(version),
        }
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
        let (creates_schema, from) = match self {
            SchemaState::Missing => (true, 0),
            SchemaState::Unversioned => (false, 0),
            SchemaState::Version(version) if version < SCHEMA_VERSION => (false, version),
            SchemaState::Version(_) => return self.require_current(schema).map(|()| None),
        };
        Ok(Some(migration_script(schema, creates_schema, from)))
    }
}

/// One transaction with the migrations above version `from`.
fn migration_script(schema: &SchemaName, creates_schema: bool, from: i32) -> String {
    let name = schema.quoted();
    let mut script = String::from("begin;\n");
    if creates_schema {
        // Writing to a string does not fail.
        let _ = writeln!(script, "create schema {name};");
    }
    let _ = writeln!(script, "set local search_path to {name};\nset local client_min_messages to warning;");
    if from == 0 {
        script.push_str(
            "create table schema_version (version int primary key, applied_at timestamptz not null default now());\n\
             comment on table schema_version is 'The migrations that made this schema.';\n\
             comment on column schema_version.version is 'The number of a migration; the greatest is the version of the schema.';\n\
             comment on column schema_version.applied_at is 'When it was applied.';\n",
        );
    }
    for (version, migration) in (1..).zip(MIGRATIONS).filter(|(version, _)| *version > from) {
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
        assert_eq!(name.version_query(), "select max(version) from \"we\"\"ird; drop schema x\".schema_version");
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
        let current = SchemaState::of(true, Some(SCHEMA_VERSION));
        assert_eq!((current.require_current(&schema), current.migration(&schema)), (Ok(()), Ok(None)));
        assert_eq!(
            SchemaState::of(false, None).require_current(&schema),
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
