//! The identity of logs: files by their content, the journal by its id and its records.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::checkpoint_files::published_manifests;
use crate::support::{Random, ServiceBuilder, ServiceProcess, get, post, wait_for};

const HEADER: &str = "city,reading_at,temperature,humidity\n";

/// The reading of a minute.
fn csv_row(city: &str, minute: usize) -> String {
    format!("{city},2025-07-24T{:02}:{:02}:00Z,{},50\n", minute / 60, minute % 60, 60 + minute % 40)
}

fn csv_rows(city: &str, minutes: std::ops::Range<usize>) -> String {
    minutes.map(|minute| csv_row(city, minute)).collect()
}

/// How many readings each city has, by name.
fn reading_counts(service: &ServiceProcess) -> Vec<(String, u64)> {
    let Some(answer) = get(&service.address, "/v1/cities").ok().filter(|answer| answer.status == 200) else {
        return Vec::new();
    };
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    let count = |city: &Value| Some((city["city"].as_str()?.to_owned(), city["current"]["count"].as_u64()?));
    let mut counts: Vec<_> = body["cities"].as_array().unwrap().iter().filter_map(count).collect();
    counts.sort();
    counts
}

fn wait_for_counts(service: &ServiceProcess, expected: &[(&str, u64)]) {
    let expected: Vec<_> = expected.iter().map(|(city, count)| ((*city).to_owned(), *count)).collect();
    wait_for(&format!("{expected:?}"), || (reading_counts(service) == expected).then_some(()));
}

fn file_source_config(path: &Path) -> String {
    format!(
        "[checkpoints]\nevery = '1s'\n[[sources]]\nname = 'log'\ntype = 'file'\npath = '{}'\nfollow = true\n",
        path.display()
    )
}

/// The number of checkpoints.
fn checkpoint_count(place: &Path) -> usize {
    published_manifests(place).len()
}

/// Waits until a checkpoint has a position of the source.
pub fn wait_for_checkpoint(place: &Path, source: &str, position: u64) {
    wait_for("a checkpoint", || {
        let manifests = published_manifests(place).into_iter();
        manifests.filter_map(|path| fs::read_to_string(path).ok()).find_map(|text| {
            let manifest: Value = serde_json::from_str(text.lines().next()?).ok()?;
            let positions = manifest["positions"][source].as_object()?;
            let sum: u64 = positions.values().filter_map(Value::as_u64).sum();
            (sum == position).then_some(())
        })
    });
}

struct FileSourceFolder {
    folder: tempfile::TempDir,
    data: PathBuf,
    path: PathBuf,
}

/// A file of 100 readings, and the data of a service that has made a checkpoint of all of them.
fn start_with_read_file() -> (FileSourceFolder, ServiceProcess) {
    let folder = tempfile::tempdir().unwrap();
    let (data, path) = (folder.path().join("data"), folder.path().join("readings.csv"));
    fs::write(&path, HEADER.to_owned() + &csv_rows("lisbon", 0..100)).unwrap();
    let service = ServiceProcess::start(&data, &file_source_config(&path)).wait_until_ready();
    wait_for_counts(&service, &[("lisbon", 100)]);
    wait_for_checkpoint(&data.join("checkpoints"), "log", 100);
    (FileSourceFolder { folder, data, path }, service)
}

