//! The service with its sources, and refused starts.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use swelter::internals::run::data_dir::DataDir;

use crate::support::http::KeepAliveClient;
use crate::support::{ServiceBuilder, ServiceProcess, get, post, swelter_command, wait_for};

/// The begin of the current minute, ms.
fn current_minute_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond() / 60_000 * 60_000
}

fn reading(city: &str, minutes_ago: i64, temperature: f64) -> String {
    reading_at(city, current_minute_ms() - minutes_ago * 60_000, temperature)
}

fn reading_at(city: &str, at: i64, temperature: f64) -> String {
    let at = swelter::internals::model::EventTime::from_millis(at).unwrap();
    format!(r#"{{"city":"{city}","reading_at":"{at}","temperature":{temperature},"humidity":50}}"#)
}

fn current_row(service: &ServiceProcess, city: &str) -> Option<Value> {
    let answer = get(&service.address, &format!("/v1/cities/{city}")).unwrap();
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    (answer.status == 200).then(|| body["current"].clone())
}

fn source_status(service: &ServiceProcess, name: &str) -> Value {
    let status = service.get_json("/v1/status");
    let sources = status["sources"].as_array().unwrap();
    sources.iter().find(|source| source["name"] == name).unwrap_or_else(|| panic!("{status}")).clone()
}

/// A cold morning: by default the heat index is the temperature of the air; by `rothfusz` there is
/// a warning.
#[test]
fn cold_readings_use_air_temperature_and_rothfusz_warns_once() {
    for (config, heat_index, warnings) in [("", 9.6, 0), ("[results]\nformula = \"rothfusz\"\n", 329.5, 1)] {
        let folder = tempfile::tempdir().unwrap();
        let service = ServiceProcess::start(&folder.path().join("data"), config).wait_until_ready();
        for minutes in [3, 2, 1] {
            post(&service.address, "application/json", &reading("Moscow", minutes, 9.6)).unwrap();
        }
        let row =
            wait_for("the last reading", || current_row(&service, "Moscow").filter(|row| row["count"] == 3));
        let found = row["heat_index"].as_f64().unwrap();
        assert!((found - heat_index).abs() <= 200.0 * warnings as f64, "{row}");
        assert_eq!(row["category"], "none");
        let log = service.log();
        assert_eq!(
            log.matches("the formula rothfusz is not made for readings below 80 °F").count(),
            warnings,
            "{log}"
        );
        service.terminate();
    }
}

/// As if the log went to a file on a full disk.
#[test]
fn unwritable_stderr_does_not_end_service() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut child = swelter_command()
        .args(["run", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(folder.path().join("data"))
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::options().write(true).open("/dev/full").unwrap())
        .spawn()
        .unwrap();
    let listening = wait_for("that it listens or ends", || {
        let said = fs::read_to_string(&out).unwrap();
        let ended = child.try_wait().unwrap();
        (said.ends_with('\n') || ended.is_some()).then_some(ended.is_none())
    });
    let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    let status = wait_for("the end", || child.try_wait().unwrap());
    assert!(listening && status.success(), "{status}");
}

#[test]
fn file_generator_and_post_sources_are_served_together() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (once, followed) = (folder.path().join("once.csv"), folder.path().join("followed.jsonl"));
    fs::write(
        &once,
        "city,reading_at,temperature,humidity\nold,2025-07-01T00:00:00Z,90,50\nold,2025-07-01T01:00:00Z,hot,50\n",
    )
    .unwrap();
    fs::write(&followed, reading("grows", 5, 80.0) + "\n").unwrap();
    let config = format!(
        "workers = 2\n[[sources]]\nname = 'once'\ntype = 'file'\npath = '{}'\n[[sources]]\nname = 'followed'\ntype = 'file'\npath = '{}'\nfollow = true\n\
         [[sources]]\nname = 'made-up'\ntype = 'generator'\ncities = 20\nhistory = '2h'\nlate = 0.05\ncorrections = 0.05\n",
        once.display(),
        followed.display()
    );
    for start in 1..=2 {
        let service = ServiceProcess::start(&data, &config).wait_until_ready();
        let posted = post(&service.address, "application/json", &reading("posted", start, 85.0)).unwrap();
        assert_eq!(posted.status, 200, "{}", posted.body);
        let made_up = &swelter::internals::directory::Directory::shipped().cities()[19].id.to_string();
        for city in ["old", "grows", "posted", made_up] {
            wait_for(city, || current_row(&service, city).filter(|row| !row.is_null()));
        }
        assert_eq!(current_row(&service, "old").unwrap()["count"], 1);
        wait_for("the whole past", || {
            current_row(&service, made_up).filter(|row| row["count"].as_u64() >= Some(110))
        });
        assert_eq!(service.get_json("/v1/status")["refused"]["bad_number"], 1);
        // A line counts once it is complete.
        let mut file = fs::File::options().append(true).open(&followed).unwrap();
        let line = reading("grows", 5, 80.0 + f64::from(start as u32)) + "\n";
        let (first, rest) = line.split_at(20);
        file.write_all(first.as_bytes()).unwrap();
        file.write_all(rest.as_bytes()).unwrap();
        wait_for("the correction in the file", || {
            (current_row(&service, "grows")?["temperature"] == 80.0 + f64::from(start as u32)).then_some(())
        });
        assert_eq!(source_status(&service, "followed")["partitions"][0]["applied"], 1 + start);
        service.terminate();
    }
    let letters = fs::read_to_string(data.join("dead-letters.jsonl")).unwrap();
    assert_eq!(letters.lines().count(), 1, "{letters}");
    assert!(letters.contains(r#""raw":"old,2025-07-01T01:00:00Z,hot,50""#), "{letters}");
}

/// The newest checkpoint's state of a city, if it has one.
fn checkpointed_city(data: &Path, city: &str) -> Option<Value> {
    let mut command = swelter_command();
    command.args(["checkpoints", "show", "--json", "--city", city, "--data-dir"]).arg(data);
    let output = command.output().unwrap();
    output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
}

/// The mark of such a city is kept in checkpoints.
#[test]
fn city_in_two_logs_is_served_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("city.jsonl"));
    fs::write(&file, reading("both", 9, 80.0) + "\n").unwrap();
    let config =
        format!("[checkpoints]\nevery = '1s'\n[[sources]]\ntype = 'file'\npath = '{}'\n", file.display());
    let service = ServiceProcess::start(&data, &config).wait_until_ready();
    post(&service.address, "application/json", &reading("both", 3, 90.0)).unwrap();
    let row = wait_for("both readings", || current_row(&service, "both").filter(|row| row["count"] == 2));
    assert_eq!(row["temperature"], 90);
    assert_eq!(service.get_json("/v1/status")["split_city"], 1);
    let whole = |city: &Value| city["readings"].as_array().unwrap().len() == 2;
    let city = wait_for("a checkpoint", || checkpointed_city(&data, "both").filter(whole));
    assert_eq!((&city["split"], &city["open_periods"]), (&Value::Bool(true), &Value::Null), "{city}");
    service.terminate();
    // Nothing of the city comes after the checkpoint.
    let service = ServiceProcess::start(&data, &config).wait_until_ready();
    assert_eq!(current_row(&service, "both").unwrap()["count"], 2);
    assert_eq!(service.get_json("/v1/status")["split_city"], 1);
    service.terminate();
}

