mod units;
mod unsteady;

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Frame;

use super::client::{ConnectTarget, ReconnectPolicy, SubscribeClient};
use super::print::{OutputStyle, PrinterOutput};
use super::*;
use crate::model::EventTime;

const DEADLINE: Duration = Duration::from_secs(20);

/// Delays as short as possible.
fn pace() -> ReconnectPolicy {
    let millis = Duration::from_millis;
    ReconnectPolicy {
        first_delay: millis(1),
        max_delay: millis(5),
        reset_after: Duration::from_secs(60),
        hello_timeout: Duration::from_secs(10),
    }
}

/// A running client, and the port that it connects to.
struct Stage {
    listener: TcpListener,
    outputs: mpsc::Receiver<PrinterOutput>,
    client: JoinHandle<Result<(), String>>,
}

impl Stage {
    async fn new(style: OutputStyle) -> Stage {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = websocket_uri(&listener.local_addr().unwrap().to_string()).unwrap();
        let target =
            ConnectTarget { uri, bearer: Some(HeaderValue::from_static("Bearer abc")), connector: None };
        Stage::with(listener, target, style)
    }

    fn with(listener: TcpListener, target: ConnectTarget, style: OutputStyle) -> Stage {
        let asked = [("cities".to_owned(), json!(["1", "2"]))].into_iter().collect();
        Stage::subscribing(listener, target, style, asked)
    }

    fn asking(listener: TcpListener, target: ConnectTarget, style: OutputStyle, rows: &str) -> Stage {
        let asked = [("cities".to_owned(), json!(["1"])), ("rows".to_owned(), json!(rows))];
        Stage::subscribing(listener, target, style, asked.into_iter().collect())
    }

    fn subscribing(
        listener: TcpListener,
        target: ConnectTarget,
        style: OutputStyle,
        asked: Map<String, Value>,
    ) -> Stage {
        let (out, outputs) = mpsc::channel(8);
        let (clock, seen, pace) = (None, Default::default(), pace());
        let mut client = SubscribeClient {
            target,
            subscription_request: asked,
            style,
            reconnect_policy: pace,
            out,
            token: None,
            has_rows: false,
            clock,
            snapshot_cities: seen,
        };
        Stage { listener, outputs, client: tokio::spawn(async move { client.run_until_closed().await }) }
    }

    async fn accept(&self) -> TcpStream {
        timeout(DEADLINE, self.listener.accept()).await.unwrap().unwrap().0
    }

    /// Accepts a connection up to the subscription, and returns both.
    async fn session(&self) -> (Session<TcpStream>, Value) {
        let mut session = Session::new(self.accept().await).await;
        session.send(hello(30.0)).await;
        let subscription = session.hear().await;
        (session, subscription)
    }

    /// Returns the next output to standard output, as lines.
    async fn lines(&mut self) -> Vec<String> {
        loop {
            match timeout(DEADLINE, self.outputs.recv()).await.unwrap().unwrap() {
                PrinterOutput::Lines(lines) => return lines.lines().map(str::to_owned).collect(),
                PrinterOutput::Notice(_) => {}
            }
        }
    }

