//! Units: requested or by default, the same numbers in REST and WebSocket, named in every response.

use serde_json::json;

use super::documents::{check, check_message};
use super::sockets::Client;
use super::*;
use crate::model::{OutputUnits, TemperatureUnit, WindUnit};

const METRIC: OutputUnits =
    OutputUnits { temperature: TemperatureUnit::Celsius, wind: WindUnit::KilometresPerHour };

fn service(units: OutputUnits) -> TestServer {
    let service = TestServer::start_with(plan(), true, ServiceInfo { units, ..service_info() });
    let at = time("2025-11-24T16:00:00Z");
    service.dataflow.insert_row("5128581", at, row(-40.0, Category::None));
    service.dataflow.publish(ViewUpdate { current_rows: cities(), ..ViewUpdate::default() });
    service.poll_until("/v1/cities", |reply| {
        reply.status == 200 && reply.json()["cities"].as_array().unwrap().len() >= 3
    });
    service
}

fn units_of(value: &Value) -> (&str, &str) {
    (value["units"].as_str().unwrap(), value["wind_units"].as_str().unwrap())
}

/// The values of New York: 91.283411 °F, a trend of 10.783411 °F, 86.4 °F, 8.05 mph.
const CELSIUS: [f64; 5] =
    [32.935228333333335, 32.657450555555556, 5.990783888888889, 30.22222222222222, 12.9552192];

fn values(row: &Value) -> [f64; 5] {
    ["heat_index", "rolling_heat_index", "trend", "temperature", "wind_speed"]
        .map(|name| row[name].as_f64().unwrap())
}

#[test]
fn responses_use_requested_units() {
    let service = service(OutputUnits::STORED);
    for (query, units) in [
        ("", ("fahrenheit", "mph")),
        ("?units=celsius", ("celsius", "mph")),
        ("?wind_units=m/s", ("fahrenheit", "m/s")),
        ("?wind_units=km%2Fh&units=celsius", ("celsius", "km/h")),
    ] {
        for (path, schema) in [
            ("/v1/cities", "CitiesAnswer"),
            ("/v1/cities/5128581", "CityAnswer"),
            ("/v1/cities/5128581/history", "HistoryAnswer"),
        ] {
            let answer = service.get(&format!("{path}{query}")).json();
            check(schema, &answer);
            assert_eq!(units_of(&answer), units, "{path}{query}");
        }
    }
    let query = "?units=celsius&wind_units=km/h";
    let city = service.get(&format!("/v1/cities/5128581{query}")).json();
    assert_eq!(values(&city["current"]), CELSIUS);
    assert_eq!(city["current"]["humidity"], 63.1);
    assert_eq!(
        city["current"]["category"], "extreme_caution",
        "the thresholds of categories do not depend on units"
    );
    let listed = service.get(&format!("/v1/cities{query}&category=extreme_caution")).json();
    assert_eq!(values(&listed["cities"][0]["current"]), CELSIUS);
    let history = service.get("/v1/cities/5128581/history?units=celsius").json();
    assert_eq!(history["rows"][0]["heat_index"], -40);
    for query in
        ["units=kelvin", "units=Celsius", "units=", "wind_units=knots", "units=celsius&units=celsius"]
    {
        for path in ["/v1/cities", "/v1/cities/5128581", "/v1/cities/5128581/history"] {
            assert_eq!(service.get(&format!("{path}?{query}")).code(), "bad_parameter", "{query}");
        }
    }
    let refused = service.get("/v1/cities?units=kelvin").json();
    assert_eq!(refused["detail"], "units \"kelvin\" is none of fahrenheit, celsius");
}

#[test]
fn entity_tag_depends_on_units() {
    let service = service(OutputUnits::STORED);
    let tag = |query: &str| {
        let reply = service.get(&format!("/v1/cities/5128581{query}"));
        reply.header("etag").unwrap().to_string()
    };
    let stored = tag("");
    assert_eq!(tag("?units=fahrenheit&wind_units=mph"), stored);
    let others = [tag("?units=celsius"), tag("?wind_units=km/h"), tag("?units=celsius&wind_units=km/h")];
    for (at, other) in others.iter().enumerate() {
        assert!(*other != stored && !others[..at].contains(other), "{other}");
    }
    let cached = |path: &str, tag: &str| service.send("GET", path, &[("if-none-match", tag)], b"").status;
    assert_eq!(cached("/v1/cities/5128581?units=celsius", &stored), 200);
    assert_eq!(cached("/v1/cities/5128581?units=celsius", &others[0]), 304);
}

