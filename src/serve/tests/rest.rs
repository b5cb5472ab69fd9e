//! Reading over REST: lists, history, caching, access control.

use serde_json::json;

use super::*;
use crate::model::{OutcomeCounts, PartitionIndex, PartitionProgress, Reason};

fn keys(reply: &HttpReply) -> Vec<String> {
    let key = |city: &Value| city["city"].as_str().unwrap().to_string();
    reply.json()["cities"].as_array().unwrap().iter().map(key).collect()
}

#[test]
fn cities_list_filters_and_orders() {
    let service = TestServer::start_ready(plan());
    let all = service.get("/v1/cities");
    assert_eq!(keys(&all), ["5128581", "5368361", "Zürich / \"Süd\" %", "gone"]);
    let first = &all.json()["cities"][0];
    assert_eq!((&first["name"], &first["country"]), (&json!("New York City"), &json!("US")));
    assert_eq!(first["current"]["heat_index"], 91.283411);
    assert_eq!(first["current"]["temperature"], 86.4);
    assert_eq!(all.json()["cities"][3]["current"], Value::Null);
    assert_eq!(all.json()["cities"][2]["name"], Value::Null);
    for (query, expected) in [
        ("order=heat_index", vec!["5368361", "5128581", "Zürich / \"Süd\" %", "gone"]),
        ("order=rolling_heat_index&limit=1", vec!["5368361"]),
        ("category=danger", vec!["5368361"]),
        ("country=us&order=city", vec!["5128581", "5368361"]),
        ("country=DE", vec![]),
        ("limit=0", vec![]),
    ] {
        assert_eq!(keys(&service.get(&format!("/v1/cities?{query}"))), expected, "{query}");
    }
    for query in
        ["limit=-1", "limit=x", "order=name", "category=hot", "country=USA", "sort=city", "limit=1&limit=2"]
    {
        assert_eq!(service.get(&format!("/v1/cities?{query}")).code(), "bad_parameter", "{query}");
    }
}

#[test]
fn city_is_found_by_encoded_key_and_cached_by_entity_tag() {
    let service = TestServer::start_ready(plan());
    let escaped = service.get("/v1/cities/Z%C3%BCrich%20%2F%20%22S%c3%bcd%22%20%25");
    assert_eq!(escaped.json()["city"], "Zürich / \"Süd\" %");
    assert_eq!(service.get("/v1/cities/nowhere").code(), "unknown_city");
    for path in ["/v1/cities/%", "/v1/cities/%ff", "/v1/cities/a%2", "/v1/cities/gone?x=1"] {
        assert_eq!(service.get(path).code(), "bad_parameter", "{path}");
    }
    let tag = service.get("/v1/cities/5128581").header("etag").unwrap().to_string();
    let get_if_none_match =
        |tags: &str| service.send("GET", "/v1/cities/5128581", &[("if-none-match", tags)], b"");
    for tags in [tag.clone(), format!("\"x\", {tag}"), tag.replace("W/", ""), "*".into()] {
        let reply = get_if_none_match(&tags);
        assert_eq!((reply.status, reply.body.len()), (304, 0), "{tags}");
        assert_eq!(reply.header("etag"), Some(&*tag));
    }
    service.dataflow.publish(hotter_new_york());
    service.poll_until("/v1/cities/5128581", |reply| reply.header("etag") != Some(&*tag));
    assert_eq!(get_if_none_match(&tag).status, 200);
}

