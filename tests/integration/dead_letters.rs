//! Dead letters of the journal with the built program: listed, retried, edited and resubmitted.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use swelter::internals::model::EventTime;

use crate::support::{ServiceProcess, get, post, swelter_command, wait_for};

const CONFIG: &str = "[results]\nmax_ahead = '1s'\n";

/// Runs `swelter dead-letters` over the configuration that a service was started with.
pub fn run_dead_letters(data: &Path, args: &[&str]) -> Output {
    let mut command = swelter_command();
    command.arg("dead-letters").args(args).arg("--config").arg(data.with_extension("toml"));
    command.arg("--data-dir").arg(data).output().unwrap()
}

pub fn run_dead_letters_ok(data: &Path, args: &[&str]) -> String {
    let output = run_dead_letters(data, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The counts of `swelter dead-letters list --json`, in their order.
pub fn counts_by_reason(list: &Value) -> Vec<(&str, u64)> {
    let counts = list["counts"].as_array().unwrap().iter();
    counts.map(|count| (count["reason"].as_str().unwrap(), count["letters"].as_u64().unwrap())).collect()
}

fn time(millis: i64) -> String {
    EventTime::from_millis(millis).unwrap().to_string()
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn reading(city: &str, at: i64, temperature: f64) -> String {
    let at = time(at);
    format!(r#"{{"city":"{city}","reading_at":"{at}","temperature":{temperature},"humidity":50}}"#)
}

fn withdrawal(city: &str, at: i64) -> String {
    format!(r#"{{"city":"{city}","reading_at":"{}","deleted":true}}"#, time(at))
}

fn post_accepted(service: &ServiceProcess, record: &str) {
    assert_eq!(post(&service.address, "application/json", record).unwrap().status, 200);
}

fn current_row(service: &ServiceProcess, city: &str) -> Option<Value> {
    let answer = get(&service.address, &format!("/v1/cities/{city}")).unwrap();
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    (answer.status == 200).then(|| body["current"].clone()).filter(|row| !row.is_null())
}

fn outcome_count(service: &ServiceProcess, what: &str) -> u64 {
    service.get_json("/v1/status")["counts"][what].as_u64().unwrap()
}

fn wait_for_refusals(service: &ServiceProcess, reason: &str, count: u64) {
    wait_for(reason, || (service.get_json("/v1/status")["refused"][reason] == count).then_some(()));
}

/// Lines of a file of the data directory.
fn json_lines_of(data: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(data.join(name)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A journal with readings that other rules refuse: a stricter start reads them again.
const LENIENT_CONFIG: &str = "[results]\nmax_ahead = '1h'\n";

/// Starts a service with readings of the cities a, b, c, which were too far in the future and are
/// accepted now; b was corrected and c withdrawn since. `late` is refused for good.
fn make_dead_letters(data: &Path) -> i64 {
    let service = ServiceProcess::start(data, LENIENT_CONFIG).wait_until_ready();
    let at = now() + 8_000;
    for city in ["a", "b", "c"] {
        post_accepted(&service, &reading(city, at, 90.0));
    }
    post_accepted(&service, &withdrawal("a", at));
    service.terminate();
    let service = ServiceProcess::start(data, CONFIG).wait_until_ready();
    wait_for_refusals(&service, "in_the_future", 4);
    let late = [now(), now() - 2 * 86_400_000].map(|at| reading("late", at, 80.0));
    post_accepted(&service, &format!("[{}]", late.join(",")));
    wait_for_refusals(&service, "too_late", 1);
    wait_for("the future", || (now() > at).then_some(()));
    post_accepted(&service, &reading("b", at, 70.0));
    post_accepted(&service, &withdrawal("c", at));
    wait_for("what came since", || (outcome_count(&service, "nothing_to_withdraw") == 1).then_some(()));
    wait_for("the correction", || current_row(&service, "b"));
    service.terminate();
    at
}

#[test]
fn retried_reading_counts_only_if_nothing_newer_arrived() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    make_dead_letters(&data);
    let list: Value = serde_json::from_str(&run_dead_letters_ok(&data, &["list", "--json"])).unwrap();
    assert_eq!(counts_by_reason(&list), [("in_the_future", 4), ("too_late", 1)]);
    assert_eq!(list["newest"].as_array().unwrap().len(), 5);
    let first = run_dead_letters_ok(&data, &["retry"]);
    assert!(first.contains("sent 3 dead letters") && first.contains("1 are withdrawals"), "{first}");
    for _ in 0..2 {
        let again = run_dead_letters_ok(&data, &["retry"]);
        assert!(
            again.contains("sent 0 dead letters") && again.contains("3 were sent by an earlier retry"),
            "{again}"
        );
        let service = ServiceProcess::start(&data, CONFIG).wait_until_ready();
        assert_eq!(current_row(&service, "a").unwrap()["temperature"], 90);
        assert_eq!(current_row(&service, "b").unwrap()["temperature"], 70);
        assert_eq!(current_row(&service, "c"), None);
        assert_eq!((outcome_count(&service, "superseded"), outcome_count(&service, "corrected")), (2, 0));
        service.terminate();
    }
    assert!(json_lines_of(&data, "dead-letters.2.jsonl").is_empty());
    // Only a running service may retry.
    let service = ServiceProcess::start(&data, CONFIG).wait_until_ready();
    let output = run_dead_letters(&data, &["retry"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("in use by another process"), "{error}");
    assert!(error.contains("ingest.retry_after"), "{error}");
    service.terminate();
}

#[test]
fn refused_retry_stays_and_edited_record_counts() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    make_dead_letters(&data);
    let sent = run_dead_letters_ok(&data, &["retry", "--reason", "too_late"]);
    assert!(sent.contains("too_late: 1"), "{sent}");
    for _ in 0..2 {
        assert!(run_dead_letters_ok(&data, &["retry", "--reason", "too_late"]).contains("sent 0"));
        let service = ServiceProcess::start(&data, CONFIG).wait_until_ready();
        wait_for_refusals(&service, "too_late", 2);
        service.terminate();
        let again = json_lines_of(&data, "dead-letters.2.jsonl");
        assert_eq!(again.len(), 1, "{again:?}");
        let first = json_lines_of(&data, "dead-letters.jsonl");
        let origin = first.iter().find(|letter| letter["reason"] == "too_late").unwrap();
        let place = format!("journal/{}/{}", origin["partition"], origin["position"]);
        assert_eq!((&again[0]["origin"], &again[0]["attempt"]), (&Value::from(place), &Value::from(1)));
        assert_eq!((&again[0]["first_seen_at"], &again[0]["raw"]), (&origin["arrived_at"], &origin["raw"]));
    }
    let again = &json_lines_of(&data, "dead-letters.2.jsonl")[0];
    let position = format!("journal/{}/{}", again["partition"], again["position"]);
    let shown = run_dead_letters_ok(&data, &["show", &position]);
    assert!(shown.contains("attempt     1") && shown.contains(again["raw"].as_str().unwrap()), "{shown}");
    let nothing = run_dead_letters(&data, &["show", "journal/0/999"]);
    assert!(!nothing.status.success());

    let exported = folder.path().join("letters.jsonl");
    let out = exported.to_str().unwrap();
    run_dead_letters_ok(&data, &["export", "--out", out, "--reason", "too_late"]);
    let text = fs::read_to_string(&exported).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let edited = |raw: String| {
        let mut line = line.clone();
        line["raw"] = raw.into();
        line.to_string()
    };
    let right = edited(reading("late", now(), 99.0));
    fs::write(&exported, format!("{right}\n{}\n", edited("{".into()))).unwrap();
    let wrong = run_dead_letters(&data, &["resubmit", out]);
    let error = String::from_utf8(wrong.stderr).unwrap();
    assert!(error.contains("line 2: not_decodable") && error.contains("nothing was sent"), "{error}");
    fs::write(&exported, right + "\n").unwrap();
    assert_eq!(run_dead_letters_ok(&data, &["resubmit", out]), "resubmitted 1 records\n");
    let service = ServiceProcess::start(&data, CONFIG).wait_until_ready();
    assert_eq!(current_row(&service, "late").unwrap()["temperature"], 99);
    service.terminate();
}

#[test]
fn service_retries_dead_letters_after_delay() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let config = CONFIG.to_owned() + "[ingest]\nretry_after = '3s'\n";
    let service = ServiceProcess::start(&data, LENIENT_CONFIG).wait_until_ready();
    post_accepted(&service, &reading("a", now() + 3_500, 90.0));
    service.terminate();
    let service = ServiceProcess::start(&data, &config).wait_until_ready();
    let late = [now(), now() - 2 * 86_400_000].map(|at| reading("late", at, 80.0));
    post_accepted(&service, &format!("[{}]", late.join(",")));
    wait_for_refusals(&service, "in_the_future", 1);
    wait_for_refusals(&service, "too_late", 1);
    let row = wait_for("the reading that came too early", || current_row(&service, "a"));
    assert_eq!(row["temperature"], 90);
    assert_eq!(service.get_json("/v1/status")["refused"]["too_late"], 1);
    service.terminate();
    assert!(run_dead_letters_ok(&data, &["retry"]).contains("1 were sent by an earlier retry"));
}
