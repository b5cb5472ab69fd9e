//! The server on a real socket, with a log and a dataflow in memory whose answers the tests set.

mod compressed;
mod documents;
mod hostile;
mod ingest;
mod places;
mod rest;
mod sockets;
mod stale;
mod targets;
mod times;
mod units;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::*;
use crate::codec::ReadOptions;
use crate::directory::Directory;
use crate::model::{
    AnswerPiece, AppendCallback, AppendError, AppendHold, AppendReport, AppendedRange, Appender, Category,
    CurrentRow, CurrentRowUpdate, EventTime, HeatIndex, HoldCheck, Measurement, NewRecord, PartitionName,
    PartitionTable, Queries, Query, QueryKind, Reason, Refusal, RemainingRows, Row, ViewUpdate,
};

const TEST_DEADLINE: Duration = Duration::from_secs(10);
/// The epoch of the first update.
const FIRST_EPOCH: u64 = 1_764_000_000_000;

fn limits() -> ServeLimits {
    ServeLimits {
        connections: 200,
        header_time: TEST_DEADLINE,
        body_time: TEST_DEADLINE,
        idle_time: TEST_DEADLINE,
        body_bytes: 1 << 20,
        bodies_bytes: 4 << 20,
        new_cities_percent: 50,
        history_rows: 100,
        message_bytes: 16 * 1024,
        messages_per_second: 1_000,
        subscriptions: 8,
        cities: 100,
        window_cities: 10,
        heartbeat: TEST_DEADLINE,
        send_time: TEST_DEADLINE,
        backlog_bytes: 1 << 20,
        ring_time: Duration::from_secs(600),
        ring_bytes: 1 << 20,
    }
}

fn plan() -> ServePlan {
    ServePlan {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: None,
        tokens: Vec::new(),
        origins: vec!["https://maps.example.org".into()],
        echo: true,
        limits: limits(),
    }
}

fn service_info() -> ServiceInfo {
    let partition = |partition| PartitionName { source: "journal".into(), partition };
    ServiceInfo {
        generation: "17-9f2c41d06b3e8a55".into(),
        formula: "rothfusz",
        window: "1d".parse().unwrap(),
        lateness: "1d".parse().unwrap(),
        history: "1d".parse().unwrap(),
        stale_after: "36500d".parse().unwrap(),
        units: Default::default(),
        workers: 2,
        partitions: PartitionTable::new(vec![partition(0), partition(1)]),
        directory: Directory::shipped(),
        read_options: ReadOptions::default(),
        ingest_log: Some(IngestLog { source: "journal".into(), max_cities: 1_000, partition_of: |_, _| 0 }),
    }
}

/// A log in memory, which answers at once with what a test has set.
#[derive(Default)]
struct MemoryLog {
    records: Mutex<Vec<NewRecord>>,
    /// The error that appends are answered with, if it is set.
    error: Mutex<Option<AppendError>>,
    /// Readings dated then or later are refused as readings of the future.
    future: Mutex<Option<EventTime>>,
    /// If it is set, acknowledgements wait in it.
    pending_callbacks: Mutex<Option<Vec<AppendCallback>>>,
}

impl MemoryLog {
    fn bytes(&self) -> Vec<String> {
        let text = |record: &NewRecord| String::from_utf8(record.bytes.to_vec()).unwrap();
        self.records.lock().iter().map(text).collect()
    }

    /// Answers no append until the test acknowledges it.
    fn hold_appends(&self) {
        *self.pending_callbacks.lock() = Some(Vec::new());
    }

    /// Waits until so many appends are held.
    fn wait_for_appends(&self, count: usize) {
        let started = Instant::now();
        while self.pending_callbacks.lock().as_ref().unwrap().len() < count {
            assert!(started.elapsed() < TEST_DEADLINE);
            std::thread::yield_now();
        }
    }

    /// Acknowledges the held appends. Later ones are held too.
    fn acknowledge_appends(&self) {
        let pending = self.pending_callbacks.lock().replace(Vec::new()).unwrap();
        pending.into_iter().for_each(|done| done(Ok(AppendReport::default())));
    }

    /// Acknowledges the held appends, and answers later ones at once.
    fn release_appends(&self) {
        self.acknowledge_appends();
        *self.pending_callbacks.lock() = None;
    }
}

impl HoldCheck for MemoryLog {
    fn current_hold(&self) -> Option<AppendHold> {
        match &*self.error.lock() {
            Some(AppendError::OnHold(hold)) => Some(hold.clone()),
            _ => None,
        }
    }
}