    async fn events(&mut self) -> Vec<Value> {
        self.lines().await.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn notice(&mut self) -> String {
        loop {
            if let PrinterOutput::Notice(line) =
                timeout(DEADLINE, self.outputs.recv()).await.unwrap().unwrap()
            {
                return line;
            }
        }
    }

    async fn refused(self) -> String {
        timeout(DEADLINE, self.client).await.unwrap().unwrap().unwrap_err()
    }
}

struct Session<S>(WebSocketStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    async fn new(stream: S) -> Session<S> {
        Session(tokio_tungstenite::accept_async(stream).await.unwrap())
    }

    async fn send(&mut self, message: Value) {
        self.text(&message.to_string()).await;
    }

    async fn text(&mut self, text: &str) {
        self.0.send(Frame::text(text)).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        loop {
            let frame = timeout(DEADLINE, self.0.next()).await.unwrap().unwrap().unwrap();
            if let Frame::Text(text) = frame {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }
}

fn hello(heartbeat_s: f64) -> Value {
    json!({"type": "hello", "protocol": 1, "generation": "1-a", "formula": "nws", "window_s": 86400,
        "heartbeat_s": heartbeat_s, "limits": {"message_bytes": 65536}})
}

fn row(city: &str, minute: u32) -> Value {
    json!({"city": city, "reading_at": format!("2025-11-24T16:{minute:02}:00Z"), "heat_index": 91.283411,
        "rolling_heat_index": 84.01273, "count": 7, "category": "extreme_caution", "trend": null})
}

fn key(city: &str, minute: u32) -> Value {
    json!({"city": city, "reading_at": format!("2025-11-24T16:{minute:02}:00Z")})
}

fn snapshot(as_of: u64, rows: &[Value]) -> Value {
    json!({"type": "snapshot", "id": "a", "as_of": as_of, "complete": true, "token": format!("t{as_of}"), "rows": rows})
}

fn changes(as_of: u64, upserts: &[Value], removals: &[Value]) -> Value {
    json!({"type": "changes", "id": "a", "as_of": as_of, "token": format!("t{as_of}"),
        "upserts": upserts, "removals": removals})
}

#[tokio::test]
async fn lost_connection_resumes_from_last_token() {
    let mut stage = Stage::new(OutputStyle::Json).await;
    let (mut session, subscription) = stage.session().await;
    assert_eq!(subscription, json!({"type": "subscribe", "id": "a", "cities": ["1", "2"]}));
    session.send(snapshot(5, &[row("1", 0)])).await;
    assert_eq!(stage.events().await, [json!({"event": "upsert", "as_of": 5, "row": row("1", 0)})]);
    assert_eq!(stage.events().await, [json!({"event": "snapshot_end", "as_of": 5})]);
    session.send(json!({"type": "heartbeat", "as_of": 6})).await;
    session.send(json!({"type": "of a later protocol", "id": "a"})).await;
    session.send(changes(7, &[row("2", 1)], &[key("1", 0)])).await;
    let events = stage.events().await;
    assert_eq!(events[0], json!({"event": "upsert", "as_of": 7, "row": row("2", 1)}));
    assert_eq!(events[1], json!({"event": "removal", "as_of": 7, "row": key("1", 0)}));
    drop(session);
    let (mut session, subscription) = stage.session().await;
    assert_eq!(subscription["resume"], "t7");
    session.send(changes(8, &[row("1", 2)], &[])).await;
    assert_eq!(stage.events().await, [json!({"event": "upsert", "as_of": 8, "row": row("1", 2)})]);
    // A stopping service closes the connection.
    session.0.close(None).await.unwrap();
    assert_eq!(stage.session().await.1["resume"], "t8");
}

#[tokio::test]
async fn restarted_service_sends_new_snapshot() {
    let mut stage = Stage::new(OutputStyle::Json).await;
    let (mut session, _) = stage.session().await;
    session.send(snapshot(5, &[row("1", 0)])).await;
    stage.events().await;
    stage.events().await;
    drop(session);
    let (mut session, _) = stage.session().await;
    session.send(json!({"type": "reset", "id": "a", "reason": "generation"})).await;
    assert_eq!(stage.events().await, [json!({"event": "reset", "reason": "generation"})]);
    let part = json!({"type": "snapshot", "id": "a", "as_of": 9, "complete": false, "rows": [row("1", 3)]});
    session.send(part).await;
    assert_eq!(stage.events().await[0]["event"], "upsert");
    // A partial snapshot is no state to resume from.
    drop(session);
    let (mut session, subscription) = stage.session().await;
    assert_eq!(subscription.get("resume"), None);
    session.send(snapshot(10, &[row("1", 4)])).await;
    assert_eq!(stage.events().await[0]["event"], "reset");
    assert_eq!(stage.events().await, [json!({"event": "upsert", "as_of": 10, "row": row("1", 4)})]);
    assert_eq!(stage.events().await[0]["event"], "snapshot_end");
}

#[tokio::test]
async fn invalid_message_ends_session_and_resumes_subscription() {
    let mut stage = Stage::new(OutputStyle::Json).await;
    let (mut session, _) = stage.session().await;
    session.send(snapshot(5, &[])).await;
    assert_eq!(stage.events().await[0]["event"], "snapshot_end");
    assert!(stage.notice().await.contains("reading yet"));
    drop(session);
    stage.notice().await;
    let no_row = changes(6, &[json!({"city": "1"})], &[]).to_string();
    let no_key = changes(6, &[], &[json!({"city": "1"})]).to_string();
    let no_token =
        json!({"type": "changes", "id": "a", "as_of": 6, "upserts": [], "removals": []}).to_string();
    let deep = "[".repeat(100_000);
    for garbage in ["", "nonsense", "{}", "null", &no_row, &no_key, &no_token, &deep] {
        let (mut session, subscription) = stage.session().await;
        assert_eq!(subscription["resume"], "t5", "{garbage:.80}");
        session.text(garbage).await;
        assert!(stage.notice().await.contains("the service sent"), "{garbage:.80}");
    }
    let (mut session, _) = stage.session().await;
    session.0.send(Frame::binary(vec![0u8; 10])).await.unwrap();
    assert!(stage.notice().await.contains("invalid message"));
    // No hello, no WebSocket, no HTTP, no response.
    let mut session = Session::new(stage.accept().await).await;
    session.send(snapshot(9, &[])).await;
    assert!(stage.notice().await.contains("did not send a hello first"));
    stage.accept().await.write_all(b"SSH-2.0-OpenSSH\r\n\r\n").await.unwrap();
    stage.notice().await;
    drop(stage.accept().await);
    stage.notice().await;
    assert_eq!(stage.session().await.1["resume"], "t5");
}

#[tokio::test]
async fn changes_before_snapshot_are_a_protocol_error() {
    let mut stage = Stage::new(OutputStyle::Json).await;
    let (mut session, _) = stage.session().await;
    session.send(changes(6, &[row("1", 1)], &[])).await;
    assert!(stage.notice().await.contains("changes before a snapshot"));
    assert_eq!(stage.session().await.1.get("resume"), None);
}

#[tokio::test]
async fn silent_service_is_disconnected() {
    let mut stage = Stage::new(OutputStyle::Json).await;
    let mut session = Session::new(stage.accept().await).await;
    session.send(hello(0.05)).await;
    session.hear().await;
    assert!(stage.notice().await.contains("has sent nothing"));
    stage.session().await;
}

/// Responds to the handshake with something other than an upgrade.
async fn answer(stage: &Stage, head: &str) -> String {
    let mut stream = stage.accept().await;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(timeout(DEADLINE, stream.read_u8()).await.unwrap().unwrap());
    }
    let answer = format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.unwrap();
    String::from_utf8(request).unwrap()
}

#[tokio::test]
async fn permanent_errors_end_and_temporary_ones_retry() {
    for (head, said) in [
        ("401 Unauthorized", "requires a token (401)"),
        ("403 Forbidden", "(403)"),
        ("404 Not Found", "is this the address of a swelter?"),
        ("301 Moved\r\nLocation: /x", "is this the address of a swelter?"),
    ] {
        let mut stage = Stage::new(OutputStyle::Json).await;
        answer(&stage, "503 Service Unavailable\r\nRetry-After: 0").await;
        assert!(stage.notice().await.contains("not ready (503"));
        answer(&stage, "429 Too Many Requests").await;
        assert!(stage.notice().await.contains("busy"));
        let request = answer(&stage, head).await;
        assert!(request.starts_with("GET /v1/subscribe HTTP/1.1\r\n"), "{request}");
        assert!(request.to_lowercase().contains("authorization: bearer abc"), "{request}");
        let refused = stage.refused().await;
        assert!(refused.contains(said), "{refused}");
    }
}

#[tokio::test]
async fn service_refusal_is_reported() {
    let stage = Stage::new(OutputStyle::Json).await;
    let (mut session, _) = stage.session().await;
    let error =
        json!({"type": "error", "id": "a", "code": "too_many_cities", "detail": "at most 1\u{1b}[2J"});
    session.send(error).await;
    let refused = stage.refused().await;
    assert!(refused.contains("too_many_cities") && !refused.contains('\u{1b}'), "{refused}");

    let mut stage = Stage::new(OutputStyle::Json).await;
    let (mut session, _) = stage.session().await;
    session.send(json!({"type": "error", "id": "a", "code": "busy", "detail": "later"})).await;
    assert!(stage.notice().await.contains("busy"));
    let mut session = Session::new(stage.accept().await).await;
    let mut small = hello(30.0);
    small["limits"]["message_bytes"] = json!(10);
    session.send(small).await;
    assert!(stage.refused().await.contains("name fewer"));

    let stage = Stage::new(OutputStyle::Json).await;
    let mut session = Session::new(stage.accept().await).await;
    let mut later = hello(30.0);
    later["protocol"] = json!(2);
    session.send(later).await;
    assert!(stage.refused().await.contains("protocol version 2"));
}

#[tokio::test]
async fn text_output_prints_one_line_per_row() {
    let mut stage = Stage::new(OutputStyle::Human).await;
    let (mut session, _) = stage.session().await;
    session.send(snapshot(5, &[row("5128581", 0), row("a\u{1b}[2Jb", 1)])).await;
    session.send(changes(6, &[], &[key("x", 0)])).await;
    let lines = stage.lines().await;
    assert_eq!(
        lines[0],
        "2025-11-24T16:00:00Z  New York City, US (5128581)             91.3 °F  mean   84.0 °F  extreme caution"
    );
    assert!(lines[1].contains("a\\x1b[2Jb ") && lines.len() == 2, "{lines:?}");
    let removed = stage.lines().await;
    assert!(
        removed[0].starts_with("2025-11-24T16:00:00Z  x ") && removed[0].ends_with("  removed"),
        "{removed:?}"
    );
}

/// Staleness is by the service's clock, which may differ from this host's; an older service does
/// not send it.
#[tokio::test]
async fn text_output_marks_stale_current_rows() {
    let now = "2025-11-24T21:30:00Z".parse::<EventTime>().unwrap().millis();
    let mut said = hello(30.0);
    (said["now"], said["stale_after_s"]) = (json!(now), json!(10_800));
    for (hello, rows, marks) in [
        (said.clone(), "latest", ["  (stale: 5 h old)", ""]),
        (said.clone(), "window", ["", ""]),
        (hello(30.0), "latest", ["", ""]),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = websocket_uri(&listener.local_addr().unwrap().to_string()).unwrap();
        let target = ConnectTarget { uri, bearer: None, connector: None };
        let mut stage = Stage::asking(listener, target, OutputStyle::Human, rows);
        let mut session = Session::new(stage.accept().await).await;
        session.send(hello).await;
        session.hear().await;
        let mut fresh = row("b", 0);
        fresh["reading_at"] = json!("2025-11-24T19:00:00Z");
        session.send(snapshot(5, &[row("a", 0), fresh])).await;
        let lines = stage.lines().await;
        let ends: Vec<_> = lines.iter().map(|line| line.split("extreme caution").nth(1).unwrap()).collect();
        assert_eq!(ends, marks, "{rows}");
    }
}

#[tokio::test]
async fn multi_line_row_is_printed_as_one_json_line() {
    let mut stage = Stage::new(OutputStyle::Json).await;
    let (mut session, _) = stage.session().await;
    session.text(&serde_json::to_string_pretty(&snapshot(5, &[row("1", 0)])).unwrap()).await;
    assert_eq!(stage.events().await, [json!({"event": "upsert", "as_of": 5, "row": row("1", 0)})]);
}

#[tokio::test]
async fn closed_stdout_ends_with_success() {
    let mut stage = Stage::new(OutputStyle::Json).await;
    let (mut session, _) = stage.session().await;
    stage.outputs.close();
    session.send(snapshot(5, &[row("1", 0)])).await;
    assert_eq!(timeout(DEADLINE, stage.client).await.unwrap().unwrap(), Ok(()));
}

#[tokio::test]
async fn tls_accepts_custom_ca_certificate() {
    use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let server =
        tokio_rustls::rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![own.cert.der().clone()],
                PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()).into(),
            )
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    for (name, certificate, trusted) in [("own", &own.cert, true), ("other", &other.cert, false)] {
        let path = folder.path().join(name);
        std::fs::write(&path, certificate.pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = websocket_uri(&format!("https://{}", listener.local_addr().unwrap())).unwrap();
        let target = ConnectTarget { uri, bearer: None, connector: Some(tls_connector(&path).unwrap()) };
        let mut stage = Stage::with(listener, target, OutputStyle::Json);
        let accepted = acceptor.accept(stage.accept().await).await;
        if trusted {
            let mut session = Session::new(accepted.unwrap()).await;
            session.send(hello(30.0)).await;
            session.hear().await;
            session.send(snapshot(5, &[row("1", 0)])).await;
            assert_eq!(stage.events().await[0]["event"], "upsert");
        } else {
            let refused = stage.refused().await;
            assert!(refused.contains("--ca-file"), "{refused}");
        }
    }
    std::fs::write(folder.path().join("none"), "").unwrap();
    assert!(
        tls_connector(&folder.path().join("none")).is_err()
            && tls_connector(&folder.path().join("gone")).is_err()
    );
}

#[test]
fn service_urls_are_parsed_in_all_forms() {
    for (url, uri) in [
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/v1/subscribe"),
        ("http://127.0.0.1:8080/", "ws://127.0.0.1:8080/v1/subscribe"),
        ("localhost:8080", "ws://localhost:8080/v1/subscribe"),
        ("https://example.org", "wss://example.org/v1/subscribe"),
        ("ws://[::1]:80/behind/a/proxy?x=1", "ws://[::1]:80/behind/a/proxy?x=1"),
        ("wss://example.org", "wss://example.org/v1/subscribe"),
    ] {
        assert_eq!(websocket_uri(url).unwrap().to_string(), uri);
    }
    for url in
        ["", "ftp://example.org", "http://", "http://a b", "http://me:secret@example.org", "://", "http:///x"]
    {
        assert!(websocket_uri(url).is_err(), "{url}");
    }
}

#[derive(Debug, clap::Parser)]
struct Command {
    #[command(flatten)]
    args: SubscribeArgs,
}

fn args(line: &str) -> Result<SubscribeArgs, clap::Error> {
    let words = ["subscribe"].into_iter().chain(line.split_whitespace());
    <Command as clap::Parser>::try_parse_from(words).map(|command| command.args)
}

#[test]
fn arguments_become_subscription_request() {
    let asked = |line: &str| Value::Object(args(line).unwrap().subscription_request().unwrap());
    assert_eq!(asked("u 1 2"), json!({"cities": ["1", "2"], "rows": "latest"}));
    assert_eq!(asked("u 1 --rows window"), json!({"cities": ["1"], "rows": "window"}));
    assert_eq!(asked("u --all"), json!({"cities": "all", "rows": "latest"}));
    assert_eq!(
        asked("u --box -125,24,-66,50"),
        json!({"box": [-125.0, 24.0, -66.0, 50.0], "rows": "latest"})
    );
    assert!(args("u --all --rows window").unwrap().subscription_request().is_err());
    for line in
        ["u", "u 1 --all", "u --all --box 1,2,3,4", "u --box 1,2,3", "u --box 1,50,3,24", "u --box 1,2,nan,4"]
    {
        assert!(args(line).is_err(), "{line}");
    }
}

#[test]
fn token_file_contains_only_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    for (text, right) in [("abc\n", true), ("", false), ("read abc", false), ("a\u{7f}", false)] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(read_bearer_header(&path).is_ok(), right, "{text:?}");
    }
    assert!(read_bearer_header(&folder.path().join("none")).is_err());
}
