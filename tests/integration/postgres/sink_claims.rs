//! Who may write a schema: claims, sessions that hold rows, other settings, other orders.

use super::fault_case::{FaultCase, readings};
use super::server::{PrivateServer, shared_server};
use super::test_schema::TestClient;
use crate::kafka::broker::shared_broker;
use crate::kafka::case::KafkaCase;
use crate::support::{send_signal, wait_for};
use rustix::process::Signal;

/// A writer that was suspended within a transaction holds the row of its shard.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn claim_ends_a_session_that_holds_a_row() {
    let case = FaultCase::new(&shared_server());
    let service = case.start();
    case.fill(&service, 0, 10);
    service.terminate();
    let zombie = TestClient::connect(&case.url);
    let schema = case.schema.quoted();
    zombie.execute(&format!("begin; select * from {schema}.shard where shard = 0 for update"));
    zombie.execute(&format!(
        "update {schema}.reading set temperature = 0; update {schema}.shard set nonce = 'zombie'"
    ));
    let mut service = case.start();
    case.fill(&service, 10, 20);
    assert!(zombie.try_execute("commit").is_err(), "the session was not ended");
    let changed = format!("select count(*) from {schema}.reading where temperature = 0");
    assert_eq!(case.schema.client.query(&changed, &[])[0].get::<_, i64>(0), 0);
    service.terminate_in_place();
    assert!(service.log().contains("a session that held rows of a shard was ended"), "{}", service.log());
}

/// A zombie that commits before it is ended: the claim comes after it.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn claim_sees_what_the_session_before_it_has_committed() {
    let case = FaultCase::new(&shared_server());
    let service = case.start();
    case.fill(&service, 0, 10);
    service.terminate();
    let zombie = TestClient::connect(&case.url);
    let schema = case.schema.quoted();
    zombie.execute(&format!("begin; select * from {schema}.shard for update"));
    let higher = "generation = 1000000";
    zombie.execute(&format!("update {schema}.shard set {higher}"));
    let mut service = case.builder("").spawn();
    let waits = format!(
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and pid <> pg_backend_pid() and query like '%{}%'",
        case.schema.name.replace('"', "\"\"")
    );
    wait_for("that the claim waits", || {
        (case.schema.client.query(&waits, &[])[0].get::<_, i64>(0) > 0).then_some(())
    });
    // The session may be ended before this: then the claim succeeds.
    let has_committed = zombie.try_execute("commit").is_ok();
    let newest = format!("select max(generation) from {schema}.shard");
    if has_committed {
        let line = service.wait_for_failure();
        assert!(line.contains("was last written by generation 1000000"), "{line}");
        assert_eq!(case.schema.client.query(&newest, &[])[0].get::<_, i64>(0), 1_000_000);
    } else {
        service.wait_for_ready();
        assert!(case.schema.client.query(&newest, &[])[0].get::<_, i64>(0) < 1_000_000);
    }
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn run_whose_rows_a_later_generation_has_ends_with_3() {
    let case = FaultCase::new(&shared_server());
    let service = case.start();
    case.fill(&service, 0, 10);
    case.schema
        .client
        .execute(&format!("update {}.shard set generation = generation + 1", case.schema.quoted()));
    service.wait_until_taken_over();
    assert_eq!(case.count("arrival"), 10);
}

/// It is not the results that were lost, so the next start has them.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn run_whose_rows_the_same_generation_has_ends_and_starts_again() {
    let case = FaultCase::new(&shared_server());
    let service = case.start();
    case.fill(&service, 0, 10);
    case.schema.client.execute(&format!("update {}.shard set nonce = 'other'", case.schema.quoted()));
    let line = service.wait_for_failure();
    assert!(line.contains("was claimed by another start with the same generation"), "{line}");
    let service = case.start();
    case.fill(&service, 10, 20);
    service.terminate();
}

