//! What people and programs see: REST, WebSocket, and the page.
//!
//! Serving never reads the dataflow's state: it keeps a view that it builds from [updates](crate::model::Update), and asks what needs history.

mod api;
mod backends;
pub mod budget;
mod connection;
mod documents;
mod encoding;
pub mod encoding_turns;
pub mod freshness;
mod ingest;
#[cfg(any(test, feature = "internals"))]
pub mod memory;
mod new_cities;
mod percent_encoding;
mod problem;
pub mod publisher;
pub mod read_rate;
mod routes;
mod security;
mod server;
mod target;
mod telemetry;
mod tls;
pub mod ui;
mod units;
mod upgrade;
pub mod view;
pub mod wire;
pub mod ws;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::new_cities::IngestLog;
pub use self::publisher::Publisher;
pub use self::server::{BoundServer, RunningServer, bind_server, max_concurrent_rejections};

use crate::codec::ReadOptions;
use crate::directory::Directory;
use crate::fault::{limit_remedy, remedy_for, start_failure_text};
use crate::model::{Appender, HoldCheck, Millis, OutputUnits, PartitionTable, Queries};

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServePlan {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    pub tls: Option<TlsPlan>,
    /// Without any, everybody who reaches the port may do everything.
    pub tokens: Vec<Token>,
    /// Origins of web pages, as in `https://example.org`, that may open WebSockets and read answers, besides the server's own.
    pub origins: Vec<String>,
    /// A test-only WebSocket at `/echo`, with the socket settings of the others.
    pub echo: bool,
    pub limits: ServeLimits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsPlan {
    /// PEM, the server's certificate first.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// A bearer token and what it allows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub secret: String,
    pub read: bool,
    pub ingest: bool,
}

// The secret is never shown.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("read", &self.read)
            .field("ingest", &self.ingest)
            .finish_non_exhaustive()
    }
}

/// What a client may ask of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeLimits {
    /// Open connections, WebSockets included.
    pub connections: usize,
    /// Until all headers of a request have come.
    pub header_time: Duration,
    /// Until the body has come.
    pub body_time: Duration,
    /// A kept-alive connection without a request.
    pub idle_time: Duration,
    /// Bytes of a `POST` body.
    pub body_bytes: usize,
    /// Bytes of all bodies that are being read or wait for the log.
    pub bodies_bytes: usize,
    /// Of the cities that a partition may still have, the percentage that one client may add in a day.
    pub new_cities_percent: u32,
    /// Rows of a history answer.
    pub history_rows: u32,
    /// WebSocket messages from a client.
    pub message_bytes: usize,
    pub messages_per_second: u32,
    pub subscriptions: usize,
    /// Cities that one subscription may list.
    pub cities: usize,
    /// The same for `window` subscriptions.
    pub window_cities: usize,
    pub heartbeat: Duration,
    /// Until a client has taken a message.
    pub send_time: Duration,
    /// Encoded messages that wait for one client, before they are merged instead.
    pub backlog_bytes: usize,
    /// What resumed subscriptions can reach back to.
    pub ring_time: Duration,
    pub ring_bytes: usize,
}

/// What is served, as far as it does not change while it is.
#[derive(Clone)]
pub struct ServiceInfo {
    /// Differs with every start.
    pub generation: Arc<str>,
    pub formula: &'static str,
    pub window: Millis,
    pub lateness: Millis,
    pub history: Millis,
    /// A current row that is older is stale.
    pub stale_after: Millis,
    /// Of answers and subscriptions that ask for no others.
    pub units: OutputUnits,
    pub workers: usize,
    pub partitions: PartitionTable,
    pub directory: &'static Directory<'static>,
    /// How the readings that are posted are decoded.
    pub read_options: ReadOptions,
    /// Where posted readings go.
    pub ingest_log: Option<IngestLog>,
}

/// The ends of the rest of the program.
#[derive(Clone)]
pub struct Backends {
    pub queries: Arc<dyn Queries>,
    /// Where posted readings go; without one there is no ingest.
    pub appender: Option<Arc<dyn Appender>>,
    /// Says why that takes nothing for now.
    pub hold_check: Option<Arc<dyn HoldCheck>>,
    /// How far after the clock of this host a posted reading may be dated before its answer warns of it. Nothing where the log
    /// refuses it by its own stamps.
    pub warn_ahead: Option<Millis>,
}

/// Why serving cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address} ({error}): {}", listen_remedy(error))]
    Listen { address: SocketAddr, error: std::io::Error },
    #[error("{}: {source}: {}", path.display(), remedy_for(source, path))]
    PemFile { path: PathBuf, source: std::io::Error },
    #[error("{}: {problem}: it must be a readable PEM file", path.display())]
    Pem { path: PathBuf, problem: String },
    #[error("the certificate and its key cannot be used ({0}): check that they belong together")]
    Certificate(String),
    #[error("the publisher: {}", start_failure_text(.0))]
    Thread(std::io::Error),
}

fn listen_remedy(error: &std::io::Error) -> &'static str {
    limit_remedy(error).unwrap_or("take another address or a free port, or stop what listens there")
}
