use super::*;
use crate::sinks::postgres::{Password, PostgresSinkPlan, PostgresTable, PostgresTls};

fn sink(text: &str) -> Result<(PostgresSinkPlan, Config), Vec<String>> {
    let written = Written::new(&format!("[[sinks]]\ntype = 'postgres'\n{text}"));
    let config = written.load().map_err(|errors| lines(&errors, &written))?;
    let plan = config.plan.postgres_sinks().next().unwrap().clone();
    Ok((plan, config))
}

fn private_file(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("passwords");
    std::fs::write(&path, text).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    path
}

#[test]
fn minimal_postgres_sink_needs_only_a_url() {
    let (plan, config) = sink("url = 'postgres://swelter@127.0.0.1/weather'").unwrap();
    assert_eq!((plan.label(), plan.shards), ("127.0.0.1:5432/weather/swelter".into(), 2));
    let waits = (plan.commit_interval, plan.transaction_timeout);
    assert_eq!(waits, (Duration::from_millis(250), Duration::from_secs(60)));
    assert_eq!(plan.tables.to_string(), "city, reading, arrival, now, hour, day, dead_letter");
    assert_eq!((plan.retention, plan.create_tables), (None, true));
    assert_eq!(plan.databases[0].tls, PostgresTls::Disable);
    assert!(config.warnings().is_empty());
    assert!(config.to_toml().contains("tls.mode = \"disable\""), "{}", config.to_toml());
}

#[test]
fn every_postgres_key_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let passwords = private_file(folder.path(), "*:*:weather:swelter:hunter2\n");
    let (plan, _) = sink(&format!(
        "urls = ['postgres://swelter@a,b/weather', 'postgres://swelter@c:6432/weather?connect_timeout=2']\n\
         passfile = '{}'\nschema = 'results'\ntables = ['now', 'rolling_row']\nshards = 6\ncommit_interval = '1s'\n\
         transaction_timeout = '20s'\nretention = '35d'\ncreate_tables = false\nbegin = 'log'\n\
         tls = {{ mode = 'verify-full', ca = '{0}' }}\n",
        passwords.display()
    ))
    .unwrap();
    let labels: Vec<&str> = plan.databases.iter().map(|database| database.label.as_str()).collect();
    assert_eq!(labels, ["a:5432,b:5432/weather", "c:6432/weather"]);
    assert_eq!(plan.databases[0].password, Password::File(passwords.clone()));
    assert_eq!(plan.databases[1].tls, PostgresTls::VerifyFull { ca: Some(passwords) });
    assert_eq!((plan.schema.as_str(), plan.shards), ("results", 6));
    assert!(plan.tables.contains(PostgresTable::RollingRow) && !plan.tables.contains(PostgresTable::Reading));
    assert_eq!((plan.retention, plan.create_tables), (Some(duration("35d")), false));
    assert_eq!(plan.shards_of(1).collect::<Vec<_>>(), [1, 3, 5]);
}

#[test]
fn postgres_password_is_never_shown() {
    let (plan, config) = sink("url = 'postgres://swelter@a/weather'\npassword = 'hunter2'").unwrap();
    assert_eq!(plan.databases[0].password, Password::Text("hunter2".into()));
    let common = format!("{:?}", config.plan.common_settings);
    for shown in [format!("{:?}", config.plan), config.to_toml(), common] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let refused = sink("url = 'postgres://swelter:hunter2@a/weather'").unwrap_err().join("\n");
    assert!(refused.contains("holds a password") && !refused.contains("hunter2"), "{refused}");
    let broken = sink("url = 'postgres://swelter:hunter2@a:x/weather'").unwrap_err().join("\n");
    assert!(broken.contains("is not a URL of PostgreSQL") && !broken.contains("hunter2"), "{broken}");
}

#[test]
fn postgres_keys_that_cannot_be_meant_are_refused() {
    let remote = "url = 'postgres://swelter@a/weather'\n";
    for (text, expected) in [
        ("".to_owned(), "is empty: write it as in postgres://"),
        (format!("{remote}urls = ['postgres://swelter@b/weather']"), "is written beside url"),
        ("urls = ['postgres://u@a/w', 'postgres://u@a/w']".into(), "has a database twice"),
        (format!("{remote}password = 'a'\npassfile = 'b'"), "is written beside password"),
        (format!("{remote}passfile = '/nowhere'"), "passfile /nowhere"),
        (format!("{remote}schema = 'pg_mine'"), "the name of a schema"),
        (format!("{remote}tables = ['nows']"), "\"nows\" is not one of the tables now, reading, arrival"),
        (format!("{remote}tables = []"), "is empty: name at least one of"),
        (format!("{remote}begin = 'state'"), "is not supported yet: write begin = \"log\""),
        (format!("{remote}begin = 'now'"), "log or state"),
        (format!("{remote}retention = '2d'"), "is less than"),
        (format!("{remote}commit_interval = '1m'\ntransaction_timeout = '5m'"), "ten times commit_interval"),
        (format!("{remote}tls.mode = 'require'"), "verify-full or disable"),
        (format!("{remote}tls.ca = '/nowhere'"), "/nowhere is not a file"),
        ("url = 'postgres://u@/w?host=/run/postgresql'\ntls.mode = 'verify-full'".into(), "has no TLS"),
        (
            "urls = ['postgres://u@a/w', 'postgres://u@b/w']\nshards = 1".into(),
            "less than the number of databases",
        ),
        (
            format!("{remote}[[sinks]]\ntype = 'postgres'\nname = 'b'\n{remote}"),
            "is the schema of sink postgres",
        ),
    ] {
        let problems = sink(&text).unwrap_err();
        assert!(
            problems.iter().any(|problem| problem.contains(expected)),
            "{expected}\nnot in {problems:#?}"
        );
    }
}

#[test]
fn postgres_without_tls_over_a_network_warns() {
    let warnings = |text: &str| sink(text).unwrap().1.warnings();
    assert_eq!(warnings("url = 'postgres://u@a/w'\ntls.mode = 'disable'").len(), 1);
    assert!(warnings("url = 'postgres://u@a/w'").is_empty());
    assert!(warnings("url = 'postgres://u@localhost/w'\ntls.mode = 'disable'").is_empty());
}
