//! `POST /v1/readings`.

use serde_json::json;

use super::*;
use crate::model::HoldCause;

const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";
const WITHDRAWAL: &str = r#"{ "city": "x", "reading_at": "2025-11-24T16:00:00.5+01:00", "deleted": true }"#;
const HOT: &str = r#"{"city":"x","reading_at":"2025-11-24T16:00:00Z","temperature":900,"humidity":1}"#;

#[test]
fn posted_records_reach_log_byte_for_byte() {
    let service = TestServer::start_ready(plan());
    let one = service.post("Application/JSON; charset=utf-8", format!("  {READING}\n").as_bytes());
    assert_eq!(one.status, 200);
    assert_eq!(
        one.json(),
        json!({"accepted": 1, "refused": [], "refused_count": 0,
               "positions": [{"source": "journal", "partition": 0, "first": 0, "end": 1}]})
    );
    let spread = READING.replace(",", " ,\n  ");
    let array = service.post(JSON, format!("[{READING},\n{spread} , {WITHDRAWAL}]").as_bytes());
    assert_eq!(array.json()["accepted"], 3);
    let lines = service.post(LINES, format!("{READING}\r\n\n  \n{WITHDRAWAL}").as_bytes());
    assert_eq!(lines.json()["accepted"], 2);
    assert_eq!(service.log.bytes(), [READING, READING, &spread, WITHDRAWAL, READING, WITHDRAWAL]);
    let cities = service.log.records.lock().iter().map(|record| record.city.clone()).collect::<Vec<_>>();
    assert_eq!(cities[2..4], [Some("5128581".into()), Some("x".into())]);
}

#[test]
fn refused_records_are_reported_and_others_accepted() {
    let service = TestServer::start_ready(plan());
    let mixed = service.post(JSON, format!("[{HOT},{READING},7,{{}}]").as_bytes());
    assert_eq!((mixed.status, &mixed.json()["accepted"]), (200, &json!(1)));
    let refusals = |reply: &HttpReply| {
        let refused = reply.json()["refused"].as_array().unwrap().clone();
        refused
            .iter()
            .map(|refusal| (refusal["index"].clone(), refusal["reason"].clone()))
            .collect::<Vec<_>>()
    };
    let expected =
        [(0, "out_of_range"), (2, "not_decodable"), (3, "missing_field")].map(|(i, r)| (json!(i), json!(r)));
    assert_eq!(refusals(&mixed), expected);
    let lines = service.post(LINES, &[b"{\n\xff\xfe\n", READING.as_bytes()].concat());
    assert_eq!(refusals(&lines), [(json!(0), json!("not_decodable")), (json!(1), json!("not_decodable"))]);

    let many = service.post(LINES, [HOT; 150].join("\n").as_bytes());
    assert_eq!((many.status, &*many.code()), (422, "none_accepted"));
    assert_eq!((refusals(&many).len(), &many.json()["refused_count"]), (100, &json!(150)));
    for (kind, body) in [(JSON, "[]"), (JSON, "7"), (LINES, "\n\n"), (LINES, ""), (LINES, "{")] {
        assert_eq!(service.post(kind, body.as_bytes()).code(), "none_accepted", "{body}");
    }
    assert_eq!(service.log.bytes(), [READING, READING]);
}

#[test]
fn non_json_body_or_content_type_is_refused() {
    let service = TestServer::start_ready(plan());
    for body in [
        "",
        "{",
        "[",
        "[1",
        "[1,]",
        "{}{}",
        "nope",
        "\u{feff}{}",
        &"[".repeat(100_000),
        "{\"a\":\"\\ud800\"}x",
        // The reading before the fault is not accepted either.
        &format!("[{READING},"),
        &format!("[{READING}]x"),
    ] {
        let reply = service.post(JSON, body.as_bytes());
        assert_eq!((reply.status, &*reply.code()), (400, "not_json"), "{:.20}", body);
    }
    assert_eq!(service.post(JSON, b"[\"\xff\"]").code(), "not_json");
    for kind in ["text/plain", "", "application/jsonp", "application/x-www-form-urlencoded"] {
        let reply = service.post(kind, READING.as_bytes());
        assert_eq!((reply.status, &*reply.code()), (415, "unsupported_media_type"), "{kind}");
    }
    for coding in ["br", "deflate", "gzip, gzip", "zstd, gzip"] {
        let headers = [("content-type", JSON), ("content-encoding", coding)];
        let reply = service.send("POST", "/v1/readings", &headers, READING.as_bytes());
        assert_eq!((reply.status, &*reply.code()), (415, "unsupported_media_type"), "{coding}");
        assert_eq!(reply.header("accept-encoding"), Some("gzip, zstd, identity"), "{coding}");
    }
    assert!(service.log.bytes().is_empty());
}

fn on_hold(cause: HoldCause) -> AppendError {
    AppendError::OnHold(AppendHold { cause, detail: "until the test has ended".into(), retry_after_s: 42 })
}

#[test]
fn readiness_says_why_readings_are_held_back() {
    let service = TestServer::start_ready(plan());
    *service.log.error.lock() = Some(on_hold(HoldCause::ClockAhead));
    let reply = service.get("/readyz");
    assert_eq!((reply.status, &*reply.code(), reply.header("retry-after")), (503, "clock_ahead", Some("42")));
    assert_eq!(reply.json()["detail"], "until the test has ended");
    assert_eq!(service.get("/v1/cities").status, 200, "results are still served");
    *service.log.error.lock() = None;
    assert_eq!(service.get("/readyz").status, 200);
}

