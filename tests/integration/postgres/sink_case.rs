//! A service with a PostgreSQL sink beside the journal, and what its tables must hold.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::applied_log::AppliedLog;
use super::filled_log::CITY_NAMES;
use super::tables::ExpectedTables;
use super::test_schema::TestClient;
use crate::support::{
    LogEntry, MINUTE_MS, RUN_SETTINGS, Random, ServiceBuilder, ServiceProcess, ServiceStatus, WAIT_TIMEOUT,
    keep_accepted_entries, named_record_json, post, random_entry, wait_for,
};

/// How long the tables may lack what is applied.
const COMMIT_CHECKS: u32 = 100;

pub struct SinkCase {
    pub random: Random,
    /// As the sink reaches its databases.
    pub urls: Vec<String>,
    /// As the test does.
    pub own_urls: Vec<String>,
    pub schema: String,
    pub processes: u64,
    pub log: AppliedLog,
    root: TempDir,
    /// How many records the journal has.
    records: u64,
    now: i64,
}

impl SinkCase {
    pub fn new(seed: u64, urls: Vec<String>, own_urls: Vec<String>, schema: &str) -> SinkCase {
        let now = jiff::Timestamp::now().as_millisecond() - 24 * 3_600_000;
        SinkCase {
            random: Random::new(seed),
            urls,
            own_urls,
            schema: schema.to_owned(),
            processes: 1,
            log: AppliedLog::new(RUN_SETTINGS),
            root: tempfile::tempdir().unwrap(),
            records: 0,
            now: now - now.rem_euclid(MINUTE_MS),
        }
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    pub fn builder(&mut self) -> ServiceBuilder {
        let workers = 1 + self.random.below(2);
        ServiceBuilder::new(format!(
            "workers = {workers}\n[results]\nwindow = \"30m\"\nlateness = \"90m\"\nhistory = \"1h\"\n[ingest]\npartitions = 5\n\
             [cluster]\nprocesses = {}\n[checkpoints]\nevery = \"300ms\"\n\
             [[sinks]]\ntype = \"postgres\"\nurls = {:?}\nschema = {:?}\nshards = 3\ncommit_interval = \"40ms\"\n",
            self.processes, self.urls, self.schema
        ))
        .data(&self.data())
    }

    pub fn start(&mut self) -> ServiceProcess {
        let mut service = self.builder().spawn();
        service.wait_for_ready();
        service
    }

    fn next_entries(&mut self) -> Vec<LogEntry> {
        self.now += self.random.below(6) as i64 * MINUTE_MS;
        let entries =
            (0..1 + self.random.below(40)).map(|_| random_entry(&mut self.random, self.now)).collect();
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

    pub fn post_some(&mut self, service: &ServiceProcess, batches: u64) {
        for _ in 0..batches {
            let entries = self.next_entries();
            assert!(self.post(&service.address, &entries), "{}", service.log());
        }
    }

    /// Posts until the service is gone. The last batch may be in the log, as a whole, or not.
    pub fn post_until_gone(&mut self, address: &str) -> Vec<LogEntry> {
        loop {
            let entries = self.next_entries();
            if !self.post(address, &entries) {
                return entries;
            }
        }
    }

    /// Waits until all records are applied, and counts a batch without an answer if it is in the log.
    pub fn settle(&mut self, service: &ServiceProcess, unanswered: &[LogEntry]) {
        let applied = wait_for("that all is applied", || {
            let status = ServiceStatus::fetch_status(&service.address, WAIT_TIMEOUT)?;
            (status.applied == status.end && status.applied >= self.records).then_some(status.applied)
        });
        if applied != self.records {
            self.apply(unanswered);
        }
        assert_eq!(applied, self.records);
    }

    /// Waits until the tables hold what they must.
    pub fn check(&self) {
        let clients: Vec<TestClient> = self.own_urls.iter().map(|url| TestClient::connect(url)).collect();
        let path = format!("set search_path to \"{}\"", self.schema.replace('"', "\"\""));
        clients.iter().for_each(|client| client.execute(&path));
        let clients: Vec<&TestClient> = clients.iter().collect();
        let expected = ExpectedTables { log: &self.log, settings: RUN_SETTINGS, name: &name_of };
        let mut difference = expected.find_difference(&clients);
        for _ in 0..COMMIT_CHECKS {
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

fn name_of(city: u32) -> String {
    CITY_NAMES[city as usize].to_owned()
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
