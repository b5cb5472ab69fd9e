//! What outlets are made with, and may not be continued without.

use std::collections::BTreeMap;

use super::SinkSpec;
use crate::checkpoint;
use crate::codec::{DecodeSettings, Format, ReadOptions};
use crate::config::{FileSourcePlan, ServicePlan, SourceKind, SourcePlan};
use crate::kafka::dead_letter_topics;
use crate::kafka::topic_admin::{self, TopicMetadata};
use crate::model::rules_version::{RULES_VERSION, RULES_VERSION_KEY};
use crate::run::run_error::RunError;
use crate::sinks::kafka::Identity;
use crate::sinks::kafka::progress::{ProgressSnapshot, start_key};
use crate::sources::kafka::{KafkaSourcePlan, RecordFormat};

/// What the results, or the dead letters, of an outlet are made with.
pub(super) fn sink_identity(
    plan: &ServicePlan,
    draft: &SinkSpec,
    facts: &BTreeMap<String, TopicMetadata>,
) -> Identity {
    let mut identity = log_identity(plan);
    let mut say = |what: &str, value: String| drop(identity.insert(what.to_owned(), value));
    say("shards", draft.plan.shards.to_string());
    if let Some(sink) = plan.sink.as_ref().filter(|_| draft.has_results) {
        say("results.formula", plan.formula.name().to_owned());
        say("results.window", plan.retention.window.to_string());
        say("results.history", plan.retention.history.to_string());
        for topic in [Some(&sink.topic), sink.current_topic.as_ref()].into_iter().flatten() {
            let partitions = facts.get(topic).map_or(0, |facts| facts.partitions);
            say(&format!("partitions of topic {topic}"), partitions.to_string());
        }
    }
    identity
}

/// What decides how the logs are read.
pub fn log_identity(plan: &ServicePlan) -> Identity {
    let DecodeSettings { local_time, temperature_unit: units, moisture, humidity, wind_unit: wind_units } =
        plan.decode;
    let mut identity = Identity::new();
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

/// What decides which records a file has, beside what is in it: that is compared with the positions.
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

/// Under which the identities of all outlets say which progress topic knows of a source's dead letters, start and schemas.
pub(super) fn dead_letters_key(source: &str) -> String {
    format!("source {source}: dead letters by progress topic")
}

/// Where a source is new to its outlet, its dead letters must be new as well: else they would be written twice, and it would forget
/// where it was first read from and what its registry has answered.
pub(super) fn check_dead_letters_topic(
    name: &str,
    source: &KafkaSourcePlan,
    draft: &SinkSpec,
    kept: &ProgressSnapshot,
) -> Result<(), RunError> {
    let (own, used) = (&source.progress_topic, &draft.plan.progress_topic);
    if kept.get::<BTreeMap<u32, u64>>(&start_key(name))?.is_some() {
        return Ok(());
    }
    let [first, second] = dead_letter_topics(&source.topic);
    if own == used && !draft.has_results {
        let cluster = &source.cluster;
        return match topic_admin::first_topic_with_records(cluster, &[&first, &second])?.is_some() {
            false => Ok(()),
            true => Err(unknown_dead_letters(name, source, used)),
        };
    }
    let own_holds = topic_admin::topic_exists(&source.cluster, own)?
        .then(|| ProgressSnapshot::read_now(&source.cluster, own))
        .transpose()?;
    let start = own_holds.map(|holds| holds.get::<BTreeMap<u32, u64>>(&start_key(name))).transpose()?;
    match start.flatten() {
        None => Ok(()),
        Some(_) => Err(RunError::Failed(format!(
            "source {name}: its dead letters, where it was first read from, and the answers of its registry are kept in progress topic \
             {own}, not in {used}, as before there was this sink, or with other properties: set it back; to begin anew, delete {own}, \
             {first} and {second}"
        ))),
    }
}

/// Why dead letters that nothing is known of are not added to.
pub(super) fn unknown_dead_letters(name: &str, source: &KafkaSourcePlan, used: &str) -> RunError {
    let [first, second] = dead_letter_topics(&source.topic);
    RunError::Failed(format!(
        "source {name}: {first} or {second} holds dead letters, of which progress topic {used} knows nothing: where a sink was removed, set \
         it back; where {used} was lost, restore it; to begin anew, delete both topics, or they would be written twice \
         (docs/disaster-recovery.md)"
    ))
}
