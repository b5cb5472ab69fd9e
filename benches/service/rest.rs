//! Current rows over REST, while readings flow.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::BenchOptions;
use crate::http::{get, parse_response};
use crate::latency::generator_config;
use crate::measure::{CoreUsage, Latencies};
use crate::server::Server;

const CONNECTIONS: usize = 1_500;
const WARM_UP: Duration = Duration::from_secs(3);

/// A kept connection, one request after the other.
struct RestClient {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    /// When the requests that are under way or wait were due, the oldest first.
    due: VecDeque<Instant>,
}

struct RestClients {
    poll: Poll,
    events: Events,
    clients: Vec<RestClient>,
    latencies: Latencies,
}

impl RestClient {
    fn send_request(&mut self) {
        // Short enough for the room that a socket always has.
        self.stream.write_all(&self.request).unwrap();
    }
}

impl RestClients {
    fn connect(address: SocketAddr, cities: &[String]) -> RestClients {
        let poll = Poll::new().unwrap();
        let client = |number: usize| {
            let stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(number), Interest::READABLE).unwrap();
            let city = &cities[number % cities.len()];
            let request = format!("GET /v1/cities/{city} HTTP/1.1\r\nhost: {address}\r\n\r\n").into_bytes();
            RestClient { stream, request, answer: Vec::new(), due: VecDeque::new() }
        };
        let clients = (0..CONNECTIONS).map(client).collect();
        RestClients { poll, events: Events::with_capacity(1024), clients, latencies: Latencies::new() }
    }

    /// Asks on a connection, or has it wait for its turn there.
    fn send_or_queue_request(&mut self, client: usize, due: Instant) {
        let client = &mut self.clients[client];
        client.due.push_back(due);
        if client.due.len() == 1 {
            client.send_request();
        }
    }

    /// Takes the answers that come within a time; `again`: who was answered asks again at once.
    fn poll_responses(&mut self, wait: Duration, again: bool) {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return,
            polled => polled.unwrap(),
        }
        let mut space = [0; 4096];
        for event in &self.events {
            let Token(number) = event.token();
            let client = &mut self.clients[number];
            let read = match client.stream.read(&mut space) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                read => read.unwrap(),
            };
            assert!(read > 0, "the server has closed a connection");
            client.answer.extend_from_slice(&space[..read]);
            let Some((status, _)) = parse_response(&client.answer) else { continue };
            assert_eq!(status, 200);
            client.answer.clear();
            let now = Instant::now();
            let due = client.due.pop_front().unwrap();
            self.latencies.record((now - due).as_micros() as i64);
            if again {
                client.due.push_back(now);
            }
            if !client.due.is_empty() {
                client.send_request();
            }
        }
    }

    /// Requests a second come whatever becomes of those before; each connection has its turn.
    fn run_open_loop(&mut self, rate: f64, time: Duration) {
        let start = Instant::now();
        let mut asked = 0u64;
        while start.elapsed() < time {
            let now = Instant::now();
            loop {
                let due = start + Duration::from_secs_f64(asked as f64 / rate);
                if due > now {
                    break;
                }
                self.send_or_queue_request(asked as usize % CONNECTIONS, due);
                asked += 1;
            }
            self.poll_responses(Duration::from_millis(1), false);
        }
    }

    /// Waits for all answers.
    fn wait_for_responses(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.clients.iter().any(|client| !client.due.is_empty()) {
            self.poll_responses(Duration::from_millis(10), false);
            assert!(Instant::now() < deadline, "answers do not come");
        }
    }
}

pub fn bench_cities(effort: &BenchOptions) {
    let time = effort.time.min(Duration::from_secs(10));
    println!(
        "GET /v1/cities/CITY on {CONNECTIONS} kept connections while 15,000 readings/s flow, {} s each:",
        time.as_secs()
    );
    let server =
        Server::start_ready(&format!("[ingest]\nenabled = false\n{}", generator_config("1s", "1h", 0.0)));
    let cities = city_keys(server.address);
    let mut clients = RestClients::connect(server.address, &cities);
    for rate in [2_000, 5_000, 10_000, 15_000, 20_000, 30_000] {
        clients.run_open_loop(f64::from(rate), WARM_UP);
        clients.latencies.clear();
        let cores = CoreUsage::start_measuring(&server);
        clients.run_open_loop(f64::from(rate), time);
        println!("  {rate:6} requests/s  {}  {}", clients.latencies.to_text(), cores.to_text(&server));
        clients.wait_for_responses();
        if clients.latencies.quantile_ms(0.99) > 200.0 {
            break;
        }
    }
    for client in 0..CONNECTIONS {
        clients.send_or_queue_request(client, Instant::now());
    }
    clients.latencies.clear();
    let (cores, start) = (CoreUsage::start_measuring(&server), Instant::now());
    while start.elapsed() < time {
        clients.poll_responses(Duration::from_millis(10), true);
    }
    println!(
        "  as fast as answered: {:.0} requests/s  {}  {}",
        clients.latencies.len() as f64 / start.elapsed().as_secs_f64(),
        clients.latencies.to_text(),
        cores.to_text(&server)
    );
}

fn city_keys(address: SocketAddr) -> Vec<String> {
    let (_, text) = get(address, "/v1/cities").expect("cities");
    let pieces = text.split("\"city\":\"").skip(1);
    pieces.filter_map(|piece| Some(piece.split_once('"')?.0.to_owned())).collect()
}
