//! A subscriber that keeps its subscription over lost connections.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
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

use super::message::{Changes, Failure, Hello, Message, PROTOCOL, RowKey, Snapshot};
use super::print::{Output, ServiceClock, Style, clean};

/// The longest message of a service.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// Cities without a reading that are named.
const NAMED: usize = 10;
/// The name of the only subscription.
const ID: &str = "a";

/// How long things may take.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Before the first new attempt; doubled for each one after it.
    pub first: Duration,
    pub longest: Duration,
    /// After a session of this length attempts are counted anew.
    pub steady: Duration,
    /// Until the service has said hello.
    pub hello: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
            steady: Duration::from_secs(10),
            hello: Duration::from_secs(20),
        }
    }
}

/// Where to connect, and as whom.
pub struct Target {
    pub uri: Uri,
    pub bearer: Option<HeaderValue>,
    pub connector: Option<Connector>,
}

pub struct Client {
    pub target: Target,
    /// What the subscription asks for: `cities` or `box`, and `rows`.
    pub asked: Map<String, Value>,
    pub style: Style,
    pub pace: Pace,
    pub out: mpsc::Sender<Output>,
    /// Of the last message that was shown.
    pub token: Option<String>,
    /// Rows have been shown that a snapshot would make void.
    pub has_rows: bool,
    /// Of the service, where current rows are shown.
    pub clock: Option<ServiceClock>,
    /// The cities of the snapshot that is coming.
    pub seen: HashSet<String>,
}

/// Why a session is over.
#[derive(Debug)]
enum End {
    /// Trying again would not help.
    Refused(String),
    /// It might.
    Lost { why: String, wait: Option<Duration> },
    /// Nobody reads what is shown.
    Unread,
}

