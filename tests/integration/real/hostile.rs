//! Hostile clients of the built program. The service keeps serving, its memory stays small, and it
//! stops on request.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::support::prepared::{lock_machine, print_line};
use crate::support::{ServiceBuilder, ServiceProcess, WAIT_TIMEOUT, http, wait_for};

/// Small limits, so that they are reached soon.
const CONFIG: &str = "[serve]\necho = true\n[serve.limits]\nconnections = 600\nheader_time = \"2s\"\nbody_time = \"2s\"\n\
     idle_time = \"4s\"\nbody_bytes = \"1 MiB\"\nbodies_bytes = \"8 MiB\"\nheartbeat = \"1s\"\nsend_time = \"2s\"\n";
const MAX_CONNECTIONS: usize = 600;
/// The memory that the service may use beyond that at readiness: accepted connections with their
/// buffers, the bodies that are being read, and pages that the allocator retains.
const MAX_MEMORY_BYTES: u64 = 64 << 20;
/// From SIGTERM to the end while clients stay connected.
const CONNECTION_END_TIMEOUT: Duration = Duration::from_secs(10);

#[test]
fn hostile_clients_do_not_affect_others() {
    let _alone = lock_machine();
    allow_open_files();
    let mut service = ServiceBuilder::new(CONFIG).start().wait_until_ready();
    let at = service.address.parse().unwrap();
    let before = resident_bytes(&service);
    for (name, attack) in ATTACKS {
        attack(at);
        let answer = wait_for(name, || http::get(at, "/readyz").ok().filter(|answer| answer.status == 200));
        assert_eq!(answer.status, 200, "after {name}");
    }
    let reading =
        json!({"city": "x", "reading_at": "2025-11-24T16:00:00Z", "temperature": 90, "humidity": 50});
    service.wait_until_applied(&service.post(&reading));
    assert_eq!(service.get("/v1/cities/x").json()["current"]["temperature"], 90.0);
    let most = peak_resident_bytes(&service);
    print_line(&format!("hostile clients: {} MB resident before, {} MB at most", before >> 20, most >> 20));
    assert!(most < before + MAX_MEMORY_BYTES, "{before} bytes before, {most} at most");

    let held: Vec<_> = (0..MAX_CONNECTIONS / 2).map(|n| open_unfinished_client(at, n)).collect();
    let began = Instant::now();
    service.terminate_in_place();
    assert!(began.elapsed() < CONNECTION_END_TIMEOUT, "{:?}", began.elapsed());
    drop(held);
    let log = service.log();
    assert!(!log.contains("panic"), "{log}");
}

/// Raises the limit of open files above the connections of the test.
pub fn allow_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(8192, |most| most.min(8192));
    limit.current = limit.current.map(|current| current.max(wanted));
    setrlimit(Resource::Nofile, limit).unwrap();
}

type Attack = fn(SocketAddr);

const ATTACKS: [(&str, Attack); 11] = [
    ("headers that come byte by byte", slow_headers),
    ("bodies that come byte by byte", slow_bodies),
    ("connections without a request", silent_connections),
    ("more connections than there may be", many_connections),
    ("targets that are no path", bad_targets),
    ("requests that are none", random_bytes),
    ("huge heads", huge_heads),
    ("bodies that are huge, cut off or badly framed", bad_bodies),
    ("paths that lead out", path_traversal),
    ("bad percent-encodings", bad_encodings),
    ("WebSocket frames that are none", bad_frames),
];

/// Bytes of resident memory now.
pub(super) fn resident_bytes(service: &ServiceProcess) -> u64 {
    memory_field_bytes(service, "VmRSS:")
}

/// The same at most, since it started.
pub(super) fn peak_resident_bytes(service: &ServiceProcess) -> u64 {
    memory_field_bytes(service, "VmHWM:")
}

fn memory_field_bytes(service: &ServiceProcess, name: &str) -> u64 {
    let pid = service.pid().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Reads until the service closes the connection.
fn wait_until_closed(mut stream: TcpStream) {
    let until = Instant::now() + WAIT_TIMEOUT;
    let mut taken = [0; 4096];
    loop {
        match stream.read(&mut taken) {
            Ok(0) => return,
            Ok(_) => assert!(Instant::now() < until, "it goes on answering"),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                return;
            }
            Err(error) => panic!("the connection stays open: {error}"),
        }
    }
}

