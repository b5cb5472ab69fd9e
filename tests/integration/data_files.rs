//! The files of a data directory: their modes, their limits, and their text in a terminal.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use swelter::internals::model::EventTime;

use crate::dead_letters::run_dead_letters;
use crate::support::checkpoint_files::published_manifests;
use crate::support::http::{post_request, send_raw};
use crate::support::{HttpResponse, ServiceBuilder, ServiceProcess, get, post, wait_for};

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn reading(city: &str, at: i64) -> String {
    let at = EventTime::from_millis(at).unwrap();
    format!(r#"{{"city":"{city}","reading_at":"{at}","temperature":80,"humidity":50}}"#)
}

/// A reading of a new city, followed by so many that are too late for it.
fn too_late_readings(count: usize) -> String {
    static CITIES: AtomicU64 = AtomicU64::new(0);
    let city = format!("late-{}", CITIES.fetch_add(1, Ordering::Relaxed));
    let line = reading(&city, now() - 10 * 86_400_000) + "\n";
    reading(&city, now()) + "\n" + &line.repeat(count)
}

/// Readings of a second city in a partition that may have one: about 300 bytes each as a dead
/// letter.
fn readings_of_other_city(count: usize) -> String {
    (reading("y", now() - 10 * 86_400_000) + "\n").repeat(count)
}

/// All entries of a folder, with their modes.
fn file_modes(folder: &Path) -> Vec<(PathBuf, bool, u32)> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::metadata(&path).unwrap();
        if metadata.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, metadata.is_dir(), metadata.permissions().mode() & 0o777));
    }
    found
}

#[test]
fn data_files_are_private_to_user_or_group() {
    for (mode, folder_mode, file_mode) in [("private", 0o700, 0o600), ("group", 0o750, 0o640)] {
        let folder = tempfile::tempdir().unwrap();
        let (data, file) = (folder.path().join("data"), folder.path().join("old.csv"));
        fs::write(&file, "city,reading_at,temperature,humidity\nold,2025-07-01T01:00:00Z,hot,50\n").unwrap();
        let config = format!(
            "data_dir_mode = '{mode}'\n[checkpoints]\nevery = '1s'\n[ingest]\nretry_after = '1s'\n[dead_letters]\nfile_bytes = '64 KiB'\n\
             [results]\nmax_ahead = '1s'\n[[sources]]\ntype = 'file'\nname = 'old'\npath = '{}'\n[[sources]]\ntype = 'generator'\n\
             name = 'made-up'\ncities = 5\nhistory = '1h'\ninvalid = 0.5\n",
            file.display()
        );
        let service = ServiceProcess::start(&data, &config).wait_until_ready();
        let posts = [reading("x", now()), too_late_readings(400)];
        for body in posts {
            assert_eq!(post(&service.address, "application/x-ndjson", &body).unwrap().status, 200);
        }
        let wanted =
            ["dead-letters.part-00000001.jsonl", "dead-letters.sent", "feeds/made-up.json", "checkpoints"];
        for wanted in wanted {
            wait_for(wanted, || data.join(wanted).exists().then_some(()));
        }
        wait_for("a checkpoint", || {
            (!published_manifests(&data.join("checkpoints")).is_empty()).then_some(())
        });
        service.terminate();
        let found = file_modes(&data);
        assert!(found.len() > 20, "{found:?}");
        for (path, is_folder, mode) in &found {
            let expected = if *is_folder { folder_mode } else { file_mode };
            assert_eq!(*mode, expected, "{}: {mode:o}", path.display());
        }
        // Modes of an older version are warned of.
        fs::set_permissions(data.join("journal"), fs::Permissions::from_mode(0o755)).unwrap();
        let service = ServiceProcess::start(&data, &config).wait_until_ready();
        assert!(service.log().contains("other users can read or change"), "{}", service.log());
        service.terminate();
    }
}

const SMALL_LIMITS_CONFIG: &str = "[serve.limits]\nnew_cities_percent = 100\n[results]\nmax_cities = 1\n[ingest]\npartitions = 1\n[dead_letters]\nfile_bytes = '64 KiB'\nlimit_bytes = '256 KiB'\n";

/// The positions of all dead letters of the journal in folders; `None` if one is there twice, or a
/// file was renamed or removed meanwhile.
fn dead_letter_positions(folders: &[&Path]) -> Option<BTreeSet<u64>> {
    let mut positions = BTreeSet::new();
    for folder in folders {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if !name.starts_with("dead-letters") || !name.ends_with(".jsonl") {
                continue;
            }
            // A line that is not complete is none.
            let text = fs::read_to_string(&path).ok()?;
            for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                let line: Value = serde_json::from_str(line).unwrap();
                if line["position"].as_u64().is_some_and(|position| !positions.insert(position)) {
                    return None;
                }
            }
        }
    }
    Some(positions)
}

fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let letters =
        entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "jsonl"));
    letters.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

#[test]
fn dead_letter_limit_pauses_source() {
    let folder = tempfile::tempdir().unwrap();
    let (data, away) = (folder.path().join("data"), folder.path().join("away"));
    fs::create_dir(&away).unwrap();
    let service = ServiceProcess::start(&data, SMALL_LIMITS_CONFIG).wait_until_ready();
    assert_eq!(post(&service.address, "application/json", &reading("x", now())).unwrap().status, 200);
    let mut sent = 0;
    let full = wait_for("that there is no room", || {
        let answer = post(&service.address, "application/x-ndjson", &readings_of_other_city(200)).unwrap();
        sent += if answer.status == 200 { 200 } else { 0 };
        (answer.status != 200).then_some(answer)
    });
    assert_eq!((full.status, &*full.error_code()), (503, "dead_letters_full"), "{}", full.body);
    let ready = get(&service.address, "/readyz").unwrap();
    assert_eq!((ready.status, &*ready.error_code()), (503, "dead_letters_full"));
    assert!(ready.body.contains("dead_letters.limit_bytes"), "{}", ready.body);
    wait_for("the city", || (get(&service.address, "/v1/cities/x").ok()?.status == 200).then_some(()));
    let limit = 256 * 1024;
    wait_for("the last letter", || (folder_bytes(&data) >= limit).then_some(()));
    assert!(folder_bytes(&data) < limit + 2_000, "{}", folder_bytes(&data));
    service.kill();
    // It waits at the same record while there is no space.
    let service = ServiceProcess::start(&data, SMALL_LIMITS_CONFIG);
    wait_for("that there is no room", || {
        (get(&service.address, "/readyz").ok()?.error_code() == "dead_letters_full").then_some(())
    });
    assert!(folder_bytes(&data) < limit + 4_000, "{}", folder_bytes(&data));
    // Space is made each time that it is full: how much was accepted before depends on the speed.
    wait_for("that it has read all", || {
        for entry in fs::read_dir(&data).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            if name.to_str().unwrap().starts_with("dead-letters.part-") {
                fs::rename(&path, away.join(name)).unwrap();
            }
        }
        (get(&service.address, "/readyz").ok()?.status == 200).then_some(())
    });
    let service = service.wait_until_ready();
    let all: BTreeSet<u64> = (1..=sent).collect();
    wait_for("all dead letters", || (dead_letter_positions(&[&data, &away])? == all).then_some(()));
    service.terminate();
    let here = dead_letter_positions(&[&data]).unwrap();
    // The last file may have been full with the last dead letter.
    if here.is_empty() {
        return;
    }
    let list = run_dead_letters(&data, &["list", "--json"]);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(list["counts"][0]["letters"], here.len() as u64);
    let last = format!(
        "journal/{}/{sent}",
        list["newest"][0]["position"].as_str().unwrap().split('/').nth(1).unwrap()
    );
    assert!(run_dead_letters(&data, &["show", &last]).status.success());
}

#[test]
fn oldest_dead_letters_are_dropped_and_counted_if_configured() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let service = ServiceProcess::start(&data, &format!("{SMALL_LIMITS_CONFIG}full = 'drop_oldest'\n"))
        .wait_until_ready();
    assert_eq!(post(&service.address, "application/json", &reading("x", now())).unwrap().status, 200);
    for _ in 0..12 {
        assert_eq!(
            post(&service.address, "application/x-ndjson", &readings_of_other_city(200)).unwrap().status,
            200
        );
    }
    let status = || service.get_json("/v1/status")["refused"]["too_many_cities"].clone();
    wait_for("all refusals", || (status() == 2_400).then_some(()));
    let (dropped, left) = wait_for("the count of what was dropped", || {
        let metrics = get(&service.address, "/metrics").unwrap().body;
        let dropped =
            metrics.lines().find_map(|line| line.strip_prefix("swelter_dead_letters_dropped_total "));
        let (dropped, left) = (dropped?.parse::<u64>().unwrap(), dead_letter_positions(&[&data])?);
        (dropped + left.len() as u64 == 2_400 && folder_bytes(&data) < 256 * 1024).then_some((dropped, left))
    });
    assert_eq!(left, (dropped + 1..=2_400).collect());
    service.terminate();
}