#[test]
fn history_pages_neither_skip_nor_repeat_rows() {
    let service = TestServer::start_ready(plan());
    let start = time("2025-11-24T00:00:00Z").millis();
    let minute = |at: i64| EventTime::from_millis(start + at * 60_000).unwrap();
    let rows: BTreeMap<_, _> =
        (0..25).map(|at| (minute(at), row(80.0 + at as f64, Category::Caution))).collect();
    service.dataflow.rows.lock().insert("5128581".into(), rows.clone());
    let mut times = Vec::new();
    let mut cursor = String::new();
    loop {
        let query = format!("from={}&to={}&limit=7{cursor}", minute(2), minute(24));
        let page = service.get(&format!("/v1/cities/5128581/history?{query}")).json();
        assert_eq!(page["city"], "5128581");
        times.extend(page["rows"].as_array().unwrap().iter().map(|row| row["reading_at"].clone()));
        let Some(next) = page["next"].as_str() else { break };
        assert_eq!(page["rows"].as_array().unwrap().len(), 7);
        cursor = format!("&cursor={next}");
    }
    assert_eq!(times, (2..24).map(|at| json!(minute(at).to_string())).collect::<Vec<_>>());
    let all = service.get("/v1/cities/5128581/history?from=2025-11-24T01%3A00%3A00%2B01%3A00").json();
    assert_eq!((all["rows"].as_array().unwrap().len(), &all["next"]), (25, &Value::Null));
    assert_eq!(service.get("/v1/cities/nowhere/history").code(), "unknown_city");
    for query in
        ["from=yesterday", "to=2025-11-24T00:00:00", "limit=0", "limit=1.5", "cursor=x", "cursor=AAAA"]
    {
        assert_eq!(
            service.get(&format!("/v1/cities/5128581/history?{query}")).code(),
            "bad_parameter",
            "{query}"
        );
    }
    for (text, expected) in [
        ("2025-11-24T12:30:60Z", "second 60 is a leap second"),
        ("2025-11-24T00:00:00%2B25:00", "offsets are -23:59 to +23:59"),
        ("2025-11-24T00:00:00Z[UTC]", "names a zone in brackets"),
        ("2025-11-24T01:00:00+01:00", "in an address + is written %2B"),
        ("2025-11-24", "it has no time of day"),
        ("9999-12-31T23:59:59Z", "times end at 9999-12-30T22:00:00Z"),
    ] {
        let problem = service.get(&format!("/v1/cities/5128581/history?from={text}"));
        let detail = problem.json()["detail"].to_string();
        assert!(
            problem.status == 400 && detail.contains("from: ") && detail.contains(expected),
            "{text}: {detail}"
        );
    }
    *service.dataflow.full.lock() = true;
    let busy = service.get("/v1/cities/5128581/history");
    assert_eq!((busy.status, &*busy.code(), busy.header("retry-after")), (503, "overloaded", Some("1")));
}

#[test]
fn only_reads_wait_for_readiness() {
    let service = TestServer::start(plan(), true);
    for path in ["/v1/cities", "/v1/cities/5128581", "/v1/cities/5128581/history", "/v1/subscribe", "/readyz"]
    {
        let reply = service.get(path);
        assert_eq!(
            (reply.status, &*reply.code(), reply.header("retry-after")),
            (503, "catching_up", Some("1")),
            "{path}"
        );
    }
    assert_eq!(service.get("/v1/status").json()["ready"], false);
    assert_eq!(service.get("/healthz").status, 200);
    assert_eq!(service.get("/").status, 200);
    assert_eq!(service.post("application/json", READING.as_bytes()).status, 200);
}

#[test]
fn status_and_metrics_report_state() {
    let service = TestServer::start_ready(plan());
    let progress = vec![PartitionProgress {
        partition: PartitionIndex(1),
        applied_until: 7,
        log_end: 9,
        withheld: 2,
        before: None,
        city_count: 0,
    }];
    let counts = Some(OutcomeCounts { corrected: 3, split_city: 2, ..OutcomeCounts::default() });
    service.dataflow.publish(ViewUpdate {
        progress,
        counts,
        refusal_counts: vec![(Reason::TooLate, 4)],
        ..ViewUpdate::default()
    });
    let status = service.poll_until("/v1/status", |reply| reply.json()["split_city"] == 2).json();
    let partition = |partition, applied, end, waits| json!({"partition": partition, "applied": applied, "end": end, "in_open_transaction": waits});
    assert_eq!(
        status["sources"],
        json!([{"name": "journal", "partitions": [partition(0, 0, 0, 0), partition(1, 7, 9, 2)]}])
    );
    assert_eq!((&status["counts"]["corrected"], &status["refused"]), (&json!(3), &json!({"too_late": 4})));
    assert_eq!(
        (&status["cities"], &status["workers"], &status["window_s"]),
        (&json!(4), &json!(2), &json!(86400))
    );
    let metrics = service.get("/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for name in [
        "# HELP swelter_as_of_lag_seconds ",
        "# TYPE swelter_http_request_duration_seconds histogram",
        "# HELP swelter_connections ",
    ] {
        assert!(metrics.text().contains(name), "{name}\n{}", metrics.text());
    }
    assert!(!metrics.text().contains("/v1/cities/5128581"));
}

