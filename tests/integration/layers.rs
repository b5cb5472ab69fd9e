//! The layers of the crate: a module imports only modules of lower layers. Modules of one layer do
//! not import each other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::imports::{Imports, rust_files};

/// Layer, module, and the modules of its own layer that it may import.
const LAYERS: &[(u8, &str, &[&str])] = &[
    (0, "child_tests", &[]),
    (0, "test_hooks", &[]),
    (0, "fault", &[]),
    (0, "panics", &["test_hooks"]),
    (0, "model", &["panics", "test_hooks"]),
    (1, "codec", &[]),
    (1, "admission", &[]),
    (1, "directory", &[]),
    (1, "kafka", &[]),
    (1, "registry", &["codec"]),
    (2, "sources", &[]),
    (2, "dataflow", &[]),
    (2, "sinks", &[]),
    (2, "serve", &[]),
    (2, "checkpoint", &[]),
    (3, "config", &[]),
    (3, "worker", &["config"]),
    (3, "cluster", &["config"]),
    (3, "run", &["worker", "cluster", "config"]),
    (3, "cli", &["run", "cluster", "config"]),
    (4, "fuzzing", &[]),
    // The crate root and what it shows of the modules.
    (4, "internals", &["fuzzing"]),
    (4, "lib", &[]),
    (4, "main", &["lib"]),
];

/// Outer crates, and the modules that may name them.
const CRATES: &[(&[&str], &[&str])] = &[
    (&["timely::", "differential_dataflow::"], &["cluster", "dataflow", "lib", "run", "worker"]),
    (&["rdkafka::"], &["kafka", "sinks", "sources"]),
    (&["warp::"], &["serve"]),
    (&["object_store::"], &["checkpoint"]),
    (&["tokio_postgres::"], &["sinks"]),
];

#[test]
fn modules_import_only_lower_layers() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layer = |name: &str| LAYERS.iter().find(|(_, module, _)| *module == name);
    let imports = Imports::read(&src);
    let mut seen = BTreeSet::new();
    for (file, targets) in imports.by_file() {
        let module = top_module(file);
        let (own, _, friends) =
            layer(module).unwrap_or_else(|| panic!("{module} has no layer: give it one here"));
        for target in targets {
            let Some((below, name, _)) = layer(top_module(target)).filter(|(_, name, _)| *name != module)
            else {
                continue;
            };
            let allowed = below < own || friends.contains(name);
            assert!(allowed, "{file} (layer {own}) imports {target} (layer {below})");
        }
        seen.insert(module);
    }
    for (_, module, _) in LAYERS {
        assert!(seen.contains(*module), "{module} is in the list of layers but not in src");
    }
}

#[test]
fn only_the_modules_of_the_map_name_outer_crates() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in rust_files(&src) {
        let file = path.strip_prefix(&src).unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for (names, modules) in CRATES {
            let is_named = names.iter().any(|name| text.contains(name));
            assert!(!is_named || modules.contains(&top_module(file)), "{file} names {}", names[0]);
        }
    }
}

/// Hooks change what a built program does, so all are in the one file that only the feature `test-hooks` compiles.
#[test]
fn test_hooks_are_in_one_file() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in rust_files(&src) {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let has_variable =
            ["SWELTER_TEST_", "SWELTER_PANIC_POINT"].iter().any(|prefix| code.contains(prefix));
        let may_have = name == "test_hooks.rs" || name.split(['/', '.']).any(|part| part == "tests");
        assert!(!has_variable || may_have, "{name} has a hook of its own: move it to test_hooks.rs");
    }
    let manifest = fs::read_to_string(src.with_file_name("Cargo.toml")).unwrap();
    let features = manifest.split("[features]").nth(1).unwrap().split("\n[").next().unwrap();
    assert!(!features.contains("default"), "no feature may be a default one:{features}");
}

#[test]
fn no_circle_of_files() {
    for folder in ["src", "tests/integration"] {
        let imports = Imports::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder));
        let circles = imports.circles();
        assert!(circles.is_empty(), "{folder}: {}", describe(&imports, &circles));
    }
}

/// The circles with the arrows inside each.
fn describe(imports: &Imports, circles: &[BTreeSet<&str>]) -> String {
    let by_file = imports.by_file();
    let mut text = String::new();
    for circle in circles {
        text.push_str("\na circle of files:\n");
        for file in circle {
            let inside: Vec<_> = by_file[file].intersection(circle).collect();
            text.push_str(&format!("  {file} imports {inside:?}\n"));
        }
    }
    text
}

fn top_module(file: &str) -> &str {
    file.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

/// A caught panic must not leave shared state half changed, so requests and sessions share state
/// only behind locks that note a panic.
#[test]
fn serve_and_model_use_only_shared_state_locks() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = ["serve", "model"].iter().flat_map(|module| rust_files(&src.join(module)));
    for path in files {
        let name = path.to_str().unwrap();
        if name.contains("/tests") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let code = code.replace("SharedMutex", "").replace("SharedRwLock", "");
        for lock in ["Mutex", "RwLock", "parking_lot", "Condvar"] {
            assert!(!code.contains(lock), "{name} has a {lock}: take one of panics::locks");
        }
    }
}

/// Beside the panic hook, one place ends the process, so that there is one list of reasons and exit codes.
#[test]
fn one_file_ends_the_process() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in rust_files(&src) {
        let file = path.strip_prefix(&src).unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let ends = text.contains("process::exit(");
        assert!(!ends || ["fault/exit.rs", "cli/logging.rs"].contains(&file), "{file} ends the process");
    }
}

/// The way of a run's plan, as ARCHITECTURE.md writes it down: `src/FILE:LINE` and the code in that line.
#[test]
fn way_of_the_plan_is_as_written_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let section = text.split("### The way of the plan").nth(1).expect("ARCHITECTURE.md has the section");
    let section = section.split("\n#").next().unwrap_or_default();
    let mut files: Vec<String> = Vec::new();
    for step in section.lines().filter_map(|line| line.split_once(". `src/")) {
        let (place, rest) = step.1.split_once('`').expect("a place ends");
        let (file, line) = place.split_once(':').expect("a place has a line");
        let code = rest.split('`').nth(1).expect("the code of the line follows");
        let source = fs::read_to_string(root.join("src").join(file)).unwrap();
        let found = source.lines().nth(line.parse::<usize>().unwrap() - 1).unwrap_or_default();
        let now = source.lines().position(|line| line.contains(code)).map(|at| at + 1);
        assert!(found.contains(code), "src/{file}:{line} has not `{code}`: it is in line {now:?}");
        if files.last().is_none_or(|last| last != file) {
            files.push(file.to_owned());
        }
    }
    let distinct: BTreeSet<&String> = files.iter().collect();
    assert!(distinct.len() >= 6, "{files:?}: from run to the workers");
    assert!(distinct.len() <= 12, "{files:?}");
    assert!(files.len() - distinct.len() <= 2, "{files:?}: returns to a file already left");
}
