//! How topics are written.

use std::time::Duration;

use crate::kafka::KafkaCluster;

/// A sink of results.
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

/// What is written to a cluster by the shards of one sink, and where its progress is recorded.
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

impl KafkaOutputPlan {
    pub(super) fn is_transactional(&self) -> bool {
        self.delivery == Delivery::ExactlyOnce
    }
}
