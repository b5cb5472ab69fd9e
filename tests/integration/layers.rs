//! The layers of the house: a module imports only what lies below it. Parts of one layer never import each other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Layer, module, and what else of its own layer it may import.
const LAYERS: &[(u8, &str, &[&str])] = &[
    (0, "fault", &[]),
    (0, "panics", &[]),
    (0, "model", &["panics"]),
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
    (3, "pipeline", &["worker", "cluster", "config"]),
    (3, "cli", &["pipeline", "cluster", "config"]),
    (4, "fuzzing", &[]),
    (4, "main", &[]),
    // The crate root only lists the modules.
    (4, "lib", &[]),
];

/// Only these may name timely or differential dataflow.
const TIMELY: [&str; 4] = ["cluster", "dataflow", "pipeline", "worker"];

/// Only these may name rdkafka.
const RDKAFKA: [&str; 3] = ["kafka", "sinks", "sources"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// The top-level modules that a source file names.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let code = code.collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for (start, prefix) in ["crate::", "swelter::"].iter().flat_map(|p| code.match_indices(p)) {
        let rest = &code[start + prefix.len()..];
        let names = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default().split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        for name in names {
            found.insert(name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

#[test]
fn modules_import_only_what_lies_below() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layer = |name: &str| LAYERS.iter().find(|(_, module, _)| *module == name);
    let mut seen = BTreeSet::new();
    for path in sources(&src) {
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let relative = path.strip_prefix(&src).unwrap().with_extension("");
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap().to_string();
        let (own, _, friends) =
            layer(&module).unwrap_or_else(|| panic!("{module} has no layer: give it one here"));
        let text = fs::read_to_string(&path).unwrap();
        for import in imports(&text) {
            let Some((below, name, _)) = layer(&import).filter(|(_, name, _)| *name != module) else {
                continue;
            };
            let allowed = below < own || friends.contains(name);
            assert!(allowed, "{} (layer {own}) imports {name} (layer {below})", path.display());
        }
        let names_timely = text.contains("timely::") || text.contains("differential_dataflow::");
        assert!(!names_timely || TIMELY.contains(&&*module), "{} names timely", path.display());
        let names_rdkafka = text.contains("rdkafka::");
        assert!(!names_rdkafka || RDKAFKA.contains(&&*module), "{} names rdkafka", path.display());
        assert!(!text.contains("warp::") || module == "serve", "{} names warp", path.display());
        assert!(
            !text.contains("object_store::") || module == "checkpoint",
            "{} names object_store",
            path.display()
        );
        seen.insert(module);
    }
    for (_, module, _) in LAYERS {
        assert!(seen.contains(*module), "{module} is in the list of layers but not in src");
    }
}

/// A panic that is caught must not leave behind what others go on with, so what requests and sessions share says that it is held.
#[test]
fn locks_that_clients_share_are_marked() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = ["serve", "model"].iter().flat_map(|module| sources(&src.join(module)));
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let name = path.to_str().unwrap();
        if name.contains("/tests") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        // Guards are named as the guards of marked locks.
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let code =
            code.replace("MutexGuard", "").replace("RwLockReadGuard", "").replace("RwLockWriteGuard", "");
        let code = code.replace("SharedMutex", "").replace("SharedRwLock", "");
        for lock in ["Mutex", "RwLock", "parking_lot", "Condvar"] {
            assert!(!code.contains(lock), "{name} has a {lock}: take one of panics::locks");
        }
    }
}

#[test]
fn imports_are_found() {
    let text =
        "use crate::{model, codec::Format};\nuse crate::sinks::table; // crate::nothing\nswelter::cli::run()";
    let expected = ["cli", "codec", "model", "sinks"].map(String::from);
    assert_eq!(imports(text).into_iter().collect::<Vec<_>>(), expected);
}