#[test]
fn generator_only_service_needs_no_data_directory() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let config = "[ingest]\nenabled = false\n[[sources]]\nname = 'load'\ntype = 'generator'\ncities = 50\ninterval = '1s'\nhistory = '1h'\n\
                  history_interval = '1m'\ncorrections = 0.1\n";
    let service = ServiceProcess::start(&data, config).wait_until_ready();
    wait_for("corrections of the past", || {
        (service.get_json("/v1/status")["counts"]["corrected"].as_u64() > Some(10)).then_some(())
    });
    let answer = post(&service.address, "application/json", &reading("x", 0, 80.0)).unwrap();
    assert_eq!(answer.status, 503, "{}", answer.body);
    service.terminate();
    assert!(!data.exists());
}

/// As after an hour with a clock that was ahead.
#[test]
fn clock_set_back_does_not_hold_readings_back() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let now = jiff::Timestamp::now().as_millisecond() as u64;
    DataDir::open(&data).unwrap().reserve_epochs(now + 3_600_000).unwrap();
    let service = ServiceProcess::start(&data, "").wait_until_ready();
    let count =
        |service: &ServiceProcess| current_row(service, "x").map_or(0, |row| row["count"].as_u64().unwrap());
    // Another minute may begin meanwhile, so times are counted from this one.
    let minute = current_minute_ms();
    assert_eq!(
        post(&service.address, "application/json", &reading_at("x", minute, 80.0)).unwrap().status,
        200
    );
    wait_for("the first reading", || (count(&service) == 1).then_some(()));
    // Each request takes at least one epoch, and all take more than are reserved at once (3 s of
    // them).
    let (requests, mut client) = (4_000, KeepAliveClient::open(&service.address));
    for sent in 1..=requests {
        assert_eq!(client.get("/v1/cities/x/history?limit=1").status, 200);
        if sent % 500 == 0 {
            let posted = reading_at("x", minute - sent as i64 / 500 * 60_000, 80.0);
            assert_eq!(post(&service.address, "application/json", &posted).unwrap().status, 200);
            wait_for("the reading", || (count(&service) == 1 + sent / 500).then_some(()));
        }
    }
    assert!(service.get_json("/v1/status")["as_of"].as_u64().unwrap() > now + 3_600_000 + requests);
    service.terminate();
}

