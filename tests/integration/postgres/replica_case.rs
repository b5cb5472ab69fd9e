//! A service that writes to a server and reads older rows from a replica of it, whose replay a test
//! can pause.

use serde_json::Value;
use tempfile::TempDir;

use super::server::PrivateServer;
use super::test_schema::TestClient;
use crate::support::http::HttpResponse;
use crate::support::{
    LogEntry, MINUTE_MS, Oracle, RANDOM_CITIES, RUN_SETTINGS, Random, RunSettings, ServiceBuilder,
    ServiceProcess, city_name, keep_accepted_entries, named_record_json, normalize_numbers, random_entry,
    row_json, wait_for,
};

pub struct ReplicaCase {
    pub server: PrivateServer,
    pub replica: PrivateServer,
    databases: usize,
    pub service: ServiceProcess,
    pub oracle: Oracle,
    pub random: Random,
    /// The time of the newest readings, ms.
    pub now: i64,
    /// Arrivals that the databases must have.
    arrivals: i64,
    _root: TempDir,
}

/// The history of a city, as far as it was served.
#[derive(Debug, Default)]
pub struct ServedHistory {
    pub rows: Vec<Value>,
    /// Pages that were refused because the replica is behind.
    pub refused: usize,
}

impl ReplicaCase {
    /// Rows are held in memory for `history_minutes`, or for the lateness if that is more.
    pub fn start(seed: u64, databases: usize, history_minutes: i64) -> ReplicaCase {
        let settings = RunSettings { history: history_minutes * MINUTE_MS, ..RUN_SETTINGS };
        let server = PrivateServer::start(&[]);
        let admin = TestClient::connect(&server.url);
        for number in 0..databases {
            admin.execute(&format!("create database results{number}"));
        }
        let replica = server.start_replica();
        let urls = |server: &PrivateServer| {
            let urls = (0..databases).map(|number| format!("{:?}", database_url(&server.url, number)));
            urls.collect::<Vec<_>>().join(", ")
        };
        let config = format!(
            "workers = 2\n[results]\nwindow = \"30m\"\nlateness = \"90m\"\nhistory = \"{history_minutes}m\"\n\
             [ingest]\npartitions = 5\n[serve]\nhistory_urls = [{}]\nhistory_timeout = \"2s\"\n\
             [[sinks]]\ntype = \"postgres\"\nurls = [{}]\nshards = 3\ncommit_interval = \"20ms\"\n",
            urls(&replica),
            urls(&server),
        );
        let root = tempfile::tempdir().unwrap();
        let builder = ServiceBuilder::new(config).data(&root.path().join("data"));
        let service = builder.start().wait_until_ready();
        let now = jiff::Timestamp::now().as_millisecond() - 4 * 24 * 60 * MINUTE_MS;
        ReplicaCase {
            server,
            replica,
            databases,
            service,
            oracle: Oracle::new(settings),
            random: Random::new(seed),
            now: now - now.rem_euclid(MINUTE_MS),
            arrivals: 0,
            _root: root,
        }
    }

    /// Posts entries, and waits until the results include them.
    pub fn post(&mut self, entries: &[LogEntry]) -> u64 {
        let records = entries.iter().map(|entry| named_record_json(entry, &city_name(entry.city)));
        let positions = self.service.post(&records.collect());
        for entry in entries {
            self.arrivals += i64::from(self.oracle.apply_arrival(entry).is_some());
        }
        self.service.wait_until_applied(&positions)
    }

    /// Posts random readings, corrections and withdrawals over `steps` times ten minutes.
    pub fn post_random(&mut self, steps: usize) {
        for _ in 0..steps {
            self.now += 10 * MINUTE_MS;
            let entries = (0..12).map(|_| random_entry(&mut self.random, self.now)).collect();
            let entries = keep_accepted_entries(&self.oracle, entries, &mut self.random, self.now);
            self.post(&entries);
        }
    }

    pub fn clients(&self, server: &PrivateServer) -> Vec<TestClient> {
        let client = |number| {
            let client = TestClient::connect(&database_url(&server.url, number));
            client.execute("set search_path to swelter");
            client
        };
        (0..self.databases).map(client).collect()
    }

