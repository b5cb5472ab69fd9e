//! Checkpoints as people use them: on a store that speaks S3, by DuckDB, and by the command line.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{Service, get, post, wait_for};

fn python() -> Option<OsString> {
    let python = std::env::var_os("TEST_PYTHON");
    if python.is_none() {
        eprintln!(
            "NOT TESTED: a store that speaks S3, and DuckDB, need TEST_PYTHON, which scripts/test sets"
        );
    }
    python
}

fn swelter(arguments: &[&str], variables: &[(&str, String)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swelter"));
    command.args(arguments).envs(variables.iter().map(|(name, value)| (name, value))).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// 30 cities, a reading each minute from one to another.
fn post_minutes(address: &str, minutes: std::ops::Range<usize>) {
    for minute in minutes {
        let records = (0..30).map(|city| {
            let reading_at = format!("2025-07-24T{:02}:{:02}:00Z", 10 + minute / 60, minute % 60);
            json!({"city": format!("c{city}"), "reading_at": reading_at, "temperature": 60 + city, "humidity": 50})
                .to_string()
        });
        let answer = post(address, "application/x-ndjson", &records.collect::<Vec<_>>().join("\n")).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
}

fn cities(address: &str) -> Option<Value> {
    let answer = get(address, "/v1/cities").ok().filter(|answer| answer.status == 200)?;
    Some(serde_json::from_str::<Value>(&answer.body).ok()?["cities"].take())
}

/// Once all cities have so many readings.
fn wait_for_readings(address: &str, readings: usize) -> Value {
    wait_for("all readings", || {
        let cities = cities(address)?;
        let all = cities.as_array()?.iter().all(|city| city["current"]["count"] == readings);
        (all && cities.as_array()?.len() == 30).then_some(cities)
    })
}

/// The names of the checkpoints that there are, newest first.
fn list(place: &[&str], variables: &[(&str, String)]) -> Vec<(String, u64)> {
    let output = swelter(&[&["checkpoints", "list", "--json"], place].concat(), variables);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let all: Vec<Value> = match serde_json::from_str(&lines) {
        Ok(Value::Array(all)) => all,
        _ => lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
    };
    all.iter()
        .map(|one| (one["name"].as_str().unwrap().to_owned(), one["readings"].as_u64().unwrap()))
        .collect()
}

fn config(url: &str) -> String {
    format!("[checkpoints]\nevery = \"300ms\"\nkeep = 2\nurl = \"{url}\"\n").replace("300ms", "1s")
}

/// A process that is killed when this is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn s3(python: &OsString, port: u16) -> Server {
    let script = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])";
    let child = Command::new(python)
        .args(["-c", script, &port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server(child);
    wait_for("the store", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    server
}

fn make_bucket(python: &OsString, endpoint: &str) {
    let script = "import boto3, sys; boto3.client('s3', endpoint_url=sys.argv[1], region_name='us-east-1', \
                  aws_access_key_id='k', aws_secret_access_key='s').create_bucket(Bucket='heat')";
    let made = Command::new(python).args(["-c", script, endpoint]).output().unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
}

#[test]
fn a_store_that_speaks_s3_keeps_them() {
    let Some(python) = python() else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = s3(&python, port);
    let endpoint = format!("http://127.0.0.1:{port}");
    make_bucket(&python, &endpoint);
    let variables = [
        ("AWS_ENDPOINT_URL", endpoint.clone()),
        ("AWS_ACCESS_KEY_ID", "k".into()),
        ("AWS_SECRET_ACCESS_KEY", "s".into()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_ALLOW_HTTP", "true".into()),
    ];
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let url = ["--url", "s3://heat/of/cities"];
    let start = || Service::start_with(&data, &config(url[1]), &variables).ready();

    let service = start();
    post_minutes(&service.address, 0..20);
    let before = wait_for_readings(&service.address, 20);
    wait_for("a checkpoint of all", || {
        list(&url, &variables).iter().any(|(_, readings)| *readings > 0).then_some(())
    });
    service.kill();
    let service = start();
    assert!(service.log().contains("a checkpoint is taken up"), "{}", service.log());
    assert_eq!(wait_for_readings(&service.address, 20), before);

    // The store is away for a while: that is a warning, and the next one is made when it is back.
    drop(server);
    post_minutes(&service.address, 20..30);
    wait_for("that it is missed", || service.log().contains("a checkpoint could not be made").then_some(()));
    let server = s3(&python, port);
    make_bucket(&python, &endpoint);
    post_minutes(&service.address, 30..40);
    wait_for("the next one", || (!list(&url, &variables).is_empty()).then_some(()));
    let verified = swelter(&[&["checkpoints", "verify"], &url[..]].concat(), &variables);
    assert!(verified.status.success(), "{}", text(&verified.stdout));
    assert!(list(&url, &variables).len() <= 4, "older ones are given up");
    service.terminate();
    drop(server);
}

#[test]
fn duckdb_reads_them() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (data, kept) = (folder.path().join("data"), folder.path().join("kept"));
    let service = Service::start(&data, &config(&kept.display().to_string())).ready();
    post_minutes(&service.address, 0..25);
    let rows = wait_for_readings(&service.address, 25);
    wait_for("a checkpoint", || (kept.join("manifests").read_dir().ok()?.count() > 0).then_some(()));
    service.terminate();
    let sql = format!(
        "SELECT city, count(DISTINCT reading_at), epoch_ms(max(reading_at)) FROM '{}/data/*/readings-*.parquet' GROUP BY city",
        kept.display()
    );
    let script = "import duckdb, json, sys; print(json.dumps(duckdb.sql(sys.argv[1]).fetchall()))";
    let output = Command::new(python).args(["-c", script, &sql]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), 30);
    let newest = rows[0]["current"]["reading_at"].as_str().unwrap();
    let newest = swelter::model::EventTime::parse(newest, None).unwrap().millis();
    for row in found {
        let (readings, at) = (row[1].as_i64().unwrap(), row[2].as_i64().unwrap());
        assert!((1..=25).contains(&readings) && at == newest - (25 - readings) * 60_000, "{row}");
    }
}

/// The greatest file below a folder.
fn greatest(folder: &Path) -> std::path::PathBuf {
    let mut folders = vec![folder.to_path_buf()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() { folders.push(entry) } else { files.push(entry) }
        }
    }
    files.into_iter().max_by_key(|file| file.metadata().unwrap().len()).unwrap()
}

#[test]
fn the_command_line_says_what_is_there_and_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let (data, kept) = (folder.path().join("data"), folder.path().join("kept"));
    let url = ["--url", kept.to_str().unwrap()];
    let service = Service::start(&data, &config(url[1])).ready();
    post_minutes(&service.address, 0..10);
    wait_for_readings(&service.address, 10);
    wait_for("a checkpoint", || list(&url, &[]).iter().any(|(_, readings)| *readings == 300).then_some(()));
    service.terminate();

    let shown = swelter(&[&["checkpoints", "show", "--city", "c7"], &url[..]].concat(), &[]);
    assert!(shown.status.success() && text(&shown.stdout).contains("c7"), "{shown:?}");
    let verified = swelter(&[&["checkpoints", "verify"], &url[..]].concat(), &[]);
    assert!(verified.status.success() && text(&verified.stdout).contains("ok"), "{verified:?}");

    let damaged = greatest(&kept.join("data"));
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let verified = swelter(&[&["checkpoints", "verify"], &url[..]].concat(), &[]);
    let said = text(&verified.stdout) + &text(&verified.stderr);
    assert_eq!(verified.status.code(), Some(1), "{said}");
    assert!(said.contains(damaged.file_name().unwrap().to_str().unwrap()), "{said}");
}

/// Without its checkpoints, or with other rules, a journal that was trimmed is not enough.
#[test]
fn a_trimmed_journal_without_its_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (data, kept) = (folder.path().join("data"), folder.path().join("kept"));
    let config = config(kept.to_str().unwrap());
    let service = Service::start(&data, &config).ready();
    // Until records are gone: a journal keeps its last block.
    wait_for("that the journal is trimmed", || {
        post_minutes(&service.address, 0..3);
        std::thread::sleep(Duration::from_millis(300));
        data.join("journal").join("begins").exists().then_some(())
    });
    service.terminate();
    for other in [format!("{config}[results]\nformula = \"nws\"\n"), config.replace("kept", "elsewhere")] {
        let (code, said) = Service::refused(&data, &other, "127.0.0.1:0");
        assert_eq!(code, Some(1), "{said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains("begins at position") && last.contains("checkpoint"), "{last}");
    }
    // Nothing has become of it.
    Service::start(&data, &config).ready().terminate();
}
