//! The keys of the list of sources.

use std::path::{Path, PathBuf};

use super::config_reader::{ConfigReader, quoted};
use super::kafka::{self, TopicUses};
use super::layers::{ConfigValue, TableItem};
use super::plan::{FileSourcePlan, ServicePlan, SourceKind, SourcePlan};
use super::read_options;
use crate::codec::{self, Compression, DecodeSettings, Format, ReadOptions};
use crate::directory::Directory;
use crate::model::{LocalTimePolicy, Millis};
use crate::sources::generator::paced::PacedPlan;
use crate::sources::weather::WeatherKind;

/// The source name in positions and dead letters of posted readings.
const JOURNAL_NAME: &str = "journal";

const MAX_SOURCES: usize = 1_000;

/// The sources, in the order of the configuration.
#[derive(Default)]
pub struct SourcePlans {
    pub plans: Vec<SourcePlan>,
    /// The topics that they use.
    pub topic_uses: TopicUses,
}

pub fn read_sources(keys: &mut ConfigReader, common: DecodeSettings, lateness: Millis) -> SourcePlans {
    let items = keys.list_items("sources");
    let mut sources = SourcePlans::default();
    if items.len() > MAX_SOURCES {
        keys.add_error("sources", format!("has {} sources: {MAX_SOURCES} are the most", items.len()));
        return sources;
    }
    for TableItem { name, key: at, .. } in items {
        let types = ["kafka", "generator", "file"];
        let kind = match keys.read_one_of(&format!("{at}.type"), &types).as_deref() {
            Some("kafka") => {
                let topic = kafka::read_kafka_source(keys, &at, lateness, &mut sources.topic_uses)
                    .map(SourceKind::Kafka);
                topic.zip(read_options::source_read_options(keys, &at, common, Format::Json))
            }
            Some("generator") => {
                Some((SourceKind::Generator(read_generator_source(keys, &at)), ReadOptions::default()))
            }
            Some(_) => read_file_source(keys, &at, common),
            None => None,
        };
        if check_name(keys, &at, &name) {
            sources.plans.extend(kind.map(|(kind, read)| SourcePlan { name, kind, read_options: read }));
        }
    }
    sources
}

fn check_name(keys: &mut ConfigReader, at: &str, name: &str) -> bool {
    let key = format!("{at}.name");
    let is_written = keys.is_given(&key);
    keys.set_default(&key, ConfigValue::Text(name.into()));
    let written = keys.read_text(&key);
    if is_written && (written != name || !kafka::is_topic_name(name)) {
        let problem = "is not a name for a source: 1 to 249 of a-z, A-Z, 0-9, . _ and -, in the file";
        keys.add_error(&key, problem);
    } else if name == JOURNAL_NAME {
        let problem =
            "has the name of the journal of posted readings: give it another, as in name = \"readings\"";
        keys.add_error(at, problem);
    }
    keys.is_valid(&key) && keys.is_valid(at)
}

fn read_generator_source(keys: &mut ConfigReader, at: &str) -> PacedPlan {
    let key = |name: &str| format!("{at}.{name}");
    for name in ["late", "corrections", "withdrawals", "duplicates", "invalid"] {
        keys.set_default(&key(name), ConfigValue::Decimal(0.0));
    }
    for (name, value) in
        [("interval", "1m"), ("history", "1d"), ("history_interval", ""), ("weather", "plausible")]
    {
        keys.set_default(&key(name), ConfigValue::Text(value.into()));
    }
    keys.set_default(&key("seed"), ConfigValue::Number(1));
    let names = WeatherKind::ALL.map(WeatherKind::name);
    let weather = keys.read_one_of(&key("weather"), &names).and_then(|name| name.parse().ok());
    let interval = keys.read_duration(&key("interval"), "1ms", "1d");
    let past = key("history_interval");
    let history_interval = if keys.read_optional_text(&past).is_some() {
        keys.read_duration(&past, "1ms", "1d")
    } else {
        interval
    };
    keys.set_shown(&past, quoted(&history_interval.to_string()));
    let source = PacedPlan {
        cities: keys.read_integer(&key("cities"), 1..=100_000),
        interval,
        history: keys.read_duration(&key("history"), "0s", "366d"),
        history_interval,
        late: keys.read_share(&key("late")),
        corrections: keys.read_share(&key("corrections")),
        withdrawals: keys.read_share(&key("withdrawals")),
        duplicates: keys.read_share(&key("duplicates")),
        invalid: keys.read_share(&key("invalid")),
        weather: weather.unwrap_or(WeatherKind::Plausible),
        seed: keys.read_integer(&key("seed"), 0..=i64::MAX),
    };
    let most = Directory::shipped().cities().len();
    if source.weather == WeatherKind::Plausible && source.cities as usize > most {
        keys.add_error(
            &key("cities"),
            format!("plausible weather has at most {most} cities: ask for fewer, or for uniform weather"),
        );
    }
    source
}

