//! The keys of PostgreSQL sinks.

use std::path::PathBuf;

use super::config_reader::{ConfigReader, quoted};
use super::layers::ConfigValue;
use super::plan::{ServicePlan, SinkKind, SinkPlan};
use crate::dataflow::rolling::Retention;
use crate::model::Millis;
use crate::sinks::postgres::schema::SchemaName;
use crate::sinks::postgres::{
    DatabaseAccess, HostKinds, Password, PostgresDatabase, PostgresSinkPlan, PostgresTable, PostgresTls,
    TableSet, TlsMode,
};

const MAX_DATABASES: usize = 64;
/// The tables that `tables` may list; `city` is always written.
const TABLES: [PostgresTable; 7] = [
    PostgresTable::Now,
    PostgresTable::Reading,
    PostgresTable::Arrival,
    PostgresTable::Hour,
    PostgresTable::Day,
    PostgresTable::RollingRow,
    PostgresTable::DeadLetter,
];
const DEFAULT_TABLES: [PostgresTable; 6] = [
    PostgresTable::Now,
    PostgresTable::Reading,
    PostgresTable::Arrival,
    PostgresTable::Hour,
    PostgresTable::Day,
    PostgresTable::DeadLetter,
];
/// A reading must outlive the time in which it can change, and the days that it is a part of.
const RETENTION_MARGIN: &str = "2d";

pub fn read_postgres_sink(
    keys: &mut ConfigReader,
    at: &str,
    results: Retention,
    before: &[SinkPlan],
) -> Option<PostgresSinkPlan> {
    let key = |name: &str| format!("{at}.{name}");
    for (name, value) in [
        ("schema", "swelter"),
        ("commit_interval", "250ms"),
        ("transaction_timeout", "60s"),
        ("retention", ""),
        ("begin", "log"),
    ] {
        keys.set_default(&key(name), ConfigValue::Text(value.into()));
    }
    keys.set_default(&key("shards"), ConfigValue::Number(2));
    keys.set_default(&key("create_tables"), ConfigValue::Bool(true));
    let access = read_access(keys, at);
    let databases = read_databases(keys, at, &access);
    let schema = keys.read_parsed(&key("schema"), |name| {
        SchemaName::new(name).map_err(|error| format!("the name of a schema: {error}"))
    });
    let tables = read_tables(keys, &key("tables"));
    let shards = keys.read_integer(&key("shards"), 1..=64);
    let (interval, timeout) = (key("commit_interval"), key("transaction_timeout"));
    let commit_interval = keys.read_wall_duration(&interval, "1ms", "1m");
    let transaction_timeout = keys.read_wall_duration(&timeout, "1s", "15m");
    if transaction_timeout < 10 * commit_interval && keys.is_valid(&interval) && keys.is_valid(&timeout) {
        let problem =
            "is less than ten times commit_interval: transactions that are only slow would be given up";
        keys.add_error(&timeout, problem);
    }
    let retention = read_retention(keys, &key("retention"), results);
    let create_tables = keys.read_bool(&key("create_tables"));
    read_begin(keys, &key("begin"));
    let plan = PostgresSinkPlan {
        databases: databases?,
        access,
        schema: schema?,
        tables: tables?,
        shards,
        commit_interval,
        transaction_timeout,
        retention,
        create_tables,
    };
    if usize::from(plan.shards) < plan.databases.len() && keys.is_valid(&key("shards")) {
        let problem =
            format!("is less than the number of databases, {}: each needs a shard", plan.databases.len());
        keys.add_error(&key("shards"), problem);
    }
    check_is_unused(keys, &key("schema"), &plan, before);
    Some(plan)
}

/// Reads `url` or `urls`, and how the databases are reached.
fn read_databases(
    keys: &mut ConfigReader,
    at: &str,
    access: &DatabaseAccess,
) -> Option<Vec<PostgresDatabase>> {
    let (url, urls) = (format!("{at}.url"), format!("{at}.urls"));
    keys.set_default(&url, ConfigValue::Text(String::new()));
    keys.set_default(&urls, ConfigValue::List(Vec::new()));
    let (one, several) = (keys.read_optional_text(&url), keys.read_list(&urls));
    let (key, all) = match (one, several.is_empty()) {
        (Some(_), false) => {
            keys.add_error(&urls, "is written beside url: write one of them");
            return None;
        }
        (None, true) => {
            let problem =
                "is empty: write it as in postgres://swelter@db.example:5432/weather, or several in urls";
            keys.add_error(&url, problem);
            return None;
        }
        (Some(one), true) => (url, vec![one]),
        (None, false) => (urls, several),
    };
    if all.len() > MAX_DATABASES {
        keys.add_error(&key, format!("has {} databases: {MAX_DATABASES} are the most", all.len()));
        return None;
    }
    let databases: Vec<_> = all.iter().map(|text| read_database(keys, &key, text, access)).collect();
    let databases = databases.into_iter().collect::<Option<Vec<PostgresDatabase>>>()?;
    let is_twice = |(i, database): (usize, &PostgresDatabase)| {
        databases[..i].iter().any(|before| before.label == database.label)
    };
    if databases.iter().enumerate().any(is_twice) {
        keys.add_error(&key, "has a database twice: each is named once");
        return None;
    }
    let tls = if databases.iter().any(|database| database.tls != PostgresTls::Disable) {
        TlsMode::VerifyFull
    } else {
        TlsMode::Disable
    };
    keys.set_shown(&format!("{at}.tls.mode"), quoted(tls.name()));
    Some(databases)
}

