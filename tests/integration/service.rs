//! The service with its sources, and what keeps it from starting.

use std::fs;
use std::io::Write;

use serde_json::Value;

use crate::process::{Service, get, post, wait_for};

fn reading(city: &str, minutes_ago: i64, temperature: f64) -> String {
    let at = jiff::Timestamp::now().as_millisecond() / 60_000 * 60_000 - minutes_ago * 60_000;
    let at = swelter::model::EventTime::from_millis(at).unwrap();
    format!(r#"{{"city":"{city}","reading_at":"{at}","temperature":{temperature},"humidity":50}}"#)
}

fn current(service: &Service, city: &str) -> Option<Value> {
    let answer = get(&service.address, &format!("/v1/cities/{city}")).unwrap();
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    (answer.status == 200).then(|| body["current"].clone())
}

fn source(service: &Service, name: &str) -> Value {
    let status = service.get("/v1/status");
    let sources = status["sources"].as_array().unwrap();
    sources.iter().find(|source| source["name"] == name).unwrap_or_else(|| panic!("{status}")).clone()
}

#[test]
fn files_generators_and_posts_are_served_together() {
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
        "workers = 2\n[sources.once]\nkind = 'file'\npath = '{}'\n[sources.followed]\nkind = 'file'\npath = '{}'\nfollow = true\n\
         [sources.made-up]\nkind = 'generator'\ncities = 20\nhistory = '2h'\nlate = 0.05\ncorrections = 0.05\n",
        once.display(),
        followed.display()
    );
    for start in 1..=2 {
        let service = Service::start(&data, &config).ready();
        let posted = post(&service.address, "application/json", &reading("posted", start, 85.0)).unwrap();
        assert_eq!(posted.status, 200, "{}", posted.body);
        let made_up = &swelter::directory::Directory::shipped().cities()[19].id.to_string();
        for city in ["old", "grows", "posted", made_up] {
            wait_for(city, || current(&service, city).filter(|row| !row.is_null()));
        }
        assert_eq!(current(&service, "old").unwrap()["count"], 1);
        wait_for("the whole past", || {
            current(&service, made_up).filter(|row| row["count"].as_u64() >= Some(110))
        });
        assert_eq!(service.get("/v1/status")["refused"]["bad_number"], 1);
        // A line counts when it is whole.
        let mut file = fs::File::options().append(true).open(&followed).unwrap();
        let line = reading("grows", 5, 80.0 + f64::from(start as u32)) + "\n";
        let (first, rest) = line.split_at(20);
        file.write_all(first.as_bytes()).unwrap();
        file.write_all(rest.as_bytes()).unwrap();
        wait_for("the correction in the file", || {
            (current(&service, "grows")?["temperature"] == 80.0 + f64::from(start as u32)).then_some(())
        });
        assert_eq!(source(&service, "followed")["partitions"][0]["applied"], 1 + start);
        service.terminate();
    }
    let letters = fs::read_to_string(data.join("dead-letters.jsonl")).unwrap();
    assert_eq!(letters.lines().count(), 1, "{letters}");
    assert!(letters.contains(r#""raw":"old,2025-07-01T01:00:00Z,hot,50""#), "{letters}");
}

#[test]
fn a_city_of_two_logs_is_served_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("city.jsonl"));
    fs::write(&file, reading("both", 9, 80.0) + "\n").unwrap();
    let config = format!("[sources.file]\nkind = 'file'\npath = '{}'\n", file.display());
    let service = Service::start(&data, &config).ready();
    post(&service.address, "application/json", &reading("both", 3, 90.0)).unwrap();
    let row = wait_for("both readings", || current(&service, "both").filter(|row| row["count"] == 2));
    assert_eq!(row["temperature"], 90);
    assert_eq!(service.get("/v1/status")["split_city"], 1);
    service.terminate();
}

#[test]
fn a_generator_alone_needs_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let config = "[ingest]\nenabled = false\n[sources.load]\nkind = 'generator'\ncities = 50\ninterval = '1s'\nhistory = '1h'\n\
                  history_interval = '1m'\ncorrections = 0.1\n";
    let service = Service::start(&data, config).ready();
    wait_for("corrections of the past", || {
        (service.get("/v1/status")["counts"]["corrected"].as_u64() > Some(10)).then_some(())
    });
    let answer = post(&service.address, "application/json", &reading("x", 0, 80.0)).unwrap();
    assert_eq!(answer.status, 503, "{}", answer.body);
    service.terminate();
    assert!(!data.exists());
}

#[test]
fn what_keeps_it_from_starting_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let said = |config: &str, listen: &str, expected: &[&str]| {
        let (code, text) = Service::refused(&data, config, listen);
        assert_eq!(code, Some(1), "{text}");
        expected.iter().for_each(|expected| assert!(text.contains(expected), "{expected} is not in {text}"));
    };
    let service = Service::start(&data, "").ready();
    let late = format!("[{},{}]", reading("x", 0, 80.0), reading("x", 2 * 1440, 80.0));
    assert_eq!(post(&service.address, "application/json", &late).unwrap().status, 200);
    wait_for("the dead letter", || (service.get("/v1/status")["refused"]["too_late"] == 1).then_some(()));
    said("", &service.address, &["cannot listen on", "take another address"]);
    said("", "127.0.0.1:0", &["in use by another process"]);
    service.terminate();
    said("[ingest]\npartitions = 3\n", "127.0.0.1:0", &["has 16 partitions, not 3"]);
    fs::remove_dir_all(data.join("journal")).unwrap();
    said("", "127.0.0.1:0", &["dead-letters.jsonl", "move it away"]);
    fs::remove_file(data.join("dead-letters.jsonl")).unwrap();
    Service::start(&data, "").ready().terminate();
}
