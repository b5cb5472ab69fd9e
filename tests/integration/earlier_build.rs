//! Data directories and backups of an earlier build: this build continues from them unchanged.
//! `tests/fixtures/868f70f/README.md` says what they hold, and how they were made. What it has
//! written to Kafka is read by `kafka/earlier_build.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, client};

use crate::dead_letters::{counts_by_reason, run_dead_letters_ok};
use crate::support::checkpoint_files::published_manifests;
use crate::support::{ServiceBuilder, ServiceProcess, get, post, swelter_command, wait_for};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/868f70f").join(name)
}

pub fn json_fixture(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap()
}

pub fn unpack(name: &str, folder: &Path) {
    let unpacked = Command::new("tar").arg("-xzf").arg(fixture(name)).current_dir(folder).status();
    assert!(unpacked.unwrap().success());
}

fn config() -> String {
    fs::read_to_string(fixture("data.toml")).unwrap()
}

/// Starts a service on a data directory. Its clock is far ahead of the fixture's, so it accepts the
/// clock after 100 ms instead of a minute.
fn start(data: &Path) -> ServiceProcess {
    let service = ServiceBuilder::new(config()).data(data).config_file(&data.with_extension("toml"));
    service.env("SWELTER_TEST_CLOCK_AGREE_MS", "100").start().wait_until_ready()
}

fn path_of(city: &str) -> String {
    let encoded: String = city.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("/v1/cities/{encoded}")
}

/// A current row without how old it was when it was served.
fn without_age(mut row: Value) -> Value {
    let fields = row.as_object_mut().unwrap();
    assert!(fields.remove("stale").is_some_and(|stale| stale.is_boolean()));
    assert!(fields.remove("age_s").is_some_and(|age| age.is_number()));
    row
}

fn current(service: &ServiceProcess, city: &str) -> Value {
    without_age(service.get_json(&path_of(city))["current"].take())
}

fn history(service: &ServiceProcess, city: &str) -> Value {
    service.get_json(&format!("{}/history?limit=10000", path_of(city)))["rows"].take()
}

/// Compares all served rows with those that the fixture's service served.
fn check_rows(service: &ServiceProcess, expected: &Value) {
    let expected = expected.as_object().unwrap();
    let listed = service.get_json("/v1/cities")["cities"].take();
    assert_eq!(listed.as_array().unwrap().len(), expected.len(), "{listed}");
    for (city, expected) in expected {
        assert_eq!(history(service, city), expected["rows"], "{city}");
        assert_eq!(current(service, city), without_age(expected["current"].clone()), "{city}");
    }
}

/// The number of records that have been applied since the start.
pub fn records_since_start(status: &Value) -> u64 {
    let sum = |counts: &Value| -> u64 {
        counts.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
    };
    sum(&status["counts"]) + sum(&status["refused"])
}

fn generation(service: &ServiceProcess) -> u64 {
    let status = service.get_json("/v1/status");
    let text = status["generation"].as_str().unwrap();
    text.split_once('-').unwrap().0.parse().unwrap()
}

fn post_all(service: &ServiceProcess, records: &[Value]) {
    let body: Vec<String> = records.iter().map(Value::to_string).collect();
    wait_for("the post to be taken", || {
        let answer = post(&service.address, "application/x-ndjson", &body.join("\n")).unwrap();
        assert!([200, 503].contains(&answer.status), "{}", answer.body);
        (answer.status == 200).then_some(())
    });
}

/// The manifests of checkpoints by name.
pub fn checkpoints(place: &Path) -> BTreeMap<String, Value> {
    let manifest = |path: PathBuf| -> (String, Value) {
        let text = fs::read_to_string(&path).unwrap();
        let manifest: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), manifest)
    };
    published_manifests(place).into_iter().map(manifest).collect()
}