#[test]
fn dead_letters_are_written_once_over_repeated_kills() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let config = "[serve.limits]\nnew_cities_percent = 100\n[results]\nmax_cities = 1\n[ingest]\npartitions = 1\n[dead_letters]\nfile_bytes = '64 KiB'\n[checkpoints]\nevery = '1s'\n";
    let mut least = 0;
    for (start, batches) in [3, 7, 1, 9, 5].into_iter().enumerate() {
        let service = ServiceProcess::start(&data, config);
        if start == 0 {
            assert_eq!(post(&service.address, "application/json", &reading("x", now())).unwrap().status, 200);
        }
        // It is killed while it applies the batches that follow these.
        let (kill, accepted) = (service.kill_handle(), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                wait_for("the batches", || (accepted.load(Ordering::Relaxed) >= batches).then_some(()));
                kill();
            });
            while let Ok(answer) =
                post(&service.address, "application/x-ndjson", &readings_of_other_city(150))
            {
                // Until it is ready after a kill, it may refuse posts.
                if answer.status == 200 {
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        least += 150 * accepted.into_inner();
        service.kill();
    }
    let service = ServiceProcess::start(&data, config).wait_until_ready();
    // How many files were full before depends on how long the kills let it live.
    wait_for("a third full file", || {
        post(&service.address, "application/x-ndjson", &readings_of_other_city(150)).unwrap();
        data.join("dead-letters.part-00000003.jsonl").exists().then_some(())
    });
    service.terminate();
    let found = dead_letter_positions(&[&data]).unwrap();
    assert!(found.len() as u64 >= least, "{} of {least}", found.len());
    assert!(found.iter().copied().eq(1..=found.len() as u64));
}

fn post_as(token: &str, service: &ServiceProcess, body: &str) -> HttpResponse {
    let headers = format!(
        "Authorization: Bearer {token}\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n"
    );
    send_raw(&service.address, post_request("localhost", &headers, body).as_bytes()).unwrap()
}

#[test]
fn one_client_cannot_use_up_dead_letter_space() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let config = "[dead_letters]\nclient_bytes = '64 KiB'\n";
    let tokens = ("SWELTER_TOKENS", "read,ingest greedy;read,ingest other".to_owned());
    let service = ServiceBuilder::new(config).data(&data).envs(&[tokens]).start();
    assert_eq!(post_as("other", &service, &reading("x", now())).status, 200);
    let refused = wait_for("that the client is refused", || {
        Some(post_as("greedy", &service, &too_late_readings(100))).filter(|response| response.status != 200)
    });
    assert_eq!((refused.status, &*refused.error_code()), (429, "too_many_dead_letters"), "{}", refused.body);
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    assert!(folder_bytes(&data) < 256 * 1024, "{}", folder_bytes(&data));
    assert_eq!(post_as("other", &service, &reading("x", now())).status, 200);
    service.terminate();
}

#[test]
fn displayed_dead_letters_are_escaped_for_terminals() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("lines.jsonl"));
    let hostile = "\u{1b}]52;c;aGk=\u{7}\u{9b}2J\u{202e}\rhidden";
    fs::write(&file, format!("{hostile}\n")).unwrap();
    let config = format!("[[sources]]\ntype = 'file'\nname = 'lines'\npath = '{}'\n", file.display());
    let service = ServiceProcess::start(&data, &config).wait_until_ready();
    let late = reading("x", now() - 10 * 86_400_000);
    let noted = format!("{{\"note\":\"\u{9b}2J\u{202e}\",{}", late.trim_start_matches('{'));
    let noted = format!("[{},{noted}]", reading("x", now()));
    let taken = post(&service.address, "application/json", &noted).unwrap();
    assert_eq!(taken.status, 200, "{}", taken.body);
    wait_for("the refusals", || {
        let refused = &service.get_json("/v1/status")["refused"];
        (refused["not_decodable"] == 1 && refused["too_late"] == 1).then_some(())
    });
    service.terminate();
    let list = run_dead_letters(&data, &["list", "--json"]);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    let places: Vec<String> = list["newest"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["position"].as_str().unwrap().into())
        .collect();
    assert_eq!(places.len(), 2);
    let mut outputs = vec![run_dead_letters(&data, &["list"]), run_dead_letters(&data, &["list", "--json"])];
    outputs.extend(places.iter().map(|place| run_dead_letters(&data, &["show", place])));
    outputs.push(run_dead_letters(&data, &["show", "\u{1b}[31m/0/7"]));
    for output in outputs {
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        let obeyed = |c: char| c != '\n' && c.is_control() || c == '\u{202e}';
        assert!(!text.is_empty() && !text.contains(obeyed), "{text:?}");
    }
    let shown = run_dead_letters(&data, &["show", "lines/0/0"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("\\x1b]52;c;aGk=\\x07\\x9b2J\\u{202e}\\rhidden"), "{shown}");
    let raw = run_dead_letters(&data, &["show", "lines/0/0", "--raw"]);
    assert_eq!(raw.stdout, hostile.as_bytes());
}
