//! Results as records of Kafka topics, each exactly once.

use std::time::Duration as Wait;

use crate::kafka::Cluster;

/// Where results go.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaSinkPlan {
    pub outlet: OutletPlan,
    /// Every change of a row, by city and time.
    pub topic: String,
    /// Every change of a city's current row, by city.
    pub current_topic: Option<String>,
    pub format: RowFormat,
    /// Make the topics where they are missing, with so many partitions.
    pub create_topics: Option<u32>,
}

/// How rows are written.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// What is written to a cluster in transactions, and where its progress is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct OutletPlan {
    pub cluster: Cluster,
    pub progress_topic: String,
    pub delivery: Delivery,
    /// Fixed at the first start.
    pub shards: u16,
    pub commit_interval: Wait,
    /// After this long the cluster gives a transaction up.
    pub transaction_timeout: Wait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// In transactions that hold the progress as well.
    ExactlyOnce,
    /// At once; what was written since the last progress is written again after a crash.
    AtLeastOnce,
}
