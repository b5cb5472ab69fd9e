//! What outlets are made with, and may not be continued without.

use std::collections::BTreeMap;

use super::Draft;
use crate::checkpoint;
use crate::codec::{DecodeSettings, Format, ReadOptions};
use crate::config::{FileInput, Plan, SourceKind, SourcePlan};
use crate::kafka::letter_topics;
use crate::kafka::topics::{self, TopicFacts};
use crate::model::rules::{RULES_KEY, RULES_VERSION};
use crate::pipeline::run_error::RunError;
use crate::sinks::kafka::Identity;
use crate::sinks::kafka::progress::{Kept, start_key};
use crate::sources::kafka::{KafkaPlan, RecordFormat};

/// What the results, or the dead letters, of an outlet are made with.
pub(super) fn identity(plan: &Plan, draft: &Draft, facts: &BTreeMap<String, TopicFacts>) -> Identity {
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
pub fn log_identity(plan: &Plan) -> Identity {
    let DecodeSettings { local_time, units, moisture, humidity, wind_units } = plan.decode;
    let mut identity = Identity::new();
    let mut say = |what: &str, value: String| drop(identity.insert(what.to_owned(), value));
    say(RULES_KEY, RULES_VERSION.to_string());
    say("results.lateness", plan.retention.lateness.to_string());
    say("results.max_ahead", plan.max_ahead.to_string());
    say("results.max_cities", plan.max_cities.to_string());
    say("decode.assume_offset", format!("\"{local_time}\""));
    say("decode.units", units.name().to_owned());
    say("decode.moisture", moisture.name().to_owned());
    say("decode.humidity", humidity.name().to_owned());
    say("decode.wind_units", wind_units.name().to_owned());
    for source in &plan.sources {
        if let SourceKind::Kafka(KafkaPlan { topic, format, .. }) = &source.kind {
            let format = match format {
                RecordFormat::Json => "json",
                RecordFormat::AvroRegistry(_) => "avro",
                RecordFormat::AvroFile(_) => "avro with a schema file",
            };
            let options = source.read.identity(&plan.decode);
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
    Some((format!("{}{}", checkpoint::SOURCE, source.name), records_of(file, &source.read)))
}

fn records_of(file: &FileInput, read: &ReadOptions) -> String {
    let format = match file.format {
        Format::Csv => "csv",
        Format::Json => "json",
        Format::Parquet => "parquet",
    };
    let followed = if file.follow { ", followed" } else { "" };
    let options = read.identity(&DecodeSettings::default());
    let comma = if options.is_empty() { "" } else { ", " };
    format!("file as {format}{followed}{comma}{options}")
}

/// Under which the identities of all outlets say which progress topic knows of a source's dead letters, start and schemas.
pub(super) fn letters_key(source: &str) -> String {
    format!("source {source}: dead letters by progress topic")
}

/// Where a source is new to its outlet, its dead letters must be new as well: else they would be written twice, and it would forget
/// where it was first read from and what its registry has answered.
pub(super) fn check_letters_place(
    name: &str,
    source: &KafkaPlan,
    draft: &Draft,
    kept: &Kept,
) -> Result<(), RunError> {
    let (own, used) = (&source.progress_topic, &draft.plan.progress_topic);
    if kept.get::<BTreeMap<u32, u64>>(&start_key(name))?.is_some() {
        return Ok(());
    }
    let [first, second] = letter_topics(&source.topic);
    if own == used && !draft.has_results {
        let cluster = &source.cluster;
        return match topics::first_with_committed(cluster, &[&first, &second])?.is_some() {
            false => Ok(()),
            true => Err(unknown_letters(name, source, used)),
        };
    }
    let own_holds =
        topics::exists(&source.cluster, own)?.then(|| Kept::now(&source.cluster, own)).transpose()?;
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
pub(super) fn unknown_letters(name: &str, source: &KafkaPlan, used: &str) -> RunError {
    let [first, second] = letter_topics(&source.topic);
    RunError::Failed(format!(
        "source {name}: {first} or {second} holds dead letters, of which progress topic {used} knows nothing: where a sink was removed, set \
         it back; where {used} was lost, restore it; to begin anew, delete both topics, or they would be written twice \
         (docs/disaster-recovery.md)"
    ))
}
