//! How results are written to PostgreSQL.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::schema::SchemaName;
use crate::model::Millis;

/// The databases that results are written to, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresSinkPlan {
    /// Shard `s` lives in database `s mod n`. Their number is fixed at the first start.
    pub databases: Vec<PostgresDatabase>,
    /// How the databases are reached, and replicas of them.
    pub access: DatabaseAccess,
    /// The schema that has all tables, in each database.
    pub schema: SchemaName,
    /// Fixed at the first start.
    pub tables: TableSet,
    /// Fixed at the first start.
    pub shards: u16,
    pub commit_interval: Duration,
    /// After this long a transaction, or any other call, is given up and tried again.
    pub transaction_timeout: Duration,
    /// Readings older than this, by the newest committed epoch, are dropped; `None` keeps all.
    pub retention: Option<Millis>,
    /// Whether a start makes missing tables and partitions.
    pub create_tables: bool,
}

impl PostgresSinkPlan {
    /// The first database and the schema, as the sink is called in metrics and messages.
    pub fn label(&self) -> String {
        let database = self.databases.first().map(|database| database.label.as_str());
        format!("{}/{}", database.unwrap_or_default(), self.schema.as_str())
    }

    /// The number of the database of a shard.
    pub fn database_of(&self, shard: u16) -> usize {
        usize::from(shard) % self.databases.len()
    }

    /// The shards of a database.
    pub fn shards_of(&self, database: usize) -> impl Iterator<Item = u16> {
        let databases = self.databases.len();
        (0..self.shards).filter(move |shard| usize::from(*shard) % databases == database)
    }
}

/// A database, and how it is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresDatabase {
    /// Hosts, user and name of the database, without the password.
    pub config: tokio_postgres::Config,
    pub password: Password,
    pub tls: PostgresTls,
    /// Host, port and name, as `db.example:5432/weather`: for messages, metrics and logs.
    pub label: String,
}

/// Where the password comes from. Its text is never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// The server asks for none.
    None,
    Text(String),
    /// A file of lines `host:port:database:user:password`, which is read at each connection.
    File(PathBuf),
}

// The output never has the password.
impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Password::None => f.write_str("None"),
            Password::Text(_) => f.write_str("Text(..)"),
            Password::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// How the databases of a sink are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseAccess {
    pub password: Password,
    /// `None`: TLS with servers of other hosts, and none with those of this one.
    pub tls: Option<TlsMode>,
    /// A PEM file with the CA of the servers.
    pub ca: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    VerifyFull,
    Disable,
}

impl TlsMode {
    pub const ALL: [TlsMode; 2] = [TlsMode::VerifyFull, TlsMode::Disable];

    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            TlsMode::VerifyFull => "verify-full",
            TlsMode::Disable => "disable",
        }
    }
}

/// The encryption of connections with a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostgresTls {
    /// Not encrypted.
    Disable,
    /// The server's certificate must be valid for the host that the URL names, and signed by a CA
    /// of this PEM file, or if there is none by one that this host trusts.
    VerifyFull { ca: Option<PathBuf> },
}

/// A table of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PostgresTable {
    City,
    Reading,
    Arrival,
    Now,
    Hour,
    Day,
    RollingRow,
    DeadLetter,
}

impl PostgresTable {
    /// All tables, by their code.
    pub const ALL: [PostgresTable; 8] = [
        PostgresTable::City,
        PostgresTable::Reading,
        PostgresTable::Arrival,
        PostgresTable::Now,
        PostgresTable::Hour,
        PostgresTable::Day,
        PostgresTable::RollingRow,
        PostgresTable::DeadLetter,
    ];

    /// The name in the configuration, in the identity of results and in the schema.
    pub fn name(self) -> &'static str {
        match self {
            PostgresTable::City => "city",
            PostgresTable::Reading => "reading",
            PostgresTable::Arrival => "arrival",
            PostgresTable::Now => "now",
            PostgresTable::Hour => "hour",
            PostgresTable::Day => "day",
            PostgresTable::RollingRow => "rolling_row",
            PostgresTable::DeadLetter => "dead_letter",
        }
    }

    /// The number of the table in encoded records.
    pub fn code(self) -> u8 {
        match self {
            PostgresTable::City => 0,
            PostgresTable::Reading => 1,
            PostgresTable::Arrival => 2,
            PostgresTable::Now => 3,
            PostgresTable::Hour => 4,
            PostgresTable::Day => 5,
            PostgresTable::RollingRow => 6,
            PostgresTable::DeadLetter => 7,
        }
    }
}

/// The tables that a sink writes. `city` always is one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSet(u8);

impl TableSet {
    pub fn contains(self, table: PostgresTable) -> bool {
        self.0 & (1 << table.code()) != 0
    }

    /// The tables, by their code.
    pub fn iter(self) -> impl Iterator<Item = PostgresTable> {
        PostgresTable::ALL.into_iter().filter(move |table| self.contains(*table))
    }
}

impl FromIterator<PostgresTable> for TableSet {
    fn from_iter<I: IntoIterator<Item = PostgresTable>>(tables: I) -> TableSet {
        let set = |bits, table: PostgresTable| bits | (1 << table.code());
        TableSet(tables.into_iter().fold(1 << PostgresTable::City.code(), set))
    }
}

/// The names with commas between them, as in the identity of results.
impl fmt::Display for TableSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, table) in self.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, table.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_codes_are_positions_and_never_change() {
        let codes: Vec<u8> = PostgresTable::ALL.into_iter().map(PostgresTable::code).collect();
        assert_eq!(codes, (0..8).collect::<Vec<u8>>());
        let set: TableSet = [PostgresTable::Now, PostgresTable::Reading].into_iter().collect();
        assert_eq!(set.to_string(), "city, reading, now");
        assert!(set.contains(PostgresTable::City) && !set.contains(PostgresTable::Arrival));
    }

    #[test]
    fn password_is_not_shown_by_debug() {
        let shown = format!("{:?}", Password::Text("hunter2".into()));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
