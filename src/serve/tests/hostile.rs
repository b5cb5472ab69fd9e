//! Clients that are slow, send invalid bytes, or are too many: each gets a response or is
//! disconnected in time, and the server keeps serving others.

use super::*;
use crate::model::CurrentRowUpdate;

const SHORT: Duration = Duration::from_millis(100);

fn service_with_short_timeouts() -> TestServer {
    let limits =
        ServeLimits { header_time: SHORT, body_time: SHORT, idle_time: SHORT, send_time: SHORT, ..limits() };
    TestServer::start_ready(ServePlan { limits, ..plan() })
}

/// Writes slowly until the server ends the connection; returns what it sent.
fn write_slowly(socket: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    let started = Instant::now();
    let mut received = Vec::new();
    let mut space = [0; 4096];
    socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    for byte in bytes.iter().cycle() {
        assert!(started.elapsed() < TEST_DEADLINE, "the server does not end the connection");
        if socket.write_all(&[*byte]).is_err() {
            break;
        }
        match socket.read(&mut space) {
            Ok(0) => break,
            Ok(read) => received.extend_from_slice(&space[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    received
}

fn read_to_end(mut socket: TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    if let Err(error) = socket.read_to_end(&mut rest) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the server does not end the connection");
    }
    rest
}

#[test]
fn slow_headers_and_idle_connections_time_out() {
    let service = service_with_short_timeouts();
    write_slowly(&mut service.connect(), b"GET / HTTP/1.1\r\nx: ");
    assert!(read_to_end(service.connect()).is_empty());
    let mut begun = service.connect();
    begun.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /hea").unwrap();
    assert_eq!(HttpReply::parse(&read_to_end(begun)).status, 200);
    let mut idle = service.connect();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert_eq!(HttpReply::parse(&read_to_end(idle)).status, 200);
    service.wait_for_idle();
}

#[test]
fn slow_body_is_answered_408() {
    let service = service_with_short_timeouts();
    let head = "POST /v1/readings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    for framing in ["content-length: 100000\r\n\r\n", "transfer-encoding: chunked\r\n\r\n1\r\n[\r\n"] {
        let mut socket = service.connect();
        socket.write_all(format!("{head}{framing}").as_bytes()).unwrap();
        let reply = HttpReply::parse(&read_to_end(socket));
        assert_eq!((reply.status, &*reply.code()), (408, "body_too_slow"));
    }
    let mut socket = service.connect();
    socket.write_all(format!("{head}content-length: 100000\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(HttpReply::parse(&write_slowly(&mut socket, b" ")).status, 408);
    service.wait_for_idle();
}

#[test]
fn client_that_reads_no_response_is_dropped() {
    let service = service_with_short_timeouts();
    let row = cities()[0].row;
    let many = (0..20_000)
        .map(|number| CurrentRowUpdate { epoch: 0, city: Arc::from(format!("city {number}")), row })
        .collect();
    service.dataflow.publish(ViewUpdate { current_rows: many, ..ViewUpdate::default() });
    service.poll_until("/v1/status", |reply| reply.json()["cities"] == 20_004);
    let mut socket = service.connect();
    for _ in 0..20 {
        let _ = socket.write_all(b"GET /v1/cities HTTP/1.1\r\nhost: localhost\r\n\r\n");
    }
    service.wait_for_idle();
    assert_eq!(service.get("/v1/cities").json()["cities"].as_array().unwrap().len(), 20_004);
    drop(socket);
}

#[test]
fn invalid_or_oversized_http_is_refused() {
    let service = TestServer::start_ready(plan());
    let long = "x".repeat(100_000);
    let headers: String = (0..500).map(|number| format!("x-{number}: y\r\n")).collect();
    let chunked = "POST /v1/readings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    for request in [
        format!("GET /{long} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n"),
        "GET / HTTP/9.9\r\n\r\n".into(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
        "\u{0}\u{1}\u{2}\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nhost: localhost\r\nbad header\r\n\r\n".into(),
        "POST /v1/readings HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n".into(),
        "POST /v1/readings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n[]"
            .into(),
        format!("{chunked}zz\r\n[]\r\n0\r\n\r\n"),
        format!("{chunked}ffffffffffffffffff\r\n[]"),
        format!("{chunked}2\r\n[]xx"),
    ] {
        let mut socket = service.connect();
        let _ = socket.write_all(request.as_bytes());
        let _ = socket.shutdown(Shutdown::Write);
        let rest = read_to_end(socket);
        let status = HttpReply::parse(&rest).status;
        assert!(rest.is_empty() || (400..=431).contains(&status), "{request:.40}: {status}");
    }
    for path in [
        "*",
        "",
        "//%00",
        "/v1/cities/%00",
        "/v1/cities/%c3%28",
        "/%",
        "/?%ff=%ff",
        "http://localhost/healthz",
        "/v1/cities/..%2f..%2f",
    ] {
        let reply = service.send("GET", path, &[], b"");
        assert!(reply.status < 500, "{path}: {reply:?}");
    }
    assert_eq!(service.get("/healthz").status, 200);
}

/// The first bytes that a TLS client sends.
fn client_hello() -> Vec<u8> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let generated = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let client = runtime.spawn(sockets::https(address, generated.cert.der().clone()));
    let mut hello = vec![0; 16 * 1024];
    let read = listener.accept().unwrap().0.read(&mut hello).unwrap();
    client.abort();
    hello.truncate(read);
    hello
}

#[test]
fn invalid_tls_handshakes_do_not_affect_others() {
    let folder = tempfile::tempdir().unwrap();
    let files = TlsPlan { certificate: folder.path().join("cert.pem"), key: folder.path().join("key.pem") };
    let generated = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    std::fs::write(&files.certificate, generated.cert.pem()).unwrap();
    std::fs::write(&files.key, generated.signing_key.serialize_pem()).unwrap();
    let limits = ServeLimits { header_time: TEST_DEADLINE / 20, ..limits() };
    let service = TestServer::start(ServePlan { tls: Some(files), limits, ..plan() }, true);
    let hello = client_hello();
    assert!(hello.len() > 100 && hello[0] == 0x16, "{hello:?}");
    // Clients that send nothing, or a part of the handshake.
    let stalled: Vec<_> = (0..50)
        .map(|n| {
            let mut socket = service.connect();
            socket.write_all(&hello[..hello.len() * n / 50]).unwrap();
            socket
        })
        .collect();
    for round in 0..hello.len() {
        let mut socket = service.connect();
        let mut bytes = hello.clone();
        bytes[round] = bytes[round].wrapping_add(1 + (round % 255) as u8);
        let _ = socket.write_all(&bytes).and_then(|()| socket.shutdown(Shutdown::Write));
        read_to_end(socket);
    }
    stalled.into_iter().for_each(|socket| drop(read_to_end(socket)));
    let answer = service.runtime.block_on(sockets::https(service.address, generated.cert.der().clone()));
    assert_eq!(HttpReply::parse(&answer).status, 200);
}

#[test]
fn half_closed_and_reset_connections_are_released() {
    let service = TestServer::start_ready(plan());
    let requests: [&[u8]; 6] = [
        b"",
        b"G",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n",
        b"POST /v1/readings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n[",
        b"POST /v1/readings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n5\r\n[",
        b"GET /v1/subscribe HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x81",
    ];
    for round in 0..2_000 {
        let mut socket = service.connect();
        let request = requests[round % requests.len()];
        let _ = socket.write_all(request);
        match round % 3 {
            0 => drop(socket),
            1 => drop(socket.shutdown(Shutdown::Write)),
            _ => drop(socket.shutdown(Shutdown::Both)),
        }
    }
    service.wait_for_idle();
    assert!(service.log.bytes().is_empty());
}

#[test]
fn connections_beyond_limit_are_rejected() {
    let service =
        TestServer::start_ready(ServePlan { limits: ServeLimits { connections: 4, ..limits() }, ..plan() });
    service.wait_for_idle();
    let open: Vec<_> = (0..4)
        .map(|_| {
            let mut socket = service.connect();
            socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
            let mut space = [0; 1024];
            assert!(socket.read(&mut space).unwrap() > 0);
            socket
        })
        .collect();
    for _ in 0..10 {
        let reply = service.get("/healthz");
        assert_eq!(
            (reply.status, &*reply.code(), reply.header("retry-after")),
            (503, "overloaded", Some("1"))
        );
    }
    drop(open);
    service.poll_until("/healthz", |reply| reply.status == 200);
}
