//! The commands of the README and of `docs`, copied and pasted: each block marked `sh run`, in the order of its page, in one shell.
//!
//! A block marked `file=NAME` is a file of that name. `text output`, `text stderr` and `json output` behind a block are what it
//! writes; `anytime` says that its times may be others.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::markdown::{Block, Page, repository, user_pages};
use super::matching::{json_matches, text_matches};
use super::shell::Shell;
use crate::kafka::broker::shared_broker;
use crate::postgres::server::PrivateServer;
use crate::postgres::test_schema::TestClient;
use crate::support::consecutive_free_ports;

/// The pages that a test below runs.
const PAGES: [&str; 13] = [
    "README.md",
    "docs/backup.md",
    "docs/batch.md",
    "docs/checkpoints.md",
    "docs/cluster.md",
    "docs/dead-letters.md",
    "docs/folder-sink.md",
    "docs/operate.md",
    "docs/places.md",
    "docs/quick-start.md",
    "docs/reading-files.md",
    "docs/rebuild.md",
    "docs/security.md",
];
/// Those that need a broker.
const KAFKA_PAGES: [&str; 2] = ["docs/kafka.md", "docs/takeover.md"];

/// Those that need a database.
const POSTGRES_PAGES: [&str; 2] = ["docs/postgres.md", "docs/postgres-queries.md"];

/// What `docs/reading-files.md` calls the samples.
const SAMPLES: [(&str, &str); 12] = [
    ("iem-asos.csv", "iem-asos.csv"),
    ("72503014732.csv", "noaa-isd.csv"),
    ("LCD_72503014732_2013.csv", "noaa-lcd.csv"),
    ("bulk.csv", "openweathermap-bulk.csv"),
    ("KLGA.csv", "meteostat-bulk.csv"),
    ("KLGA.2025.csv", "meteostat.csv"),
    ("Madrid.csv", "open-meteo.csv"),
    ("garden.csv", "weatherlink.csv"),
    ("garden.txt", "weatherlink.txt"),
    ("temperature.csv", "kaggle-temperature.csv"),
    ("humidity.csv", "kaggle-humidity.csv"),
    ("history.csv", "home-assistant.csv"),
];

/// Texts of a page that a test must have otherwise: ports, brokers, names.
type Replacements = Vec<(String, String)>;

fn replaced(text: &str, replacements: &Replacements) -> String {
    replacements.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// A marker between the outputs of two blocks, with the exit code of the one before.
const MARKER: &str = "@@ block ended with";

fn run_page(path: &str, prepare: impl Fn(&Path), replacements: Replacements) {
    let page = Page::read(path);
    let (folder, first) = (tempfile::tempdir().unwrap(), consecutive_free_ports(3));
    let own = folder.path().file_name().unwrap().to_str().unwrap().to_owned();
    let mut all: Replacements =
        (0..3).map(|at| (format!("{}", 8080 + at), (first + at).to_string())).collect();
    // Other tests have clusters, too.
    all.push(("/tmp/swelter-cluster".into(), "swelter-cluster".into()));
    all.push(("swelter-cluster".into(), format!("swelter-cluster{own}")));
    all.extend(replacements);
    prepare(folder.path());
    let mut script = String::new();
    for block in &page.blocks {
        if let Some(name) = block.file() {
            fs::write(folder.path().join(name), replaced(&block.text, &all)).unwrap();
        }
        if block.has("run") {
            script.push_str(&replaced(&block.text, &all));
            script.push_str(&format!(
                "code=$?; end='\n{MARKER} %s\n'; printf \"$end\" $code; printf \"$end\" $code >&2\n"
            ));
        }
    }
    let (out, err) = Shell::run(&script, folder, first).finish();
    let (out, err) = (sections(&out), sections(&err));
    let mut at = None;
    for block in &page.blocks {
        if block.has("run") {
            let next = at.map_or(0, |at| at + 1);
            at = Some(next);
            let is_compared = shown(&page, block).next().is_some();
            let (code, written) = (out[next].1, &out[next].0);
            assert!(
                is_compared || code == 0,
                "{path}:{}: code {code}: {written}{}",
                block.number,
                err[next].0
            );
        } else if block.has("output") || block.has("stderr") {
            let at = at.expect("an output behind commands");
            let written = if block.has("stderr") { &err[at].0 } else { &out[at].0 };
            compare(path, block, &replaced(&block.text, &all), written, &err[at].0);
        }
    }
    assert!(at.is_some(), "{path} has commands");
}

/// The outputs that a page shows of a block of commands.
fn shown<'p>(page: &'p Page, commands: &Block) -> impl Iterator<Item = &'p Block> {
    let behind = page.blocks.iter().filter(move |block| block.number > commands.number);
    behind.take_while(|block| !block.has("run")).filter(|block| block.has("output") || block.has("stderr"))
}

