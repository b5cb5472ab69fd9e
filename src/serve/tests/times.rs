//! Readings that are too late or of the future, in the response to a post.

use serde_json::json;

use super::*;

const JSON: &str = "application/json";

fn reading(city: &str, at: &str) -> String {
    format!(r#"{{"city":"{city}","reading_at":"{at}","temperature":80,"humidity":50}}"#)
}

#[test]
fn future_reading_is_refused_in_response_if_log_stamps_it() {
    let service = TestServer::start_ready(plan());
    *service.log.future.lock() = Some(time("2030-01-01T00:00:00Z"));
    let (past, future) = (reading("x", "2025-11-24T16:00:00Z"), reading("x", "2030-01-01T00:00:00Z"));
    let mixed = service.post(JSON, format!("[{future},7,{past},{future}]").as_bytes());
    assert_eq!(mixed.status, 200, "{}", mixed.text());
    documents::check("TakenAnswer", &mixed.json());
    let answer = mixed.json();
    let refused: Vec<_> = answer["refused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|refusal| (refusal["index"].clone(), refusal["reason"].clone()))
        .collect();
    let expected =
        [(0, "in_the_future"), (1, "not_decodable"), (3, "in_the_future")].map(|(i, r)| (json!(i), json!(r)));
    assert_eq!(refused, expected);
    assert_eq!((&answer["accepted"], &answer["refused_count"]), (&json!(1), &json!(3)));
    assert_eq!(answer["positions"], json!([{"source": "journal", "partition": 0, "first": 0, "end": 1}]));
    assert!(answer.get("warnings").is_none());
    let alone = service.post(JSON, future.as_bytes());
    assert_eq!((alone.status, &*alone.code()), (422, "none_accepted"));
    assert_eq!(alone.json()["refused"][0]["reason"], "in_the_future");
    assert_eq!(service.log.bytes(), [past], "refused readings are not in the log");
}

#[test]
fn too_late_reading_is_refused_in_response() {
    let service = TestServer::start_ready(plan());
    // The newest reading of New York is of 2025-11-24T16:00:00Z, and lateness is a day.
    let (late, just) = ("2025-11-23T15:59:59.999Z", "2025-11-23T16:00:00Z");
    let refused = service.post(JSON, reading("5128581", late).as_bytes());
    assert_eq!((refused.status, &*refused.code()), (422, "none_accepted"), "{}", refused.text());
    let refusal = &refused.json()["refused"][0];
    assert_eq!(refusal["reason"], "too_late");
    assert!(refusal["detail"].as_str().unwrap().contains("2025-11-24T16:00:00Z"), "{refusal}");
    let withdrawal = format!(r#"{{"city":"5128581","reading_at":"{late}","deleted":true}}"#);
    assert_eq!(service.post(JSON, withdrawal.as_bytes()).status, 422);
    // Nothing is known of the newest reading of a city without a row, or of an unknown city.
    for (city, at) in [("5128581", just), ("gone", late), ("never", late)] {
        assert_eq!(service.post(JSON, reading(city, at).as_bytes()).status, 200, "{city}");
    }
    assert_eq!(service.log.bytes().len(), 3);
}

#[test]
fn future_reading_only_warns_if_topic_stamps_it() {
    let service = TestServer::start_warning(plan(), true, service_info(), Some("10m".parse().unwrap()));
    let now = jiff::Timestamp::now().as_millisecond();
    let at = |ms: i64| EventTime::from_millis(now + ms).unwrap().to_string();
    let (soon, future) = (reading("x", &at(500_000)), reading("x", &at(900_000)));
    let answer = service.post(JSON, format!("[{soon},{future}]").as_bytes());
    documents::check("TakenAnswer", &answer.json());
    assert_eq!((answer.status, &answer.json()["accepted"]), (200, &json!(2)), "{}", answer.text());
    assert_eq!(answer.json()["refused"], json!([]));
    let warnings = answer.json()["warnings"].clone();
    assert_eq!((&warnings[0]["index"], &warnings[0]["reason"]), (&json!(1), &json!("in_the_future")));
    assert!(warnings.get(1).is_none(), "{warnings}");
    assert_eq!(service.log.bytes(), [soon, future]);
}

#[test]
fn too_late_reading_is_counted_once() {
    let service = TestServer::start_ready(plan());
    let counts = Some(crate::model::OutcomeCounts { too_late: 2, ..Default::default() });
    let refused = vec![(Reason::TooLate, 3)];
    service.dataflow.publish(ViewUpdate { counts, refusal_counts: refused, ..ViewUpdate::default() });
    let status = service.poll_until("/v1/status", |reply| reply.json()["refused"]["too_late"] == 5).json();
    assert!(status["counts"].get("too_late").is_none(), "{}", status["counts"]);
    let metrics = service.get("/metrics");
    assert!(!metrics.text().contains("outcome=\"too_late\""), "{}", metrics.text());
}
