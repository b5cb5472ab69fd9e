//! The tables equal the recomputation, and have every arrival once, whatever is killed: the service
//! at any moment and between COPY and COMMIT, the server, sessions, answers to COMMIT.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::applied_log::AppliedLog;
use super::filled_log::CITY_NAMES;
use super::proxy::AnswerLosingProxy;
use super::server::PrivateServer;
use super::tables::ExpectedTables;
use super::test_schema::TestClient;
use crate::kafka::kills::env_number;
use crate::support::{
    LogEntry, MINUTE_MS, RUN_SETTINGS, Random, ServiceBuilder, ServiceProcess, ServiceStatus, WAIT_TIMEOUT,
    keep_accepted_entries, named_record_json, post, random_entry, wait_for,
};

pub fn name_of(city: u32) -> String {
    CITY_NAMES[city as usize % CITY_NAMES.len()].to_owned()
}

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

struct KillCase {
    random: Random,
    server: PrivateServer,
    proxy: AnswerLosingProxy,
    databases: usize,
    processes: u64,
    root: TempDir,
    log: AppliedLog,
    /// How many records the journal has.
    records: u64,
    now: i64,
}

impl KillCase {
    fn new(seed: u64, databases: usize, processes: u64) -> KillCase {
        eprintln!("seed {seed}");
        let server = PrivateServer::start(&[]);
        let admin = TestClient::connect(&server.url);
        for number in 0..databases {
            admin.execute(&format!("create database results{number}"));
        }
        let now = jiff::Timestamp::now().as_millisecond() - 24 * 3_600_000;
        KillCase {
            random: Random::new(seed),
            proxy: AnswerLosingProxy::start(&server.url),
            server,
            databases,
            processes,
            root: tempfile::tempdir().unwrap(),
            log: AppliedLog::new(RUN_SETTINGS),
            records: 0,
            now: now - now.rem_euclid(MINUTE_MS),
        }
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    fn builder(&mut self) -> ServiceBuilder {
        let workers = 1 + self.random.below(2);
        let urls: Vec<String> = (0..self.databases).map(|number| format!("{:?}", named(&self.proxy.url, number))).collect();
        ServiceBuilder::new(format!(
            "workers = {workers}\n[results]\nwindow = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\"\n[ingest]\npartitions = 5\n\
             [cluster]\nprocesses = {}\n[checkpoints]\nevery = \"300ms\"\n\
             [[sinks]]\ntype = \"postgres\"\nurls = [{}]\nschema = \"100 % \\\"mine\\\"\"\nshards = 3\ncommit_interval = \"40ms\"\n",
            self.processes,
            urls.join(", ")
        ))
        .data(&self.data())
    }

    fn next_entries(&mut self) -> Vec<LogEntry> {
        self.now += self.random.below(6) as i64 * MINUTE_MS;
        let entries = (0..1 + self.random.below(40)).map(|_| random_entry(&mut self.random, self.now)).collect();
        keep_accepted_entries(&self.log.oracle, entries, &mut self.random, self.now)
    }

    fn apply(&mut self, entries: &[LogEntry]) {
        self.records += entries.len() as u64;
        for entry in entries {
            self.log.apply(*entry);
        }
    }

    /// Posts a batch; returns false if the service did not live to answer.
    fn post(&mut self, address: &str, entries: &[LogEntry]) -> bool {
        let record = |entry: &LogEntry| named_record_json(entry, &name_of(entry.city)).to_string();
        let records: Vec<String> = entries.iter().map(record).collect();
        let Ok(answer) = post(address, "application/x-ndjson", &records.join("\n")) else { return false };
        assert_eq!(answer.status, 200, "{}", answer.body);
        self.apply(entries);
        true
    }

    fn post_some(&mut self, service: &ServiceProcess, batches: u64) {
        for _ in 0..batches {
            let entries = self.next_entries();
            assert!(self.post(&service.address, &entries), "{}", service.log());
        }
    }

    /// Posts until the service is gone. The last batch may be in the log, as a whole, or not.
    fn post_until_gone(&mut self, address: &str) -> Vec<LogEntry> {
        loop {
            let entries = self.next_entries();
            if !self.post(address, &entries) {
                return entries;
            }
        }
    }

    /// Waits until all records are applied, and counts a batch without an answer if it is in the log.
    fn settle(&mut self, service: &ServiceProcess, unanswered: &[LogEntry]) {
        let applied = wait_for("that all is applied", || {
            let status = ServiceStatus::fetch_status(&service.address, WAIT_TIMEOUT)?;
            (status.applied == status.end && status.applied >= self.records).then_some(status.applied)
        });
        if applied != self.records {
            self.apply(unanswered);
        }
        assert_eq!(applied, self.records);
    }

    /// One run with a fault in it.
    fn run_with(&mut self, fault: Fault) {
        let mut builder = self.builder();
        if let Fault::DieBeforeCommit = fault {
            builder = builder.die_before_commit(self.random.below(12));
        }
        let mut service = builder.spawn();
        let mut unanswered = Vec::new();
        match fault {
            Fault::DieBeforeCommit => {
                if service.next_addresses_unless_ended(1).is_ok_and(|addresses| {
                    service.address = addresses[0].clone();
                    true
                }) {
                    unanswered = self.post_until_gone(&service.address.clone());
                }
                wait_for("its death", || service.has_ended());
            }
            Fault::KillService => {
                service.wait_for_address();
                let (kill, delay) =
                    (service.kill_handle(), Duration::from_micros(self.random.below(400_000)));
                let killer = thread::spawn(move || {
                    thread::sleep(delay);
                    kill();
                });
                unanswered = self.post_until_gone(&service.address.clone());
                killer.join().unwrap();
            }
            _ => {
                service.wait_for_ready();
                self.post_some(&service, 3);
                self.harm_server(fault);
                self.post_some(&service, 3);
            }
        }
        if service.has_ended().is_none() && self.random.below(2) == 0 {
            self.settle(&service, &unanswered);
            service.terminate();
            return;
        }
        service.kill();
        let mut service = self.builder().spawn();
        service.wait_for_ready();
        self.settle(&service, &unanswered);
        service.kill();
    }

    fn harm_server(&mut self, fault: Fault) {
        thread::sleep(Duration::from_millis(self.random.below(100)));
        match fault {
            Fault::KillServer => self.server.kill(),
            Fault::ShutDownServer => self.server.shut_down_immediately(),
            Fault::EndSessions => {
                let end = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'";
                TestClient::connect(&self.server.url).query(end, &[]);
            }
            _ => self.proxy.lose_answers(1 + self.random.below(3)),
        }
        if let Fault::KillServer | Fault::ShutDownServer = fault {
            thread::sleep(Duration::from_millis(self.random.below(600)));
            self.server.restart();
        }
    }

    /// Waits until the tables hold what they must.
    fn check(&self) {
        let clients: Vec<TestClient> = (0..self.databases)
            .map(|number| {
                let client = TestClient::connect(&named(&self.server.url, number));
                client.execute("set search_path to \"100 % \"\"mine\"\"\"");
                client
            })
            .collect();
        let clients: Vec<&TestClient> = clients.iter().collect();
        let expected = ExpectedTables { log: &self.log, settings: RUN_SETTINGS, name: &name_of };
        let mut difference = expected.find_difference(&clients);
        for _ in 0..100 {
            if difference.is_none() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
            difference = expected.find_difference(&clients);
        }
        assert_eq!(difference, None);
        check_positions(&clients);
    }
}

/// Every position is there once, and a city's arrivals are in the order of its log.
fn check_positions(clients: &[&TestClient]) {
    for client in clients {
        let twice = "select source, partition, position from arrival group by 1, 2, 3 having count(*) > 1";
        assert!(client.query(twice, &[]).is_empty(), "an arrival is there twice");
        let disorder = "select * from (
            select position, lag(position) over (partition by city_id order by as_of, seq) as before from arrival
            ) a where before >= position";
        assert!(client.query(disorder, &[]).is_empty(), "as_of and seq are not in the order of the log");
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
        case.check();
    }
    let lost = case.proxy.lost_answers();
    assert!(kills < FAULTS.len() as u64 || lost > 0, "no answer to COMMIT was lost");
    eprintln!("{} arrivals, {lost} lost answers", case.log.arrivals.len());
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
