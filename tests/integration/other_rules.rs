//! Data of a swelter with other rules or another formula is refused by one line, and rebuilt by the
//! steps that it names. `tests/fixtures/rules-1/README.md` says how the fixtures were made.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{ServiceBuilder, ServiceProcess, get, post, wait_for};

/// The version that made the fixtures.
pub const RULES_1_MAKER: &str = "swelter 0.1.0 of November 2026 or before (rules version 1)";
pub const RULES_HELP_PAGE: &str = "docs/troubleshooting.md, \"Made by another version\"";

/// The configuration of the fixture's service.
const CONFIG: &str = "[ingest]\npartitions = 1\n";

pub fn fixture_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rules-1").join(name)
}

/// The data directory of the fixture, in a folder.
fn data_of_version_1(folder: &Path) -> PathBuf {
    let unpacked =
        Command::new("tar").arg("-xzf").arg(fixture_path("data.tar.gz")).current_dir(folder).status();
    assert!(unpacked.unwrap().success());
    folder.join("data")
}

/// Moves files whose names begin with `prefix` out of a data directory.
fn move_files_out(data: &Path, name: &str) {
    let to = data.with_file_name("moved");
    std::fs::create_dir_all(&to).unwrap();
    let mut moved = 0;
    for entry in std::fs::read_dir(data).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_str().unwrap().starts_with(name) {
            std::fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
            moved += 1;
        }
    }
    assert!(moved > 0, "there is no {name} in {}", data.display());
}

/// The last line of a start that is refused, which is one line that names who made it and where the
/// steps are.
fn check_start_refused(data: &Path, config: &str) -> String {
    let (code, said) = ServiceBuilder::new(config).data(data).run_to_end();
    assert_eq!(code, Some(1), "{said}");
    said.lines().last().unwrap_or_default().to_owned()
}

fn current_row(service: &ServiceProcess, city: &str) -> Option<Value> {
    let answer = get(&service.address, &format!("/v1/cities/{city}")).ok()?;
    let body: Value = serde_json::from_str(&answer.body).ok()?;
    (answer.status == 200).then(|| body["current"].clone())
}

#[test]
fn data_of_rules_version_1_is_refused_and_rebuilt_from_journal() {
    let folder = tempfile::tempdir().unwrap();
    let data = data_of_version_1(folder.path());
    let line = check_start_refused(&data, CONFIG);
    for says in ["the checkpoint 000000", RULES_1_MAKER, "rules version 2", "begin anew", RULES_HELP_PAGE] {
        assert!(line.contains(says), "{says}: {line}");
    }
    // The checkpoints alone are not all that was computed.
    move_files_out(&data, "checkpoints");
    let line = check_start_refused(&data, CONFIG);
    for says in [
        "dead-letters.jsonl were written by",
        RULES_1_MAKER,
        "rules version 2",
        "begin anew",
        RULES_HELP_PAGE,
    ] {
        assert!(line.contains(says), "{says}: {line}");
    }
    move_files_out(&data, "dead-letters");
    // Posts may wait until the clock of this host is accepted; the journal is read nevertheless.
    let service = ServiceProcess::start(&data, CONFIG);
    let row = wait_for("the journal's readings", || {
        current_row(&service, "5128581").filter(|row| row["count"] == 2)
    });
    assert_eq!((row["heat_index"].as_f64(), &row["category"]), (Some(83.223224), &json!("caution")), "{row}");
    let letters = wait_for("the refused reading", || {
        let letters = std::fs::read_to_string(data.join("dead-letters.jsonl")).ok()?;
        letters.contains("in_the_future").then_some(letters)
    });
    assert_eq!(letters.lines().count(), 1);
    service.terminate();
}

/// Two readings of a mild morning, as an archive has them.
const ARCHIVE_RECORDS: &str = "{\"city\":\"a\",\"reading_at\":\"2025-06-01T06:00:00Z\",\"temperature\":79,\"humidity\":93}\n\
    {\"city\":\"a\",\"reading_at\":\"2025-06-01T07:00:00Z\",\"temperature\":45,\"humidity\":50}\n";

/// The heat indexes of its readings, from a service that has them all.
fn served_heat_indexes(service: &ServiceProcess) -> Vec<f64> {
    let rows = wait_for("both rows", || {
        let answer = get(&service.address, "/v1/cities/a/history").ok()?;
        let body: Value = serde_json::from_str(&answer.body).ok()?;
        body["rows"].as_array().filter(|rows| rows.len() == 2).cloned()
    });
    rows.iter().map(|row| row["heat_index"].as_f64().unwrap()).collect()
}

/// What `docs/rebuild.md` says of an archive.
#[test]
fn changed_formula_is_refused_with_steps_and_rebuilt_from_archive() {
    let folder = tempfile::tempdir().unwrap();
    let (data, rebuilt) = (folder.path().join("data"), folder.path().join("rebuilt"));
    let rothfusz = "[results]\nformula = \"rothfusz\"\n[checkpoints]\nevery = \"1s\"\n";
    let service = ServiceProcess::start(&data, rothfusz).wait_until_ready();
    assert_eq!(post(&service.address, "application/x-ndjson", ARCHIVE_RECORDS).unwrap().status, 200);
    let before = served_heat_indexes(&service);
    wait_for("a checkpoint", || {
        let manifests = std::fs::read_dir(data.join("checkpoints").join("manifests")).ok()?;
        (manifests.count() > 0).then_some(())
    });
    service.terminate();
    let line = check_start_refused(&data, "[results]\nformula = \"nws\"\n");
    for says in [
        "results.formula = \"rothfusz\", and this run has \"nws\"",
        "heat indexes, not measurements",
        "docs/rebuild.md",
    ] {
        assert!(line.contains(says), "{says}: {line}");
    }
    let steps =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/rebuild.md")).unwrap();
    assert!(
        steps.contains("swelter run --formula nws --data-dir") && steps.contains("/v1/readings"),
        "{steps}"
    );
    let service = ServiceProcess::start(&rebuilt, "[results]\nformula = \"nws\"\n").wait_until_ready();
    assert_eq!(post(&service.address, "application/x-ndjson", ARCHIVE_RECORDS).unwrap().status, 200);
    assert_eq!(served_heat_indexes(&service), [83.223224, 41.55]);
    service.terminate();
    // The first data directory is unchanged.
    let service = ServiceProcess::start(&data, rothfusz).wait_until_ready();
    assert_eq!(served_heat_indexes(&service), before);
    service.terminate();
}