fn read_file_source(
    keys: &mut ConfigReader,
    at: &str,
    common: DecodeSettings,
) -> Option<(SourceKind, ReadOptions)> {
    let key = |name: &str| format!("{at}.{name}");
    keys.set_default(&key("format"), ConfigValue::Text("auto".into()));
    keys.set_default(&key("compression"), ConfigValue::Text("auto".into()));
    keys.set_default(&key("follow"), ConfigValue::Bool(false));
    let path = PathBuf::from(keys.read_text(&key("path")));
    let format = keys.read_one_of(&key("format"), &["auto", "csv", "json"]);
    let compression = keys.read_one_of(&key("compression"), &["auto", "none", "gzip", "zstd"]);
    let follow = keys.read_bool(&key("follow"));
    let format = if keys.is_valid(&key("path")) { read_file_format(keys, at, &path, &format?) } else { None };
    // Read them in any case, so that their keys are not reported as unknown.
    let read = read_options::file_read_options(keys, at, common, format.unwrap_or(Format::Csv));
    let (format, read) = (format?, read?.for_file(Some(&path)));
    let compression = match compression?.as_str() {
        "none" => Compression::None,
        "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        _ => codec::detect_compression(&path),
    };
    if follow && compression != Compression::None {
        keys.add_error(
            &key("follow"),
            "cannot be set for a compressed file, whose end is unknown while it grows: use an uncompressed file",
        );
    }
    if follow && read.layout.wide.is_some() {
        keys.add_error(
            &key("follow"),
            "cannot be set together with wide, because both files would have to grow alike",
        );
        return None;
    }
    Some((SourceKind::File(FileSourcePlan { path, format, compression, follow }), read))
}

fn read_file_format(keys: &mut ConfigReader, at: &str, path: &Path, format: &str) -> Option<Format> {
    let problem = match (format, codec::detect_format(path)) {
        ("csv", _) => return Some(Format::Csv),
        ("json", _) => return Some(Format::Json),
        (_, Ok((Format::Parquet, _))) => {
            "is Parquet, which only `swelter batch` reads: convert it to CSV or JSON lines".to_owned()
        }
        (_, Ok((format, _))) => return Some(format),
        (_, Err(error)) => error.to_string(),
    };
    keys.add_error(&format!("{at}.path"), problem);
    None
}

/// Generated readings are in °F and %, with the default field names: a log with other options for
/// posts cannot store them.
pub fn check_generated_readings(keys: &mut ConfigReader, plan: &ServicePlan) {
    let posts = plan.ingest_read_options();
    let settings = DecodeSettings { local_time: LocalTimePolicy::Refuse, ..posts.settings };
    let is_as_made_up = ReadOptions { settings, ..posts }.is_default();
    if plan.ingest.is_none() || is_as_made_up {
        return;
    }
    for source in plan.sources.iter().filter(|source| matches!(source.kind, SourceKind::Generator(_))) {
        let problem = "generates readings in °F and % with the field names of readings, but the log that gets them is read with other units or names: remove one of the two, or set ingest.enabled = false";
        keys.add_error(&format!("sources.{}", source.name), problem);
    }
}
