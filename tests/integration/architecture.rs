//! ARCHITECTURE.md and the records of decisions: what they name exists, and the code map is complete.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = "ARCHITECTURE.md";

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read_page(path: &str) -> String {
    fs::read_to_string(home().join(path)).unwrap()
}

/// All files below a folder, relative to the repository.
fn files_below(folder: &str) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![home().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path.strip_prefix(home()).unwrap().to_str().unwrap().to_string());
            }
        }
    }
    files
}

/// What stands between single backticks, outside of blocks of code.
fn quoted(page: &str) -> Vec<&str> {
    let text = page.split("```").step_by(2);
    text.flat_map(|part| part.split('`').skip(1).step_by(2)).collect()
}

/// The text of a section, up to the next heading of its level.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, rest) =
        page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    rest.split("\n## ").next().unwrap()
}

fn is_unit_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

#[test]
fn code_map_names_every_source_file_and_no_other() {
    let page = read_page(PAGE);
    let rows =
        section(&page, "Code map").lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let named: BTreeSet<String> =
        rows.filter(|path| path.contains('.')).map(|path| format!("src/{path}")).collect();
    let code = |path: &String| (path.ends_with(".rs") || path.ends_with(".js")) && !is_unit_test(path);
    let present: BTreeSet<String> = files_below("src").into_iter().filter(code).collect();
    let missing: Vec<_> = present.difference(&named).collect();
    let gone: Vec<_> = named.difference(&present).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "run scripts/code-map: missing {missing:?}, gone {gone:?}"
    );
}

/// `src/run/mod.rs`, `run/mod.rs:120`, `docs/adr/`: from the repository or from `src`.
fn is_path(word: &str) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:".contains(c));
    let (file, _) = word.split_once(".rs:").unwrap_or((word, ""));
    let known = [".rs", ".md", ".toml", ".js", ".json", ".py", ".mjs", ".txt", ".avsc"];
    plain
        && !word.contains("::")
        && !word.starts_with('/')
        && (word.ends_with('/') || word.contains(".rs:") || known.iter().any(|end| file.ends_with(end)))
}

fn find_path(file: &str) -> Option<PathBuf> {
    ["", "src/"].iter().map(|base| home().join(format!("{base}{file}"))).find(|path| path.exists())
}

#[test]
fn named_paths_exist() {
    let mut missing = BTreeSet::new();
    let maintained = [PAGE, "CONTRIBUTING.md", "SECURITY.md", "docs/releasing.md"].map(String::from);
    for page in files_below("docs/adr").into_iter().chain(maintained) {
        let text = read_page(&page);
        for word in quoted(&text).into_iter().filter(|word| is_path(word)) {
            let file = word.split_once(".rs:").map_or(word.to_string(), |(file, _)| format!("{file}.rs"));
            if find_path(&file).is_none() {
                missing.insert(format!("{page}: {word}"));
            }
        }
    }
    assert!(missing.is_empty(), "no such paths: {missing:#?}");
}

/// The files of a module that tests are in, by its path from the integration tests or from `src`.
fn module_files(segments: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for base in ["tests/integration", "src"] {
        let folder = segments.iter().fold(home().join(base), |path, segment| path.join(segment));
        found.extend(Some(folder.with_extension("rs")).filter(|file| file.is_file()));
        if folder.is_dir() {
            let inside = files_below(folder.strip_prefix(home()).unwrap().to_str().unwrap());
            found.extend(inside.into_iter().map(|file| home().join(file)));
        }
    }
    // A module of tests inside its file.
    if found.is_empty() && segments.len() > 1 && segments.last() == Some(&"tests") {
        return module_files(&segments[..segments.len() - 1]);
    }
    found
}

#[test]
fn named_tests_exist() {
    let page = read_page(PAGE);
    let mut count = 0;
    for row in section(&page, "Invariants").lines().filter(|line| line.starts_with("| ")).skip(1) {
        let cell = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        for test in quoted(cell).into_iter().filter(|test| !test.starts_with("scripts/")) {
            let segments: Vec<&str> = test.split("::").collect();
            if module_files(&segments).is_empty() {
                let (name, module) = segments.split_last().unwrap();
                let function = format!("fn {}", name.trim_end_matches('*'));
                let end = if name.ends_with('*') { "" } else { "(" };
                let text =
                    module_files(module).into_iter().map(|file| fs::read_to_string(file).unwrap_or_default());
                let found = text.into_iter().any(|text| text.contains(&format!("{function}{end}")));
                assert!(found, "{PAGE} names the test {test}, which does not exist: {row}");
            }
            count += 1;
        }
    }
    assert!(count > 50, "the invariants name only {count} tests");
}

#[test]
fn every_decision_is_in_the_index() {
    let index = read_page("docs/adr/README.md");
    let mut names: Vec<_> =
        files_below("docs/adr").into_iter().filter(|path| !path.ends_with("README.md")).collect();
    names.sort();
    for (number, path) in (1..).zip(&names) {
        let name = path.rsplit('/').next().unwrap();
        assert!(name.starts_with(&format!("{number:04}-")), "{name} is not number {number}");
        assert!(index.contains(&format!("]({name})")), "docs/adr/README.md does not list {name}");
        let text = read_page(path);
        for heading in ["Context", "Decision", "Measurement", "Consequences"] {
            assert!(text.contains(&format!("\n## {heading}\n")), "{name} has no section {heading}");
        }
    }
}
