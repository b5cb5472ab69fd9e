//! Errors of writing to the topics of a cluster.

use rdkafka::error::KafkaError;

use crate::kafka::KafkaCluster;
use crate::model::rules_version::RulesVersionMismatch;
use crate::sinks::error::SinkError;
use crate::sinks::progress::IdentityDifference;

/// Why a sink of a cluster cannot be written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KafkaSinkError {
    #[error("brokers {brokers}: {error}: check the addresses and properties")]
    Client { brokers: String, error: KafkaError },
    #[error("topic {topic} cannot be read: {error}: check that it exists and that reading it is allowed")]
    Reading { topic: String, error: KafkaError },
    #[error("topic {topic} cannot be written: {error}: check that it exists and that writing it is allowed")]
    Writing { topic: String, error: KafkaError },
    #[error("transactional id {id} cannot be used: {error}")]
    Transactions { id: String, error: KafkaError },
    #[error(
        "topic {topic} was not read to its end in time: {}, before {}: look for hanging transactions of other producers with `kafka-transactions.sh find-hanging`",
        last_offset.map_or("nothing was read".into(), |offset| format!("at offset {offset}")),
        marker.map_or("its end".into(), |marker| marker.to_string())
    )]
    Hangs { topic: String, last_offset: Option<i64>, marker: Option<i64> },
    #[error(
        "generation {generation} of the same results has taken over (progress topic {topic}): this process ends; run one at a time, or give each its own progress and result topics"
    )]
    Fenced { topic: String, generation: u64 },
    #[error(
        "the results of progress topic {topic} were made with {difference}: set it back, or name new progress and result topics to begin anew{}",
        .difference.rebuild_hint()
    )]
    Identity { topic: String, difference: IdentityDifference },
    #[error(transparent)]
    Rules(#[from] RulesVersionMismatch),
    #[error(
        "the cluster at {brokers} does not answer, so it lacks results of records that were read; the next start writes them"
    )]
    Unfinished { brokers: String },
    #[error(
        "topic {topic} does not accept a record of this size: raise its max.message.bytes above that of the input topic, and start again; nothing is lost"
    )]
    TooLarge { topic: String },
}

impl KafkaSinkError {
    pub(super) fn cannot_connect(cluster: &KafkaCluster, error: KafkaError) -> KafkaSinkError {
        KafkaSinkError::Client { brokers: cluster.brokers.clone(), error }
    }

    pub(super) fn cannot_read(topic: &str, error: KafkaError) -> KafkaSinkError {
        KafkaSinkError::Reading { topic: topic.to_owned(), error }
    }

    pub(super) fn cannot_write(topic: &str, error: KafkaError) -> KafkaSinkError {
        KafkaSinkError::Writing { topic: topic.to_owned(), error }
    }
}

impl From<KafkaSinkError> for SinkError {
    fn from(error: KafkaSinkError) -> SinkError {
        let text = error.to_string();
        match error {
            KafkaSinkError::Fenced { .. } => SinkError::Fenced(text),
            KafkaSinkError::Hangs { .. } => SinkError::Unavailable(text),
            _ => SinkError::Fatal(text),
        }
    }
}
