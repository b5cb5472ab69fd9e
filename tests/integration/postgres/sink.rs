//! The sink with a pooler before the server, and with a role that has only the documented rights.

use super::server::{Pooler, PrivateServer, shared_server};
use super::sink_case::SinkCase;
use super::test_schema::{TestClient, TestSchema};

fn url_of(url: &str, role: &str) -> String {
    url.replacen("postgres@", &format!("{role}@"), 1)
}

/// Runs over kills and a stop, then checks the tables.
fn run_and_check(case: &mut SinkCase) {
    for round in 0..3 {
        let service = case.start();
        case.post_some(&service, 5);
        if round == 1 {
            case.settle(&service, &[]);
            service.terminate();
        } else {
            service.kill();
        }
    }
    let service = case.start();
    case.settle(&service, &[]);
    case.check();
    case.check_means();
    service.terminate();
}

/// Every transaction may be on another connection of the server.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn transactions_may_be_pooled() {
    let server = shared_server();
    let schema = TestSchema::unmade(&server);
    let pooler = Pooler::start(&server);
    let mut case = SinkCase::new(101, vec![pooler.url.clone()], vec![server.clone()], &schema.name);
    run_and_check(&mut case);
}

/// The statements are those of docs/postgres-queries.md.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn owner_of_the_schema_needs_no_other_right() {
    let server = shared_server();
    let schema = TestSchema::unmade(&server);
    let role = format!("writer_{}_{}", std::process::id(), schema.number);
    schema.client.execute(&format!(
        "create role {role} login; create schema {} authorization {role}",
        schema.quoted()
    ));
    let mut case = SinkCase::new(102, vec![url_of(&server, &role)], vec![server.clone()], &schema.name);
    run_and_check(&mut case);
    let owned = TestClient::connect(&server);
    owned.execute(&format!("drop owned by {role} cascade; drop role {role}"));
}

/// Tables, means and time travel on a streaming replica.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn replica_answers_like_its_primary() {
    let server = PrivateServer::start(&[]);
    let replica = server.start_replica();
    let mut case = SinkCase::new(103, vec![server.url.clone()], vec![replica.url.clone()], "swelter");
    run_and_check(&mut case);
}
