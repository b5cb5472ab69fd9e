//! The lists of sources and sinks.

use std::path::{Path, PathBuf};

use super::kafka::{self, Topics};
use super::keys::{Keys, quoted};
use super::layers::{Item, Value};
use super::plan::{FileInput, GeneratorSource, Plan, SourceKind, SourcePlan};
use super::read_options;
use crate::codec::{self, Compression, DecodeSettings, Format, ReadOptions};
use crate::directory::Directory;
use crate::model::{Duration, LocalTime};
use crate::sinks::kafka::KafkaSinkPlan;
use crate::sources::weather::WeatherKind;

/// Positions and dead letters of posted readings have this name.
const JOURNAL: &str = "journal";

const MAX_SOURCES: usize = 1_000;

/// The sources, in the order in which they were written.
#[derive(Default)]
pub struct Sources {
    pub plans: Vec<SourcePlan>,
    /// What they use, which nothing else may.
    topics: Topics,
}

pub fn sources(keys: &mut Keys, common: DecodeSettings, lateness: Duration) -> Sources {
    let items = keys.items("sources");
    let mut sources = Sources::default();
    if items.len() > MAX_SOURCES {
        keys.refuse("sources", format!("has {} sources: {MAX_SOURCES} are the most", items.len()));
        return sources;
    }
    for Item { name, key: at, .. } in items {
        let types = ["kafka", "generator", "file"];
        let kind = match keys.one_of(&format!("{at}.type"), &types).as_deref() {
            Some("kafka") => {
                let topic = kafka::source(keys, &at, lateness, &mut sources.topics).map(SourceKind::Kafka);
                topic.zip(read_options::of_source(keys, &at, common, Format::Json))
            }
            Some("generator") => Some((SourceKind::Generator(generator(keys, &at)), ReadOptions::default())),
            Some(_) => file(keys, &at, common),
            None => None,
        };
        if is_named(keys, &at, &name) {
            sources.plans.extend(kind.map(|(kind, read)| SourcePlan { name, kind, read }));
        }
    }
    sources
}

fn is_named(keys: &mut Keys, at: &str, name: &str) -> bool {
    let key = format!("{at}.name");
    let is_written = keys.is_given(&key);
    keys.default(&key, Value::Text(name.into()));
    let written = keys.text(&key);
    if is_written && (written != name || !kafka::is_name(name)) {
        let problem = "is not a name for a source: 1 to 249 of a-z, A-Z, 0-9, . _ and -, in the file";
        keys.refuse(&key, problem);
    } else if name == JOURNAL {
        let problem =
            "has the name of the journal of posted readings: give it another, as in name = \"readings\"";
        keys.refuse(at, problem);
    }
    keys.is_right(&key) && keys.is_right(at)
}

pub fn sink(keys: &mut Keys, sources: &mut Sources) -> Option<KafkaSinkPlan> {
    let items = keys.items("sinks");
    if let Some(Item { key, .. }) = items.get(1) {
        keys.refuse(key, "is a second sink: one is the most");
    }
    let at = &items.first()?.key;
    keys.one_of(&format!("{at}.type"), &["kafka"])?;
    kafka::sink(keys, at, &mut sources.topics)
}