/// Reads `password`, `passfile` and `tls` of a sink.
fn read_access(keys: &mut ConfigReader, at: &str) -> DatabaseAccess {
    let key = |name: &str| format!("{at}.{name}");
    for name in ["passfile", "tls.mode", "tls.ca"] {
        keys.set_default(&key(name), ConfigValue::Text(String::new()));
    }
    let text = keys.read_secret(&key("password")).filter(|text| !text.is_empty());
    let file = keys.read_optional_text(&key("passfile")).map(PathBuf::from);
    let password = match (text, file) {
        (Some(_), Some(_)) => {
            keys.add_error(&key("passfile"), "is written beside password: write one of them");
            Password::None
        }
        (Some(text), None) => Password::Text(text),
        (None, Some(path)) => Password::File(path),
        (None, None) => Password::None,
    };
    let given = match keys.read_optional_text(&key("tls.mode")) {
        Some(_) => keys.read_one_of(&key("tls.mode"), &TlsMode::ALL.map(TlsMode::name)),
        None => None,
    };
    let tls = TlsMode::ALL.into_iter().find(|mode| given.as_deref() == Some(mode.name()));
    let ca = keys.read_optional_text(&key("tls.ca")).map(PathBuf::from);
    if let Some(path) = ca.as_deref().filter(|path| !path.is_file()) {
        keys.add_error(&key("tls.ca"), format!("{} is not a file", path.display()));
    }
    if ca.is_some() && tls == Some(TlsMode::Disable) {
        keys.add_error(&key("tls.ca"), "is of no use with tls.mode = \"disable\": leave one of them out");
    }
    DatabaseAccess { password, tls, ca }
}

/// A database by its URL. Errors are those of `key`.
pub fn read_database(
    keys: &mut ConfigReader,
    key: &str,
    url: &str,
    access: &DatabaseAccess,
) -> Option<PostgresDatabase> {
    access.database(url).map_err(|problem| keys.add_error(key, problem)).ok()
}

fn read_tables(keys: &mut ConfigReader, key: &str) -> Option<TableSet> {
    let default = DEFAULT_TABLES.map(|table| table.name().to_owned()).to_vec();
    keys.set_default(key, ConfigValue::List(default));
    let names = keys.read_list(key);
    let known = TABLES.map(PostgresTable::name).join(", ");
    let mut tables = Vec::new();
    for name in &names {
        match TABLES.into_iter().find(|table| table.name() == name) {
            Some(table) => tables.push(table),
            None => keys.add_error(key, format!("{name:?} is not one of the tables {known}")),
        }
    }
    if names.is_empty() && keys.is_valid(key) {
        keys.add_error(key, format!("is empty: name at least one of {known}"));
    }
    keys.is_valid(key).then(|| tables.into_iter().collect())
}

fn read_retention(keys: &mut ConfigReader, key: &str, results: Retention) -> Option<Millis> {
    keys.read_optional_text(key)?;
    let retention = keys.read_duration(key, "1d", "36525d");
    let margin: Millis = RETENTION_MARGIN.parse().unwrap_or_default();
    let least = results.window.millis() + results.lateness.millis() + margin.millis();
    let least = Millis::from_millis(least)?;
    let is_comparable =
        keys.is_valid(key) && keys.is_valid("results.window") && keys.is_valid("results.lateness");
    if retention < least && is_comparable {
        let problem = format!(
            "is less than {least}, which is results.lateness, results.window and {RETENTION_MARGIN}: younger readings can still change"
        );
        keys.add_error(key, problem);
    }
    Some(retention)
}

fn read_begin(keys: &mut ConfigReader, key: &str) {
    if keys.read_one_of(key, &["log", "state"]).as_deref() == Some("state") {
        let problem = "is not supported yet: write begin = \"log\"; the logs must reach back to their beginnings at the first start";
        keys.add_error(key, problem);
    }
}

/// Two sinks of one schema would fence each other.
fn check_is_unused(keys: &mut ConfigReader, key: &str, plan: &PostgresSinkPlan, before: &[SinkPlan]) {
    let shares = |used: &PostgresSinkPlan| {
        let databases = || used.databases.iter().map(|database| &database.label);
        used.schema == plan.schema
            && plan.databases.iter().any(|own| databases().any(|other| *other == own.label))
    };
    let used = before.iter().find(|sink| matches!(&sink.kind, SinkKind::Postgres(used) if shares(used)));
    if let Some(used) = used {
        keys.add_error(
            key,
            format!("is the schema of sink {} in the same database: name another one", used.name),
        );
    }
}

/// Warnings about passwords and results that are sent without encryption.
pub fn postgres_warnings(plan: &ServicePlan) -> Vec<String> {
    let databases = plan.postgres_sinks().flat_map(|sink| &sink.databases);
    let is_open = |database: &&PostgresDatabase| {
        database.tls == PostgresTls::Disable && HostKinds::of(&database.config) == HostKinds::Remote
    };
    let open = databases.filter(is_open);
    open.map(|database| {
        format!(
            "the way to {} is not encrypted: leave tls.mode out, or write \"verify-full\"",
            database.label
        )
    })
    .collect()
}