    /// Waits until the server has all arrivals.
    pub fn wait_until_written(&self) {
        self.wait_for_arrivals(&self.server);
    }

    /// Waits until the replica has all arrivals.
    pub fn wait_until_replayed(&self) {
        self.wait_for_arrivals(&self.replica);
    }

    fn wait_for_arrivals(&self, server: &PrivateServer) {
        wait_for("that all arrivals are in the databases", || {
            let count = |client: &TestClient| -> Option<i64> {
                let rows = client.try_query("select count(*) from arrival", &[]).ok()?;
                Some(rows.first()?.get(0))
            };
            let found: Option<i64> = self.clients(server).iter().map(count).sum();
            (found == Some(self.arrivals)).then_some(())
        });
    }

    /// Stops the replica's replay: it answers as of now until [`ReplicaCase::resume_replay`].
    pub fn pause_replay(&self) {
        let client = TestClient::connect(&self.replica.url);
        client.execute("select pg_wal_replay_pause()");
        wait_for("that the replay is paused", || {
            let rows = client.query("select pg_get_wal_replay_pause_state()", &[]);
            (rows[0].get::<_, &str>(0) == "paused").then_some(())
        });
    }

    pub fn resume_replay(&self) {
        TestClient::connect(&self.replica.url).execute("select pg_wal_replay_resume()");
    }

    pub fn history_page(&self, city: u32, query: &str) -> HttpResponse {
        let name = city_name(city).replace(' ', "%20");
        self.service.get(&format!("/v1/cities/{name}/history?{query}"))
    }

    /// The whole history of a city, page by page. Behind a page that is refused it goes on with the
    /// rows that the dataflow has.
    pub fn read_history(&mut self, city: u32) -> ServedHistory {
        let mut history = ServedHistory::default();
        let limit = 1 + self.random.below(40);
        let (mut from, mut cursor) = (String::new(), String::new());
        loop {
            let answer = self.history_page(city, &format!("limit={limit}{from}{cursor}"));
            if answer.status == 503 {
                assert_eq!(answer.error_code(), "replica_behind", "{}", answer.body);
                assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
                history.refused += 1;
                assert!(history.refused < 2, "a page of live rows is refused: {}", answer.body);
                (from, cursor) = (format!("&from={}", self.oldest_live(city)), String::new());
                continue;
            }
            assert_eq!(answer.status, 200, "{}", answer.body);
            let page = answer.json();
            history.rows.extend(page["rows"].as_array().unwrap().iter().map(normalize_numbers));
            let Some(next) = page["next"].as_str() else { return history };
            cursor = format!("&cursor={next}");
        }
    }

    /// The oldest time of a row that the dataflow has.
    fn oldest_live(&self, city: u32) -> String {
        let reach = self.oracle.settings().lateness.max(self.oracle.settings().history);
        let oldest = self.oracle.high(city).unwrap().millis() - reach;
        swelter::internals::model::EventTime::from_millis(oldest).unwrap().to_string()
    }

    /// All rows of a city.
    pub fn expected_rows(&self, city: u32) -> Vec<Value> {
        let rows = self.oracle.rows();
        let own = rows.iter().filter(|((of, _), _)| *of == city);
        own.map(|((_, at), row)| row_json(&city_name(city), *at, row)).collect()
    }

    /// Checks that every row is served as it is now, and that none is left out without a refused
    /// page. Returns the number of refused pages.
    pub fn check_histories(&mut self) -> usize {
        let mut refused = 0;
        for city in 0..RANDOM_CITIES {
            if self.oracle.high(city).is_none() {
                continue;
            }
            let (served, expected) = (self.read_history(city), self.expected_rows(city));
            if served.refused == 0 {
                assert_eq!(served.rows, expected, "city {city}");
            }
            assert!(served.rows.iter().all(|row| expected.contains(row)), "an old value is served");
            let served_live = served.rows.len().min(expected.len());
            let live = self.oracle.servable_rows(city).len();
            assert!(served_live >= live, "a live row is missing");
            assert_eq!(
                served.rows[served.rows.len() - live..],
                expected[expected.len() - live..],
                "the live rows"
            );
            refused += served.refused;
        }
        refused
    }
}

/// The URL of one of the databases.
pub fn database_url(url: &str, number: usize) -> String {
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/results{number}")
}
