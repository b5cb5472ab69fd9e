//! WebSockets: handshakes, the ingest, stopping, TLS.

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::documents::check_message;
use super::*;

pub(super) type Client = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

impl TestServer {
    pub(super) fn open(&self, path: &str, headers: &[(&'static str, &str)]) -> Result<Client, Error> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        self.runtime.block_on(tokio_tungstenite::connect_async(request)).map(|(client, _)| client)
    }

    fn open_refused(&self, path: &str, headers: &[(&'static str, &str)]) -> (u16, String) {
        match self.open(path, headers) {
            Err(Error::Http(response)) => {
                let problem: Value = serde_json::from_slice(response.body().as_ref().unwrap()).unwrap();
                (response.status().as_u16(), problem["code"].as_str().unwrap().into())
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn send_text(&self, client: &mut Client, text: &str) {
        self.runtime.block_on(client.send(Message::text(text))).unwrap();
    }

    fn receive_message(&self, client: &mut Client) -> Message {
        let next = async { tokio::time::timeout(TEST_DEADLINE, client.next()).await };
        self.runtime.block_on(next).unwrap().unwrap().unwrap()
    }

    pub(super) fn receive_json(&self, client: &mut Client) -> Value {
        loop {
            match self.receive_message(client) {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn receive_close_code(&self, client: &mut Client) -> CloseCode {
        loop {
            if let Message::Close(frame) = self.receive_message(client) {
                return frame.unwrap().code;
            }
        }
    }
}

#[test]
fn subscription_messages_match_documentation() {
    let service = TestServer::start_ready(plan());
    let at = time("2025-11-24T16:00:00Z");
    service.dataflow.insert_row("5128581", at, row(90.0, Category::Caution));
    let mut client = service.open("/v1/subscribe", &[]).unwrap();
    check_message("HelloMessage", &service.receive_json(&mut client));
    for (request, schema, answer) in [
        (json!({"type": "subscribe", "id": "a", "cities": "all"}), "SubscribeMessage", "SnapshotMessage"),
        (
            json!({"type": "subscribe", "id": "b", "cities": ["5128581"], "rows": "window"}),
            "SubscribeMessage",
            "SnapshotMessage",
        ),
        (
            json!({"type": "subscribe", "id": "c", "cities": ["x"], "resume": "?"}),
            "SubscribeMessage",
            "ResetMessage",
        ),
        (json!({"type": "ping"}), "PingMessage", "PongMessage"),
        (json!({"type": "unsubscribe", "id": "b"}), "UnsubscribeMessage", "UnsubscribedMessage"),
        (json!({"type": "unsubscribe", "id": "z"}), "UnsubscribeMessage", "ErrorMessage"),
    ] {
        check_message(schema, &request);
        service.send_text(&mut client, &request.to_string());
        let kind = answer.trim_end_matches("Message").to_ascii_lowercase();
        let answered = loop {
            let message = service.receive_json(&mut client);
            if message["type"] == *kind {
                break message;
            }
        };
        check_message(answer, &answered);
    }
    service.dataflow.publish(hotter_new_york());
    let changes = loop {
        let message = service.receive_json(&mut client);
        if message["type"] == "changes" {
            break message;
        }
    };
    check_message("ChangesMessage", &changes);
    assert_eq!(service.get("/v1/status").json()["subscribers"], 1);
}

#[test]
fn ingest_socket_acknowledges_durable_readings_in_order() {
    let service = TestServer::start_ready(plan());
    let mut client = service.open("/v1/ingest", &[]).unwrap();
    service.send_text(&mut client, READING);
    service.send_text(&mut client, "{");
    service.send_text(&mut client, &format!("[{READING},{{}}]"));
    service.send_text(&mut client, "[]");
    let answers: Vec<_> = (0..4).map(|_| service.receive_json(&mut client)).collect();
    for answer in &answers {
        let schema = if answer["type"] == "error" { "IngestErrorMessage" } else { "AcceptedMessage" };
        check_message(schema, answer);
    }
    let received: Vec<_> =
        answers.iter().map(|answer| (&answer["seq"], &answer["type"], &answer["accepted"])).collect();
    let null = Value::Null;
    let (zero, one, two, three) = (json!(0), json!(1), json!(2), json!(3));
    let (accepted, error) = (json!("accepted"), json!("error"));
    assert_eq!(
        received,
        [
            (&zero, &accepted, &one),
            (&one, &error, &null),
            (&two, &accepted, &one),
            (&three, &accepted, &zero)
        ]
    );
    assert_eq!((&answers[1]["code"], service.log.bytes().len()), (&json!("bad_message"), 2));
    *service.log.error.lock() = Some(AppendError::Busy);
    service.send_text(&mut client, READING);
    let busy = service.receive_json(&mut client);
    assert_eq!((&busy["code"], &busy["seq"]), (&json!("busy"), &json!(4)));
    *service.log.error.lock() = None;
    service.runtime.block_on(client.send(Message::binary(vec![1, 2]))).unwrap();
    assert_eq!(service.receive_close_code(&mut client), CloseCode::from(1003));
}

#[test]
fn ingest_socket_bounds_unacknowledged_messages() {
    let service = TestServer::start_ready(plan());
    service.log.hold_appends();
    let mut client = service.open("/v1/ingest", &[]).unwrap();
    for _ in 0..100 {
        service.send_text(&mut client, READING);
    }
    service.log.wait_for_appends(64);
    service.log.acknowledge_appends();
    for seq in 0..64 {
        assert_eq!(service.receive_json(&mut client)["seq"], seq);
    }
    service.log.wait_for_appends(36);
}

#[test]
fn sessions_close_with_matching_code() {
    let service = TestServer::start_ready(plan());
    for path in ["/v1/subscribe", "/v1/ingest"] {
        let mut client = service.open(path, &[]).unwrap();
        service.send_text(&mut client, &"x".repeat(20_000));
        assert_eq!(service.receive_close_code(&mut client), CloseCode::from(1009), "{path}");
    }
    let mut echo = service.open("/echo", &[]).unwrap();
    let long = "x".repeat(300_000);
    service.send_text(&mut echo, &long);
    assert_eq!(service.receive_message(&mut echo), Message::text(long));
    let quick = ServeLimits { heartbeat: Duration::from_millis(30), ..limits() };
    let service = TestServer::start_ready(ServePlan { limits: quick, echo: false, ..plan() });
    // A client that never answers a ping.
    let mut client = service.connect();
    let key = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
    client
        .write_all(format!("GET /v1/ingest HTTP/1.1\r\nhost: localhost\r\n{key}\r\n\r\n").as_bytes())
        .unwrap();
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    let close = 4408_u16.to_be_bytes();
    assert!(received.windows(2).any(|bytes| bytes == close), "{received:?}");
    assert_eq!(service.open_refused("/echo", &[]), (404, "not_found".into()));
}

#[test]
fn websocket_handshakes_are_validated() {
    let tokens = vec![Token { secret: "reader".into(), read: true, ingest: false }];
    let service = TestServer::start_ready(ServePlan { tokens, ..plan() });
    assert_eq!(service.open_refused("/v1/subscribe", &[]), (401, "unauthorized".into()));
    let foreign = [("origin", "https://evil.example"), ("authorization", "Bearer reader")];
    assert_eq!(service.open_refused("/v1/subscribe", &foreign), (403, "foreign_origin".into()));
    assert_eq!(
        service.open_refused("/v1/ingest", &[("authorization", "Bearer reader")]),
        (403, "insufficient_scope".into())
    );
    // A client that names subprotocols refuses a response without one.
    let protocols = ("sec-websocket-protocol", "swelter.v1, bearer.reader");
    let mut client =
        service.open("/v1/subscribe", &[protocols, ("origin", "https://maps.example.org")]).unwrap();
    assert_eq!(service.receive_json(&mut client)["type"], "hello");
    let open = TestServer::start_ready(plan());
    let plain = open.get("/v1/subscribe");
    assert_eq!(
        (plain.status, &*plain.code(), plain.header("upgrade")),
        (426, "upgrade_required", Some("websocket"))
    );
    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
    for (version, key, status) in [
        ("12", "dGhlIHNhbXBsZSBub25jZQ==", 426),
        ("13", "short", 400),
        ("13", "", 400),
        ("13", "dGhlIHNhbXBsZSBub25jZQ", 400),
    ] {
        let headers =
            [upgrade[0], upgrade[1], ("sec-websocket-version", version), ("sec-websocket-key", key)];
        let mut request = format!("GET /v1/subscribe HTTP/1.1\r\nhost: {}\r\n", open.address);
        headers.iter().for_each(|(name, value)| request.push_str(&format!("{name}: {value}\r\n")));
        let mut socket = open.connect();
        socket.write_all(format!("{request}\r\n").as_bytes()).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(HttpReply::read(&mut socket).status, status, "{version} {key}");
    }
}

#[test]
fn stop_closes_sessions_and_finishes_requests() {
    let mut service = TestServer::start_ready(plan());
    let mut subscriber = service.open("/v1/subscribe", &[]).unwrap();
    let mut sensor = service.open("/v1/ingest", &[]).unwrap();
    assert_eq!(service.receive_json(&mut subscriber)["type"], "hello");
    let idle = service.connect();
    service.log.hold_appends();
    let mut posting = service.connect();
    let request = format!(
        "POST /v1/readings HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{READING}",
        service.address,
        READING.len()
    );
    posting.write_all(request.as_bytes()).unwrap();
    let started = Instant::now();
    service.log.wait_for_appends(1);
    let stopping = service.runtime.spawn(service.serving.take().unwrap().stop_serving(TEST_DEADLINE));
    assert_eq!(service.receive_close_code(&mut subscriber), CloseCode::Away);
    assert_eq!(service.receive_close_code(&mut sensor), CloseCode::Away);
    assert!(!stopping.is_finished());
    service.log.release_appends();
    assert_eq!(HttpReply::read(&mut posting).status, 200);
    drop((subscriber, sensor));
    service.runtime.block_on(stopping).unwrap();
    assert!(started.elapsed() < TEST_DEADLINE);
    assert!(TcpStream::connect(service.address).is_err());
    drop(idle);
}

#[test]
fn tls_is_served_and_certificate_is_reloaded() {
    let folder = tempfile::tempdir().unwrap();
    let files = TlsPlan { certificate: folder.path().join("cert.pem"), key: folder.path().join("key.pem") };
    let write = || {
        let generated = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
        std::fs::write(&files.certificate, generated.cert.pem()).unwrap();
        std::fs::write(&files.key, generated.signing_key.serialize_pem()).unwrap();
        generated.cert.der().clone()
    };
    let missing = bind_server(ServePlan { tls: Some(files.clone()), ..plan() }).err().unwrap().to_string();
    assert!(missing.contains("cert.pem"), "{missing}");
    let certificate = write();
    let key = std::fs::read(&files.key).unwrap();
    std::fs::write(&files.key, "nothing").unwrap();
    let broken = bind_server(ServePlan { tls: Some(files.clone()), ..plan() }).err().unwrap().to_string();
    assert!(broken.contains("key.pem"), "{broken}");
    std::fs::write(&files.key, key).unwrap();

    let service = TestServer::start(ServePlan { tls: Some(files.clone()), ..plan() }, true);
    let answer = service.runtime.block_on(https(service.address, certificate));
    assert_eq!(HttpReply::parse(&answer).status, 200);
    // Plain HTTP to a TLS port ends the connection alone.
    let mut socket = service.connect();
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _ = socket.read_to_end(&mut Vec::new());

    let tls = crate::serve::tls::ServerTls::load(&files).unwrap();
    assert!(!tls.reload_if_changed().unwrap());
    write();
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    std::fs::File::options().write(true).open(&files.key).unwrap().set_modified(later).unwrap();
    assert!(tls.reload_if_changed().unwrap());
    std::fs::write(&files.certificate, "nothing").unwrap();
    assert!(tls.reload_if_changed().is_err());
}

pub(super) async fn https(
    address: SocketAddr,
    certificate: rustls_pki_types::CertificateDer<'static>,
) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut tls = connector.connect("localhost".try_into().unwrap(), socket).await.unwrap();
    tls.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).await.unwrap();
    answer
}
