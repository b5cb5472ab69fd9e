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
    LogEntry, MINUTE_MS, Oracle, RUN_SETTINGS, Random, ServiceBuilder, ServiceProcess, ServiceStatus,
    WAIT_TIMEOUT, keep_accepted_entries, named_record_json, post, random_entry, wait_for,
};

/// How long the tables may lack what is applied.
const COMMIT_CHECKS: u32 = 100;
/// Epochs of each city whose rows are compared.
const TIME_TRAVELS: usize = 4;

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
        let now = jiff::Timestamp::now().as_millisecond() - 60 * 24 * 3_600_000;
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
        // Now and then, since a service that is killed late gets very many batches.
        if self.random.below(8) == 0 {
            self.now += self.random.below(60) as i64 * MINUTE_MS;
        }
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
        let refused = answer.json()["refused_count"].as_u64();
        assert_eq!((answer.status, refused), (200, Some(0)), "{}", answer.body);
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
            let is_caught_up = status.ready && status.applied == status.end;
            (is_caught_up && status.applied >= self.records).then_some(status.applied)
        });
        if applied != self.records {
            self.apply(unanswered);
        }
        assert_eq!(applied, self.records);
    }

    /// Waits until the tables hold what they must.
    pub fn check(&self) {
        let clients = self.connect();
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

    fn connect(&self) -> Vec<TestClient> {
        let clients: Vec<TestClient> = self.own_urls.iter().map(|url| TestClient::connect(url)).collect();
        let path = format!("set search_path to \"{}\"", self.schema.replace('"', "\"\""));
        clients.iter().for_each(|client| client.execute(&path));
        clients
    }

    /// Checks the means by SQL: as they are, and as they were after some arrivals of each city.
    pub fn check_means(&mut self) {
        for client in self.connect() {
            for city in client.query("select name from city", &[]) {
                let name: &str = city.get(0);
                let city = (0..).find(|city| name_of(*city) == name).unwrap();
                let epochs =
                    "select as_of from arrival join city using (city_id) where name = $1 order by as_of, seq";
                let epochs: Vec<i64> =
                    client.query(epochs, &[&name]).iter().map(|epoch| epoch.get(0)).collect();
                self.check_means_of(&client, city, None);
                for _ in 0..TIME_TRAVELS {
                    let as_of = epochs[self.random.index(epochs.len())];
                    let count = epochs.iter().filter(|epoch| **epoch <= as_of).count();
                    self.check_means_of(&client, city, Some((as_of, count)));
                }
            }
        }
    }

    /// The rows of a city as of an epoch that includes so many of its arrivals; all without one.
    fn check_means_of(&self, client: &TestClient, city: u32, as_of: Option<(i64, usize)>) {
        let mut oracle = Oracle::new(RUN_SETTINGS);
        let arrivals = self.log.arrivals.iter().filter(|arrival| arrival.entry.city == city);
        for arrival in arrivals.take(as_of.map_or(usize::MAX, |(_, count)| count)) {
            oracle.apply_arrival(&arrival.entry);
        }
        let expected: Vec<(i64, u64, i64)> = oracle
            .rows()
            .iter()
            .map(|((_, at), row)| (*at, row.rolling_heat_index().to_bits(), row.count().into()))
            .collect();
        let name = name_of(city);
        let columns = "select (extract(epoch from reading_at) * 1000)::bigint, rolling_heat_index, count";
        let found = match as_of {
            Some((as_of, _)) => client.query(
                &format!("{columns} from rolling_as_of($1, '-infinity', 'infinity', $2) order by 1"),
                &[&name, &as_of],
            ),
            None => client.query(&format!("{columns} from result_rows where city = $1 order by 1"), &[&name]),
        };
        let found: Vec<(i64, u64, i64)> =
            found.iter().map(|row| (row.get(0), row.get::<_, f64>(1).to_bits(), row.get(2))).collect();
        assert!(found == expected, "{name} {as_of:?}: {} rows, not {}", found.len(), expected.len());
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