fn check_start_refused(files: &FileSourceFolder, says: &[&str]) {
    let (code, said) = ServiceBuilder::new(file_source_config(&files.path)).data(&files.data).run_to_end();
    assert_eq!(code, Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(says.iter().all(|says| last.contains(says)), "{last}");
}

/// A file of 150 other readings in its place: a start once skipped the first 100 of them.
#[test]
fn file_rewritten_while_service_is_down_is_refused() {
    let (files, service) = start_with_read_file();
    service.terminate();
    let before = fs::read_to_string(&files.path).unwrap();
    fs::write(&files.path, HEADER.to_owned() + &csv_rows("madrid", 0..150)).unwrap();
    check_start_refused(&files, &["is not the file that was read", "restore it", "another data directory"]);
    fs::write(&files.path, &before[..before.len() - 30]).unwrap();
    check_start_refused(&files, &["99 records", "100 were read"]);
    // Only the header.
    fs::write(&files.path, before.replace("humidity", "humidity ")).unwrap();
    check_start_refused(&files, &["is not the file that was read"]);
    fs::write(&files.path, before + &csv_rows("madrid", 0..5)).unwrap();
    let service = ServiceProcess::start(&files.data, &file_source_config(&files.path)).wait_until_ready();
    wait_for_counts(&service, &[("lisbon", 100), ("madrid", 5)]);
    service.terminate();
}

/// The same inode, and longer content: the rest of a line was once read as a reading of `adrid`.
#[test]
fn file_rewritten_while_followed_ends_service() {
    let folder = tempfile::tempdir().unwrap();
    let (data, path) = (folder.path().join("data"), folder.path().join("readings.csv"));
    fs::write(&path, HEADER.to_owned() + &csv_rows("rome", 0..3)).unwrap();
    let service = ServiceProcess::start(&data, &file_source_config(&path)).wait_until_ready();
    wait_for_counts(&service, &[("rome", 3)]);
    fs::write(&path, HEADER.to_owned() + &csv_rows("madrid", 0..3) + &csv_rows("adrid", 0..3)).unwrap();
    let says = "was rewritten while it was followed: restore it";
    wait_for("that it ends with a line", || service.log().contains(says).then_some(()));
    let log = service.log();
    assert!(!log.contains("panic"), "{log}");
    // The next start does not take it for the same file either.
    check_start_refused(
        &FileSourceFolder { data: data.clone(), path: path.clone(), folder: tempfile::tempdir().unwrap() },
        &["estore it", "another data directory"],
    );
    fs::write(&path, HEADER.to_owned() + &csv_rows("rome", 0..4)).unwrap();
    let service = ServiceProcess::start(&data, &file_source_config(&path)).wait_until_ready();
    wait_for_counts(&service, &[("rome", 4)]);
    service.terminate();
}

/// The same bytes under another inode and name, as on another disk.
#[test]
fn restored_file_continues() {
    let (files, service) = start_with_read_file();
    service.terminate();
    let elsewhere = files.folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let copy = elsewhere.join("restored.csv");
    fs::copy(&files.path, &copy).unwrap();
    fs::remove_file(&files.path).unwrap();
    File::options()
        .append(true)
        .open(&copy)
        .unwrap()
        .write_all(csv_rows("lisbon", 100..110).as_bytes())
        .unwrap();
    let service = ServiceProcess::start(&files.data, &file_source_config(&copy)).wait_until_ready();
    assert!(service.log().contains("a checkpoint was restored"), "{}", service.log());
    wait_for_counts(&service, &[("lisbon", 110)]);
    service.terminate();
}

/// Files are rotated and the service is killed at random moments of a seed: it has the readings of
/// all files.
#[test]
fn rotated_files_are_served_over_kills() {
    for seed in [1, 2] {
        let mut random = Random::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let (data, path) = (folder.path().join("data"), folder.path().join("readings.csv"));
        fs::write(&path, HEADER).unwrap();
        let mut service = Some(ServiceProcess::start(&data, &file_source_config(&path)).wait_until_ready());
        let (mut minute, mut rotated) = (0, 0);
        for step in 0..24 {
            match random.below(5) {
                0..=2 => {
                    let count = 1 + random.below(9) as usize;
                    let text = csv_rows("lisbon", minute..minute + count);
                    minute += count;
                    File::options().append(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
                }
                // The first batch is read before the log can be rotated: it identifies the log.
                3 if minute > 0 => {
                    if rotated == 0 {
                        wait_for_minutes(
                            service.get_or_insert_with(|| {
                                ServiceProcess::start(&data, &file_source_config(&path)).wait_until_ready()
                            }),
                            minute,
                        );
                    }
                    rotated += 1;
                    rotate_file(&path, rotated, random.below(2) == 0);
                }
                _ => match service.take() {
                    Some(service) if random.below(2) == 0 => service.kill(),
                    Some(service) => service.terminate(),
                    None => {
                        service =
                            Some(ServiceProcess::start(&data, &file_source_config(&path)).wait_until_ready())
                    }
                },
            }
            if let Some(service) = service.as_ref().filter(|_| step % 6 == 5) {
                wait_for_minutes(service, minute);
            }
        }
        drop(service);
        let service = ServiceProcess::start(&data, &file_source_config(&path)).wait_until_ready();
        wait_for_minutes(&service, minute);
        assert_eq!(service.get_json("/v1/status")["sources"][1]["partitions"][0]["applied"], minute);
        let history = service.get_json("/v1/cities/lisbon/history?limit=1000");
        assert_eq!(history["rows"].as_array().unwrap().len(), minute, "seed {seed}");
        service.terminate();
    }
}

fn wait_for_minutes(service: &ServiceProcess, minutes: usize) {
    wait_for(&format!("{minutes} readings"), || {
        let counts = reading_counts(service);
        (minutes == 0 || counts == [("lisbon".to_owned(), minutes as u64)]).then_some(())
    });
}

/// Rotated by date, so that names stay, with a new file in its place; some are compressed.
fn rotate_file(path: &Path, number: usize, compress: bool) {
    let to = PathBuf::from(format!("{}-{}", path.display(), 20_260_000 + number));
    fs::rename(path, &to).unwrap();
    fs::write(path, HEADER).unwrap();
    File::options()
        .write(true)
        .open(&to)
        .unwrap()
        .set_modified(SystemTime::now() - Duration::from_secs(60))
        .unwrap();
    if compress {
        let status = std::process::Command::new("gzip").arg(&to).status().unwrap();
        assert!(status.success());
    }
}

fn post_minutes(address: &str, cities: std::ops::Range<usize>) {
    for city in cities {
        let records: Vec<String> = (0..20)
            .map(|minute| {
                format!(
                    r#"{{"city":"c{city}","reading_at":"2025-07-24T10:{minute:02}:00Z","temperature":80,"humidity":50}}"#
                )
            })
            .collect();
        let answer = post(address, "application/x-ndjson", &records.join("\n")).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
}

/// Once 200 of 1,000 readings were lost, and the cities of another service shown.
#[test]
fn checkpoint_of_another_journal_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    let config = |place: &Path| {
        format!("[checkpoints]\nevery = '1s'\nurl = '{}'\n[ingest]\npartitions = 2\n", place.display())
    };
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let service = ServiceProcess::start(&first, &config(&shared)).wait_until_ready();
    post_minutes(&service.address, 0..10);
    wait_for_checkpoint(&shared, "journal", 200);
    service.terminate();
    let made = checkpoint_count(&shared);
    // Its own journal has more readings than the other one had, and all of them: so a refusal is
    // due to the checkpoints.
    let without = "[checkpoints]\nevery = '0s'\n[ingest]\npartitions = 2\n";
    let service = ServiceProcess::start(&second, without).wait_until_ready();
    post_minutes(&service.address, 100..150);
    service.terminate();
    for start in 0..2 {
        let (code, said) = ServiceBuilder::new(config(&shared)).data(&second).run_to_end();
        assert_eq!(code, Some(1), "start {start}: {said}");
        let last = said.lines().last().unwrap_or_default();
        for says in ["made of another log", "the log has the id", "a location of its own", "checkpoints.url"]
        {
            assert!(last.contains(says), "{says} is not in {last}");
        }
        assert_eq!(checkpoint_count(&shared), made, "nothing was given up");
    }
    let service = ServiceProcess::start(&second, without).wait_until_ready();
    let expected: Vec<(String, u64)> = (100..150).map(|city| (format!("c{city}"), 20)).collect();
    wait_for("its own cities", || (reading_counts(&service) == expected).then_some(()));
    service.terminate();
}

/// A copy of the data directory is the same journal; a copy with another id is continued if
/// `--adopt-logs` is given.
#[test]
fn copied_journal_is_adopted_only_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let config = "[checkpoints]\nevery = '1s'\n[ingest]\npartitions = 2\n";
    let service = ServiceProcess::start(&data, config).wait_until_ready();
    post_minutes(&service.address, 0..3);
    wait_for_checkpoint(&data.join("checkpoints"), "journal", 60);
    service.terminate();
    let id = data.join("journal").join("id");
    let before: Value = serde_json::from_str(&fs::read_to_string(&id).unwrap()).unwrap();
    fs::write(
        &id,
        format!(r#"{{"id":"{}","parent":{{"id":{},"ends":[30,30]}}}}"#, "12".repeat(16), before["id"]),
    )
    .unwrap();
    let (code, said) = ServiceBuilder::new(config).data(&data).run_to_end();
    let last = said.lines().last().unwrap_or_default();
    assert!(code == Some(1) && last.contains("--adopt-logs") && last.contains(&"12".repeat(16)), "{said}");
    let adopting = ServiceBuilder::new(config).data(&data).args(&["--adopt-logs"]).start();
    wait_for("that the journal is adopted", || {
        adopting.log().contains("the logs are a copy of those that were read").then_some(())?;
        // A checkpoint is made once a reading has arrived.
        let _ = post(
            &adopting.address,
            "application/json",
            r#"{"city":"c0","reading_at":"2025-07-24T10:40:00Z","temperature":80,"humidity":50}"#,
        );
        let names_it =
            |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains(&"12".repeat(16)));
        published_manifests(&data.join("checkpoints")).iter().any(names_it).then_some(())
    });
    adopting.terminate();
    // From then on it has checkpoints of its own.
    let service = ServiceProcess::start(&data, config).wait_until_ready();
    assert!(service.log().contains("a checkpoint was restored"), "{}", service.log());
    wait_for("all", || (reading_counts(&service).len() == 3).then_some(()));
    service.terminate();
}