/// Other rules may refuse other records, at positions that have dead letters already.
#[test]
fn changed_rules_start_new_dead_letter_files() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let letters = |name: &str| fs::read_to_string(data.join(name)).unwrap().lines().count();
    let service = ServiceProcess::start(&data, "").wait_until_ready();
    let log = [reading("x", 0, 80.0), reading("x", 90, 80.0), reading("x", 2 * 1440, 80.0)].join("\n");
    assert_eq!(post(&service.address, "application/x-ndjson", &log).unwrap().status, 200);
    wait_for("the refusal", || (service.get_json("/v1/status")["refused"]["too_late"] == 1).then_some(()));
    service.terminate();
    assert_eq!(letters("dead-letters.jsonl"), 1);
    ServiceProcess::start(&data, "[results]\nlateness = '1h'\n").wait_until_ready().terminate();
    assert_eq!((letters("dead-letters.jsonl"), letters("dead-letters.old-1.jsonl")), (2, 1));
}

#[test]
fn start_failures_name_cause_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let said = |config: &str, listen: &str, expected: &[&str]| {
        let (code, text) = ServiceBuilder::new(config).data(&data).listen(listen).run_to_end();
        assert_eq!(code, Some(1), "{text}");
        expected.iter().for_each(|expected| assert!(text.contains(expected), "{expected} is not in {text}"));
    };
    let service = ServiceProcess::start(&data, "").wait_until_ready();
    let late = format!("[{},{}]", reading("x", 0, 80.0), reading("x", 2 * 1440, 80.0));
    assert_eq!(post(&service.address, "application/json", &late).unwrap().status, 200);
    wait_for("the dead letter", || {
        (service.get_json("/v1/status")["refused"]["too_late"] == 1).then_some(())
    });
    said("", "127.0.0.1:0", &["in use by another process"]);
    let elsewhere = folder.path().join("elsewhere");
    let (_, text) = ServiceBuilder::new("").data(&elsewhere).listen(&service.address).run_to_end();
    assert!(text.contains("cannot listen on") && text.contains("take another address"), "{text}");
    service.terminate();
    said("[ingest]\npartitions = 3\n", "127.0.0.1:0", &["has 16 partitions, not 3"]);
    fs::remove_dir_all(data.join("journal")).unwrap();
    said("", "127.0.0.1:0", &["dead-letters.jsonl", "move it away"]);
    fs::remove_file(data.join("dead-letters.jsonl")).unwrap();
    ServiceProcess::start(&data, "").wait_until_ready().terminate();
}
