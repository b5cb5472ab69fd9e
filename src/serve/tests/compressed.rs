//! Compressed bodies of `POST`, within the limits of plain ones.

use serde_json::json;

use super::*;

const LINES: &str = "application/x-ndjson";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

type Compress = fn(&[u8]) -> Vec<u8>;

/// Without the size in its header, as data that is compressed while it is read.
fn zstd_stream(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 19).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).unwrap()
}

fn post(service: &TestServer, coding: &str, body: &[u8]) -> HttpReply {
    let headers = [("content-type", LINES), ("content-encoding", coding)];
    service.send("POST", "/v1/readings", &headers, body)
}

#[test]
fn compressed_bodies_are_accepted_like_plain_ones() {
    let service = TestServer::start_ready(plan());
    let lines = [READING; 300].join("\n");
    let half = lines.len() / 2;
    let (first, second) = lines.as_bytes().split_at(half);
    let bodies = [
        ("gzip", gzip(lines.as_bytes())),
        ("GZIP", [gzip(first), gzip(second), vec![0; 700]].concat()),
        ("x-gzip", gzip(lines.as_bytes())),
        ("zstd", zstd(lines.as_bytes())),
        ("zstd", zstd_stream(lines.as_bytes())),
        ("identity, zstd", [zstd(first), zstd_stream(second)].concat()),
    ];
    for (coding, body) in &bodies {
        let reply = post(&service, coding, body);
        assert_eq!((reply.status, &reply.json()["accepted"]), (200, &json!(300)), "{coding}");
    }
    assert_eq!(service.log.bytes(), vec![READING; 300 * bodies.len()]);
}

#[test]
fn truncated_or_damaged_compressed_bodies_are_bad_requests() {
    let service = TestServer::start_ready(plan());
    let codings: [(&str, Compress); 3] = [("gzip", gzip), ("zstd", zstd), ("zstd", zstd_stream)];
    for (coding, compress) in codings {
        let whole = compress([READING; 20].join("\n").as_bytes());
        let mut damaged = whole.clone();
        damaged[0] ^= 1;
        let cut = [1, whole.len() / 2, whole.len() - 1].map(|length| whole[..length].to_vec());
        for body in cut.into_iter().chain([damaged, [&whole[..], b"x"].concat(), b"x".to_vec()]) {
            let reply = post(&service, coding, &body);
            assert_eq!((reply.status, &*reply.code()), (400, "bad_request"), "{coding} of {}", body.len());
        }
    }
    assert!(service.log.bytes().is_empty());
}

#[test]
fn compressed_bodies_are_limited_by_decompressed_size() {
    let limits = ServeLimits { body_bytes: 100_000, bodies_bytes: 300_000, ..limits() };
    let service = TestServer::start_ready(ServePlan { limits, ..plan() });
    let bomb = vec![b' '; 50_000_000];
    let nested = vec![gzip(&bomb); 3].concat();
    for (coding, body) in
        [("gzip", gzip(&bomb)), ("gzip", nested), ("zstd", zstd(&bomb)), ("zstd", zstd_stream(&bomb))]
    {
        assert!(body.len() < 200_000);
        let reply = post(&service, coding, &body);
        let code = reply.code();
        assert!((reply.status, &*code) == (413, "body_too_large"), "{coding}: {} {code}", reply.status);
    }
    // Exactly as long as a plain body may be.
    let fits = |length: usize| [READING, &" ".repeat(length - READING.len())].concat();
    for (length, status) in [(100_000, 200), (100_001, 413)] {
        let body = fits(length);
        for (coding, body) in [
            ("gzip", gzip(body.as_bytes())),
            ("zstd", zstd(body.as_bytes())),
            ("zstd", zstd_stream(body.as_bytes())),
        ] {
            assert_eq!(post(&service, coding, &body).status, status, "{coding} of {length}");
        }
    }
    // All memory is released.
    *service.log.pending_callbacks.lock() = None;
    for _ in 0..20 {
        assert_eq!(post(&service, "gzip", &gzip(fits(99_000).as_bytes())).status, 200);
    }
}

#[test]
fn compressed_bodies_reserve_memory_for_decompressed_size() {
    let limits = ServeLimits { body_bytes: 100_000, bodies_bytes: 220_000, ..limits() };
    let service = TestServer::start_ready(ServePlan { limits, ..plan() });
    service.log.hold_appends();
    let body = [READING, &" ".repeat(99_000 - READING.len())].concat();
    let (small, large) = (gzip(body.as_bytes()), READING);
    assert!(small.len() < 1_000);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| post(&service, "gzip", &small));
        service.log.wait_for_appends(1);
        // Of 220,000 bytes 99,000 are taken, and one that becomes as large takes its decoder's
        // share beside.
        let second = post(&service, "zstd", &zstd_stream(body.as_bytes()));
        assert_eq!((second.status, &*second.code()), (429, "busy"));
        assert!(!waiting.is_finished() && !large.is_empty());
        service.log.release_appends();
        assert_eq!(waiting.join().unwrap().status, 200);
    });
    assert_eq!(post(&service, "zstd", &zstd_stream(body.as_bytes())).status, 200);
}
