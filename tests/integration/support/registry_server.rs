//! A small schema registry: the routes, ids, versions and errors that Confluent documents for its
//! own, as far as writing and reading Avro needs them, in memory. It is not that registry, and
//! tests against it show only that we speak the documented protocol.
//!
//! An id belongs to a schema, whatever subjects it is in, from 1; versions count from 1 in each
//! subject. A new version must be able to read what the last one wrote (`BACKWARD`, the default
//! there).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use apache_avro::Schema;
use apache_avro::schema_compatibility::SchemaCompatibility;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use parking_lot::Mutex;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHealth {
    Up,
    /// Answers 500.
    Errors,
    /// Takes connections and ends them without a word.
    Closes,
    /// Takes requests and does not answer.
    Silent,
    /// Answers 200 with something that is no answer.
    Rambles,
    /// Answers 404 with a page, as a server that is no registry.
    NotFound,
}

pub struct RegistryServer {
    port: u16,
    shared: Arc<ServerShared>,
    thread: Option<JoinHandle<()>>,
}

struct ServerShared {
    user: Option<String>,
    stopping: AtomicBool,
    state: Mutex<ServerState>,
}

struct ServerState {
    health: ServerHealth,
    asked: Vec<String>,
    /// By id less 1: the type, the text, the references.
    schemas: Vec<(String, String, Value)>,
    /// The ids of a subject's versions.
    subjects: Vec<(String, Vec<u32>)>,
}

type HttpResponse = (u16, Value);

fn error_response(status: u16, code: u32, message: impl Into<String>) -> HttpResponse {
    (status, json!({"error_code": code, "message": message.into()}))
}

impl RegistryServer {
    /// If there is a user, it accepts no other.
    pub fn start(user: Option<(&str, &str)>) -> RegistryServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let user = user.map(|(name, password)| {
            format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")))
        });
        let state = ServerState {
            health: ServerHealth::Up,
            asked: Vec::new(),
            schemas: Vec::new(),
            subjects: Vec::new(),
        };
        let shared =
            Arc::new(ServerShared { user, stopping: AtomicBool::new(false), state: Mutex::new(state) });
        let serving = shared.clone();
        let thread = thread::spawn(move || {
            thread::scope(|scope| {
                for stream in listener.incoming() {
                    if serving.stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    let serving = &serving;
                    scope.spawn(move || serving.serve(stream));
                }
            });
        });
        RegistryServer { port, shared, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn set_health(&self, health: ServerHealth) {
        self.shared.state.lock().health = health;
    }

    /// The paths that were asked for, in order.
    pub fn requested_paths(&self) -> Vec<String> {
        self.shared.state.lock().asked.clone()
    }

    pub fn add_schema(&self, subject: &str, schema: &str, references: Value) -> u32 {
        self.add_schema_of_kind("AVRO", subject, schema, references)
    }

    /// Adds a version without a check.
    pub fn add_schema_of_kind(&self, kind: &str, subject: &str, schema: &str, references: Value) -> u32 {
        let new = (kind.to_string(), schema.to_string(), references);
        self.shared.state.lock().add_schema(subject, new)
    }
}

impl Drop for RegistryServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the accept loop.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct HttpRequest {
    method: String,
    path: String,
    authorization: Option<String>,
    body: Vec<u8>,
}

impl ServerShared {
    /// One request a connection.
    fn serve(&self, mut stream: TcpStream) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let Some(request) = read_request(&stream) else { return };
        let health = {
            let mut state = self.state.lock();
            state.asked.push(request.path.clone());
            state.health
        };
        let (status, body) = match health {
            ServerHealth::Up => {
                let (status, body) = self.answer(&request);
                (status, body.to_string())
            }
            ServerHealth::Errors => {
                let (status, body) = error_response(500, 50001, "Error in the backend data store");
                (status, body.to_string())
            }
            ServerHealth::Rambles => (200, "<html>Sign in</html>".into()),
            ServerHealth::NotFound => (404, "<html>Not found</html>".into()),
            ServerHealth::Closes => return,
            ServerHealth::Silent => return self.hold_until_health_changes(),
        };
        let length = body.len();
        let _ = write!(
            stream,
            "HTTP/1.1 {status} Status\r\nContent-Type: application/vnd.schemaregistry.v1+json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
    }