#[test]
fn unknown_paths_and_methods_name_supported_ones() {
    let service = TestServer::start_ready(plan());
    for path in [
        "/v1",
        "/v1/cities/",
        "/v1/cities/a/b",
        "/ui/",
        "/ui/nothing.js",
        "/ui/../v1/status",
        "//",
        "/index.html",
    ] {
        assert_eq!((service.get(path).status, &*service.get(path).code()), (404, "not_found"), "{path}");
    }
    for (method, path, allowed) in [
        ("POST", "/v1/cities", "GET, HEAD, OPTIONS"),
        ("GET", "/v1/readings", "POST, OPTIONS"),
        ("DELETE", "/", "GET, HEAD, OPTIONS"),
        ("BREW", "/healthz", "GET, HEAD, OPTIONS"),
    ] {
        let reply = service.send(method, path, &[], b"");
        assert_eq!(
            (&*reply.code(), reply.header("allow")),
            ("method_not_allowed", Some(allowed)),
            "{method} {path}"
        );
    }
    let options = service.send("OPTIONS", "/v1/readings", &[], b"");
    assert_eq!((options.status, options.header("allow")), (204, Some("POST, OPTIONS")));
    // Responses without rows: the age of a row can get longer from one request to the next.
    for path in ["/", "/v1/cities?country=AQ", "/v1/openapi.json", "/v1/nothing"] {
        let (get, head) = (service.get(path), service.send("HEAD", path, &[], b""));
        assert_eq!((head.status, head.header("content-type")), (get.status, get.header("content-type")));
        assert_eq!(
            (head.body.len(), head.header("content-length")),
            (0, get.header("content-length")),
            "{path}"
        );
    }
}

#[test]
fn long_responses_are_compressed_if_accepted() {
    let service = TestServer::start_ready(plan());
    let plain = service.get("/v1/openapi.json");
    assert_eq!((plain.header("content-encoding"), plain.header("vary")), (None, Some("Accept-Encoding")));
    for (path, accept, coding) in [
        ("/v1/openapi.json", "gzip, zstd", Some("zstd")),
        ("/v1/openapi.json", "gzip", Some("gzip")),
        ("/v1/cities", "gzip", Some("gzip")),
        ("/v1/cities", "zstd;q=0.5, gzip;q=0.1", Some("zstd")),
        ("/healthz", "gzip", None),
    ] {
        let reply = service.send("GET", path, &[("accept-encoding", accept)], b"");
        assert_eq!(reply.header("content-encoding"), coding, "{path} {accept}");
        let mut body = Vec::new();
        match coding {
            Some("zstd") => body = zstd::decode_all(&*reply.body).unwrap(),
            Some(_) => drop(flate2::read::GzDecoder::new(&*reply.body).read_to_end(&mut body).unwrap()),
            None => body = reply.body,
        }
        let mut expected = service.get(path).json();
        let mut received: Value = serde_json::from_slice(&body).unwrap();
        // Members that differ from response to response.
        for answer in [&mut expected, &mut received] {
            answer["as_of"] = Value::Null;
            answer["now"] = Value::Null;
            for city in answer["cities"].as_array_mut().into_iter().flatten() {
                if let Some(row) = city["current"].as_object_mut() {
                    row.remove("age_s").unwrap();
                }
            }
        }
        assert_eq!(received, expected);
    }
    let none = service.send("GET", "/healthz", &[("accept-encoding", "identity;q=0, br")], b"");
    assert_eq!(none.code(), "not_acceptable");
}

