//! Errors, close codes, tokens and heartbeats.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::client::{Stream, next_json, send_json};
use super::*;
use crate::model::clock::wall_clock_ms;
use crate::serve::view::{CityFilter, QueryError};
use crate::serve::ws::selection::{CitySelection, ResumeTokens, Selection, SubscriptionKind};

/// Reads up to the close frame without answering pings; returns the code.
async fn close_code(mut stream: Stream) -> Option<u16> {
    let raw = stream.get_mut();
    loop {
        let kind = raw.read_u8().await.ok()?;
        let length = match raw.read_u8().await.ok()? {
            126 => raw.read_u16().await.ok()?.into(),
            127 => raw.read_u64().await.ok()?,
            length => length.into(),
        };
        if kind == 0x88 {
            return raw.read_u16().await.ok();
        }
        tokio::io::copy(&mut raw.take(length), &mut tokio::io::sink()).await.ok()?;
    }
}

async fn send_and_receive(stream: &mut Stream, message: &Value) -> Value {
    send_json(stream, message).await;
    next_answer(stream).await
}

/// The next message that answers a request.
async fn next_answer(stream: &mut Stream) -> Value {
    loop {
        let answer = next_json(stream).await.unwrap();
        if !matches!(answer["type"].as_str(), Some("heartbeat" | "hello" | "changes")) {
            return answer;
        }
    }
}

#[test]
fn hello_announces_protocol_and_limits() {
    run(async {
        let service = SessionTestServer::start(1, limits()).await;
        let mut hello = next_json(&mut connect(service.address).await).await.unwrap();
        let now = hello["now"].take().as_u64().unwrap();
        assert!(now.abs_diff(wall_clock_ms()) < 60_000, "{now}");
        let limits = json!({"message_bytes": 4096, "messages_per_s": 100_000, "subscriptions": 8, "cities": 20, "window_cities": 10});
        assert_eq!(
            hello,
            json!({"type": "hello", "protocol": 1, "generation": "1-abc", "formula": "rothfusz", "window_s": 86400, "stale_after_s": 3_153_600_000u64,
                "units": "fahrenheit", "wind_units": "mph", "now": null,
                "heartbeat_s": 1, "limits": limits})
        );
    });
}

#[test]
fn request_errors_have_codes_and_keep_session() {
    run(async {
        let service = SessionTestServer::start(1, ServeLimits { subscriptions: 2, ..limits() }).await;
        service.step().await;
        let mut stream = connect(service.address).await;
        let many: Vec<_> = (0..21).map(|n| n.to_string()).collect();
        let subscribe = |rest: Value| {
            let mut message = json!({"type": "subscribe", "id": "b"});
            message.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            message
        };
        let first =
            send_and_receive(&mut stream, &json!({"type": "subscribe", "id": "a", "cities": "all"})).await;
        assert_eq!(first["type"], "snapshot");
        for (message, code) in [
            (json!(1), "bad_message"),
            (json!({"type": "subscribe"}), "bad_message"),
            (json!({"type": "subscribe", "id": "x".repeat(65)}), "bad_message"),
            (json!({"type": "nonsense"}), "bad_message"),
            (json!({"type": "subscribe", "id": "a", "cities": "all"}), "duplicate_id"),
            (json!({"type": "unsubscribe", "id": "b"}), "unknown_id"),
            (subscribe(json!({})), "bad_subscription"),
            (subscribe(json!({"cities": "some"})), "bad_subscription"),
            (subscribe(json!({"cities": []})), "bad_subscription"),
            (subscribe(json!({"cities": [7]})), "bad_subscription"),
            (subscribe(json!({"cities": ["a\nb"]})), "bad_subscription"),
            (subscribe(json!({"cities": "all", "box": [0, 0, 1, 1]})), "bad_subscription"),
            (subscribe(json!({"box": [0, 1, 1, 0]})), "bad_subscription"),
            (subscribe(json!({"box": [0, 0, 181, 0]})), "bad_subscription"),
            (subscribe(json!({"box": [0, 0, 1]})), "bad_subscription"),
            (subscribe(json!({"cities": "all", "rows": "window"})), "bad_subscription"),
            (subscribe(json!({"cities": "all", "rows": 1})), "bad_subscription"),
            (subscribe(json!({"cities": many})), "too_many_cities"),
            (subscribe(json!({"cities": many[..11], "rows": "window"})), "too_many_cities"),
        ] {
            let answer = send_and_receive(&mut stream, &message).await;
            assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!(code)), "{message}");
        }
        service.world.full.store(true, Ordering::Relaxed);
        let busy =
            send_and_receive(&mut stream, &subscribe(json!({"cities": ["x"], "rows": "window"}))).await;
        assert_eq!((&busy["code"], &busy["id"]), (&json!("busy"), &json!("b")));
        let second = send_and_receive(&mut stream, &subscribe(json!({"cities": ["x"]}))).await;
        assert_eq!(second["type"], "snapshot");
        let third = json!({"type": "subscribe", "id": "c", "cities": ["x"]});
        assert_eq!(send_and_receive(&mut stream, &third).await["code"], "too_many_subscriptions");
        let ended = send_and_receive(&mut stream, &json!({"type": "unsubscribe", "id": "b"})).await;
        assert_eq!(ended, json!({"type": "unsubscribed", "id": "b"}));
        assert_eq!(send_and_receive(&mut stream, &third).await["type"], "snapshot");
    });
}

