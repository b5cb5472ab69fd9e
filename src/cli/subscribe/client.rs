//! A subscriber that resumes its subscription after a lost connection.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Map, Value};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::rustls;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::header::{AUTHORIZATION, RETRY_AFTER};
use tokio_tungstenite::tungstenite::http::{HeaderValue, Response, StatusCode, Uri};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message as Frame};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config};

use super::message::{
    ChangesMessage, ErrorMessage, HelloMessage, PROTOCOL_VERSION, ServiceMessage, ShownRowKey,
    SnapshotMessage,
};
use super::print::{OutputStyle, PrinterOutput, ServiceClock, escape_text};
use crate::model::random_u64;

/// The maximum size of a message.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// The maximum number of cities without a reading that a notice names.
const MAX_NAMED_CITIES: usize = 10;
/// The name of the only subscription.
const SUBSCRIPTION_ID: &str = "a";

/// Timeouts and delays of connections.
#[derive(Clone, Debug)]
pub struct ReconnectPolicy {
    /// Before the first new attempt; doubled for each further one.
    pub first_delay: Duration,
    pub max_delay: Duration,
    /// A session of at least this length resets the number of attempts.
    pub reset_after: Duration,
    /// Until the service's hello.
    pub hello_timeout: Duration,
}

impl Default for ReconnectPolicy {
    fn default() -> ReconnectPolicy {
        ReconnectPolicy {
            first_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(30),
            reset_after: Duration::from_secs(10),
            hello_timeout: Duration::from_secs(20),
        }
    }
}

/// The address to connect to, and the credentials.
pub struct ConnectTarget {
    pub uri: Uri,
    pub bearer: Option<HeaderValue>,
    pub connector: Option<Connector>,
}

pub struct SubscribeClient {
    pub target: ConnectTarget,
    /// The parameters of the subscription: `cities` or `box`, and `rows`.
    pub subscription_request: Map<String, Value>,
    pub style: OutputStyle,
    pub reconnect_policy: ReconnectPolicy,
    pub out: mpsc::Sender<PrinterOutput>,
    /// The token of the last message that was shown.
    pub token: Option<String>,
    /// Rows have been shown that a new snapshot would invalidate.
    pub has_rows: bool,
    /// The clock of the service, if current rows are shown.
    pub clock: Option<ServiceClock>,
    /// The cities of the snapshot that is being received.
    pub snapshot_cities: HashSet<String>,
}

/// Why a session has ended.
#[derive(Debug)]
enum SessionEnd {
    /// Permanent: do not retry.
    Refused(String),
    /// Transient: retry.
    Lost { why: String, wait: Option<Duration> },
    /// The output is closed.
    OutputClosed,
}

fn connection_lost(why: impl Into<String>) -> SessionEnd {
    SessionEnd::Lost { why: why.into(), wait: None }
}

