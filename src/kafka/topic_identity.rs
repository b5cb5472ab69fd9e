//! What topics are known by beside their names: ids, which a topic that was deleted and made again does not keep.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use super::KafkaCluster;
use super::native::{self, TopicState};

/// How often topics are looked at while a run goes on, and how long an answer may take.
const TOPIC_CHECK_INTERVAL: Duration = Duration::from_secs(5);
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(4);
/// Before a topic counts as gone.
const RECHECK_DELAY: Duration = Duration::from_millis(500);

/// What is recorded of a topic that is read or written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicIdentity {
    /// As Kafka's own tools write it; brokers before 2.8 have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Ids of the topics that it has taken the place of, with --adopt-logs.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub former_ids: BTreeSet<String>,
    /// It had been written to when this was recorded.
    #[serde(default)]
    pub is_written: bool,
}

/// By topic.
pub type TopicIdentities = BTreeMap<String, TopicIdentity>;

/// How a topic differs from what was recorded of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicChange {
    #[error("topic {topic} is gone")]
    Gone { topic: String },
    #[error("topic {topic} is another one: it has the id {id}, and had {recorded}")]
    AnotherId { topic: String, recorded: String, id: String },
    #[error("topic {topic} is another one: it was written to, and is empty as a new one is")]
    Empty { topic: String },
}

impl TopicChange {
    pub fn topic(&self) -> &str {
        match self {
            TopicChange::Gone { topic }
            | TopicChange::AnotherId { topic, .. }
            | TopicChange::Empty { topic } => topic,
        }
    }
}

impl TopicIdentity {
    /// How a topic that is as `state` says differs from what was recorded; `is_written` says whether it has ever been written to.
    pub fn detect_change(&self, topic: &str, state: &TopicState, is_written: bool) -> Option<TopicChange> {
        let topic = topic.to_owned();
        match (state, &self.id) {
            (TopicState::Missing, _) => Some(TopicChange::Gone { topic }),
            // Nothing is known of it just now.
            (TopicState::Unknown(_), _) => None,
            _ if self.is_written && !is_written => Some(TopicChange::Empty { topic }),
            (TopicState::Present { id: Some(id), .. }, Some(recorded)) if id != recorded => {
                Some(TopicChange::AnotherId { topic, recorded: recorded.clone(), id: id.clone() })
            }
            (TopicState::Present { .. }, _) => None,
        }
    }

    /// Whether the id was the topic's from the start on.
    pub fn is_original_id(&self, id: Option<&str>) -> bool {
        self.id.as_deref() == id && self.former_ids.is_empty()
    }

    /// What is recorded once the topic is as `state` says, and that was found right.
    pub fn updated_from(&self, state: &TopicState, is_written: bool) -> TopicIdentity {
        let TopicState::Present { id: Some(id), .. } = state else {
            return TopicIdentity { is_written, ..self.clone() };
        };
        let mut former_ids = self.former_ids.clone();
        former_ids.extend(self.id.clone().filter(|before| before != id));
        former_ids.remove(id);
        TopicIdentity { id: Some(id.clone()), former_ids, is_written }
    }
}

/// The topics of a cluster, and what they are known by.
pub struct WatchedCluster {
    pub cluster: KafkaCluster,
    pub topics: TopicIdentities,
}

/// Looks at the topics of a run again and again, until it is dropped.
pub struct TopicWatch {
    /// Its end is the end.
    _ends: Vec<Sender<()>>,
}

impl TopicWatch {
    /// `changed` hears of the first change of each cluster, by its number. `written` hears of topics that were written to for the first
    /// time, again and again until it has recorded that.
    ///
    /// # Errors
    ///
    /// Where no thread can be started, or no client made.
    pub fn start_watching(
        clusters: Vec<WatchedCluster>,
        changed: impl Fn(usize, &TopicChange) + Clone + Send + 'static,
        written: impl Fn(usize, &BTreeSet<String>) -> bool + Clone + Send + 'static,
    ) -> Result<TopicWatch, String> {
        let mut ends = Vec::new();
        for (number, WatchedCluster { cluster, mut topics }) in clusters.into_iter().enumerate() {
            let (end, ended) = channel::<()>();
            let mut config = cluster.client_config();
            config
                .set("allow.auto.create.topics", "false")
                .set("socket.timeout.ms", super::REQUEST_TIMEOUT_MS);
            let client: BaseConsumer =
                config.create().map_err(|error| format!("{}: {error}", cluster.brokers))?;
            let (changed, written) = (changed.clone(), written.clone());
            let watch = move || {
                while ended.recv_timeout(TOPIC_CHECK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    // What the client says of itself is heard from the others, too.
                    while client.poll(Duration::ZERO).is_some() {}
                    if let Some(change) =
                        check_topics(&client, &mut topics, &|topics| written(number, topics))
                    {
                        changed(number, &change);
                        break;
                    }
                }
            };
            let spawned = thread::Builder::new().name("topics".into()).spawn(watch);
            spawned.map_err(|error| format!("no thread can be started: {error}"))?;
            ends.push(end);
        }
        Ok(TopicWatch { _ends: ends })
    }
}