#[test]
fn data_directory_of_an_earlier_build_resumes_from_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    unpack("data.tar.gz", folder.path());
    let expected = json_fixture("data.json");
    let letters = fs::read_to_string(data.join("dead-letters.jsonl")).unwrap();
    let again = fs::read_to_string(data.join("dead-letters.2.jsonl")).unwrap();
    let files = ["generation-0", "generation-1", "journal/id", "journal/clock"];
    let before = files.map(|name| json_file(&data, name));
    let (base, newest) = (checkpoints(&data.join("checkpoints")), expected["checkpoint"].as_str().unwrap());
    assert_eq!(base.keys().last().unwrap(), newest);
    assert!(base[newest]["adds_to"].is_string(), "the newest of the fixture is an increment");

    let service = start(&data);
    check_rows(&service, &expected["cities"]);
    // It restored that checkpoint and read the records behind it once.
    let number = |name: &str| expected[name].as_u64().unwrap();
    assert_eq!(records_since_start(&service.get_json("/v1/status")), number("applied") - number("covered"));
    assert!(number("applied") > number("covered"));
    assert!(service.log().contains(newest), "{}", service.log());
    let generation_before: u64 =
        expected["generation"].as_str().unwrap().split_once('-').unwrap().0.parse().unwrap();
    assert_eq!(generation(&service), generation_before + 1);
    assert!(service.get_json("/v1/status")["as_of"].as_u64() > expected["as_of"].as_u64());

    // It continues: a known reading is corrected, one is withdrawn, and another city is new.
    let at = "2025-08-01T10:10:00Z";
    let reading = |city: &str| json!({"city": city, "reading_at": at, "temperature": 101.5, "humidity": 50});
    let withdrawal = json!({"city": "2643743", "reading_at": at, "deleted": true});
    post_all(&service, &[reading("5128581"), withdrawal, reading("new")]);
    let row_at = |city: &str| {
        let rows = history(&service, city);
        rows.as_array().unwrap().iter().find(|row| row["reading_at"] == at).cloned()
    };
    wait_for("the new city", || {
        (get(&service.address, &path_of("new")).unwrap().status == 200).then_some(())
    });
    let new = wait_for("its row", || row_at("new"));
    wait_for("the correction", || (row_at("5128581")?["heat_index"] == new["heat_index"]).then_some(()));
    wait_for("the withdrawal", || row_at("2643743").is_none().then_some(()));
    // Its own checkpoint follows and contains all of that.
    wait_for("a checkpoint of this run", || {
        let all = checkpoints(&data.join("checkpoints"));
        let whole = |manifest: &Value| {
            let positions = manifest["positions"]["journal"].as_object().unwrap();
            positions.values().map(|end| end.as_u64().unwrap()).sum::<u64>() == number("applied") + 3
        };
        all.range(newest.to_owned()..).any(|(_, manifest)| whole(manifest)).then_some(())
    });
    let rows: Vec<Value> = ["5128581", "2643743", "b", "new"].map(|city| history(&service, city)).into();
    service.terminate();
    let mut all = checkpoints(&data.join("checkpoints")).into_values().rev();
    // A checkpoint of an epoch without changes has no segments.
    let own = all.find(|manifest| manifest["segments"] != json!([])).unwrap();
    assert_ne!(own["generation"], base[newest]["generation"]);
    check_written("manifest", &base[newest], &own);
    for (name, before) in files.iter().zip(&before) {
        check_written(name, before, &json_file(&data, name));
    }
    assert_eq!(
        fs::read_to_string(data.join("dead-letters.jsonl")).unwrap(),
        letters,
        "none is written twice"
    );
    assert_eq!(fs::read_to_string(data.join("dead-letters.2.jsonl")).unwrap(), again);

    let service = start(&data);
    assert_eq!(records_since_start(&service.get_json("/v1/status")), 0);
    let same: Vec<Value> = ["5128581", "2643743", "b", "new"].map(|city| history(&service, city)).into();
    assert_eq!(same, rows);
    service.terminate();
}

#[test]
fn data_directory_of_an_earlier_build_gives_the_same_rows_without_its_newest_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    unpack("data.tar.gz", folder.path());
    let expected = json_fixture("data.json");
    let all = checkpoints(&data.join("checkpoints"));
    let oldest = all.keys().next().unwrap();
    let manifests = data.join("checkpoints/manifests");
    for name in all.keys().filter(|name| *name != oldest) {
        fs::remove_file(manifests.join(format!("{name}.json"))).unwrap();
    }
    let covered: u64 = all[oldest]["positions"]["journal"]
        .as_object()
        .unwrap()
        .values()
        .map(|position| position.as_u64().unwrap())
        .sum();
    let service = start(&data);
    check_rows(&service, &expected["cities"]);
    assert_eq!(
        records_since_start(&service.get_json("/v1/status")),
        expected["applied"].as_u64().unwrap() - covered
    );
    service.terminate();
}

