//! A well-behaved client beside hostile ones: it posts readings, and must receive each of their
//! rows.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use crate::support::{WAIT_TIMEOUT, http};

/// Its cities are its own.
const CITIES: [&str; 3] = ["healthy-1", "healthy-2", "healthy-3"];
/// Between its readings.
const POST_INTERVAL: Duration = Duration::from_millis(50);

pub struct HealthyClient {
    token: String,
    stop: Arc<AtomicBool>,
    poster: JoinHandle<usize>,
    subscriber: JoinHandle<BTreeSet<String>>,
}

impl HealthyClient {
    pub fn start(at: SocketAddr) -> HealthyClient {
        let mut socket = client(format!("ws://{at}/v1/subscribe"), http::connect(at).unwrap()).unwrap().0;
        let token = first_token(&mut socket);
        let window = json!({"type": "subscribe", "id": "w", "cities": CITIES, "rows": "window"});
        socket.send(Message::text(window.to_string())).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stops, posted) = (stop.clone(), Arc::new(AtomicBool::new(false)));
        let done = posted.clone();
        let poster = thread::spawn(move || {
            let count = post_until(at, &stops);
            done.store(true, Ordering::Release);
            count
        });
        let subscriber = thread::spawn(move || received_row_keys(&mut socket, &posted));
        HealthyClient { token, stop, poster, subscriber }
    }

    /// One of a subscription to all cities.
    pub fn resume_token(&self) -> String {
        self.token.clone()
    }

    /// Returns the number of rows that it has received: one for each reading.
    pub fn finish(self) -> usize {
        self.stop.store(true, Ordering::Release);
        let (posted, rows) = (self.poster.join().unwrap(), self.subscriber.join().unwrap());
        assert_eq!(
            rows.len(),
            posted,
            "rows that a healthy subscriber was sent, and readings that were posted"
        );
        posted
    }
}

fn next_message(socket: &mut WebSocket<TcpStream>) -> Result<Option<Value>, Error> {
    Ok(match socket.read()? {
        Message::Text(text) => Some(serde_json::from_str(&text).unwrap()),
        Message::Close(frame) => panic!("the healthy subscriber is closed: {frame:?}"),
        _ => None,
    })
}

fn first_token(socket: &mut WebSocket<TcpStream>) -> String {
    let all = json!({"type": "subscribe", "id": "a", "cities": "all"});
    socket.send(Message::text(all.to_string())).unwrap();
    let token = loop {
        if let Some(message) = next_message(socket).unwrap()
            && let Some(token) = message["token"].as_str()
        {
            break token.to_string();
        }
    };
    socket.send(Message::text(json!({"type": "unsubscribe", "id": "a"}).to_string())).unwrap();
    token
}

/// The time of the n-th reading.
fn reading_at(n: usize) -> String {
    let start: jiff::Timestamp = "2025-11-24T00:00:00Z".parse().unwrap();
    (start + jiff::SignedDuration::from_secs(n as i64)).to_string()
}

/// Posts a reading now and then; how many were accepted.
fn post_until(at: SocketAddr, stop: &AtomicBool) -> usize {
    let mut posted = 0;
    while !stop.load(Ordering::Acquire) {
        let reading = json!({
            "city": CITIES[posted % CITIES.len()], "reading_at": reading_at(posted), "temperature": 90, "humidity": 50
        });
        let answer = http::post(at, "application/json", &reading.to_string()).unwrap();
        match answer.status {
            200 => posted += 1,
            // The queue is full or all connections are in use: try again.
            429 | 503 => {}
            status => panic!("a reading is answered {status}"),
        }
        thread::sleep(POST_INTERVAL);
    }
    posted
}

/// The keys of all received rows, until the row of the last reading.
fn received_row_keys(socket: &mut WebSocket<TcpStream>, posted: &AtomicBool) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut ended: Option<(u64, Instant)> = None;
    socket.get_mut().set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while ended.is_none_or(|(_, deadline)| Instant::now() < deadline) {
        if posted.load(Ordering::Acquire) && ended.is_none() {
            // What was posted is applied within a moment of now.
            let as_of = jiff::Timestamp::now().as_millisecond() as u64 + 1_000;
            ended = Some((as_of, Instant::now() + WAIT_TIMEOUT));
        }
        let message = match next_message(socket) {
            Ok(Some(message)) => message,
            Ok(None) => continue,
            Err(Error::Io(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                continue;
            }
            Err(error) => panic!("the healthy subscriber is cut off: {error}"),
        };
        assert!(message["type"] != "reset" && message["type"] != "error", "{message}");
        for row in message["upserts"].as_array().into_iter().chain(message["rows"].as_array()).flatten() {
            let key = format!("{} {}", row["city"], row["reading_at"]);
            assert!(message["type"] == "snapshot" || keys.insert(key.clone()), "{key} comes twice");
            keys.insert(key);
        }
        if ended.is_some_and(|(ended, _)| message["as_of"].as_u64() > Some(ended)) {
            return keys;
        }
    }
    panic!("the healthy subscriber does not hear of the end");
}
