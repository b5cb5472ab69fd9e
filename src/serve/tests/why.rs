//! `GET /v1/cities/{city}/why`: the readings of a row's window, in pages that add up.

use serde_json::json;

use super::*;
use crate::model::ExplainedRow;

/// The answer to a query that explains a row, by a window of a day; the measurement of the row's own
/// reading is held.
pub(super) fn explain(
    query: &Query,
    city_rows: Option<&BTreeMap<EventTime, Row>>,
    reading_at: EventTime,
    from: EventTime,
    limit: usize,
) -> AnswerPiece {
    let is_city_known = city_rows.is_some();
    let high = city_rows.and_then(|rows| rows.keys().next_back().copied());
    let day_before = |at: EventTime| EventTime::from_millis(at.millis() - 86_400_000).unwrap();
    let is_servable = high.is_some_and(|high| reading_at >= day_before(high));
    let window = city_rows.into_iter().flatten();
    let window = window.filter(|(at, _)| (day_before(reading_at)..=reading_at).contains(*at));
    let readings: Vec<(EventTime, Row)> = window
        .map(|(at, row)| (*at, Row::new(row.heat_index(), row.category(), row.heat_index().micros(), 1)))
        .collect();
    let row = readings.last().filter(|(at, _)| is_servable && *at == reading_at).map(|(_, row)| {
        let sum = readings.iter().map(|(_, reading)| reading.sum()).sum();
        Row::new(row.heat_index(), row.category(), sum, readings.len() as u32)
    });
    let measurements = vec![(reading_at, Measurement::new(86.4, 63.1, Some(10.0)).unwrap())];
    let mut rows: Vec<_> = readings.into_iter().filter(|(at, _)| *at >= from && row.is_some()).collect();
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    AnswerPiece {
        query_id: query.id,
        epoch: 0,
        city: query.city.clone(),
        is_city_known,
        first_row: 0,
        rows,
        high,
        explained_row: is_city_known.then(|| Box::new(ExplainedRow { row, measurements })),
        has_more,
        remaining: RemainingRows::Nothing,
    }
}

fn minute(at: i64) -> EventTime {
    EventTime::from_millis(time("2025-11-24T00:00:00Z").millis() + at * 60_000).unwrap()
}

/// A service with 25 readings of a city, one a minute.
fn service_with_readings() -> TestServer {
    let service = TestServer::start_ready(plan());
    let rows = (0..25).map(|at| (minute(at), row(80.0 + at as f64 / 8.0, Category::Caution)));
    service.dataflow.rows.lock().insert("5128581".into(), rows.collect());
    service
}

#[test]
fn explanation_pages_add_up_to_sum_and_count() {
    let service = service_with_readings();
    let path = format!("/v1/cities/5128581/why?reading_at={}&limit=7", minute(20));
    let (mut sum, mut times, mut cursor) = (0, Vec::new(), String::new());
    let last = loop {
        let page = service.get(&format!("{path}{cursor}")).json();
        documents::check("WhyAnswer", &page);
        let readings = page["readings"].as_array().unwrap();
        sum += readings.iter().map(|reading| reading["heat_index_e6"].as_i64().unwrap()).sum::<i64>();
        times.extend(readings.iter().map(|reading| reading["reading_at"].clone()));
        assert_eq!(page["window"]["count"], 21);
        assert_eq!(page["window"]["to"], json!(minute(20).to_string()));
        let Some(next) = page["next"].as_str() else { break page };
        assert_eq!(readings.len(), 7);
        cursor = format!("&cursor={next}");
    };
    assert_eq!(times, (0..=20).map(|at| json!(minute(at).to_string())).collect::<Vec<_>>());
    assert_eq!(last["window"]["sum_e6"], sum);
    assert_eq!(last["window"]["from"], "2025-11-23T00:20:00Z");
    assert_eq!(last["row"]["rolling_heat_index"], sum as f64 / 21e6);
    let newest = last["readings"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&newest["temperature"], &newest["wind_speed"]), (&json!(86.4), &json!(10)));
    let older = &last["readings"][0];
    assert_eq!((&older["temperature"], &older["heat_index"]), (&Value::Null, &json!(81.75)));
}

#[test]
fn explanation_in_celsius_keeps_sum_in_fahrenheit() {
    let service = service_with_readings();
    let path = format!("/v1/cities/5128581/why?reading_at={}&units=celsius&wind_units=m/s", minute(0));
    let page = service.get(&path).json();
    documents::check("WhyAnswer", &page);
    assert_eq!((&page["units"], &page["window"]["sum_e6"]), (&json!("celsius"), &json!(80_000_000)));
    let reading = &page["readings"][0];
    assert_eq!((&reading["heat_index_e6"], &reading["wind_speed"]), (&json!(80_000_000), &json!(4.4704)));
    assert_eq!(page["row"]["rolling_heat_index"], 80.0 / 3.0);
}

#[test]
fn unexplained_rows_say_why() {
    let service = service_with_readings();
    let why = |query: &str| service.get(&format!("/v1/cities/5128581/why?{query}"));
    assert_eq!(service.get("/v1/cities/nowhere/why?reading_at=2025-11-24T00:00:00Z").code(), "unknown_city");
    for (query, detail) in [
        ("", "reading_at is missing"),
        ("reading_at=yesterday", "reading_at: "),
        ("reading_at=2025-11-24T00:00:00Z&limit=0", "limit"),
        ("reading_at=2025-11-24T00:00:00Z&cursor=x", "cursor"),
        ("reading_at=2025-11-24T00:00:00Z&from=2025-11-24T00:00:00Z", "there is no parameter"),
    ] {
        let reply = why(query);
        assert_eq!((reply.status, &*reply.code()), (400, "bad_parameter"), "{query}");
        assert!(reply.json()["detail"].as_str().unwrap().contains(detail), "{}", reply.text());
    }
    let absent = why("reading_at=2025-11-24T00:00:30Z");
    assert_eq!((absent.status, &*absent.code()), (404, "unknown_row"));
    assert!(absent.json()["detail"].as_str().unwrap().contains("has no reading at 2025-11-24T00:00:30Z"));
    let old = why("reading_at=2025-11-20T00:00:00Z");
    assert_eq!(old.code(), "unknown_row");
    assert!(old.json()["detail"].as_str().unwrap().contains("is too long ago"), "{}", old.text());
    *service.dataflow.full.lock() = true;
    let busy = why(&format!("reading_at={}", minute(3)));
    assert_eq!((busy.status, &*busy.code(), busy.header("retry-after")), (503, "overloaded", Some("1")));
}
