//! The configuration of a Kafka source.

use std::path::PathBuf;

use crate::kafka::KafkaCluster;
use crate::kafka::partitioner::Partitioner;
use crate::model::{EventTime, Millis};

/// A topic to read.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaSourcePlan {
    pub cluster: KafkaCluster,
    pub topic: String,
    pub format: RecordFormat,
    pub offset_reset: OffsetReset,
    /// If set, create the topic and those of its dead letters if they are missing, the first with
    /// this many partitions.
    pub create_topics: Option<u32>,
    /// The topic that has the progress of the dead letters, unless a sink of the same cluster has
    /// it.
    pub progress_topic: String,
    /// The consumer group under which positions are committed for lag monitors. Nothing reads them
    /// back.
    pub group: String,
    /// How appended records are assigned to partitions.
    pub partitioner: Partitioner,
    /// Dead letters are retried once automatically after this time, except those that are too late.
    pub retry_after: Option<Millis>,
}

/// The encoding of records.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordFormat {
    Json,
    /// Confluent's wire format, with schemas of a registry.
    AvroRegistry(RegistryPlan),
    /// Bare Avro, all records with the schema in a file.
    AvroFile(PathBuf),
}

/// The address and credentials of a schema registry.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryPlan {
    /// Tried in turn.
    pub urls: Vec<String>,
    /// User and password.
    pub user: Option<(String, String)>,
}

// The output never has the password.
impl std::fmt::Debug for RegistryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryPlan").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// The position at which reading begins at the very first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetReset {
    Earliest,
    Latest,
    /// The first record that was appended to the log at this time or later.
    FromTime(EventTime),
}
