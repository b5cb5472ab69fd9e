//! Results as records of Kafka topics, each exactly once.
//!
//! An [`Outlet`] is what is written to one cluster: a fixed number of shards, each with a producer of its own and whole
//! partitions, and the [`progress`] topic. A shard writes whole epochs, and with them, in the same transaction, the positions
//! of the input that they are complete up to.

pub mod follow;
mod producer;
pub mod progress;
pub mod render;
mod shard;
mod sink;

use std::time::Duration;

use rdkafka::error::KafkaError;

pub use self::follow::Heartbeat;
pub use self::shard::ShardBatch;
pub use self::sink::{
    FencedShards, Identity, KafkaSink, ProgressWriter, RunningKafkaSink, ShardSenders, SinkClaim,
    SuccessorClaim, inspect_progress,
};

use crate::fault::start_failure_text;
use crate::kafka::KafkaCluster;
use crate::model::rules_version::{RulesVersionMismatch, rebuild_hint};

/// Where results go.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaSinkPlan {
    pub output: KafkaOutputPlan,
    /// Every change of a row, by city and time.
    pub topic: String,
    /// Every change of a city's current row, by city.
    pub current_topic: Option<String>,
    pub format: RowFormat,
    /// Make the topics where they are missing, with so many partitions.
    pub create_topics: Option<u32>,
}

/// How rows are written.
#[derive(Clone, PartialEq, Eq)]
pub enum RowFormat {
    Json,
    /// In Confluent's wire format, with the schemas registered at these URLs, as this user.
    Avro {
        urls: Vec<String>,
        user: Option<(String, String)>,
    },
    /// Bare Avro, as `schemas/` has it.
    BareAvro,
}

// The password is never shown.
impl std::fmt::Debug for RowFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RowFormat::Json => f.write_str("Json"),
            RowFormat::Avro { urls, .. } => {
                f.debug_struct("Avro").field("urls", urls).finish_non_exhaustive()
            }
            RowFormat::BareAvro => f.write_str("BareAvro"),
        }
    }
}

/// What is written to a cluster in transactions, and where its progress is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaOutputPlan {
    pub cluster: KafkaCluster,
    pub progress_topic: String,
    pub delivery: Delivery,
    /// Fixed at the first start.
    pub shards: u16,
    pub commit_interval: Duration,
    /// After this long the cluster gives a transaction up.
    pub transaction_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// In transactions that hold the progress as well.
    ExactlyOnce,
    /// At once; what was written since the last progress is written again after a crash.
    AtLeastOnce,
}

/// Why an outlet cannot be written.
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
        "topic {topic} was not read to its end in time: {}, before {}: see whether transactions of other producers hang, with kafka-transactions.sh",
        seen.map_or("nothing was read".into(), |seen| format!("at offset {seen}")),
        marker.map_or("its end".into(), |marker| marker.to_string())
    )]
    Hangs { topic: String, seen: Option<i64>, marker: Option<i64> },
    #[error("topic {topic}, key {key}: {problem}: is it a progress topic of swelter?")]
    Damaged { topic: String, key: String, problem: String },
    #[error(
        "generation {generation} of the same results has taken over (progress topic {topic}): this process ends; run one at a time, or give each its own progress and result topics"
    )]
    Fenced { topic: String, generation: u64 },
    #[error(
        "the results of progress topic {topic} were made with {what} {before}, now it is {now}: set it back, or name new progress and result topics to begin anew{}",
        rebuild_hint(what)
    )]
    Identity { topic: String, what: String, before: String, now: String },
    #[error(transparent)]
    Rules(#[from] RulesVersionMismatch),
    #[error(
        "the cluster at {brokers} does not answer: not all that was read is written; the next start goes on where it ends"
    )]
    Unfinished { brokers: String },
    #[error(
        "topic {topic} does not take a record of this size: raise its max.message.bytes, to more than that of the topic that is read, \
         and start again; nothing is lost"
    )]
    TooLarge { topic: String },
    #[error("{}", start_failure_text(.0))]
    Threads(std::sync::Arc<std::io::Error>),
}

impl KafkaSinkError {
    fn cannot_connect(cluster: &KafkaCluster, error: KafkaError) -> KafkaSinkError {
        KafkaSinkError::Client { brokers: cluster.brokers.clone(), error }
    }

    fn cannot_read(topic: &str, error: KafkaError) -> KafkaSinkError {
        KafkaSinkError::Reading { topic: topic.to_owned(), error }
    }

    fn cannot_write(topic: &str, error: KafkaError) -> KafkaSinkError {
        KafkaSinkError::Writing { topic: topic.to_owned(), error }
    }
}
