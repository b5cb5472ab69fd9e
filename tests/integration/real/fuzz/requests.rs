//! Requests that are nearly valid: most have one or two errors, so that they pass the first check.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::messages;
use crate::support::Random;

const VALID_PATHS: [&str; 18] = [
    "/",
    "/v1/cities",
    "/v1/cities/fuzz-1",
    "/v1/cities/fuzz-2/history",
    "/v1/cities/fuzz-3/history",
    "/v1/cities/fuzz-4/history",
    "/v1/status",
    "/v1/readings",
    "/v1/subscribe",
    "/v1/ingest",
    "/v1/openapi.json",
    "/metrics",
    "/healthz",
    "/readyz",
    "/ui/app.js",
    "/echo",
    "/v1/nothing",
    "//evil",
];

const ODD_TARGETS: [&str; 27] = [
    "x",
    "*",
    "*x",
    "a:80",
    "?",
    "#",
    "?a=b",
    ":80",
    "u:p@h",
    "http://",
    "http:///",
    "http://?",
    "http://localhost",
    "http://localhost?limit=1",
    "http://localhost/v1/cities",
    "https://127.0.0.1:1/v1/status",
    "http://u@localhost/",
    "http://[::1]/healthz",
    "http://[::1/",
    "http://evil.example/",
    "ftp://localhost/",
    "localhost/healthz",
    "/../..",
    "/%",
    "/%00%ff%c0%af",
    "/v1/cities/%",
    "/v1/cities/%ff%fe/history",
];

const QUERY_PARAMETERS: [&str; 17] = [
    "limit=1",
    "limit=0",
    "limit=-1",
    "limit=99999999999999999999",
    "limit=%31",
    "order=heat_index",
    "category=danger",
    "country=US",
    "max_age=90m",
    "max_age=99999999999999999999",
    "max_age=-1",
    "from=2025-11-24T16:00:00Z",
    "to=9999-12-31T23:59:59Z",
    "from=2025-11-24T16:00:00Z&to=2025-11-24T15:00:00Z",
    "cursor=%ff",
    "cursor=abc",
    "a=b&&=&%=%",
];

const ODD_HOSTS: [&str; 11] = [
    "host: evil.example\r\n",
    "host: localhost\r\nhost: localhost\r\n",
    "host:\r\n",
    "",
    "host: [::1\r\n",
    "host: u@localhost\r\n",
    "host: localhost:99999\r\n",
    "host: b\u{fc}cher.example\r\n",
    "host: a, b\r\n",
    "hOsT: LOCALHOST:80\r\n",
    "host : localhost\r\n",
];

/// Of any request.
const ODD_HEADERS: [&str; 31] = [
    "accept-encoding: gzip, zstd",
    "accept-encoding: identity;q=0",
    "accept-encoding: *;q=0, ;q=x, gzip;q=2",
    "authorization: Bearer x",
    "authorization: Basic",
    "origin: null",
    "origin: http://localhost",
    "origin: https://evil.example",
    "if-none-match: *",
    "if-none-match: W/\"0\", \"",
    "content-type: application/json",
    "content-type: text/plain; charset=\"",
    "content-encoding: gzip",
    "expect: 100-continue",
    "expect: 200-maybe",
    "connection: keep-alive, upgrade",
    "connection: close",
    "upgrade: websocket",
    "upgrade: h2c, websocket",
    "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA",
    "sec-websocket-version: 13",
    "sec-websocket-version: 8",
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    "sec-websocket-protocol: swelter.v1, bearer.x",
    "access-control-request-method: POST",
    "range: bytes=0-1,5-",
    "transfer-encoding: gzip, chunked",
    "transfer-encoding: identity",
    "content-length: 0",
    "x: \u{1}\u{7f}",
    " folded: x",
];

