//! Stale rows: marked wherever they are listed, in no ranking and no category, by the clock of the
//! host.

use serde_json::json;

use super::documents::check;
use super::*;
use crate::model::clock::wall_clock_ms;

fn time_before_now(text: &str) -> EventTime {
    let age: crate::model::Millis = text.parse().unwrap();
    EventTime::from_millis(wall_clock_ms() as i64 - age.millis()).unwrap()
}

/// The cities of [`cities`] with a current row, with the times of their readings.
fn cities_read_at(times: [EventTime; 3]) -> ViewUpdate {
    let mut current: Vec<CurrentRowUpdate> = cities().into_iter().filter(|city| city.row.is_some()).collect();
    for (city, reading_at) in current.iter_mut().zip(times) {
        city.row = city.row.map(|row| CurrentRow { reading_at, ..row });
    }
    ViewUpdate { current_rows: current, ..ViewUpdate::default() }
}

/// New York is fresh, Los Angeles, the hottest, is 16 months old, and the city that is not in the
/// directory is a little in the future.
fn service(stale_after: &str) -> TestServer {
    let info = ServiceInfo { stale_after: stale_after.parse().unwrap(), ..service_info() };
    let service = TestServer::start_with(plan(), true, info);
    let mut earlier = cities();
    earlier[2].row = earlier[0].row;
    service.dataflow.publish(ViewUpdate { current_rows: earlier, ..ViewUpdate::default() });
    service.dataflow.publish(ViewUpdate { current_rows: cities(), ..ViewUpdate::default() });
    service.dataflow.publish(cities_read_at([
        time_before_now("1h"),
        time_before_now("480d"),
        EventTime::from_millis(time_before_now("0s").millis() + 300_000).unwrap(),
    ]));
    service.poll_until("/v1/cities", |reply| {
        reply.status == 200
            && reply.json()["cities"][0]["current"]["age_s"].as_f64().is_some_and(|age| age < 4_000.0)
    });
    service
}

fn keys(reply: &HttpReply) -> Vec<String> {
    let key = |city: &Value| city["city"].as_str().unwrap().to_string();
    reply.json()["cities"].as_array().unwrap().iter().map(key).collect()
}

const CITY_NOT_IN_DIRECTORY: &str = "Zürich / \"Süd\" %";

#[test]
fn stale_rows_are_marked_and_left_out_of_rankings_and_categories() {
    let service = service("3h");
    let all = service.get("/v1/cities").json();
    check("CitiesAnswer", &all);
    assert_eq!((&all["stale_after_s"], &all["stale_cities"]), (&json!(10_800), &json!(1)));
    let now = all["now"].as_u64().unwrap();
    assert!(now.abs_diff(wall_clock_ms()) < 60_000, "{now}");
    for (n, stale, age) in [(0, false, 3_600.0), (1, true, 480.0 * 86_400.0), (2, false, 0.0)] {
        let row = &all["cities"][n]["current"];
        assert_eq!(row["stale"], stale, "{row}");
        let age_s = row["age_s"].as_f64().unwrap();
        assert!((age..age + 60.0).contains(&age_s) && (age > 0.0 || age_s == 0.0), "{row}");
        let reading_at = time(row["reading_at"].as_str().unwrap()).millis() as u64;
        assert_eq!(age_s, now.saturating_sub(reading_at) as f64 / 1e3, "age is now less reading_at");
    }
    for (query, listed, stale) in [
        ("order=heat_index", vec!["5128581", CITY_NOT_IN_DIRECTORY, "gone"], 1),
        ("order=rolling_heat_index&limit=1", vec!["5128581"], 1),
        ("order=heat_index&limit=0", vec![], 1),
        ("category=danger", vec![], 1),
        ("category=extreme_caution", vec!["5128581"], 1),
        ("country=US", vec!["5128581", "5368361"], 1),
        ("country=US&order=heat_index", vec!["5128581"], 1),
        ("country=DE", vec![], 0),
    ] {
        let reply = service.get(&format!("/v1/cities?{query}"));
        assert_eq!(
            (keys(&reply), &reply.json()["stale_cities"]),
            (listed.iter().map(|key| key.to_string()).collect(), &json!(stale)),
            "{query}"
        );
    }
    let status = service.poll_until("/v1/status", |reply| reply.json()["stale_cities"] == 1).json();
    check("StatusAnswer", &status);
    assert_eq!((&status["stale_after_s"], &status["ahead_of_clock"]["count"]), (&json!(10_800), &json!(1)));
    // The values may be those of another server of this process.
    for name in ["# HELP swelter_stale_cities ", "# HELP swelter_current_cities "] {
        assert!(service.get("/metrics").text().contains(name), "{name}");
    }
}

