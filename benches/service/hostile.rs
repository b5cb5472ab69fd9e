//! What a subscriber of all cities waits for while readers take as much as they can, and what they make the service hold.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use swelter::config::Config;
use swelter::config::layers::Layers;
use swelter::serve::memory::most_memory;

use crate::Effort;
use crate::fleet::Fleet;
use crate::latency::{All, follow_all, run};
use crate::measure::Cores;
use crate::server::Server;

const CITIES: usize = 2_000;
/// A day, a reading a minute.
const HISTORY: u64 = CITIES as u64 * 1440;
const WARM_UP: Duration = Duration::from_secs(5);
/// Hostile readers: windows of 100 cities, pages of 10,000 rows, all cities slowly, and names that no city has.
const WINDOWS: usize = 120;
const HISTORIES: usize = 40;
const LISTS: usize = 30;
const NAMES: usize = 10;

pub fn readers(effort: &Effort) {
    let all = WINDOWS + HISTORIES + LISTS + NAMES;
    println!("a subscriber of {CITIES} cities, 2,000 readings/s, alone and beside {all} hostile readers:");
    let load = format!(
        "[ingest]\nenabled = false\n[[sources]]\ntype = \"generator\"\nname = \"load\"\ncities = {CITIES}\ninterval = \"1s\"\n\
         history = \"1d\"\nhistory_interval = \"1m\"\n"
    );
    let limits = Config::load(&Layers::default()).unwrap().plan.serve.limits;
    for _ in 0..effort.rounds {
        let server = Server::ready(&load);
        server.wait_for_readings(HISTORY);
        let (mut fleet, mut all) = (Fleet::connect(server.address, 1), All::new());
        follow_all(&mut fleet, &mut all);
        let mut measure = |name: &str| {
            run(&mut fleet, &mut all, WARM_UP);
            all.latencies.clear();
            let cores = Cores::since_now(&server);
            run(&mut fleet, &mut all, effort.time);
            println!("  {name:8}  {}  {}", all.latencies.shown(), cores.shown(&server));
            all.latencies.at(0.99)
        };
        let before = server.resident();
        let alone = measure("alone");
        let cities = fleet_cities(&server);
        let crowd = Crowd::start(server.address, &cities);
        let beside = measure("beside");
        let (most, read) = (server.most_resident(), crowd.stop());
        println!(
            "    p99 {:.1} times; {} MB resident before, {} MB at most (budgets: {} MB more); {} MB/s read by the others",
            beside / alone,
            before >> 20,
            most >> 20,
            most_memory(&limits, 1, WINDOWS + HISTORIES + LISTS + NAMES) >> 20,
            (read >> 20) as u64 / effort.time.as_secs().max(1)
        );
    }
}

/// The keys of cities.
fn fleet_cities(server: &Server) -> Vec<String> {
    let (_, text) = crate::http::get(server.address, "/v1/cities?limit=1000").unwrap();
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cities = answer["cities"].as_array().unwrap().iter();
    cities.filter_map(|city| city["city"].as_str().map(str::to_string)).collect()
}

struct Crowd {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn start(at: SocketAddr, cities: &[String]) -> Crowd {
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let subscribe = |id: String, cities: &[String], rows: &str| {
            serde_json::json!({"type": "subscribe", "id": id, "cities": cities, "rows": rows}).to_string()
        };
        let mut begins: Vec<(Vec<u8>, usize)> = Vec::new();
        for number in 0..WINDOWS {
            let window = cities.chunks(100).cycle().nth(number).unwrap_or_default();
            let rate = if number % 4 == 0 { 2_000_000 } else { 60_000 };
            begins.push((socket(&[subscribe("w".into(), window, "window")]), rate));
        }
        for number in 0..HISTORIES {
            let path = format!("/v1/cities/{}/history?limit=10000", cities[number % cities.len()]);
            begins.push((get(&path), 2_000_000));
        }
        begins.extend((0..LISTS).map(|_| (get("/v1/cities"), 80_000)));
        for client in 0..NAMES {
            let names = |id: usize| {
                let names: Vec<String> = (0..10_000).map(|n| format!("{client} {id} {n}")).collect();
                subscribe(id.to_string(), &names, "latest")
            };
            begins.push((socket(&(0..16).map(names).collect::<Vec<_>>()), 60_000));
        }
        let clients = begins.into_iter().map(|(begin, rate)| {
            let (stop, bytes) = (stop.clone(), bytes.clone());
            thread::spawn(move || read_again(at, &begin, rate, &stop, &bytes))
        });
        Crowd { clients: clients.collect(), stop, bytes }
    }

    /// Returns what all have read.
    fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
        self.bytes.load(Ordering::Relaxed)
    }
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").into_bytes()
}

/// A handshake, and messages with masks of zeros.
fn socket(messages: &[String]) -> Vec<u8> {
    let mut bytes =
        b"GET /v1/subscribe HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .to_vec();
    for message in messages {
        bytes.extend([0x81, 0x80 | 127]);
        bytes.extend((message.len() as u64).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(message.bytes());
    }
    bytes
}

/// Connects, says its part and reads so many bytes a second; comes again after a while, or where it is closed.
fn read_again(at: SocketAddr, begin: &[u8], rate: usize, stop: &AtomicBool, bytes: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(at) else { continue };
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        let _ = stream.write_all(begin);
        let (began, mut read, mut piece) = (Instant::now(), 0, vec![0; 64 * 1024]);
        while !stop.load(Ordering::Relaxed) && began.elapsed() < Duration::from_secs(10) {
            if read as f64 > began.elapsed().as_secs_f64() * rate as f64 {
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(more) => {
                    read += more;
                    bytes.fetch_add(more, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
}