/// The process is stopped, another start takes over, and the process goes on.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn stopped_process_that_goes_on_commits_nothing() {
    let server = PrivateServer::start(&[]);
    let mut case = KafkaCase::new(&shared_broker(), 173, 2_000);
    case.setup.sink += &format!(
        "\n[[sinks]]\ntype = \"postgres\"\nurl = \"{}\"\nshards = 2\ncommit_interval = \"20ms\"\n",
        server.url
    );
    case.produce_records(300);
    let mut first = case.start_swelter(1).wait_until_ready();
    case.produce_records(300);
    send_signal(first.pid(), Signal::STOP);
    let second = case.start_swelter(1).wait_until_ready();
    case.produce_records(300);
    case.wait_for_results();
    send_signal(first.pid(), Signal::CONT);
    assert_eq!(first.wait_for_exit().code(), Some(3), "{}", first.log());
    case.produce_records(100);
    case.wait_for_results();
    second.terminate();
    case.check_exactly_once();
    let client = TestClient::connect(&server.url);
    let twice =
        "select source, partition, position from swelter.arrival group by 1, 2, 3 having count(*) > 1";
    assert!(client.query(twice, &[]).is_empty(), "an arrival is there twice");
    let arrivals: i64 = client.query("select count(*) from swelter.arrival", &[])[0].get(0);
    assert_eq!(arrivals, case.log.accepted.len() as i64);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn schema_of_other_results_is_refused() {
    let case = FaultCase::new(&shared_server());
    let service = case.start();
    case.fill(&service, 0, 10);
    service.terminate();
    let refused = |settings: &str, keys: &str| case.builder_with(settings, keys).spawn().wait_for_failure();
    let window = refused("[results]\nwindow = \"6h\"\nhistory = \"1d\"\n", "");
    assert!(window.contains("were made with results.window 1d, now it is 6h"), "{window}");
    let shards = refused("", "shards = 3");
    assert!(shards.contains("were made with shards 2, now it is 3"), "{shards}");
    let tables = refused("", "tables = [\"reading\"]");
    assert!(tables.contains("were made with tables city, reading"), "{tables}");
    let versions = "insert into schema_version (version) values (1000000)";
    case.schema.client.execute(versions);
    let newer = refused("", "");
    assert!(newer.contains("has version 1000000, and this swelter knows versions up to"), "{newer}");
    case.schema.client.execute("delete from schema_version where version = 1000000");
    let service = case.start();
    case.fill(&service, 10, 20);
    service.terminate();
}

/// A journal of another service.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn schema_of_another_log_is_refused() {
    let case = FaultCase::new(&shared_server());
    let service = case.start();
    case.fill(&service, 0, 10);
    service.terminate();
    let other = tempfile::tempdir().unwrap();
    let line = case.builder("").data(other.path()).spawn().wait_for_failure();
    assert!(line.contains("were made with source journal: log"), "{line}");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn databases_in_another_order_are_refused() {
    let server = PrivateServer::start(&[]);
    let admin = TestClient::connect(&server.url);
    let urls = ["one", "two"].map(|name| {
        admin.execute(&format!("create database {name}"));
        format!("{}/{name}", server.url.rsplit_once('/').unwrap().0)
    });
    let case = FaultCase::new(&urls[0]);
    let keys = |first: &str, second: &str| format!("urls = [{first:?}, {second:?}]\nshards = 4");
    let mut service = case.builder(&keys(&urls[0], &urls[1])).spawn();
    service.wait_for_ready();
    service.post(&readings(0, 40));
    let count = |url: &str| {
        let client = TestClient::connect(url);
        let query = format!("select count(*) from {}.arrival", case.schema.quoted());
        client.query(&query, &[])[0].get::<_, i64>(0)
    };
    wait_for("that both databases have all", || (count(&urls[0]) + count(&urls[1]) == 40).then_some(()));
    assert!(count(&urls[0]) > 0 && count(&urls[1]) > 0);
    service.terminate();
    let line = case.start_failure(&keys(&urls[1], &urls[0]));
    assert!(line.contains("write urls in the order of the first start"), "{line}");
    let line = case.start_failure(&format!("urls = [{:?}]\nshards = 4", urls[0]));
    assert!(line.contains("were made with databases 2, now it is 1"), "{line}");
    case.builder(&keys(&urls[0], &urls[1])).start().wait_until_ready().terminate();
}