#[test]
fn protocol_violations_close_session_with_code() {
    run(async {
        let service = SessionTestServer::start(1, ServeLimits { messages_per_second: 20, ..limits() }).await;
        for (message, code) in [(Message::binary(vec![1]), 1003), (Message::text("x".repeat(5000)), 1009)] {
            let mut stream = connect(service.address).await;
            stream.send(message).await.unwrap();
            assert_eq!(close_code(stream).await, Some(code));
        }
        // Masked with zeros: text that is not UTF-8, a reserved code, and a frame that is not
        // masked.
        let frames: [(&[u8], u16); 3] = [
            (&[0x81, 0x81, 0, 0, 0, 0, 0xff], 1007),
            (&[0x83, 0x80, 0, 0, 0, 0], 1002),
            (&[0x81, 0x01, b'x'], 1002),
        ];
        for (frame, code) in frames {
            let mut stream = connect(service.address).await;
            stream.get_mut().write_all(frame).await.unwrap();
            assert_eq!(close_code(stream).await, Some(code), "{frame:?}");
        }
        let mut stream = connect(service.address).await;
        for _ in 0..30 {
            // The session may have ended already.
            let _ = stream.send(Message::text("{\"type\":\"ping\"}")).await;
        }
        assert_eq!(close_code(stream).await, Some(1008));
        wait_until(|| service.sessions.session_count() == 0).await;
    });
}

#[test]
fn heartbeats_are_sent_and_silent_client_is_closed() {
    run(async {
        let service =
            SessionTestServer::start(1, ServeLimits { heartbeat: Duration::from_millis(50), ..limits() })
                .await;
        service.step().await;
        let mut stream = connect(service.address).await;
        wait_until(|| service.view.as_of() == service.world.now()).await;
        let mut newest = 0;
        while newest < service.world.now() {
            let message = next_json(&mut stream).await.unwrap();
            newest = message["as_of"].as_u64().unwrap_or(0);
            let now = message["now"].as_u64().unwrap();
            assert!(now.abs_diff(wall_clock_ms()) < 60_000, "{message}");
        }
        assert_eq!(service.sessions.session_count(), 1);
        // From here on pings are not answered.
        assert_eq!(close_code(stream).await, Some(4408));
    });
}

#[test]
fn client_that_reads_nothing_is_closed_with_reason() {
    run(async {
        let limits = ServeLimits { send_time: Duration::from_millis(100), ..limits() };
        let service = SessionTestServer::start(1, limits).await;
        service.step().await;
        let mut stream = connect(service.address).await;
        send_json(&mut stream, &json!({"type": "subscribe", "id": "a", "cities": "all"})).await;
        wait_until(|| service.sessions.subscription_count() == 1).await;
        let flood = async {
            while service.sessions.subscription_count() == 1 {
                service.step().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), flood).await.unwrap();
        assert_eq!(close_code(stream).await, Some(4413));
    });
}

#[test]
fn service_stop_closes_all_sessions() {
    run(async {
        let service = SessionTestServer::start(1, limits()).await;
        let streams = [connect(service.address).await, connect(service.address).await];
        wait_until(|| service.sessions.session_count() == 2).await;
        let closing = tokio::spawn({
            let sessions = service.sessions.clone();
            async move { sessions.close_all_sessions().await }
        });
        for stream in streams {
            assert_eq!(close_code(stream).await, Some(1001));
        }
        closing.await.unwrap();
        assert_eq!(service.sessions.session_count(), 0);
    });
}