    /// Until somebody wants something else of the server.
    fn hold_until_health_changes(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let silent = || self.state.lock().health == ServerHealth::Silent;
        while silent() && !self.stopping.load(Ordering::SeqCst) && Instant::now() < deadline {
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn answer(&self, request: &HttpRequest) -> HttpResponse {
        if self.user.is_some() && self.user != request.authorization {
            return error_response(401, 401, "Unauthorized");
        }
        let path = request.path.split('?').next().unwrap_or_default();
        let parts: Vec<String> = path.split('/').skip(1).map(decode_segment).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let mut state = self.state.lock();
        match (&*request.method, &*parts) {
            ("GET", ["schemas", "ids", id]) => state.schema(id),
            ("GET", ["subjects"]) => (200, state.subjects.iter().map(|(name, _)| name.as_str()).collect()),
            ("GET", ["subjects", subject, "versions"]) => match state.versions(subject) {
                Some(ids) => (200, (1..=ids.len()).collect()),
                None => error_response(404, 40401, format!("Subject '{subject}' not found.")),
            },
            ("GET", ["subjects", subject, "versions", version]) => state.version(subject, version),
            ("POST", ["subjects", subject, "versions"]) => state.register(subject, &request.body),
            _ => error_response(404, 404, "HTTP 404 Not Found"),
        }
    }
}

impl ServerState {
    fn add_schema(&mut self, subject: &str, new: (String, String, Value)) -> u32 {
        let at = self.schemas.iter().position(|schema| *schema == new).unwrap_or_else(|| {
            self.schemas.push(new);
            self.schemas.len() - 1
        });
        let id = u32::try_from(at).unwrap() + 1;
        let known = self.subjects.iter().position(|(name, _)| name == subject).unwrap_or_else(|| {
            self.subjects.push((subject.into(), Vec::new()));
            self.subjects.len() - 1
        });
        let versions = &mut self.subjects[known].1;
        if !versions.contains(&id) {
            versions.push(id);
        }
        id
    }

    fn versions(&self, subject: &str) -> Option<&Vec<u32>> {
        self.subjects.iter().find(|(name, _)| name == subject).map(|(_, ids)| ids)
    }

    /// A schema as every response shows it: default values are left out.
    fn schema_json(&self, id: u32) -> Option<Value> {
        let (kind, schema, references) = self.schemas.get((id as usize).checked_sub(1)?)?;
        let mut shown = json!({"schema": schema});
        if kind != "AVRO" {
            shown["schemaType"] = json!(kind);
        }
        if references.as_array().is_some_and(|list| !list.is_empty()) {
            shown["references"] = references.clone();
        }
        Some(shown)
    }

    fn schema(&self, id: &str) -> HttpResponse {
        match id.parse().ok().and_then(|id| self.schema_json(id)) {
            Some(shown) => (200, shown),
            None => error_response(404, 40403, format!("Schema {id} not found")),
        }
    }

    fn version(&self, subject: &str, version: &str) -> HttpResponse {
        let Some(ids) = self.versions(subject) else {
            return error_response(404, 40401, format!("Subject '{subject}' not found."));
        };
        let number = if version == "latest" { Some(ids.len()) } else { version.parse().ok() };
        let id = number.and_then(|number: usize| ids.get(number.checked_sub(1)?).copied());
        let Some((id, mut shown)) = id.and_then(|id| Some((id, self.schema_json(id)?))) else {
            return error_response(404, 40402, format!("Version {version} not found."));
        };
        shown["subject"] = json!(subject);
        shown["version"] = json!(number);
        shown["id"] = json!(id);
        (200, shown)
    }

    fn register(&mut self, subject: &str, body: &[u8]) -> HttpResponse {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let Some(text) = body["schema"].as_str() else { return error_response(422, 42201, "Empty schema") };
        let schema = match Schema::parse_str(text) {
            Ok(schema) => schema,
            Err(why) => return error_response(422, 42201, format!("Invalid schema {text}: {why}")),
        };
        let new = ("AVRO".to_string(), text.to_string(), json!([]));
        let last =
            self.versions(subject).and_then(|ids| ids.last()).map(|id| &self.schemas[*id as usize - 1]);
        if let Some((_, last, _)) = last.filter(|last| **last != new) {
            let readable = Schema::parse_str(last)
                .is_ok_and(|last| SchemaCompatibility::can_read(&last, &schema).is_ok());
            if !readable {
                let message = format!(
                    "Schema being registered is incompatible with an earlier schema for subject \"{subject}\""
                );
                return error_response(409, 409, message);
            }
        }
        (200, json!({"id": self.add_schema(subject, new)}))
    }
}

fn read_request(stream: &TcpStream) -> Option<HttpRequest> {
    let mut lines = BufReader::new(stream.take(1 << 20));
    let mut line = String::new();
    lines.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let (mut length, mut authorization) = (0, None);
    loop {
        line.clear();
        lines.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match &*name.to_ascii_lowercase() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => authorization = Some(value.to_string()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    lines.read_exact(&mut body).ok()?;
    Some(HttpRequest { method, path, authorization, body })
}

/// A segment of a path without `%XX`.
fn decode_segment(segment: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = segment.as_bytes();
    while let [first, after @ ..] = rest {
        let code =
            after.get(..2).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
