//! The checks of a source's topics, and their creation.

use super::plan::KafkaSourcePlan;
use crate::kafka::dead_letter_topics;
use crate::kafka::native::TopicState;
use crate::kafka::topic_admin::{
    TopicAdminError, TopicMetadata, TopicSpec, create_topics, describe_topics, survey_topics,
};
use crate::sources::SourceError;

/// The settings of a created topic: records must never be removed, because every start reads from
/// the first start's positions.
const RETAIN_ALL: [(&str, &str); 3] =
    [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
const LOG_APPEND_TIME: (&str, &str) = ("message.timestamp.type", "LogAppendTime");

/// Checks the topic and those of its dead letters, and creates missing ones if allowed. Returns the
/// number of partitions of the topic, and its id if the cluster has ids. A topic that earlier
/// starts have read cannot be missing here: that was checked before.
pub(super) fn ensure_topics(plan: &KafkaSourcePlan) -> Result<(u32, Option<String>), SourceError> {
    let dead_letter_topics = dead_letter_topics(&plan.topic);
    let names = [&*plan.topic, &*dead_letter_topics[0], &*dead_letter_topics[1]];
    let mut described_topics = describe_topics(&plan.cluster, &names).map_err(to_source_error)?;
    let missing: Vec<&str> =
        names.into_iter().filter(|name| !matches!(described_topics.get(*name), Some(Some(_)))).collect();
    if !missing.is_empty() {
        let Some(partitions) = plan.create_topics else {
            return Err(SourceError::Fatal(format!(
                "{} does not have {}: create them (kafka-topics.sh --create), or set `create_topics`",
                plan.cluster.brokers,
                missing.join(", ")
            )));
        };
        let input = described_topics.get(&plan.topic).and_then(Option::as_ref);
        let partitions = input.map_or(partitions, |facts| facts.partitions);
        let new = missing.iter().map(|name| new_topic_plan(name, *name == plan.topic, partitions));
        create_topics(&plan.cluster, &new.collect::<Vec<_>>()).map_err(to_source_error)?;
        tracing::info!(brokers = plan.cluster.brokers, topics = missing.join(", "), "topics were created");
        described_topics = describe_topics(&plan.cluster, &names).map_err(to_source_error)?;
    }
    for (name, facts) in &described_topics {
        if facts.as_ref().is_some_and(|facts| facts.compacted) {
            return Err(SourceError::Fatal(compacted_text(name, *name == plan.topic)));
        }
    }
    for (name, facts) in &described_topics {
        let warning = facts.as_ref().and_then(|facts| retention_warning(name, facts, *name == plan.topic));
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
    }
    let facts = described_topics.remove(&plan.topic).flatten();
    let facts = facts.ok_or_else(|| SourceError::Transient(format!("topic {} was deleted", plan.topic)))?;
    warn_of_producer_clocks(&plan.topic, &facts);
    let survey = survey_topics(&plan.cluster, &[&plan.topic]).map_err(to_source_error)?;
    match survey.states.into_values().next() {
        Some(TopicState::Present { id, .. }) => Ok((facts.partitions, id)),
        _ => Err(SourceError::Transient(format!("topic {} was deleted", plan.topic))),
    }
}

fn new_topic_plan(name: &str, is_input: bool, partitions: u32) -> TopicSpec {
    let mut config = RETAIN_ALL.to_vec();
    // A dead letter is longer than its record by its headers.
    config.push(if is_input { LOG_APPEND_TIME } else { ("max.message.bytes", "16777216") });
    TopicSpec { name: name.to_string(), partitions, config }
}

fn compacted_text(name: &str, is_input: bool) -> String {
    let why = match is_input {
        true => "compaction removes earlier readings, so a replay would have other results",
        false => "compaction would remove dead letters",
    };
    format!("topic {name} is compacted: {why}; set cleanup.policy=delete, or use another topic")
}

/// A warning of what retention does to the topic, and what to do.
fn retention_warning(topic: &str, facts: &TopicMetadata, is_input: bool) -> Option<String> {
    let retention = facts.retention_text()?;
    let meaning = match is_input {
        true => {
            "a start continues from the newest checkpoint, and is refused if the topic no longer has the records after it; another formula or a rebuild of lost state needs all of the log. Set retention.ms=-1 and retention.bytes=-1, or keep records for much longer than the service may be down"
        }
        false => {
            "dead letters are deleted even if nobody has seen them, and can no longer be retried. Set retention.ms=-1 and retention.bytes=-1, or export them in time (swelter dead-letters export)"
        }
    };
    Some(format!("topic {topic} deletes its old records ({retention}): {meaning}"))
}

fn warn_of_producer_clocks(topic: &str, facts: &TopicMetadata) {
    if facts.append_time {
        return;
    }
    let guarded = facts.max_ahead_ms.map_or("not limited".into(), |ms| format!("limited to {ms} ms ahead"));
    tracing::warn!(
        topic,
        guarded,
        "arrival times are set by producers, so a producer with a wrong clock can date readings in the future: set message.timestamp.type=LogAppendTime, or limit message.timestamp.after.max.ms"
    );
}

fn to_source_error(error: TopicAdminError) -> SourceError {
    match error {
        TopicAdminError::Unreachable { .. } => SourceError::Transient(error.to_string()),
        TopicAdminError::NotAuthorised { .. } | TopicAdminError::Other { .. } => {
            SourceError::Fatal(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_retention_warns_with_consequence() {
        let kept = TopicMetadata {
            partitions: 1,
            compacted: false,
            retention_ms: None,
            retention_bytes: None,
            append_time: true,
            max_ahead_ms: None,
        };
        assert_eq!(retention_warning("t", &kept, true), None);
        let by_time = TopicMetadata { retention_ms: Some(604_800_000), ..kept.clone() };
        let by_size = TopicMetadata { retention_bytes: Some(1_000), ..kept.clone() };
        let both = TopicMetadata { retention_bytes: Some(0), ..by_time.clone() };
        for (facts, said) in [
            (&by_time, "(retention.ms=604800000, 7 d)"),
            (&by_size, "(retention.bytes=1000 of a partition)"),
            (&both, "(retention.ms=604800000, 7 d and retention.bytes=0 of a partition)"),
        ] {
            let input = retention_warning("readings", facts, true).unwrap();
            assert!(input.contains(said) && input.contains("newest checkpoint"), "{input}");
            let letters = retention_warning("readings.failed.1", facts, false).unwrap();
            assert!(letters.contains(said) && letters.contains("dead letters are deleted"), "{letters}");
        }
    }
}