type ClientSocket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl SubscribeClient {
    /// Shows the subscription until the output is closed.
    ///
    /// # Errors
    ///
    /// If the service refuses the subscription.
    pub async fn run_until_closed(&mut self) -> Result<(), String> {
        let mut attempts = 0;
        loop {
            let began = Instant::now();
            let (why, wait) = match self.run_session().await {
                SessionEnd::Refused(problem) => return Err(problem),
                SessionEnd::OutputClosed => return Ok(()),
                SessionEnd::Lost { why, wait } => (why, wait),
            };
            if began.elapsed() >= self.reconnect_policy.reset_after {
                attempts = 0;
            }
            let pause = self.reconnect_delay(attempts).max(wait.unwrap_or_default());
            attempts += 1;
            let notice = format!("{}: trying again in {:.1} s", escape_text(&why), pause.as_secs_f64());
            if self.out.send(PrinterOutput::Notice(notice)).await.is_err() {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Half of the delay is random, so that the clients of a restarted service do not all reconnect
    /// at once.
    fn reconnect_delay(&self, attempts: u32) -> Duration {
        let full = self
            .reconnect_policy
            .first_delay
            .saturating_mul(1 << attempts.min(16))
            .min(self.reconnect_policy.max_delay);
        let random = random_u64() >> 40;
        full.mul_f64(0.5 + 0.5 * random as f64 / (1u64 << 24) as f64)
    }

    async fn run_session(&mut self) -> SessionEnd {
        match self.follow_subscription().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn follow_subscription(&mut self) -> Result<std::convert::Infallible, SessionEnd> {
        let connecting = timeout(self.reconnect_policy.hello_timeout, self.connect());
        let mut socket = connecting.await.map_err(|_| connection_lost("the service does not answer"))??;
        let text = next_text(&mut socket, self.reconnect_policy.hello_timeout).await?;
        let Some(ServiceMessage::Hello(hello)) = ServiceMessage::parse_message(&text) else {
            return Err(connection_lost(
                "the service did not send a hello first: is this the address of a swelter?",
            ));
        };
        let patience = check_hello(&hello)?;
        let subscribe = self.subscribe_message(&hello)?;
        let has_current_rows = self.subscription_request.get("rows").is_none_or(|rows| rows == "latest");
        self.clock = ServiceClock::new(&hello).filter(|_| has_current_rows);
        let sending = timeout(self.reconnect_policy.hello_timeout, socket.send(Frame::text(subscribe)));
        sending
            .await
            .map_err(|_| connection_lost("the service does not read messages"))?
            .map_err(|error| socket_error(&error))?;
        // Changes before a snapshot or without a token would have no rows to apply to.
        let mut stage =
            if self.token.is_some() { SessionStage::Live } else { SessionStage::AwaitingSnapshot };
        loop {
            let text = next_text(&mut socket, patience).await?;
            let message = ServiceMessage::parse_message(&text)
                .ok_or_else(|| connection_lost("the service sent an invalid message"))?;
            stage = self.handle_message(message, stage).await?;
        }
    }

    async fn connect(&self) -> Result<ClientSocket, SessionEnd> {
        let mut request =
            self.target.uri.clone().into_client_request().map_err(|error| socket_error(&error))?;
        if let Some(bearer) = &self.target.bearer {
            request.headers_mut().insert(AUTHORIZATION, bearer.clone());
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let connector = self.target.connector.clone();
        match connect_async_tls_with_config(request, Some(config), true, connector).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => Err(http_error(&response)),
            Err(error) => Err(socket_error(&error)),
        }
    }

    fn subscribe_message(&self, hello: &HelloMessage) -> Result<String, SessionEnd> {
        let mut message = self.subscription_request.clone();
        message.insert("type".into(), "subscribe".into());
        message.insert("id".into(), SUBSCRIPTION_ID.into());
        if let Some(token) = &self.token {
            message.insert("resume".into(), token.as_str().into());
        }
        let text = Value::Object(message).to_string();
        let limit = hello.limits.as_ref().and_then(|limits| limits.message_bytes);
        match limit {
            Some(limit) if text.len() > limit => Err(SessionEnd::Refused(format!(
                "the service accepts messages of {limit} bytes and these cities need {}: name fewer, or use --all or --box",
                text.len()
            ))),
            _ => Ok(text),
        }
    }

    async fn handle_message(
        &mut self,
        message: ServiceMessage<'_>,
        stage: SessionStage,
    ) -> Result<SessionStage, SessionEnd> {
        match message {
            ServiceMessage::Snapshot(snapshot) if snapshot.id == SUBSCRIPTION_ID => {
                self.handle_snapshot(snapshot, stage).await
            }
            ServiceMessage::Changes(changes)
                if changes.id == SUBSCRIPTION_ID && stage == SessionStage::Live =>
            {
                self.handle_changes(changes).await?;
                Ok(stage)
            }
            ServiceMessage::Changes(changes) if changes.id == SUBSCRIPTION_ID => {
                Err(connection_lost("the service sent changes before a snapshot"))
            }
            ServiceMessage::Reset(reset) if reset.id == SUBSCRIPTION_ID => {
                self.reset_rows(&reset.reason).await?;
                Ok(SessionStage::AwaitingSnapshot)
            }
            ServiceMessage::Error(failure)
                if failure.id.as_deref().is_none_or(|id| id == SUBSCRIPTION_ID) =>
            {
                Err(service_error(&failure))
            }
            _ => Ok(stage),
        }
    }

    async fn handle_snapshot(
        &mut self,
        snapshot: SnapshotMessage<'_>,
        stage: SessionStage,
    ) -> Result<SessionStage, SessionEnd> {
        if stage != SessionStage::InSnapshot {
            self.reset_rows("snapshot").await?;
            self.snapshot_cities.clear();
        }
        for row in &snapshot.rows {
            let key = serde_json::from_str::<ShownRowKey<'_>>(row.get());
            self.snapshot_cities.extend(key.map(|key| key.city.into_owned()));
        }
        let mut lines = String::new();
        let (as_of, style) = (snapshot.as_of, self.style);
        let (units, clock) = (snapshot.row_units(), self.clock.as_ref());
        if !snapshot.rows.iter().all(|row| style.push_upsert(as_of, row, units, clock, &mut lines)) {
            return Err(connection_lost("the service sent an invalid row"));
        }
        self.has_rows |= !lines.is_empty();
        self.send_lines(lines).await?;
        if !snapshot.complete {
            return Ok(SessionStage::InSnapshot);
        }
        self.token = snapshot.token;
        if let Some(end) = self.style.snapshot_end_output(snapshot.as_of) {
            self.send_output(end).await?;
        }
        if let Some(notice) = self.cities_without_rows_notice() {
            self.send_output(PrinterOutput::Notice(notice)).await?;
        }
        Ok(SessionStage::Live)
    }

    /// A notice of the requested cities that have no row yet. Without it, silence would look like a
    /// failed service.
    fn cities_without_rows_notice(&self) -> Option<String> {
        let Some(cities) = self.subscription_request.get("cities").and_then(Value::as_array) else {
            let none = "no city in the box has a reading yet: waiting for the first one";
            return self.snapshot_cities.is_empty().then(|| none.to_owned());
        };
        let cities = cities.iter().filter_map(Value::as_str);
        let missing: Vec<&str> = cities.filter(|city| !self.snapshot_cities.contains(*city)).collect();
        let named = missing
            .iter()
            .take(MAX_NAMED_CITIES)
            .map(|city| escape_text(city))
            .collect::<Vec<_>>()
            .join(", ");
        let more = match missing.len().saturating_sub(MAX_NAMED_CITIES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (!missing.is_empty()).then(|| {
            format!("no reading yet of {named}{more}: waiting for the first one (GET /v1/cities lists the keys of cities)")
        })
    }

    async fn handle_changes(&mut self, changes: ChangesMessage<'_>) -> Result<(), SessionEnd> {
        let mut lines = String::new();
        let (as_of, style) = (changes.as_of, self.style);
        let (units, clock) = (changes.row_units(), self.clock.as_ref());
        let right = changes.upserts.iter().all(|row| style.push_upsert(as_of, row, units, clock, &mut lines))
            && changes.removals.iter().all(|key| style.push_removal(as_of, key, &mut lines));
        if !right {
            return Err(connection_lost("the service sent an invalid row"));
        }
        self.has_rows |= !lines.is_empty();
        self.send_lines(lines).await?;
        self.token = Some(changes.token);
        Ok(())
    }

    async fn reset_rows(&mut self, reason: &str) -> Result<(), SessionEnd> {
        self.token = None;
        if std::mem::take(&mut self.has_rows) {
            self.send_output(self.style.reset_output(reason)).await?;
        }
        Ok(())
    }

    async fn send_lines(&self, lines: String) -> Result<(), SessionEnd> {
        if lines.is_empty() { Ok(()) } else { self.send_output(PrinterOutput::Lines(lines)).await }
    }

    async fn send_output(&self, output: PrinterOutput) -> Result<(), SessionEnd> {
        self.out.send(output).await.map_err(|_| SessionEnd::OutputClosed)
    }
}

/// The messages that a session may receive next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionStage {
    /// The first part of a snapshot, or a reset.
    AwaitingSnapshot,
    /// More parts of a snapshot.
    InSnapshot,
    /// Changes.
    Live,
}

/// Checks the hello, and returns how long the service may be silent.
fn check_hello(hello: &HelloMessage) -> Result<Duration, SessionEnd> {
    if hello.protocol != PROTOCOL_VERSION {
        return Err(SessionEnd::Refused(format!(
            "the service uses protocol version {}, and this program {PROTOCOL_VERSION}: use the same version of swelter",
            hello.protocol
        )));
    }
    Ok(Duration::from_secs_f64(2.0 * hello.heartbeat_s.clamp(0.05, 3600.0)))
}

/// Receives the next text message.
async fn next_text(socket: &mut ClientSocket, patience: Duration) -> Result<String, SessionEnd> {
    loop {
        let frame = timeout(patience, socket.next())
            .await
            .map_err(|_| connection_lost("the service has sent nothing for too long"))?;
        match frame {
            Some(Ok(Frame::Text(text))) => return Ok(text.to_string()),
            Some(Ok(Frame::Close(close))) => {
                let why =
                    close.map(|close| format!(" ({}) {}", close.code, close.reason)).unwrap_or_default();
                return Err(connection_lost(format!("the service closed the connection{why}")));
            }
            Some(Ok(Frame::Binary(_))) => return Err(connection_lost("the service sent an invalid message")),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(socket_error(&error)),
            None => return Err(connection_lost("the connection ended")),
        }
    }
}

fn socket_error(error: &Error) -> SessionEnd {
    let tls = match error {
        Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        _ => None,
    };
    match (tls, error) {
        (Some(rustls::Error::InvalidCertificate(problem)), _) => SessionEnd::Refused(format!(
            "the certificate of the service is not trusted ({problem}): name the one that signed it with --ca-file"
        )),
        (_, Error::Url(problem)) => SessionEnd::Refused(format!("the URL cannot be used: {problem}")),
        _ => connection_lost(error.to_string()),
    }
}

/// Classifies an HTTP response that is not an upgrade.
fn http_error(response: &Response<Option<Vec<u8>>>) -> SessionEnd {
    let status = response.status();
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let wait = seconds.map(|seconds: u64| Duration::from_secs(seconds.min(60)));
    match status {
        StatusCode::UNAUTHORIZED => {
            SessionEnd::Refused("the service requires a token (401): name its file with --token-file".into())
        }
        StatusCode::FORBIDDEN => {
            SessionEnd::Refused("the token has no scope read (403): use another token".into())
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            SessionEnd::Lost { why: format!("the service is busy ({status})"), wait }
        }
        _ if status.is_server_error() => {
            SessionEnd::Lost { why: format!("the service is not ready ({status})"), wait }
        }
        _ => SessionEnd::Refused(format!("the answer is {status}: is this the address of a swelter?")),
    }
}

fn service_error(failure: &ErrorMessage) -> SessionEnd {
    let ErrorMessage { code, detail, .. } = failure;
    match code.as_str() {
        "busy" => connection_lost("the service is busy"),
        _ => SessionEnd::Refused(escape_text(&format!("the service refuses ({code}): {detail}"))),
    }
}