#[test]
fn unavailable_log_is_reported_to_client() {
    let service = TestServer::start_ready(plan());
    for (error, status, code, retry) in [
        (AppendError::Busy, 429, "busy", Some("1")),
        (AppendError::Stopping, 503, "stopping", Some("1")),
        (on_hold(HoldCause::ClockAhead), 503, "clock_ahead", Some("42")),
        (on_hold(HoldCause::DeadLettersFull), 503, "dead_letters_full", Some("42")),
        (on_hold(HoldCause::DeadLetterShare), 429, "too_many_dead_letters", Some("42")),
        (AppendError::Failed("disk full".into()), 500, "log_failed", None),
    ] {
        *service.log.error.lock() = Some(error);
        let reply = service.post(JSON, READING.as_bytes());
        assert_eq!((reply.status, &*reply.code(), reply.header("retry-after")), (status, code, retry));
    }
    let without = TestServer::start(plan(), false);
    assert_eq!((without.post(JSON, READING.as_bytes()).code()), "no_ingest");
}

#[test]
fn post_holds_memory_until_log_acknowledges() {
    let limits = ServeLimits { body_bytes: 1_000, bodies_bytes: 1_000, ..limits() };
    let service = TestServer::start_ready(ServePlan { limits, ..plan() });
    service.log.hold_appends();
    let body = [READING; 8].join("\n");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| service.post(LINES, body.as_bytes()));
        service.log.wait_for_appends(1);
        let second = service.post(LINES, body.as_bytes());
        assert_eq!((second.status, &*second.code()), (429, "busy"));
        assert!(!waiting.is_finished());
        service.log.release_appends();
        assert_eq!(waiting.join().unwrap().status, 200);
    });
    assert_eq!(service.post(LINES, body.as_bytes()).status, 200);
    service.log.hold_appends();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| service.post(LINES, body.as_bytes()));
        service.log.wait_for_appends(1);
        // The log drops the callback without calling it.
        drop(service.log.pending_callbacks.lock().take());
        assert_eq!(waiting.join().unwrap().code(), "log_failed");
    });
}

#[test]
fn oversized_body_is_refused_before_it_is_read() {
    let limits = ServeLimits { body_bytes: 1_000, ..limits() };
    let service = TestServer::start_ready(ServePlan { limits, ..plan() });
    let request = format!(
        "POST /v1/readings HTTP/1.1\r\nhost: {}\r\ncontent-type: {JSON}\r\nexpect: 100-continue\r\ncontent-length: 1001\r\n\r\n",
        service.address
    );
    let reply = service.send_raw(request.as_bytes());
    assert_eq!((reply.status, &*reply.code()), (413, "body_too_large"));
    assert_eq!(service.post(JSON, &vec![b' '; 300_000]).code(), "body_too_large");
    let chunk = format!("400\r\n{}\r\n", " ".repeat(1_024));
    let chunked = format!(
        "POST /v1/readings HTTP/1.1\r\nhost: {}\r\ncontent-type: {JSON}\r\ntransfer-encoding: chunked\r\n\r\n{}",
        service.address,
        chunk.repeat(200)
    );
    assert_eq!(service.send_raw(chunked.as_bytes()).code(), "body_too_large");
}

#[test]
fn large_batches_and_many_single_posts_are_accepted() {
    let service = TestServer::start_ready(plan());
    let many = service.post(LINES, [READING; 5_000].join("\n").as_bytes());
    assert_eq!(many.json()["accepted"], 5_000);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut socket = service.connect();
                for _ in 0..20 {
                    let request = format!(
                        "POST /v1/readings HTTP/1.1\r\nhost: {}\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\n\r\n{READING}",
                        service.address,
                        READING.len()
                    );
                    socket.write_all(request.as_bytes()).unwrap();
                    let mut bytes = Vec::new();
                    let mut space = [0; 4096];
                    while !bytes.ends_with(b"]}") {
                        let read = socket.read(&mut space).unwrap();
                        assert!(read > 0);
                        bytes.extend_from_slice(&space[..read]);
                    }
                    assert_eq!(HttpReply::parse(&bytes).json()["accepted"], 1);
                }
            });
        }
    });
    assert_eq!(service.log.bytes().len(), 5_320);
}

#[test]
fn new_cities_beyond_share_are_refused_and_known_accepted() {
    let service = TestServer::start_ready(plan());
    let readings = |names: std::ops::Range<u32>| {
        let reading = |name| READING.replace("5128581", &format!("made-up-{name}"));
        names.map(reading).collect::<Vec<_>>().join("\n")
    };
    let post = |body: String| service.post(LINES, body.as_bytes());
    assert_eq!(post(readings(0..500)).status, 200, "half of the room for 1,000 cities");
    assert_eq!(post(readings(0..500)).status, 200, "the same cities");
    assert_eq!(post(READING.into()).status, 200, "a known city");
    let records = service.log.bytes().len();
    let refused = post(format!("{READING}\n{}", readings(500..501)));
    assert_eq!((refused.status, &*refused.code()), (429, "too_many_new_cities"));
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
    assert_eq!(service.log.bytes().len(), records, "no reading of the post is accepted");
    let metrics = service.get("/metrics");
    assert!(metrics.text().contains("swelter_new_cities_refused_total 1"), "{}", metrics.text());
}
