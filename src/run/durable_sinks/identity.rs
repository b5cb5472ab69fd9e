//! Identities of sinks: the settings that decide results, which must not change during the life of
//! a sink.

use std::collections::BTreeMap;

use super::specs::{KafkaSpec, kafka_sources};
use crate::checkpoint;
use crate::codec::{DecodeSettings, Format, ReadOptions};
use crate::config::{FileSourcePlan, ServicePlan, SourceKind, SourcePlan};
use crate::kafka::dead_letter_topics;
use crate::kafka::topic_admin::{self, TopicMetadata};
use crate::model::rules_version::{RULES_VERSION, RULES_VERSION_KEY};
use crate::run::run_error::RunError;
use crate::sinks::error::SinkError;
use crate::sinks::folder::FolderSinkPlan;
use crate::sinks::kafka::read_progress_topic;
use crate::sinks::postgres::PostgresSinkPlan;
use crate::sinks::progress::{ProgressSnapshot, SinkIdentity, start_key};
use crate::sources::kafka::{KafkaSourcePlan, RecordFormat};

/// The identity of the results, or the dead letters, in a cluster.
pub(super) fn kafka_identity(
    plan: &ServicePlan,
    spec: &KafkaSpec,
    topics: &BTreeMap<String, TopicMetadata>,
) -> SinkIdentity {
    let mut identity = log_identity(plan);
    identity.insert("shards".to_owned(), spec.plan.shards.to_string());
    if let Some(sink) = &spec.results {
        identity.extend(results_identity(plan));
        let mut say = |what: &str, value: String| drop(identity.insert(what.to_owned(), value));
        for topic in [Some(&sink.topic), sink.current_topic.as_ref()].into_iter().flatten() {
            let partitions = topics.get(topic).map_or(0, |metadata| metadata.partitions);
            say(&format!("partitions of topic {topic}"), partitions.to_string());
        }
    }
    identity
}

/// The identity of the results in a folder.
pub(super) fn folder_identity(
    plan: &ServicePlan,
    folder: &FolderSinkPlan,
    authority: &str,
    log_ids: &BTreeMap<String, String>,
) -> SinkIdentity {
    let mut identity = uncounted_identity(plan, authority, log_ids);
    let mut say = |what: &str, value: String| drop(identity.insert(what.to_owned(), value));
    say("shards", folder.shards.to_string());
    say("format", folder.format.name().to_owned());
    identity
}

/// The identity of the results in PostgreSQL. Which database a shard lives in follows from their
/// number.
pub(super) fn postgres_identity(
    plan: &ServicePlan,
    postgres: &PostgresSinkPlan,
    authority: &str,
    log_ids: &BTreeMap<String, String>,
) -> SinkIdentity {
    let mut identity = uncounted_identity(plan, authority, log_ids);
    let mut say = |what: &str, value: String| drop(identity.insert(what.to_owned(), value));
    say("shards", postgres.shards.to_string());
    say("databases", postgres.databases.len().to_string());
    say("tables", postgres.tables.to_string());
    identity
}

/// The identity of results in a sink that counts no generations. The authority identifies topics by
/// their ids; the sink identifies all other logs.
fn uncounted_identity(
    plan: &ServicePlan,
    authority: &str,
    log_ids: &BTreeMap<String, String>,
) -> SinkIdentity {
    let mut identity = log_identity(plan);
    identity.extend(results_identity(plan));
    let mut say = |what: &str, value: String| drop(identity.insert(what.to_owned(), value));
    say("generations", format!("counted by {authority}"));
    for (source, id) in log_ids {
        if !kafka_sources(plan).any(|(name, _)| name == source) {
            say(&format!("source {source}: log"), id.clone());
        }
    }
    identity
}

/// The settings that decide the results of a log.
fn results_identity(plan: &ServicePlan) -> SinkIdentity {
    let window = plan.retention.window.to_string();
    let history = plan.retention.history.to_string();
    [
        ("results.formula", plan.formula.name().to_owned()),
        ("results.window", window),
        ("results.history", history),
    ]
    .map(|(what, value)| (what.to_owned(), value))
    .into()
}

