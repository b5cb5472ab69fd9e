//! A client that updates its maps as `docs/protocol.md` says, and compares them with the oracle at
//! every message.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::world::{ModelDataflow, Rng};
use super::*;
use crate::model::{OutputUnits, TemperatureUnit, WindUnit};

pub(super) type Stream = WebSocketStream<TcpStream>;

pub(super) fn key(window: bool, row: &Value) -> String {
    let city = row["city"].as_str().unwrap();
    if window { format!("{city} {}", row["reading_at"].as_str().unwrap()) } else { city.into() }
}

/// The next JSON message; `None` at the end of the connection.
pub(super) async fn next_json(stream: &mut Stream) -> Option<Value> {
    loop {
        let read = tokio::time::timeout(Duration::from_secs(20), stream.next());
        match read.await.expect("a message within 20 s")? {
            Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

pub(super) async fn send_json(stream: &mut Stream, message: &Value) {
    stream.send(Message::text(message.to_string())).await.unwrap();
}

/// A subscription as its client sees it.
pub(super) struct ModelSubscription {
    request: Value,
    window: bool,
    map: BTreeMap<String, Value>,
    token: Option<String>,
    as_of: u64,
    /// From a subscribe or reset to the end of the snapshot.
    awaits_snapshot: bool,
}

pub(super) struct ModelClient {
    pub(super) world: Arc<ModelDataflow>,
    pub(super) rng: Rng,
    address: SocketAddr,
    pub(super) stream: Stream,
    pub(super) subs: BTreeMap<String, ModelSubscription>,
    ended: BTreeSet<String>,
    next_id: u32,
    pub(super) resumed: usize,
    pub(super) resets: Vec<String>,
}

/// A box with some of the cities.
const BOX: [f64; 4] = [60.0, -60.0, -20.0, 60.0];

fn inside(city: &str) -> bool {
    let city = city.parse().ok().and_then(|id| Directory::shipped().city_by_id(id));
    city.is_some_and(|city| {
        (city.longitude >= 60.0 || city.longitude <= -20.0) && city.latitude.abs() <= 60.0
    })
}

impl ModelClient {
    pub(super) async fn new(seed: u64, world: Arc<ModelDataflow>, address: SocketAddr) -> ModelClient {
        let stream = connect(address).await;
        ModelClient {
            world,
            rng: Rng(seed),
            address,
            stream,
            subs: BTreeMap::new(),
            ended: BTreeSet::new(),
            next_id: 0,
            resumed: 0,
            resets: Vec::new(),
        }
    }

    pub(super) async fn subscribe(&mut self) {
        let count = 1 + self.rng.below(4);
        let cities = &self.world.cities;
        let listed: Vec<_> =
            (0..count).map(|_| &*cities[self.rng.below(cities.len() as u64) as usize]).collect();
        let (mut request, window) = match self.rng.below(5) {
            0 => (json!({"cities": "all"}), false),
            1 => (json!({"box": BOX, "rows": "latest"}), false),
            2 => (json!({"cities": listed}), false),
            _ => (json!({"cities": listed, "rows": "window"}), true),
        };
        let units = [None, Some("fahrenheit"), Some("celsius")][self.rng.below(3) as usize];
        let wind_units = [None, Some("km/h")][self.rng.below(2) as usize];
        request["units"] = units.into();
        request["wind_units"] = wind_units.into();
        self.next_id += 1;
        // Equal ids in several sessions share messages.
        let id = self.next_id.to_string();
        let sub = ModelSubscription {
            request,
            window,
            map: BTreeMap::new(),
            token: None,
            as_of: 0,
            awaits_snapshot: true,
        };
        self.subs.insert(id.clone(), sub);
        self.send_subscribe(&id).await;
    }

    async fn send_subscribe(&mut self, id: &str) {
        let sub = self.subs.get_mut(id).unwrap();
        let mut request = sub.request.clone();
        request["type"] = "subscribe".into();
        request["id"] = id.into();
        match &sub.token {
            Some(token) if !sub.awaits_snapshot => {
                request["resume"] = token.as_str().into();
                self.resumed += 1;
            }
            _ => {
                sub.map.clear();
                sub.awaits_snapshot = true;
            }
        }
        send_json(&mut self.stream, &request).await;
    }

    pub(super) async fn unsubscribe(&mut self) {
        let count = self.subs.len() as u64;
        if count == 0 {
            return;
        }
        let id = self.subs.keys().nth(self.rng.below(count) as usize).unwrap().clone();
        self.subs.remove(&id);
        send_json(&mut self.stream, &json!({"type": "unsubscribe", "id": id})).await;
        self.ended.insert(id);
    }

    /// Drops the connection, connects again and resumes.
    pub(super) async fn reconnect(&mut self) {
        self.stream = connect(self.address).await;
        self.ended.clear();
        for id in self.subs.keys().cloned().collect::<Vec<_>>() {
            self.send_subscribe(&id).await;
        }
    }

    /// Reads one message; returns its type and `as_of`.
    pub(super) async fn read(&mut self) -> (String, u64) {
        let Some(message) = next_json(&mut self.stream).await else {
            self.reconnect().await;
            return (String::new(), 0);
        };
        let kind = message["type"].as_str().unwrap().to_string();
        let as_of = message["as_of"].as_u64().unwrap_or(0);
        let id = message["id"].as_str().unwrap_or_default().to_string();
        if matches!(&*kind, "hello" | "heartbeat" | "pong") {
            return (kind, as_of);
        }
        if kind == "unsubscribed" {
            assert!(self.ended.remove(&id), "{message}");
        } else if let Some(sub) = self.subs.get_mut(&id) {
            match &*kind {
                "snapshot" => sub.snapshot(&message, &self.world),
                "changes" => sub.changes(&message, &self.world),
                "reset" => {
                    self.resets.push(message["reason"].as_str().unwrap().into());
                    sub.map.clear();
                    (sub.awaits_snapshot, sub.token) = (true, None);
                }
                _ => {
                    assert_eq!(message["code"], "busy", "{message}");
                    self.subs.remove(&id);
                }
            }
        } else {
            assert!(self.ended.contains(&id), "a message of no subscription: {message}");
        }
        (kind, as_of)
    }

    /// Reads until all subscriptions are complete as of `epoch`, and compares.
    pub(super) async fn catch_up_and_compare(&mut self, epoch: u64) {
        loop {
            send_json(&mut self.stream, &json!({"type": "ping"})).await;
            let as_of = loop {
                let (kind, as_of) = self.read().await;
                match &*kind {
                    "pong" => break as_of,
                    "" => break 0,
                    _ => {}
                }
            };
            if as_of >= epoch && self.subs.values().all(|sub| !sub.awaits_snapshot) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        for sub in self.subs.values() {
            sub.check(&self.world, epoch);
        }
    }
}

impl ModelSubscription {
    fn selects(&self, city: &str) -> bool {
        match &self.request["cities"] {
            Value::Null => inside(city),
            Value::Array(cities) => cities.iter().any(|listed| listed == city),
            _ => true,
        }
    }

    fn check(&self, world: &ModelDataflow, as_of: u64) {
        let expected = world.map(self.window, |city| self.selects(city), self.units(), as_of);
        assert_eq!(self.map, expected, "{} as of {as_of}", self.request);
    }

    /// The requested units, otherwise those of the service.
    fn units(&self) -> OutputUnits {
        let name = |key: &str| self.request[key].as_str();
        OutputUnits {
            temperature: name("units").and_then(TemperatureUnit::from_name).unwrap_or_default(),
            wind: name("wind_units").and_then(WindUnit::from_name).unwrap_or_default(),
        }
    }

    fn check_units(&self, message: &Value) {
        let OutputUnits { temperature, wind } = self.units();
        assert_eq!(
            (&message["units"], &message["wind_units"]),
            (&json!(temperature.name()), &json!(wind.name()))
        );
    }

    fn snapshot(&mut self, message: &Value, world: &ModelDataflow) {
        self.check_units(message);
        assert!(self.awaits_snapshot, "an unexpected snapshot");
        for row in message["rows"].as_array().unwrap() {
            assert!(self.map.insert(key(self.window, row), row.clone()).is_none(), "a key twice");
        }
        self.as_of = message["as_of"].as_u64().unwrap();
        if message["complete"] == true {
            self.awaits_snapshot = false;
            self.token = Some(message["token"].as_str().unwrap().into());
            self.check(world, self.as_of);
        }
    }

    fn changes(&mut self, message: &Value, world: &ModelDataflow) {
        self.check_units(message);
        let as_of = message["as_of"].as_u64().unwrap();
        assert!(!self.awaits_snapshot, "changes before the snapshot");
        assert!(as_of >= self.as_of, "as_of fell from {} to {as_of}", self.as_of);
        let mut keys = BTreeSet::new();
        for row in message["upserts"].as_array().unwrap() {
            let key = key(self.window, row);
            assert!(keys.insert(key.clone()), "a key twice");
            self.map.insert(key, row.clone());
        }
        for row in message["removals"].as_array().unwrap() {
            let key = key(self.window, row);
            assert!(keys.insert(key.clone()), "a key twice");
            assert!(self.map.remove(&key).is_some() || self.window, "a removal of a row that was not sent");
        }
        self.as_of = as_of;
        self.token = Some(message["token"].as_str().unwrap().into());
        self.check(world, as_of);
    }
}
