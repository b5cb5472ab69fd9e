//! The topics of a source, as they must be.

use super::KafkaPlan;
use crate::kafka::letter_topics;
use crate::kafka::native::TopicState;
use crate::kafka::topics::{NewTopicPlan, TopicFacts, TopicsError, create, describe, survey};
use crate::sources::SourceError;

/// A start reads the log from the first start's positions on, so what is made here keeps its records.
const KEPT: [(&str, &str); 3] =
    [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
const APPEND_TIME: (&str, &str) = ("message.timestamp.type", "LogAppendTime");

/// Looks at the topic and those of its dead letters, makes what is missing where it may, and says how many partitions the
/// topic has, and its id, where the cluster has ids. What earlier starts know of is not missing: that was looked at before.
pub(super) fn check(plan: &KafkaPlan) -> Result<(u32, Option<String>), SourceError> {
    let letters = letter_topics(&plan.topic);
    let names = [&*plan.topic, &*letters[0], &*letters[1]];
    let mut found = describe(&plan.cluster, &names).map_err(failed)?;
    let missing: Vec<&str> =
        names.into_iter().filter(|name| !matches!(found.get(*name), Some(Some(_)))).collect();
    if !missing.is_empty() {
        let Some(partitions) = plan.create_topics else {
            return Err(SourceError::Fatal(format!(
                "{} does not have {}: make them (kafka-topics.sh --create), or set `create_topics`",
                plan.cluster.brokers,
                missing.join(", ")
            )));
        };
        let input = found.get(&plan.topic).and_then(Option::as_ref);
        let partitions = input.map_or(partitions, |facts| facts.partitions);
        let new = missing.iter().map(|name| new_topic(name, *name == plan.topic, partitions));
        create(&plan.cluster, &new.collect::<Vec<_>>()).map_err(failed)?;
        tracing::info!(brokers = plan.cluster.brokers, topics = missing.join(", "), "topics were made");
        found = describe(&plan.cluster, &names).map_err(failed)?;
    }
    for (name, facts) in &found {
        if facts.as_ref().is_some_and(|facts| facts.compacted) {
            return Err(SourceError::Fatal(compacted(name, *name == plan.topic)));
        }
    }
    let facts = found.remove(&plan.topic).flatten();
    let facts = facts.ok_or_else(|| SourceError::Transient(format!("topic {} has gone", plan.topic)))?;
    warn_of_clocks(&plan.topic, &facts);
    let survey = survey(&plan.cluster, &[&plan.topic]).map_err(failed)?;
    match survey.states.into_values().next() {
        Some(TopicState::Present { id, .. }) => Ok((facts.partitions, id)),
        _ => Err(SourceError::Transient(format!("topic {} has gone", plan.topic))),
    }
}

fn new_topic(name: &str, is_input: bool, partitions: u32) -> NewTopicPlan {
    let mut config = KEPT.to_vec();
    // A letter is longer than its record by its headers.
    config.push(if is_input { APPEND_TIME } else { ("max.message.bytes", "16777216") });
    NewTopicPlan { name: name.to_string(), partitions, config }
}

fn compacted(name: &str, is_input: bool) -> String {
    let why = match is_input {
        true => "its past would not be what it was, and the same readings would not give the same results",
        false => "dead letters would be lost",
    };
    format!("topic {name} is compacted: {why}; set cleanup.policy=delete, or use another topic")
}

fn warn_of_clocks(topic: &str, facts: &TopicFacts) {
    if facts.append_time {
        return;
    }
    let guarded = facts.max_ahead_ms.map_or("not limited".into(), |ms| format!("limited to {ms} ms ahead"));
    tracing::warn!(
        topic,
        guarded,
        "arrival times are what producers say, so a producer's wrong clock vouches for itself: set \
         message.timestamp.type=LogAppendTime, or limit message.timestamp.after.max.ms"
    );
}

fn failed(error: TopicsError) -> SourceError {
    match error {
        TopicsError::Unreachable { .. } => SourceError::Transient(error.to_string()),
        TopicsError::NotAuthorised { .. } | TopicsError::Other { .. } => {
            SourceError::Fatal(error.to_string())
        }
    }
}