/// Appends one request.
pub fn push_request(random: &mut Random, out: &mut Vec<u8>) {
    let mut request = Vec::new();
    let method = random.pick_mostly(
        &["GET", "GET", "GET", "POST", "POST", "HEAD", "OPTIONS"],
        12,
        &[
            "CONNECT",
            "TRACE",
            "PUT",
            "DELETE",
            "get",
            "PRI",
            "B\u{e4}D",
            "",
            "A B",
            "GETGETGETGETGETGETGETGET",
        ],
    );
    request.extend_from_slice(method.as_bytes());
    request.push(b' ');
    push_target(random, method == "POST", &mut request);
    let version = random.pick_mostly(
        &["HTTP/1.1"],
        8,
        &["HTTP/1.0", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "HTTP/9.9", "http/1.1", "", "X"],
    );
    request.extend_from_slice(format!(" {version}\r\n").as_bytes());
    let host = random.pick_mostly(&["host: localhost\r\n", "Host: 127.0.0.1:8080\r\n"], 8, &ODD_HOSTS);
    request.extend_from_slice(host.as_bytes());
    for _ in 0..random.index(4) {
        request.extend_from_slice(random.pick(&ODD_HEADERS).as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    if random.percent(1) {
        let many = random.within(90..200);
        (0..many).for_each(|n| request.extend_from_slice(format!("x-{n}: {n}\r\n").as_bytes()));
    }
    if random.percent(1) {
        let long = "a".repeat(random.within(1..40_000));
        request.extend_from_slice(format!("x: {long}\r\n").as_bytes());
    }
    if method == "POST" || random.percent(3) {
        push_body(random, &mut request);
    } else {
        request.extend_from_slice(b"\r\n");
    }
    if random.percent(8) {
        random.mutate(&mut request);
    }
    out.extend_from_slice(&request);
}

fn push_target(random: &mut Random, posts: bool, out: &mut Vec<u8>) {
    if random.percent(12) {
        return out.extend_from_slice(random.pick(&ODD_TARGETS).as_bytes());
    }
    let path = if posts && random.percent(85) { "/v1/readings" } else { random.pick(&VALID_PATHS) };
    let start = out.len();
    out.extend_from_slice(path.as_bytes());
    if path.ends_with("/history") && random.percent(70) {
        push_range(random, out);
    } else if random.percent(15) {
        out.push(b'?');
        out.extend_from_slice(random.pick(&QUERY_PARAMETERS).as_bytes());
    }
    if random.percent(6) {
        let mut target = out.split_off(start);
        random.mutate(&mut target);
        out.extend(target);
    }
}

const TIME_VALUES: [&str; 10] = [
    "2025-11-24T16:00:00Z",
    "2025-11-24T16:05:00.001Z",
    "2025-11-24T16:09:00Z",
    "2025-11-23T15:59:59.999Z",
    "-009999-01-02T01:59:59Z",
    "-009999-01-01T00:00:00Z",
    "0000-01-01T00:00:00Z",
    "9999-12-30T22:00:00Z",
    "9999-12-31T23:59:59.999Z",
    "2025-11-24T16:05:00%2B23:59",
];

/// Of a history, the other way round too, and behind cursors of any time.
fn push_range(random: &mut Random, out: &mut Vec<u8>) {
    let (from, to, limit) =
        (random.pick(&TIME_VALUES), random.pick(&TIME_VALUES), random.pick(&["0", "1", "2", "1000"]));
    out.extend_from_slice(format!("?from={from}&to={to}&limit={limit}").as_bytes());
    if random.percent(40) {
        let near = 1_764_000_000_000_i64 + random.index(1_000_000) as i64;
        let millis = if random.percent(50) { near } else { (random.next() as i64) >> random.index(60) };
        let cursor = [&[1_u8][..], &millis.to_be_bytes()].concat();
        out.extend_from_slice(format!("&cursor={}", BASE64_URL_SAFE_NO_PAD.encode(cursor)).as_bytes());
    }
}

/// The headers of a body, the blank line and the body.
fn push_body(random: &mut Random, out: &mut Vec<u8>) {
    let lines = random.percent(20);
    let kind = match lines {
        true => "application/x-ndjson",
        false => random.pick_mostly(
            &["application/json"],
            6,
            &["text/csv", "", "application/json; charset=utf-16"],
        ),
    };
    let body = match random.index(20) {
        0 => random.random_bytes(300),
        1 => b"[".repeat(random.index(5_000)),
        2 => b" ".repeat(random.index(150_000)),
        _ => messages::random_readings(random, lines),
    };
    out.extend_from_slice(format!("content-type: {kind}\r\n").as_bytes());
    if random.percent(30) {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        if random.percent(5) {
            out.extend_from_slice(b"content-length: 3\r\n");
        }
        out.extend_from_slice(b"\r\n");
        return push_chunks(random, &body, out);
    }
    let length = body.len().to_string();
    let odd =
        ["-1", "0", "1", "99999999999999999999", "18446744073709551615", "0x10", "+5", "5, 5", "", "70000"];
    let given = random.pick_mostly(&[&length], 4, &odd);
    out.extend_from_slice(format!("content-length: {given}\r\n").as_bytes());
    if random.percent(2) {
        out.extend_from_slice(format!("content-length: {}\r\n", body.len() + 1).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&body);
}

fn push_chunks(random: &mut Random, body: &[u8], out: &mut Vec<u8>) {
    let mut rest = body;
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(random.within(1..rest.len().min(4096) + 1));
        rest = after;
        let size = match random.percent(1) {
            true => random.pick(&["ffffffffffffffffff", "-1", "zz", "", "7fffffffffffffff"]).to_string(),
            false => format!("{:x}", chunk.len()),
        };
        out.extend_from_slice(size.as_bytes());
        if random.percent(3) {
            let most = if random.percent(5) { 30_000 } else { 50 };
            let long = random.index(most);
            out.extend_from_slice(format!(";x={}", "y".repeat(long)).as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    if random.percent(95) {
        out.extend_from_slice(b"0\r\n");
        if random.percent(4) {
            let trailers = random.within(1..60);
            (0..trailers).for_each(|n| out.extend_from_slice(format!("t-{n}: {n}\r\n").as_bytes()));
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// A WebSocket handshake, right but for some of a hundred.
pub fn push_handshake(random: &mut Random, path: &str, out: &mut Vec<u8>) {
    let version = random.pick_mostly(&["HTTP/1.1"], 1, &["HTTP/1.0", "HTTP/2.0"]);
    let connection =
        random.pick_mostly(&["Upgrade", "keep-alive, upgrade"], 2, &["close", "", "upgrade, close"]);
    let upgrade =
        random.pick_mostly(&["websocket", "WebSocket"], 2, &["h2c", "websocket, h2c", "websocket/13", ""]);
    let number = random.pick_mostly(&["13"], 2, &["8", "12", "013", "13, 8", "-1", ""]);
    let key = random.pick_mostly(
        &["dGhlIHNhbXBsZSBub25jZQ=="],
        2,
        &["", "x", "dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-key: y"],
    );
    let mut head = format!(
        "GET {path} {version}\r\nhost: localhost\r\nconnection: {connection}\r\nupgrade: {upgrade}\r\n\
         sec-websocket-version: {number}\r\nsec-websocket-key: {key}\r\n"
    );
    if random.percent(5) {
        head += random.pick(&[
            "sec-websocket-protocol: swelter.v1\r\n",
            "sec-websocket-extensions: permessage-deflate; client_max_window_bits=99\r\n",
            "content-length: 10\r\n",
            "transfer-encoding: chunked\r\n",
            "origin: null\r\n",
        ]);
    }
    let mut head = (head + "\r\n").into_bytes();
    if random.percent(2) {
        random.mutate(&mut head);
    }
    out.extend(head);
}