impl Appender for MemoryLog {
    fn append(&self, records: Vec<NewRecord>, done: AppendCallback) {
        if let Some(callbacks) = &mut *self.pending_callbacks.lock() {
            return callbacks.push(done);
        }
        if let Some(error) = self.error.lock().clone() {
            return done(Err(error));
        }
        let mut log = self.records.lock();
        let first = log.len() as u64;
        let (mut refused, mut number) = (Vec::new(), 0);
        log.extend(records.into_iter().filter(|record| {
            let future = *self.future.lock();
            let is_refused = future.is_some_and(|future| record.reading_at >= Some(future));
            refused
                .extend(is_refused.then(|| (number, Refusal::new(Reason::InTheFuture, "as the test says"))));
            number += 1;
            !is_refused
        }));
        let end = log.len() as u64;
        let partition = PartitionName { source: "journal".into(), partition: 0 };
        let positions = (end > first).then_some(AppendedRange { partition, first, end });
        done(Ok(AppendReport { ranges: positions.into_iter().collect(), refusals: refused }));
    }
}

/// Answers queries of histories at the epoch after all others.
#[derive(Default)]
struct ScriptedDataflow {
    publisher: OnceLock<Publisher>,
    upper: Mutex<u64>,
    rows: Mutex<BTreeMap<Arc<str>, BTreeMap<EventTime, Row>>>,
    /// Whether the queue of queries is full.
    full: Mutex<bool>,
}

impl ScriptedDataflow {
    fn insert_row(&self, city: &str, at: EventTime, row: Row) {
        self.rows.lock().entry(city.into()).or_default().insert(at, row);
    }

    fn publish(&self, mut update: ViewUpdate) {
        let mut upper = self.upper.lock();
        *upper = (*upper + 1).max(FIRST_EPOCH + 1);
        update.upper = *upper;
        update.is_ready = true;
        update.current_rows.iter_mut().for_each(|current| current.epoch = *upper - 1);
        update.answers.iter_mut().for_each(|answer| answer.epoch = *upper - 1);
        let publisher = self.publisher.get().unwrap();
        let started = Instant::now();
        while let Err(back) = publisher.publish_update(update) {
            assert!(started.elapsed() < TEST_DEADLINE);
            update = back;
            std::thread::yield_now();
        }
    }

    fn answer(&self, query: &Query) -> Option<AnswerPiece> {
        let rows = self.rows.lock();
        let city_rows = rows.get(&query.city);
        let (from, to, limit) = match query.kind {
            QueryKind::History { from, to, limit } => (from, to, limit as usize),
            QueryKind::Watch => (EventTime::MIN, EventTime::MAX, usize::MAX),
            QueryKind::Unwatch | QueryKind::GrantRows { .. } | QueryKind::Cancel => return None,
        };
        let within = city_rows.into_iter().flatten().filter(|(at, _)| (from..to).contains(at));
        let mut found: Vec<_> = within.map(|(at, row)| (*at, *row)).collect();
        let has_more = found.len() > limit;
        found.truncate(limit);
        Some(AnswerPiece {
            query_id: query.id,
            epoch: 0,
            city: query.city.clone(),
            is_city_known: city_rows.is_some(),
            first_row: 0,
            rows: found,
            has_more,
            remaining: RemainingRows::Nothing,
        })
    }
}

impl Queries for ScriptedDataflow {
    fn submit_queries(&self, queries: Vec<Query>) -> bool {
        if *self.full.lock() {
            return false;
        }
        let answers: Vec<_> = queries.iter().filter_map(|query| self.answer(query)).collect();
        if !answers.is_empty() {
            self.publish(ViewUpdate { answers, ..ViewUpdate::default() });
        }
        true
    }
}

/// A server, its log and its dataflow.
struct TestServer {
    address: SocketAddr,
    log: Arc<MemoryLog>,
    dataflow: Arc<ScriptedDataflow>,
    serving: Option<RunningServer>,
    runtime: Runtime,
}

impl TestServer {
    /// Starts a server that is ready and has the current rows of [`cities`].
    fn start_ready(plan: ServePlan) -> TestServer {
        let service = TestServer::start(plan, true);
        let (mut earlier, later) = (cities(), cities());
        earlier[2].row = later[0].row;
        service.dataflow.publish(ViewUpdate { current_rows: earlier, ..ViewUpdate::default() });
        service.dataflow.publish(ViewUpdate { current_rows: later, ..ViewUpdate::default() });
        service.poll_until("/readyz", |reply| reply.status == 200);
        let has_both = |reply: &HttpReply| reply.json()["as_of"] == FIRST_EPOCH + 1;
        if service.get("/v1/status").status == 200 {
            service.poll_until("/v1/status", has_both);
        }
        service
    }

    fn start(plan: ServePlan, has_log: bool) -> TestServer {
        TestServer::start_with(plan, has_log, service_info())
    }

    fn start_with(plan: ServePlan, has_log: bool, info: ServiceInfo) -> TestServer {
        TestServer::start_warning(plan, has_log, info, None)
    }

