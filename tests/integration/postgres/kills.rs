//! The tables equal the recomputation, and have every arrival once, whatever is killed: the service
//! at any moment and between COPY and COMMIT, the server, sessions, answers to COMMIT.

use std::thread;
use std::time::Duration;

use super::proxy::AnswerLosingProxy;
use super::server::PrivateServer;
use super::sink_case::SinkCase;
use super::test_schema::TestClient;
use crate::kafka::kills::env_number;
use crate::support::wait_for;

/// What happens to a run.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The service is killed while readings are posted.
    KillService,
    /// The service dies between the last COPY and COMMIT of a transaction.
    DieBeforeCommit,
    KillServer,
    ShutDownServer,
    /// All sessions are ended.
    EndSessions,
    /// The answer to a COMMIT is lost.
    LoseAnswers,
}

const FAULTS: [Fault; 6] = [
    Fault::KillService,
    Fault::DieBeforeCommit,
    Fault::KillServer,
    Fault::ShutDownServer,
    Fault::EndSessions,
    Fault::LoseAnswers,
];

/// Names that a statement could misread.
const SCHEMA: &str = "100 % \"mine\" \\";

struct KillCase {
    case: SinkCase,
    server: PrivateServer,
    proxy: AnswerLosingProxy,
}

impl KillCase {
    fn new(seed: u64, databases: usize, processes: u64) -> KillCase {
        eprintln!("seed {seed}");
        let server = PrivateServer::start(&[]);
        let proxy = AnswerLosingProxy::start(&server.url);
        let admin = TestClient::connect(&server.url);
        let (mut urls, mut own_urls) = (Vec::new(), Vec::new());
        for number in 0..databases {
            admin.execute(&format!("create database results{number}"));
            urls.push(named(&proxy.url, number));
            own_urls.push(named(&server.url, number));
        }
        let mut case = SinkCase::new(seed, urls, own_urls, SCHEMA);
        case.processes = processes;
        KillCase { case, server, proxy }
    }

    /// One run with a fault in it.
    fn run_with(&mut self, fault: Fault) {
        let mut builder = self.case.builder();
        if let Fault::DieBeforeCommit = fault {
            builder = builder.die_before_commit(self.case.random.below(12));
        }
        let mut service = builder.spawn();
        let mut unanswered = Vec::new();
        match fault {
            Fault::DieBeforeCommit => {
                if service.next_addresses_unless_ended(1).is_ok_and(|addresses| {
                    service.address = addresses[0].clone();
                    true
                }) {
                    unanswered = self.case.post_until_gone(&service.address.clone());
                }
                wait_for("its death", || service.has_ended());
            }
            Fault::KillService => {
                service.wait_for_address();
                let (kill, delay) =
                    (service.kill_handle(), Duration::from_micros(self.case.random.below(400_000)));
                let killer = thread::spawn(move || {
                    thread::sleep(delay);
                    kill();
                });
                unanswered = self.case.post_until_gone(&service.address.clone());
                killer.join().unwrap();
            }
            _ => {
                service.wait_for_ready();
                self.case.post_some(&service, 3);
                self.harm_server(fault);
                self.case.post_some(&service, 3);
            }
        }
        if service.has_ended().is_some() {
            service.kill();
            service = self.case.start();
        }
        self.case.settle(&service, &unanswered);
        self.case.check();
        match self.case.random.below(2) {
            0 => service.terminate(),
            _ => service.kill(),
        }
    }

    fn harm_server(&mut self, fault: Fault) {
        thread::sleep(Duration::from_millis(self.case.random.below(100)));
        match fault {
            Fault::KillServer => self.server.kill(),
            Fault::ShutDownServer => self.server.shut_down_immediately(),
            Fault::EndSessions => {
                let end = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'";
                TestClient::connect(&self.server.url).query(end, &[]);
            }
            _ => self.proxy.lose_answers(1 + self.case.random.below(3)),
        }
        if let Fault::KillServer | Fault::ShutDownServer = fault {
            thread::sleep(Duration::from_millis(self.case.random.below(600)));
            self.server.restart();
        }
    }
}

/// The URL of one of the databases.
fn named(url: &str, number: usize) -> String {
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/results{number}")
}

fn run_case(seed: u64, databases: usize, processes: u64, kills: u64) {
    let mut case = KillCase::new(seed, databases, processes);
    for round in 0..kills {
        let fault = FAULTS[(round % FAULTS.len() as u64) as usize];
        eprintln!("{round}: {fault:?}");
        case.run_with(fault);
    }
    let lost = case.proxy.lost_answers();
    assert!(kills < FAULTS.len() as u64 || lost > 0, "no answer to COMMIT was lost");
    eprintln!("{} arrivals, {lost} lost answers", case.case.log.arrivals.len());
}

/// `SWELTER_KILLS` kills more often, `SWELTER_KILLS_SEED` is another log.
#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn tables_equal_recomputation_over_kills() {
    run_case(env_number("SWELTER_KILLS_SEED", 81), 1, 1, env_number("SWELTER_KILLS", 18));
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn two_databases_and_processes_equal_recomputation_over_kills() {
    run_case(env_number("SWELTER_KILLS_SEED", 82), 2, 2, env_number("SWELTER_KILLS", 12));
}