/// The settings that decide how the logs are read.
pub fn log_identity(plan: &ServicePlan) -> SinkIdentity {
    let DecodeSettings { local_time, temperature_unit: units, moisture, humidity, wind_unit: wind_units } =
        plan.decode;
    let mut identity = SinkIdentity::new();
    let mut say = |what: &str, value: String| drop(identity.insert(what.to_owned(), value));
    say(RULES_VERSION_KEY, RULES_VERSION.to_string());
    say("results.lateness", plan.retention.lateness.to_string());
    say("results.max_ahead", plan.max_ahead.to_string());
    say("results.max_cities", plan.max_cities.to_string());
    say("decode.assume_offset", format!("\"{local_time}\""));
    say("decode.units", units.name().to_owned());
    say("decode.moisture", moisture.name().to_owned());
    say("decode.humidity", humidity.name().to_owned());
    say("decode.wind_units", wind_units.name().to_owned());
    for source in &plan.sources {
        if let SourceKind::Kafka(KafkaSourcePlan { topic, format, .. }) = &source.kind {
            let format = match format {
                RecordFormat::Json => "json",
                RecordFormat::AvroRegistry(_) => "avro",
                RecordFormat::AvroFile(_) => "avro with a schema file",
            };
            let options = source.read_options.identity_text(&plan.decode);
            let comma = if options.is_empty() { "" } else { ", " };
            say(&format!("source {}", source.name), format!("topic {topic} as {format}{comma}{options}"));
        }
    }
    identity.extend(plan.sources.iter().filter_map(file_identity));
    identity
}

/// The settings that decide which records a file yields. Positions identify the content of the
/// file.
pub fn file_identity(source: &SourcePlan) -> Option<(String, String)> {
    let SourceKind::File(file) = &source.kind else { return None };
    Some((
        format!("{}{}", checkpoint::SOURCE_KEY_PREFIX, source.name),
        file_records_identity(file, &source.read_options),
    ))
}

fn file_records_identity(file: &FileSourcePlan, read: &ReadOptions) -> String {
    let format = match file.format {
        Format::Csv => "csv",
        Format::Json => "json",
        Format::Parquet => "parquet",
    };
    let followed = if file.follow { ", followed" } else { "" };
    let options = read.identity_text(&DecodeSettings::default());
    let comma = if options.is_empty() { "" } else { ", " };
    format!("file as {format}{followed}{comma}{options}")
}

/// The key under which all Kafka sinks name the progress topic that holds a source's dead letters,
/// first read positions and schemas.
pub(super) fn dead_letters_key(source: &str) -> String {
    format!("source {source}: dead letters by progress topic")
}

/// If a source is new to its sink, its dead letters must be new as well. Otherwise they would be
/// written twice, and the first read positions of the source and the responses of its registry
/// would be lost.
pub(super) fn check_dead_letters_topic(
    name: &str,
    source: &KafkaSourcePlan,
    spec: &KafkaSpec,
    progress: &ProgressSnapshot,
) -> Result<(), RunError> {
    let (recorded_in, current) = (&source.progress_topic, &spec.plan.progress_topic);
    if progress.get::<BTreeMap<u32, u64>>(&start_key(name))?.is_some() {
        return Ok(());
    }
    let [first, second] = dead_letter_topics(&source.topic);
    if recorded_in == current && spec.results.is_none() {
        let cluster = &source.cluster;
        return match topic_admin::first_topic_with_records(cluster, &[&first, &second])?.is_some() {
            false => Ok(()),
            true => Err(unknown_dead_letters(name, source, current)),
        };
    }
    let own_holds = topic_admin::topic_exists(&source.cluster, recorded_in)?
        .then(|| read_progress_topic(&source.cluster, recorded_in))
        .transpose()
        .map_err(SinkError::from)?;
    let start = own_holds.map(|holds| holds.get::<BTreeMap<u32, u64>>(&start_key(name))).transpose()?;
    match start.flatten() {
        None => Ok(()),
        Some(_) => Err(RunError::Failed(format!(
            "source {name}: its dead letters, its first positions and the responses of its registry are recorded in progress topic {recorded_in}, not in {current}: the sink was added later, or properties have changed; set the configuration back, or, to begin anew, delete {recorded_in}, {first} and {second}"
        ))),
    }
}

/// Why a run does not append to dead letters that its progress topic does not know.
pub(super) fn unknown_dead_letters(name: &str, source: &KafkaSourcePlan, used: &str) -> RunError {
    let [first, second] = dead_letter_topics(&source.topic);
    RunError::Failed(format!(
        "source {name}: {first} or {second} holds dead letters that progress topic {used} does not know, so they would be written twice: if a sink was removed, set it back; if {used} was lost, restore it; to begin anew, delete both topics of dead letters (docs/disaster-recovery.md)"
    ))
}
