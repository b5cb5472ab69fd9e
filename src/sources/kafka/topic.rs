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
    for (name, facts) in &found {
        let warning = facts.as_ref().and_then(|facts| retention_warning(name, facts, *name == plan.topic));
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
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

/// What it means that old records go away, and what to do.
fn retention_warning(topic: &str, facts: &TopicFacts, is_input: bool) -> Option<String> {
    let retention = facts.retention()?;
    let meaning = match is_input {
        true => {
            "a start goes on from its newest checkpoint, and is refused once that is older than what is kept; whatever needs all of the log, \
             as another formula or lost state does, can no longer be computed. Set retention.ms=-1 and retention.bytes=-1, or keep records \
             for much longer than the service and its checkpoints may be away"
        }
        false => {
            "dead letters go away whether anybody has looked at them or not, and cannot be sent again. Set retention.ms=-1 and \
             retention.bytes=-1, or export them in time (swelter dead-letters export)"
        }
    };
    Some(format!("topic {topic} loses its old records ({retention}): {meaning}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_of_input_and_of_dead_letters_is_warned_of_with_what_it_means() {
        let kept = TopicFacts {
            partitions: 1,
            compacted: false,
            retention_ms: None,
            retention_bytes: None,
            append_time: true,
            max_ahead_ms: None,
        };
        assert_eq!(retention_warning("t", &kept, true), None);
        let by_time = TopicFacts { retention_ms: Some(604_800_000), ..kept.clone() };
        let by_size = TopicFacts { retention_bytes: Some(1_000), ..kept.clone() };
        let both = TopicFacts { retention_bytes: Some(0), ..by_time.clone() };
        for (facts, said) in [
            (&by_time, "(retention.ms=604800000, 7 d)"),
            (&by_size, "(retention.bytes=1000 of a partition)"),
            (&both, "(retention.ms=604800000, 7 d and retention.bytes=0 of a partition)"),
        ] {
            let input = retention_warning("readings", facts, true).unwrap();
            assert!(input.contains(said) && input.contains("newest checkpoint"), "{input}");
            let letters = retention_warning("readings.failed.1", facts, false).unwrap();
            assert!(letters.contains(said) && letters.contains("dead letters go away"), "{letters}");
        }
    }
}
