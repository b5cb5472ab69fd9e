//! How to serve, as the configuration says: address, TLS, tokens and limits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServePlan {
    /// The address to listen on; with port 0 the system chooses a free port.
    pub listen: SocketAddr,
    pub tls: Option<TlsPlan>,
    /// If empty, every client that reaches the port may read and ingest.
    pub tokens: Vec<Token>,
    /// Origins of web pages, as in `https://example.org`, that may open WebSockets and read
    /// responses, besides the server's own.
    pub origins: Vec<String>,
    /// Whether to serve a test-only WebSocket at `/echo`, with the socket settings of the others.
    pub echo: bool,
    pub limits: ServeLimits,
}

/// Files of the server's certificate and key.
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

/// What clients may use of the server. The field names are the keys of `serve.limits`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeLimits {
    /// Open connections, WebSockets included.
    pub connections: usize,
    /// Time until all headers of a request have arrived.
    pub header_time: Duration,
    /// Time until the body of a request has arrived.
    pub body_time: Duration,
    /// Time that a kept-alive connection may stay open without a request.
    pub idle_time: Duration,
    /// Bytes of one `POST` body.
    pub body_bytes: usize,
    /// Bytes of all bodies that are being read or wait for the log.
    pub bodies_bytes: usize,
    /// How much of a partition's remaining room for cities one client may use in a day, in percent.
    pub new_cities_percent: u32,
    /// Rows of one history response.
    pub history_rows: u32,
    /// Bytes of one WebSocket message from a client.
    pub message_bytes: usize,
    pub messages_per_second: u32,
    /// Subscriptions of one session.
    pub subscriptions: usize,
    /// Cities that one `latest` subscription may list.
    pub cities: usize,
    /// Cities that one `window` subscription may list.
    pub window_cities: usize,
    /// Time between two heartbeats of a session.
    pub heartbeat: Duration,
    /// Time until a client has read a message.
    pub send_time: Duration,
    /// Bytes of encoded messages that wait for one client; beyond that they are merged.
    pub backlog_bytes: usize,
    /// How far back resumed subscriptions can reach.
    pub ring_time: Duration,
    /// Bytes of the changes that resumed subscriptions can reach back to.
    pub ring_bytes: usize,
}