    /// Starts a server whose log stamps records by another clock, if `warn_ahead` is set.
    fn start_warning(
        plan: ServePlan,
        has_log: bool,
        info: ServiceInfo,
        warn_ahead: Option<crate::model::Millis>,
    ) -> TestServer {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let bound = bind_server(plan).unwrap();
        let address = bound.address();
        let (appender, dataflow) = (Arc::new(MemoryLog::default()), Arc::new(ScriptedDataflow::default()));
        let backends = Backends {
            queries: dataflow.clone(),
            appender: has_log.then(|| appender.clone() as Arc<dyn Appender>),
            hold_check: Some(appender.clone()),
            warn_ahead,
        };
        let serving = bound.start_serving(runtime.handle(), info, backends).unwrap();
        dataflow.publisher.set(serving.publisher()).ok().unwrap();
        TestServer { address, log: appender, dataflow, serving: Some(serving), runtime }
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(TEST_DEADLINE)).unwrap();
        socket.set_write_timeout(Some(TEST_DEADLINE)).unwrap();
        socket
    }

    /// Sends the bytes as they are, and reads until the connection ends.
    fn send_raw(&self, request: &[u8]) -> HttpReply {
        let mut socket = self.connect();
        // The server may have answered and closed before all bytes are sent.
        let _ = socket.write_all(request);
        HttpReply::read(&mut socket)
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> HttpReply {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            request.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        self.send_raw(&[request.as_bytes(), body].concat())
    }

    fn get(&self, path: &str) -> HttpReply {
        self.send("GET", path, &[], b"")
    }

    fn post(&self, kind: &str, body: &[u8]) -> HttpReply {
        self.send("POST", "/v1/readings", &[("content-type", kind)], body)
    }

    fn poll_until(&self, path: &str, is_expected: impl Fn(&HttpReply) -> bool) -> HttpReply {
        let started = Instant::now();
        loop {
            let reply = self.get(path);
            if is_expected(&reply) {
                return reply;
            }
            assert!(started.elapsed() < TEST_DEADLINE, "{path}: {} {}", reply.status, reply.text());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until no connection is open except the one that asks.
    fn wait_for_idle(&self) {
        self.poll_until("/v1/status", |reply| reply.json()["connections"] == 1);
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            self.runtime.block_on(serving.stop_serving(Duration::from_millis(200)));
        }
    }
}

/// A response, as it was received.
#[derive(Debug)]
struct HttpReply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl HttpReply {
    fn read(socket: &mut TcpStream) -> HttpReply {
        let mut bytes = Vec::new();
        let read = socket.read_to_end(&mut bytes);
        assert!(!bytes.is_empty() || read.is_ok(), "{read:?}");
        HttpReply::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> HttpReply {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(end) = end else {
            return HttpReply { status: 0, head: String::new(), body: bytes.to_vec() };
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        HttpReply { status, head, body: bytes[end + 4..].to_vec() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code of a problem, whose members are checked against the document.
    fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        documents::check("Problem", &problem);
        assert_eq!(problem["status"], self.status);
        let code = problem["code"].as_str().unwrap();
        assert_eq!(problem["type"], format!("urn:swelter:problem:{code}"));
        code.into()
    }
}

fn time(text: &str) -> EventTime {
    text.parse::<EventTime>().unwrap()
}

fn row(fahrenheit: f64, category: Category) -> Row {
    let heat_index = HeatIndex::from_fahrenheit(fahrenheit);
    Row::new(heat_index, category, heat_index.micros() * 2 - 1_000_000, 2)
}

/// New York and Los Angeles, a city without a current row, and a city that is not in the directory,
/// whose name needs escapes.
fn cities() -> Vec<CurrentRowUpdate> {
    let current = |fahrenheit, category| CurrentRow {
        reading_at: time("2025-11-24T16:00:00Z"),
        row: row(fahrenheit, category),
        hour_ago: Some((80_000_000, 1)),
        measurement: Some(Measurement::new(86.4, 63.1, Some(8.05)).unwrap()),
    };
    let bare = CurrentRow { hour_ago: None, measurement: None, ..current(70.5, Category::None) };
    let at = |city: &str, row| CurrentRowUpdate { epoch: 0, city: city.into(), row };
    vec![
        at("5128581", Some(current(91.283411, Category::ExtremeCaution))),
        at("5368361", Some(current(104.0, Category::Danger))),
        at("gone", None),
        at("Zürich / \"Süd\" %", Some(bare)),
    ]
}

/// A change of the current row of New York.
fn hotter_new_york() -> ViewUpdate {
    let mut current = cities();
    current.truncate(1);
    let row = row(95.0, Category::ExtremeCaution);
    current[0].row = current[0].row.map(|current| CurrentRow { row, ..current });
    ViewUpdate { current_rows: current, ..ViewUpdate::default() }
}

const READING: &str =
    r#"{"city":"5128581","reading_at":"2025-11-24T16:00:00Z","temperature":86.4,"humidity":63.1}"#;
