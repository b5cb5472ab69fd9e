//! Units of outputs, and fields of readings in other units, with the built program.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{ServiceProcess, post, swelter_command, wait_for};

/// Runs a command that must succeed; returns its standard error.
fn swelter(folder: &Path, args: &[&str]) -> String {
    let output = swelter_command().current_dir(folder).args(args).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {said}");
    said
}

const LOG_CSV: &str = "city,reading_at,temperature,humidity,wind_speed,unit\n\
                   x,2025-07-01T00:00:00Z,86.18,50,10,C\n\
                   x,2025-07-01T01:00:00Z,-40,50,,C\n";

#[test]
fn batch_writes_every_output_in_requested_units() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    fs::write(dir.join("log.csv"), LOG_CSV).unwrap();
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let outputs =
        ["--changes", "changes.jsonl", "--daily", "days.csv", "--plot", "x.svg", "--formula", "nws"];
    let said = swelter(dir, &[&["batch", "log.csv", "-o", "rows.csv"], &outputs[..]].concat());
    assert!(said.contains("2 fields ignored") && said.contains("also if they name units: unit\n"), "{said}");
    let header = "city,reading_at,temperature,humidity,wind_speed,heat_index,rolling_heat_index,count";
    let rows = read("rows.csv");
    let line = |text: &str, at: usize| text.lines().nth(at).unwrap().to_owned();
    let fields = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<_>>();
    assert!(line(&rows, 0).starts_with(header) && line(&rows, 0).contains("units,wind_units"), "{rows}");
    let fahrenheit = fields(&line(&rows, 2));
    assert_eq!(fahrenheit[2], "-40");
    assert!(line(&rows, 2).contains("fahrenheit,mph") && read("x.svg").contains("°F"), "{rows}");

    let celsius = ["--output-units", "celsius", "--output-wind-units", "km/h"];
    swelter(dir, &[&["batch", "log.csv", "-o", "rows.csv"], &outputs[..], &celsius[..]].concat());
    let rows = read("rows.csv");
    let (first, second) = (fields(&line(&rows, 1)), fields(&line(&rows, 2)));
    assert_eq!((&*first[2], &*first[4]), ("30.1", "16.09344"));
    assert!(line(&rows, 1).contains("celsius,km/h"), "{rows}");
    // By nws it is the temperature, where it is cold.
    assert_eq!((&*second[2], &*second[4], &*second[5]), ("-40", "", "-40"));
    assert!(
        line(&read("days.csv"), 0).ends_with(",units") && line(&read("days.csv"), 1).ends_with(",celsius")
    );
    for change in read("changes.jsonl").lines() {
        let change: Value = serde_json::from_str(change).unwrap();
        assert_eq!(change["units"], "celsius");
        if change["reading_at"] == "2025-07-01T01:00:00Z" {
            assert_eq!(change["after"]["heat_index"], -40);
        }
    }
    assert!(read("x.svg").contains("°C") && !read("x.svg").contains("°F"));
    let refused = swelter_command()
        .current_dir(dir)
        .args(["batch", "log.csv", "--output-units", "kelvin"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("fahrenheit, celsius"));
}

#[test]
fn unknown_fields_are_counted_and_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start(&folder.path().join("data"), "[results]\nunits = 'celsius'\n")
        .wait_until_ready();
    let at = |minutes: i64| {
        let millis = jiff::Timestamp::now().as_millisecond() - minutes * 60_000;
        swelter::internals::model::EventTime::from_millis(millis).unwrap().to_string()
    };
    let reading = |minutes: i64| json!({"city": "x", "reading_at": at(minutes), "temperature": 86.18, "humidity": 50, "unit": "C"});
    let body = Value::from(vec![reading(3), reading(2), reading(1)]).to_string();
    assert_eq!(post(&service.address, "application/json", &body).unwrap().status, 200);
    let current = wait_for("the readings", || {
        let cities = service.get_json("/v1/cities");
        let current = cities["cities"][0]["current"].clone();
        (current["count"] == 3).then_some((cities, current))
    });
    // A Fahrenheit that is called Celsius stays one.
    assert_eq!((&current.0["units"], &current.1["temperature"]), (&json!("celsius"), &json!(30.1)));
    let metrics = crate::support::get(&service.address, "/metrics").unwrap().body;
    let counted = metrics.lines().find(|line| line.starts_with("swelter_unknown_fields_total"));
    assert_eq!(counted, Some("swelter_unknown_fields_total 3"));
    let log = service.log();
    assert_eq!(log.matches("an unknown field, which is ignored").count(), 1, "{log}");
    let line = log.lines().find(|line| line.contains("an unknown field, which is ignored")).unwrap();
    assert!(line.contains("unit"), "{line}");
    service.terminate();
}