/// Sends one byte at a time to all connections until the service has closed each.
fn send_byte_by_byte(streams: Vec<TcpStream>, bytes: &[u8]) {
    let until = Instant::now() + WAIT_TIMEOUT;
    let mut open = streams;
    for byte in bytes.iter().cycle() {
        open.retain_mut(|stream| stream.write_all(&[*byte]).is_ok());
        if open.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "{} connections are still open", open.len());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn open_connections(at: SocketAddr, count: usize, begin: &str) -> Vec<TcpStream> {
    let connect = |_| {
        let mut stream = http::connect(at).unwrap();
        stream.write_all(begin.as_bytes()).unwrap();
        stream
    };
    (0..count).map(connect).collect()
}

fn slow_headers(at: SocketAddr) {
    send_byte_by_byte(open_connections(at, 200, "GET / HTTP/1.1\r\nhost: localhost\r\nx: "), b"a");
}

fn slow_bodies(at: SocketAddr) {
    let head = "POST /v1/readings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n[";
    send_byte_by_byte(open_connections(at, 200, head), b" ");
}

/// Connections that send nothing, and connections whose sending half is closed.
fn silent_connections(at: SocketAddr) {
    let silent = open_connections(at, 200, "");
    let half_closed = open_connections(at, 100, "");
    half_closed.iter().for_each(|stream| stream.shutdown(Shutdown::Write).unwrap());
    silent.into_iter().chain(half_closed).for_each(wait_until_closed);
}

/// Twice as many connections as the limit at once, and thousands that close at once.
fn many_connections(at: SocketAddr) {
    let held: Vec<_> = (0..2 * MAX_CONNECTIONS).filter_map(|_| TcpStream::connect(at).ok()).collect();
    drop(held);
    for _ in 0..5_000 {
        drop(TcpStream::connect(at));
    }
}

/// Sends bytes as they are. A response, if there is one, must not be a server error.
fn send_bytes(at: SocketAddr, bytes: &[u8]) -> Option<u16> {
    let status = http::send_raw(at, bytes).ok().map(|answer| answer.status);
    assert!(
        status.is_none_or(|status| status < 500),
        "{status:?} to {:?}",
        String::from_utf8_lossy(&bytes[..bytes.len().min(200)])
    );
    status
}

/// Targets are checked before host, origin and token: every client can send them.
fn bad_targets(at: SocketAddr) {
    for line in [
        "GET x HTTP/1.1",
        "GET a:80 HTTP/1.1",
        "GET *x HTTP/1.1",
        "GET * HTTP/1.1",
        "GET ? HTTP/1.1",
        "GET # HTTP/1.1",
        "GET u:p@h HTTP/1.1",
        "CONNECT a:80 HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "CONNECT http://a/ HTTP/1.1",
        "POST x HTTP/1.1",
        "OPTIONS x HTTP/1.1",
        "GET http:// HTTP/1.1",
        "GET http://[::1/ HTTP/1.1",
        "GET http://u@localhost/ HTTP/1.1",
        "GET ftp://localhost/ HTTP/1.1",
        "GET x HTTP/1.0",
        "GET / HTTP/1.0",
    ] {
        for host in ["", "host: localhost\r\n", "host: a\r\nhost: b\r\n"] {
            // Without a host `GET / HTTP/1.0` is bad too, and with one it is good.
            let expected = if line == "GET / HTTP/1.0" && host == "host: localhost\r\n" { 200 } else { 400 };
            assert_eq!(
                send_bytes(at, format!("{line}\r\n{host}\r\n").as_bytes()),
                Some(expected),
                "{line}, {host:?}"
            );
        }
    }
}

fn random_bytes(at: SocketAddr) {
    let mut noise = vec![0_u8; 10_000];
    let mut state = 1_u32;
    noise.iter_mut().for_each(|byte| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    });
    let thrown: [&[u8]; 8] = [
        &noise,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET http://\xff\xfe/ HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    ];
    for bytes in thrown {
        send_bytes(at, bytes);
    }
}

fn huge_heads(at: SocketAddr) {
    let long = "a".repeat(1 << 20);
    let many: String = (0..10_000).map(|n| format!("x-{n}: 1\r\n")).collect();
    for head in [
        format!("GET /{long} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"),
        format!("{long} / HTTP/1.1\r\n\r\n"),
    ] {
        let status = send_bytes(at, head.as_bytes());
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{status:?}");
    }
}

fn bad_bodies(at: SocketAddr) {
    const JSON: &str = "POST /v1/readings HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let sized = |length: &str, body: &str| format!("{JSON}content-length: {length}\r\n\r\n{body}");
    let chunked = |body: &str| format!("{JSON}transfer-encoding: chunked\r\n\r\n{body}");
    let whole = |body: &str| sized(&body.len().to_string(), body);
    let deep = "[".repeat(500_000);
    let refused = [
        (sized("10000000000", "["), 413),
        (whole(&" ".repeat(2 << 20)), 413),
        (chunked(&format!("200000\r\n{}\r\n0\r\n\r\n", " ".repeat(2 << 20))), 413),
        (whole(&deep), 400),
        (whole("{\"city\":"), 400),
        (whole("\u{0}\u{1}"), 400),
        (whole("{}"), 422),
        (whole("[1, null, true, \"x\", [], {\"city\": {}}]"), 422),
    ];
    for (request, expected) in refused {
        assert_eq!(
            send_bytes(at, request.as_bytes()),
            Some(expected),
            "{}",
            &request[..request.len().min(300)]
        );
    }
    for request in [
        chunked("ffffffffffffffffff\r\n"),
        chunked("-1\r\n"),
        chunked("zz\r\nhello\r\n"),
        sized("-5", "hello"),
        sized("99999999999999999999999999", "hello"),
    ] {
        send_bytes(at, request.as_bytes());
    }
    // Clients that disconnect in the middle of a body.
    for _ in 0..200 {
        drop(open_connections(at, 1, &sized("1000000", "[{\"city\":\"x\"")));
    }
}

fn path_traversal(at: SocketAddr) {
    for path in [
        "/ui/../../../../etc/passwd",
        "/ui/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/ui/..%2f..%2f..%2fetc%2fpasswd",
        "/ui/..%5c..%5cetc%5cpasswd",
        "/ui//etc/passwd",
        "/ui/%2fetc/passwd",
        "/ui/app.js%00.css",
        "/ui/....//....//etc/passwd",
        "/../../etc/passwd",
        "//etc/passwd",
        "/v1/cities/../../etc/passwd",
    ] {
        let answer = http::get(at, path).unwrap();
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
        assert!(!answer.body.contains("root:"), "{path}");
    }
}

fn bad_encodings(at: SocketAddr) {
    for path in [
        "/v1/cities/%",
        "/v1/cities/%2",
        "/v1/cities/%zz",
        "/v1/cities/%ff%fe",
        "/v1/cities/%00",
        "/v1/cities/%c0%af",
        "/v1/cities/%/history",
        "/v1/cities/x/history?from=%",
        "/v1/cities/x/history?cursor=%ff",
        "/v1/cities?limit=%31%",
        "/v1/cities?category=%00",
    ] {
        let answer = http::get(at, path).unwrap();
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
    }
}

const UPGRADE_HEADERS: &str = "HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n\
     sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// An upgraded connection, of which nothing has been read.
fn open_upgraded(at: SocketAddr, path: &str) -> TcpStream {
    open_connections(at, 1, &format!("GET {path} {UPGRADE_HEADERS}")).remove(0)
}

/// A frame with a mask of zeros.
fn masked_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first, 0x80 | 127];
    bytes.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

