//! The documents: their form, their links, and their commands, which are run as they are written.

mod commands;
mod markdown;
mod matching;
mod recovery;
mod shell;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use self::markdown::{Page, pages, repository, user_pages};
use crate::support::swelter_command;

const COLUMNS: usize = 100;
const README_LINES: usize = 150;

#[test]
fn prose_wraps() {
    let long: Vec<String> = pages().iter().flat_map(|page| page.long_lines(COLUMNS)).collect();
    assert!(long.is_empty(), "prose of more than {COLUMNS} columns: {long:#?}");
}

#[test]
fn readme_is_short() {
    let lines = Page::read("README.md").lines();
    assert!(lines <= README_LINES, "{lines} lines: move what is for one task to a page of docs");
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut broken = Vec::new();
    let mut count = 0;
    for page in pages() {
        for (line, target) in page.links() {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            count += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let folder = Path::new(&page.path).parent().unwrap();
            let path = if file.is_empty() {
                repository().join(&page.path)
            } else {
                repository().join(folder).join(file)
            };
            let is_right = path.exists() && (anchor.is_empty() || anchors(&path).contains(anchor));
            if !is_right {
                broken.push(format!("{}:{line}: {target}", page.path));
            }
        }
    }
    assert!(count > 100, "only {count} links were found");
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
}

fn anchors(path: &Path) -> BTreeSet<String> {
    let path = fs::canonicalize(path).unwrap();
    let repository = fs::canonicalize(repository()).unwrap();
    Page::read(path.strip_prefix(repository).unwrap().to_str().unwrap()).anchors()
}

#[test]
fn index_names_every_page() {
    let index = Page::read("docs/README.md").links();
    let named: BTreeSet<&str> = index.iter().map(|(_, target)| target.as_str()).collect();
    for page in pages() {
        let name = page.path.strip_prefix("docs/").filter(|name| !name.contains('/') && *name != "README.md");
        if let Some(name) = name {
            assert!(named.contains(name), "docs/README.md does not name {name}");
        }
    }
}

