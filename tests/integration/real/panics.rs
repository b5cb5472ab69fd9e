//! Panics at named points of the built program: a panic in the state of one client ends that
//! client, any other ends the process.

use std::net::TcpStream;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use crate::support::{ServiceBuilder, ServiceProcess, http, wait_for};

/// A service that panics when it passes a point for the n-th time.
fn start_panicking_at(point: &str) -> ServiceProcess {
    ServiceBuilder::new("").env("SWELTER_PANIC_POINT", point).start().wait_until_ready()
}

fn open_session(service: &ServiceProcess, path: &str) -> WebSocket<TcpStream> {
    let stream = http::connect(&service.address).unwrap();
    client(format!("ws://{}{path}", service.address), stream).unwrap().0
}

fn send_message(socket: &mut WebSocket<TcpStream>, message: Value) {
    socket.send(Message::text(message.to_string())).unwrap();
}

/// The next message, or the code that closes the session.
fn next_message(socket: &mut WebSocket<TcpStream>) -> Result<Value, CloseCode> {
    loop {
        match socket.read().unwrap() {
            Message::Text(text) => return Ok(serde_json::from_str(&text).unwrap()),
            Message::Close(frame) => return Err(frame.unwrap().code),
            _ => {}
        }
    }
}

fn ping(socket: &mut WebSocket<TcpStream>) -> Result<Value, CloseCode> {
    send_message(socket, json!({"type": "ping"}));
    next_message(socket).map(|message| message["type"].clone())
}

fn caught_panics(service: &ServiceProcess, scope: &str) -> u64 {
    let text = service.get("/metrics").body;
    let name = format!("swelter_caught_panics_total{{where=\"{scope}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

/// The log names the place of the panic, once.
fn check_panic_logged_once(service: &ServiceProcess, scope: &str, place: &str) {
    let line = wait_for("the log says so", || {
        let log = service.log();
        let mut lines = log.lines().filter(|line| line.contains("panicked"));
        let line = lines.next()?.to_string();
        assert_eq!(lines.next(), None);
        Some(line)
    });
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["level"], &line["scope"]), (&"ERROR".into(), &scope.into()), "{line}");
    assert!(line["place"].as_str().unwrap().contains(place), "{line}");
}

/// Checks that the service has ended as by a panic in shared state.
fn check_ended_by_panic(mut service: ServiceProcess) {
    let status = service.wait_for_exit();
    assert_eq!(status.code(), Some(101), "{}", service.log());
    assert!(service.log().contains("a bug in swelter ended it"), "{}", service.log());
}

fn reading() -> Value {
    json!({"city": "x", "reading_at": "2025-11-24T16:00:00Z", "temperature": 90, "humidity": 50})
}

#[test]
fn request_panic_is_answered_500_and_others_continue() {
    let mut service = start_panicking_at("request:200");
    let mut subscriber = open_session(&service, "/v1/subscribe");
    assert_eq!(next_message(&mut subscriber).unwrap()["type"], "hello");
    let failed = (0..300).map(|_| service.get("/healthz")).filter(|answer| answer.status != 200);
    let failed: Vec<_> = failed.map(|answer| (answer.status, answer.json())).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].0, &failed[0].1["code"]), (500, &"internal_error".into()));
    assert_eq!(ping(&mut subscriber).unwrap(), "pong");
    service.wait_until_applied(&service.post(&reading()));
    assert_eq!(caught_panics(&service, "request"), 1);
    check_panic_logged_once(&service, "request", "context.rs:");
    drop(subscriber);
    service.send_terminate();
    assert_eq!(service.wait_for_exit().code(), Some(0));
}

#[test]
fn connection_panic_drops_it_and_others_continue() {
    let service = start_panicking_at("connection:200");
    let failed = (0..300).filter(|_| http::get(&service.address, "/healthz").is_err()).count();
    assert_eq!(failed, 1);
    assert_eq!(caught_panics(&service, "connection"), 1);
    check_panic_logged_once(&service, "connection", "server.rs:");
}

