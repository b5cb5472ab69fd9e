//! Faults of the database while a service writes: what passes is waited for, what lasts ends the
//! run with a line.

use std::time::{Duration, Instant};

use super::fault_case::{FaultCase, readings};
use super::proxy::AnswerLosingProxy;
use super::server::{PrivateServer, shared_server};
use super::test_schema::TestClient;
use crate::support::{ServiceProcess, wait_for};

/// Ends every session but the one that does it.
fn end_sessions(url: &str) {
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'";
    TestClient::connect(url).query(end, &[]);
}

fn wait_for_log(service: &ServiceProcess, text: &str) {
    wait_for(text, || service.log().contains(text).then_some(()));
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn results_wait_while_the_server_is_away() {
    let mut server = PrivateServer::start(&[]);
    let case = FaultCase::new(&server.url);
    let mut service = case.start();
    case.fill(&service, 0, 10);
    server.kill();
    service.post(&readings(10, 30));
    wait_for_log(&service, "a transaction of results failed; it is retried");
    server.restart();
    case.wait_for_arrivals(30);
    end_sessions(&server.url);
    case.fill(&service, 30, 40);
    service.terminate_in_place();
    assert!(service.log().contains("results can be written again"), "{}", service.log());
    assert_eq!(case.count("reading"), 40);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn results_wait_while_the_server_is_read_only() {
    let server = PrivateServer::start(&[]);
    let case = FaultCase::new(&server.url);
    let service = case.start();
    case.fill(&service, 0, 10);
    let set = |value: &str| {
        let admin = TestClient::connect(&server.url);
        admin.execute(&format!("alter system set default_transaction_read_only = {value}"));
        admin.query("select pg_reload_conf()", &[]);
        let show = "show default_transaction_read_only";
        wait_for("the setting", || {
            (TestClient::connect(&server.url).query(show, &[])[0].get::<_, String>(0) == value).then_some(())
        });
    };
    set("on");
    service.post(&readings(10, 30));
    wait_for_log(&service, "a transaction of results failed; it is retried");
    // A session that is read-only cannot set this back.
    let admin = TestClient::connect(&server.url);
    admin.execute("set default_transaction_read_only = off");
    admin.execute("alter system reset default_transaction_read_only");
    admin.query("select pg_reload_conf()", &[]);
    case.wait_for_arrivals(30);
    service.terminate();
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn commit_without_an_answer_is_found_out() {
    let server = shared_server();
    let proxy = AnswerLosingProxy::start(&server);
    let case = FaultCase::new(&server).by(&proxy.url);
    let service = case.start();
    case.fill(&service, 0, 10);
    proxy.lose_answers(1);
    case.fill(&service, 10, 40);
    wait_for("that an answer is lost", || (proxy.lost_answers() == 1).then_some(()));
    wait_for_log(&service, "the transaction without an answer was committed");
    case.fill(&service, 40, 60);
    service.terminate();
    assert_eq!((case.count("arrival"), case.count("reading")), (60, 60));
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn database_that_has_lost_commits_ends_the_run() {
    let server = PrivateServer::start(&[]);
    let case = FaultCase::new(&server.url);
    let service = case.start();
    case.fill(&service, 0, 10);
    // As an older copy would be.
    let older =
        "update shard set epoch = epoch - 1, progress = jsonb_set(progress, '{epoch}', to_jsonb(epoch - 1))";
    case.schema.client.execute(&format!("begin; {older}; commit"));
    service.post(&readings(10, 20));
    let line = service.wait_for_failure();
    assert!(line.contains("the database has lost commits"), "{line}");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn row_that_somebody_else_wrote_ends_the_run_with_its_name() {
    let case = FaultCase::new(&shared_server());
    let service = case.start();
    case.fill(&service, 0, 10);
    case.schema
        .client
        .execute("delete from reading where city_id = (select city_id from city where name = 'city 3')");
    let again = serde_json::json!([{"city": "city 3", "reading_at": "2013-07-18T15:00:00Z", "temperature": 99, "humidity": 50}]);
    service.post(&again);
    let line = service.wait_for_failure();
    assert!(line.contains("table reading has no row of city \"city 3\""), "{line}");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn stop_gives_up_a_database_that_is_away_and_loses_nothing() {
    let mut server = PrivateServer::start(&[]);
    let case = FaultCase::new(&server.url);
    let mut service = case.start();
    case.fill(&service, 0, 10);
    server.kill();
    service.post(&readings(10, 30));
    wait_for_log(&service, "a transaction of results failed; it is retried");
    let begun = Instant::now();
    service.send_terminate();
    let status = wait_for("its end", || service.has_ended());
    assert_eq!(status.code(), Some(1), "{}", service.log());
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert!(service.log().contains("the next start goes on where it ends"), "{}", service.log());
    server.restart();
    let service = case.start();
    case.wait_for_arrivals(30);
    service.terminate();
}