#[test]
fn max_age_filters_older_rows() {
    let service = service("3h");
    for (query, listed) in [
        ("max_age=2h", vec!["5128581", CITY_NOT_IN_DIRECTORY]),
        ("max_age=7200", vec!["5128581", CITY_NOT_IN_DIRECTORY]),
        ("max_age=3599", vec![CITY_NOT_IN_DIRECTORY]),
        ("max_age=0", vec![CITY_NOT_IN_DIRECTORY]),
        ("max_age=481d", vec!["5128581", "5368361", CITY_NOT_IN_DIRECTORY]),
        // It removes rows, and adds no stale row to a ranking.
        ("max_age=481d&order=heat_index", vec!["5128581", CITY_NOT_IN_DIRECTORY]),
        ("max_age=481d&category=danger", vec![]),
        ("max_age=2h&country=us", vec!["5128581"]),
    ] {
        assert_eq!(keys(&service.get(&format!("/v1/cities?{query}"))), listed, "{query}");
    }
    for max_age in ["", "-1", "%2B1", "1.5", "1 h", "h", "3w", "99999999999999999999", "1e3", "2h30m"] {
        let query = format!("/v1/cities?max_age={}", max_age.replace(' ', "%20"));
        assert_eq!(service.get(&query).code(), "bad_parameter", "{max_age}");
    }
    assert_eq!(service.get("/v1/cities?max_age=1h&max_age=2h").code(), "bad_parameter");
}

#[test]
fn city_turns_stale_with_time_and_changes_entity_tag() {
    let service = service("2s");
    service.dataflow.publish(cities_read_at([
        time_before_now("0s"),
        time_before_now("480d"),
        time_before_now("0s"),
    ]));
    let path = "/v1/cities/5128581";
    let fresh = service.poll_until(path, |reply| reply.json()["current"]["stale"] == false);
    let tag = fresh.header("etag").unwrap().to_owned();
    let conditional = || service.send("GET", path, &[("if-none-match", &tag)], b"");
    let age = |reply: &HttpReply| reply.header("reading-age").unwrap().parse::<f64>().unwrap();
    assert_eq!(fresh.json()["current"]["age_s"].as_f64(), Some(age(&fresh)));
    let started = Instant::now();
    let mut last = age(&fresh);
    let stale = loop {
        let reply = conditional();
        // A cache would return the age of an earlier response.
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        let is_older = age(&reply) >= last;
        last = age(&reply);
        assert!(is_older && started.elapsed() < TEST_DEADLINE, "{reply:?}");
        match reply.status {
            304 => assert!(last <= 2.0 && reply.body.is_empty(), "{reply:?}"),
            _ => break reply,
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    check("CityAnswer", &stale.json());
    assert_eq!((stale.status, &stale.json()["current"]["stale"]), (200, &json!(true)));
    let new_tag = stale.header("etag").unwrap();
    assert!(last > 2.0 && new_tag != tag, "{stale:?}");
    let again = service.send("GET", path, &[("if-none-match", new_tag)], b"");
    assert_eq!((again.status, again.header("etag")), (304, Some(new_tag)));
    assert_eq!(service.get("/v1/cities?order=heat_index").json()["stale_cities"], 3);
    let gone = service.get("/v1/cities/gone");
    assert_eq!((gone.status, &gone.json()["current"], gone.header("reading-age")), (200, &Value::Null, None));
    service.poll_until("/v1/status", |reply| reply.json()["stale_cities"] == 3);
    // A reading that is fresh again.
    service.dataflow.publish(cities_read_at([
        time_before_now("0s"),
        time_before_now("480d"),
        time_before_now("480d"),
    ]));
    service.poll_until("/v1/cities?order=heat_index", |reply| keys(reply).contains(&"5128581".to_owned()));
}
