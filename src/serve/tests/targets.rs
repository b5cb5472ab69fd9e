//! Targets and hosts of requests, as they come over a socket.

use warp::http::Method;

use super::*;
use crate::serve::routes::ROUTES;

/// The response to a request line and headers.
fn send_head(service: &TestServer, head: &str) -> HttpReply {
    let mut socket = service.connect();
    socket.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).unwrap();
    HttpReply::read(&mut socket)
}

fn status(service: &TestServer, head: &str) -> (u16, String) {
    let reply = send_head(service, head);
    let code = if reply.status < 400 { String::new() } else { reply.code() };
    (reply.status, code)
}

#[test]
fn authority_form_is_bad_request() {
    let service = TestServer::start_ready(plan());
    for line in [
        "GET x HTTP/1.1",
        "GET *x HTTP/1.1",
        "GET localhost:80 HTTP/1.1",
        "POST user@localhost HTTP/1.1",
        "GET x HTTP/1.0",
        "CONNECT a:80 HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "CONNECT http://localhost/ HTTP/1.1",
        "GET * HTTP/1.1",
        "HEAD * HTTP/1.0",
    ] {
        for host in ["host: localhost\r\n", "host: evil.example\r\n"] {
            let reply = send_head(&service, &format!("{line}\r\n{host}"));
            assert_eq!(reply.status, 400, "{line}");
            assert!(line.starts_with("HEAD") || reply.code() == "bad_request", "{line}");
        }
    }
    assert_eq!(service.get("/healthz").status, 200);
}

#[test]
fn absolute_form_is_served_for_its_host() {
    let service = TestServer::start_ready(plan());
    for (target, host, expected) in [
        ("http://localhost/healthz", "localhost", (200, "")),
        ("https://localhost:1/healthz", "evil.example", (200, "")),
        ("HTTP://127.0.0.1/healthz?", "a", (200, "")),
        ("http://evil.example/healthz", "localhost", (403, "foreign_host")),
        ("http://localhost.evil/healthz", "localhost", (403, "foreign_host")),
        ("http://u@localhost/healthz", "localhost", (400, "bad_request")),
        ("http://u:p@localhost/healthz", "localhost", (400, "bad_request")),
        ("ftp://localhost/healthz", "localhost", (400, "bad_request")),
        ("ws://localhost/healthz", "localhost", (400, "bad_request")),
        ("http://localhost//healthz", "localhost", (404, "not_found")),
        ("//evil/healthz", "localhost", (404, "not_found")),
        ("//localhost:80/healthz", "localhost", (404, "not_found")),
    ] {
        let received = status(&service, &format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n"));
        assert_eq!(received, (expected.0, expected.1.into()), "{target}");
    }
    let cities = send_head(&service, "GET http://localhost?limit=1 HTTP/1.1\r\nhost: x\r\n");
    assert_eq!((cities.status, cities.header("content-type")), (200, Some("text/html; charset=utf-8")));
    // A page of the host that the target names, and a page of the host that the header names.
    let post = "content-type: application/json\r\ncontent-length: 0\r\n";
    for (target, origin, foreign) in [
        ("http://localhost:7", "http://localhost:7", false),
        ("http://localhost:7", "http://localhost:8", true),
    ] {
        let head =
            format!("POST {target}/v1/readings HTTP/1.1\r\nhost: localhost:8\r\norigin: {origin}\r\n{post}");
        assert_eq!(status(&service, &head).1 == "foreign_origin", foreign, "{origin}");
    }
}

#[test]
fn absolute_form_needs_token() {
    let token = Token { secret: "reader".into(), read: true, ingest: false };
    let service = TestServer::start_ready(ServePlan { tokens: vec![token], ..plan() });
    let get = "GET http://localhost/v1/cities HTTP/1.1\r\nhost: localhost\r\n";
    assert_eq!(status(&service, get), (401, "unauthorized".into()));
    assert_eq!(status(&service, &format!("{get}authorization: Bearer reader\r\n")).0, 200);
}

#[test]
fn asterisk_form_is_only_for_options() {
    let service = TestServer::start_ready(plan());
    let reply = send_head(&service, "OPTIONS * HTTP/1.1\r\nhost: localhost\r\n");
    assert_eq!((reply.status, reply.header("allow")), (204, Some("GET, HEAD, POST, OPTIONS")));
    assert!(reply.body.is_empty());
    assert_eq!(status(&service, "OPTIONS * HTTP/1.1\r\nhost: evil.example\r\n").1, "foreign_host");
    assert_eq!(status(&service, "OPTIONS * HTTP/1.1\r\n").1, "bad_request");
    assert_eq!(status(&service, "OPTIONS http://localhost/* HTTP/1.1\r\nhost: localhost\r\n").1, "not_found");
}

#[test]
fn requests_need_exactly_one_host() {
    let service = TestServer::start_ready(plan());
    let bad = |head: &str| assert_eq!(status(&service, head), (400, "bad_request".into()), "{head}");
    for path in ["/", "/healthz", "/metrics", "http://localhost/"] {
        bad(&format!("GET {path} HTTP/1.1\r\n"));
        bad(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nHost: localhost\r\n"));
    }
    for host in
        ["", "local host", "localhost, evil", "u@localhost", "[::1", "localhost:x", "\u{fc}", "localhost/"]
    {
        bad(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n"));
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(status(&service, &format!("GET {path} HTTP/1.0\r\n")).0, 200, "{path}");
    }
    for path in ["/", "/v1/status", "/v1/cities", "/nothing"] {
        bad(&format!("GET {path} HTTP/1.0\r\n"));
    }
    assert_eq!(status(&service, "GET /v1/status HTTP/1.0\r\nhost: localhost\r\n").0, 200);
    assert_eq!(status(&service, "GET http://localhost/v1/status HTTP/1.0\r\n").0, 200);
}

#[test]
fn every_route_answers_its_path_alone() {
    let service = TestServer::start_ready(plan());
    let paths: BTreeMap<_, _> = ROUTES.iter().map(|route| (route.path, route)).collect();
    assert_eq!(paths.len(), ROUTES.len(), "a path has one route");
    for (path, route) in paths {
        let path = path.replace("{city}", "5128581").replace("{file}", "app.js");
        let other = if route.method == Method::GET { "POST" } else { "GET" };
        let reply = service.send(other, &path, &[], b"");
        let allowed = if other == "POST" { "GET, HEAD, OPTIONS" } else { "POST, OPTIONS" };
        assert_eq!((reply.status, reply.header("allow")), (405, Some(allowed)), "{path}");
        let label = format!("route=\"{}\",method=\"{other}\",status=\"4xx\"", route.path);
        assert!(service.get("/metrics").text().contains(&label), "{label}");
        for near in [format!("{path}/"), format!("/{path}"), format!("{path}%20x/y")] {
            assert_eq!(service.get(&near).code(), "not_found", "{near}");
        }
    }
}
