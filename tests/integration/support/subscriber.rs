//! A WebSocket subscriber that applies messages as docs/protocol.md says, and checks of its rows.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use swelter::internals::model::EventTime;
use tokio_tungstenite::tungstenite::error::Error as WebSocketError;
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use super::entries::{city_name, city_number};
use super::oracle::Oracle;
use super::rows::{current_json, normalize_numbers, row_json};

/// Rows by city, and by time where the subscription is of windows; all by their text.
type RowMap = BTreeMap<(String, String), Value>;

/// The rows of a client: the current row of every city, and the windows of some cities.
#[derive(Clone)]
pub struct ReceivedRows {
    watched: Vec<u32>,
    /// By subscription, with the token that continues it.
    subscriptions: BTreeMap<&'static str, (RowMap, Option<String>)>,
    pub resets: usize,
    pub resumed: usize,
}

const ALL_SUBSCRIPTION: &str = "all";
const WINDOW_SUBSCRIPTION: &str = "some";

impl ReceivedRows {
    pub fn new(watched: &[u32]) -> ReceivedRows {
        let subscriptions = [ALL_SUBSCRIPTION, WINDOW_SUBSCRIPTION].map(|id| (id, Default::default())).into();
        ReceivedRows { watched: watched.to_vec(), subscriptions, resets: 0, resumed: 0 }
    }

    fn subscribe_messages(&self) -> Vec<Value> {
        let message = |(id, (_, token)): (&&str, &(RowMap, Option<String>))| {
            let mut message = match *id {
                ALL_SUBSCRIPTION => json!({"type": "subscribe", "id": id, "cities": "all"}),
                _ => {
                    let cities: Vec<_> = self.watched.iter().map(|city| city_name(*city)).collect();
                    json!({"type": "subscribe", "id": id, "cities": cities, "rows": "window"})
                }
            };
            if let Some(token) = token {
                message["resume"] = token.as_str().into();
            }
            message
        };
        self.subscriptions.iter().map(message).collect()
    }

    /// Whether all snapshots are complete: before that there is no token.
    fn is_complete(&self) -> bool {
        self.subscriptions.values().all(|(_, token)| token.is_some())
    }

    fn apply_message(&mut self, message: &Value) {
        let id = message["id"].as_str().unwrap_or_default();
        let kind = message["type"].as_str().unwrap();
        if ["hello", "heartbeat", "pong"].contains(&kind) {
            return;
        }
        let Some((rows, token)) = self.subscriptions.get_mut(id) else { panic!("{message}") };
        let key = |row: &Value| {
            let of_window = if id == WINDOW_SUBSCRIPTION { row["reading_at"].as_str().unwrap() } else { "" };
            (row["city"].as_str().unwrap().to_string(), of_window.to_string())
        };
        match kind {
            "reset" => {
                rows.clear();
                *token = None;
                self.resets += 1;
            }
            "snapshot" | "changes" => {
                let set = if kind == "snapshot" { &message["rows"] } else { &message["upserts"] };
                let mut keys = BTreeSet::new();
                for row in set.as_array().unwrap() {
                    assert!(keys.insert(key(row)), "a key twice: {message}");
                    rows.insert(key(row), normalize_numbers(row));
                }
                for removed in message["removals"].as_array().into_iter().flatten() {
                    assert!(keys.insert(key(removed)), "a key twice: {message}");
                    rows.remove(&key(removed));
                }
                *token = message["token"].as_str().map(str::to_string).or(token.take());
            }
            _ => panic!("{message}"),
        }
    }

    /// Checks the current rows against the recomputation; returns their number.
    pub fn check_current(&self, oracle: &Oracle) -> usize {
        let current: Vec<&Value> = self.subscriptions[ALL_SUBSCRIPTION].0.values().collect();
        let expected: BTreeMap<String, Value> = oracle
            .current()
            .iter()
            .map(|(city, row)| (city_name(*city), current_json(&city_name(*city), row)))
            .collect();
        assert_eq!(current, expected.values().collect::<Vec<_>>(), "what a subscriber has");
        current.len()
    }

