//! `swelter why`: the readings of a row, added up again by the command.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::support::{ServiceBuilder, ServiceProcess, swelter_command};

const CITY: &str = "São \"Paulo\" / %";

fn why(service: &ServiceProcess, arguments: &[&str]) -> Output {
    let mut command = swelter_command();
    command.args(["why", CITY, "--url", &format!("http://{}", service.address)]).args(arguments);
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn record(minute: i64, temperature: f64, deleted: bool) -> Value {
    let mut record = serde_json::json!({"city": CITY, "reading_at": time(minute)});
    if deleted {
        record["deleted"] = true.into();
    } else {
        (record["temperature"], record["humidity"]) = (temperature.into(), 50.into());
    }
    record
}

fn time(minute: i64) -> String {
    let start = "2025-11-24T10:00:00Z".parse::<swelter::internals::model::EventTime>().unwrap();
    swelter::internals::model::EventTime::from_millis(start.millis() + minute * 60_000).unwrap().to_string()
}

/// A service that gives three readings a page, with 11 readings a minute apart, one of them
/// corrected and one withdrawn.
fn service_with_readings(folder: &Path) -> ServiceProcess {
    let config = "[serve.limits]\nhistory_rows = 3\n";
    let service = ServiceBuilder::new(config).data(&folder.join("data")).start().wait_until_ready();
    let mut records: Vec<Value> = (0..12).map(|minute| record(minute, 90.0 + minute as f64, false)).collect();
    records.extend([record(4, 70.0, false), record(7, 0.0, true)]);
    let positions = service.post(&Value::from(records));
    service.wait_until_applied(&positions);
    service
}

#[test]
fn why_command_shows_readings_that_give_the_mean() {
    let folder = tempfile::tempdir().unwrap();
    let service = service_with_readings(folder.path());
    let answer: Value =
        serde_json::from_str(&stdout(&why(&service, &["--reading-at", &time(11), "--json"]))).unwrap();
    let readings = answer["readings"].as_array().unwrap();
    assert_eq!((readings.len(), &answer["window"]["count"], &answer["next"]), (11, &11.into(), &Value::Null));
    let times: Vec<String> = readings.iter().map(|r| r["reading_at"].as_str().unwrap().into()).collect();
    assert_eq!(times, (0..12).filter(|minute| *minute != 7).map(time).collect::<Vec<_>>());
    let sum: i64 = readings.iter().map(|reading| reading["heat_index_e6"].as_i64().unwrap()).sum();
    assert_eq!(answer["window"]["sum_e6"], sum);
    assert_eq!(answer["row"]["rolling_heat_index"], sum as f64 / 11e6);
    assert!(readings[4]["heat_index"].as_f64().unwrap() < 75.0, "the correction counts: {}", readings[4]);
    let measured = readings.iter().filter(|reading| !reading["temperature"].is_null());
    assert_eq!(
        measured.map(|r| r["temperature"].as_f64().unwrap()).collect::<Vec<_>>(),
        [98., 99., 100., 101.]
    );

    let table = stdout(&why(&service, &["--reading-at", "2025-11-24T11:11:00+01:00"]));
    assert!(table.contains(&format!("city    {CITY}\n")), "{table}");
    assert!(table.contains(&format!("sum     {sum} × 1e-6 °F\ncount   11\n")), "{table}");
    assert_eq!(table.lines().filter(|line| line.starts_with("2025-11-24T10:")).count(), 11, "{table}");
    let celsius = stdout(&why(&service, &["--reading-at", &time(11), "--output-units", "celsius"]));
    assert!(celsius.contains(" °C = (sum / count"), "{celsius}");
    assert!(celsius.contains(&format!("sum     {sum} × 1e-6 °F\n")), "{celsius}");
    service.terminate();
}

#[test]
fn why_command_says_what_cannot_be_explained() {
    let folder = tempfile::tempdir().unwrap();
    let service = service_with_readings(folder.path());
    for (arguments, code, expected) in [
        (
            vec!["--reading-at", "2025-11-24T10:07:00Z"],
            1,
            "(unknown_row): city \"São \\\"Paulo\\\" / %\" has no reading at",
        ),
        (vec!["--reading-at", "2025-11-01T10:07:00Z"], 1, "is too long ago"),
        (vec!["--reading-at", "yesterday"], 2, "--reading-at"),
        (
            vec!["--reading-at", "2025-11-24T10:07:00Z", "--token-file", "/nowhere"],
            1,
            "/nowhere cannot be read",
        ),
    ] {
        let output = why(&service, &arguments);
        let text = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(output.stdout.is_empty());
    }
    service.terminate();
}
