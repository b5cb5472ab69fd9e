//! The topics of Kafka sinks and their settings, and their creation.

use std::collections::BTreeMap;

use super::specs::{KafkaSpec, kafka_sources};
use crate::config::ServicePlan;
use crate::kafka::topic_admin::{self, TopicMetadata, TopicSpec};
use crate::kafka::{KafkaCluster, dead_letter_topics};
use crate::run::run_error::RunError;
use crate::sinks::kafka::KafkaOutputPlan;

/// Only the newest value of a key is needed.
const COMPACTED_TOPIC: [(&str, &str); 1] = [("cleanup.policy", "compact")];
/// Compacted often, because a start reads the whole topic.
const PROGRESS_TOPIC: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("segment.bytes", "16777216"),
    ("segment.ms", "600000"),
    ("min.cleanable.dirty.ratio", "0.1"),
];
/// Never deleted by the cluster. A dead letter is longer than its record because of its headers.
const DEAD_LETTER_TOPIC: [(&str, &str); 3] =
    [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("max.message.bytes", "16777216")];

fn new_topic(name: &str, partitions: u32, config: &[(&'static str, &'static str)]) -> TopicSpec {
    TopicSpec { name: name.to_owned(), partitions, config: config.to_vec() }
}

/// Facts about the topics of a sink, all of which exist: missing ones are created if allowed.
pub(super) fn ensure_topics(
    plan: &ServicePlan,
    spec: &KafkaSpec,
) -> Result<BTreeMap<String, TopicMetadata>, RunError> {
    let KafkaOutputPlan { cluster, progress_topic, .. } = &spec.plan;
    let mut wanted: Vec<TopicSpec> = Vec::new();
    let results = spec.results.as_ref();
    if let Some(sink) = results {
        let partitions = sink.create_topics;
        for topic in [Some(&sink.topic), sink.current_topic.as_ref()].into_iter().flatten() {
            wanted.push(new_topic(topic, partitions.unwrap_or(1), &COMPACTED_TOPIC));
        }
    }
    wanted.push(new_topic(progress_topic, 1, &PROGRESS_TOPIC));
    let mut may_create = results.is_some_and(|sink| sink.create_topics.is_some());
    for (_, source) in
        kafka_sources(plan).filter(|(_, source)| spec.topics.contains(&dead_letter_topics(&source.topic)[0]))
    {
        may_create |= source.create_topics.is_some();
        for topic in dead_letter_topics(&source.topic) {
            wanted.push(new_topic(&topic, source.create_topics.unwrap_or(1), &DEAD_LETTER_TOPIC));
        }
    }
    let facts = describe_or_create(cluster, &wanted, may_create)?;
    if facts.get(progress_topic).is_some_and(|facts| facts.partitions != 1) {
        return Err(RunError::Failed(format!(
            "progress topic {progress_topic} has more than one partition: create it with one partition and cleanup.policy=compact"
        )));
    }
    for topic in [
        Some(progress_topic),
        results.map(|sink| &sink.topic),
        results.and_then(|sink| sink.current_topic.as_ref()),
    ] {
        if let Some(topic) = topic.filter(|topic| facts.get(*topic).is_some_and(|facts| !facts.compacted)) {
            tracing::warn!(
                topic,
                "a topic of results or progress is not compacted, so it keeps every change or loses results with its retention: set cleanup.policy=compact"
            );
        }
        let expires = |topic: &&String| facts.get(*topic).filter(|facts| facts.compacted)?.retention_text();
        if let Some((topic, retention)) = topic.and_then(|topic| Some((topic, expires(&topic)?))) {
            tracing::warn!(
                topic,
                retention,
                "a topic of results or progress deletes its old records although it is compacted, and results and progress with them: set cleanup.policy=compact without delete"
            );
        }
    }
    Ok(facts)
}

fn describe_or_create(
    cluster: &KafkaCluster,
    wanted: &[TopicSpec],
    may_create: bool,
) -> Result<BTreeMap<String, TopicMetadata>, RunError> {
    let names: Vec<&str> = wanted.iter().map(|topic| topic.name.as_str()).collect();
    let mut described = topic_admin::describe_topics(cluster, &names)?;
    let is_missing = |topic: &&TopicSpec| described.get(&topic.name).is_none_or(Option::is_none);
    let missing: Vec<TopicSpec> = wanted.iter().filter(is_missing).cloned().collect();
    if !missing.is_empty() {
        let list: Vec<&str> = missing.iter().map(|topic| topic.name.as_str()).collect();
        if !may_create {
            return Err(RunError::Failed(format!(
                "topics are missing at {}: {}: create them, or set create_topics = true",
                cluster.brokers,
                list.join(", ")
            )));
        }
        tracing::info!(topics = list.join(", "), "topics are created");
        topic_admin::create_topics(cluster, &missing)?;
        described = topic_admin::describe_topics(cluster, &names)?;
    }
    Ok(described.into_iter().filter_map(|(name, facts)| Some((name, facts?))).collect())
}