#[test]
fn mismatched_tokens_are_answered_with_reset() {
    run(async {
        let service = SessionTestServer::start(1, limits()).await;
        service.step().await;
        wait_until(|| service.view.as_of() == service.world.now()).await;
        let token = |generation: &str, epoch: u64, cities: CitySelection| {
            let mut token = Vec::new();
            let digest = Selection::new(cities, SubscriptionKind::Latest, Default::default()).digest();
            ResumeTokens::new(generation).push_token(&mut token, epoch, digest);
            String::from_utf8(token).unwrap()
        };
        let now = service.world.now();
        let other = CitySelection::Listed(Box::new(["x".into()]));
        for (token, reason) in [
            (json!("x"), "malformed"),
            (json!(7), "malformed"),
            (json!(token("1-abc", now + 1, CitySelection::All)), "malformed"),
            (json!(token("0-abc", now, CitySelection::All)), "generation"),
            (json!(token("1-abc", now, other)), "subscription"),
            (json!(token("1-abc", 0, CitySelection::All)), ""),
        ] {
            let mut stream = connect(service.address).await;
            let subscribe = json!({"type": "subscribe", "id": "a", "cities": "all", "resume": token});
            send_json(&mut stream, &subscribe).await;
            next_json(&mut stream).await.unwrap();
            let first = next_json(&mut stream).await.unwrap();
            if reason.is_empty() {
                assert_eq!(first["type"], "changes");
                continue;
            }
            assert_eq!(first, json!({"type": "reset", "id": "a", "reason": reason}));
            assert_eq!(next_json(&mut stream).await.unwrap()["type"], "snapshot");
        }
    });
}

#[test]
fn session_future_is_small() {
    run(async {
        let service = SessionTestServer::start(1, limits()).await;
        let stream = TcpStream::connect(service.address).await.unwrap();
        let stream = MeteredStream::new(stream, 0, service.sessions.unfinished_quota());
        let stream = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        let session = service.sessions.serve_session(stream);
        let bytes = size_of_val(&session);
        assert!(bytes < 6 * 1024, "{bytes} bytes");
    });
}

fn window(id: &str, cities: &[&str]) -> Value {
    json!({"type": "subscribe", "id": id, "cities": cities, "rows": "window"})
}

#[test]
fn window_snapshots_of_a_session_are_sequential() {
    run(async {
        let service = SessionTestServer::start(1, limits()).await;
        service.world.whole.store(true, Ordering::Relaxed);
        service.step().await;
        let mut stream = connect(service.address).await;
        for (id, city) in [("a", "x"), ("b", "京都"), ("c", "nowhere"), ("d", "x")] {
            send_json(&mut stream, &window(id, &[city])).await;
        }
        // The snapshot of a subscription that has ended is not queried.
        let ended = send_and_receive(&mut stream, &json!({"type": "unsubscribe", "id": "c"})).await;
        assert_eq!(ended["type"], "unsubscribed");
        for id in ["a", "b", "d"] {
            wait_until(|| service.world.pending_query_count() > 0).await;
            assert_eq!(service.world.pending_query_count(), 1);
            service.step().await;
            let snapshot = next_answer(&mut stream).await;
            assert_eq!((&snapshot["type"], &snapshot["id"]), (&json!("snapshot"), &json!(id)));
        }
    });
}

#[test]
fn large_snapshots_leave_budget_for_small_ones() {
    run(async {
        let service = SessionTestServer::start(1, limits()).await;
        service.step().await;
        wait_until(|| service.view.as_of() == service.world.now()).await;
        let many = vec![Arc::from("x"); 4_000_000];
        let permit = service.view.acquire_latest_permit(&CityFilter::Listed(&many)).await.unwrap();
        assert_eq!(
            service.view.acquire_latest_permit(&CityFilter::Listed(&many)).await.err(),
            Some(QueryError::TooManySnapshots)
        );
        let mut stream = connect(service.address).await;
        let subscribe = json!({"type": "subscribe", "id": "a", "cities": "all"});
        // Small snapshots have a budget of their own, and rows of a window are granted one after
        // the other.
        assert_eq!(send_and_receive(&mut stream, &subscribe).await["type"], "snapshot");
        service.world.whole.store(true, Ordering::Relaxed);
        send_json(&mut stream, &window("b", &["x"])).await;
        wait_until(|| service.world.pending_query_count() > 0).await;
        service.step().await;
        assert_eq!(next_answer(&mut stream).await["type"], "snapshot");
        drop(permit);
        assert!(service.view.acquire_latest_permit(&CityFilter::Listed(&many)).await.is_ok());
    });
}