#[test]
fn dead_letters_of_an_earlier_build_are_listed_and_retried_once() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    unpack("data.tar.gz", folder.path());
    // The journal has accepted the clock by then.
    start(&data).terminate();
    let said = |args: &[&str]| run_dead_letters_ok(&data, args);
    let list: Value = serde_json::from_str(&said(&["list", "--json"])).unwrap();
    assert_eq!(counts_by_reason(&list), [("in_the_future", 2), ("too_late", 1), ("too_late", 1)], "{list}");
    // The earlier build has retried the dead letter that is too late.
    let sent = said(&["retry", "--reason", "too_late"]);
    assert!(sent.contains("sent 0") && sent.contains("1 were sent by an earlier retry"), "{sent}");
    let sent = said(&["retry"]);
    assert!(sent.contains("sent 2 dead letters") && sent.contains("in_the_future: 2"), "{sent}");
    assert!(said(&["retry"]).contains("sent 0"));
    let expected = json_fixture("data.json");
    let service = start(&data);
    for (city, temperature) in [("early", 90), ("b", 95)] {
        let row = current(&service, city);
        assert_eq!(
            (&row["temperature"], &row["reading_at"]),
            (&json!(temperature), &expected["ahead"]),
            "{city}"
        );
    }
    service.terminate();
}

#[test]
fn backup_of_an_earlier_build_is_verified_and_restored() {
    let folder = tempfile::tempdir().unwrap();
    unpack("backup.tar.gz", folder.path());
    let (backups, data) = (folder.path().join("backups"), folder.path().join("data"));
    let run = |arguments: [&str; 2], more: &[&Path]| {
        let mut command = swelter_command();
        let output = command.args(arguments).arg(&backups).args(more).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(["backup", "--verify"], &[]);
    run(["restore", "--from"], &[Path::new("--data-dir"), &data]);
    let service = start(&data);
    check_rows(&service, &json_fixture("backup.json"));
    service.terminate();
}

/// Checks that a value has all expected fields with the same JSON types. A field that was null may
/// have a value now, and the other way round.
fn check_fields(name: &str, expected: &Value, found: &Value) {
    match expected {
        Value::Object(fields) => {
            for (field, expected) in fields {
                let found = found.get(field).unwrap_or_else(|| panic!("{name} has no {field}: {found}"));
                check_fields(&format!("{name}.{field}"), expected, found);
            }
        }
        Value::Array(items) => {
            let found = found.as_array().unwrap_or_else(|| panic!("{name} is no list: {found}"));
            for (expected, found) in items.iter().zip(found) {
                check_fields(&format!("{name}[]"), expected, found);
            }
            assert!(items.is_empty() || !found.is_empty(), "{name} is empty");
        }
        kind => {
            let found = match found {
                Value::Null => return,
                Value::Bool(_) => "boolean",
                Value::Number(_) => "number",
                Value::String(_) => "string",
                Value::Array(_) | Value::Object(_) => "composite",
            };
            assert!(kind == found || kind == "null", "{name} is a {found}, and was a {kind}");
        }
    }
}

/// The expected shape for [`check_fields`].
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect(),
        Value::Array(items) => items.iter().take(1).map(shape).collect(),
        Value::Null => json!("null"),
        Value::Bool(_) => json!("boolean"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("string"),
    }
}

/// Checks that the fields of a value are still those of an earlier build.
pub fn check_written(name: &str, earlier: &Value, now: &Value) {
    check_fields(name, &shape(earlier), now);
}

/// The first line of a file of a data directory, as JSON.
fn json_file(data: &Path, name: &str) -> Value {
    let text = fs::read_to_string(data.join(name)).unwrap();
    serde_json::from_str(text.lines().next().unwrap())
        .unwrap_or_else(|error| panic!("{name}: {error}: {text}"))
}