fn lost(why: impl Into<String>) -> End {
    End::Lost { why: why.into(), wait: None }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl Client {
    /// Shows the subscription until nobody reads it.
    ///
    /// # Errors
    ///
    /// Where the service refuses the subscription.
    pub async fn run(&mut self) -> Result<(), String> {
        let mut attempts = 0;
        loop {
            let began = Instant::now();
            let (why, wait) = match self.session().await {
                End::Refused(problem) => return Err(problem),
                End::Unread => return Ok(()),
                End::Lost { why, wait } => (why, wait),
            };
            if began.elapsed() >= self.pace.steady {
                attempts = 0;
            }
            let pause = self.pause(attempts).max(wait.unwrap_or_default());
            attempts += 1;
            let notice = format!("{}: trying again in {:.1} s", clean(&why), pause.as_secs_f64());
            if self.out.send(Output::Notice(notice)).await.is_err() {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Half of it is random, so that the clients of a service that restarts do not all come at once.
    fn pause(&self, attempts: u32) -> Duration {
        let full = self.pace.first.saturating_mul(1 << attempts.min(16)).min(self.pace.longest);
        let random = RandomState::new().hash_one(attempts) >> 40;
        full.mul_f64(0.5 + 0.5 * random as f64 / (1u64 << 24) as f64)
    }

    async fn session(&mut self) -> End {
        match self.connected().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn connected(&mut self) -> Result<std::convert::Infallible, End> {
        let connecting = timeout(self.pace.hello, self.connect());
        let mut socket = connecting.await.map_err(|_| lost("the service does not answer"))??;
        let text = next(&mut socket, self.pace.hello).await?;
        let Some(Message::Hello(hello)) = Message::read(&text) else {
            return Err(lost("the service does not begin with a hello"));
        };
        let patience = patience(&hello)?;
        let subscribe = self.subscribe(&hello)?;
        let has_current_rows = self.asked.get("rows").is_none_or(|rows| rows == "latest");
        self.clock = ServiceClock::new(&hello).filter(|_| has_current_rows);
        let sending = timeout(self.pace.hello, socket.send(Frame::text(subscribe)));
        sending.await.map_err(|_| lost("the service takes no message"))?.map_err(|error| failed(&error))?;
        // Changes before a snapshot or without a token would be changes of nothing.
        let mut stage = if self.token.is_some() { Stage::Follows } else { Stage::Waits };
        loop {
            let text = next(&mut socket, patience).await?;
            let message = Message::read(&text).ok_or_else(|| lost("the service sent what is no message"))?;
            stage = self.take(message, stage).await?;
        }
    }

    async fn connect(&self) -> Result<Socket, End> {
        let mut request = self.target.uri.clone().into_client_request().map_err(|error| failed(&error))?;
        if let Some(bearer) = &self.target.bearer {
            request.headers_mut().insert(AUTHORIZATION, bearer.clone());
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let connector = self.target.connector.clone();
        match connect_async_tls_with_config(request, Some(config), true, connector).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => Err(answered(&response)),
            Err(error) => Err(failed(&error)),
        }
    }

    fn subscribe(&self, hello: &Hello) -> Result<String, End> {
        let mut message = self.asked.clone();
        message.insert("type".into(), "subscribe".into());
        message.insert("id".into(), ID.into());
        if let Some(token) = &self.token {
            message.insert("resume".into(), token.as_str().into());
        }
        let text = Value::Object(message).to_string();
        let limit = hello.limits.as_ref().and_then(|limits| limits.message_bytes);
        match limit {
            Some(limit) if text.len() > limit => Err(End::Refused(format!(
                "the service takes messages of {limit} bytes and these cities need {}: name fewer, or use --all or --box",
                text.len()
            ))),
            _ => Ok(text),
        }
    }

    async fn take(&mut self, message: Message<'_>, stage: Stage) -> Result<Stage, End> {
        match message {
            Message::Snapshot(snapshot) if snapshot.id == ID => self.snapshot(snapshot, stage).await,
            Message::Changes(changes) if changes.id == ID && stage == Stage::Follows => {
                self.changes(changes).await?;
                Ok(stage)
            }
            Message::Changes(changes) if changes.id == ID => {
                Err(lost("the service sent changes before a snapshot"))
            }
            Message::Reset(reset) if reset.id == ID => {
                self.begin_anew(&reset.reason).await?;
                Ok(Stage::Waits)
            }
            Message::Error(failure) if failure.id.as_deref().is_none_or(|id| id == ID) => {
                Err(refused(&failure))
            }
            _ => Ok(stage),
        }
    }

    async fn snapshot(&mut self, snapshot: Snapshot<'_>, stage: Stage) -> Result<Stage, End> {
        if stage != Stage::Snapshot {
            self.begin_anew("snapshot").await?;
            self.seen.clear();
        }
        for row in &snapshot.rows {
            let key = serde_json::from_str::<RowKey<'_>>(row.get());
            self.seen.extend(key.map(|key| key.city.into_owned()));
        }
        let mut lines = String::new();
        let (as_of, style) = (snapshot.as_of, self.style);
        let (units, clock) = (snapshot.row_units(), self.clock.as_ref());
        if !snapshot.rows.iter().all(|row| style.upsert(as_of, row, units, clock, &mut lines)) {
            return Err(lost("the service sent a row that is none"));
        }
        self.has_rows |= !lines.is_empty();
        self.show(lines).await?;
        if !snapshot.complete {
            return Ok(Stage::Snapshot);
        }
        self.token = snapshot.token;
        if let Some(end) = self.style.snapshot_end(snapshot.as_of) {
            self.send(end).await?;
        }
        if let Some(waits) = self.without_rows() {
            self.send(Output::Notice(waits)).await?;
        }
        Ok(Stage::Follows)
    }

    /// What has no row yet of all that was asked for; silence would look like a service that has failed.
    fn without_rows(&self) -> Option<String> {
        let Some(cities) = self.asked.get("cities").and_then(Value::as_array) else {
            let none = "no city there has a reading yet: waiting for the first one";
            return self.seen.is_empty().then(|| none.to_owned());
        };
        let cities = cities.iter().filter_map(Value::as_str);
        let missing: Vec<&str> = cities.filter(|city| !self.seen.contains(*city)).collect();
        let named = missing.iter().take(NAMED).map(|city| clean(city)).collect::<Vec<_>>().join(", ");
        let more = match missing.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (!missing.is_empty()).then(|| {
            format!("no reading yet of {named}{more}: waiting for the first one (GET /v1/cities has the keys that there are)")
        })
    }

    async fn changes(&mut self, changes: Changes<'_>) -> Result<(), End> {
        let mut lines = String::new();
        let (as_of, style) = (changes.as_of, self.style);
        let (units, clock) = (changes.row_units(), self.clock.as_ref());
        let right = changes.upserts.iter().all(|row| style.upsert(as_of, row, units, clock, &mut lines))
            && changes.removals.iter().all(|key| style.removal(as_of, key, &mut lines));
        if !right {
            return Err(lost("the service sent a row that is none"));
        }
        self.has_rows |= !lines.is_empty();
        self.show(lines).await?;
        self.token = Some(changes.token);
        Ok(())
    }

    async fn begin_anew(&mut self, reason: &str) -> Result<(), End> {
        self.token = None;
        if std::mem::take(&mut self.has_rows) {
            self.send(self.style.reset(reason)).await?;
        }
        Ok(())
    }

    async fn show(&self, lines: String) -> Result<(), End> {
        if lines.is_empty() { Ok(()) } else { self.send(Output::Lines(lines)).await }
    }

    async fn send(&self, output: Output) -> Result<(), End> {
        self.out.send(output).await.map_err(|_| End::Unread)
    }
}

/// What a session may hear next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The first part of a snapshot, or a reset.
    Waits,
    /// More of a snapshot.
    Snapshot,
    /// Changes.
    Follows,
}

/// How long a service may be silent.
fn patience(hello: &Hello) -> Result<Duration, End> {
    if hello.protocol != PROTOCOL {
        return Err(End::Refused(format!(
            "the service speaks protocol {}, and this is {PROTOCOL}: use the swelter of the same version",
            hello.protocol
        )));
    }
    Ok(Duration::from_secs_f64(2.0 * hello.heartbeat_s.clamp(0.05, 3600.0)))
}

/// The next text message.
async fn next(socket: &mut Socket, patience: Duration) -> Result<String, End> {
    loop {
        let frame = timeout(patience, socket.next()).await.map_err(|_| lost("the service is silent"))?;
        match frame {
            Some(Ok(Frame::Text(text))) => return Ok(text.to_string()),
            Some(Ok(Frame::Close(close))) => {
                let why =
                    close.map(|close| format!(" ({}) {}", close.code, close.reason)).unwrap_or_default();
                return Err(lost(format!("the service closed the connection{why}")));
            }
            Some(Ok(Frame::Binary(_))) => return Err(lost("the service sent what is no message")),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(failed(&error)),
            None => return Err(lost("the connection ended")),
        }
    }
}

fn failed(error: &Error) -> End {
    let tls = match error {
        Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        _ => None,
    };
    match (tls, error) {
        (Some(rustls::Error::InvalidCertificate(problem)), _) => End::Refused(format!(
            "the certificate of the service is not trusted ({problem}): --ca-file names the one that signed it"
        )),
        (_, Error::Url(problem)) => End::Refused(format!("the URL cannot be used: {problem}")),
        _ => lost(error.to_string()),
    }
}

/// What an HTTP answer instead of an upgrade means.
fn answered(response: &Response<Option<Vec<u8>>>) -> End {
    let status = response.status();
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let wait = seconds.map(|seconds: u64| Duration::from_secs(seconds.min(60)));
    match status {
        StatusCode::UNAUTHORIZED => {
            End::Refused("the service asks for a token (401): --token-file names it".into())
        }
        StatusCode::FORBIDDEN => End::Refused("the token does not allow to read (403)".into()),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            End::Lost { why: format!("the service is busy ({status})"), wait }
        }
        _ if status.is_server_error() => {
            End::Lost { why: format!("the service is not ready ({status})"), wait }
        }
        _ => End::Refused(format!("the answer is {status}: is this the address of a swelter?")),
    }
}

fn refused(failure: &Failure) -> End {
    let Failure { code, detail, .. } = failure;
    match code.as_str() {
        "busy" => lost("the service is busy"),
        _ => End::Refused(clean(&format!("the service refuses ({code}): {detail}"))),
    }
}