/// A cluster that does not answer is heard of elsewhere.
fn check_topics(
    client: &BaseConsumer,
    topics: &mut TopicIdentities,
    written: &dyn Fn(&BTreeSet<String>) -> bool,
) -> Option<TopicChange> {
    let found = describe_states(client, topics)?;
    let change = first_change(topics, &found);
    if matches!(change, Some(TopicChange::Gone { .. })) {
        // A broker may have forgotten, or not learned yet, what the next one knows.
        thread::sleep(RECHECK_DELAY);
        return self::first_change(topics, &describe_states(client, topics)?);
    }
    let is_new = |topic: &String| topics.get(topic).is_some_and(|record| !record.is_written);
    let unwritten: BTreeMap<_, _> = found.into_iter().filter(|(topic, _)| is_new(topic)).collect();
    let now_written = find_written_topics(client, &unwritten, DESCRIBE_TIMEOUT).unwrap_or_default();
    if !now_written.is_empty() && written(&now_written) {
        for topic in now_written {
            topics.entry(topic).or_default().is_written = true;
        }
    }
    change
}

fn first_change(topics: &TopicIdentities, found: &BTreeMap<String, TopicState>) -> Option<TopicChange> {
    topics.iter().find_map(|(topic, record)| record.detect_change(topic, found.get(topic)?, true))
}

/// One request.
fn describe_states(client: &BaseConsumer, topics: &TopicIdentities) -> Option<BTreeMap<String, TopicState>> {
    let names: Vec<&str> = topics.keys().map(String::as_str).collect();
    let found = native::describe_topic_ids(client.client(), &names, DESCRIBE_TIMEOUT);
    found.inspect_err(|error| tracing::debug!(%error, "topics cannot be described")).ok()
}

/// The topics that have ever been written to, as far as their ends say: one request a broker, whatever the number of partitions.
pub fn find_written_topics<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topics: &BTreeMap<String, TopicState>,
    wait: Duration,
) -> KafkaResult<BTreeSet<String>> {
    let mut asked = TopicPartitionList::new();
    for (topic, state) in topics {
        let TopicState::Present { partitions, .. } = state else { continue };
        for partition in 0..*partitions {
            asked.add_partition_offset(topic, partition as i32, Offset::End)?;
        }
    }
    if asked.count() == 0 {
        return Ok(BTreeSet::new());
    }
    let found = client.offsets_for_times(asked, wait)?;
    let mut written = BTreeSet::new();
    for element in found.elements() {
        element.error()?;
        if matches!(element.offset(), Offset::Offset(1..)) {
            written.insert(element.topic().to_owned());
        }
    }
    Ok(written)
}

/// Whether an error of a consumer may come of a topic that is another one by now.
pub fn may_be_another_topic(error: &KafkaError) -> bool {
    matches!(
        error,
        KafkaError::MessageConsumption(
            RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::LogTruncation
        )
    )
}

/// Whether the brokers say that what was read is not in the log any more (KIP-320).
pub fn is_truncation(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageConsumption(RDKafkaErrorCode::LogTruncation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(id: &str) -> TopicState {
        TopicState::Present { id: Some(id.into()), partitions: 1 }
    }

    #[test]
    fn topic_record_detects_deleted_recreated_and_emptied_topics() {
        let record = TopicIdentity { id: Some("a".into()), is_written: true, ..TopicIdentity::default() };
        let change = |state: &TopicState, is_written| record.detect_change("t", state, is_written);
        let (topic, none) = (|| "t".to_owned(), TopicState::Present { id: None, partitions: 1 });
        assert_eq!(change(&present("a"), true), None);
        assert_eq!(change(&TopicState::Missing, true), Some(TopicChange::Gone { topic: topic() }));
        let another = TopicChange::AnotherId { topic: topic(), recorded: "a".into(), id: "b".into() };
        assert_eq!(change(&present("b"), true), Some(another));
        for empty in [&present("b"), &none] {
            assert_eq!(change(empty, false), Some(TopicChange::Empty { topic: topic() }));
        }
        // A cluster that says no ids, or cannot say just now, says nothing against it.
        assert_eq!(change(&none, true), None);
        assert_eq!(change(&TopicState::Unknown(RDKafkaErrorCode::BrokerNotAvailable), false), None);
        // What was recorded before there were ids.
        assert_eq!(TopicIdentity::default().detect_change("t", &present("b"), false), None);
    }

    #[test]
    fn topic_record_keeps_adopted_ids() {
        let first = TopicIdentity::default().updated_from(&present("a"), false);
        assert_eq!((first.id.as_deref(), first.former_ids.len(), first.is_written), (Some("a"), 0, false));
        let second = first.updated_from(&present("b"), true);
        assert_eq!((second.id.as_deref(), second.is_written), (Some("b"), true));
        assert_eq!(second.former_ids, ["a".to_owned()].into());
        let back = second.updated_from(&present("a"), true);
        assert_eq!((back.id.as_deref(), back.former_ids), (Some("a"), ["b".to_owned()].into()));
        let kept = second.updated_from(&TopicState::Present { id: None, partitions: 1 }, true);
        assert_eq!(kept.id.as_deref(), Some("b"));
        let json = serde_json::to_string(&second).unwrap();
        assert_eq!(json, r#"{"id":"b","former_ids":["a"],"is_written":true}"#);
        assert_eq!(serde_json::from_str::<TopicIdentity>("{}").unwrap(), TopicIdentity::default());
    }
}
