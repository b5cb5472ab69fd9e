//! How the topics of a cluster are written.

use std::time::Duration;

use crate::kafka::KafkaCluster;

/// A sink of results.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaSinkPlan {
    pub output: KafkaOutputPlan,
    /// The topic of every change of a row, by city and time.
    pub topic: String,
    /// The topic of every change of a city's current row, by city.
    pub current_topic: Option<String>,
    pub format: RowFormat,
    /// Create missing topics with this many partitions.
    pub create_topics: Option<u32>,
}

/// How rows are encoded.
#[derive(Clone, PartialEq, Eq)]
pub enum RowFormat {
    Json,
    /// In Confluent's wire format. The schemas are registered at these URLs, as this user.
    Avro {
        urls: Vec<String>,
        user: Option<(String, String)>,
    },
    /// Bare Avro of the schemas in `schemas/`.
    BareAvro,
}

// `Debug` does not show the password.
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

/// What the shards of one sink write to a cluster, and where their progress is recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaOutputPlan {
    pub cluster: KafkaCluster,
    pub progress_topic: String,
    pub delivery: Delivery,
    /// Fixed at the first start.
    pub shards: u16,
    pub commit_interval: Duration,
    /// After this time the cluster aborts an open transaction.
    pub transaction_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Records and progress are written in transactions.
    ExactlyOnce,
    /// Records are written at once. After a crash, those written since the last progress are
    /// written again.
    AtLeastOnce,
}

impl KafkaOutputPlan {
    pub(super) fn is_transactional(&self) -> bool {
        self.delivery == Delivery::ExactlyOnce
    }
}