fn compare(path: &str, block: &Block, shown: &str, written: &str, errors: &str) {
    let is_right = match &*block.language {
        "json" => json_matches(shown, written),
        _ => text_matches(shown, written, block.has("anytime")),
    };
    assert!(
        is_right,
        "{path}:{} shows\n{shown}\nbut it is\n{written}\nand on standard error\n{errors}",
        block.number
    );
}

/// What each block has written, and its exit code.
fn sections(written: &str) -> Vec<(String, i32)> {
    let mut sections = Vec::new();
    let mut section = String::new();
    for line in written.lines() {
        match line.strip_prefix(MARKER) {
            Some(code) => sections.push((std::mem::take(&mut section), code.trim().parse().unwrap())),
            None => {
                section.push_str(line);
                section.push('\n');
            }
        }
    }
    sections
}

/// A page with commands is a page with a test.
#[test]
fn every_page_with_commands_has_a_test() {
    for page in user_pages() {
        let runs = page.blocks.iter().any(|block| block.has("run"));
        let is_listed =
            [&PAGES[..], &KAFKA_PAGES, &POSTGRES_PAGES].iter().any(|pages| pages.contains(&&*page.path));
        assert_eq!(runs, is_listed, "{}: add a test that runs it, and its name to PAGES", page.path);
    }
}

fn run_plain(path: &str) {
    assert!(PAGES.contains(&path));
    run_page(path, |_| (), Vec::new());
}

#[test]
fn readme_commands_write_what_it_shows() {
    run_plain("README.md");
}

#[test]
fn quick_start_commands_write_what_it_shows() {
    run_plain("docs/quick-start.md");
}

#[test]
fn operate_commands_write_what_it_shows() {
    run_plain("docs/operate.md");
}

#[test]
fn batch_commands_write_what_it_shows() {
    run_plain("docs/batch.md");
}

#[test]
fn checkpoints_commands_write_what_it_shows() {
    run_plain("docs/checkpoints.md");
}

#[test]
fn dead_letters_commands_write_what_it_shows() {
    run_plain("docs/dead-letters.md");
}

#[test]
fn folder_sink_commands_write_what_it_shows() {
    run_plain("docs/folder-sink.md");
}

#[test]
fn backup_commands_write_what_it_shows() {
    run_plain("docs/backup.md");
}

#[test]
fn places_commands_write_what_it_shows() {
    run_plain("docs/places.md");
}

#[test]
fn security_commands_write_what_it_shows() {
    run_plain("docs/security.md");
}

#[test]
fn rebuild_commands_take_an_archive() {
    let archive = r#"{"city":"a","reading_at":"2026-01-01T00:00:00Z","temperature":91,"humidity":50}"#;
    let prepare = |folder: &Path| fs::write(folder.join("archive.jsonl"), archive).unwrap();
    run_page("docs/rebuild.md", prepare, Vec::new());
}

#[test]
fn cluster_commands_write_what_it_shows() {
    run_plain("docs/cluster.md");
}

#[test]
fn reading_files_commands_write_what_it_shows() {
    let samples = repository().join("tests/samples");
    let prepare = |folder: &Path| {
        for (name, sample) in SAMPLES {
            symlink(samples.join(sample), folder.join(name)).unwrap();
        }
    };
    run_page("docs/reading-files.md", prepare, Vec::new());
}

/// Runs a page beside the shared broker, with topics of its own.
fn run_with_kafka(path: &str) {
    let access = shared_broker();
    let page = KAFKA_PAGES.iter().position(|page| *page == path).unwrap();
    let number = format!("{}-{page}", std::process::id());
    let readings = format!("readings-{number}");
    let replacements = [
        ("127.0.0.1:9092", access.address.clone()),
        ("heat-index", format!("heat-index-{number}")),
        ("\"readings\"", format!("\"{readings}\"")),
        ("--topic readings", format!("--topic {readings}")),
    ];
    let replacements = replacements.map(|(from, to)| (from.into(), to)).into();
    run_page(path, |_| (), replacements);
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn kafka_commands_write_what_it_shows() {
    run_with_kafka("docs/kafka.md");
}

#[test]
#[ignore = "needs Kafka: scripts/test"]
fn takeover_commands_write_what_it_shows() {
    run_with_kafka("docs/takeover.md");
}

/// Runs a page with a server of its own, which has the role and the database that the page makes.
fn run_with_postgres(path: &str) {
    assert!(POSTGRES_PAGES.contains(&path));
    let server = PrivateServer::start(&[]);
    let admin = TestClient::connect(&server.url);
    admin.execute("create role swelter login");
    admin.execute("create database weather owner swelter");
    let address = server.url.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    let port = address.rsplit(':').next().unwrap().to_owned();
    let replacements =
        vec![("127.0.0.1:5432".into(), address), ("PGPORT=5432".into(), format!("PGPORT={port}"))];
    run_page(path, |_| (), replacements);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn postgres_commands_write_what_it_shows() {
    run_with_postgres("docs/postgres.md");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn postgres_queries_commands_write_what_it_shows() {
    run_with_postgres("docs/postgres-queries.md");
}