#[test]
fn watched_cities_per_session_are_limited() {
    run(async {
        let limits = ServeLimits { message_bytes: 1 << 20, cities: 6_000, window_cities: 6_000, ..limits() };
        let service = SessionTestServer::start(1, limits).await;
        let mut stream = connect(service.address).await;
        let cities: Vec<_> = (0..6_000).map(|n| n.to_string()).collect();
        let cities: Vec<_> = cities.iter().map(String::as_str).collect();
        send_json(&mut stream, &window("a", &cities)).await;
        assert_eq!(send_and_receive(&mut stream, &window("b", &cities)).await["code"], "too_many_cities");
        send_json(&mut stream, &window("b", &cities[..4_000])).await;
        assert_eq!(send_and_receive(&mut stream, &json!({"type": "ping"})).await["type"], "pong");
    });
}

#[test]
fn unknown_city_names_are_bounded_per_session_and_in_total() {
    run(async {
        // Pings are not answered here.
        let heartbeat = Duration::from_secs(60);
        let limits = ServeLimits {
            message_bytes: 1 << 20,
            cities: 20_000,
            subscriptions: 1000,
            heartbeat,
            ..limits()
        };
        let service = SessionTestServer::start(1, limits.clone()).await;
        service.step().await;
        let names = |session: usize| -> Vec<String> {
            (0..7_000).map(|n| format!("nobody lives in {session} {n} {:64}", "")).collect()
        };
        let (mut refused, mut busy) = (0, 0);
        let mut streams = Vec::new();
        for session in 0..110 {
            let mut stream = connect(service.address).await;
            let cities = names(session);
            for id in 0..3 {
                let subscribe = json!({"type": "subscribe", "id": id.to_string(), "cities": cities});
                let answer = send_and_receive(&mut stream, &subscribe).await;
                match answer["code"].as_str() {
                    Some("too_many_cities") => refused += 1,
                    Some("busy") => busy += 1,
                    _ => assert_eq!(answer["type"], "snapshot"),
                }
            }
            streams.push(stream);
        }
        assert!(refused > 0 && busy > 0, "{refused} refused, {busy} busy");
        let mut healthy = connect(service.address).await;
        let subscribe = json!({"type": "subscribe", "id": "a", "cities": ["x", "y", "z"]});
        assert_eq!(send_and_receive(&mut healthy, &subscribe).await["type"], "snapshot");
        drop(streams);
        wait_until(|| service.sessions.session_count() == 1).await;
        let mut stream = connect(service.address).await;
        let subscribe = json!({"type": "subscribe", "id": "a", "cities": names(0)});
        assert_eq!(
            send_and_receive(&mut stream, &subscribe).await["type"],
            "snapshot",
            "all names are released"
        );
    });
}

#[test]
fn unfinished_messages_are_bounded_in_total() {
    run(async {
        // Pings are not answered here.
        let heartbeat = Duration::from_secs(60);
        let limits = ServeLimits { message_bytes: 4 << 20, heartbeat, ..limits() };
        let service = SessionTestServer::start(1, limits).await;
        let unfinished = service.sessions.unfinished_quota().clone();
        let mut streams = Vec::new();
        let mut closed = false;
        while !closed {
            let mut stream = connect(service.address).await;
            // A frame of 4 MiB, without its last byte.
            let mut frame = vec![0x81, 0xff, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0];
            frame.resize(frame.len() + (4 << 20) - 1, b' ');
            let before = unfinished.used_bytes();
            closed = stream.get_mut().write_all(&frame).await.is_err();
            // The kernel may take all of a frame that the server refuses, so a write alone tells nothing.
            while !closed && unfinished.used_bytes() < before + (3 << 20) {
                let next = tokio::time::timeout(Duration::from_millis(5), stream.next()).await;
                closed = matches!(next, Ok(None | Some(Err(_) | Ok(Message::Close(_)))));
            }
            streams.push(stream);
            assert!(unfinished.used_bytes() <= 64 << 20 && streams.len() < 40);
        }
        let mut healthy = connect(service.address).await;
        assert_eq!(send_and_receive(&mut healthy, &json!({"type": "ping"})).await["type"], "pong");
        drop(streams);
        wait_until(|| unfinished.used_bytes() == 0).await;
    });
}