#[test]
fn service_units_are_the_default() {
    let service = service(METRIC);
    let city = service.get("/v1/cities/5128581").json();
    assert_eq!((units_of(&city), values(&city["current"])), (("celsius", "km/h"), CELSIUS));
    let city = service.get("/v1/cities/5128581?units=fahrenheit").json();
    assert_eq!(units_of(&city), ("fahrenheit", "km/h"));
    assert_eq!(city["current"]["heat_index"], 91.283411);
    let status = service.get("/v1/status").json();
    check("StatusAnswer", &status);
    assert_eq!(units_of(&status), ("celsius", "km/h"));
    let mut client = service.open("/v1/subscribe", &[]).unwrap();
    let hello = service.receive_json(&mut client);
    check_message("HelloMessage", &hello);
    assert_eq!(units_of(&hello), ("celsius", "km/h"));
    let message = subscribe(&service, &mut client, json!({"id": "a", "cities": ["5128581"]}));
    assert_eq!((units_of(&message), values(&message["rows"][0])), (("celsius", "km/h"), CELSIUS));
}

/// Subscribes, and returns the first message of the subscription.
fn subscribe(service: &TestServer, client: &mut Client, mut request: Value) -> Value {
    request["type"] = "subscribe".into();
    check_message("SubscribeMessage", &request);
    service.send_text(client, &request.to_string());
    loop {
        let message = service.receive_json(client);
        if message["id"] == request["id"] {
            return message;
        }
    }
}

#[test]
fn subscriptions_with_same_id_keep_their_own_units() {
    let service = service(OutputUnits::STORED);
    let mut clients = Vec::new();
    for (units, wind_units) in [(None, None), (Some("celsius"), None), (Some("celsius"), Some("km/h"))] {
        let mut client = service.open("/v1/subscribe", &[]).unwrap();
        let request = json!({"id": "a", "cities": "all", "units": units, "wind_units": wind_units});
        let snapshot = subscribe(&service, &mut client, without_nulls(request));
        check_message("SnapshotMessage", &snapshot);
        let expected = (units.unwrap_or("fahrenheit"), wind_units.unwrap_or("mph"));
        assert_eq!(units_of(&snapshot), expected);
        clients.push((client, expected));
    }
    service.dataflow.publish(hotter_new_york());
    for (client, expected) in &mut clients {
        let changes = loop {
            let message = service.receive_json(client);
            if message["type"] == "changes" {
                break message;
            }
        };
        check_message("ChangesMessage", &changes);
        assert_eq!(units_of(&changes), *expected);
        let row = &changes["upserts"][0];
        let [heat, wind] = ["heat_index", "wind_speed"].map(|name| row[name].as_f64().unwrap());
        assert_eq!(heat, if expected.0 == "celsius" { 35.0 } else { 95.0 });
        assert_eq!(wind, if expected.1 == "km/h" { 12.9552192 } else { 8.05 });
    }
}

fn without_nulls(request: Value) -> Value {
    let Value::Object(members) = request else { panic!("{request}") };
    members.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

#[test]
fn resume_token_continues_in_any_units() {
    let service = service(OutputUnits::STORED);
    let mut client = service.open("/v1/subscribe", &[]).unwrap();
    let snapshot = subscribe(&service, &mut client, json!({"id": "a", "cities": ["5128581"]}));
    service.dataflow.publish(hotter_new_york());
    let resume = json!({"id": "b", "cities": ["5128581"], "units": "celsius", "resume": snapshot["token"]});
    service.poll_until("/v1/cities/5128581", |reply| reply.json()["current"]["heat_index"] == 95);
    let changes = subscribe(&service, &mut client, resume);
    assert_eq!((&changes["type"], units_of(&changes)), (&json!("changes"), ("celsius", "mph")));
    assert_eq!(changes["upserts"][0]["heat_index"], 35);
    for (name, unit) in [("units", json!("kelvin")), ("units", json!(7)), ("wind_units", json!("kmh"))] {
        let mut request = json!({"type": "subscribe", "id": "c", "cities": "all"});
        request[name] = unit;
        service.send_text(&mut client, &request.to_string());
        let refused = loop {
            let message = service.receive_json(&mut client);
            if message["type"] == "error" {
                break message;
            }
        };
        assert_eq!(refused["code"], "bad_subscription", "{refused}");
    }
}
