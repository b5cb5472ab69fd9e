//! Slow readers of large responses beside a well-behaved one, which misses nothing and waits for no
//! other; memory stays small.

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use super::hostile::{peak_resident_bytes, resident_bytes};
use super::paced_readers::{PacedReader, PacedReaders, get_request, subscribe_request};
use crate::support::prepared::{lock_machine, print_line};
use crate::support::{ServiceBuilder, ServiceProcess, http, wait_for};

const CITIES: usize = 20;
/// A reading a second.
const READINGS_PER_CITY: usize = 2_000;
const WINDOW_READERS: usize = 80;
const HISTORY_READERS: usize = 20;
const LIST_READERS: usize = 10;
const UNKNOWN_NAME_READERS: usize = 10;
/// The memory that hostile readers may make the service use: the rows of the windows alone would be
/// 77 MB, the names 95 MB.
const MAX_MEMORY_BYTES: u64 = 110 << 20;
/// From a post to the message at the subscriber: a guard against a reader that waits for another.
const MAX_LATENCY: Duration = Duration::from_secs(10);
const POST_COUNT: usize = 20;
/// The rate of fast readers, bytes a second: the test itself must leave the service some CPU time.
const FAST_BYTES_PER_S: usize = 500_000;
const SLOW_BYTES_PER_S: usize = 60_000;
/// How long a reader stays.
const SESSION_LENGTH: Duration = Duration::from_secs(4);

#[test]
fn large_slow_readers_do_not_delay_others() {
    let _alone = lock_machine();
    let mut service = ServiceBuilder::new("").start().wait_until_ready();
    let at = service.address.parse().unwrap();
    post_history(&service);
    let mut healthy = open_subscription(at, &json!(["healthy"]), "latest");
    let before = resident_bytes(&service);
    let crowd = PacedReaders::start(at, hostile_readers(), SESSION_LENGTH);
    wait_for("the crowd reads", || (crowd.bytes_read() > 4 << 20).then_some(()));
    let (mut delays, mut seen) = (Vec::new(), 0);
    for number in 0..POST_COUNT {
        let began = Instant::now();
        let at = format!("2025-11-25T00:{:02}:{:02}Z", number / 60, number % 60);
        service.post(&json!({"city": "healthy", "reading_at": at, "temperature": 90, "humidity": 50}));
        while next_row(&mut healthy).is_none_or(|row| row["reading_at"].as_str() != Some(&at)) {
            assert!(began.elapsed() < MAX_LATENCY, "{at} does not come");
        }
        seen += 1;
        delays.push(began.elapsed());
        // Posts are spread over the time in which the others read.
        thread::sleep(Duration::from_millis(20));
    }
    let most = peak_resident_bytes(&service);
    delays.sort();
    let (median, worst) = (delays[POST_COUNT / 2], delays[POST_COUNT - 1]);
    let read = crowd.bytes_read() >> 20;
    crowd.stop();
    print_line(&format!(
        "hostile readers: {read} MB read; a healthy one waits {median:?}, {worst:?} at most; {} MB resident before, {} MB at most",
        before >> 20,
        most >> 20
    ));
    assert_eq!(seen, POST_COUNT);
    assert!(worst < MAX_LATENCY, "{worst:?}");
    assert!(most < before + MAX_MEMORY_BYTES, "{before} bytes before, {most} at most");
    service.terminate_in_place();
    assert!(!service.log().contains("panic"));
}

fn city_key(number: usize) -> String {
    format!("city {number}")
}

fn post_history(service: &ServiceProcess) {
    for number in 0..CITIES {
        let reading = |second: usize| {
            let at = format!("2025-11-24T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60);
            let temperature = 60 + (second * 7 + number) % 50;
            json!({"city": city_key(number), "reading_at": at, "temperature": temperature, "humidity": 50})
        };
        let positions = service.post(&(0..READINGS_PER_CITY).map(reading).collect());
        service.wait_until_applied(&positions);
    }
    let first =
        json!({"city": "healthy", "reading_at": "2025-11-24T23:00:00Z", "temperature": 90, "humidity": 50});
    service.wait_until_applied(&service.post(&first));
}

fn open_subscription(at: SocketAddr, cities: &Value, rows: &str) -> WebSocket<TcpStream> {
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

/// Clients with large requests that read slowly or fast.
fn hostile_readers() -> Vec<PacedReader> {
    let cities: Vec<String> = (0..CITIES).map(city_key).collect();
    let window = json!({"type": "subscribe", "id": "w", "cities": cities, "rows": "window"}).to_string();
    let window = subscribe_request(&[window]);
    // Some read fast, and come again.
    let windows = (0..WINDOW_READERS)
        .map(|number| (window.clone(), if number % 8 == 0 { FAST_BYTES_PER_S } else { SLOW_BYTES_PER_S }));
    let history = |number| get_request(&format!("/v1/cities/city%20{}/history", number % CITIES));
    let histories = (0..HISTORY_READERS).map(|number| (history(number), FAST_BYTES_PER_S));
    let lists = (0..LIST_READERS).map(|_| (get_request("/v1/cities"), 1_000));
    let names = (0..UNKNOWN_NAME_READERS).map(|client| {
        let names = |id: usize| -> String {
            let names: Vec<String> = (0..5_000).map(|n| format!("{client} {id} {n}")).collect();
            json!({"type": "subscribe", "id": id.to_string(), "cities": names}).to_string()
        };
        (subscribe_request(&(0..16).map(names).collect::<Vec<_>>()), SLOW_BYTES_PER_S)
    });
    let all = windows.chain(histories).chain(lists).chain(names);
    all.map(|(request, bytes_per_second)| PacedReader { request, bytes_per_second }).collect()
}