#[test]
fn session_panic_closes_with_1011_and_others_continue() {
    let service = start_panicking_at("session:3");
    let mut first = open_session(&service, "/v1/subscribe");
    let mut other = open_session(&service, "/v1/subscribe");
    for socket in [&mut first, &mut other] {
        assert_eq!(next_message(socket).unwrap()["type"], "hello");
        assert_eq!(ping(socket).unwrap(), "pong");
    }
    assert_eq!(ping(&mut first), Err(CloseCode::Error));
    assert_eq!(ping(&mut other).unwrap(), "pong");
    assert_eq!(caught_panics(&service, "session"), 1);
    check_panic_logged_once(&service, "session", "session.rs:");
    drop((first, other));
    // The session leaves nothing behind.
    wait_for("no session is open", || {
        let metrics = service.get("/metrics").body;
        metrics.lines().any(|line| line == "swelter_subscriber_sessions 0").then_some(())
    });
}

#[test]
fn ingest_session_panic_closes_with_1011() {
    let service = start_panicking_at("ingest_session:2");
    let mut socket = open_session(&service, "/v1/ingest");
    send_message(&mut socket, reading());
    assert_eq!(next_message(&mut socket).unwrap()["accepted"], 1);
    send_message(&mut socket, reading());
    assert_eq!(next_message(&mut socket), Err(CloseCode::Error));
    assert_eq!(caught_panics(&service, "session"), 1);
    service.wait_until_applied(&service.post(&reading()));
}

#[test]
fn session_panic_holding_view_lock_ends_process() {
    let service = start_panicking_at("view:1");
    let mut socket = open_session(&service, "/v1/subscribe");
    send_message(&mut socket, json!({"type": "subscribe", "id": "a", "cities": "all"}));
    check_ended_by_panic(service);
}

#[test]
fn request_panic_holding_view_lock_ends_process() {
    let service = start_panicking_at("view:1");
    assert!(http::get(&service.address, "/v1/cities").is_err());
    check_ended_by_panic(service);
}

#[test]
fn panic_in_journal_append_ends_process() {
    let service = start_panicking_at("append:1");
    assert!(http::post(&service.address, "application/json", &reading().to_string()).is_err());
    check_ended_by_panic(service);
}

#[test]
fn publisher_panic_ends_process() {
    let service = ServiceBuilder::new("").env("SWELTER_PANIC_POINT", "publisher:100").start();
    check_ended_by_panic(service);
}

fn dead_letters(service: &ServiceProcess) -> Vec<Value> {
    let text = std::fs::read_to_string(service.data_dir().join("dead-letters.jsonl")).unwrap_or_default();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.filter(|line: &Value| line["reason"].is_string()).collect()
}

#[test]
fn decoder_panic_refuses_posted_record() {
    let service = start_panicking_at("decode:3");
    let [mut other, mut third] = [reading(), reading()];
    (other["city"], third["city"]) = ("y".into(), "z".into());
    // The journal's reader decodes it again.
    service.wait_until_applied(&service.post(&reading()));
    let answer =
        http::post(&service.address, "application/json", &json!([other, third]).to_string()).unwrap();
    let answer: Value = answer.json();
    assert_eq!(answer["accepted"], 1, "{answer}");
    let refused = &answer["refused"][0];
    assert_eq!((&refused["index"], &refused["reason"]), (&0.into(), &"not_decodable".into()), "{answer}");
    assert!(refused["detail"].as_str().unwrap().contains("a bug of swelter"), "{answer}");
    service.wait_until_applied(answer["positions"].as_array().unwrap());
    assert_eq!(service.get("/v1/cities/z").status, 200);
    assert_eq!(caught_panics(&service, "record"), 1);
    check_panic_logged_once(&service, "record", "guard.rs:");
}

#[test]
fn decoder_panic_makes_log_record_a_dead_letter() {
    let mut service = start_panicking_at("decode:2");
    service.wait_until_applied(&service.post(&reading()));
    let mut other = reading();
    other["city"] = "y".into();
    service.wait_until_applied(&service.post(&other));
    assert_eq!(service.get("/v1/cities/x").status, 404);
    assert_eq!(service.get("/v1/cities/y").status, 200);
    let letter = wait_for("a dead letter", || dead_letters(&service).pop());
    assert_eq!((&letter["reason"], &letter["raw"]), (&"not_decodable".into(), &reading().to_string().into()));
    assert!(letter["detail"].as_str().unwrap().contains("a bug of swelter"), "{letter}");
    service.send_terminate();
    assert_eq!(service.wait_for_exit().code(), Some(0));
}
