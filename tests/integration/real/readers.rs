//! Readers that take much and slowly, beside one that means well: it misses nothing and waits for nobody, and memory stays small.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use super::hostile::{peak, resident};
use super::service::Service;
use super::{alone, http, say};
use crate::process::wait_for;

const CITIES: usize = 20;
/// A reading a second.
const READINGS: usize = 2_000;
const WINDOWS: usize = 80;
const HISTORIES: usize = 20;
const LISTS: usize = 10;
const NAMES: usize = 10;
/// What the hostile readers may make the service hold: the rows of the windows alone would be 77 MB, the names 95 MB.
const MEMORY_BYTES: u64 = 110 << 20;
/// From a post to the message at the subscriber, whatever else the machine does.
const LATEST: Duration = Duration::from_secs(10);
const POSTS: usize = 20;
/// What those read that read fast, bytes a second: the test itself must leave the service some time.
const FAST: usize = 500_000;

#[test]
fn readers_that_take_much_and_slowly_cost_others_nothing() {
    let _alone = alone();
    let mut service = Service::run("");
    service.wait_until_ready();
    fill(&service);
    let mut healthy = subscribed(service.address, &json!(["healthy"]), "latest");
    let before = resident(&service);
    let crowd = Crowd::start(service.address);
    wait_for("the crowd reads", || (crowd.bytes.load(Ordering::Relaxed) > 4 << 20).then_some(()));
    let (mut delays, mut seen) = (Vec::new(), 0);
    for number in 0..POSTS {
        let began = Instant::now();
        let at = format!("2025-11-25T00:{:02}:{:02}Z", number / 60, number % 60);
        service.post(&json!({"city": "healthy", "reading_at": at, "temperature": 90, "humidity": 50}));
        while next_row(&mut healthy).is_none_or(|row| row["reading_at"].as_str() != Some(&at)) {
            assert!(began.elapsed() < LATEST, "{at} does not come");
        }
        seen += 1;
        delays.push(began.elapsed());
        thread::sleep(Duration::from_millis(20));
    }
    let most = peak(&service);
    delays.sort();
    let (median, worst) = (delays[POSTS / 2], delays[POSTS - 1]);
    let read = crowd.stop() >> 20;
    say(&format!(
        "hostile readers: {read} MB read; a healthy one waits {median:?}, {worst:?} at most; {} MB resident before, {} MB at most",
        before >> 20,
        most >> 20
    ));
    assert_eq!(seen, POSTS);
    assert!(worst < LATEST, "{worst:?}");
    assert!(most < before + MEMORY_BYTES, "{before} bytes before, {most} at most");
    assert_eq!(service.terminate().code(), Some(0));
    assert!(!service.log().contains("panic"));
}

fn city(number: usize) -> String {
    format!("city {number}")
}

fn fill(service: &Service) {
    for number in 0..CITIES {
        let reading = |second: usize| {
            let at = format!("2025-11-24T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60);
            let temperature = 60 + (second * 7 + number) % 50;
            json!({"city": city(number), "reading_at": at, "temperature": temperature, "humidity": 50})
        };
        let positions = service.post(&(0..READINGS).map(reading).collect());
        service.wait_until_applied(&positions);
    }
    let first =
        json!({"city": "healthy", "reading_at": "2025-11-24T23:00:00Z", "temperature": 90, "humidity": 50});
    service.wait_until_applied(&service.post(&first));
}

fn subscribed(at: SocketAddr, cities: &Value, rows: &str) -> WebSocket<TcpStream> {
    let stream = http::connect(at).unwrap();
    let (mut socket, _) = client(format!("ws://{at}/v1/subscribe"), stream).unwrap();
    let subscribe = json!({"type": "subscribe", "id": "a", "cities": cities, "rows": rows});
    socket.send(Message::text(subscribe.to_string())).unwrap();
    socket
}

/// The row of the next `changes` message, if the next message is one.
fn next_row(socket: &mut WebSocket<TcpStream>) -> Option<Value> {
    let message = socket.read().unwrap();
    let message: Value = serde_json::from_str(message.to_text().ok()?).ok()?;
    (message["type"] == "changes").then(|| message["upserts"][0].clone())
}

/// Clients that ask for much, and read it slowly or fast.
struct Crowd {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn start(at: SocketAddr) -> Crowd {
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let cities: Vec<String> = (0..CITIES).map(city).collect();
        let window = json!({"type": "subscribe", "id": "w", "cities": cities, "rows": "window"}).to_string();
        let mut begins: Vec<(Vec<u8>, usize)> = Vec::new();
        for number in 0..WINDOWS {
            // Some read fast, and come again.
            begins.push((socket(std::slice::from_ref(&window)), if number % 8 == 0 { FAST } else { 60_000 }));
        }
        for number in 0..HISTORIES {
            begins.push((get(&format!("/v1/cities/city%20{}/history", number % CITIES)), FAST));
        }
        begins.extend((0..LISTS).map(|_| (get("/v1/cities"), 1_000)));
        for client in 0..NAMES {
            let names = |id: usize| -> String {
                let names: Vec<String> = (0..5_000).map(|n| format!("{client} {id} {n}")).collect();
                json!({"type": "subscribe", "id": id.to_string(), "cities": names}).to_string()
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
    let mut head = String::new();
    let _ = write!(
        head,
        "GET /v1/subscribe HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let mut bytes = head.into_bytes();
    for message in messages {
        bytes.extend([0x81, 0x80 | 127]);
        bytes.extend((message.len() as u64).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(message.bytes());
    }
    bytes
}

/// Connects, says its part and reads so many bytes a second; comes again where it is closed.
fn read_again(at: SocketAddr, begin: &[u8], rate: usize, stop: &AtomicBool, bytes: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(at) else { continue };
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let _ = stream.write_all(begin);
        let (began, mut read, mut piece) = (Instant::now(), 0, vec![0; 16 * 1024]);
        while !stop.load(Ordering::Relaxed) && began.elapsed() < Duration::from_secs(4) {
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
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    }
}
