//! Seeded hostile bytes over many sockets, against the built program: requests and WebSocket
//! messages that are nearly right.
//!
//! `scripts/fuzz socket` sends more of them.

mod healthy_client;
mod messages;
mod mutations;
mod requests;

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use self::healthy_client::HealthyClient;
use super::hostile::{allow_open_files, peak_resident_bytes, resident_bytes};
use crate::support::prepared::{lock_machine, print_line};
use crate::support::{Random, ServiceBuilder, ServiceProcess, http, wait_for};

/// Limits that are reached soon, and short timeouts for clients that stop sending.
const CONFIG: &str = "[serve]\necho = true\n[serve.limits]\nconnections = 600\nheader_time = \"500ms\"\nbody_time = \"500ms\"\n\
     idle_time = \"1s\"\nbody_bytes = \"64 KiB\"\nbodies_bytes = \"8 MiB\"\nmessage_bytes = \"64 KiB\"\nheartbeat = \"1s\"\nring_bytes = \"16 MiB\"\n";
/// Requests and first seed of `scripts/test`.
const DEFAULT_REQUESTS: u64 = 100_000;
const DEFAULT_SEED: u64 = 1;
const DEFAULT_THREADS: u64 = 4;
/// Requests of one connection, at most: the service reads none after a malformed one.
const REQUEST_BURST: usize = 6;
/// Messages of one connection, at most.
const MESSAGE_BURST: usize = 60;
/// Connections that a thread leaves open with a request half sent.
const HELD_CONNECTIONS: usize = 40;
/// Memory beyond that at readiness: connections and their requests, the tail of the log (16 MiB),
/// the part of the log that is not on disk yet, the rings, and pages that the allocator retains.
const MAX_MEMORY_BYTES: u64 = 128 << 20;
/// For each city: some names are mutated, and the readings of each new one are kept, as they must
/// be.
const MAX_CITY_BYTES: u64 = 8 << 10;

