//! Checkpoints in an S3 store, read by DuckDB, and by the command line.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::prepared::prepared_variable;
use crate::support::s3_server::S3Server;
use crate::support::{ServiceBuilder, ServiceProcess, get, post, remove_ages, swelter_command, wait_for};

fn swelter(arguments: &[&str], variables: &[(&str, String)]) -> Output {
    let mut command = swelter_command();
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

fn listed_cities(address: &str) -> Option<Value> {
    let answer = get(address, "/v1/cities").ok().filter(|answer| answer.status == 200)?;
    let mut cities = serde_json::from_str::<Value>(&answer.body).ok()?["cities"].take();
    remove_ages(&mut cities);
    Some(cities)
}

/// Once all cities have so many readings.
fn wait_for_readings(address: &str, readings: usize) -> Value {
    wait_for("all readings", || {
        let cities = listed_cities(address)?;
        let all = cities.as_array()?.iter().all(|city| city["current"]["count"] == readings);
        (all && cities.as_array()?.len() == 30).then_some(cities)
    })
}

/// All checkpoints, newest first.
fn list_checkpoints(place: &[&str], variables: &[(&str, String)]) -> Vec<Value> {
    let output = swelter(&[&["checkpoints", "list", "--json"], place].concat(), variables);
    if text(&output.stderr).contains("there is no checkpoint in") {
        return Vec::new();
    }
    assert!(output.status.success(), "{}", text(&output.stderr));
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    listed.as_array().unwrap().clone()
}

/// How many readings each has in its own files.
fn readings_per_checkpoint(listed: &[Value]) -> impl Iterator<Item = u64> {
    listed.iter().map(|one| one["readings"].as_u64().unwrap())
}

pub fn config(url: &str) -> String {
    format!("[checkpoints]\nevery = \"1s\"\nkeep = 2\nurl = \"{url}\"\n")
}

#[test]
#[ignore = "needs Python: scripts/test"]
fn s3_store_keeps_checkpoints() {
    let python = prepared_variable("TEST_PYTHON");
    let store = S3Server::start(&python, 0);
    let (port, variables) = (store.port, store.variables());
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let url = ["--url", "s3://heat/of/cities"];
    let start =
        || ServiceBuilder::new(config(url[1])).data(&data).envs(&variables).start().wait_until_ready();

    let service = start();
    post_minutes(&service.address, 0..20);
    let before = wait_for_readings(&service.address, 20);
    wait_for("a checkpoint of all", || {
        readings_per_checkpoint(&list_checkpoints(&url, &variables))
            .any(|readings| readings > 0)
            .then_some(())
    });
    service.kill();
    let service = start();
    assert!(service.log().contains("a checkpoint was restored"), "{}", service.log());
    assert_eq!(wait_for_readings(&service.address, 20), before);

    // While the store is down a warning is logged; when it is back, a checkpoint is made though no
    // reading has arrived.
    drop(store);
    post_minutes(&service.address, 20..30);
    wait_for("that it is missed", || service.log().contains("a checkpoint failed").then_some(()));
    let _store = S3Server::start(&python, port);
    wait_for("the next one", || (!list_checkpoints(&url, &variables).is_empty()).then_some(()));
    let verified = swelter(&[&["checkpoints", "verify"], &url[..]].concat(), &variables);
    assert!(verified.status.success(), "{}", text(&verified.stdout));

    // Older checkpoints are removed once newer ones are verified: two bases are left, and one more
    // if it was just published.
    let first = list_checkpoints(&url, &variables)[0]["name"].clone();
    (30..36).for_each(|minute| {
        let newest = list_checkpoints(&url, &variables)[0]["name"].clone();
        post_minutes(&service.address, minute..minute + 1);
        wait_for("one with that", || (list_checkpoints(&url, &variables)[0]["name"] != newest).then_some(()));
    });
    wait_for("that the first is given up", || {
        let listed = list_checkpoints(&url, &variables);
        let bases = listed.iter().filter(|one| one["kind"] == "full").count();
        (listed.iter().all(|one| one["name"] != first) && (2..=3).contains(&bases)).then_some(())
    });
    service.terminate();
}

/// The result of a query in DuckDB.
fn run_duckdb(python: &OsString, sql: &str) -> Vec<Value> {
    let script =
        "import duckdb, json, sys; print(json.dumps(duckdb.sql(sys.argv[1]).fetchall(), default=str))";
    let output = Command::new(python).args(["-c", script, sql]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    found.as_array().unwrap().clone()
}

/// The line of `docs/checkpoints.md`, with another folder.
fn documented_sql(kept: &Path) -> String {
    let page = include_str!("../../docs/checkpoints.md");
    let sql = page.lines().find_map(|line| line.strip_prefix("duckdb -c \"")?.strip_suffix('"'));
    let sql = sql.expect("a line of SQL");
    assert!(sql.contains("readings/checkpoints/"), "{sql}");
    sql.replace("readings/checkpoints", kept.to_str().unwrap())
}

#[test]
#[ignore = "needs Python: scripts/test"]
fn duckdb_reads_checkpoints() {
    let python = prepared_variable("TEST_PYTHON");
    let folder = tempfile::tempdir().unwrap();
    let (data, kept) = (folder.path().join("data"), folder.path().join("kept"));
    let url = ["--url", kept.to_str().unwrap()];
    let service = ServiceProcess::start(&data, &config(url[1])).wait_until_ready();
    post_minutes(&service.address, 0..25);
    let served = wait_for_readings(&service.address, 25);
    // All readings are in the files: those of increments follow the earlier ones.
    wait_for("a checkpoint of all", || {
        let count =
            format!("SELECT count(DISTINCT (city, reading_at)) FROM '{}/data/*/readings-*.parquet'", url[1]);
        let is_there = readings_per_checkpoint(&list_checkpoints(&url, &[])).next().is_some();
        (is_there && run_duckdb(&python, &count)[0][0] == 30 * 25).then_some(())
    });
    service.terminate();

    // As text, since Python has no types for times with zones of its own.
    let counted =
        run_duckdb(&python, &format!("SELECT COLUMNS(*)::VARCHAR FROM ({})", documented_sql(&kept)));
    assert_eq!(counted.len(), 30);
    assert!(counted.iter().all(|row| row[1] == "25"), "{counted:?}");
    let newest = format!(
        "SELECT city, arg_max(heat_index_e6, reading_at), epoch_ms(max(reading_at)) FROM '{}/data/*/readings-*.parquet' GROUP BY city",
        url[1]
    );
    let rows: BTreeMap<String, (i64, i64)> = run_duckdb(&python, &newest)
        .iter()
        .map(|row| {
            (row[0].as_str().unwrap().to_owned(), (row[1].as_i64().unwrap(), row[2].as_i64().unwrap()))
        })
        .collect();
    for city in served.as_array().unwrap() {
        let current = &city["current"];
        let heat_index = (current["heat_index"].as_f64().unwrap() * 1e6).round() as i64;
        let at =
            current["reading_at"].as_str().unwrap().parse::<swelter::internals::model::EventTime>().unwrap();
        assert_eq!(rows[city["city"].as_str().unwrap()], (heat_index, at.millis()), "{city}");
    }
}

/// The largest file below a folder.
fn largest_file(folder: &Path) -> std::path::PathBuf {
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
fn checkpoints_command_lists_and_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let (data, kept) = (folder.path().join("data"), folder.path().join("kept"));
    let url = ["--url", kept.to_str().unwrap()];
    let service = ServiceProcess::start(&data, &config(url[1])).wait_until_ready();
    post_minutes(&service.address, 0..10);
    wait_for_readings(&service.address, 10);
    wait_for("a checkpoint", || {
        readings_per_checkpoint(&list_checkpoints(&url, &[])).any(|readings| readings == 300).then_some(())
    });
    service.terminate();

    let shown = swelter(&[&["checkpoints", "show", "--city", "c7"], &url[..]].concat(), &[]);
    assert!(shown.status.success() && text(&shown.stdout).contains("c7"), "{shown:?}");
    let verified = swelter(&[&["checkpoints", "verify"], &url[..]].concat(), &[]);
    assert!(verified.status.success() && text(&verified.stdout).contains("ok"), "{verified:?}");

    let damaged = largest_file(&kept.join("data"));
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let verified = swelter(&[&["checkpoints", "verify"], &url[..]].concat(), &[]);
    let said = text(&verified.stdout) + &text(&verified.stderr);
    assert_eq!(verified.status.code(), Some(1), "{said}");
    assert!(said.contains(damaged.file_name().unwrap().to_str().unwrap()), "{said}");
}

/// A service whose journal has been trimmed, stopped.
pub fn make_trimmed_journal(data: &Path, config: &str) {
    let service = ServiceProcess::start(data, config).wait_until_ready();
    // Until records are gone: a journal keeps its last block.
    wait_for("that the journal is trimmed", || {
        post_minutes(&service.address, 0..3);
        // The pace keeps the journal at some hundred records when it is trimmed.
        std::thread::sleep(Duration::from_millis(300));
        data.join("journal").join("begins").exists().then_some(())
    });
    service.terminate();
}

/// Without its checkpoints, or with other rules, a journal that was trimmed is not enough.
#[test]
fn trimmed_journal_without_its_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (data, kept) = (folder.path().join("data"), folder.path().join("kept"));
    let config = config(kept.to_str().unwrap());
    make_trimmed_journal(&data, &config);
    for (other, says) in [
        (
            format!("{config}[results]\nformula = \"rothfusz\"\n"),
            "results.formula = \"nws\", and this run has \"rothfusz\"",
        ),
        (config.replace("kept", "elsewhere"), "begins at position"),
    ] {
        let (code, said) = ServiceBuilder::new(&other).data(&data).run_to_end();
        assert_eq!(code, Some(1), "{said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains(says) && last.contains("checkpoint"), "{last}");
    }
    // The data directory is unchanged.
    ServiceProcess::start(&data, &config).wait_until_ready().terminate();
}

/// The files of a checkpoint.
fn files_of(place: &[&str], name: &Value) -> Vec<String> {
    let shown = swelter(&[&["checkpoints", "show", name.as_str().unwrap(), "--json"], place].concat(), &[]);
    let facts: Value = serde_json::from_slice(&shown.stdout).unwrap();
    facts["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn start_falls_back_over_a_damaged_base_and_refuses_if_all_are_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let (data, kept) = (folder.path().join("data"), folder.path().join("kept"));
    let (config, url) = (config(kept.to_str().unwrap()), ["--url", kept.to_str().unwrap()]);
    make_trimmed_journal(&data, &config);
    let service = ServiceProcess::start(&data, &config).wait_until_ready();
    let expected = wait_for_readings(&service.address, 3);
    service.terminate();
    let listed = list_checkpoints(&url, &[]);
    let bases: Vec<&Value> = listed.iter().filter(|one| one["kind"] == "full").collect();
    assert!(bases.len() >= 2, "{listed:?}");

    // Sparse files replace one file of each base: none is read, and the error names the file and
    // the remedy.
    let replaced: Vec<_> = bases.iter().map(|base| kept.join(&files_of(&url, &base["name"])[0])).collect();
    let right: Vec<Vec<u8>> = replaced.iter().map(|path| std::fs::read(path).unwrap()).collect();
    for path in &replaced {
        std::fs::remove_file(path).unwrap();
        std::fs::File::create(path).unwrap().set_len(6 << 30).unwrap();
    }
    let (code, said) = ServiceBuilder::new(&config).data(&data).run_to_end();
    let last = said.lines().last().unwrap_or_default();
    assert_eq!(code, Some(1), "{said}");
    let file = replaced[0].strip_prefix(&kept).unwrap().to_str().unwrap();
    for says in [
        "none of the checkpoints",
        file,
        "has 6442450944 bytes",
        "restore the missing or damaged files",
        "swelter restore",
    ] {
        assert!(last.contains(says), "{says}: {last}");
    }
    for (path, right) in replaced.iter().zip(&right) {
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, right).unwrap();
    }

    // One flipped bit in the newest base: the previous one is used, and only that file is renamed.
    let mut bytes = right[0].clone();
    bytes[100] ^= 1;
    std::fs::write(&replaced[0], bytes).unwrap();
    let service = ServiceProcess::start(&data, &config).wait_until_ready();
    assert_eq!(wait_for_readings(&service.address, 3), expected);
    let log = service.log();
    assert!(
        log.contains("a file of a checkpoint is damaged") && log.contains("a checkpoint was restored"),
        "{log}"
    );
    service.terminate();
    let aside = replaced[0].with_extension("parquet.damaged");
    assert!(aside.exists() && !replaced[0].exists());
}

/// Acknowledged readings stay: checkpoints of the previous journal are not restored, and nothing is
/// trimmed by them.
#[test]
fn new_journal_needs_another_checkpoint_location() {
    let folder = tempfile::tempdir().unwrap();
    let (data, kept) = (folder.path().join("data"), folder.path().join("kept"));
    let other = folder.path().join("other");
    let service = ServiceProcess::start(&data, &config(kept.to_str().unwrap())).wait_until_ready();
    post_minutes(&service.address, 0..40);
    wait_for_readings(&service.address, 40);
    let url = ["--url", kept.to_str().unwrap()];
    let cities = |one: &Value| one["readings"].as_u64().unwrap();
    wait_for("a checkpoint", || list_checkpoints(&url, &[]).iter().any(|one| cities(one) > 0).then_some(()));
    service.terminate();
    std::fs::rename(data.join("journal"), folder.path().join("journal-away")).unwrap();

    let known = list_checkpoints(&url, &[]);
    let (code, said) = ServiceBuilder::new(config(kept.to_str().unwrap())).data(&data).run_to_end();
    let last = said.lines().last().unwrap_or_default();
    assert!(code == Some(1) && last.contains("a location of its own"), "{said}");
    assert_eq!(list_checkpoints(&url, &[]), known);

    let (config, url) = (config(other.to_str().unwrap()), ["--url", other.to_str().unwrap()]);
    let service = ServiceProcess::start(&data, &config).wait_until_ready();
    post_minutes(&service.address, 0..5);
    wait_for("a checkpoint of it", || {
        list_checkpoints(&url, &[]).iter().any(|one| cities(one) > 0).then_some(())
    });
    post_minutes(&service.address, 5..10);
    service.kill();
    let service = ServiceProcess::start(&data, &config).wait_until_ready();
    wait_for_readings(&service.address, 10);
    service.terminate();
}

/// The counter of generations may restart, as in a data directory from a backup; checkpoints
/// continue.
#[test]
fn restarted_generation_counter_still_makes_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let (data, kept) = (folder.path().join("data"), folder.path().join("kept"));
    let (config, url) = (config(kept.to_str().unwrap()), ["--url", kept.to_str().unwrap()]);
    for minutes in [0..5, 5..10] {
        let service = ServiceProcess::start(&data, &config).wait_until_ready();
        let known = kept.is_dir().then(|| list_checkpoints(&url, &[])[..].first().cloned()).flatten();
        post_minutes(&service.address, minutes.clone());
        wait_for_readings(&service.address, minutes.end);
        wait_for("a checkpoint", || (list_checkpoints(&url, &[]).first() != known.as_ref()).then_some(()));
        service.terminate();
    }
    for file in ["generation-0", "generation-1"] {
        std::fs::remove_file(data.join(file)).unwrap();
    }
    let newest = list_checkpoints(&url, &[])[0]["name"].clone();
    let service = ServiceProcess::start(&data, &config).wait_until_ready();
    post_minutes(&service.address, 10..15);
    wait_for("a newer checkpoint", || (list_checkpoints(&url, &[])[0]["name"] != newest).then_some(()));
    assert!(!service.log().contains("was not published"), "{}", service.log());
    service.terminate();
}
