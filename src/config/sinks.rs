//! The keys of the list of durable sinks.

use std::path::PathBuf;

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
    let is_used =
        |sink: &SinkPlan| matches!(&sink.kind, SinkKind::Folder(used) if Some(&used.path) == folder.as_ref());
    if let Some(used) = before.iter().find(|sink| is_used(sink)) {
        keys.add_error(&path, format!("is the folder of sink {} as well: name another one", used.name));
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