    /// Checks that all servable rows equal the recomputation; returns the number of rows.
    pub fn check_windows(&self, oracle: &Oracle) -> usize {
        let windows = &self.subscriptions[WINDOW_SUBSCRIPTION].0;
        for &city in &self.watched {
            for (at, row) in oracle.servable_rows(city) {
                let expected = row_json(&city_name(city), at, &row);
                let key = (city_name(city), expected["reading_at"].as_str().unwrap().to_string());
                assert_eq!(windows.get(&key), Some(&expected), "what a subscriber of windows has");
            }
        }
        // Final rows may stay, but never one that was withdrawn.
        for ((city, at), row) in windows {
            let at = at.parse::<EventTime>().unwrap().millis();
            let expected = oracle.row(city_number(city), at).map(|row| row_json(city, at, &row));
            assert_eq!(Some(row), expected.as_ref(), "a row that is gone");
        }
        windows.len()
    }
}

/// A client, connected or not.
pub struct Subscriber {
    socket: Option<WebSocket<TcpStream>>,
    pub kept: ReceivedRows,
    /// Whether a message has been received since it subscribed.
    heard: bool,
}

impl Subscriber {
    pub fn new(watched: &[u32]) -> Subscriber {
        Subscriber { socket: None, kept: ReceivedRows::new(watched), heard: false }
    }

    /// Subscribes at an address and resumes by token. Each read then fails after `patience`.
    pub fn connect(&mut self, address: &str, patience: Duration) -> Result<(), WebSocketError> {
        self.socket = None;
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let url = format!("ws://{address}/v1/subscribe");
        let connected = client(url, stream).map_err(|error| Error::other(error.to_string()));
        let (mut socket, _) = connected?;
        for message in self.kept.subscribe_messages() {
            socket.send(Message::text(message.to_string()))?;
        }
        self.heard = false;
        self.socket = Some(socket);
        Ok(())
    }

    pub fn disconnect(&mut self) {
        self.socket = None;
    }

    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Reads the next message; `None` if there was none in time.
    fn read_message(&mut self) -> Result<Option<Value>, WebSocketError> {
        let socket = self.socket.as_mut().ok_or(WebSocketError::AlreadyClosed)?;
        let text = match socket.read() {
            Ok(Message::Text(text)) => text,
            Ok(_) => return Ok(None),
            Err(WebSocketError::Io(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let message: Value = serde_json::from_str(&text).unwrap();
        if message["code"] == "busy" {
            return Err(Error::new(ErrorKind::ResourceBusy, message.to_string()).into());
        }
        if message["type"] == "changes" && !self.heard {
            self.kept.resumed += 1;
        }
        self.heard |= ["changes", "snapshot", "reset"].contains(&message["type"].as_str().unwrap());
        self.kept.apply_message(&message);
        Ok(Some(message))
    }

    /// Reads messages for so long.
    pub fn read_for(&mut self, time: Duration) -> Result<(), WebSocketError> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.read_message()?;
        }
        Ok(())
    }

    /// Sends a ping and reads messages up to its response; returns whether everything up to `as_of`
    /// has been received.
    pub fn is_caught_up(&mut self, as_of: u64, within: Duration) -> Result<bool, WebSocketError> {
        let socket = self.socket.as_mut().ok_or(WebSocketError::AlreadyClosed)?;
        socket.send(Message::text(r#"{"type":"ping"}"#))?;
        let until = Instant::now() + within;
        while Instant::now() < until {
            if let Some(message) = self.read_message()?
                && message["type"] == "pong"
            {
                return Ok(message["as_of"].as_u64().unwrap() >= as_of && self.kept.is_complete());
            }
        }
        Ok(false)
    }
}
