//! How a topic is read.

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
    /// Make the topic and those of its dead letters where they are missing, the first with so many
    /// partitions.
    pub create_topics: Option<u32>,
    /// Where the progress of the dead letters is kept, unless a sink of the same cluster keeps it.
    pub progress_topic: String,
    /// The consumer group under which positions are shown to monitors of lag. They decide nothing.
    pub group: String,
    /// Where what is appended to the topic goes.
    pub partitioner: Partitioner,
    /// After this long dead letters are sent once more by themselves, other than those that are too
    /// late.
    pub retry_after: Option<Millis>,
}

/// How records are written.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordFormat {
    Json,
    /// In Confluent's wire format, with schemas of a registry.
    AvroRegistry(RegistryPlan),
    /// Bare, each written with the schema of a file.
    AvroFile(PathBuf),
}

/// A schema registry as a client reaches it.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryPlan {
    /// Asked in turn.
    pub urls: Vec<String>,
    /// User and password.
    pub user: Option<(String, String)>,
}

// The password is never shown.
impl std::fmt::Debug for RegistryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryPlan").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// Where reading begins at the first start of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetReset {
    Earliest,
    Latest,
    /// With the first record that the log took then or later.
    FromTime(EventTime),
}
