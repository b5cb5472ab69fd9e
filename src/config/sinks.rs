//! The keys of the list of durable sinks.

use std::path::{Component, Path, PathBuf};

use super::config_reader::ConfigReader;
use super::kafka::{self, TopicUses};
use super::layers::{ConfigValue, TableItem};
use super::plan::{SinkKind, SinkPlan};
use super::postgres::read_postgres_sink;
use crate::dataflow::rolling::Retention;
use crate::sinks::folder::{FolderFormat, FolderSinkPlan, SegmentLimits};

const MAX_SINKS: usize = 16;

/// Reads the sinks in the order of the configuration.
pub fn read_sinks(keys: &mut ConfigReader, topics: &mut TopicUses, results: Retention) -> Vec<SinkPlan> {
    let items = keys.list_items("sinks");
    if items.len() > MAX_SINKS {
        keys.add_error("sinks", format!("has {} sinks: {MAX_SINKS} are the most", items.len()));
        return Vec::new();
    }
    let mut sinks: Vec<SinkPlan> = Vec::new();
    for TableItem { name, key: at, .. } in items {
        let kind = match keys.read_one_of(&format!("{at}.type"), &["kafka", "folder", "postgres"]).as_deref()
        {
            Some("kafka") => kafka::read_kafka_sink(keys, &at, topics).map(SinkKind::Kafka),
            Some("folder") => read_folder(keys, &at, &sinks).map(SinkKind::Folder),
            Some(_) => read_postgres_sink(keys, &at, results, &sinks).map(SinkKind::Postgres),
            None => None,
        };
        if is_named(keys, &at, &name) {
            sinks.extend(kind.map(|kind| SinkPlan { name, kind }));
        }
    }
    sinks
}

fn is_named(keys: &mut ConfigReader, at: &str, name: &str) -> bool {
    let key = format!("{at}.name");
    let is_written = keys.is_given(&key);
    keys.set_default(&key, ConfigValue::Text(name.into()));
    let written = keys.read_text(&key);
    if is_written && (written != name || !kafka::is_topic_name(name)) {
        let problem = "is not a name for a sink: 1 to 249 of a-z, A-Z, 0-9, . _ and -, in the file";
        keys.add_error(&key, problem);
    }
    keys.is_valid(&key)
}

/// The name of a sink whose folder is this one, is in it or contains it, under whichever names.
fn find_overlap<'a>(folder: &Path, sinks: &'a [SinkPlan]) -> Option<&'a str> {
    let own = resolve_path(folder);
    let overlaps = |sink: &&SinkPlan| match &sink.kind {
        SinkKind::Folder(FolderSinkPlan { path, .. }) => {
            let used = resolve_path(path);
            used.starts_with(&own) || own.starts_with(&used)
        }
        SinkKind::Kafka(_) | SinkKind::Postgres(_) => false,
    };
    sinks.iter().find(overlaps).map(|sink| &*sink.name)
}

/// The absolute path without links, of a folder that need not exist.
fn resolve_path(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let existing = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    let Some((above, mut resolved)) = existing else { return path };
    for component in path.strip_prefix(above).unwrap_or(Path::new("")).components() {
        match component {
            // What does not exist is no link, so its parent is the folder before it.
            Component::ParentDir => drop(resolved.pop()),
            _ => resolved.push(component),
        }
    }
    resolved
}

fn read_folder(keys: &mut ConfigReader, at: &str, before: &[SinkPlan]) -> Option<FolderSinkPlan> {
    let key = |name: &str| format!("{at}.{name}");
    for (name, value) in [
        ("format", FolderFormat::Json.name()),
        ("commit_interval", "1s"),
        ("segment_bytes", "64 MiB"),
        ("segment_age", "1h"),
    ] {
        keys.set_default(&key(name), ConfigValue::Text(value.into()));
    }
    keys.set_default(&key("shards"), ConfigValue::Number(1));
    let path = key("path");
    let folder = keys.read_parsed(&path, |text| match text {
        "" => Err("a path: write path = \"/var/lib/swelter/archive\"".to_owned()),
        _ => Ok(PathBuf::from(text)),
    });
    if let Some(used) = folder.as_ref().and_then(|folder| find_overlap(folder, before)) {
        let problem =
            format!("is the folder of sink {used} as well, or one is in the other: name another one");
        keys.add_error(&path, problem);
    }
    let formats = [FolderFormat::Json, FolderFormat::Csv];
    let format = keys.read_one_of(&key("format"), &formats.map(FolderFormat::name));
    let format = formats.into_iter().find(|candidate| format.as_deref() == Some(candidate.name()));
    let shards = keys.read_integer(&key("shards"), 1..=64);
    let commit_interval = keys.read_wall_duration(&key("commit_interval"), "1ms", "1m");
    let segments = SegmentLimits {
        bytes: keys.read_bytes(&key("segment_bytes"), "64 KiB", "1 TiB"),
        age: keys.read_wall_duration(&key("segment_age"), "1s", "366d"),
    };
    Some(FolderSinkPlan { path: folder?, format: format?, shards, commit_interval, segments })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn folder_has_one_path_under_all_its_names() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| resolve_path(&root.path().join(name));
        fs::create_dir(root.path().join("archive")).unwrap();
        symlink("archive", root.path().join("link")).unwrap();
        let archive = at("archive");
        for name in ["link", "./archive/", "link/../archive", "none/../archive", "archive/none/.."] {
            assert_eq!(at(name), archive, "{name}");
        }
        assert_eq!(at("link/inside"), archive.join("inside"));
        assert_eq!(at("none"), at("none/new/.."));
        assert_ne!(at("none"), archive);
    }

    #[test]
    fn overlapping_folders_are_found() {
        let limits = SegmentLimits { bytes: 1, age: std::time::Duration::ZERO };
        let plan = |path: &str| FolderSinkPlan {
            path: path.into(),
            format: FolderFormat::Json,
            shards: 1,
            commit_interval: std::time::Duration::ZERO,
            segments: limits,
        };
        let first = SinkPlan { name: "first".into(), kind: SinkKind::Folder(plan("/none/archive")) };
        let find = |path: &str| find_overlap(Path::new(path), std::slice::from_ref(&first));
        for path in ["/none/archive/", "/none/archive/writing", "/none", "/none/x/../archive"] {
            assert_eq!(find(path), Some("first"), "{path}");
        }
        assert_eq!(find("/none/archive-2"), None);
    }
}