/// The metrics of a service: types and label names.
pub fn metrics_of(text: &str) -> BTreeMap<String, (String, Vec<Vec<String>>)> {
    let mut found = BTreeMap::<String, (String, Vec<Vec<String>>)>::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            found.insert(name.to_owned(), (kind.to_owned(), Vec::new()));
        }
    }
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let sample = line.rsplit_once(' ').unwrap().0;
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let name = if found.contains_key(name) { name } else { histogram.unwrap() };
        // No value of a label here has a quote in it.
        let mut labels: Vec<String> = labels
            .split('"')
            .step_by(2)
            .filter_map(|label| label.strip_suffix('='))
            .map(|label| label.trim_start_matches(',').to_owned())
            .filter(|label| label != "le")
            .collect();
        labels.sort();
        let (_, all) = found.get_mut(name).unwrap();
        if !all.contains(&labels) {
            all.push(labels);
        }
    }
    found
}

/// Checks that all metrics of an earlier build's run exist. There may be more.
pub fn check_metrics(run: &str, address: &str) {
    let text = get(address, "/metrics").unwrap().body;
    let found = metrics_of(&text);
    for (name, expected) in json_fixture("metrics.json")[run].as_object().unwrap() {
        let (kind, labels) = found.get(name).unwrap_or_else(|| panic!("there is no {name}:\n{text}"));
        assert_eq!(&expected["type"], kind, "{name}");
        for of_one in expected["labels"].as_array().unwrap() {
            let of_one: Vec<String> = serde_json::from_value(of_one.clone()).unwrap();
            assert!(labels.contains(&of_one), "{name} has the labels {labels:?}, and had {of_one:?}");
        }
    }
}

#[test]
fn answers_and_metrics_have_all_fields_and_names_of_an_earlier_build() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    unpack("data.tar.gz", folder.path());
    let service = start(&data);
    let answers = json_fixture("answers.json");
    for (name, expected) in answers["rest"].as_object().unwrap() {
        let answer = get(&service.address, expected["path"].as_str().unwrap()).unwrap();
        let mut fields = expected["fields"].clone();
        // Labels by reason: those of the earlier run.
        fields.as_object_mut().unwrap().remove("refused");
        check_fields(name, &fields, &serde_json::from_str(&answer.body).unwrap());
    }
    let stream = std::net::TcpStream::connect(&service.address).unwrap();
    stream.set_read_timeout(Some(crate::support::WAIT_TIMEOUT)).unwrap();
    let (mut socket, _) = client(format!("ws://{}/v1/subscribe", service.address), stream).unwrap();
    let heard = &answers["websocket"]["heard"];
    let mut hear = |ask: Option<&Value>, kind: &Value| {
        if let Some(ask) = ask {
            socket.send(Message::text(ask.to_string())).unwrap();
        }
        loop {
            let Message::Text(text) = socket.read().unwrap() else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["type"] == *kind {
                break message;
            }
        }
    };
    check_fields("hello", &heard["hello"], &hear(None, &json!("hello")));
    for asked in answers["websocket"]["asked"].as_array().unwrap() {
        let name = asked["name"].as_str().unwrap();
        check_fields(name, &heard[name], &hear(Some(&asked["ask"]), &asked["hear"]));
    }
    let reading = |at: &str| json!({"city": "two", "reading_at": at, "temperature": 80, "humidity": 50});
    post_all(&service, &[reading("2025-08-01T10:00:00Z"), reading("2025-07-01T10:00:00Z")]);
    wait_for("a refusal", || (service.get_json("/v1/status")["refused"]["too_late"] == 1).then_some(()));
    let letter = wait_for("its dead letter", || {
        let text = fs::read_to_string(data.join("dead-letters.jsonl")).ok()?;
        text.lines().nth(3).and_then(|line| serde_json::from_str(line).ok())
    });
    check_written("dead letter", &json_file(&data, "dead-letters.jsonl"), &letter);
    wait_for("a checkpoint of this run", || {
        get(&service.address, "/metrics").unwrap().body.contains("swelter_checkpoint_bytes").then_some(())
    });
    check_metrics("journal", &service.address);
    service.terminate();
}