fn bad_frames(at: SocketAddr) {
    let mut too_many = Vec::new();
    (0..10_000).for_each(|_| too_many.extend(masked_frame(0x81, b"{\"type\":\"ping\"}")));
    let mut fragments = masked_frame(0x01, &[b'a'; 1000]);
    (0..1000).for_each(|_| fragments.extend(masked_frame(0x00, &[b'a'; 1000])));
    let thrown: [&[u8]; 10] = [
        b"\x81\x05hello",
        b"\xf1\x80\x00\x00\x00\x00",
        b"\x83\x80\x00\x00\x00\x00",
        b"\x80\x80\x00\x00\x00\x00",
        b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",
        b"\x81\xff\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00aaaaaaaa",
        b"\x88\x81\x00\x00\x00\x00a",
        b"\x81\x82\x00\x00\x00\x00\xff\xfe",
        &too_many,
        &fragments,
    ];
    for path in ["/v1/subscribe", "/v1/ingest"] {
        for bytes in thrown {
            let mut stream = open_upgraded(at, path);
            // The service may close the connection before it has read everything.
            let _ = stream.write_all(bytes);
            wait_until_closed(stream);
        }
        // Subscribers that never read, some of them cut off in a frame.
        let deaf: Vec<_> = (0..100).map(|_| open_upgraded(at, path)).collect();
        for mut stream in deaf {
            let _ = stream.write_all(b"\x81\xfe\x10\x00\x00\x00");
        }
    }
}

/// A client with an unfinished request or session.
fn open_unfinished_client(at: SocketAddr, n: usize) -> TcpStream {
    match n % 4 {
        0 => open_upgraded(at, "/v1/subscribe"),
        1 => open_upgraded(at, "/v1/ingest"),
        2 => open_connections(at, 1, "GET / HTTP/1.1\r\nhost: loc").remove(0),
        _ => open_connections(
            at,
            1,
            "POST /v1/readings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n[",
        )
        .remove(0),
    }
}
