//! A PostgreSQL sink beside a Kafka sink in one run: each exactly once, whatever is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::applied_log::AppliedLog;
use super::server::PrivateServer;
use super::tables::ExpectedTables;
use super::test_schema::TestClient;
use crate::kafka::case::KafkaCase;
use crate::kafka::kills::{env_number, run_case};
use crate::support::{RUN_SETTINGS, Random, city_name, wait_for};

/// Kills a server again and again, until `ends`.
fn kill_repeatedly(
    mut server: PrivateServer,
    seed: u64,
    ends: Arc<AtomicBool>,
) -> thread::JoinHandle<PrivateServer> {
    thread::spawn(move || {
        let mut random = Random::new(seed);
        while !ends.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1_000 + random.below(3_000)));
            if random.below(2) == 0 {
                server.kill();
            } else {
                server.shut_down_immediately();
            }
            thread::sleep(Duration::from_millis(random.below(500)));
            server.restart();
        }
        server
    })
}

fn check_tables(case: &KafkaCase, client: &TestClient) {
    let mut log = AppliedLog::new(RUN_SETTINGS);
    for entry in &case.log.accepted {
        assert!(log.apply(*entry));
    }
    let expected = ExpectedTables { log: &log, settings: RUN_SETTINGS, name: &city_name };
    let mut difference = None;
    wait_for("that the tables are right", || {
        difference = expected.find_difference(&[client]);
        difference.is_none().then_some(())
    });
    let twice = "select source, partition, position from arrival group by 1, 2, 3 having count(*) > 1";
    assert!(client.query(twice, &[]).is_empty(), "an arrival is there twice");
}

/// `SWELTER_KILLS` kills more often, `SWELTER_KILLS_SEED` is another log.
#[test]
#[ignore = "needs Kafka: scripts/test"]
fn topics_and_tables_are_exactly_once_over_kills() {
    let seed = env_number("SWELTER_KILLS_SEED", 91);
    let server = PrivateServer::start(&[]);
    let url = server.url.clone();
    let table = format!(
        "\n[[sinks]]\ntype = \"postgres\"\nurl = \"{url}\"\nshards = 2\ncommit_interval = \"30ms\"\n"
    );
    let ends = Arc::new(AtomicBool::new(false));
    let killer = kill_repeatedly(server, seed, Arc::clone(&ends));
    let case = run_case(seed, env_number("SWELTER_KILLS", 12), &table);
    ends.store(true, Ordering::Relaxed);
    let server = killer.join().unwrap();
    case.check_exactly_once();
    let client = TestClient::connect(&server.url);
    client.execute("set search_path to swelter");
    check_tables(&case, &client);
}
