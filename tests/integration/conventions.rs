//! What holds for every file of the project's code, and for every test that is left out of plain
//! `cargo test`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::imports::rust_files;

const MAX_LINES: usize = 500;

/// Tables of data, which would not be easier to read in two files.
const TABLES_OF_DATA: &[&str] = &[];

/// Why a test may be left out of plain `cargo test`: what the attribute must begin with, and by
/// which part of the test's name `scripts/test` skips it, if it does.
const IGNORE_REASONS: [(&str, Option<&str>); 8] = [
    ("needs Kafka: scripts/test", None),
    ("needs PostgreSQL: scripts/test", None),
    ("needs Chromium: scripts/test", None),
    ("needs Python: scripts/test", None),
    ("needs Node.js: scripts/test", None),
    ("child process of `", Some("child_process_")),
    ("measures: ", Some("measure_")),
    ("takes long: scripts/trial", Some("trial::trial")),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn all_rust_files() -> Vec<PathBuf> {
    ["src", "benches", "tests"].iter().flat_map(|folder| rust_files(&root().join(folder))).collect()
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let relative = |path: &Path| path.strip_prefix(root()).unwrap().display().to_string();
    let long: Vec<String> = all_rust_files()
        .iter()
        .map(|path| (relative(path), fs::read_to_string(path).unwrap().lines().count()))
        .filter(|(path, lines)| *lines > MAX_LINES && !TABLES_OF_DATA.contains(&path.as_str()))
        .map(|(path, lines)| format!("{path}: {lines} lines"))
        .collect();
    assert!(long.is_empty(), "split these files by idea: {long:#?}");
}

/// The name of the function that follows.
fn next_function(text: &str) -> &str {
    let name = text.split("fn ").nth(1).unwrap();
    name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap()
}

#[test]
fn ignored_tests_are_run_or_skipped_by_their_reason() {
    let script = fs::read_to_string(root().join("scripts/test")).unwrap();
    let skipped: BTreeSet<&str> =
        script.split("--skip ").skip(1).map(|rest| rest.split_whitespace().next().unwrap()).collect();
    let listed: BTreeSet<&str> = IGNORE_REASONS.iter().filter_map(|(_, skipped)| *skipped).collect();
    assert_eq!(skipped, listed, "scripts/test skips exactly what is never a test by itself");
    for path in all_rust_files() {
        let text = fs::read_to_string(&path).unwrap();
        let file = path.strip_prefix(root()).unwrap().with_extension("");
        let module = file.iter().filter_map(|part| part.to_str()).filter(|part| *part != "mod");
        let module = module.collect::<Vec<_>>().join("::");
        for part in text.split("#[test]\n").skip(1) {
            let name = format!("{module}::{}", next_function(part));
            let attributes = part.split("fn ").next().unwrap();
            let reason = attributes.split("#[ignore").nth(1).map(|rest| {
                rest.split('"').nth(1).unwrap_or_else(|| panic!("{name} is ignored without a reason"))
            });
            let by_name = skipped.iter().find(|skipped| name.contains(**skipped)).copied();
            let by_reason = reason.map(|reason| {
                let known = IGNORE_REASONS.iter().find(|(begin, _)| reason.starts_with(begin));
                known.unwrap_or_else(|| panic!("{name} is ignored for an unknown reason: {reason}")).1
            });
            assert_eq!(by_name, by_reason.flatten(), "{name}: its name and its reason do not agree");
        }
    }
}
