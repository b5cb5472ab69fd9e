//! Migrations, the commands that apply and print them, and the documented rights.

use super::server::shared_server;
use super::test_schema::{TestClient, TestSchema};

/// What the command writes to standard error, if it ends with code 1.
fn refusal(schema: &TestSchema) -> String {
    let output = schema.command("migrate").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn version(schema: &TestSchema) -> i32 {
    schema.client.query("select max(version) from schema_version", &[])[0].get(0)
}

fn script(schema: &TestSchema) -> String {
    let output = schema.command("schema").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn migrate_makes_the_schema_once() {
    let schema = TestSchema::unmade(&shared_server());
    let run = || {
        let output = schema.command("migrate").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run().contains("migrated"));
    let version = version(&schema);
    assert!(run().contains("is current"));
    let applied = schema.client.query("select count(*) from schema_version", &[])[0].get::<_, i64>(0);
    assert_eq!(applied, i64::from(version));
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn printed_schema_is_what_migrate_applies() {
    let (printed, migrated) = (TestSchema::unmade(&shared_server()), TestSchema::migrated(&shared_server()));
    printed.client.execute(&script(&printed));
    let describe = |schema: &TestSchema| {
        let query = "select c.relname || ' ' || coalesce(a.attname, '') || ' ' || coalesce(format_type(a.atttypid, a.atttypmod), '')
            from pg_class c join pg_namespace n on n.oid = c.relnamespace
            left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 where n.nspname = $1 order by 1";
        let lines = schema.client.query(query, &[&schema.name]);
        lines.iter().map(|line| line.get(0)).collect::<Vec<String>>()
    };
    assert_eq!(describe(&printed), describe(&migrated));
    assert!(describe(&printed).len() > 100);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn older_schema_is_migrated_and_newer_one_refused() {
    let schema = TestSchema::unmade(&shared_server());
    let script = script(&schema);
    let first = script.split("insert into schema_version (version) values (2);").next().unwrap();
    schema.client.execute(&format!("{first}commit;"));
    assert_eq!(version(&schema), 1);
    assert!(schema.command("migrate").status().unwrap().success());
    assert!(version(&schema) > 1);
    schema.client.execute("insert into schema_version values (99)");
    let refusal = refusal(&schema);
    assert!(refusal.contains("has version 99") && refusal.contains("newer"), "{refusal}");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn failed_migration_leaves_nothing() {
    let schema = TestSchema::unmade(&shared_server());
    schema
        .client
        .execute(&format!("create schema {}; create view bi_daily as select 1 as a", schema.quoted()));
    let refusal = refusal(&schema);
    assert!(refusal.contains("bi_daily"), "{refusal}");
    let left = schema.client.query(
        "select relname from pg_class where relnamespace = $1::text::regnamespace",
        &[&schema.quoted()],
    );
    assert_eq!(left.len(), 1, "{left:?}");
}

/// Functions and views are bound to their tables, so a schema can be renamed.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn renamed_schema_works_without_search_path() {
    let schema = TestSchema::migrated(&shared_server());
    let renamed = format!("\"renamed {}", &schema.quoted()[1..]);
    schema
        .client
        .execute(&format!("alter schema {} rename to {renamed}; reset search_path", schema.quoted()));
    for query in [
        "{}.rolling('Oslo', now() - interval '1 day', now())",
        "{}.rolling_as_of('Oslo', now() - interval '1 day', now(), 0)",
        "{}.result_rows",
        "{}.arrival_rows",
        "{}.bi_now",
        "{}.bi_daily",
        "{}.bi_hot_hours",
    ] {
        let query = format!("select * from {}", query.replace("{}", &renamed));
        assert!(schema.client.query(&query, &[]).is_empty(), "{query}");
    }
    schema.client.execute(&format!("drop schema {renamed} cascade"));
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn everything_has_a_comment() {
    let schema = TestSchema::migrated(&shared_server());
    let query = "select c.relname || coalesce('.' || a.attname, '') from pg_class c
        left join lateral (select 0 as attnum, null as attname union all
            select a.attnum, a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum > 0) a on true
        left join pg_description d on d.objoid = c.oid and d.classoid = 'pg_class'::regclass and d.objsubid = a.attnum
        where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'p', 'v') and d.description is null
        union all
        select p.proname from pg_proc p where p.pronamespace = $1::text::regnamespace
            and obj_description(p.oid, 'pg_proc') is null";
    let bare = schema.client.query(query, &[&schema.quoted()]);
    let bare: Vec<String> = bare.iter().map(|name| name.get(0)).collect();
    assert!(bare.is_empty(), "{bare:?}");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn reader_may_read_and_nothing_else() {
    let schema = TestSchema::migrated(&shared_server());
    let (name, role) = (schema.quoted(), format!("reader_{}_{}", std::process::id(), schema.number));
    schema.client.execute(&format!(
        "create role {role} login;
         grant usage on schema {name} to {role}; grant select on all tables in schema {name} to {role}"
    ));
    let reader = TestClient::connect(&schema.url.replace("postgres@", &format!("{role}@")));
    reader.execute(&format!("set search_path to {name}"));
    for query in
        ["select * from rolling('Oslo', now() - interval '1 day', now())", "select * from arrival_rows"]
    {
        assert!(reader.query(query, &[]).is_empty());
    }
    for refused in ["delete from reading", "insert into setting values ('a', 'b')", "create table mine ()"] {
        let error = reader.try_execute(refused).unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{refused}: {error:?}");
    }
    drop(reader);
    schema.client.execute(&format!("drop owned by {role}; drop role {role}"));
}