#[test]
fn page_has_content_security_policy_and_is_cached() {
    let service = TestServer::start_ready(plan());
    let page = service.get("/");
    assert!(page.text().contains("<html"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    let tag = page.header("etag").unwrap();
    assert_eq!(service.send("GET", "/", &[("if-none-match", tag)], b"").status, 304);
    assert_eq!(service.get("/ui/app.js").header("content-type"), Some("text/javascript; charset=utf-8"));
}

#[test]
fn tokens_protect_only_data_routes() {
    let token = |secret: &str, read| Token { secret: secret.into(), read, ingest: !read };
    let service = TestServer::start_ready(ServePlan {
        tokens: vec![token("reader", true), token("sensor", false)],
        ..plan()
    });
    let with = |method, path, token| {
        let authorization = format!("Bearer {token}");
        let kind = ("content-type", "application/json");
        let body = if method == "POST" { READING } else { "" };
        service.send(method, path, &[("authorization", &authorization), kind], body.as_bytes())
    };
    for path in ["/healthz", "/readyz", "/", "/ui/app.js", "/v1/openapi.json"] {
        assert_eq!(service.get(path).status, 200, "{path}");
    }
    for path in ["/v1/cities", "/v1/status", "/metrics", "/v1/cities/5128581", "/v1/subscribe", "/v1/ingest"]
    {
        let reply = service.get(path);
        assert_eq!((reply.status, &*reply.code()), (401, "unauthorized"), "{path}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"swelter\""));
    }
    assert_eq!(with("GET", "/v1/cities", "reader").status, 200);
    assert_eq!(with("GET", "/v1/cities", "sensor").code(), "insufficient_scope");
    assert_eq!(with("GET", "/v1/cities", "Reader").code(), "unauthorized");
    assert_eq!(with("POST", "/v1/readings", "sensor").status, 200);
    assert_eq!(with("POST", "/v1/readings", "reader").code(), "insufficient_scope");
}

#[test]
fn cors_grants_only_configured_origins() {
    let service = TestServer::start_ready(plan());
    let own = format!("http://{}", service.address);
    let json = ("content-type", "application/json");
    let post =
        |origin: &str| service.send("POST", "/v1/readings", &[json, ("origin", origin)], READING.as_bytes());
    assert_eq!(post(&own).status, 200);
    let allowed = post("https://maps.example.org");
    assert_eq!(
        (allowed.status, allowed.header("access-control-allow-origin")),
        (200, Some("https://maps.example.org"))
    );
    for origin in ["https://evil.example", "null", "http://localhost:1"] {
        let reply = post(origin);
        assert_eq!(
            (&*reply.code(), reply.header("access-control-allow-origin")),
            ("foreign_origin", None),
            "{origin}"
        );
        let read = service.send("GET", "/v1/cities", &[("origin", origin)], b"");
        assert_eq!(read.header("access-control-allow-origin"), None);
    }
    let requested_method = ("access-control-request-method", "POST");
    let preflight =
        |origin| service.send("OPTIONS", "/v1/readings", &[("origin", origin), requested_method], b"");
    let granted = preflight("https://maps.example.org");
    assert_eq!(
        (granted.status, granted.header("access-control-allow-methods")),
        (204, Some("POST, OPTIONS"))
    );
    assert!(granted.header("access-control-allow-headers").unwrap().contains("authorization"));
    assert_eq!(preflight("https://evil.example").code(), "foreign_origin");
    let rebound =
        service.send_raw(b"GET /v1/cities HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
    assert_eq!(rebound.code(), "foreign_host");
    let nameless = service.send_raw(b"GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(nameless.status, 200);
}
