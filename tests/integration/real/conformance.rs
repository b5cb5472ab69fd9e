//! The Autobahn test suite against the WebSocket settings of the service.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::ServiceBuilder;
use crate::support::prepared::{prepared_variable, print_line};

/// The suite does not report a case that never ends.
const SUITE_TIMEOUT: Duration = Duration::from_secs(300);
/// Of all versions of the protocol but for compression, which the service does not offer.
const CASE_COUNT: usize = 301;
/// The results of a bare `tungstenite` endpoint other than OK: fragments of text that is not UTF-8
/// are refused at their last byte and not at once, and some closes may be answered in more than one
/// way.
const INFORMATIONAL_CASES: [&str; 3] = ["7.1.6", "7.13.1", "7.13.2"];
const NON_STRICT_CASES: [&str; 2] = ["6.4.3", "6.4.4"];

#[test]
#[ignore = "needs Python: scripts/test"]
fn websocket_passes_autobahn_suite_like_bare_endpoint() {
    let (python, suite) = (prepared_variable("TEST_PYTHON"), prepared_variable("TEST_AUTOBAHN"));
    let service = ServiceBuilder::new("[serve]\necho = true\n").start().wait_until_ready();
    let folder = tempfile::tempdir().unwrap();
    let (spec, reports) = (folder.path().join("spec.json"), folder.path().join("reports"));
    let servers = json!([{"agent": "swelter", "url": format!("ws://{}/echo", service.address)}]);
    let written = json!({
        "outdir": reports, "servers": servers, "cases": ["*"], "exclude-cases": ["12.*", "13.*"], "exclude-agent-cases": {},
    });
    fs::write(&spec, written.to_string()).unwrap();
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/autobahn/wstest.py")).arg(suite);
    command.args(["-m", "fuzzingclient", "-s"]).arg(&spec);
    let took = run_suite(&mut command, folder.path());
    let found = cases_by_behaviour(&reports);
    let counted = found.iter().map(|(behaviour, cases)| format!("{} {behaviour}", cases.len()));
    print_line(&format!(
        "Autobahn: {} in {:.0} s",
        counted.collect::<Vec<_>>().join(", "),
        took.as_secs_f64()
    ));
    assert_eq!(found.values().map(Vec::len).sum::<usize>(), CASE_COUNT, "{found:?}");
    for (behaviour, cases) in &found {
        let known: &[&str] = match behaviour.as_str() {
            "OK" => continue,
            "INFORMATIONAL" => &INFORMATIONAL_CASES,
            "NON-STRICT" => &NON_STRICT_CASES,
            _ => &[],
        };
        let new: Vec<_> = cases.iter().filter(|case| !known.contains(&case.as_str())).collect();
        assert!(new.is_empty(), "{behaviour}: {new:?}");
    }
}

/// Runs the suite to its end; returns how long it took.
fn run_suite(command: &mut Command, folder: &Path) -> Duration {
    let log = folder.join("log");
    let file = fs::File::create(&log).unwrap();
    let began = Instant::now();
    let errors = file.try_clone().unwrap();
    let mut child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if began.elapsed() > SUITE_TIMEOUT {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let said = || String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
    assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", said());
    began.elapsed()
}

/// The cases by how the endpoint behaved, in the case itself and in closing.
fn cases_by_behaviour(reports: &Path) -> BTreeMap<String, Vec<String>> {
    let index: Value = serde_json::from_slice(&fs::read(reports.join("index.json")).unwrap()).unwrap();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (case, result) in index["swelter"].as_object().unwrap() {
        let (behaviour, close) = (&result["behavior"], &result["behaviorClose"]);
        let worse = if close == "OK" || close == "INFORMATIONAL" { behaviour } else { close };
        found.entry(worse.as_str().unwrap().to_owned()).or_default().push(case.clone());
    }
    found
}