/// The text of all Rust files below a folder.
fn rust_text(folder: &str) -> String {
    let (mut text, mut folders) = (String::new(), vec![repository().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    text
}

/// Text between quotes that is the name of a metric.
fn metric_names() -> BTreeSet<String> {
    let text = rust_text("src");
    let quoted = text.split('"').skip(1).filter(|text| text.starts_with("swelter_"));
    let is_name =
        |text: &&str| text.chars().all(|c| c.is_ascii_lowercase() || c == '_') && !text.ends_with('_');
    quoted.filter(is_name).map(String::from).collect()
}

/// The last column of the table of threats names tests, modules of tests, or scripts.
#[test]
fn security_page_names_tests_that_exist() {
    let page = fs::read_to_string(repository().join("docs/security.md")).unwrap();
    let code = rust_text("src") + &rust_text("tests");
    let rows = page.split("## Threats").nth(1).unwrap().lines().filter(|line| line.starts_with("| "));
    let cells = rows.skip(1).filter_map(|row| row.trim_end_matches(['|', ' ']).rsplit_once('|'));
    let names: Vec<&str> = cells.flat_map(|(_, cell)| cell.split('`').skip(1).step_by(2)).collect();
    assert!(names.len() > 30, "{names:?}");
    let exists = |name: &str| {
        let last = name.rsplit("::").next().unwrap_or(name);
        match last.strip_suffix('*') {
            Some(begin) => code.contains(&format!("fn {begin}")),
            None if name.starts_with("scripts/") => {
                repository().join(name.split(' ').next().unwrap_or(name)).exists()
            }
            None => code.contains(&format!("fn {last}(")) || code.contains(&format!("mod {last};")),
        }
    };
    let missing: Vec<&str> = names.into_iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "docs/security.md names tests that are not there: {missing:?}");
}

#[test]
fn operate_page_names_every_metric() {
    let names = metric_names();
    assert!(names.len() > 30, "{names:?}");
    let page = fs::read_to_string(repository().join("docs/operate.md")).unwrap();
    let missing: Vec<&String> = names.iter().filter(|name| !page.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/operate.md does not name {missing:?}");
    let words = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let unknown: Vec<&str> =
        words.filter(|word| word.starts_with("swelter_") && !names.contains(*word)).collect();
    assert!(unknown.is_empty(), "docs/operate.md names metrics that are not there: {unknown:?}");
}

/// Blocks of shell commands that no test runs: their page, how they begin, and why.
const NOT_RUN: &[(&str, &str, &str)] = &[
    ("README.md", "cargo run --release -- demo", "builds; service tests run the demo"),
    ("docs/quick-start.md", "sudo apt-get install", "installs packages"),
    ("docs/quick-start.md", "swelter demo", "runs until Ctrl-C; service tests run it"),
    ("docs/kafka.md", "sudo apt-get install", "installs packages; scripts/test starts a broker so"),
    ("docs/postgres.md", "sudo apt-get install", "installs packages; the test of the page makes the role so"),
    ("docs/postgres.md", "swelter postgres migrate", "postgres::schema runs it"),
    ("docs/history.md", "curl", "needs a replica with years of rows; postgres::history asks so"),
    ("docs/history.md", "swelter why", "the quick start runs it; postgres::history asks with a database"),
    ("docs/history.md", "mkdir days", "postgres::export runs it"),
    ("docs/cluster.md", "swelter run --config swelter.toml --processes 3", "needs several hosts"),
    ("docs/cluster.md", "openssl req", "cluster::tls runs it"),
    ("docs/delivery.md", "kcat -C", "needs the topics of docs/kafka.md, whose test reads them so"),
    ("docs/checkpoints.md", "duckdb -c", "checkpoints::duckdb_reads_checkpoints runs it"),
    ("docs/performance.md", "cargo build --release", "benchmarks take minutes"),
    ("docs/trial.md", "scripts/trial --seeds 1..84", "takes 20 minutes; the test trial runs a short one"),
    ("docs/trial.md", "scripts/trial --seeds 17..17", "the test trial runs a short one"),
    ("docs/releasing.md", "cargo test --lib schemas_are", "scripts/test runs it"),
    ("docs/releasing.md", ".ci/run", "CI runs it; the rest takes hours"),
    ("docs/releasing.md", "taskset -c 1 cargo bench", "benchmarks take minutes"),
    ("docs/releasing.md", "cargo build --profile dist", "builds what is shipped"),
    ("docs/releasing.md", "cargo package", "builds from the package, and asks the registry"),
    ("docs/backup.md", "swelter backup --verify", "the same commands run above it; backup tests a rehearsal"),
    ("docs/disaster-recovery.md", "kafka-topics.sh", "documents::recovery runs it"),
    ("docs/disaster-recovery.md", "for partition in 0 1", "documents::recovery runs it"),
    (
        "docs/disaster-recovery.md",
        "swelter run --config swelter.toml --adopt-logs",
        "documents::recovery runs it",
    ),
    ("docs/reading-files.md", "sqlite3", "needs the database of a station; read_files reads its CSV"),
    ("docs/reading-files.md", "swelter batch temperature.csv", "the sample has semicolons; the next block"),
    ("docs/troubleshooting.md", "mkdir swelter-data.old", "other_rules does it"),
];

/// A command that no test runs becomes wrong some day.
#[test]
fn every_command_is_run_or_says_why_not() {
    let (mut unlisted, mut used) = (Vec::new(), BTreeSet::new());
    for page in user_pages() {
        for block in page.blocks.iter().filter(|block| block.language == "sh" && !block.has("run")) {
            let text = block.text.trim_start();
            let entry =
                NOT_RUN.iter().position(|(path, begin, _)| *path == page.path && text.starts_with(begin));
            match entry {
                Some(entry) => _ = used.insert(entry),
                None => unlisted.push(format!("{}:{}", page.path, block.number)),
            }
        }
    }
    assert!(unlisted.is_empty(), "commands that no test runs: mark them `sh run`: {unlisted:#?}");
    let unused: Vec<_> =
        (0..NOT_RUN.len()).filter(|entry| !used.contains(entry)).map(|at| NOT_RUN[at]).collect();
    assert!(unused.is_empty(), "no such blocks: {unused:#?}");
}

/// Blocks of TOML that are a part of a table.
const PARTS: [(&str, &str); 1] = [("docs/kafka.md", "properties = ")];

/// Each configuration of the documents is valid, but for files that are not here.
#[test]
fn configurations_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("shown.toml");
    let mut count = 0;
    for page in user_pages() {
        for block in page.blocks.iter().filter(|block| block.language == "toml") {
            if PARTS.iter().any(|(path, begin)| *path == page.path && block.text.starts_with(begin)) {
                continue;
            }
            fs::write(&config, &block.text).unwrap();
            let output = swelter_command()
                .args(["run", "--check-config", "--config", config.to_str().unwrap()])
                .current_dir(folder.path())
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_of_a_file = |line: &str| line.contains("is not a file") || line.contains("No such file");
            let is_taken = errors.lines().all(is_of_a_file);
            assert!(is_taken, "{}:{}: {errors}", page.path, block.number);
            count += 1;
        }
    }
    assert!(count >= 8, "{count} configurations");
}