fn generator(keys: &mut Keys, at: &str) -> GeneratorSource {
    let key = |name: &str| format!("{at}.{name}");
    for name in ["late", "corrections", "withdrawals", "duplicates", "invalid"] {
        keys.default(&key(name), Value::Decimal(0.0));
    }
    for (name, value) in
        [("interval", "1m"), ("history", "1d"), ("history_interval", ""), ("weather", "plausible")]
    {
        keys.default(&key(name), Value::Text(value.into()));
    }
    keys.default(&key("seed"), Value::Number(1));
    let names = WeatherKind::ALL.map(WeatherKind::name);
    let weather = keys.one_of(&key("weather"), &names).and_then(|name| name.parse().ok());
    let interval = keys.duration(&key("interval"), "1ms", "1d");
    let past = key("history_interval");
    let history_interval =
        if keys.optional(&past).is_some() { keys.duration(&past, "1ms", "1d") } else { interval };
    keys.show(&past, quoted(&history_interval.to_string()));
    let source = GeneratorSource {
        cities: keys.whole(&key("cities"), 1..=100_000),
        interval,
        history: keys.duration(&key("history"), "0s", "366d"),
        history_interval,
        late: keys.share(&key("late")),
        corrections: keys.share(&key("corrections")),
        withdrawals: keys.share(&key("withdrawals")),
        duplicates: keys.share(&key("duplicates")),
        invalid: keys.share(&key("invalid")),
        weather: weather.unwrap_or(WeatherKind::Plausible),
        seed: keys.whole(&key("seed"), 0..=i64::MAX),
    };
    let most = Directory::shipped().cities().len();
    if source.weather == WeatherKind::Plausible && source.cities as usize > most {
        keys.refuse(
            &key("cities"),
            format!("plausible weather has {most} cities: ask for fewer, or for uniform weather"),
        );
    }
    source
}

fn file(keys: &mut Keys, at: &str, common: DecodeSettings) -> Option<(SourceKind, ReadOptions)> {
    let key = |name: &str| format!("{at}.{name}");
    keys.default(&key("format"), Value::Text("auto".into()));
    keys.default(&key("compression"), Value::Text("auto".into()));
    keys.default(&key("follow"), Value::Bool(false));
    let path = PathBuf::from(keys.text(&key("path")));
    let format = keys.one_of(&key("format"), &["auto", "csv", "json"]);
    let compression = keys.one_of(&key("compression"), &["auto", "none", "gzip", "zstd"]);
    let follow = keys.flag(&key("follow"));
    let format = if keys.is_right(&key("path")) { format_of_file(keys, at, &path, &format?) } else { None };
    // Read in any case, so that no key of them is taken for an unknown one.
    let read = read_options::of_file(keys, at, common, format.unwrap_or(Format::Csv));
    let (format, read) = (format?, read?.for_file(Some(&path)));
    let compression = match compression?.as_str() {
        "none" => Compression::None,
        "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        _ => codec::detect_compression(&path),
    };
    if follow && compression != Compression::None {
        keys.refuse(&key("follow"), "cannot be with a compressed file: its end is not known while it grows");
    }
    if follow && read.layout.wide.is_some() {
        keys.refuse(&key("follow"), "cannot be with wide: both files would have to grow alike");
        return None;
    }
    Some((SourceKind::File(FileInput { path, format, compression, follow }), read))
}

fn format_of_file(keys: &mut Keys, at: &str, path: &Path, format: &str) -> Option<Format> {
    let problem = match (format, codec::detect(path)) {
        ("csv", _) => return Some(Format::Csv),
        ("json", _) => return Some(Format::Json),
        (_, Ok((Format::Parquet, _))) => {
            "is Parquet, which only `swelter batch` reads: convert it to CSV or JSON lines".to_owned()
        }
        (_, Ok((format, _))) => return Some(format),
        (_, Err(error)) => error.to_string(),
    };
    keys.refuse(&format!("{at}.path"), problem);
    None
}

/// What is made up is in °F and %, with the names of readings: a log whose posts are read otherwise cannot take it.
pub fn check_made_up(keys: &mut Keys, plan: &Plan) {
    let posts = plan.posts();
    let settings = DecodeSettings { local_time: LocalTime::Refuse, ..posts.settings };
    let is_as_made_up = ReadOptions { settings, ..posts }.is_default();
    if plan.ingest.is_none() || is_as_made_up {
        return;
    }
    for source in plan.sources.iter().filter(|source| matches!(source.kind, SourceKind::Generator(_))) {
        let problem = "makes readings up in °F and %, with the names of readings, but the log that takes them is read otherwise: \
                       leave one of them out, or set ingest.enabled = false";
        keys.refuse(&format!("sources.{}", source.name), problem);
    }
}
