//! The identities of topics: ids, which change if a topic is deleted and created again under its
//! name.

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

/// How often the topics of a run are checked, and how long a response may take.
const TOPIC_CHECK_INTERVAL: Duration = Duration::from_secs(5);
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(4);
/// The pause before a topic that seems gone is checked once more.
const RECHECK_DELAY: Duration = Duration::from_millis(500);

/// What is recorded of a topic that is read or written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicIdentity {
    /// The id as Kafka's own tools write it; brokers before 2.8 have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Ids of earlier topics of the name that `--adopt-logs` accepted it in place of.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub former_ids: BTreeSet<String>,
    /// Whether the topic had been written to when this was recorded.
    #[serde(default)]
    pub is_written: bool,
}

/// By the topic's name.
pub type TopicIdentities = BTreeMap<String, TopicIdentity>;

/// How a topic differs from its recorded identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicChange {
    #[error("topic {topic} is gone")]
    Gone { topic: String },
    #[error("topic {topic} is another one: it has the id {id}, and had {recorded}")]
    AnotherId { topic: String, recorded: String, id: String },
    #[error("topic {topic} is another one: records were written to it, and it is empty")]
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
    /// How a topic in this `state` differs from its recorded identity; `is_written` says whether it
    /// was ever written to.
    pub fn detect_change(&self, topic: &str, state: &TopicState, is_written: bool) -> Option<TopicChange> {
        let topic = topic.to_owned();
        match (state, &self.id) {
            (TopicState::Missing, _) => Some(TopicChange::Gone { topic }),
            // The state is unknown for now.
            (TopicState::Unknown(_), _) => None,
            _ if self.is_written && !is_written => Some(TopicChange::Empty { topic }),
            (TopicState::Present { id: Some(id), .. }, Some(recorded)) if id != recorded => {
                Some(TopicChange::AnotherId { topic, recorded: recorded.clone(), id: id.clone() })
            }
            (TopicState::Present { .. }, _) => None,
        }
    }

    /// Whether the topic had this id from the start on.
    pub fn is_original_id(&self, id: Option<&str>) -> bool {
        self.id.as_deref() == id && self.former_ids.is_empty()
    }

    /// The identity to record once a topic in this `state` was found right.
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

/// A cluster, and the recorded identities of its topics.
pub struct WatchedCluster {
    pub cluster: KafkaCluster,
    pub topics: TopicIdentities,
}

/// Checks the topics of a run every few seconds until it is dropped.
pub struct TopicWatch {
    /// Each thread ends when its sender is dropped.
    _ends: Vec<Sender<()>>,
}

impl TopicWatch {
    /// `changed` is called with the first change of each cluster, by the cluster's number.
    /// `written` is called with topics that were written to for the first time, again and again
    /// until it has recorded that.
    ///
    /// # Errors
    ///
    /// If no thread can be started, or no client created.
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
                    // The client's errors are reported by the clients that read and write.
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

/// A cluster that does not respond is reported by the clients that read and write.
fn check_topics(
    client: &BaseConsumer,
    topics: &mut TopicIdentities,
    written: &dyn Fn(&BTreeSet<String>) -> bool,
) -> Option<TopicChange> {
    let states = describe_states(client, topics)?;
    let change = first_change(topics, &states);
    if matches!(change, Some(TopicChange::Gone { .. })) {
        // This broker may lack metadata that the next one has.
        thread::sleep(RECHECK_DELAY);
        return self::first_change(topics, &describe_states(client, topics)?);
    }
    let is_new = |topic: &String| topics.get(topic).is_some_and(|record| !record.is_written);
    let unwritten: BTreeMap<_, _> = states.into_iter().filter(|(topic, _)| is_new(topic)).collect();
    let now_written = find_written_topics(client, &unwritten, DESCRIBE_TIMEOUT).unwrap_or_default();
    if !now_written.is_empty() && written(&now_written) {
        for topic in now_written {
            topics.entry(topic).or_default().is_written = true;
        }
    }
    change
}

fn first_change(topics: &TopicIdentities, states: &BTreeMap<String, TopicState>) -> Option<TopicChange> {
    topics.iter().find_map(|(topic, record)| record.detect_change(topic, states.get(topic)?, true))
}

/// One request.
fn describe_states(client: &BaseConsumer, topics: &TopicIdentities) -> Option<BTreeMap<String, TopicState>> {
    let names: Vec<&str> = topics.keys().map(String::as_str).collect();
    let ids = native::describe_topic_ids(client.client(), &names, DESCRIBE_TIMEOUT);
    ids.inspect_err(|error| tracing::debug!(%error, "topics cannot be described")).ok()
}

/// The topics that were ever written to, as their end offsets say: one request a broker, whatever
/// the number of partitions.
pub fn find_written_topics<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topics: &BTreeMap<String, TopicState>,
    wait: Duration,
) -> KafkaResult<BTreeSet<String>> {
    let mut ends = TopicPartitionList::new();
    for (topic, state) in topics {
        let TopicState::Present { partitions, .. } = state else { continue };
        for partition in 0..*partitions {
            ends.add_partition_offset(topic, partition as i32, Offset::End)?;
        }
    }
    if ends.count() == 0 {
        return Ok(BTreeSet::new());
    }
    let offsets = client.offsets_for_times(ends, wait)?;
    let mut written = BTreeSet::new();
    for element in offsets.elements() {
        element.error()?;
        if matches!(element.offset(), Offset::Offset(1..)) {
            written.insert(element.topic().to_owned());
        }
    }
    Ok(written)
}

/// Whether a consumer's error may mean that the topic was deleted and created again.
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

/// Whether the brokers say that records which were read are no longer in the log (KIP-320).
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
    fn topic_identity_detects_deleted_recreated_and_emptied_topics() {
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
        // A cluster without ids, or one whose state is unknown, contradicts nothing.
        assert_eq!(change(&none, true), None);
        assert_eq!(change(&TopicState::Unknown(RDKafkaErrorCode::BrokerNotAvailable), false), None);
        // A recorded identity from before there were ids.
        assert_eq!(TopicIdentity::default().detect_change("t", &present("b"), false), None);
    }

    #[test]
    fn topic_identity_keeps_adopted_ids() {
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
