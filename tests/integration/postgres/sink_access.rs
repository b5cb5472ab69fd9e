//! How a service reaches a database: roles, rights, passwords, TLS.

use std::fs;
use std::path::Path;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::fault_case::FaultCase;
use super::server::{PrivateServer, shared_server};
use super::test_schema::{TestClient, TestSchema};

/// A role with a password, in a server that asks for it.
fn add_role(client: &TestClient, name: &str) {
    client.execute(&format!("create role \"{name}\" login password 'warm and humid'"));
    let group = "do $$ begin create role needs_password; exception when duplicate_object then null; end $$";
    client.execute(group);
    client.execute(&format!("grant needs_password to \"{name}\""));
}

fn with_user(url: &str, user: &str) -> String {
    url.replace("postgres@", &format!("{user}@"))
}

fn private_file(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn password_comes_from_variable_or_file_and_is_not_shown() {
    let server = PrivateServer::start(&[]);
    add_role(&TestClient::connect(&server.url), "swelter");
    TestClient::connect(&server.url).execute("grant create on database postgres to swelter");
    let case = FaultCase::new(&server.url).by(&with_user(&server.url, "swelter"));
    let line =
        case.builder("").env("SWELTER_SINKS__POSTGRES__PASSWORD", "hunter2").spawn().wait_for_failure();
    assert!(line.contains("28P01") && line.contains("look at the user of the URL"), "{line}");
    assert!(!line.contains("hunter2"), "{line}");
    let password = "warm and humid";
    let mut service = case.builder("").env("SWELTER_SINKS__POSTGRES__PASSWORD", password).spawn();
    service.wait_for_ready();
    case.fill(&service, 0, 10);
    service.terminate_in_place();
    assert!(!service.log().contains(password));
    let folder = tempfile::tempdir().unwrap();
    let passfile = folder.path().join("passwords");
    private_file(&passfile, &format!("*:*:postgres:swelter:{password}\n"));
    let service = case.builder(&format!("passfile = {passfile:?}")).start().wait_until_ready();
    case.fill(&service, 10, 20);
    service.terminate();
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn role_with_the_documented_grants_suffices() {
    let server = PrivateServer::start(&[]);
    let admin = TestClient::connect(&server.url);
    admin.execute("create role swelter login");
    let schema = TestSchema::migrated(&server.url);
    let quoted = schema.quoted();
    let case = FaultCase::new(&server.url).by(&with_user(&server.url, "swelter")).in_schema(schema);
    let no_create = "create_tables = false";
    let line = case.start_failure(no_create);
    assert!(line.contains("permission denied for schema") && line.contains("docs/postgres.md"), "{line}");
    admin.execute(&format!("grant usage on schema {quoted} to swelter"));
    admin.execute(&format!("grant select on all tables in schema {quoted} to swelter"));
    let line = case.start_failure(no_create);
    assert!(line.contains("may not select, insert, update and delete in"), "{line}");
    admin.execute(&format!(
        "grant select, insert, update, delete on all tables in schema {quoted} to swelter"
    ));
    let line = case.start_failure("");
    assert!(line.contains("does not own arrival, and only the owner can add partitions"), "{line}");
    for table in ["reading", "arrival"] {
        admin.execute(&format!(
            "create table {quoted}.{table}_20130718 (like {quoted}.{table} including all); \
             alter table {quoted}.{table} attach partition {quoted}.{table}_20130718 \
             for values from ('2013-07-18 00:00+00') to ('2013-07-19 00:00+00')"
        ));
    }
    let service = case.builder(no_create).start().wait_until_ready();
    case.fill(&service, 0, 10);
    // A day without a partition ends it with a line that names the day.
    service.post(&serde_json::json!([{"city": "city 1", "reading_at": "2013-07-19T15:00:00Z", "temperature": 80, "humidity": 50}]));
    let line = service.wait_for_failure();
    assert!(line.contains("20130719"), "{line}");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn start_without_rights_or_database_ends_with_a_line() {
    let url = shared_server();
    let case = FaultCase::new(&url).by(&format!("{}/nowhere", url.rsplit_once('/').unwrap().0));
    let line = case.start_failure("");
    assert!(line.contains("3D000") && line.contains("create the database"), "{line}");
    let case = FaultCase::new(&url);
    let line = case.start_failure("create_tables = false");
    assert!(line.contains("run `swelter postgres migrate`, or set create_tables = true"), "{line}");
}

/// A CA, and a certificate that it has signed, for these names.
fn write_certificate(folder: &Path, names: &[&str]) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(folder.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    fs::write(folder.join("server.pem"), certificate.pem()).unwrap();
    private_file(&folder.join("server.key"), &key.serialize_pem());
    if rustix::process::getuid().is_root() {
        let own = Command::new("chown").arg("postgres").arg(folder.join("server.key")).status().unwrap();
        assert!(own.success());
        let open = Command::new("chmod").arg("go+rx").arg(folder).status().unwrap();
        assert!(open.success());
    }
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn tls_verifies_the_certificate_and_its_name() {
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path(), &["localhost"]);
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (certificate, key) =
        (format!("ssl_cert_file={}", file("server.pem")), format!("ssl_key_file={}", file("server.key")));
    let server = PrivateServer::start(&["--set", "ssl=on", "--set", &certificate, "--set", &key]);
    let case = FaultCase::new(&server.url).by(&server.url.replace("127.0.0.1", "localhost"));
    let trusted = format!("tls = {{ mode = \"verify-full\", ca = {:?} }}", file("ca.pem"));
    let service = case.builder(&trusted).start().wait_until_ready();
    let encrypted = "select count(*) from pg_stat_ssl s join pg_stat_activity a using (pid) where s.ssl and a.application_name = 'swelter'";
    let sessions: i64 = TestClient::connect(&server.url).query(encrypted, &[])[0].get(0);
    assert!(sessions > 0, "no session is encrypted");
    case.fill(&service, 0, 10);
    service.terminate();
    let unknown = case.builder("tls = { mode = \"verify-full\" }").spawn().wait_for_failure();
    assert!(unknown.contains("the certificate must be valid"), "{unknown}");
    let other = FaultCase::new(&server.url);
    let name = other.start_failure(&trusted);
    assert!(name.contains("the certificate must be valid"), "{name}");
}