/// A number from the environment, as `scripts/fuzz` sets it.
fn env_number(name: &str, otherwise: u64) -> u64 {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    value.map_or(otherwise, |value| value.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Counts of the responses of the service.
#[derive(Default)]
struct ResponseCounts {
    /// Connections by the status of their first answer, 0 where there was none.
    statuses: BTreeMap<u16, usize>,
    /// Answers to requests, and messages of sessions.
    count: usize,
}

#[test]
fn fuzzed_requests_end_nothing_and_affect_no_other_client() {
    let _alone = lock_machine();
    allow_open_files();
    let (requests, seed) =
        (env_number("TEST_FUZZ_REQUESTS", DEFAULT_REQUESTS), env_number("TEST_FUZZ_SEED", DEFAULT_SEED));
    print_line(&format!("fuzz: {requests} requests and messages, seed {seed}"));
    let mut service = ServiceBuilder::new(CONFIG).start().wait_until_ready();
    let (at, before) = (service.address.parse().unwrap(), resident_bytes(&service));
    let healthy = HealthyClient::start(at);
    let token = healthy.resume_token();
    let began = Instant::now();
    let answered = AtomicUsize::new(0);
    let answers = thread::scope(|scope| {
        let attack = |thread: u64| {
            let (token, answered) = (&token, &answered);
            scope.spawn(move || {
                Attacker::new(at, seed.wrapping_mul(DEFAULT_THREADS).wrapping_add(thread), token)
                    .send_until(answered, requests)
            })
        };
        let attackers: Vec<_> = (0..DEFAULT_THREADS).map(attack).collect();
        attackers
            .into_iter()
            .map(|attacker| attacker.join().unwrap())
            .fold(ResponseCounts::default(), ResponseCounts::merge)
    });
    let took = began.elapsed();
    let (rows, most) = (healthy.finish(), peak_resident_bytes(&service));
    let cities = service.get("/v1/status").json()["cities"].as_u64().unwrap();
    print_line(&format!(
        "fuzz: {} answered in {:.1} s, first answers {:?}; {} to {} MB with {cities} cities; a healthy subscriber has had {rows} rows",
        answers.count,
        took.as_secs_f64(),
        answers.statuses,
        before >> 20,
        most >> 20
    ));
    check_status_variety(&answers.statuses);
    assert!(
        most < before + MAX_MEMORY_BYTES + cities * MAX_CITY_BYTES,
        "{before} bytes before, {most} at most"
    );
    check_service_intact(&mut service);
}

/// Requests have passed the first checks: all these statuses were returned.
fn check_status_variety(statuses: &BTreeMap<u16, usize>) {
    for status in [101, 200, 204, 400, 403, 404, 405, 413, 415, 422, 426] {
        assert!(statuses.contains_key(&status), "nothing was answered {status}: {statuses:?}");
    }
    let failed = statuses.keys().filter(|status| **status >= 500 && **status != 503);
    assert_eq!(failed.count(), 0, "{statuses:?}");
}

/// The service runs, has caught no panic, and holds nothing of closed connections.
fn check_service_intact(service: &mut ServiceProcess) {
    assert_eq!(service.get("/healthz").status, 200);
    let metric = |name: &str| -> Vec<u64> {
        let text = service.get("/metrics").body;
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    };
    let caught = metric("swelter_caught_panics_total{");
    assert!(!caught.is_empty() && caught.iter().all(|count| *count == 0), "{}", service.log());
    wait_for("their connections are gone", || (metric("swelter_connections ") == [1]).then_some(()));
    wait_for("their sessions are gone", || (metric("swelter_subscriber_sessions ") == [0]).then_some(()));
    wait_for("their subscriptions are gone", || (metric("swelter_subscriptions ") == [0]).then_some(()));
    service.terminate_in_place();
    assert!(!service.log().contains("panicked"), "{}", service.log());
}

struct Attacker<'a> {
    at: SocketAddr,
    random: Random,
    token: &'a str,
    held: VecDeque<TcpStream>,
    answers: ResponseCounts,
}

impl ResponseCounts {
    fn merge(mut self, other: ResponseCounts) -> ResponseCounts {
        self.count += other.count;
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self
    }

    /// Takes all that has come on a connection; returns how many answers and messages that is.
    fn count_responses(&mut self, bytes: &[u8]) -> usize {
        let heads = bytes.windows(9).filter(|nine| nine.starts_with(b"HTTP/1.") && nine.ends_with(b" "));
        let status = first_status(bytes);
        let count = if status == 101 { 1 + count_messages(bytes) } else { heads.count() };
        *self.statuses.entry(status).or_default() += 1;
        self.count += count;
        count
    }
}

impl Attacker<'_> {
    fn new(at: SocketAddr, seed: u64, token: &str) -> Attacker<'_> {
        let mut seeds = Random::new(seed);
        let random = Random::new(seeds.next());
        Attacker { at, random, token, held: VecDeque::new(), answers: ResponseCounts::default() }
    }

    /// Until all have been answered so often together.
    fn send_until(mut self, answered: &AtomicUsize, requests: u64) -> ResponseCounts {
        while (answered.load(Ordering::Relaxed) as u64) < requests {
            let mut bytes = Vec::new();
            match self.random.index(20) {
                0..16 => self.push_requests(&mut bytes),
                16 => bytes = self.random.random_bytes(2_000),
                _ => self.push_session(&mut bytes),
            }
            if let Some(answer) = self.send_bytes(&bytes) {
                answered.fetch_add(self.answers.count_responses(&answer), Ordering::Relaxed);
            }
        }
        self.answers
    }

    /// One after the other without waiting.
    fn push_requests(&mut self, bytes: &mut Vec<u8>) {
        let count = self.random.within(1..REQUEST_BURST + 1);
        (0..count).for_each(|_| requests::push_request(&mut self.random, bytes));
    }

    /// A handshake, and what follows an upgrade without waiting for it.
    fn push_session(&mut self, bytes: &mut Vec<u8>) {
        let path =
            self.random.pick_mostly(&["/v1/subscribe", "/v1/subscribe", "/v1/ingest"], 10, &["/echo", "/"]);
        requests::push_handshake(&mut self.random, path, bytes);
        for _ in 0..self.random.index(MESSAGE_BURST) {
            messages::push_message(&mut self.random, path == "/v1/ingest", self.token, bytes);
        }
        if self.random.percent(3) {
            requests::push_request(&mut self.random, bytes);
        }
        messages::push_frame(&mut self.random, 0x88, &1000_u16.to_be_bytes(), bytes);
    }

    /// Sends bytes, whole or in pieces, and reads the response; or disconnects, or leaves the
    /// connection open.
    fn send_bytes(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut stream = http::connect(self.at).unwrap();
        let sent = match self.random.percent(20) {
            true => bytes.chunks(self.random.within(1..2_000)).try_for_each(|piece| stream.write_all(piece)),
            false => stream.write_all(bytes),
        };
        match self.random.index(100) {
            0..5 => return None,
            5..8 => {
                self.held.push_back(stream);
                self.held.truncate(HELD_CONNECTIONS);
                if self.random.percent(50) {
                    self.held.pop_front();
                }
                return None;
            }
            // It may have closed already.
            _ => drop(stream.shutdown(Shutdown::Write)),
        }
        drop(sent);
        Some(read_to_end(&mut stream))
    }
}

/// Reads to the end. The service must close the connection, because the client has closed its
/// sending half.
fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), [0; 16 * 1024]);
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return all,
            Ok(read) => all.extend_from_slice(&piece[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                return all;
            }
            Err(error) => panic!("the connection stays open: {error}"),
        }
        assert!(Instant::now() < until, "it goes on answering");
    }
}

/// Of the first answer.
fn first_status(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer.get(..12).unwrap_or_default());
    text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..)?.parse().ok()).unwrap_or(0)
}

/// Frames behind the head of an upgrade, as many as are whole.
fn count_messages(answer: &[u8]) -> usize {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return 0 };
    let (mut rest, mut count) = (&answer[head + 4..], 0);
    while let [_, length, after @ ..] = rest {
        let (length, after) = match (length, after) {
            (0..126, after) => (usize::from(*length), after),
            (126, [a, b, after @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), after),
            _ => return count,
        };
        let Some(after) = after.get(length..) else { return count };
        (rest, count) = (after, count + 1);
    }
    count
}
